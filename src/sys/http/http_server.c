#include "sys/http/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sys/http/http_tls.h"

struct http_server {
    http_handler handle;
    size_t (*body_max)(void *arg, const struct http_request *req);
    void *arg;
    struct MHD_Daemon *mhd;
    struct http_tls *tls;
    sd_event_source *readable, *timer;
    TAILQ_HEAD(calls, call) waiting; /* for http_answer() */
    size_t body_bytes;               /* of all requests */
    char unix_path[108];
};

enum too_long { NOT_TOO_LONG, BODY_TOO_LONG, BODIES_TOO_LONG };

/* One request, from its first line to the last byte of its answer. */
struct call {
    TAILQ_ENTRY(call) next;
    struct http_server *server;
    struct MHD_Connection *connection;
    char *target;
    char address[HTTP_ADDRESS];
    char *body;
    size_t n, max;
    enum too_long too_long;
    bool begun, asked, waiting, answered;
    struct http_reply reply;
};

/* --- what a handler may ask ---------------------------------------------------------- */

const char *http_argument(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->connection, MHD_GET_ARGUMENT_KIND, name);
}

const char *http_header(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->connection, MHD_HEADER_KIND, name);
}

struct each_argument {
    bool (*each)(void *arg, struct str name, struct str value);
    void *arg;
};

static enum MHD_Result on_argument(void *cls, enum MHD_ValueKind kind, const char *name,
                                   size_t name_bytes, const char *value,
                                   size_t value_bytes)
{
    const struct each_argument *e = cls;

    (void)kind;
    return e->each(e->arg, (struct str){ name, name_bytes },
                   (struct str){ value ? value : "", value_bytes })
               ? MHD_YES
               : MHD_NO;
}

void http_arguments(const struct http_request *req,
                    bool (*each)(void *arg, struct str name, struct str value), void *arg)
{
    struct each_argument e = { each, arg };

    (void)MHD_get_connection_values_n(req->connection, MHD_GET_ARGUMENT_KIND, on_argument,
                                      &e);
}

/* --- requests ------------------------------------------------------------------------ */

static enum MHD_Result send_reply(struct MHD_Connection *c, struct http_reply *r)
{
    struct MHD_Response *resp =
        r->body ? MHD_create_response_from_buffer(r->body_bytes, r->body,
                                                  MHD_RESPMEM_MUST_FREE)
                : MHD_create_response_from_buffer(0, (void *)(uintptr_t) "",
                                                  MHD_RESPMEM_PERSISTENT);

    if (!resp) {
        free(r->body);
        r->body = NULL;
        return MHD_NO;
    }
    r->body = NULL; /* the response's */
    enum MHD_Result done =
        MHD_add_response_header(resp, MHD_HTTP_HEADER_CONTENT_TYPE,
                                r->content_type ? r->content_type : "application/json");
    for (size_t i = 0; done == MHD_YES && i < r->header_count; i++)
        done = MHD_add_response_header(resp, r->headers[i].name, r->headers[i].value);
    if (done == MHD_YES)
        done = MHD_queue_response(c, r->status, resp);
    MHD_destroy_response(resp);
    return done;
}

/* Only a Unix socket knows who is at the other end. */
static void fill_peer(struct MHD_Connection *c, struct http_request *req)
{
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct ucred cred;
    socklen_t n = sizeof(cred);
    int domain = 0;
    socklen_t dn = sizeof(domain);

    if (!fd || getsockopt(fd->connect_fd, SOL_SOCKET, SO_DOMAIN, &domain, &dn) != 0 ||
        domain != AF_UNIX)
        return;
    if (getsockopt(fd->connect_fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) != 0)
        return;
    req->peer_known = true;
    req->uid = cred.uid;
    req->gid = cred.gid;
    req->pid = cred.pid;
}

static void fill_address(struct MHD_Connection *c, char out[HTTP_ADDRESS])
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = i ? i->client_addr : NULL;

    out[0] = '\0';
    if (a && a->sa_family == AF_INET6) {
        const struct in6_addr *at =
            &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr;

        if (IN6_IS_ADDR_V4MAPPED(at))
            (void)inet_ntop(AF_INET, &at->s6_addr[12], out, HTTP_ADDRESS);
        else
            (void)inet_ntop(AF_INET6, at, out, HTTP_ADDRESS);
    } else if (a && a->sa_family == AF_INET) {
        (void)inet_ntop(AF_INET, &((const struct sockaddr_in *)(const void *)a)->sin_addr,
                        out, HTTP_ADDRESS);
    }
}

static struct http_request request_of(struct call *k, const char *method,
                                      const char *path)
{
    struct http_request req = { .method = method,
                                .path = path,
                                .target = k->target,
                                .body = { k->body, k->n },
                                .address = k->address,
                                .connection = k->connection,
                                .call = k };

    fill_peer(k->connection, &req);
    return req;
}

