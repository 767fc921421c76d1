/* Requests of devices, from the HTTP front through the DBMS and back. */
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>

#include "app/activation/activation.h"
#include "sys/log/log.h"

enum { COL_OUTCOME, COL_LICENCE, COL_ISSUED, COL_EXPIRES };

/* --- answers ------------------------------------------------------------------------ */

struct no {
    enum refusal why;
    const char *text; /* "": the title */
    uint32_t wait_s;
};

static void refuse(struct activation *a, void *call, const struct uuid *device,
                   const struct no *no)
{
    const struct refusal_words *w = refusal_words(no->why);
    char id[UUID_TEXT] = "";
    json_t *o =
        json_pack("{s:{s:s, s:s, s:s, s:s}}", "error", "id", w->id, "title", w->title,
                  "text", no->text[0] ? no->text : w->title, "suggestion", w->suggestion);
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    a->refused++;
    if (device)
        uuid_format(id, device);
    if (no->why != REFUSED_FLOOD) /* its event says it once */
        log_event(LOG_LEVEL_INFO, "lease_refused", log_str("device", id),
                  log_str("why", w->id), log_str("text", no->text));
    front_answer(a->front, call,
                 &(struct front_reply){
                     .status = w->status, .json = body, .retry_after_s = no->wait_s });
}

static void drop_job(struct activation *a, struct job *j)
{
    for (size_t i = 0; j->asking && i < a->batch_count; i++)
        if (a->batch[i] == j)
            a->batch[i] = NULL; /* its query goes on; nobody waits for it any more */
    TAILQ_REMOVE(&a->jobs, j, next);
    a->job_count--;
    free(j);
}

static void refuse_job(struct activation *a, struct job *j, enum refusal why,
                       const char *text)
{
    refuse(a, j->call, &j->who.id, &(struct no){ .why = why, .text = text });
    drop_job(a, j);
}

void jobs_sweep(struct activation *a, bool all, enum refusal why)
{
    uint64_t now = boot_ms();
    struct job *j, *next;

    for (j = TAILQ_FIRST(&a->jobs); j; j = next) {
        next = TAILQ_NEXT(j, next);
        if (all || now - j->asked_ms > JOB_WAIT_MS)
            refuse_job(a, j, why, "");
    }
}

/* The lease of a record, signed; false: there is no memory for it. */
static bool give(struct activation *a, void *call, const struct device_record *r,
                 const struct licence *l)
{
    struct lease_terms terms = { .device = r->id,
                                 .device_key = r->key,
                                 .cluster = a->conf.cluster.name,
                                 .issued = r->issued,
                                 .expires = r->expires };
    char *lease = lease_sign(l, &terms, &a->signer);

    if (lease)
        front_answer(a->front, call,
                     &(struct front_reply){ .status = 200, .json = lease });
    return lease != NULL;
}

static const struct held *find(const struct held *const usable[], size_t n,
                               const struct uuid *licence)
{
    for (size_t i = 0; i < n; i++)
        if (uuid_eq(&usable[i]->licence.id, licence))
            return usable[i];
    return NULL;
}

/* --- through the DBMS ----------------------------------------------------------------- */

int64_t cell(const PGresult *r, int row, int column)
{
    uint64_t n;

    return str_u64(str_of(PQgetvalue(r, row, column)), INT64_MAX, &n) ? (int64_t)n : 0;
}

static enum refusal outcome_refuses(const char *outcome)
{
    if (strcmp(outcome, "full") == 0)
        return REFUSED_SEATS_FULL;
    if (strcmp(outcome, "clock") == 0)
        return REFUSED_CLOCK;
    if (strcmp(outcome, "revoked") == 0)
        return REFUSED_REVOKED;
    return strcmp(outcome, "pending") == 0 ? REFUSED_NOT_ADMITTED : REFUSED_NOT;
}

static void grant(struct activation *a, struct job *j, const PGresult *r, int row)
{
    struct device_record *d = devices_get(a->devices, &j->who.id, boot_ms());
    const char *outcome = PQgetvalue(r, row, COL_OUTCOME);
    const struct held *usable[HELD_MAX], *h = NULL;
    enum refusal why;
    size_t n = licences_usable(a, usable, &why);
    char id[UUID_TEXT];

    (void)snprintf(d->key, sizeof(d->key), "%s", j->who.key);
    d->issued = cell(r, row, COL_ISSUED);
    d->expires = cell(r, row, COL_EXPIRES);
    if (uuid_parse(&d->licence, str_of(PQgetvalue(r, row, COL_LICENCE))))
        h = find(usable, n, &d->licence);
    if (!h || !give(a, j->call, d, &h->licence)) {
        refuse_job(a, j, REFUSED_BUSY, "the licences have just changed");
        return;
    }
    devices_lease(a->devices, d);
    a->granted++;
    uuid_format(id, &j->who.id);
    log_event(LOG_LEVEL_INFO, "lease_granted", log_str("device", id),
              log_str("how", outcome), log_u64("epoch", a->epoch));
    drop_job(a, j);
}

