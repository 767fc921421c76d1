#include "app/manager/api.h"

#include <inttypes.h>

#include "sys/log/log.h"

enum {
    PATIENT_MAX = 128, /* requests that wait for events */
};

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail */
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* --- answers ----------------------------------------------------------------------------- */

static void forget(struct asked *a)
{
    TAILQ_REMOVE(&a->m->asked, a, next);
    if (a->waiting)
        a->m->patient--;
    json_decref(a->actor);
    json_decref(a->path);
    json_decref(a->query);
    json_decref(a->body);
    free(a->idem);
    free(a->hash);
    free(a);
}

static void send_answer(struct asked *a, struct http_reply *r)
{
    if (r->status < 400)
        a->m->answered++;
    else
        a->m->refused++;
    http_answer(a->server, a->call, r);
    forget(a);
}

static void fill_text(struct http_reply *r, unsigned status, const char *text)
{
    size_t n = strlen(text);

    r->status = status;
    r->body = malloc(n + 2);
    if (!r->body) {
        r->status = 503;
        return;
    }
    memcpy(r->body, text, n);
    memcpy(r->body + n, "\n", 2);
    r->body_bytes = n + 1;
}

void api_answer_text(struct asked *a, unsigned status, const char *text)
{
    struct http_reply r = { 0 };

    fill_text(&r, status, text);
    send_answer(a, &r);
}

void api_answer_json(struct asked *a, unsigned status, json_t *json)
{
    struct http_reply r = { .status = 503 };
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;

    json_decref(json);
    if (text)
        fill_text(&r, status, text);
    free(text);
    send_answer(a, &r);
}

void api_refuse(struct asked *a, unsigned status, const struct http_error *e)
{
    struct http_reply r = { .status = status };
    json_t *o = json_pack("{s:{s:s,s:s,s:s,s:s}}", "error", "id", e->id, "title",
                          e->title, "text", e->text, "suggestion", e->suggestion);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    if (a->allow)
        http_reply_header(&r, "Allow", a->allow);
    if (status == 401)
        http_reply_header(&r, "WWW-Authenticate", "Bearer");
    if (status == 503 || status == 429)
        http_reply_header(&r, "Retry-After", "1");
    if (text)
        fill_text(&r, status, text);
    free(text);
    send_answer(a, &r);
}

static void refuse(struct asked *a, unsigned status, const char *id, const char *title,
                   const char *text)
{
    api_refuse(a, status, &(struct http_error){ id, title, text, "" });
}

void api_not_active(struct asked *a)
{
    api_refuse(a, 503,
               &(struct http_error){
                   "not_active", "This node is not active",
                   "Only the active node of the cluster answers.",
                   "Ask the address of the cluster, or the other node; `redoubt status` "
                   "shows which node is active." });
}

/* --- refusals of the DBMS ---------------------------------------------------------------- */

static const struct {
    const char *prefix; /* of SQLSTATE, the longest first */
    unsigned status;
    const char *id, *title;
} sqlstates[] = {
    { "23505", 409, "exists", "It exists already" },
    { "23503", 409, "in_use", "It is in use, or refers to what is not there" },
    { "22", 400, "invalid", "A value is wrong" },
    { "23", 400, "invalid", "A value is wrong" },
    { "40", 503, "busy", "Another change came between" },
    { "53", 503, "busy", "The DBMS is busy" },
    { "55P03", 503, "busy", "Another change takes too long" },
    { "57014", 503, "busy", "The DBMS took too long" },
};

/* What a status is called when the function did not say. */
static const struct {
    unsigned status;
    const char *id;
} status_ids[] = {
    { 400, "invalid" },   { 401, "not_authenticated" }, { 403, "not_allowed" },
    { 404, "not_found" }, { 409, "conflict" },          { 412, "changed" },
    { 413, "too_long" },  { 422, "invalid" },           { 429, "too_many" },
};

static const char *field(const PGresult *r, int which)
{
    const char *text = PQresultErrorField(r, which);

    return text ? text : "";
}

