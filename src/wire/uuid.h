/*
 * uuid: 16 bytes and their text form (RFC 9562), and checked UTF-8 text (RFC 3629).
 *
 * Threads   any; pure
 */
#ifndef WIRE_UUID_H
#define WIRE_UUID_H

#include "base/str.h"

enum { UUID_BYTES = 16, UUID_TEXT = 37 };

struct uuid {
    uint8_t bytes[UUID_BYTES];
};

void uuid_format(char out[UUID_TEXT], const struct uuid *u);
/* 8-4-4-4-12 hex digits of either case; false leaves *out untouched. */
MUST_USE bool uuid_parse(struct uuid *out, struct str s);
bool uuid_eq(const struct uuid *a, const struct uuid *b);

/* UUIDv7 from a wall clock in ms and 10 random bytes. */
void uuid_make(struct uuid *out, uint64_t unix_ms, const uint8_t random[10]);

/* Well-formed UTF-8 without NUL: what PostgreSQL takes as text. */
bool text_is_utf8(struct str s);

#endif