static enum MHD_Result refuse_long(struct call *k)
{
    struct http_reply *r = &k->reply;
    char text[80];

    k->answered = true;
    if (k->too_long == BODIES_TOO_LONG) {
        http_reply_error(r, MHD_HTTP_SERVICE_UNAVAILABLE,
                         &(struct http_error){ "busy", "The server is busy",
                                               "Too many long requests at once.",
                                               "Try again in a moment." });
        http_reply_header(r, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    } else {
        (void)snprintf(text, sizeof(text), "Its body is longer than %zu KiB.",
                       k->max / 1024);
        http_reply_error(r, MHD_HTTP_CONTENT_TOO_LARGE,
                         &(struct http_error){ "too_long", "The request is too long",
                                               text, "Send less." });
    }
    return send_reply(k->connection, r);
}

/* The headers are there, the body is not: what would be too long is not read at all. */
static enum MHD_Result begin(struct http_server *s, struct call *k, const char *method,
                             const char *path)
{
    const char *length = MHD_lookup_connection_value(k->connection, MHD_HEADER_KIND,
                                                     MHD_HTTP_HEADER_CONTENT_LENGTH);
    uint64_t n = 0;

    k->begun = true;
    fill_address(k->connection, k->address);
    k->max = HTTP_BODY_MAX;
    if (!s->body_max)
        return MHD_YES;
    struct http_request req = request_of(k, method, path);

    k->max = s->body_max(s->arg, &req);
    if (!length || (str_u64(str_of(length), UINT64_MAX, &n) && n <= k->max))
        return MHD_YES;
    k->too_long = BODY_TOO_LONG;
    return refuse_long(k);
}

static bool keep_body(struct http_server *s, struct call *k, const char *data, size_t n)
{
    if (k->too_long)
        return true;
    if (n > k->max - k->n)
        k->too_long = BODY_TOO_LONG;
    else if (n > HTTP_BODIES_MAX - s->body_bytes)
        k->too_long = BODIES_TOO_LONG;
    if (k->too_long)
        return true;
    char *grown = realloc(k->body, k->n + n);

    if (!grown)
        return false;
    k->body = grown;
    memcpy(k->body + k->n, data, n);
    k->n += n;
    s->body_bytes += n;
    return true;
}

static enum MHD_Result ask(struct http_server *s, struct call *k, const char *method,
                           const char *path)
{
    struct http_request req = request_of(k, method, path);
    struct http_reply r = { .status = MHD_HTTP_INTERNAL_SERVER_ERROR };

    k->asked = true;
    s->handle(s->arg, &req, &r);
    if (!r.later) {
        k->answered = true;
        k->reply = r;
    }
    if (k->answered)
        return send_reply(k->connection, &k->reply);
    k->waiting = true;
    TAILQ_INSERT_TAIL(&s->waiting, k, next);
    MHD_suspend_connection(k->connection);
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version,
                                  const char *data, size_t *data_bytes, void **state)
{
    struct http_server *s = cls;
    struct call *k = *state;

    (void)version;
    if (!k) /* out of memory in on_target */
        return MHD_NO;
    if (!k->begun) {
        k->connection = c;
        return begin(s, k, method, url);
    }
    if (*data_bytes > 0) {
        size_t n = *data_bytes;

        *data_bytes = 0;
        return k->answered || keep_body(s, k, data, n) ? MHD_YES : MHD_NO;
    }
    if (k->too_long)
        return k->answered ? MHD_YES : refuse_long(k);
    if (!k->asked)
        return ask(s, k, method, url);
    return k->answered ? send_reply(c, &k->reply) : MHD_YES;
}

/* The first that is heard of a request: what it wants, as it was sent. */
static void *on_target(void *cls, const char *target, struct MHD_Connection *c)
{
    struct call *k = calloc(1, sizeof(*k));

    (void)c;
    if (!k)
        return NULL;
    k->server = cls;
    k->target = strdup(target);
    if (!k->target) {
        free(k);
        return NULL;
    }
    return k;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode why)
{
    struct call *k = *state;

    (void)cls;
    (void)c;
    (void)why;
    if (!k)
        return;
    if (k->waiting)
        TAILQ_REMOVE(&k->server->waiting, k, next);
    k->server->body_bytes -= k->n;
    free(k->reply.body);
    free(k->target);
    free(k->body);
    free(k);
    *state = NULL;
}

void http_answer(struct http_server *s, void *call, struct http_reply *reply)
{
    struct call *k = call;

    CHECK(!k->answered);
    k->answered = true;
    k->reply = *reply;
    *reply = (struct http_reply){ 0 };
    if (!k->waiting)
        return; /* from within the handler */
    k->waiting = false;
    TAILQ_REMOVE(&s->waiting, k, next);
    MHD_resume_connection(k->connection);
    (void)sd_event_source_set_time_relative(s->timer, 0);
    (void)sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
}

/* --- TLS --------------------------------------------------------------------------- */

static void on_connection(void *cls, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    (void)c;
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        *context = cls; /* for on_certificate, which is told of the connection only */
}

static int on_certificate(gnutls_session_t session, const gnutls_datum_t *authorities,
                          int authority_count, const gnutls_pk_algorithm_t *algorithms,
                          int algorithm_count, gnutls_pcert_st **chain, unsigned *count,
                          gnutls_privkey_t *key)
{
    struct MHD_Connection *c = gnutls_session_get_ptr(session);
    const union MHD_ConnectionInfo *i =
        c ? MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT) : NULL;

