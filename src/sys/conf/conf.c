#include "sys/conf/conf_table.h"

#include <stdarg.h>

/*
 * The text of a file into a struct.
 *
 * The syntax is the plain part of INI: [section] or [section name], `key = value`, blank
 * lines, and comments on lines of their own that begin with # or ;.  A value runs to the
 * end of its line, so it may hold # and ;.  We read it ourselves because an error names
 * its column, a line may be long, and an empty or repeated section is seen.
 */
struct parse {
    const struct conf_schema *schema;
    unsigned char *conf; /* the file's struct */
    struct conf_errors *errors;
    struct conf_lines lines;
    uint32_t line;
    uint32_t section_seen[CONF_SECTIONS_MAX]; /* the line, 0: not yet */
    uint32_t named_line[CONF_SERVICES_MAX];
    uint32_t named_count;
    const struct conf_section *section; /* NULL: none yet, or an unknown one */
    unsigned char *at;                  /* the section's struct */
    uint32_t *key_lines;
    bool *key_refused;
    bool before_first; /* no section has begun */
};

void conf_error_add(struct conf_errors *e, uint32_t line, uint32_t column,
                    const char *fmt, ...)
{
    va_list ap;

    if (e->count == CONF_ERRORS_MAX) {
        e->more = true;
        return;
    }
    struct conf_error *err = &e->at[e->count++];

    err->line = line;
    err->column = column;
    va_start(ap, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, ap);
    va_end(ap);
}

/* The only named section is [service NAME]. */
static const size_t named_size = sizeof(struct conf_service);
static_assert(offsetof(struct conf_service, name) == 0, "the name comes first");

uint32_t conf_line_of(const struct conf_schema *schema, const struct conf_lines *lines,
                      const char *section, uint32_t instance, const char *key)
{
    for (uint32_t s = 0; s < schema->section_count; s++) {
        const struct conf_section *sec = &schema->sections[s];

        for (uint32_t k = 0; k < sec->key_count && strcmp(sec->name, section) == 0; k++)
            if (strcmp(sec->keys[k].key, key) == 0)
                return lines->at[sec->named ? CONF_SECTIONS_MAX + instance : s][k];
    }
    return 0;
}

bool conf_refused(const struct conf_schema *schema, const struct conf_lines *lines,
                  const char *section, const char *key)
{
    for (uint32_t s = 0; s < schema->section_count; s++) {
        const struct conf_section *sec = &schema->sections[s];

        for (uint32_t k = 0; k < sec->key_count && strcmp(sec->name, section) == 0; k++)
            if (strcmp(sec->keys[k].key, key) == 0)
                return lines->refused[s][k];
    }
    return false;
}

static struct str trim(struct str s)
{
    while (s.n > 0 && (*s.p == ' ' || *s.p == '\t'))
        s = (struct str){ s.p + 1, s.n - 1 };
    while (s.n > 0 && strchr(" \t\r", s.p[s.n - 1]) && s.p[s.n - 1])
        s.n--;
    return s;
}

static uint32_t column_of(struct str line, struct str part)
{
    return (uint32_t)(part.p - line.p) + 1;
}

static int shown(struct str s)
{
    return (int)(s.n < 60 ? s.n : 60);
}

/* [service NAME]: the next free one of the array. */
static void begin_named(struct parse *p, const struct conf_section *sec, struct str name,
                        uint32_t column)
{
    static const struct conf_key name_key = { .type = CONF_T_NAME, .size = CONF_NAME };
    unsigned char *first = p->conf + sec->offset;
    char wrong[160];
    struct text t;

    if (p->named_count == CONF_SERVICES_MAX) {
        conf_error_add(p->errors, p->line, column, "more than %u sections [%s NAME]",
                       (unsigned)CONF_SERVICES_MAX, sec->name);
        return;
    }
    unsigned char *at = first + (size_t)p->named_count * named_size;

    text_init(&t, wrong, sizeof(wrong));
    if (!conf_value_set(&name_key, at, name, &t)) {
        conf_error_add(p->errors, p->line, column, "the name of a [%s NAME] %s",
                       sec->name, wrong);
        return;
    }
    for (uint32_t i = 0; i < p->named_count; i++)
        if (memcmp(first + (size_t)i * named_size, at, CONF_NAME) == 0) {
            conf_error_add(p->errors, p->line, column,
                           "[%s %.*s] was there before, in line %u", sec->name,
                           shown(name), name.p, p->named_line[i]);
            memset(at, 0, CONF_NAME);
            return;
        }
    p->named_line[p->named_count] = p->line;
    p->section = sec;
    p->at = at;
    p->key_lines = p->lines.at[CONF_SECTIONS_MAX + p->named_count];
    p->key_refused = p->lines.refused[CONF_SECTIONS_MAX + p->named_count++];
}

