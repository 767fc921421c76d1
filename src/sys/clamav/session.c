#include "sys/clamav/session.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct clamav_session {
    int fd;
    struct ucred peer;
    uint32_t asked;
    size_t n, at; /* buf[at..n] is not taken yet */
    char buf[2 * CLAMD_REPLY_MAX];
};

static int connect_to(const char *path, struct err_info *info)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };

    if (!str_copy(to.sun_path, sizeof(to.sun_path), str_of(path))) {
        (void)err_set(info, ERR_CONFIG, ENAMETOOLONG, "%.100s", path);
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        (void)err_set(info, ERR_IO, errno, "clamd at %.100s", path);
        if (fd >= 0)
            (void)close(fd);
        return -1;
    }
    return fd;
}

enum err clamav_session_open(const char *path, struct clamav_session **out,
                             struct err_info *info)
{
    static const char hello[] = "zIDSESSION";
    socklen_t size = sizeof(struct ucred);
    int fd = connect_to(path, info);

    if (fd < 0)
        return ERR_IO;
    if (send(fd, hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello)) {
        enum err e = err_set(info, ERR_IO, errno, "clamd");

        (void)close(fd);
        return e;
    }
    struct clamav_session *s = calloc(1, sizeof(*s));
    if (!s) {
        (void)close(fd);
        return err_set(info, ERR_MEMORY, ENOMEM, "clamd");
    }
    s->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &s->peer, &size) != 0)
        s->peer = (struct ucred){ 0 };
    *out = s;
    return ERR_OK;
}

void clamav_session_close(struct clamav_session *s)
{
    if (!s)
        return;
    (void)close(s->fd);
    free(s);
}

/* The command, then one byte more, which carries the descriptor. */
enum err clamav_session_ask(struct clamav_session *s, int fd, uint32_t *number,
                            struct err_info *info)
{
    char command[] = "zFILDES\0"; /* with its own NUL: 9 bytes */
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec iov = { command, sizeof(command) };
    struct msghdr m = { .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.bytes,
                        .msg_controllen = sizeof(control.bytes) };

    control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
                                     .cmsg_level = SOL_SOCKET,
                                     .cmsg_type = SCM_RIGHTS };
    memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    ssize_t n = sendmsg(s->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ETOOMANYREFS))
        return ERR_TIMEOUT;
    if (n != (ssize_t)sizeof(command))
        return err_set(info, ERR_CLOSED, n < 0 ? errno : 0, "clamd");
    *number = ++s->asked;
    return ERR_OK;
}

static enum err fill(struct clamav_session *s, struct err_info *info)
{
    memmove(s->buf, s->buf + s->at, s->n - s->at);
    s->n -= s->at;
    s->at = 0;
    ssize_t n = recv(s->fd, s->buf + s->n, sizeof(s->buf) - s->n, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return ERR_TIMEOUT;
    if (n <= 0)
        return err_set(info, ERR_CLOSED, n < 0 ? errno : 0,
                       "clamd closed the connection");
    s->n += (size_t)n;
    return ERR_OK;
}

enum err clamav_session_answer(struct clamav_session *s, uint32_t *number,
                               struct clamd_verdict *out, struct err_info *info)
{
    struct clamd_reply r;
    size_t used = 0;

    for (;;) {
        enum err e = clamd_reply((struct str){ s->buf + s->at, s->n - s->at }, &r, &used);

        if (e == ERR_OK && used == 0) {
            e = fill(s, info);
            if (e == ERR_TIMEOUT) {
                *number = 0;
                return ERR_OK;
            }
            if (e != ERR_OK)
                return e;
            continue;
        }
        if (e == ERR_OK)
            e = clamd_verdict(r.text, out);
        if (e != ERR_OK || r.id == 0 || r.id > s->asked)
            return err_set(info, ERR_CORRUPT, 0, "clamd answers what was not asked");
        s->at += used;
        *number = r.id;
        return ERR_OK;
    }
}

int clamav_session_fd(const struct clamav_session *s)
{
    return s->fd;
}

pid_t clamav_session_pid(const struct clamav_session *s)
{
    return s->peer.pid;
}

uid_t clamav_session_uid(const struct clamav_session *s)
{
    return s->peer.uid;
}

enum err clamav_say(const char *path, const char *command, uint32_t ms, char *reply,
                    size_t size, struct err_info *info)
{
    int fd = connect_to(path, info);
    size_t n = 0;
    enum err e = ERR_OK;

    if (fd < 0)
        return ERR_IO;
    if (send(fd, command, strlen(command) + 1, MSG_NOSIGNAL) < 0)
        e = err_set(info, ERR_IO, errno, "clamd");
    while (e == ERR_OK && (n == 0 || reply[n - 1] != '\0')) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        ssize_t got = poll(&p, 1, (int)ms) == 1 ? recv(fd, reply + n, size - n, 0) : -2;

        if (got == -2)
            e = err_set(info, ERR_TIMEOUT, 0, "clamd does not answer");
        else if (got <= 0 || (n += (size_t)got) == size)
            e = err_set(info, ERR_CLOSED, 0, "clamd gave no whole answer");
    }
    (void)close(fd);
    return e;
}
