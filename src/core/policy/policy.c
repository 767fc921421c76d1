#include "core/policy/policy.h"

#include "wire/json.h"

const struct policy_setting policy_catalogue[POLICY_SETTINGS] = {
#define X(t, member, k, lo, hi, w, d, text)                                              \
    { .key = (k),                                                                        \
      .type = POLICY_##t,                                                                \
      .min = (lo),                                                                       \
      .max = (hi),                                                                       \
      .words = (w),                                                                      \
      .def = (d),                                                                        \
      .doc = (text),                                                                     \
      .offset = offsetof(struct policy, member) },
    POLICY_MAP(X)
#undef X
};

const char *policy_type_name(enum policy_type t)
{
    static const char *const names[] = {
        [POLICY_INT] = "int", [POLICY_BOOL] = "bool", [POLICY_CHOICE] = "choice",
        [POLICY_URL] = "url", [POLICY_URLS] = "urls", [POLICY_PATHS] = "paths",
    };

    return names[t];
}

/* --- what is wrong with a value ------------------------------------------------------ */

/* Which of "a|b|c" it is, from 0; -1 if it is none. */
static int word_index(const char *words, struct str word)
{
    struct str rest = str_of(words);

    for (int i = 0;; i++) {
        const char *bar = memchr(rest.p, '|', rest.n);
        size_t n = bar ? (size_t)(bar - rest.p) : rest.n;

        if (str_eq((struct str){ rest.p, n }, word))
            return i;
        if (!bar)
            return -1;
        rest = (struct str){ bar + 1, rest.n - n - 1 };
    }
}

static struct str word_at(const char *words, uint32_t index)
{
    struct str rest = str_of(words);

    for (uint32_t i = 0;; i++) {
        const char *bar = memchr(rest.p, '|', rest.n);
        size_t n = bar ? (size_t)(bar - rest.p) : rest.n;

        if (i == index || !bar)
            return (struct str){ rest.p, n };
        rest = (struct str){ bar + 1, rest.n - n - 1 };
    }
}

/* Is there a ".." between slashes? */
static bool climbs(struct str path)
{
    for (size_t i = 0; i + 2 < path.n; i++)
        if (memcmp(path.p + i, "/..", 3) == 0 &&
            (i + 3 == path.n || path.p[i + 3] == '/'))
            return true;
    return false;
}

static bool is_url(struct str s)
{
    size_t scheme = str_starts(s, STR("http://"))    ? 7
                    : str_starts(s, STR("https://")) ? 8
                                                     : 0;

    return scheme > 0 && s.n > scheme && s.p[scheme] != '/' &&
           memchr(s.p, ' ', s.n) == NULL;
}

/* A path or an address.  They end up in configuration files of the engine. */
static void check_item(enum policy_type t, const struct json_member *m, struct text *why)
{
    if (m->kind != JSON_STRING || m->raw.n < 1 || m->raw.n > POLICY_ITEM_MAX) {
        text_add(why, "must be a text of 1 to %d bytes", POLICY_ITEM_MAX);
        return;
    }
    if (m->has_escape || memchr(m->raw.p, 0x7f, m->raw.n))
        text_add(why, "may not contain control characters, \" or \\");
    else if (t == POLICY_PATHS && (m->raw.p[0] != '/' || climbs(m->raw)))
        text_add(why, "must be an absolute path without \"..\"");
    else if (t != POLICY_PATHS && !is_url(m->raw))
        text_add(why, "must begin with http:// or https:// and have no blanks");
}

static void check_list(const struct policy_setting *s, const struct json_member *m,
                       struct text *why)
{
    struct json_walk w;
    struct json_member item;
    uint32_t n = 0;

    if (m->kind != JSON_ARRAY) {
        text_add(why, "must be a list of texts");
        return;
    }
    for (json_walk(&w, m); why->n == 0 && json_next(&w, &item); n++) {
        if (n == s->max)
            text_add(why, "may have at most %u entries", s->max);
        else
            check_item(s->type, &item, why);
    }
}

