#include "wire/json.h"

#include "wire/uuid.h"

struct scan {
    const char *p, *end;
};

static void blanks(struct scan *s)
{
    while (s->p < s->end &&
           (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
        s->p++;
}

static bool literal(struct scan *s, struct str word)
{
    if ((size_t)(s->end - s->p) < word.n || memcmp(s->p, word.p, word.n) != 0)
        return false;
    s->p += word.n;
    return true;
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool escape(struct scan *s)
{
    if (s->p == s->end || *s->p == '\0' || !strchr("\"\\/bfnrtu", *s->p))
        return false;
    if (*s->p++ != 'u')
        return true;
    for (int i = 0; i < 4; i++)
        if (s->p == s->end || !is_hex(*s->p++))
            return false;
    return true;
}

/* At the opening quote; leaves p behind the closing one. */
static bool string(struct scan *s, struct str *text, bool *has_escape)
{
    if (s->p == s->end || *s->p != '"')
        return false;
    const char *from = ++s->p;

    *has_escape = false;
    while (s->p < s->end && *s->p != '"') {
        unsigned char c = (unsigned char)*s->p++;

        if (c < 0x20)
            return false;
        if (c == '\\') {
            *has_escape = true;
            if (!escape(s))
                return false;
        }
    }
    if (s->p == s->end)
        return false;
    *text = (struct str){ from, (size_t)(s->p - from) };
    s->p++;
    return true;
}

static bool digits(struct scan *s)
{
    const char *from = s->p;

    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return s->p > from;
}

static bool number(struct scan *s)
{
    if (s->p < s->end && *s->p == '-')
        s->p++;
    const char *first = s->p;

    if (!digits(s) || (*first == '0' && s->p - first > 1))
        return false;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!digits(s))
            return false;
    }
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-'))
            s->p++;
        return digits(s);
    }
    return true;
}

static bool scalar(struct scan *s, struct json_member *m)
{
    const char *from = s->p;
    bool ok;

    if (s->p == s->end)
        return false;
    switch (*s->p) {
    case '"': m->kind = JSON_STRING; return string(s, &m->raw, &m->has_escape);
    case 't':
        m->kind = JSON_TRUE;
        ok = literal(s, STR("true"));
        break;
    case 'f':
        m->kind = JSON_FALSE;
        ok = literal(s, STR("false"));
        break;
    case 'n':
        m->kind = JSON_NULL;
        ok = literal(s, STR("null"));
        break;
    default:
        m->kind = JSON_NUMBER;
        ok = number(s);
        break;
    }
    m->raw = (struct str){ from, (size_t)(s->p - from) };
    return ok;
}

static bool key_and_colon(struct scan *s, struct json_member *m)
{
    bool escaped;

    blanks(s);
    if (!string(s, &m->key, &escaped) || escaped)
        return false;
    blanks(s);
    if (s->p == s->end || *s->p++ != ':')
        return false;
    blanks(s);
    return true;
}

/* One opened container on the way down. */
struct level {
    bool object, first;
};

/*
 * A value of any kind.  No recursion: the levels are an array, so depth is bounded by its
 * length and a hostile text costs no stack.
 */
static bool value(struct scan *s, struct json_member *m)
{
    struct level at[JSON_DEPTH_MAX];
    uint32_t depth = 0;
    const char *from = s->p;
    struct json_member inner = { .kind = JSON_NULL };

    for (;;) {
        if (s->p < s->end && (*s->p == '{' || *s->p == '[')) {
            if (depth == JSON_DEPTH_MAX)
                return false;
            at[depth++] = (struct level){ .object = *s->p == '{', .first = true };
            s->p++;
        } else if (!scalar(s, depth ? &inner : m)) {
            return false;
        } else if (depth == 0) {
            return true;
        }
        /* Behind a value or an opening bracket: close levels, or go to the next value. */
        for (;;) {
            struct level *l = &at[depth - 1];

            blanks(s);
            if (s->p == s->end)
                return false;
            if (*s->p == (l->object ? '}' : ']')) {
                s->p++;
                bool object = l->object;
                if (--depth == 0) {
                    m->kind = object ? JSON_OBJECT : JSON_ARRAY;
                    m->raw = (struct str){ from, (size_t)(s->p - from) };
                    return true;
                }
                continue;
            }
            if (!l->first && *s->p++ != ',')
                return false;
            l->first = false;
            if (l->object && !key_and_colon(s, &inner))
                return false;
            blanks(s);
            break;
        }
    }
}

static const struct json_member *json_find_str(const struct json_object *o,
                                               struct str key)
{
    for (uint32_t i = 0; i < o->count; i++)
        if (str_eq(o->at[i].key, key))
            return &o->at[i];
    return NULL;
}

/* Lists the members of an object that value() has found well-formed. */
static enum err list(struct json_object *out, struct str inside)
{
    struct scan s = { inside.p, inside.p + inside.n };

