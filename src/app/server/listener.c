#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/server/conn.h"
#include "sys/log/log.h"

enum { PACE_MS = 10, PACE_ACCURACY_US = 1000 };

static enum err bound_socket(const struct server *s, int *out, struct err_info *info)
{
    const char *listen_at = s->conf.server.listen;
    char host[CONF_PATH], service[8];
    uint16_t port;
    struct addrinfo *ai = NULL;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV };

    if (conf_listen_split(listen_at, host, sizeof(host), &port) != ERR_OK)
        return err_set(info, ERR_CONFIG, 0, "[server] listen: %s", listen_at);
    (void)snprintf(service, sizeof(service), "%u", port);
    int n = getaddrinfo(host[0] ? host : NULL, service, &hints, &ai);
    if (n != 0)
        return err_set(info, ERR_CONFIG, 0, "[server] listen: %s: %s", listen_at,
                       gai_strerror(n));
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1, off = 0;
    bool ok = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
              setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == 0 &&
              (ai->ai_family != AF_INET6 ||
               setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) == 0) &&
              bind(fd, ai->ai_addr, ai->ai_addrlen) == 0;
    int e = errno;
    freeaddrinfo(ai);
    if (!ok) {
        if (fd >= 0)
            (void)close(fd);
        return err_set(info, ERR_CONFIG, e, "[server] listen: bind %s", listen_at);
    }
    *out = fd;
    return ERR_OK;
}

enum err listener_probe(const struct server *s, struct err_info *info)
{
    int fd;
    enum err e = bound_socket(s, &fd, info);

    if (e == ERR_OK)
        (void)close(fd);
    return e;
}

/* "10.1.2.3:4567", IPv4 as such also when it came through a dual-stack socket. */
static void peer_text(char *out, size_t size, const struct sockaddr_storage *from)
{
    char host[INET6_ADDRSTRLEN] = "?";
    unsigned port = 0;

    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *a = (const struct sockaddr_in6 *)from;

        (void)inet_ntop(AF_INET6, &a->sin6_addr, host, sizeof(host));
        port = ntohs(a->sin6_port);
    } else if (from->ss_family == AF_INET) {
        const struct sockaddr_in *a = (const struct sockaddr_in *)from;

        (void)inet_ntop(AF_INET, &a->sin_addr, host, sizeof(host));
        port = ntohs(a->sin_port);
    }
    const char *text = strncmp(host, "::ffff:", 7) == 0 ? host + 7 : host;
    (void)snprintf(out, size, "%s:%u", text, port);
}

/* Time went by: some more may come. */
static void tokens_refill(struct server *s)
{
    uint64_t more = (s->now_ms - s->accept_ms) * ACCEPT_PER_S / 1000u;

    if (more == 0)
        return;
    s->accept_tokens = s->accept_tokens + more > ACCEPT_BURST
                           ? ACCEPT_BURST
                           : s->accept_tokens + (uint32_t)more;
    s->accept_ms = s->now_ms;
}

void listener_pace(struct server *s)
{
    if (!s->listener)
        return;
    tokens_refill(s);
    bool open =
        s->accept_tokens > 0 && s->handshakes < HANDSHAKES_MAX && !store_busy(s->store);

    (void)sd_event_source_set_enabled(s->listener, open ? SD_EVENT_ON : SD_EVENT_OFF);
    if (open || s->handshakes >= HANDSHAKES_MAX)
        return; /* the end of a handshake opens it again */
    (void)sd_event_source_set_time_relative(s->pacer, PACE_MS * 1000u);
    (void)sd_event_source_set_enabled(s->pacer, SD_EVENT_ONESHOT);
}

static int on_pace(sd_event_source *source, uint64_t us, void *arg)
{
    struct server *s = arg;

    (void)source, (void)us;
    listener_pace(s);
    return 0;
}

/* Did who waited at the door give up?  A handshake with nobody costs as much as any. */
static bool has_left(int fd)
{
    struct pollfd p = { .fd = fd, .events = POLLRDHUP };

    return poll(&p, 1, 0) > 0;
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct server *s = arg;

    (void)revents;
    tokens_refill(s);
    for (; s->accept_tokens > 0 && s->handshakes < HANDSHAKES_MAX && s->active;
         s->accept_tokens--) {
        struct sockaddr_storage from = { 0 };
        socklen_t n = sizeof(from);
        char peer[64];
        int on = 1;
        unsigned dead_ms = CONN_IDLE_MS;
        int c = accept4(fd, (struct sockaddr *)&from, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (c < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
            /* The next sweep turns it on again. */
            (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
            log_event(LOG_LEVEL_WARNING, "accept_paused",
                      log_str("why", strerrordesc_np(errno)));
            return 0;
        }
        if (c < 0)
            return 0; /* that was all */
        if (has_left(c)) {
            (void)close(c);
            s->accept_tokens++; /* it cost nothing */
            continue;
        }
        peer_text(peer, sizeof(peer), &from);
        s->counts.accepted++;
        if (s->conn_count >= s->conn_max || !server_may_answer(s)) {
            (void)close(c);
            continue;
        }
        (void)setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(c, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms, sizeof(dead_ms));
        conn_new(s, c, peer);
    }
    listener_pace(s);
    return 0;
}

/* Before this the port refuses connections: a passive node answers nobody. */
enum err listener_open(struct server *s, struct err_info *info)
{
    int fd;
    enum err e = bound_socket(s, &fd, info);

    if (e != ERR_OK)
        return e;
    if (listen(fd, SERVER_BACKLOG) != 0) {
        e = err_set(info, ERR_IO, errno, "[server] listen: %s", s->conf.server.listen);
        (void)close(fd);
        return e;
    }
    int n = sd_event_add_io(s->event, &s->listener, fd, EPOLLIN, on_connection, s);
    if (n < 0) {
        (void)close(fd);
        return err_set(info, ERR_MEMORY, -n, "listener");
    }
    (void)sd_event_source_set_io_fd_own(s->listener, true);
    if (!s->pacer) {
        n = sd_event_add_time_relative(s->event, &s->pacer, CLOCK_BOOTTIME, 0,
                                       PACE_ACCURACY_US, on_pace, s);
        if (n < 0)
            return err_set(info, ERR_MEMORY, -n, "listener");
    }
    s->accept_tokens = ACCEPT_BURST;
    s->accept_ms = s->now_ms;
    /* Devices that are there already come before new ones. */
    (void)sd_event_source_set_priority(s->listener, SD_EVENT_PRIORITY_NORMAL + 10);
    return ERR_OK;
}