static void check_choice(const struct policy_setting *s, const struct json_member *m,
                         struct text *why)
{
    if (m->kind == JSON_STRING && word_index(s->words, m->raw) >= 0)
        return;
    text_add(why, "must be one of: ");
    for (uint32_t i = 0; i <= s->max; i++) {
        text_add(why, "%s", i ? ", " : "");
        text_bytes(why, word_at(s->words, i));
    }
}

/* Leaves why empty if the value is good. */
static void check_value(const struct policy_setting *s, const struct json_member *m,
                        struct text *why)
{
    uint64_t n = 0;

    switch (s->type) {
    case POLICY_INT:
        if (m->kind != JSON_NUMBER || !str_u64(m->raw, s->max, &n) || n < s->min)
            text_add(why, "must be a whole number from %u to %u", s->min, s->max);
        break;
    case POLICY_BOOL:
        if (m->kind != JSON_TRUE && m->kind != JSON_FALSE)
            text_add(why, "must be true or false");
        break;
    case POLICY_CHOICE: check_choice(s, m, why); break;
    case POLICY_URL:
        if (m->kind != JSON_STRING || (m->raw.n > 0 && !str_is(m->raw, "cluster")))
            check_item(s->type, m, why);
        break;
    case POLICY_URLS:
    case POLICY_PATHS: check_list(s, m, why); break;
    }
}

/* --- documents ----------------------------------------------------------------------- */

static void add_error(struct policy_errors *errors, struct str path, const char *why)
{
    if (!errors)
        return;
    if (errors->count == POLICY_ERRORS_MAX) {
        errors->unsaid++;
        return;
    }
    struct policy_error *e = &errors->at[errors->count++];
    struct text t;

    if (path.n > POLICY_KEY_MAX) /* cut, but not within a character */
        for (path.n = POLICY_KEY_MAX;
             path.n > 0 && ((unsigned char)path.p[path.n] & 0xc0) == 0x80;)
            path.n--;
    text_init(&t, e->path, sizeof(e->path));
    text_bytes(&t, path);
    text_init(&t, e->why, sizeof(e->why));
    text_add(&t, "%s", why);
}

static int setting_index(struct str key)
{
    for (int i = 0; i < POLICY_SETTINGS; i++)
        if (str_is(key, policy_catalogue[i].key))
            return i;
    return -1;
}

/* Finds value in {"value": value, "locked": bool}; leaves why empty if all is well. */
static void unwrap(const struct json_member *m, struct json_member *value,
                   struct text *why)
{
    struct json_walk w;
    struct json_member in;
    uint32_t values = 0, locks = 0, others = 0;

    for (json_walk(&w, m); json_next(&w, &in);) {
        if (str_is(in.key, "value")) {
            *value = in;
            values++;
        } else if (str_is(in.key, "locked")) {
            if (in.kind != JSON_TRUE && in.kind != JSON_FALSE) {
                text_add(why, "\"locked\" must be true or false");
                return;
            }
            locks++;
        } else {
            others++;
        }
    }
    if (values == 0)
        text_add(why, "has no \"value\"");
    else if (others > 0 || values > 1 || locks > 1)
        text_add(why, "may only have \"value\" and \"locked\"");
}

/* What a document is read for. */
struct reading {
    bool wrapped; /* settings of a group: keys must be known, values may be wrapped */
    bool given[POLICY_SETTINGS];
    uint32_t wrong;
    struct policy_errors *errors;
};

static void read_member(struct reading *r, const struct json_member *m)
{
    struct json_member value = *m;
    char words[sizeof(((struct policy_error *)0)->why)];
    struct text why;
    int i = setting_index(m->key);

    text_init(&why, words, sizeof(words));
    if (i < 0) {
        if (r->wrapped)
            text_add(&why, "there is no such setting");
    } else if (r->given[i]) {
        text_add(&why, "is there twice");
    } else {
        r->given[i] = true;
        if (r->wrapped && m->kind == JSON_OBJECT)
            unwrap(m, &value, &why);
        if (why.n == 0)
            check_value(&policy_catalogue[i], &value, &why);
    }
    if (why.n > 0) {
        r->wrong++;
        add_error(r->errors, m->key, words);
    }
}

/* all: the document, well-formed. */
static enum err read_document(struct reading *r, struct str json, struct json_member *all)
{
    struct json_walk w;
    struct json_member m;

