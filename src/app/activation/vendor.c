/*
 * What is asked of the vendor: one request at a time, stored with its nonce before it is sent,
 * repeated with the same nonce until its answer is stored.  Which one is due decides the DBMS
 * (redoubt.licence_due), so that the other node goes on where this one broke.
 */
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>

#include "app/activation/activation.h"
#include "sys/log/log.h"

enum { BACKOFF_MAX_S = 600, NONCE_MAX = 64 };

struct vendor {
    struct activation *a;
    struct upstream *up; /* NULL: none is configured */
    uint64_t look_ms;    /* when to ask the DBMS what is due */
    bool failing;

    char code[LICENCE_TEXT], nonce[NONCE_MAX]; /* of the request under way */
    unsigned tries;
    char *answer;  /* to be stored */
    char why[300]; /* the failure that is to be stored; "": none */
    double wait_s;
};

static double jitter(void)
{
    return (double)randombytes_uniform(1000) / 1000.0;
}

/* --- the answer -------------------------------------------------------------------------- */

static void failed(struct vendor *v, const char *why, uint32_t retry_after_s)
{
    double wait = v->tries < 10 ? (double)(1u << v->tries) : BACKOFF_MAX_S;

    if (wait > BACKOFF_MAX_S)
        wait = BACKOFF_MAX_S;
    if (retry_after_s > wait)
        wait = retry_after_s;
    v->wait_s = wait * (0.75 + 0.5 * jitter());
    v->failing = true;
    (void)snprintf(v->why, sizeof(v->why), "%s", why[0] ? why : "unknown");
    log_event(LOG_LEVEL_WARNING, "vendor_failed", log_str("why", v->why),
              log_u64("tries", v->tries + 1), log_u64("wait_s", (uint64_t)v->wait_s));
}

/* Nothing is believed before the signature and what was asked fit. */
static enum err check(const struct vendor *v, struct str body, struct err_info *info)
{
    struct licence_answer a;
    enum err e = licence_answer_open(&a, body, v->a->anchor, info);

    if (e != ERR_OK)
        return e;
    if (strcmp(a.nonce, v->nonce) != 0 || strcmp(a.code, v->code) != 0)
        return err_set(info, ERR_CORRUPT, 0, "it answers another request");
    return ERR_OK;
}

static void on_answer(void *arg, const struct upstream_answer *u)
{
    struct vendor *v = arg;
    struct err_info info = { .what = "" };
    char text[300];

    if (u->status == 0) {
        failed(v, u->why, 0);
    } else if (u->status != 200) {
        (void)snprintf(text, sizeof(text), "the vendor answers HTTP %u", u->status);
        failed(v, text, u->retry_after_s);
    } else if (check(v, u->body, &info) != ERR_OK) {
        (void)snprintf(text, sizeof(text), "the vendor's answer: %s", info.what);
        failed(v, text, 0);
    } else {
        v->answer = text_copy(u->body);
        if (!v->answer)
            failed(v, "out of memory", 0);
    }
    pump(v->a);
}

/* --- the DBMS ------------------------------------------------------------------------------ */

static void on_stored(void *ctx, enum err err, const PGresult *r,
                      const struct err_info *why)
{
    struct vendor *v = ctx;
    const char *how = err == ERR_OK ? PQgetvalue(r, 0, 0) : why->what;

    /* What was not stored is asked for again, with the same nonce. */
    if (err == ERR_OK)
        v->failing = false;
    log_event(err == ERR_OK ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "vendor_answered",
              log_str("how", how));
    v->a->sync_due = true;
    pump(v->a);
}

static void store(struct vendor *v)
{
    char text[32];
    const char *values[] = { v->answer, text };

    (void)snprintf(text, sizeof(text), "%.3f", jitter());
    dbc_query(v->a->dbc, QUERY_MS,
              "SELECT redoubt.licence_answered($1, $2::double precision)", LEN(values),
              values, on_stored, v);
    free(v->answer);
    v->answer = NULL;
}

