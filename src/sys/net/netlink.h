/*
 * netlink: build netlink messages in a caller's buffer, and exchange them at once.
 *
 * Shape     struct nl_buf holds whole messages one after the other; `cut` is set when
 *           the buffer was too small, and nl_exchange() then refuses to send.
 * Contract  The kernel handles a netlink request inside sendto(), so nl_exchange() needs
 *           no wait: it sends, then reads the answers that are already there.
 * Threads   loop thread only
 * Source    netlink(7), rtnetlink(7), linux/netfilter/nfnetlink.h
 */
#ifndef SYS_NET_NETLINK_H
#define SYS_NET_NETLINK_H

#include <stdint.h>
#include <linux/netlink.h>

#include "base/err.h"

enum { NL_BUF_BYTES = 2048 };

struct nl_buf {
    size_t n;
    bool cut;
    _Alignas(8) uint8_t p[NL_BUF_BYTES];
};

/* A message begins; its place is returned for nl_end().  head is the fixed part. */
size_t nl_begin(struct nl_buf *b, uint16_t type, uint16_t flags, uint32_t seq,
                const void *head, size_t head_size);
void nl_end(struct nl_buf *b, size_t message);

void nl_attr(struct nl_buf *b, uint16_t type, const void *data, size_t size);
void nl_attr_str(struct nl_buf *b, uint16_t type, const char *text);
size_t nl_nest(struct nl_buf *b, uint16_t type);
void nl_nest_end(struct nl_buf *b, size_t nest);

/* A non-blocking socket of this protocol that listens to these groups (0: none). */
MUST_USE enum err nl_open(int protocol, uint32_t groups, int *fd, struct err_info *info);

/*
 * nl_exchange - send b and report the first error the kernel answered with, as errno;
 *               0 if it answered none.  -1: the exchange itself failed (see errno).
 *               each() gets every message of the answer that is not an error or the end.
 */
typedef void nl_each(void *ctx, const struct nlmsghdr *h);
int nl_exchange(int fd, const struct nl_buf *b, nl_each *each, void *ctx);

/*
 * nl_receive - read what has arrived on a listening socket, without waiting.
 *              True if messages were lost (the caller must look at the whole state).
 */
bool nl_receive(int fd, nl_each *each, void *ctx);

#endif