/* SQLSTATE RHnnn: the function says it all. */
static void refuse_as_told(struct asked *a, unsigned status, const PGresult *r)
{
    struct http_error e = { .id = field(r, PG_DIAG_CONSTRAINT_NAME),
                            .title = field(r, PG_DIAG_MESSAGE_PRIMARY),
                            .text = field(r, PG_DIAG_MESSAGE_DETAIL),
                            .suggestion = field(r, PG_DIAG_MESSAGE_HINT) };

    for (size_t i = 0; e.id[0] == '\0' && i < LEN(status_ids); i++)
        if (status_ids[i].status == status)
            e.id = status_ids[i].id;
    api_refuse(
        a, status,
        e.id[0] ? &e : &(struct http_error){ "refused", e.title, e.text, e.suggestion });
}

static void fail_by_state(struct asked *a, const char *state, const PGresult *r)
{
    uint64_t status = 0;

    if (strncmp(state, "RH", 2) == 0 && str_u64(str_of(state + 2), 599, &status) &&
        status >= 400) {
        refuse_as_told(a, (unsigned)status, r);
        return;
    }
    for (size_t i = 0; i < LEN(sqlstates); i++) {
        if (strncmp(state, sqlstates[i].prefix, strlen(sqlstates[i].prefix)) != 0)
            continue;
        refuse(a, sqlstates[i].status, sqlstates[i].id, sqlstates[i].title,
               field(r, PG_DIAG_MESSAGE_PRIMARY));
        return;
    }
    log_event(LOG_LEVEL_ERROR, "request_failed",
              log_str("route", a->route ? a->route->pattern : ""),
              log_str("sqlstate", state),
              log_str("why", field(r, PG_DIAG_MESSAGE_PRIMARY)),
              log_str("where", field(r, PG_DIAG_CONTEXT)));
    api_refuse(a, 500,
               &(struct http_error){ "internal", "The server failed",
                                     field(r, PG_DIAG_MESSAGE_PRIMARY),
                                     "Please report it with the server's log." });
}

void api_fail(struct asked *a, enum err e, const PGresult *r, const struct err_info *why)
{
    const char *state = r ? field(r, PG_DIAG_SQLSTATE) : "";

    if (e == ERR_STALE || !manager_may_answer(a->m))
        api_not_active(a);
    else if (e == ERR_TIMEOUT)
        api_refuse(a, 503,
                   &(struct http_error){
                       "database_timeout", "The DBMS does not answer",
                       "Whether the request was carried out is not known.",
                       "Repeat it, with the same Idempotency-Key if it had one." });
    else if (e == ERR_LIMIT && !r)
        refuse(a, 503, "busy", "The server is busy", why->what);
    else if (!r || e == ERR_CLOSED || !state[0]) /* no SQLSTATE: the connection broke */
        api_refuse(a, 503,
                   &(struct http_error){
                       "database_unavailable", "The DBMS is not available", why->what,
                       "Repeat it, with the same Idempotency-Key if it had one." });
    else
        fail_by_state(a, state, r);
}

/* --- through the DBMS ------------------------------------------------------------------- */

bool api_sql(struct asked *a, const char *sql, size_t count, const char *const values[],
             dbc_done *done)
{
    struct err_info info = { .what = "" };
    enum err e = pool_query(a->m->pool, sql, count, values, done, a, &info);

    if (e != ERR_OK)
        api_fail(a, e, NULL, &info);
    return e == ERR_OK;
}

/* The body of the answer; NULL: the request is answered already. */
static char *body_of(struct asked *a, const PGresult *r)
{
    const char *told = PQgetvalue(r, 0, 1);
    json_t *body = a->route->finish ? json_loads(told, 0, NULL) : NULL;
    char *text = NULL;

    if (!a->route->finish)
        text = strdup(told);
    else if (body && !a->route->finish(a, body))
        a = NULL; /* answered, and gone */
    else if (body)
        text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    if (!text && a)
        refuse(a, 503, "busy", "The server is busy", "It is out of memory.");
    return text;
}

