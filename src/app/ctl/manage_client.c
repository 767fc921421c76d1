#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "app/ctl/manage.h"

enum {
    ANSWER_MS = 10000,
    RETRY_MS = 500,
    TIMEOUT_S = 60,
    LIMIT = 1000,
    PAGE = 500,
    TOKEN_MAX = 256,
    EDITS_MAX = 5,
};

static uint64_t now_ms(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* ---- paths ---- */

static void add_quoted(struct text *t, const char *s)
{
    for (; *s; s++)
        if ((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') ||
            (*s >= '0' && *s <= '9') || strchr("-._~", *s))
            text_add(t, "%c", *s);
        else
            text_add(t, "%%%02X", (unsigned char)*s);
}

void where_start(struct where *w, const char *base)
{
    w->has_query = strchr(base, '?') != NULL;
    text_init(&w->t, w->buf, sizeof(w->buf));
    text_add(&w->t, "%s", base);
}

void where_add(struct where *w, const char *segment)
{
    text_add(&w->t, "/");
    add_quoted(&w->t, segment);
}

void where_arg(struct where *w, const char *name, const char *value)
{
    if (!value)
        return;
    text_add(&w->t, "%s%s=", w->has_query ? "&" : "?", name);
    w->has_query = true;
    add_quoted(&w->t, value);
}

void where_number(struct where *w, const char *name, uint64_t value)
{
    char buf[24];

    (void)snprintf(buf, sizeof(buf), "%llu", (unsigned long long)value);
    where_arg(w, name, buf);
}

/* ---- where the API is ---- */

/* The line of a token file. */
static int read_token(struct ctl *c, char *token, size_t size)
{
    const char *file =
        c->opt.token_file ? c->opt.token_file : getenv("REDOUBT_TOKEN_FILE");
    FILE *f = file ? fopen(file, "re") : NULL;
    struct stat st;

    if (!f || !fgets(token, (int)size, f))
        token[0] = '\0';
    if (f && fstat(fileno(f), &st) == 0 && (st.st_mode & 077) != 0)
        fprintf(stderr, "redoubt: others on this machine can read %s\n", file);
    if (f)
        (void)fclose(f); /* it was only read */
    token[strcspn(token, "\r\n")] = '\0';
    for (const char *p = token; *p; p++)
        if (*p <= ' ' || *p > '~')
            token[0] = '\0';
    if (token[0])
        return CTL_OK;
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){
            "no_token", "There is no token to show to the server",
            file ? file : "Neither --token-file nor REDOUBT_TOKEN_FILE names a file.",
            "On the active node make one with redoubt api-token create NAME --role ROLE, "
            "and write it to a file that only you can read." });
}

static void server_address(const struct ctl *c, char *out, size_t size)
{
    const char *s = c->opt.server, *end = strrchr(s, ']'), *colon = strrchr(s, ':');

    /* "::1" is an address without a port; "[::1]:1" and "host:1" have one. */
    if (!end && colon && strchr(s, ':') != colon)
        (void)snprintf(out, size, "[%s]:13299", s);
    else
        (void)snprintf(out, size, "%s%s", s,
                       colon && (!end || colon > end) ? "" : ":13299");
}

/* Beside the control socket. */
static void socket_path(struct ctl *c, char *out, size_t size)
{
    const char *slash = c->opt.socket ? strrchr(c->opt.socket, '/') : NULL;

    if (slash)
        (void)snprintf(out, size, "%.*s/manager.sock", (int)(slash - c->opt.socket),
                       c->opt.socket);
    else if (c->opt.socket)
        (void)snprintf(out, size, "manager.sock");
    else
        (void)snprintf(out, size, "%s/manager.sock",
                       ctl_try_conf(c) ? c->conf.cluster.run_dir : "/run/redoubt");
}

/* ---- one try ---- */

/* What stays the same over all tries. */
struct request {
    const struct manage_call *call;
    char address[CONF_PATH + 32]; /* socket or server */
    char authorization[TOKEN_MAX + 32], key[64], match[HTTP_TAG_MAX + 16];
    const char *headers[5];
    char *body;
    bool answered;  /* at least once, if only "not now" */
    bool maybe;     /* a try broke after it was sent */
    char last[320]; /* why the last try failed */
};

enum tried { TRIED_DONE, TRIED_FAILED, TRIED_AGAIN };

