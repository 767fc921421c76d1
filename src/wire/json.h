/*
 * json: reads small JSON objects in place, bounded and without allocation.
 *
 * Purpose   For records that the lease depends on: nothing here can fail but by bad input.
 *           Writing needs no helper: records hold only names, numbers and hex.
 * Shape     json_load() checks the whole text once: one object, depth <= JSON_DEPTH_MAX,
 *           no key twice, nothing behind it but blanks; it lists the top-level members.
 *           A string's text is given as it stands, escapes not resolved (has_escape says
 *           so).
 * Owns      Nothing; members point into the text.
 * Threads   any; pure
 * Source    RFC 8259
 */
#ifndef WIRE_JSON_H
#define WIRE_JSON_H

#include "base/err.h"
#include "base/str.h"

enum { JSON_DEPTH_MAX = 8, JSON_MEMBERS_MAX = 32 };

enum json_kind {
    JSON_STRING,
    JSON_NUMBER,
    JSON_TRUE,
    JSON_FALSE,
    JSON_NULL,
    JSON_OBJECT,
    JSON_ARRAY,
};

struct json_member {
    struct str key;
    enum json_kind kind;
    struct str raw; /* string: between the quotes; others: the whole value */
    bool has_escape;
};

/* All members of one object, in order. */
struct json_object {
    uint32_t count;
    struct json_member at[JSON_MEMBERS_MAX];
};

/*
 * json_load - check the whole text and list its members.
 *
 * ERR_CORRUPT unless text is one well-formed object without a key twice; ERR_LIMIT if it
 * has more than JSON_MEMBERS_MAX members.
 */
MUST_USE enum err json_load(struct json_object *out, struct str text);

/* Check a whole text that is one value of any kind, however many members it has. */
MUST_USE enum err json_value(struct json_member *out, struct str text);

/* What is left of an object or array to walk through. */
struct json_walk {
    const char *p, *end;
    bool object;
};

/* all: an object or array out of json_value(), json_load() or json_next(). */
void json_walk(struct json_walk *w, const struct json_member *all);
/* The next member or element (key is empty); false behind the last.  Keys may repeat. */
bool json_next(struct json_walk *w, struct json_member *out);

/* The member of that key, or NULL. */
const struct json_member *json_find(const struct json_object *o, const char *key);

/*
 * Can PostgreSQL keep this JSON text as jsonb?  UTF-8, no \u0000, surrogates in pairs,
 * and no number with an exponent of more than three digits.
 */
bool json_storable(struct str text);

MUST_USE bool json_get_u64(const struct json_object *o, const char *key, uint64_t max,
                           uint64_t *out);
MUST_USE bool json_get_bool(const struct json_object *o, const char *key, bool *out);
/* A string without escapes that fits into dst with its NUL. */
MUST_USE bool json_get_text(const struct json_object *o, const char *key, char *dst,
                            size_t size);

#endif