static void on_seats(void *ctx, enum err err, const PGresult *r,
                     const struct err_info *why)
{
    struct activation *a = ctx;
    bool may = activation_may_answer(a);
    size_t count = a->batch_count;

    a->batch_count = 0;
    for (size_t i = 0; i < count; i++) {
        struct job *j = a->batch[i];
        if (!j)
            continue; /* it was refused meanwhile */
        j->asking = false;
        if (err == ERR_STALE || !may)
            refuse_job(a, j, REFUSED_NOT_ACTIVE, why ? why->what : "");
        else if (err != ERR_OK || (int)i >= PQntuples(r))
            refuse_job(a, j, REFUSED_DATABASE, why ? why->what : "");
        else if (outcome_refuses(PQgetvalue(r, (int)i, COL_OUTCOME)) != REFUSED_NOT)
            refuse_job(a, j, outcome_refuses(PQgetvalue(r, (int)i, COL_OUTCOME)), "");
        else
            grant(a, j, r, (int)i);
    }
    pump(a);
}

static char *usable_text(const struct activation *a, const struct held *const usable[],
                         size_t n)
{
    json_t *list = json_array();
    char id[UUID_TEXT], *text;

    for (size_t i = 0; i < n; i++) {
        uuid_format(id, &usable[i]->licence.id);
        (void)json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I}", "licence", id, "seats",
                            (json_int_t)usable[i]->licence.seats, "limit",
                            (json_int_t)licences_limit(a, usable[i]), "until",
                            (json_int_t)usable[i]->until));
    }
    text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

/* The next batch; a device that asks twice is in two of them. */
static char *batch_text(struct activation *a)
{
    json_t *list = json_array();
    struct job *j;
    char *text;

    a->batch_count = 0;
    TAILQ_FOREACH(j, &a->jobs, next)
    {
        char id[UUID_TEXT];
        if (a->batch_count == JOBS_BATCH)
            break;
        uuid_format(id, &j->who.id);
        if (json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "device", id, "key",
                                                  j->who.key, "serial", j->who.serial)) !=
            0)
            break;
        j->asking = true;
        a->batch[a->batch_count++] = j;
    }
    text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

/* None can be used, as far as is known.  Who came after that was asked waits until it is asked
 * once more: who has just imported a licence may not be told that there is none.  True: it is
 * being asked. */
static bool refuse_known(struct activation *a, enum refusal why)
{
    const char *text = why == a->file_state ? a->file_why : "";
    struct job *j, *next;

    for (j = TAILQ_FIRST(&a->jobs); j; j = next) {
        next = TAILQ_NEXT(j, next);
        if (j->sync_round != a->sync_round)
            refuse_job(a, j, why, text);
    }
    if (TAILQ_EMPTY(&a->jobs))
        return false;
    licences_sync(a);
    return true;
}

bool jobs_ask(struct activation *a)
{
    const struct held *usable[HELD_MAX];
    char now[32], hold[16], young[16];
    enum refusal why;
    size_t n = licences_usable(a, usable, &why);

    if (TAILQ_EMPTY(&a->jobs))
        return false;
    if (n == 0)
        return refuse_known(a, why);
    char *texts[] = { batch_text(a), usable_text(a, usable, n) };
    const char *values[] = { texts[0], texts[1], hold, young, now };
    (void)snprintf(hold, sizeof(hold), "%u", a->conf.activation.lease_days * 86400u);
    (void)snprintf(young, sizeof(young), "%d", LEASE_YOUNG_S);
    licence_time_format(now, (int64_t)time(NULL));
    dbc_query(
        a->dbc, QUERY_MS,
        "SELECT outcome, licence, issued, expires FROM redoubt.take_seats($1::jsonb,"
        " $2::jsonb, $3::bigint, $4::bigint, $5::timestamptz)",
        LEN(values), values, on_seats, a);
    free(texts[0]);
    free(texts[1]);
    return true;
}

/* --- requests -------------------------------------------------------------------------- */