    (void)authorities, (void)authority_count, (void)algorithms, (void)algorithm_count;
    if (!i || !i->socket_context)
        return -1;
    struct http_server *s = i->socket_context;
    http_tls_present(s->tls, chain, count, key);
    return 0;
}

/* ---- the loop ---- */

static void arm_timer(struct http_server *s)
{
    MHD_UNSIGNED_LONG_LONG ms;

    if (MHD_get_timeout(s->mhd, &ms) != MHD_YES) {
        (void)sd_event_source_set_enabled(s->timer, SD_EVENT_OFF); /* cannot fail here */
        return;
    }
    if (sd_event_source_set_time_relative(s->timer, (uint64_t)ms * 1000) >= 0)
        (void)sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT); /* as above */
}

static void work(struct http_server *s)
{
    (void)MHD_run(s->mhd); /* fails only for a daemon of another kind */
    arm_timer(s);
}

static int on_readable(sd_event_source *src, int fd, uint32_t events, void *arg)
{
    (void)src;
    (void)fd;
    (void)events;
    work(arg);
    return 0;
}

static int on_timer(sd_event_source *src, uint64_t us, void *arg)
{
    (void)src;
    (void)us;
    work(arg);
    return 0;
}

static enum err attach(struct http_server *s, const struct http_server_options *o,
                       struct err_info *info)
{
    const union MHD_DaemonInfo *epoll =
        MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_EPOLL_FD);

    if (!epoll)
        return err_set(info, ERR_UNSUPPORTED, 0, "libmicrohttpd has no epoll");
    int r =
        sd_event_add_io(o->loop, &s->readable, epoll->epoll_fd, EPOLLIN, on_readable, s);

    if (r >= 0)
        r = sd_event_source_set_priority(s->readable, o->priority);
    if (r >= 0)
        r = sd_event_add_time_relative(o->loop, &s->timer, CLOCK_BOOTTIME, 0, 1000,
                                       on_timer, s);
    if (r >= 0)
        r = sd_event_source_set_priority(s->timer, o->priority);
    return r >= 0 ? ERR_OK : err_set(info, ERR_IO, -r, "add the server to the loop");
}

/* ---- sockets ---- */

/* Is somebody listening there? */
static bool is_live(const struct sockaddr_un *at)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return true; /* unknown: do not take its place */
    bool live =
        connect(fd, (const struct sockaddr *)at, sizeof(*at)) == 0 || errno == EAGAIN;

    (void)close(fd); /* nothing sent */
    return live;
}

static void open_to_group(const char *path, const char *group)
{
    struct group gr, *found = NULL;
    char buf[4096];

    if (!group || getgrnam_r(group, &gr, buf, sizeof(buf), &found) != 0 || !found)
        return;
    if (chown(path, (uid_t)-1, gr.gr_gid) == 0)
        (void)chmod(path, 0660); /* if not, root alone may connect, which is safe */
}

static enum err listen_unix(struct http_server *s, const struct http_server_options *o,
                            int fd, struct err_info *info)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };

    if (!str_copy(at.sun_path, sizeof(at.sun_path), str_of(o->unix_path)))
        return err_set(info, ERR_LIMIT, 0, "the path of the socket %s is too long",
                       o->unix_path);
    if (is_live(&at))
        return err_set(info, ERR_EXISTS, 0, "another process serves %s", o->unix_path);
    if (unlink(o->unix_path) != 0 && errno != ENOENT)
        return err_set(info, ERR_IO, errno, "remove the old %s", o->unix_path);
    mode_t old = umask(0177);
    int r = bind(fd, (struct sockaddr *)&at, sizeof(at));
    int number = errno;

    (void)umask(old); /* always succeeds */
    if (r != 0)
        return err_set(info, ERR_IO, number, "bind %s", o->unix_path);
    memcpy(s->unix_path, at.sun_path, sizeof(s->unix_path));
    open_to_group(o->unix_path, o->unix_group);
    return ERR_OK;
}