static int refused(struct ctl *c, const struct request *r, unsigned status,
                   const json_t *answer)
{
    const json_t *e = json_object_get(answer, "error");
    char text[64];

    if (status == r->call->quiet)
        return CTL_FAILED;
    (void)snprintf(text, sizeof(text), "It answered with status %u.", status);
    return ctl_fail(c,
                    status == 503                    ? CTL_NOT_ACTIVE
                    : status == 409 || status == 412 ? CTL_NOT_POSSIBLE
                                                     : CTL_FAILED,
                    &(struct ctl_problem){ ctl_str(e, "id", "failed"),
                                           ctl_str(e, "title", "The server refuses"),
                                           ctl_str(e, "text", text),
                                           ctl_str(e, "suggestion", NULL) });
}

static bool worth_another(enum err e)
{
    return e == ERR_CLOSED || e == ERR_TIMEOUT || e == ERR_IO;
}

/* The server cannot be reached, and waiting will not help. */
static int unreachable(struct ctl *c, const struct request *r, enum err e)
{
    struct ctl_problem p = { .id = "server_unreachable",
                             .title = "The server cannot be reached",
                             .text = r->last };

    if (e == ERR_FOREIGN) {
        p.id = "server_foreign";
        p.title = "The server is not one of the cluster's";
        p.suggestion = "Give the certificate of the cluster's authority with --ca FILE: "
                       "it is ca.pem in the folder [trust] folder of each node. If that "
                       "is what you did, you are not talking to this cluster.";
    } else if (e == ERR_CONFIG) {
        p.suggestion = "--ca names a file with the CA's certificate in PEM.";
    } else if (c->opt.server) {
        p.suggestion = "Is the address right, and does the network let TCP port 13299 "
                       "through? It is the cluster's address, which the active node has.";
    } else if (e == ERR_DENIED) {
        p.title = "You may not talk to the server";
        p.suggestion = "Run the command as root, or join the group redoubt.";
    } else {
        p.suggestion = "redoubt status shows which node is active and whether its "
                       "services run. Start this node with systemctl start "
                       "redoubt-node, or ask from elsewhere with --server.";
    }
    return ctl_fail(c, CTL_NO_DAEMON, &p);
}

static enum tried evaluate(struct ctl *c, struct request *r, const struct http_answer *a,
                           struct manage_answer *out, int *ret)
{
    json_t *j = a->body_bytes
                    ? json_loadb(a->body, a->body_bytes, JSON_REJECT_DUPLICATES, NULL)
                    : json_object();

    r->answered = true;
    out->status = a->status;
    if (a->status == 404 && r->maybe && strcmp(r->call->method, "DELETE") == 0) {
        out->body = json_object(); /* by the try whose answer was lost */
        *ret = CTL_OK;
        json_decref(j);
        return TRIED_DONE;
    }
    if (a->status == 429 || a->status == 502 || a->status == 503 || a->status == 504) {
        const json_t *e = json_object_get(j, "error");

        (void)snprintf(r->last, sizeof(r->last), "%s", ctl_str(e, "title", "not now"));
        *ret =
            strcmp(ctl_str(e, "id", ""), "not_active") == 0 ? CTL_NOT_ACTIVE : CTL_FAILED;
        json_decref(j);
        return TRIED_AGAIN;
    }
    if (a->status >= 400) {
        *ret = refused(c, r, a->status, j);
    } else if (!json_is_object(j)) {
        *ret = ctl_fail(c, CTL_FAILED,
                        &(struct ctl_problem){
                            "bad_answer", "The server's answer makes no sense",
                            "It is not a JSON object.",
                            "Is something else listening there? Compare redoubt version "
                            "with the version of the server." });
    } else {
        out->body = json_incref(j);
        memcpy(out->etag, a->etag, sizeof(out->etag));
        *ret = CTL_OK;
    }
    json_decref(j);
    return *ret == CTL_OK ? TRIED_DONE : TRIED_FAILED;
}

static enum tried try_once(struct ctl *c, struct request *r, struct manage_answer *out,
                           int *ret)
{
    const char *ca = c->opt.ca;
    struct http_call call = { .unix_path = c->opt.server ? NULL : r->address,
                              .server = r->address,
                              .ca_file = ca,
                              .headers = r->headers,
                              .method = r->call->method,
                              .path = r->call->path,
                              .body = r->body,
                              .timeout_ms = ANSWER_MS + r->call->wait_s * 1000 };
    struct http_answer a;
    struct err_info info = { .what = "" };
    enum err e = http_call(&call, &a, &info);
    enum tried t;

    if (e == ERR_OK) {
        t = evaluate(c, r, &a, out, ret);
    } else {
        (void)snprintf(r->last, sizeof(r->last), "%s", info.what);
        r->maybe |= a.sent;
        *ret = CTL_NO_DAEMON;
        t = worth_another(e) || (e == ERR_NOT_FOUND && !c->opt.server) ? TRIED_AGAIN
                                                                       : TRIED_FAILED;
        if (t == TRIED_FAILED)
            *ret = unreachable(c, r, e);
    }
    http_answer_release(&a);
    return t;
}