static void health(struct activation *a, const struct front_request *rq)
{
    bool active = activation_may_answer(a);
    json_t *o = json_pack("{s:s, s:I}", "node", redoubt_service_node(a->service), "epoch",
                          (json_int_t)(active ? a->epoch : 0));
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    front_answer(a->front, rq->call,
                 &(struct front_reply){ .status = active ? 200 : 503, .json = body });
}

/* {"device": "<uuid>"}: what the certificate says, or nothing at all. */
static enum refusal read_request(const struct front_request *rq)
{
    struct uuid device;
    enum refusal r = REFUSED_NOT;

    if (rq->too_long)
        return REFUSED_BAD_REQUEST;
    json_t *o = json_loadb(rq->body.p, rq->body.n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *given = json_object_get(o, "device");
    if (!json_is_object(o) || (given && !json_is_string(given)))
        r = REFUSED_BAD_REQUEST;
    else if (given && (!uuid_parse(&device, str_of(json_string_value(given))) ||
                       !uuid_eq(&device, &rq->device->id)))
        r = REFUSED_OTHER_DEVICE;
    json_decref(o);
    return r;
}

/* Before anything is read that the device sent. */
static enum refusal may_ask(struct activation *a, const struct front_request *rq,
                            uint32_t *wait_s)
{
    uint64_t now = boot_ms();

    if (!activation_may_answer(a))
        return REFUSED_NOT_ACTIVE;
    if (!rq->device)
        return REFUSED_STRANGER;
    enum devices_may may = devices_ask(
        a->devices, devices_get(a->devices, &rq->device->id, now), now, wait_s);
    if (may == DEVICES_FLOOD_BEGINS && !a->has_flooder) {
        a->flooder = rq->device->id;
        a->has_flooder = true;
    }
    return may == DEVICES_MAY ? REFUSED_NOT : REFUSED_FLOOD;
}

/* The lease that the device has is fresh: the same one again, without the DBMS. */
static bool from_memory(struct activation *a, const struct front_request *rq,
                        const struct held *const usable[], size_t n)
{
    struct device_record *r = devices_get(a->devices, &rq->device->id, boot_ms());
    int64_t now = licences_now(a);

    if (!devices_has_lease(a->devices, r) || strcmp(r->key, rq->device->key) != 0 ||
        now - r->issued >= LEASE_YOUNG_S ||
        now - r->issued >= (r->expires - r->issued) / 2)
        return false;
    const struct held *h = find(usable, n, &r->licence);
    if (!h || !give(a, rq->call, r, &h->licence))
        return false;
    a->cached++;
    return true;
}

static void enqueue(struct activation *a, const struct front_request *rq)
{
    struct job *j = a->job_count < JOBS_MAX ? calloc(1, sizeof(*j)) : NULL;

    if (!j) {
        refuse(a, rq->call, &rq->device->id,
               &(struct no){ .why = REFUSED_BUSY, .text = "" });
        return;
    }
    j->call = rq->call;
    j->who = *rq->device;
    j->asked_ms = boot_ms();
    j->sync_round = a->sync_round;
    TAILQ_INSERT_TAIL(&a->jobs, j, next);
    a->job_count++;
    pump(a);
}

static void activate(struct activation *a, const struct front_request *rq)
{
    const struct held *usable[HELD_MAX];
    struct no no = { .text = "" };
    size_t n = 0;

    no.why = may_ask(a, rq, &no.wait_s);
    if (no.why == REFUSED_NOT)
        no.why = read_request(rq);
    if (no.why == REFUSED_NOT) {
        licences_file(a);
        n = licences_usable(a, usable, &no.why);
        if (n > 0 || !a->synced || dbc_connected(a->dbc))
            no.why = REFUSED_NOT; /* what the DBMS has now is not known yet: it waits */
        else if (no.why == a->file_state)
            no.text = a->file_why;
    }
    if (no.why != REFUSED_NOT)
        refuse(a, rq->call, rq->device ? &rq->device->id : NULL, &no);
    else if (!from_memory(a, rq, usable, n))
        enqueue(a, rq);
}

void jobs_request(void *arg, const struct front_request *rq)
{
    struct activation *a = arg;

    if (strcmp(rq->path, "/v1/health") == 0 && strcmp(rq->method, "GET") == 0)
        health(a, rq);
    else if (strcmp(rq->path, "/v1/activate") == 0 && strcmp(rq->method, "POST") == 0)
        activate(a, rq);
    else
        refuse(a, rq->call, NULL,
               &(struct no){ .why = REFUSED_BAD_REQUEST,
                             .text = "POST /v1/activate or GET /v1/health" });
}
