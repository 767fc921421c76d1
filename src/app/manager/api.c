#include "app/manager/api.h"

#include <inttypes.h>
#include <sodium.h>
#include <strings.h>

#include "sys/log/log.h"

enum {
    DEPTH_MAX = 16,
    TARGET_MAX = 8192,
    ARGUMENT_MAX = 1024,
    TOKEN_MAX = 512,
    IDEM_MAX = 128,
    PATIENT_MAX = 128,
    AGAIN_MS = 250, /* a long poll asks the DBMS at most this often */
    WAIT_MAX_S = 30,
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

static void not_active(struct asked *a)
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
        not_active(a);
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

static void reply_of(struct asked *a, const PGresult *r, struct http_reply *out)
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
        fill_text(out, (unsigned)status, PQgetvalue(r, 0, 1));
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
        not_active(a);
        return;
    }
    if (a->wait_until_ms > boot_ms() && strcmp(PQgetvalue(r, 0, 4), "0") == 0 &&
        a->m->patient < PATIENT_MAX) {
        a->waiting = true;
        a->m->patient++;
        return;
    }
    reply_of(a, r, &reply);
    send_answer(a, &reply);
}

static char *dump(const json_t *json)
{
    return json ? json_dumps(json, JSON_COMPACT) : strdup("{}");
}

static void ask(struct asked *a)
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
        ask(a);
    }
}

void api_standby(struct manager *m)
{
    struct asked *a;

    while ((a = TAILQ_FIRST(&m->asked)))
        not_active(a);
}

/* --- what was asked ----------------------------------------------------------------------- */

static char *sha256_hex(const struct str parts[], size_t count)
{
    crypto_hash_sha256_state h;
    uint8_t sum[crypto_hash_sha256_BYTES];
    char *hex = malloc(2 * sizeof(sum) + 1);

    (void)crypto_hash_sha256_init(&h); /* these cannot fail */
    for (size_t i = 0; i < count; i++)
        (void)crypto_hash_sha256_update(&h, (const unsigned char *)parts[i].p,
                                        parts[i].n);
    (void)crypto_hash_sha256_final(&h, sum);
    if (hex)
        hex_encode(hex, sum, sizeof(sum));
    return hex;
}

/* Who may connect to the Unix socket is root or of the group redoubt: its mode says so. */
static json_t *local_actor(const struct http_request *req)
{
    char name[32] = "root";

    if (req->uid != 0)
        (void)snprintf(name, sizeof(name), "uid %u", (unsigned)req->uid);
    return json_pack("{s:s,s:s,s:s,s:n}", "kind", "local", "name", name, "role",
                     "administrator", "scope");
}

static bool identify(struct asked *a, const struct http_request *req)
{
    const char *given = http_header(req, "Authorization");

    if (given) {
        const char *token = strncasecmp(given, "Bearer ", 7) == 0 ? given + 7 : "";

        token += strspn(token, " ");
        if (!*token || strlen(token) > TOKEN_MAX) {
            refuse(a, 401, "not_authenticated", "Not authenticated",
                   "The Authorization header must be: Bearer TOKEN");
            return false;
        }
        char *hash = sha256_hex(&(struct str){ token, strlen(token) }, 1);
        a->actor = hash ? json_pack("{s:s,s:s}", "kind", "token", "hash", hash) : NULL;
        free(hash);
    } else if (req->peer_known) {
        a->actor = local_actor(req);
    }
    if (!a->actor && a->route->role) {
        api_refuse(a, 401,
                   &(struct http_error){ "not_authenticated", "Not authenticated",
                                         "This needs an API token.",
                                         "Send the header Authorization: Bearer TOKEN" });
        return false;
    }
    return true;
}

/* "v12" with its quotes; *out stays -1 for none and for "*". */
static bool version_of(const char *given, int64_t *out)
{
    uint64_t n = 0;

    if (!given || strcmp(given, "*") == 0)
        return true;
    size_t length = strlen(given);
    if (length < 4 || strncmp(given, "\"v", 2) != 0 || given[length - 1] != '"' ||
        !str_u64((struct str){ given + 2, length - 3 }, INT64_MAX, &n))
        return false;
    *out = (int64_t)n;
    return true;
}

