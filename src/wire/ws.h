/*
 * ws: WebSocket framing, for both ends.
 *
 * Purpose   Turns received bytes into whole messages and control frames, and writes frame
 *           headers.  Text messages are refused: OpAMP is binary.
 * Shape     struct ws_in works on one buffer of the caller: fragments are put together at
 *           its start, unread bytes follow.  A message is at most message_max bytes; the
 *           buffer must hold WS_BUFFER(message_max).
 * Owns      Nothing.  What an event points at lies in the buffer and lives until the next
 *           call of ws_pull or ws_space.
 * Errors    WS_FAIL carries the close code to send (RFC 6455 section 7.4.1); after it the
 *           connection is only to be closed.
 * Threads   any; pure
 * Source    RFC 6455 sections 5 and 7; no extension is offered, so reserved bits are errors
 * Tests     tests/unit/test_ws.c, tests/fuzz/fuzz_ws.c
 */
#ifndef WIRE_WS_H
#define WIRE_WS_H

#include "base/str.h"

enum { WS_HEADER_MAX = 14, WS_CONTROL_MAX = 125 };
/* One whole message, and one frame behind it. */
#define WS_BUFFER(message_max) ((message_max) + 2 * WS_HEADER_MAX + WS_CONTROL_MAX)

enum ws_opcode {
    WS_OP_CONTINUE = 0x0,
    WS_OP_TEXT = 0x1,
    WS_OP_BINARY = 0x2,
    WS_OP_CLOSE = 0x8,
    WS_OP_PING = 0x9,
    WS_OP_PONG = 0xa
};

enum ws_close_code {
    WS_CLOSE_NORMAL = 1000,
    WS_CLOSE_AWAY = 1001,
    WS_CLOSE_PROTOCOL = 1002,
    WS_CLOSE_UNSUPPORTED = 1003,
    WS_CLOSE_NONE = 1005, /* never on the wire: the peer gave no code */
    WS_CLOSE_POLICY = 1008,
    WS_CLOSE_TOO_BIG = 1009,
    WS_CLOSE_INTERNAL = 1011,
    WS_CLOSE_TRY_LATER = 1013
};

enum ws_kind { WS_MORE, WS_MESSAGE, WS_PING, WS_PONG, WS_CLOSE, WS_FAIL };

struct ws_event {
    enum ws_kind kind;
    struct str data;    /* MESSAGE, PING, PONG, CLOSE (the peer's words): borrowed */
    uint16_t code;      /* CLOSE: the peer's; FAIL: ours to send */
    const char *reason; /* FAIL: what was wrong */
};

struct ws_in {
    uint8_t *buf;
    size_t size, message_max;
    size_t n;        /* bytes in buf */
    size_t at;       /* first unread byte */
    size_t whole;    /* bytes of the message put together so far */
    bool fragmented; /* a message is under way */
    bool from_client;
};

void ws_in_init(struct ws_in *w, uint8_t *buf, size_t size, size_t message_max,
                bool from_client);

/* Where received bytes go: returns the room (never 0 after ws_pull said WS_MORE). */
size_t ws_space(struct ws_in *w, uint8_t **out);
/* n bytes were put there. */
void ws_filled(struct ws_in *w, size_t n);
void ws_pull(struct ws_in *w, struct ws_event *out);

/*
 * ws_frame - header of one unfragmented frame of n bytes; returns its length.
 *            mask: 4 bytes for a client (apply ws_mask to the payload), NULL for a server.
 */
size_t ws_frame(uint8_t out[WS_HEADER_MAX], enum ws_opcode op, size_t n,
                const uint8_t *mask);
void ws_mask(uint8_t *p, size_t n, const uint8_t mask[4]);

#endif
