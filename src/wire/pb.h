/*
 * pb: protobuf fields, read and written one by one, within bounds.
 *
 * Purpose   Our decoders walk the fields they know and skip the others.  There is no
 *           recursion: a nested message is a view that its own decoder opens, or does not,
 *           so depth is bounded by the code and not by the sender.
 * Shape     struct pb is a cursor over borrowed bytes; struct pb_out writes into a
 *           caller's buffer.  At most PB_FIELDS_MAX fields a message level.
 * Errors    A cursor or a writer that went wrong stays wrong: test `bad` or `full` once,
 *           at the end.
 * Threads   any; pure
 * Source    protobuf encoding guide; groups (wire types 3 and 4) are refused
 */
#ifndef WIRE_PB_H
#define WIRE_PB_H

#include "base/str.h"

enum { PB_FIELDS_MAX = 2048 };

enum pb_wire { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct pb {
    const uint8_t *p;
    size_t n, at;
    uint32_t fields; /* read so far */
    bool bad;        /* malformed, or a field of an unexpected kind */
    bool over;       /* more than PB_FIELDS_MAX fields; bad is set too */
};

struct pb_field {
    uint32_t number;
    enum pb_wire wire;
    uint64_t value;   /* PB_VARINT, PB_FIXED64, PB_FIXED32 */
    struct str bytes; /* PB_BYTES: borrowed from the cursor's bytes */
};

void pb_init(struct pb *r, struct str bytes);

/* The next field; false at the end or when the bytes are bad. */
bool pb_next(struct pb *r, struct pb_field *out);

/* The field's content if it is of that kind; else r->bad, and 0 or an empty view. */
uint64_t pb_varint(struct pb *r, const struct pb_field *f);
uint64_t pb_fixed64(struct pb *r, const struct pb_field *f);
struct str pb_bytes(struct pb *r, const struct pb_field *f);

/* A bare varint at the start of bytes: its length, 0 if there is none. */
size_t pb_varint_at(struct str bytes, uint64_t *out);

struct pb_out {
    uint8_t *p;
    size_t size, n;
    bool full; /* something did not fit: the bytes are not to be used */
};

void pb_out_init(struct pb_out *w, uint8_t *buf, size_t size);
void pb_put_varint(struct pb_out *w, uint32_t number, uint64_t v);
void pb_put_fixed64(struct pb_out *w, uint32_t number, uint64_t v);
void pb_put_bytes(struct pb_out *w, uint32_t number, struct str bytes);
/* Nested message: open, put its fields, close with what open returned. */
size_t pb_open(struct pb_out *w, uint32_t number);
void pb_close(struct pb_out *w, size_t mark);

#endif
