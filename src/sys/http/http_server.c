#include "sys/http/http_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <microhttpd.h>
#include <netdb.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct http_server {
    http_handler handle;
    void *arg;
    struct MHD_Daemon *mhd;
    sd_event_source *readable, *timer;
    char unix_path[108];
};

/* One request while its body arrives. */
struct pending {
    char *body;
    size_t n;
    bool too_long;
};

const char *http_argument(const struct http_request *req, const char *name)
{
    return MHD_lookup_connection_value(req->connection, MHD_GET_ARGUMENT_KIND, name);
}

void http_reply_text(struct http_reply *out, unsigned status, const char *content_type,
                     struct str body)
{
    free(out->body);
    *out = (struct http_reply){ .status = status, .content_type = content_type };
    out->body = malloc(body.n + 1);
    if (!out->body) {
        out->status = MHD_HTTP_SERVICE_UNAVAILABLE;
        return;
    }
    memcpy(out->body, body.p, body.n);
    out->body[body.n] = '\0';
    out->body_bytes = body.n;
}

static void add_quoted(struct text *t, const char *s)
{
    text_add(t, "\"");
    for (; s && *s; s++) {
        if (*s == '"' || *s == '\\')
            text_add(t, "\\%c", *s);
        else if ((unsigned char)*s < ' ')
            text_add(t, "\\u%04x", (unsigned)*s);
        else
            text_bytes(t, (struct str){ s, 1 });
    }
    text_add(t, "\"");
}

void http_reply_error(struct http_reply *out, unsigned status,
                      const struct http_error *error)
{
    char buf[4096];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    text_add(&t, "{\"error\":{\"id\":");
    add_quoted(&t, error->id);
    text_add(&t, ",\"title\":");
    add_quoted(&t, error->title);
    text_add(&t, ",\"text\":");
    add_quoted(&t, error->text);
    text_add(&t, ",\"suggestion\":");
    add_quoted(&t, error->suggestion);
    text_add(&t, "}}\n");
    if (t.cut) { /* absurdly long words: keep it JSON */
        http_reply_text(out, status, NULL, STR("{\"error\":{\"id\":\"internal\"}}\n"));
        return;
    }
    http_reply_text(out, status, NULL, (struct str){ buf, t.n });
}

static enum MHD_Result send_reply(struct MHD_Connection *c, struct http_reply *r)
{
    struct MHD_Response *resp =
        r->body ? MHD_create_response_from_buffer(r->body_bytes, r->body,
                                                  MHD_RESPMEM_MUST_FREE)
                : MHD_create_response_from_buffer(0, (void *)(uintptr_t) "",
                                                  MHD_RESPMEM_PERSISTENT);
    enum MHD_Result done = MHD_NO;

    if (!resp) {
        free(r->body);
        return MHD_NO;
    }
    if (MHD_add_response_header(resp, MHD_HTTP_HEADER_CONTENT_TYPE,
                                r->content_type ? r->content_type : "application/json") ==
        MHD_YES)
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

static bool keep_body(struct pending *p, const char *data, size_t n)
{
    if (n > HTTP_BODY_MAX - p->n) {
        p->too_long = true;
        return true;
    }
    char *grown = realloc(p->body, p->n + n);

    if (!grown)
        return false;
    p->body = grown;
    memcpy(p->body + p->n, data, n);
    p->n += n;
    return true;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version,
                                  const char *data, size_t *data_bytes, void **state)
{
    const struct http_server *s = cls;
    struct pending *p = *state;
    struct http_reply reply = { .status = MHD_HTTP_INTERNAL_SERVER_ERROR };

    (void)version;
    if (!p) {
        *state = calloc(1, sizeof(*p));
        return *state ? MHD_YES : MHD_NO;
    }
    if (*data_bytes > 0) {
        size_t n = *data_bytes;

        *data_bytes = 0;
        return p->too_long || keep_body(p, data, n) ? MHD_YES : MHD_NO;
    }
    struct http_request req = {
        .method = method, .path = url, .body = { p->body, p->n }, .connection = c
    };

    fill_peer(c, &req);
    if (p->too_long)
        http_reply_error(&reply, MHD_HTTP_CONTENT_TOO_LARGE,
                         &(struct http_error){ "too_long", "The request is too long",
                                               "Its body is longer than 64 KiB.",
                                               "Send less." });
    else
        s->handle(s->arg, &req, &reply);
    return send_reply(c, &reply);
}

static void on_completed(void *cls, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode why)
{
    struct pending *p = *state;

    (void)cls;
    (void)c;
    (void)why;
    if (p)
        free(p->body);
    free(p);
    *state = NULL;
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
        r = sd_event_add_time_relative(o->loop, &s->timer, CLOCK_BOOTTIME, 0, 100000,
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
    int one = 1;

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

enum err http_server_new(const struct http_server_options *opts, struct http_server **out,
                         struct err_info *info)
{
    struct http_server *s = calloc(1, sizeof(*s));
    int fd = -1;
    enum err e;

    if (!s)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    s->handle = opts->handle;
    s->arg = opts->arg;
    e = open_socket(s, opts, &fd, info);
    if (e != ERR_OK)
        goto out;
    s->mhd = MHD_start_daemon(
        MHD_USE_EPOLL, 0, NULL, NULL, on_request, s, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HTTP_IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16384, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, NULL, MHD_OPTION_END);
    if (!s->mhd) {
        (void)close(fd); /* never served */
        e = err_set(info, ERR_IO, 0, "start the HTTP server");
        goto out;
    }
    e = attach(s, opts, info);
out:
    if (e == ERR_OK)
        *out = s;
    else
        http_server_free(s);
    return e;
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    s->readable = sd_event_source_disable_unref(s->readable);
    s->timer = sd_event_source_disable_unref(s->timer);
    if (s->mhd)
        MHD_stop_daemon(s->mhd); /* closes the listening socket too */
    if (s->unix_path[0])
        (void)unlink(s->unix_path); /* a stale one is replaced at the next start */
    free(s);
}