static bool take_headers(struct asked *a, const struct http_request *req)
{
    const char *key = http_header(req, "Idempotency-Key");
    const char *match = http_header(req, "If-Match");
    const struct str parts[] = { str_of(req->method), STR("\n"), str_of(req->target),
                                 STR("\n"), req->body };

    if (match && !a->route->guard) {
        refuse(a, 400, "invalid", "If-Match is wrong",
               "There is no version to match here.");
        return false;
    }
    if (!version_of(match, &a->if_match)) {
        refuse(a, 400, "invalid", "If-Match is wrong",
               "It must be the ETag of the object, for example \"v3\" with its quotes.");
        return false;
    }
    (void)version_of(http_header(req, "If-None-Match"), &a->if_none_match);
    if (!key || strcmp(req->method, "POST") != 0)
        return true;
    size_t n = strlen(key);
    bool visible = n > 0;
    for (size_t i = 0; i < n; i++)
        visible = visible && key[i] > ' ' && key[i] <= '~';
    if (!visible || n > IDEM_MAX) {
        refuse(a, 400, "invalid", "Idempotency-Key is wrong",
               "It must be 1 to 128 visible ASCII characters.");
        return false;
    }
    a->idem = strdup(key);
    a->hash = sha256_hex(parts, LEN(parts));
    if (a->idem && a->hash)
        return true;
    refuse(a, 503, "busy", "The server is busy", "It is out of memory.");
    return false;
}

struct arguments {
    struct asked *a;
    char wrong[160]; /* "": none */
};

static bool on_argument(void *arg, struct str name, struct str value)
{
    struct arguments *all = arg;
    json_t *query = all->a->query;
    json_t *text = value.n <= ARGUMENT_MAX && !memchr(value.p, 0, value.n)
                       ? json_stringn(value.p, value.n)
                       : NULL;
    char key[32];

    if (!route_takes(all->a->route, name) || !str_copy(key, sizeof(key), name)) {
        (void)snprintf(all->wrong, sizeof(all->wrong), "There is no parameter %.*s here.",
                       (int)(name.n < 40 ? name.n : 40), name.p);
        json_decref(text);
    } else if (json_object_get(query, key)) {
        (void)snprintf(all->wrong, sizeof(all->wrong), "%s is given twice.", key);
        json_decref(text);
    } else if (!text || json_object_set_new(query, key, text) != 0) {
        (void)snprintf(all->wrong, sizeof(all->wrong),
                       "%s is no text of at most %d bytes.", key, ARGUMENT_MAX);
    }
    return !all->wrong[0];
}

/* Words that go into an answer, which is UTF-8. */
static void keep_ascii(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s >= 0x7f || (unsigned char)*s < ' ')
            *s = '?';
}

static bool take_query(struct asked *a, const struct http_request *req)
{
    struct arguments all = { .a = a };

    http_arguments(req, on_argument, &all);
    if (all.wrong[0]) {
        keep_ascii(all.wrong);
        refuse(a, 400, "invalid", "The query is wrong", all.wrong);
        return false;
    }
    const char *wait = json_string_value(json_object_get(a->query, "wait_s"));
    uint64_t s = 0;
    if (!wait)
        return true;
    if (!str_u64(str_of(wait), WAIT_MAX_S, &s)) {
        refuse(a, 400, "invalid", "The query is wrong",
               "wait_s must be a number between 0 and 30.");
        return false;
    }
    a->wait_until_ms = s ? boot_ms() + s * 1000 : 0;
    return true;
}

/* How deep the objects and arrays of a text go, before anybody decodes it. */
static unsigned depth_of(struct str text)
{
    unsigned depth = 0, deepest = 0;
    bool quoted = false;

    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];

        if (quoted && c == '\\')
            i++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted && (c == '{' || c == '['))
            deepest = ++depth > deepest ? depth : deepest;
        else if (!quoted && depth > 0 && (c == '}' || c == ']'))
            depth--;
    }
    return deepest;
}