static enum err bind_tcp(int fd, const struct addrinfo *a, const char *host,
                         unsigned port, struct err_info *info)
{
    int one = 1, zero = 0;

    if (a->ai_family ==
        AF_INET6) /* [::] takes IPv4, too; an address of its own may not */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, a->ai_addr, a->ai_addrlen) != 0)
        return err_set(info, errno == EACCES ? ERR_DENIED : ERR_IO, errno,
                       "listen on %s port %u", host, port);
    return ERR_OK;
}

static enum err open_socket(struct http_server *s, const struct http_server_options *o,
                            int *ret_fd, struct err_info *info)
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_PASSIVE,
                              .ai_socktype = SOCK_STREAM };
    struct addrinfo *a = NULL;
    char port[8];
    enum err e;

    (void)snprintf(port, sizeof(port), "%u", o->tcp_port);
    if (!o->unix_path && getaddrinfo(o->tcp_host, port, &hints, &a) != 0)
        return err_set(info, ERR_INVALID, 0, "%s is not a numeric address", o->tcp_host);
    int fd = socket(o->unix_path ? AF_UNIX : a->ai_family,
                    SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        e = err_set(info, ERR_IO, errno, "make a socket");
    else if (o->unix_path)
        e = listen_unix(s, o, fd, info);
    else
        e = bind_tcp(fd, a, o->tcp_host, o->tcp_port, info);
    if (e == ERR_OK && listen(fd, 64) != 0)
        e = err_set(info, ERR_IO, errno, "listen");
    if (a)
        freeaddrinfo(a);
    if (e == ERR_OK)
        *ret_fd = fd;
    else if (fd >= 0)
        (void)close(fd); /* never served */
    return e;
}

static enum err start(struct http_server *s, const struct http_server_options *o, int fd,
                      struct err_info *info)
{
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME;
    const struct MHD_OptionItem tls[] = {
        { MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)on_certificate },
        { MHD_OPTION_HTTPS_PRIORITIES, 0,
          (void *)(uintptr_t) "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA" },
        { MHD_OPTION_END, 0, NULL },
    };

    s->mhd = MHD_start_daemon(
        s->tls ? flags | MHD_USE_TLS : flags, 0, NULL, NULL, on_request, s,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
        o->connections_max ? o->connections_max : (unsigned)HTTP_CONNECTIONS_MAX,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, o->per_ip_max, MHD_OPTION_CONNECTION_TIMEOUT,
        o->idle_s ? o->idle_s : (unsigned)HTTP_IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)16384, MHD_OPTION_URI_LOG_CALLBACK, on_target, s,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, s, MHD_OPTION_ARRAY, s->tls ? tls : &tls[2], MHD_OPTION_END);
    if (s->mhd)
        return ERR_OK;
    (void)close(fd); /* never served */
    return err_set(info, ERR_IO, 0, "start the HTTP server");
}

enum err http_server_new(const struct http_server_options *opts, struct http_server **out,
                         struct err_info *info)
{
    struct http_server *s = calloc(1, sizeof(*s));
    int fd = -1;
    enum err e = ERR_OK;

    if (!s)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    TAILQ_INIT(&s->waiting);
    s->handle = opts->handle;
    s->body_max = opts->body_max;
    s->arg = opts->arg;
    if (opts->certificate)
        e = http_tls_new(opts->certificate, opts->key, &s->tls, info);
    if (e == ERR_OK)
        e = open_socket(s, opts, &fd, info);
    if (e == ERR_OK)
        e = start(s, opts, fd, info);
    if (e == ERR_OK)
        e = attach(s, opts, info);
    if (e == ERR_OK)
        *out = s;
    else
        http_server_free(s);
    return e;
}

/* libmicrohttpd does not end while a connection waits; and the last answers shall leave. */
static void let_go(struct http_server *s)
{
    struct call *k, *next;

    for (k = TAILQ_FIRST(&s->waiting); k; k = next) {
        next = TAILQ_NEXT(k, next);
        http_answer(s, k, &(struct http_reply){ .status = MHD_HTTP_SERVICE_UNAVAILABLE });
    }
    (void)MHD_run(s->mhd);
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    if (s->mhd) {
        let_go(s);
        MHD_stop_daemon(s->mhd); /* closes the listening socket too */
    }
    s->readable = sd_event_source_disable_unref(s->readable);
    s->timer = sd_event_source_disable_unref(s->timer);
    http_tls_free(s->tls);
    if (s->unix_path[0])
        (void)unlink(s->unix_path); /* a stale one is replaced at the next start */
    free(s);
}