static void on_failure_stored(void *ctx, enum err err, const PGresult *r,
                              const struct err_info *why)
{
    struct vendor *v = ctx;

    (void)r;
    if (err != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "vendor_unstored", log_str("why", why->what));
    pump(v->a);
}

static void store_failure(struct vendor *v)
{
    char text[32];
    const char *values[] = { v->nonce, v->why, text };

    (void)snprintf(text, sizeof(text), "%.3f", v->wait_s);
    dbc_query(v->a->dbc, QUERY_MS,
              "SELECT redoubt.licence_failed($1, $2, $3::double precision)", LEN(values),
              values, on_failure_stored, v);
    v->why[0] = '\0';
}

/* Columns: code, nonce, tries, request.  Its nonce was committed: only now it is sent. */
static void on_due(void *ctx, enum err err, const PGresult *r, const struct err_info *why)
{
    struct vendor *v = ctx;
    struct err_info info = { .what = "" };

    if (err != ERR_OK) {
        log_event(LOG_LEVEL_WARNING, "vendor_undecided", log_str("why", why->what));
        return; /* the sweep looks again */
    }
    if (PQntuples(r) == 1 && activation_may_answer(v->a) && !upstream_busy(v->up) &&
        str_copy(v->code, sizeof(v->code), str_of(PQgetvalue(r, 0, 0))) &&
        str_copy(v->nonce, sizeof(v->nonce), str_of(PQgetvalue(r, 0, 1)))) {
        v->tries = (unsigned)cell(r, 0, 2);
        log_event(LOG_LEVEL_INFO, "vendor_asked", log_u64("tries", v->tries));
        if (upstream_post(v->up, PQgetvalue(r, 0, 3), &info) != ERR_OK)
            failed(v, info.what, 0);
    }
    pump(v->a);
}

bool vendor_ask(struct activation *a)
{
    struct vendor *v = a->vendor;

    if (!v)
        return false;
    if (v->answer) {
        store(v);
    } else if (v->why[0]) {
        store_failure(v);
    } else if (!upstream_busy(v->up) && a->keys_loaded && boot_ms() >= v->look_ms) {
        v->look_ms = boot_ms() + VENDOR_LOOK_MS;
        dbc_query(a->dbc, QUERY_MS,
                  "SELECT code, nonce, tries, request FROM redoubt.licence_due()", 0,
                  NULL, on_due, v);
    } else {
        return false;
    }
    return true;
}

/* --- life ------------------------------------------------------------------------------------ */

enum err vendor_start(struct activation *a, struct err_info *info)
{
    const struct conf_activation *c = &a->conf.activation;
    struct upstream_options o = { .loop = a->event,
                                  .url = c->vendor,
                                  .ca_file = c->vendor_ca,
                                  .proxy = c->vendor_proxy,
                                  .timeout_ms = c->vendor_timeout_ms,
                                  .done = on_answer };
    struct vendor *v = c->vendor[0] ? calloc(1, sizeof(*v)) : NULL;

    if (!c->vendor[0])
        return ERR_OK;
    if (!v)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    v->a = a;
    o.arg = v;
    enum err e = upstream_new(&v->up, &o, info);
    if (e != ERR_OK)
        free(v);
    else
        a->vendor = v;
    return e;
}

void vendor_standby(struct activation *a)
{
    struct vendor *v = a->vendor;

    if (!v)
        return;
    upstream_cancel(v->up);
    free(v->answer);
    v->answer = NULL;
    v->why[0] = '\0';
    v->failing = false;
    v->look_ms = 0;
}

void vendor_look(struct activation *a)
{
    if (a->vendor)
        a->vendor->look_ms = 0;
}

void vendor_stop(struct activation *a)
{
    vendor_standby(a);
    if (a->vendor)
        upstream_free(a->vendor->up);
    free(a->vendor);
    a->vendor = NULL;
}

const char *vendor_word(const struct activation *a)
{
    const struct vendor *v = a->vendor;

    if (!v)
        return "none";
    if (v->failing)
        return "failing";
    return upstream_busy(v->up) ? "asking" : "ok";
}