/* ---- until the cluster has switched ---- */

/* What the node daemon says: is this the node to wait for?  *other is another node that is
 * active, "" if none is. */
enum prospect { WAIT_HERE, ELSEWHERE, NO_DAEMON };

static enum prospect look_around(struct ctl *c, char *other, size_t size)
{
    json_t *status = NULL;
    enum prospect p = WAIT_HERE;

    other[0] = '\0';
    if (ctl_try_get(c, "/v1/status", &status) != CTL_OK)
        return NO_DAEMON;
    const char *active = ctl_str(status, "active", "");

    if (active[0] && ctl_try_conf(c) && strcmp(active, c->conf.cluster.node) != 0) {
        (void)snprintf(other, size, "%s", active);
        p = ELSEWHERE;
    }
    json_decref(status);
    return p;
}

static const char maybe_done[] =
    " The request may have been carried out all the same: look before you repeat it.";

static int not_here(struct ctl *c, const struct request *r, const char *other)
{
    char text[160], what[200];

    (void)snprintf(text, sizeof(text), "%.60s is active.%s", other,
                   r->maybe ? maybe_done : "");
    (void)snprintf(what, sizeof(what),
                   "Run the command on %.60s, or here with --server ADDRESS and a token.",
                   other);
    return ctl_fail(
        c, CTL_NOT_ACTIVE,
        &(struct ctl_problem){ "not_active", "This node is not active", text, what });
}

static int gave_up(struct ctl *c, const struct request *r, int exit)
{
    char text[500];
    struct ctl_problem p = {
        .id = "server_unreachable",
        .title = "The server cannot be reached",
        .text = text,
        .suggestion = "redoubt status on a node shows who is active and what is missing.",
    };

    (void)snprintf(text, sizeof(text), "%s.%s", r->last, r->maybe ? maybe_done : "");
    if (exit == CTL_NOT_ACTIVE) {
        p.id = "not_active";
        p.title = "No active server answers";
    } else if (exit == CTL_FAILED) {
        p.id = "busy";
        p.title = "The server did not manage it in time";
        p.suggestion = "Try again later, or ask for less at once.";
    }
    return ctl_fail(c, exit, &p);
}

/* May it be tried again?  Otherwise *ret is the exit code, and the reason is printed. */
static bool may_wait(struct ctl *c, const struct request *r, uint64_t until, int *ret)
{
    char other[CONF_NAME];
    enum prospect p = c->opt.server ? WAIT_HERE : look_around(c, other, sizeof(other));

    if (p == ELSEWHERE)
        *ret = not_here(c, r, other);
    else if (p == NO_DAEMON && !r->answered && !r->maybe && !c->api_seen)
        *ret = unreachable(c, r, ERR_CLOSED);
    else if (now_ms() + RETRY_MS > until)
        *ret = gave_up(c, r, *ret);
    else
        return true;
    return false;
}

static int perform(struct ctl *c, struct request *r, struct manage_answer *out)
{
    uint32_t seconds = c->opt.timeout_s ? c->opt.timeout_s : TIMEOUT_S;
    uint64_t until = now_ms() + (uint64_t)seconds * 1000;
    bool told = false;
    int ret = CTL_FAILED;

    while (try_once(c, r, out, &ret) == TRIED_AGAIN) {
        if (!may_wait(c, r, until, &ret))
            return ret;
        if (!told) {
            fputs("redoubt: the server does not answer (", stderr);
            (void)put_safe(stderr, r->last);
            fprintf(stderr, "); trying again for up to %u s\n", seconds);
        }
        told = true;
        (void)usleep(RETRY_MS * 1000);
    }
    c->api_seen |= ret == CTL_OK;
    return ret;
}

static void random_key(char key[64])
{
    uint8_t bytes[16];
    char hex[33];

    CHECK(getrandom(bytes, sizeof(bytes), 0) == (ssize_t)sizeof(bytes));
    hex_encode(hex, bytes, sizeof(bytes));
    (void)snprintf(key, 64, "Idempotency-Key: %s", hex);
}

