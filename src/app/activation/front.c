#include "app/activation/front.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct front {
    struct front_options o;
    struct MHD_Daemon *mhd;
    gnutls_datum_t certificate, key, ca;
    sd_event_source *readable, *timer;
};

/* One request; libmicrohttpd carries it from call to call. */
struct call {
    struct MHD_Connection *connection;
    char body[FRONT_BODY_MAX];
    size_t n;
    bool too_long, asked, waiting, answered;
    struct front_reply reply;
};

/* Who is at the other end of a connection, once that was looked at. */
struct peer {
    bool looked, has_device;
    struct tls_device device;
};

/* --- who asks ---------------------------------------------------------------------- */

static bool device_of(struct MHD_Connection *c, struct tls_device *out)
{
    static char purpose[] = GNUTLS_KP_TLS_WWW_CLIENT;
    gnutls_typed_vdata_st want = { .type = GNUTLS_DT_KEY_PURPOSE_OID,
                                   .data = (unsigned char *)purpose };
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    unsigned status = 0, count = 0;

    if (!i || gnutls_certificate_verify_peers(i->tls_session, &want, 1, &status) < 0 ||
        status != 0)
        return false;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(i->tls_session, &count);
    return chain && count > 0 &&
           tls_der_device(chain[0].data, chain[0].size, out) == ERR_OK;
}

static struct peer *peer_of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct peer *p = i ? i->socket_context : NULL;

    if (p && !p->looked) {
        p->looked = true;
        p->has_device = device_of(c, &p->device);
    }
    return p;
}

static void on_connection(void *cls, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    (void)cls, (void)c;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *context = calloc(1, sizeof(struct peer)); /* without one, it has no device */
        return;
    }
    free(*context);
    *context = NULL;
}

/* --- requests ---------------------------------------------------------------------- */

static enum MHD_Result send_answer(struct call *k)
{
    char *json = k->reply.json, seconds[16];
    size_t n = json ? strlen(json) : 0;
    struct MHD_Response *r =
        json ? MHD_create_response_from_buffer(n, json, MHD_RESPMEM_MUST_FREE)
             : MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    enum MHD_Result done = MHD_NO;

    if (!r)
        return MHD_NO;
    k->reply.json = NULL; /* the response's */
    (void)snprintf(seconds, sizeof(seconds), "%u", k->reply.retry_after_s);
    if (MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "application/json") ==
            MHD_YES &&
        (k->reply.retry_after_s == 0 ||
         (MHD_add_response_header(r, MHD_HTTP_HEADER_RETRY_AFTER, seconds) == MHD_YES &&
          MHD_add_response_header(r, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES)))
        done = MHD_queue_response(k->connection, k->reply.status, r);
    MHD_destroy_response(r);
    return done;
}

static void ask(struct front *f, struct call *k, const char *method, const char *path)
{
    struct front_request rq = {
        .method = method,
        .path = path,
        .body = { k->body, k->n },
        .too_long = k->too_long,
        .call = k,
    };

    const struct peer *peer = peer_of(k->connection);

    k->asked = true;
    rq.device = peer && peer->has_device ? &peer->device : NULL;
    f->o.handle(f->o.arg, &rq);
    if (!k->answered) {
        k->waiting = true;
        MHD_suspend_connection(k->connection);
    }
}

static void keep(struct call *k, const char *data, size_t n)
{
    if (n > sizeof(k->body) - k->n) {
        k->too_long = true;
        return;
    }
    memcpy(k->body + k->n, data, n);
    k->n += n;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version,
                                  const char *data, size_t *data_bytes, void **state)
{
    struct front *f = cls;
    struct call *k = *state;

    (void)version;
    if (!k) {
        *state = k = calloc(1, sizeof(*k));
        if (k)
            k->connection = c;
        return k ? MHD_YES : MHD_NO;
    }
    if (*data_bytes > 0) {
        keep(k, data, *data_bytes);
        *data_bytes = 0;
        return MHD_YES;
    }
    if (!k->asked)
        ask(f, k, method, url);
    return k->answered ? send_answer(k) : MHD_YES;
}

static void on_completed(void *cls, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode why)
{
    struct call *k = *state;

    (void)cls, (void)c, (void)why;
    if (k)
        free(k->reply.json);
    free(k);
    *state = NULL;
}

/* --- the loop ---------------------------------------------------------------------- */

static void arm_timer(struct front *f)
{
    MHD_UNSIGNED_LONG_LONG ms;

    if (MHD_get_timeout(f->mhd, &ms) != MHD_YES) {
        (void)sd_event_source_set_enabled(f->timer, SD_EVENT_OFF);
        return;
    }
    (void)sd_event_source_set_time_relative(f->timer, (uint64_t)ms * 1000u);
    (void)sd_event_source_set_enabled(f->timer, SD_EVENT_ONESHOT);
}

