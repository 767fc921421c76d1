/*
 * keeper_wire: what the node daemon and redoubt-keeper say to each other.
 *
 * Shape     A socketpair (SOCK_SEQPACKET); one packet is one message.  The keeper says HELLO
 *           once it has tried to connect; it gets no REQUEST before, and answers each by one
 *           ANSWER.  A packet is a fixed head in the machine's byte order, which begins with
 *           KEEPER_WIRE_MAGIC (it changes with the layout), then the bytes that the head
 *           counts.  Both ends run on one machine and come from one package.
 * Safety    Readers check every count against the packet's length; what they hand out
 *           borrows from the packet.
 * Threads   any; pure
 * Tests     tests/unit/test_keeper_wire.c
 */
#ifndef KEEPER_WIRE_H
#define KEEPER_WIRE_H

#include "port/share.h"

enum {
    KEEPER_WIRE_MAGIC = 0x524b0002,
    KEEPER_WIRE_MAX = 96 * 1024,
    KEEPER_DIALECT_BYTES = 8,
    /* File descriptors that the keeper is born with. */
    KEEPER_FD_SOCKET = 3,
    KEEPER_FD_GONE = 4,
};

/* The keeper's own news, with every message that it sends. */
struct keeper_news {
    char dialect[KEEPER_DIALECT_BYTES]; /* "3.1.1", "" before the first connection */
    uint32_t connections;               /* made so far */
};

/* Bytes written into buf, which has KEEPER_WIRE_MAX. */
size_t keeper_wire_request(char *buf, const struct share_request *rq);
MUST_USE bool keeper_wire_read_request(struct share_request *out, struct str packet);

/* HELLO is the answer with id 0: err says how the first connection went. */
size_t keeper_wire_answer(char *buf, const struct share_answer *a,
                          const struct keeper_news *news);
/* why: filled with the keeper's words; out->why points to it if out->err is set. */
MUST_USE bool keeper_wire_read_answer(struct share_answer *out, struct keeper_news *news,
                                      struct err_info *why, struct str packet);

#endif