int manage_call(struct ctl *c, const struct manage_call *call, struct manage_answer *out)
{
    struct request r = { .call = call };
    char token[TOKEN_MAX];
    size_t n = 0;

    *out = (struct manage_answer){ .body = NULL };
    if (strlen(call->path) + 1 >= HTTP_PATH_MAX)
        return ctl_usage("what is asked for is too long");
    if (c->opt.server) {
        int ret = read_token(c, token, sizeof(token));

        if (ret != CTL_OK)
            return ret;
        server_address(c, r.address, sizeof(r.address));
        (void)snprintf(r.authorization, sizeof(r.authorization),
                       "Authorization: Bearer %s", token);
        r.headers[n++] = r.authorization;
    } else {
        socket_path(c, r.address, sizeof(r.address));
    }
    if (strcmp(call->method, "POST") == 0) {
        random_key(r.key);
        r.headers[n++] = r.key;
    }
    if (call->if_match && call->if_match[0]) {
        (void)snprintf(r.match, sizeof(r.match), "If-Match: %s", call->if_match);
        r.headers[n++] = r.match;
    }
    if (call->body) {
        r.body = json_dumps(call->body, JSON_COMPACT);
        r.headers[n++] = "Content-Type: application/json";
    }
    r.headers[n] = NULL;
    int ret = perform(c, &r, out);

    free(r.body);
    out->maybe = r.maybe;
    return ret;
}

int manage_get(struct ctl *c, const char *path, json_t **out)
{
    struct manage_answer a;
    int r = manage_call(c, &(struct manage_call){ .method = "GET", .path = path }, &a);

    *out = a.body;
    return r;
}

int manage_send(struct ctl *c, const char *method, const char *path, json_t *body,
                json_t **out)
{
    struct manage_answer a;
    int r = manage_call(
        c, &(struct manage_call){ .method = method, .path = path, .body = body }, &a);

    json_decref(body);
    *out = a.body;
    return r;
}

int manage_list(struct ctl *c, const struct where *w, json_t **out)
{
    uint32_t limit = c->opt.limit ? c->opt.limit : LIMIT;
    json_t *items = json_array(), *next = NULL, *first = NULL;
    int r = CTL_OK;

    do {
        size_t left = limit - json_array_size(items);
        struct where page;
        json_t *answer = NULL;

        where_start(&page, w->buf);
        where_number(&page, "limit", left < PAGE ? left : PAGE);
        if (next)
            where_arg(&page, "cursor", json_string_value(next));
        r = manage_get(c, page.buf, &answer);
        (void)json_array_extend(items, json_object_get(answer, "items"));
        json_decref(next);
        next = json_incref(json_object_get(answer, "next"));
        if (json_array_size(json_object_get(answer, "items")) == 0)
            limit = 0; /* a server that turns in circles */
        if (first)
            json_decref(answer);
        else
            first = answer;
    } while (r == CTL_OK && json_is_string(next) && json_array_size(items) < limit);
    if (r == CTL_OK && json_is_string(next) && !c->opt.json && json_array_size(items) > 0)
        fprintf(stderr, "redoubt: there are more than these %zu; --limit shows them\n",
                json_array_size(items));
    (void)json_object_set_new(first, "items", items);
    (void)json_object_set_new(first, "next", next ? next : json_null());
    *out = r == CTL_OK ? first : NULL;
    if (r != CTL_OK)
        json_decref(first);
    return r;
}

/* Is the object as the change wanted it? */
static bool is_as(const json_t *now, const json_t *wanted)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)wanted, key, v)
    {
        if (!json_equal(v, json_object_get(now, key)))
            return false;
    }
    return true;
}

/* *lost: a change that may have been made already, because its answer was lost. */
static int edit_once(struct ctl *c, const struct manage_edit *e, struct manage_answer *a,
                     json_t **lost, bool last)
{
    struct manage_answer was;
    json_t *body = json_object();
    int r =
        manage_call(c, &(struct manage_call){ .method = "GET", .path = e->path }, &was);

    *a = (struct manage_answer){ .body = NULL };
    if (r == CTL_OK && *lost && is_as(was.body, *lost)) {
        *a = was;
        json_decref(body);
        return CTL_OK;
    }
    if (r == CTL_OK)
        r = e->edit(c, was.body, body);
    if (r == CTL_OK)
        r = manage_call(c,
                        &(struct manage_call){ .method = e->method,
                                               .path = e->path,
                                               .body = body,
                                               .if_match = was.etag,
                                               .quiet = last ? 0 : 412 },
                        a);
    json_decref(*lost);
    *lost = a->maybe ? json_incref(body) : NULL;
    json_decref(was.body);
    json_decref(body);
    return r;
}

int manage_edit(struct ctl *c, const struct manage_edit *e, json_t **out)
{
    struct manage_answer a = { .body = NULL };
    json_t *lost = NULL;
    int r = CTL_FAILED;

    for (int i = 1; i <= EDITS_MAX; i++) {
        r = edit_once(c, e, &a, &lost, i == EDITS_MAX);
        if (a.status != 412)
            break;
    }
    json_decref(lost);
    *out = a.body;
    return r;
}
