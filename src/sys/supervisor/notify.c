#include "sys/supervisor/notify.h"

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void take_status(struct notify_message *out, struct str value)
{
    struct text t;

    out->has_status = true;
    text_init(&t, out->status, sizeof(out->status));
    text_bytes(&t, value);
    for (char *c = out->status; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
}

static void take_role(struct notify_message *out, struct str value)
{
    struct str active = STR("active ");

    if (str_is(value, "standby")) {
        out->role = NOTIFY_ROLE_STANDBY;
    } else if (str_starts(value, active)) {
        struct str number = { value.p + active.n, value.n - active.n };

        if (str_u64(number, UINT64_MAX, &out->epoch))
            out->role = NOTIFY_ROLE_ACTIVE;
    }
}

static void take_metrics(struct notify_message *out, struct str value)
{
    out->has_metrics = true;
    /* A number that was cut would be another number. */
    if (!str_copy(out->metrics, sizeof(out->metrics), value))
        out->metrics[0] = '\0';
}

static bool strip(struct str *line, struct str name)
{
    if (!str_starts(*line, name))
        return false;
    line->p += name.n;
    line->n -= name.n;
    return true;
}

void notify_decode(struct notify_message *out, struct str datagram)
{
    *out = (struct notify_message){ .role = NOTIFY_ROLE_NONE };
    while (datagram.n > 0) {
        const char *end = memchr(datagram.p, '\n', datagram.n);
        struct str line = { datagram.p, end ? (size_t)(end - datagram.p) : datagram.n };

        datagram.p += end ? line.n + 1 : line.n;
        datagram.n -= end ? line.n + 1 : line.n;
        if (str_is(line, "READY=1"))
            out->ready = true;
        else if (str_is(line, "WATCHDOG=1"))
            out->watchdog = true;
        else if (str_is(line, "STOPPING=1"))
            out->stopping = true;
        else if (strip(&line, STR("STATUS=")))
            take_status(out, line);
        else if (strip(&line, STR("REDOUBT_ROLE=")))
            take_role(out, line);
        else if (strip(&line, STR("REDOUBT_METRICS=")))
            take_metrics(out, line);
    }
}

enum err notify_open(int *ret_fd, const char *path, uid_t uid, gid_t gid,
                     struct err_info *info)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int one = 1, fd;

    if (!str_copy(a.sun_path, sizeof(a.sun_path), str_of(path)))
        return err_set(
            info, ERR_LIMIT, 0,
            "the socket path %s is longer than %zu bytes: choose a shorter run_dir", path,
            sizeof(a.sun_path) - 1);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "make a socket");
    (void)unlink(path);
    if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) != 0 ||
        bind(fd, (struct sockaddr *)&a, sizeof(a)) != 0 || chmod(path, 0600) != 0 ||
        chown(path, uid, gid) != 0) {
        enum err e = err_set(info, ERR_IO, errno, "make the socket %s", path);

        (void)close(fd);
        return e;
    }
    *ret_fd = fd;
    return ERR_OK;
}

enum err notify_receive(int fd, char *buf, struct str *ret_datagram, pid_t *ret_pid)
{
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int) * 8)];
        struct cmsghdr align;
    } control;
    struct iovec iov = { .iov_base = buf, .iov_len = NOTIFY_BYTES };
    struct msghdr m = { .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.bytes,
                        .msg_controllen = sizeof(control.bytes) };
    ssize_t n;
    pid_t pid = 0;

    do
        n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? ERR_NOT_FOUND : ERR_IO;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_CREDENTIALS) {
            struct ucred cred;

            memcpy(&cred, CMSG_DATA(c), sizeof(cred));
            pid = cred.pid;
        } else if (c->cmsg_type == SCM_RIGHTS) {
            /* Descriptors that somebody sends along must not pile up here. */
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len;
                 at += sizeof(int)) {
                int sent;

                memcpy(&sent, (char *)c + at, sizeof(sent));
                (void)close(sent);
            }
        }
    }
    *ret_datagram = (struct str){ buf, (m.msg_flags & MSG_TRUNC) ? 0 : (size_t)n };
    *ret_pid = pid;
    return ERR_OK;
}
