#include "sys/smb/smb_dialect.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ANSWER_MAX = 4096, TRIES = 3, PAUSE_MS = 100 };

/* errno of a connect() that was begun and has ended, or ETIMEDOUT. */
static int wait_connected(int fd, uint32_t timeout_ms)
{
    struct pollfd p = { .fd = fd, .events = POLLOUT };
    int e = 0;
    socklen_t len = sizeof(e);

    if (poll(&p, 1, (int)timeout_ms) != 1)
        return ETIMEDOUT;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0 ? errno : e;
}

/* A connected socket, or -1 with errno. */
static int dial(const struct smb_probe *p, struct err_info *info)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    struct addrinfo *all = NULL;
    char port[8];
    int fd = -1, e = EHOSTUNREACH;

    (void)snprintf(port, sizeof(port), "%u", (unsigned)p->port);
    int rc = getaddrinfo(p->host, port, &hints, &all);
    if (rc != 0) {
        (void)err_set(info, ERR_IO, 0, "%s: %s", p->host, gai_strerror(rc));
        return -1;
    }
    for (struct addrinfo *a = all; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
            continue;
        e = connect(fd, a->ai_addr, a->ai_addrlen) == 0 ? 0 : errno;
        if (e == EINPROGRESS)
            e = wait_connected(fd, p->timeout_ms);
        if (e != 0) {
            (void)close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(all);
    if (fd < 0)
        (void)err_set(info, ERR_IO, e, "connect to %s port %u", p->host,
                      (unsigned)p->port);
    return fd;
}

/* Reads exactly n bytes; ERR_CLOSED, or ERR_TIMEOUT. */
static enum err read_all(int fd, uint8_t *buf, size_t n, uint32_t timeout_ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    for (size_t at = 0; at < n;) {
        if (poll(&p, 1, (int)timeout_ms) != 1)
            return ERR_TIMEOUT;
        ssize_t got = recv(fd, buf + at, n - at, 0);
        if (got <= 0)
            return ERR_CLOSED;
        at += (size_t)got;
    }
    return ERR_OK;
}

struct reply {
    uint8_t bytes[ANSWER_MAX];
    size_t n;
};

static enum err ask(const struct smb_probe *p, struct reply *out, struct err_info *info)
{
    uint8_t rq[SMB_NEGOTIATE_MAX], head[4], guid[16];

    if (getrandom(guid, sizeof(guid), 0) != (ssize_t)sizeof(guid))
        return err_set(info, ERR_IO, errno, "getrandom");
    size_t n = smb_negotiate_encode(rq, p->min, p->max, guid);
    int fd = dial(p, info);
    if (fd < 0)
        return ERR_IO;
    enum err e = send(fd, rq, n, MSG_NOSIGNAL) == (ssize_t)n ? ERR_OK : ERR_CLOSED;
    if (e == ERR_OK)
        e = read_all(fd, head, sizeof(head), p->timeout_ms);
    if (e == ERR_OK) {
        out->n = (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
        out->n = out->n > ANSWER_MAX ? ANSWER_MAX : out->n;
        e = read_all(fd, out->bytes, out->n, p->timeout_ms);
    }
    (void)close(fd);
    return e;
}

enum err smb_probe(struct smb_negotiated *out, const struct smb_probe *p,
                   struct err_info *info)
{
    struct reply reply = { .n = 0 };
    enum err e = ERR_CLOSED;

    /* A server that knows only SMB 1 hangs up on this message, and so may one that is just
     * starting or stopping: ask again before that is said of it. */
    for (int i = 0; i < TRIES && e == ERR_CLOSED; i++) {
        if (i > 0)
            (void)poll(NULL, 0, PAUSE_MS);
        e = ask(p, &reply, info);
    }
    if (e == ERR_TIMEOUT)
        return err_set(info, e, 0, "%s does not answer an SMB 2 negotiation", p->host);
    if (e == ERR_CLOSED)
        return err_set(info, ERR_VERSION, 0,
                       "%s hangs up on an SMB 2 negotiation (dialects %s to %s): "
                       "SMB 1 is not enough",
                       p->host, smb_dialect_name(p->min), smb_dialect_name(p->max));
    if (e)
        return e;
    e = smb_negotiate_decode(out, reply.bytes, reply.n);
    if (e == ERR_VERSION)
        return err_set(info, e, 0, "%s speaks none of the SMB dialects %s to %s", p->host,
                       smb_dialect_name(p->min), smb_dialect_name(p->max));
    if (e)
        return err_set(info, e, 0, "%s: not an SMB 2 answer", p->host);
    return ERR_OK;
}