    if (r->errors)
        r->errors->count = r->errors->unsaid = 0;
    if (json.n > POLICY_DOCUMENT_MAX) {
        add_error(r->errors, STR(""), "is too long");
        return ERR_INVALID;
    }
    if (json_value(all, json) != ERR_OK || all->kind != JSON_OBJECT) {
        add_error(r->errors, STR(""), "must be an object of settings");
        return ERR_INVALID;
    }
    for (json_walk(&w, all); json_next(&w, &m);)
        read_member(r, &m);
    return r->wrong > 0 ? ERR_INVALID : ERR_OK;
}

enum err policy_validate_settings(struct str json, struct policy_errors *errors)
{
    struct reading r = { .wrapped = true, .errors = errors };
    struct json_member all;

    return read_document(&r, json, &all);
}

/* --- values in and out of the struct --------------------------------------------------- */

static void keep_list(struct policy_list *list, const struct json_member *m)
{
    struct json_walk w;
    struct json_member item;

    list->count = 0;
    for (json_walk(&w, m); json_next(&w, &item);)
        CHECK(str_copy(list->at[list->count++], sizeof(list->at[0]), item.raw));
}

/* m was checked. */
static void keep_value(struct policy *out, const struct policy_setting *s,
                       const struct json_member *m)
{
    unsigned char *at = (unsigned char *)out + s->offset;
    uint64_t n = 0;

    switch (s->type) {
    case POLICY_INT:
        CHECK(str_u64(m->raw, s->max, &n));
        *(uint32_t *)(void *)at = (uint32_t)n;
        break;
    case POLICY_BOOL: *(bool *)(void *)at = m->kind == JSON_TRUE; break;
    case POLICY_CHOICE:
        *(uint32_t *)(void *)at = (uint32_t)word_index(s->words, m->raw);
        break;
    case POLICY_URL: CHECK(str_copy((char *)at, POLICY_ITEM_MAX + 1, m->raw)); break;
    case POLICY_URLS:
    case POLICY_PATHS: keep_list((struct policy_list *)(void *)at, m); break;
    }
}

void policy_defaults(struct policy *out)
{
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        struct json_member m;

        CHECK(json_value(&m, str_of(policy_catalogue[i].def)) == ERR_OK);
        keep_value(out, &policy_catalogue[i], &m);
    }
}

enum err policy_parse(struct policy *out, struct str json, struct policy_errors *errors)
{
    struct reading r = { .errors = errors };
    struct json_member all, m;
    struct json_walk w;
    enum err e = read_document(&r, json, &all);

    if (e != ERR_OK)
        return e;
    policy_defaults(out);
    for (json_walk(&w, &all); json_next(&w, &m);) {
        int i = setting_index(m.key);

        if (i >= 0)
            keep_value(out, &policy_catalogue[i], &m);
    }
    return ERR_OK;
}

static void add_list(struct text *out, const struct policy_list *list)
{
    text_add(out, "[");
    for (uint32_t i = 0; i < list->count; i++)
        text_add(out, "%s\"%s\"", i ? ", " : "", list->at[i]);
    text_add(out, "]");
}

static void add_value(struct text *out, const struct policy *p,
                      const struct policy_setting *s)
{
    const void *at = (const unsigned char *)p + s->offset;

    switch (s->type) {
    case POLICY_INT: text_add(out, "%u", *(const uint32_t *)at); break;
    case POLICY_BOOL: text_add(out, "%s", *(const bool *)at ? "true" : "false"); break;
    case POLICY_CHOICE:
        text_add(out, "\"");
        text_bytes(out, word_at(s->words, *(const uint32_t *)at));
        text_add(out, "\"");
        break;
    case POLICY_URL: text_add(out, "\"%s\"", (const char *)at); break;
    case POLICY_URLS:
    case POLICY_PATHS: add_list(out, at); break;
    }
}

void policy_document(const struct policy *p, struct text *out)
{
    text_add(out, "{");
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        text_add(out, "%s\"%s\":", i ? "," : "", policy_catalogue[i].key);
        add_value(out, p, &policy_catalogue[i]);
    }
    text_add(out, "}");
}