static void reply_of(struct asked *a, const PGresult *r, const char *body,
                     struct http_reply *out)
{
    uint64_t status = 0, version = 0;
    char etag[32];

    if (!str_u64(str_of(PQgetvalue(r, 0, 0)), 599, &status) || status < 200)
        status = 500;
    if (str_u64(str_of(PQgetvalue(r, 0, 2)), INT64_MAX, &version)) {
        (void)snprintf(etag, sizeof(etag), "\"v%" PRIu64 "\"", version);
        http_reply_header(out, "ETag", etag);
        if (!a->route->write && a->if_none_match == (int64_t)version) {
            out->status = 304;
            return;
        }
    }
    if (strcmp(PQgetvalue(r, 0, 3), "true") == 0)
        http_reply_header(out, "Idempotency-Replayed", "true");
    if (PQgetisnull(r, 0, 1))
        out->status = (unsigned)status;
    else
        fill_text(out, (unsigned)status, body);
}

/* Columns: status, body, version, replayed, and how many items the body has. */
static void on_reply(void *ctx, enum err e, const PGresult *r, const struct err_info *why)
{
    struct asked *a = ctx;
    struct http_reply reply = { 0 };

    if (e != ERR_OK) {
        api_fail(a, e, r, why);
        return;
    }
    if (!manager_may_answer(a->m)) {
        api_not_active(a);
        return;
    }
    if (a->wait_until_ms > boot_ms() && strcmp(PQgetvalue(r, 0, 4), "0") == 0 &&
        a->m->patient < PATIENT_MAX) {
        a->waiting = true;
        a->m->patient++;
        return;
    }
    char *body = body_of(a, r);
    if (!body)
        return;
    reply_of(a, r, body, &reply);
    free(body);
    send_answer(a, &reply);
}

static char *dump(const json_t *json)
{
    return json ? json_dumps(json, JSON_COMPACT) : strdup("{}");
}

void api_ask(struct asked *a)
{
    const struct route *route = a->route;
    char *actor = dump(a->actor), *path = dump(a->path), *query = dump(a->query),
         *body = dump(a->body), version[24] = "";
    const char *values[] = { route->fn,
                             actor,
                             path,
                             query,
                             body,
                             a->idem,
                             a->hash,
                             route->write ? "t" : "f",
                             route->role,
                             route->guard,
                             a->if_match >= 0 ? version : NULL };
    bool ok = actor && path && query && body;

    (void)snprintf(version, sizeof(version), "%" PRId64, a->if_match);
    a->told = a->m->events_told;
    if (!ok)
        refuse(a, 503, "busy", "The server is busy", "It is out of memory.");
    else
        api_sql(a,
                "SELECT r ->> 'status', nullif(r -> 'body', 'null'),"
                " r ->> 'version', r ->> 'replayed',"
                " CASE WHEN jsonb_typeof(r -> 'body' -> 'items') = 'array'"
                " THEN jsonb_array_length(r -> 'body' -> 'items') END"
                " FROM redoubt.api_call($1, $2::jsonb, $3::jsonb, $4::jsonb, $5::jsonb,"
                " $6, $7, $8::boolean, $9, $10, $11::bigint) AS r",
                LEN(values), values, on_reply); /* it has answered if it failed */
    free(actor);
    free(path);
    free(query);
    free(body);
}

/* --- long polls --------------------------------------------------------------------------- */

void api_events(struct manager *m)
{
    m->events_told++;
}

void api_sweep(struct manager *m)
{
    uint64_t now = boot_ms();
    struct asked *a, *next;

    for (a = TAILQ_FIRST(&m->asked); a; a = next) {
        next = TAILQ_NEXT(a, next);
        if (!a->waiting || (now < a->wait_until_ms && a->told == m->events_told))
            continue;
        a->waiting = false;
        m->patient--;
        if (now >= a->wait_until_ms)
            a->wait_until_ms = 0; /* this time it is answered, whatever there is */
        api_ask(a);
    }
}

void api_standby(struct manager *m)
{
    struct asked *a;

    while ((a = TAILQ_FIRST(&m->asked)))
        api_not_active(a);
}