static bool take_body(struct asked *a, const struct http_request *req)
{
    const struct route *route = a->route;
    char why[512] = "";
    json_error_t wrong;

    if (req->body.n == 0 && route->body != BODY_NEEDED)
        return true;
    if (route->body == BODY_NONE) {
        (void)snprintf(why, sizeof(why), "This request takes no body.");
    } else if (req->body.n == 0) {
        (void)snprintf(why, sizeof(why), "It is missing.");
    } else if (depth_of(req->body) > DEPTH_MAX) {
        (void)snprintf(why, sizeof(why), "It is nested more than %d deep.", DEPTH_MAX);
    } else {
        a->body = json_loadb(req->body.p, req->body.n, JSON_REJECT_DUPLICATES, &wrong);
        if (!a->body)
            (void)snprintf(why, sizeof(why), "Line %d, column %d: %s", wrong.line,
                           wrong.column, wrong.text);
        else if (route->check)
            (void)route->check(a->body, why, sizeof(why));
    }
    if (!why[0])
        return true;
    refuse(a, 400, "invalid", "The body is wrong", why);
    return false;
}

/* --- a request ---------------------------------------------------------------------------- */

static struct asked *begin(struct manager *m, const struct http_request *req)
{
    struct asked *a = calloc(1, sizeof(*a));

    if (!a)
        return NULL;
    a->m = m;
    a->server = req->peer_known ? m->local : m->network;
    a->call = req->call;
    a->if_match = a->if_none_match = -1;
    (void)!str_copy(a->address, sizeof(a->address), str_of(req->address));
    a->path = json_object();
    a->query = json_object();
    TAILQ_INSERT_TAIL(&m->asked, a, next);
    return a;
}

static bool take_path(struct asked *a, const char *const pieces[], size_t count)
{
    char name[32];

    for (size_t i = 0; i < count; i++) {
        if (!route_parameter(a->route, i, name))
            continue;
        json_t *text = strlen(pieces[i]) <= ARGUMENT_MAX ? json_string(pieces[i]) : NULL;
        if (!text || json_object_set_new(a->path, name, text) != 0) {
            refuse(a, 404, "not_found", "Not found",
                   "There is nothing with such a name.");
            return false;
        }
    }
    return true;
}

static void serve(struct asked *a, const struct http_request *req)
{
    const char *pieces[ROUTE_PIECES_MAX];
    char buf[TARGET_MAX];
    size_t count = http_path_split(req->target, buf, sizeof(buf), pieces, LEN(pieces));

    switch (route_find(req->method, pieces, count, &a->route)) {
    case ROUTE_OK: break;
    case ROUTE_METHOD:
        refuse(a, 405, "method", "Not this way", "This address has other methods.");
        return;
    case ROUTE_UNKNOWN:
        api_refuse(a, 404,
                   &(struct http_error){ "no_route", "There is no such address",
                                         "The API has nothing there.",
                                         "GET /v1/openapi.json lists what there is." });
        return;
    }
    bool any_time = a->route->serve && !a->route->role && !a->route->write &&
                    strcmp(a->route->method, "GET") == 0;
    if (!any_time && !manager_may_answer(a->m)) {
        not_active(a);
        return;
    }
    if (!identify(a, req) || !take_path(a, pieces, count) || !take_headers(a, req) ||
        !take_query(a, req) || !take_body(a, req))
        return;
    if (a->route->serve)
        a->route->serve(a);
    else
        ask(a);
}

void api_request(void *arg, const struct http_request *req, struct http_reply *out)
{
    struct asked *a = begin(arg, req);

    if (!a) {
        out->status = 503;
        return;
    }
    out->later = true;
    serve(a, req);
}

size_t api_body_max(void *arg, const struct http_request *req)
{
    const char *pieces[ROUTE_PIECES_MAX];
    char buf[TARGET_MAX];
    const struct route *route = NULL;
    size_t count = http_path_split(req->target, buf, sizeof(buf), pieces, LEN(pieces));

    (void)arg;
    return route_find(req->method, pieces, count, &route) == ROUTE_OK
               ? route_body_max(route)
               : HTTP_BODY_MAX;
}
