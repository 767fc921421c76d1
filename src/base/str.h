/*
 * str: views of bytes, and bounded writing of text.
 *
 * Shape     struct str points at n bytes, not NUL-terminated; it owns nothing and lives
 *           as long as what it points into.
 *           struct text writes into a caller's buffer, always NUL-terminated; when the
 *           buffer is full it sets `cut` and drops the rest.
 * Threads   any; pure
 */
#ifndef BASE_STR_H
#define BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/check.h"

struct str {
    const char *p;
    size_t n;
};

#define STR(literal) ((struct str){ "" literal, sizeof(literal) - 1 })

struct str str_of(const char *cstr);
bool str_eq(struct str a, struct str b);
bool str_is(struct str a, const char *cstr);
bool str_starts(struct str a, struct str prefix);

/* Copies s into dst as a C string; false (dst is "") if it holds a NUL or is too long. */
MUST_USE bool str_copy(char *dst, size_t size, struct str s);

/* Decimal without sign, no leading blanks, at most max; false leaves *out untouched. */
MUST_USE bool str_u64(struct str s, uint64_t max, uint64_t *out);

/* Lower-case hex: dst gets 2 * n characters and a NUL. */
void hex_encode(char *dst, const uint8_t *src, size_t n);
/* Exactly 2 * n hex digits of either case; false leaves dst in an unspecified state. */
MUST_USE bool hex_decode(uint8_t *dst, size_t n, struct str hex);

struct text {
    char *p;
    size_t size, n;
    bool cut;
};

void text_init(struct text *t, char *buf, size_t size);
void text_add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void text_bytes(struct text *t, struct str s);

#endif
