#include "sys/net/netlink.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

/* At most this many datagrams are read in one go, so that no flood holds the loop. */
enum { NL_READS_MAX = 64, NL_READ_BYTES = 16384 };

#define ATTR_HEAD sizeof(struct nlattr)
_Static_assert(sizeof(struct nlattr) == NLA_ALIGNTO, "an attribute needs no padding");

static size_t reserve(struct nl_buf *b, size_t size)
{
    size_t at = b->n, room = NLMSG_ALIGN(size);

    if (b->cut || room > sizeof(b->p) - b->n) {
        b->cut = true;
        return 0;
    }
    memset(b->p + at, 0, room);
    b->n += room;
    return at;
}

size_t nl_begin(struct nl_buf *b, uint16_t type, uint16_t flags, uint32_t seq,
                const void *head, size_t head_size)
{
    struct nlmsghdr h = { .nlmsg_type = type, .nlmsg_flags = flags, .nlmsg_seq = seq };
    size_t at = reserve(b, NLMSG_HDRLEN + head_size);

    if (b->cut)
        return 0;
    memcpy(b->p + at, &h, sizeof(h));
    memcpy(b->p + at + NLMSG_HDRLEN, head, head_size);
    return at;
}

void nl_end(struct nl_buf *b, size_t message)
{
    uint32_t size = (uint32_t)(b->n - message);

    if (!b->cut)
        memcpy(b->p + message, &size, sizeof(size)); /* nlmsg_len comes first */
}

void nl_attr(struct nl_buf *b, uint16_t type, const void *data, size_t size)
{
    struct nlattr a = { .nla_type = type, .nla_len = (uint16_t)(ATTR_HEAD + size) };
    size_t at = reserve(b, ATTR_HEAD + size);

    if (b->cut)
        return;
    memcpy(b->p + at, &a, sizeof(a));
    if (size > 0)
        memcpy(b->p + at + ATTR_HEAD, data, size);
}

void nl_attr_str(struct nl_buf *b, uint16_t type, const char *text)
{
    nl_attr(b, type, text, strlen(text) + 1);
}

size_t nl_nest(struct nl_buf *b, uint16_t type)
{
    size_t at = b->n;

    nl_attr(b, type | NLA_F_NESTED, NULL, 0);
    return at;
}

void nl_nest_end(struct nl_buf *b, size_t nest)
{
    uint16_t size = (uint16_t)(b->n - nest);

    if (!b->cut)
        memcpy(b->p + nest, &size, sizeof(size)); /* nla_len comes first */
}

enum err nl_open(int protocol, uint32_t groups, int *fd, struct err_info *info)
{
    struct sockaddr_nl me = { .nl_family = AF_NETLINK, .nl_groups = groups };
    int one = 1;
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

    if (s < 0)
        return err_set(info, ERR_UNSUPPORTED, errno, "open a netlink socket (%d)",
                       protocol);
    /* An error then echoes only the header of our request, not all of it. */
    (void)setsockopt(s, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
    if (bind(s, (const struct sockaddr *)&me, sizeof(me)) < 0) {
        enum err e =
            err_set(info, ERR_UNSUPPORTED, errno, "bind a netlink socket (%d)", protocol);
        close(s);
        return e;
    }
    *fd = s;
    return ERR_OK;
}

/* Calls each() for the messages of one datagram; returns the first errno in it, or 0. */
static int scan(const uint8_t *p, size_t n, nl_each *each, void *ctx)
{
    int first = 0;

    while (n >= NLMSG_HDRLEN) {
        struct nlmsghdr h;
        memcpy(&h, p, sizeof(h));
        if (h.nlmsg_len < NLMSG_HDRLEN || h.nlmsg_len > n)
            break;
        if (h.nlmsg_type == NLMSG_ERROR && h.nlmsg_len >= NLMSG_HDRLEN + sizeof(int)) {
            int code;
            memcpy(&code, p + NLMSG_HDRLEN, sizeof(code));
            if (first == 0)
                first = -code;
        } else if (h.nlmsg_type != NLMSG_DONE && h.nlmsg_type != NLMSG_NOOP && each) {
            each(ctx, (const struct nlmsghdr *)(const void *)p);
        }
        size_t step = NLMSG_ALIGN(h.nlmsg_len);
        if (step >= n)
            break;
        p += step;
        n -= step;
    }
    return first;
}

/* The first errno the kernel sent; *lost is set if messages were dropped. */
static int drain(int fd, nl_each *each, void *ctx, bool *lost)
{
    _Alignas(8) uint8_t buf[NL_READ_BYTES];
    int first = 0;

    for (int i = 0; i < NL_READS_MAX; i++) {
        ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
        if (n < 0 && errno == ENOBUFS)
            *lost = true;
        else if (n < 0 && errno != EINTR)
            break;
        if (n <= 0)
            continue;
        int e = scan(buf, (size_t)n, each, ctx);
        if (first == 0)
            first = e;
    }
    return first;
}

int nl_exchange(int fd, const struct nl_buf *b, nl_each *each, void *ctx)
{
    struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    bool lost = false;
    ssize_t n;

    if (b->cut) {
        errno = EMSGSIZE;
        return -1;
    }
    (void)drain(fd, NULL, NULL, &lost); /* leftovers of an earlier exchange */
    do
        n = sendto(fd, b->p, b->n, 0, (const struct sockaddr *)&kernel, sizeof(kernel));
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -1;
    return drain(fd, each, ctx, &lost);
}

bool nl_receive(int fd, nl_each *each, void *ctx)
{
    bool lost = false;

    (void)drain(fd, each, ctx, &lost);
    return lost;
}