static void begin_section(struct parse *p, struct str line, struct str inner)
{
    struct str all = trim(inner);
    const char *blank = memchr(all.p, ' ', all.n);
    struct str word = { all.p, blank ? (size_t)(blank - all.p) : all.n };
    struct str name = trim((struct str){ all.p + word.n, all.n - word.n });
    uint32_t column = column_of(line, all);

    p->before_first = false;
    p->section = NULL;
    for (uint32_t s = 0; s < p->schema->section_count; s++) {
        const struct conf_section *sec = &p->schema->sections[s];

        if (!str_is(word, sec->name))
            continue;
        if (sec->named) {
            begin_named(p, sec, name, column);
        } else if (name.n > 0) {
            conf_error_add(p->errors, p->line, column, "[%s] takes no name", sec->name);
        } else if (p->section_seen[s]) {
            conf_error_add(p->errors, p->line, column,
                           "[%s] was there before, in line %u: put its keys together",
                           sec->name, p->section_seen[s]);
        } else {
            p->section_seen[s] = p->line;
            p->section = sec;
            p->at = p->conf + sec->offset;
            p->key_lines = p->lines.at[s];
            p->key_refused = p->lines.refused[s];
        }
        return;
    }
    conf_error_add(p->errors, p->line, column, "unknown section [%.*s]", shown(all),
                   all.p);
}

static void set_key(struct parse *p, struct str line, struct str name, struct str value)
{
    const struct conf_section *sec = p->section;
    char wrong[200];
    struct text t;

    for (uint32_t k = 0; k < sec->key_count; k++) {
        const struct conf_key *key = &sec->keys[k];

        if (!str_is(name, key->key))
            continue;
        if (p->key_lines[k]) {
            conf_error_add(p->errors, p->line, column_of(line, name),
                           "%s was set before, in line %u", key->key, p->key_lines[k]);
            return;
        }
        p->key_lines[k] = p->line;
        text_init(&t, wrong, sizeof(wrong));
        if (!conf_value_set(key, p->at + key->offset, value, &t)) {
            p->key_refused[k] = true;
            conf_error_add(p->errors, p->line, column_of(line, value), "%s %s", key->key,
                           wrong);
        }
        return;
    }
    conf_error_add(p->errors, p->line, column_of(line, name), "unknown key %.*s in [%s]",
                   shown(name), name.p, sec->name);
}

static void parse_line(struct parse *p, struct str line)
{
    struct str s = trim(line);

    if (s.n == 0 || s.p[0] == '#' || s.p[0] == ';')
        return;
    if (s.p[0] == '[') {
        if (s.p[s.n - 1] != ']')
            conf_error_add(p->errors, p->line, column_of(line, s), "']' is missing");
        else
            begin_section(p, line, (struct str){ s.p + 1, s.n - 2 });
        return;
    }
    const char *equals = memchr(s.p, '=', s.n);

    if (!equals) {
        conf_error_add(p->errors, p->line, column_of(line, s),
                       "neither [section] nor key = value: %.*s", shown(s), s.p);
        return;
    }
    struct str name = trim((struct str){ s.p, (size_t)(equals - s.p) });
    struct str value = trim((struct str){ equals + 1, s.n - (size_t)(equals - s.p) - 1 });

    if (p->section)
        set_key(p, line, name, value);
    else if (p->before_first)
        conf_error_add(p->errors, p->line, column_of(line, s),
                       "%.*s stands before the first [section]", shown(name), name.p);
    /* else: its section is unknown, which has been said. */
}

/* Defaults of one section's struct, and what is required and was not given.  row is that
 * of the section in conf_lines. */
