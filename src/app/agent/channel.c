#include "app/agent/channel.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire/uuid.h"

union control {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(int))];
};

enum err channel_send(int fd, json_t *message, int pass, bool wait)
{
    char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
    union control control = { 0 };
    enum err e = ERR_OK;
    ssize_t n;

    json_decref(message);
    if (!text)
        return ERR_MEMORY;
    struct iovec iov = { text, strlen(text) };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
    if (pass >= 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof(control.bytes);
        control.head = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
                                         .cmsg_level = SOL_SOCKET,
                                         .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.head), &pass, sizeof(pass));
    }
    do
        n = sendmsg(fd, &m, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
    while (n < 0 && errno == EINTR);
    if (n < 0)
        e = errno == EAGAIN || errno == ETOOMANYREFS ? ERR_TIMEOUT
            : errno == EMSGSIZE                      ? ERR_LIMIT
                                                     : ERR_CLOSED;
    free(text);
    return e;
}

static int take_descriptor(struct msghdr *m)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    int fd = -1;

    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

enum err channel_receive(int fd, json_t **message, int *pass, bool wait)
{
    static char buf[CHANNEL_MAX];
    union control control = { 0 };
    struct iovec iov = { buf, sizeof(buf) };
    struct msghdr m = { .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.bytes,
                        .msg_controllen = sizeof(control.bytes) };
    ssize_t n;

    do
        n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return ERR_TIMEOUT;
    if (n <= 0)
        return ERR_CLOSED;
    int got = take_descriptor(&m);
    json_t *j = (m.msg_flags & MSG_TRUNC) ? NULL : json_loadb(buf, (size_t)n, 0, NULL);
    if (!json_is_object(j)) {
        json_decref(j);
        if (got >= 0)
            (void)close(got);
        return ERR_CORRUPT;
    }
    *message = j;
    *pass = got;
    return ERR_OK;
}

json_t *channel_text(const char *s, size_t max)
{
    size_t n = strnlen(s, max);
    char *copy = strndup(s, n);

    if (!copy)
        return json_string("");
    if (!text_is_utf8((struct str){ copy, n })) {
        /* Cut in the middle of a character, perhaps; else mark what cannot be said. */
        for (size_t cut = 1; cut <= 3 && cut < n; cut++)
            if (text_is_utf8((struct str){ copy, n - cut })) {
                copy[n - cut] = '\0';
                break;
            }
        n = strlen(copy);
        if (!text_is_utf8((struct str){ copy, n }))
            for (size_t i = 0; i < n; i++)
                copy[i] = (unsigned char)copy[i] > 0x7e ? '?' : copy[i];
    }
    json_t *j = json_string(copy);
    free(copy);
    return j ? j : json_string("");
}