static int on_timer(sd_event_source *s, uint64_t us, void *arg)
{
    struct front *f = arg;

    (void)s, (void)us;
    (void)MHD_run(f->mhd);
    arm_timer(f);
    return 0;
}

static int on_readable(sd_event_source *s, int fd, uint32_t events, void *arg)
{
    (void)fd, (void)events;
    return on_timer(s, 0, arg);
}

void front_answer(struct front *f, void *call, const struct front_reply *reply)
{
    struct call *k = call;

    CHECK(!k->answered);
    k->answered = true;
    k->reply = *reply;
    if (k->waiting) {
        MHD_resume_connection(k->connection);
        (void)sd_event_source_set_time_relative(f->timer, 0);
        (void)sd_event_source_set_enabled(f->timer, SD_EVENT_ONESHOT);
    }
}

static enum err attach(struct front *f, struct err_info *info)
{
    const union MHD_DaemonInfo *epoll =
        MHD_get_daemon_info(f->mhd, MHD_DAEMON_INFO_EPOLL_FD);

    if (!epoll)
        return err_set(info, ERR_UNSUPPORTED, 0, "libmicrohttpd has no epoll");
    int r = sd_event_add_io(f->o.loop, &f->readable, epoll->epoll_fd, EPOLLIN,
                            on_readable, f);
    if (r >= 0)
        r = sd_event_add_time_relative(f->o.loop, &f->timer, CLOCK_BOOTTIME, 0, 1000,
                                       on_timer, f);
    return r < 0 ? err_set(info, ERR_MEMORY, -r, "add the server to the loop") : ERR_OK;
}

/* --- life -------------------------------------------------------------------------- */

static enum err load(gnutls_datum_t *out, const char *path, struct err_info *info)
{
    int r = gnutls_load_file(path, out); /* NUL-terminated */

    return r < 0 ? err_set(info, ERR_CONFIG, 0, "%s: %s", path, gnutls_strerror(r))
                 : ERR_OK;
}

static enum err listen_on(const struct front_options *o, int *out, struct err_info *info)
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_PASSIVE,
                              .ai_socktype = SOCK_STREAM };
    struct addrinfo *a = NULL;
    char port[8];
    int one = 1, zero = 0;

    (void)snprintf(port, sizeof(port), "%u", o->port);
    if (getaddrinfo(o->host[0] ? o->host : NULL, port, &hints, &a) != 0)
        return err_set(info, ERR_CONFIG, 0, "%s is not a numeric address", o->host);
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (a->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, a->ai_addr, a->ai_addrlen) != 0 || listen(fd, 256) != 0) {
        enum err e =
            err_set(info, ERR_IO, errno, "listen on %s port %u", o->host, o->port);
        if (fd >= 0)
            close(fd);
        freeaddrinfo(a);
        return e;
    }
    freeaddrinfo(a);
    *out = fd;
    return ERR_OK;
}

static enum err start(struct front *f, int fd, struct err_info *info)
{
    f->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_USE_TLS | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, on_request,
        f, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_HTTPS_MEM_CERT, f->certificate.data,
        MHD_OPTION_HTTPS_MEM_KEY, f->key.data, MHD_OPTION_HTTPS_MEM_TRUST, f->ca.data,
        MHD_OPTION_HTTPS_PRIORITIES, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA",
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)FRONT_CONNECTIONS_MAX,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)FRONT_ADDRESS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)FRONT_IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16384, MHD_OPTION_NOTIFY_COMPLETED,
        on_completed, NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, NULL,
        MHD_OPTION_END);
    if (!f->mhd) {
        close(fd);
        return err_set(info, ERR_CONFIG, 0, "certificate %s and key %s do not work",
                       f->o.certificate, f->o.key);
    }
    return attach(f, info);
}

enum err front_open(struct front **out, const struct front_options *o,
                    struct err_info *info)
{
    struct front *f = calloc(1, sizeof(*f));
    int fd = -1;

    if (!f)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    f->o = *o;
    enum err e = load(&f->certificate, o->certificate, info);
    if (e == ERR_OK)
        e = load(&f->key, o->key, info);
    if (e == ERR_OK)
        e = load(&f->ca, o->ca, info);
    if (e == ERR_OK)
        e = listen_on(o, &fd, info);
    if (e == ERR_OK)
        e = start(f, fd, info);
    if (e != ERR_OK) {
        front_close(f);
        return e;
    }
    *out = f;
    return ERR_OK;
}

void front_close(struct front *f)
{
    if (!f)
        return;
    f->readable = sd_event_source_disable_unref(f->readable);
    f->timer = sd_event_source_disable_unref(f->timer);
    if (f->mhd) {
        (void)MHD_run(f->mhd); /* the last answers leave */
        MHD_stop_daemon(f->mhd);
    }
    gnutls_free(f->certificate.data);
    if (f->key.data)
        gnutls_memset(f->key.data, 0, f->key.size);
    gnutls_free(f->key.data);
    gnutls_free(f->ca.data);
    free(f);
}
