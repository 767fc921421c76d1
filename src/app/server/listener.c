#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/server/conn.h"
#include "sys/log/log.h"

enum { ACCEPT_BURST = 64 };

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

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct server *s = arg;

    (void)revents;
    for (int i = 0; i < ACCEPT_BURST && s->active; i++) {
        struct sockaddr_storage from = { 0 };
        socklen_t n = sizeof(from);
        char peer[64];
        int on = 1;
        int c = accept4(fd, (struct sockaddr *)&from, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (c < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
            /* The next sweep turns it on again. */
            (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
            log_event(LOG_LEVEL_WARNING, "accept_paused",
                      log_str("why", strerrordesc_np(errno)));
            return 0;
        }
        if (c < 0)
            return 0;
        peer_text(peer, sizeof(peer), &from);
        s->counts.accepted++;
        if (s->conn_count >= s->conn_max || !server_may_answer(s)) {
            (void)close(c);
            continue;
        }
        (void)setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        conn_new(s, c, peer);
    }
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
    /* Devices that are there already come before new ones. */
    (void)sd_event_source_set_priority(s->listener, SD_EVENT_PRIORITY_NORMAL + 10);
    return ERR_OK;
}