    out->count = 0;
    for (blanks(&s); *s.p != '}'; blanks(&s)) {
        struct json_member m = { .has_escape = false };

        if (out->count == JSON_MEMBERS_MAX)
            return ERR_LIMIT;
        if (out->count > 0)
            s.p++; /* the comma */
        if (!key_and_colon(&s, &m) || !value(&s, &m) || json_find_str(out, m.key) != NULL)
            return ERR_CORRUPT;
        out->at[out->count++] = m;
    }
    return ERR_OK;
}

enum err json_value(struct json_member *out, struct str text)
{
    struct scan s = { text.p, text.p + text.n };
    struct json_member all = { .kind = JSON_NULL };

    blanks(&s);
    if (!value(&s, &all))
        return ERR_CORRUPT;
    blanks(&s);
    if (s.p != s.end)
        return ERR_CORRUPT;
    *out = all;
    return ERR_OK;
}

enum err json_load(struct json_object *out, struct str text)
{
    struct json_member all;

    if (json_value(&all, text) != ERR_OK || all.kind != JSON_OBJECT)
        return ERR_CORRUPT;
    return list(out, (struct str){ all.raw.p + 1, all.raw.n - 1 });
}

void json_walk(struct json_walk *w, const struct json_member *all)
{
    CHECK(all->kind == JSON_OBJECT || all->kind == JSON_ARRAY);
    *w = (struct json_walk){ all->raw.p + 1, all->raw.p + all->raw.n - 1,
                             all->kind == JSON_OBJECT };
}

bool json_next(struct json_walk *w, struct json_member *out)
{
    struct scan s = { w->p, w->end };
    struct json_member m = { .kind = JSON_NULL };

    blanks(&s);
    if (s.p < s.end && *s.p == ',')
        s.p++;
    blanks(&s);
    if (s.p == s.end)
        return false;
    CHECK(!w->object || key_and_colon(&s, &m));
    CHECK(value(&s, &m));
    w->p = s.p;
    *out = m;
    return true;
}

const struct json_member *json_find(const struct json_object *o, const char *key)
{
    return json_find_str(o, str_of(key));
}

/* Behind "\u": the code unit of four digits; -1 if they are none. */
static int32_t code_unit(const char *p, const char *end)
{
    uint8_t b[2];

    if (end - p < 4 || !hex_decode(b, sizeof(b), (struct str){ p, 4 }))
        return -1;
    return b[0] << 8 | b[1];
}

/* At a backslash; NULL if the escape is one that jsonb refuses, else what follows it. */
static const char *escape_storable(const char *p, const char *end)
{
    if (end - p < 2)
        return NULL;
    if (p[1] != 'u')
        return p + 2;
    int32_t u = code_unit(p + 2, end);

    if (u <= 0 || (u >= 0xdc00 && u <= 0xdfff))
        return NULL;
    if (u < 0xd800 || u > 0xdbff)
        return p + 6;
    if (end - p < 12 || p[6] != '\\' || p[7] != 'u')
        return NULL;
    u = code_unit(p + 8, end);
    return u >= 0xdc00 && u <= 0xdfff ? p + 12 : NULL;
}

/* At a digit or a sign outside of a string: behind the number, NULL if it is too big. */
static const char *number_storable(const char *p, const char *end)
{
    struct scan s = { p, end };
    const char *exponent = NULL;

    if (!number(&s))
        return NULL;
    for (const char *at = p; at < s.p; at++)
        if (*at == 'e' || *at == 'E')
            exponent = at + 1;
    if (exponent && (*exponent == '+' || *exponent == '-'))
        exponent++;
    return exponent && s.p - exponent > 3 ? NULL : s.p;
}

bool json_storable(struct str text)
{
    const char *p = text.p, *end = text.p + text.n;
    bool inside = false; /* a string */

    if (!text_is_utf8(text))
        return false;
    while (p && p < end) {
        if (*p == '"')
            inside = !inside;
        if (inside && *p == '\\')
            p = escape_storable(p, end);
        else if (!inside && (*p == '-' || (*p >= '0' && *p <= '9')))
            p = number_storable(p, end);
        else
            p++;
    }
    return p != NULL;
}

bool json_get_u64(const struct json_object *o, const char *key, uint64_t max,
                  uint64_t *out)
{
    const struct json_member *m = json_find(o, key);

    return m && m->kind == JSON_NUMBER && str_u64(m->raw, max, out);
}

bool json_get_bool(const struct json_object *o, const char *key, bool *out)
{
    const struct json_member *m = json_find(o, key);

    if (!m || (m->kind != JSON_TRUE && m->kind != JSON_FALSE))
        return false;
    *out = m->kind == JSON_TRUE;
    return true;
}

bool json_get_text(const struct json_object *o, const char *key, char *dst, size_t size)
{
    const struct json_member *m = json_find(o, key);

    return m && m->kind == JSON_STRING && !m->has_escape && m->raw.n < size &&
           str_copy(dst, size, m->raw);
}