static void fill_section(struct parse *p, const struct conf_section *sec,
                         unsigned char *at, uint32_t row)
{
    uint32_t line =
        sec->named ? p->named_line[row - CONF_SECTIONS_MAX] : p->section_seen[row];

    for (uint32_t k = 0; k < sec->key_count; k++) {
        const struct conf_key *key = &sec->keys[k];
        bool refused = p->lines.refused[row][k];
        struct text t;
        char wrong[200];

        if ((p->lines.at[row][k] && !refused) || key->dflt == conf_from_profile)
            continue;
        text_init(&t, wrong, sizeof(wrong));
        if (key->dflt)
            CHECK(conf_value_set(key, at + key->offset, str_of(key->dflt), &t));
        else if (!refused)
            conf_error_add(p->errors, line, 0, "[%s%s%s] needs %s: %s", sec->name,
                           sec->named ? " " : "", sec->named ? (const char *)at : "",
                           key->key, key->doc);
    }
}

static void fill_defaults(struct parse *p)
{
    for (uint32_t s = 0; s < p->schema->section_count; s++) {
        const struct conf_section *sec = &p->schema->sections[s];
        unsigned char *at = p->conf + sec->offset;

        if (!sec->named) {
            fill_section(p, sec, at, s);
            continue;
        }
        for (uint32_t i = 0; i < p->named_count; i++)
            fill_section(p, sec, at + (size_t)i * named_size, CONF_SECTIONS_MAX + i);
        memcpy(p->conf + p->schema->count_offset, &p->named_count,
               sizeof(p->named_count));
    }
}

/* In the order of the file; few entries, so insertion will do. */
static void sort_errors(struct conf_errors *e)
{
    for (uint32_t i = 1; i < e->count; i++) {
        struct conf_error moved = e->at[i];
        uint32_t k = i;

        for (; k > 0 && e->at[k - 1].line > moved.line; k--)
            e->at[k] = e->at[k - 1];
        e->at[k] = moved;
    }
}

static bool readable(struct str text, struct conf_errors *errors)
{
    if (text.n > CONF_FILE_BYTES_MAX) {
        conf_error_add(errors, 0, 0, "is longer than %u bytes",
                       (unsigned)CONF_FILE_BYTES_MAX);
        return false;
    }
    if (text.n > 0 && memchr(text.p, '\0', text.n)) {
        conf_error_add(errors, 0, 0, "holds a NUL: not a text file");
        return false;
    }
    return true;
}

enum err conf_parse_schema(const struct conf_schema *schema, struct str text, void *out,
                           struct conf_errors *errors)
{
    struct parse p = { .schema = schema, .errors = errors, .before_first = true };

    memset(errors, 0, sizeof(*errors));
    p.conf = calloc(1, schema->size);
    if (!p.conf) {
        conf_error_add(errors, 0, 0, "out of memory");
        return ERR_MEMORY;
    }
    if (text.n >= 3 && memcmp(text.p, "\xef\xbb\xbf", 3) == 0)
        text = (struct str){ text.p + 3, text.n - 3 }; /* a byte order mark */
    if (!readable(text, errors))
        goto out;
    while (text.n > 0) {
        const char *end = memchr(text.p, '\n', text.n);
        struct str line = { text.p, end ? (size_t)(end - text.p) : text.n };
        size_t used = line.n + (end ? 1 : 0);

        p.line++;
        parse_line(&p, line);
        text = (struct str){ text.p + used, text.n - used };
    }
    fill_defaults(&p);
    schema->complete(p.conf, &p.lines);
    if (schema->check)
        schema->check(p.conf, &p.lines, errors);
    if (errors->count == 0)
        memcpy(out, p.conf, schema->size);
out:
    sort_errors(errors);
    free(p.conf);
    return errors->count == 0 ? ERR_OK : ERR_CONFIG;
}

enum err conf_parse(struct str text, struct conf *out, struct conf_errors *errors)
{
    return conf_parse_schema(&conf_schema, text, out, errors);
}

enum err agent_conf_parse(struct str text, struct agent_conf *out,
                          struct conf_errors *errors)
{
    return conf_parse_schema(&agent_conf_schema, text, out, errors);
}
