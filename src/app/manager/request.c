/* What was asked: the route, who asks, the query, the headers, the body. */
#include "app/manager/api.h"

#include <inttypes.h>
#include <sodium.h>
#include <strings.h>

enum {
    DEPTH_MAX = 16,
    TARGET_MAX = 8192,
    ARGUMENT_MAX = 1024,
    TOKEN_MAX = 512,
    IDEM_MAX = 128,
    WAIT_MAX_S = 30,
};

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail */
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void refuse(struct asked *a, unsigned status, const char *id, const char *title,
                   const char *text)
{
    api_refuse(a, status, &(struct http_error){ id, title, text, "" });
}

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
    }
    if (!why[0])
        return !a->body || !route->check || route->check(a);
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

static void wrong_method(struct asked *a, const char *const pieces[], size_t count)
{
    char methods[64], text[96];

    route_methods(pieces, count, methods, sizeof(methods));
    (void)snprintf(text, sizeof(text), "This address has: %s.", methods);
    a->allow = methods;
    refuse(a, 405, "method", "Not this way", text);
}

static void serve(struct asked *a, const struct http_request *req)
{
    const char *pieces[ROUTE_PIECES_MAX];
    char buf[TARGET_MAX];
    size_t count = http_path_split(req->target, buf, sizeof(buf), pieces, LEN(pieces));

    switch (route_find(req->method, pieces, count, &a->route)) {
    case ROUTE_OK: break;
    case ROUTE_METHOD: wrong_method(a, pieces, count); return;
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
        api_not_active(a);
        return;
    }
    if (!identify(a, req) || !take_path(a, pieces, count) || !take_headers(a, req) ||
        !take_query(a, req) || !take_body(a, req))
        return;
    if (a->route->serve)
        a->route->serve(a);
    else
        api_ask(a);
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
