#include <stdarg.h>
#include <wchar.h>

#include "app/ctl/manage.h"
#include "app/ctl/publish.h"

enum { COLUMNS_MAX = 16 };

/* ---- safe text ---- */

/* Characters without a picture that change how others are shown. */
static bool plays_tricks(wchar_t ch)
{
    return (ch >= 0x200b && ch <= 0x200f) || (ch >= 0x202a && ch <= 0x202e) ||
           (ch >= 0x2060 && ch <= 0x2069) || ch == 0xfeff;
}

int put_safe(FILE *to, const char *s)
{
    mbstate_t state = { 0 };
    size_t left = strlen(s);
    int columns = 0;

    while (left > 0) {
        wchar_t ch = 0;
        size_t n = mbrtowc(&ch, s, left, &state);

        if (n == 0 || n > left) { /* no character */
            columns += fprintf(to, "\\x%02x", (unsigned char)*s);
            state = (mbstate_t){ 0 };
            n = 1;
        } else if (wcwidth(ch) < 0 || plays_tricks(ch)) {
            columns += fprintf(to, ch < 0x100 ? "\\x%02x" : "\\u%04x", (unsigned)ch);
        } else {
            columns += wcwidth(ch);
            (void)fwrite(s, 1, n, to);
        }
        s += n;
        left -= n;
    }
    return columns;
}

/* What put_safe would print, and how wide it is. */
static char *safe_measured(const char *s, int *ret_columns)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    *ret_columns = 0;
    if (!to)
        return NULL;
    *ret_columns = put_safe(to, s);
    if (fclose(to) == 0)
        return text;
    free(text);
    return NULL;
}

char *safe_copy(const char *s)
{
    int columns;
    char *text = safe_measured(s, &columns);

    return text ? text : strdup("");
}

/* ---- cells ---- */

static const json_t *member(const json_t *o, const char *path)
{
    const char *dot;

    while ((dot = strchr(path, '.'))) {
        char name[64];

        (void)snprintf(name, sizeof(name), "%.*s", (int)(dot - path), path);
        o = json_object_get(o, name);
        path = dot + 1;
    }
    return json_object_get(o, path);
}

static void put_json(FILE *to, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

    if (text)
        fputs(text, to);
    free(text);
}

static void put_list(FILE *to, const json_t *list)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        fputs(i ? ", " : "", to);
        if (json_is_string(item))
            fputs(json_string_value(item), to);
        else
            put_json(to, item);
    }
    if (json_array_size(list) == 0)
        fputs("-", to);
}

static void put_string(FILE *to, const char *s, enum cell kind)
{
    int64_t ms;
    char buf[96];

    if (kind == CELL_ID) {
        fprintf(to, "%.8s", s);
    } else if (kind == CELL_TIME && ctl_parse_time(s, &ms)) {
        fprintf(to, "%.10s %.8s", s, s + 11);
    } else if (kind == CELL_AGO && ctl_parse_time(s, &ms)) {
        int64_t age = (int64_t)time(NULL) * 1000 - ms;

        if (age < 1000)
            fputs("now", to);
        else
            fprintf(to, "%s ago", ctl_duration((uint64_t)age, buf, sizeof(buf)));
    } else {
        fputs(s[0] ? s : "-", to);
    }
}

static void put_cell(FILE *to, const json_t *v, enum cell kind)
{
    /* As a value is written on the command line: a word needs no quotes. */
    bool bare = json_is_string(v) && json_string_value(v)[0];

    if (kind == CELL_JSON && v && !bare)
        put_json(to, v);
    else if (kind == CELL_BYTES && json_is_integer(v) && json_integer_value(v) >= 0)
        fputs(publish_size((uint64_t)json_integer_value(v), (char[32]){ 0 }, 32), to);
    else if (json_is_string(v))
        put_string(to, json_string_value(v), kind);
    else if (json_is_array(v))
        put_list(to, v);
    else if (json_is_boolean(v))
        fputs(json_is_true(v) ? "yes" : "no", to);
    else if (!v || json_is_null(v))
        fputs("-", to);
    else
        put_json(to, v);
}

char *cell_text(const json_t *o, const struct column *column)
{
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);

    if (!to)
        return NULL;
    put_cell(to, member(o, column->key), column->kind);
    if (fclose(to) == 0)
        return text;
    free(text);
    return NULL;
}

/* ---- tables ---- */

struct safe_cell {
    char *text;
    int width;
};

static void put_padded(const struct safe_cell *cell, int width, bool right, bool last)
{
    int pad = width > cell->width ? width - cell->width : 0;

    printf("%*s%s%*s", right ? pad : 0, "", cell->text ? cell->text : "",
           right || last ? 0 : pad, "");
    fputs(last ? "\n" : "  ", stdout);
}

static bool is_right(enum cell kind)
{
    return kind == CELL_RIGHT || kind == CELL_BYTES;
}

static void print_cells(const struct safe_cell *cells, size_t rows,
                        const struct column *columns, size_t count)
{
    int width[COLUMNS_MAX];

    for (size_t k = 0; k < count; k++) {
        width[k] = (int)strlen(columns[k].title);
        for (size_t i = 0; i < rows; i++)
            if (cells[i * count + k].width > width[k])
                width[k] = cells[i * count + k].width;
    }
    for (size_t k = 0; k < count; k++)
        put_padded(&(struct safe_cell){ (char *)(uintptr_t)columns[k].title,
                                        (int)strlen(columns[k].title) },
                   width[k], is_right(columns[k].kind), k + 1 == count);
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < count; k++)
            put_padded(&cells[i * count + k], width[k], is_right(columns[k].kind),
                       k + 1 == count);
}

void print_table(const struct ctl *c, const json_t *items, const struct column *columns,
                 size_t count, const char *empty)
{
    size_t rows = json_array_size(items), i;
    const json_t *item;

    (void)c;
    CHECK(count <= COLUMNS_MAX);
    if (rows == 0) {
        printf("%s\n", empty);
        return;
    }
    struct safe_cell *cells = calloc(rows * count, sizeof(*cells));

    CHECK(cells != NULL);
    json_array_foreach(items, i, item)
    {
        for (size_t k = 0; k < count; k++) {
            struct safe_cell *cell = &cells[i * count + k];
            char *raw = cell_text(item, &columns[k]);

            cell->text = safe_measured(raw ? raw : "", &cell->width);
            free(raw);
        }
    }
    print_cells(cells, rows, columns, count);
    for (i = 0; i < rows * count; i++)
        free(cells[i].text);
    free(cells);
}

void print_fields(const struct ctl *c, const json_t *o, const struct column *fields,
                  size_t count)
{
    int width = 0;

    for (size_t k = 0; k < count; k++)
        if ((int)strlen(fields[k].title) > width)
            width = (int)strlen(fields[k].title);
    for (size_t k = 0; k < count; k++) {
        const json_t *v = member(o, fields[k].key);

        if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
            continue;
        char *raw = cell_text(o, &fields[k]), *text = safe_copy(raw ? raw : "");

        printf("%s%-*s%s  %s\n", ctl_ink(c, CTL_DIM), width, fields[k].title,
               ctl_ink(c, CTL_PLAIN), text);
        free(raw);
        free(text);
    }
}

void say_done(const struct ctl *c, const json_t *answer, const char *fmt, ...)
{
    char *words = NULL;
    va_list ap;

    if (c->opt.json) {
        ctl_print_json(answer);
        return;
    }
    va_start(ap, fmt);
    if (vasprintf(&words, fmt, ap) >= 0) {
        (void)put_safe(stdout, words);
        fputc('\n', stdout);
        free(words);
    }
    va_end(ap);
}

/* ---- differences ---- */

static void put_side(const struct ctl *c, char sign, const char *key, const json_t *v)
{
    char *text =
        v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS) : NULL;

    if (!text)
        return;
    printf("%s    %c ", ctl_ink(c, sign == '-' ? CTL_RED : CTL_GREEN), sign);
    (void)put_safe(stdout, key);
    fputs(key[0] ? ": " : "", stdout);
    (void)put_safe(stdout, text);
    printf("%s\n", ctl_ink(c, CTL_PLAIN));
    free(text);
}

static void put_member(const struct ctl *c, const char *key, const json_t *before,
                       const json_t *after)
{
    if (before && after && json_equal(before, after))
        return;
    put_side(c, '-', key, before);
    put_side(c, '+', key, after);
}

void print_difference(const struct ctl *c, const json_t *before, const json_t *after)
{
    const char *key;
    json_t *v;

    before = json_is_null(before) ? NULL : before;
    after = json_is_null(after) ? NULL : after;
    if ((before && !json_is_object(before)) || (after && !json_is_object(after))) {
        put_member(c, "", before, after);
        return;
    }
    json_object_foreach((json_t *)(uintptr_t)before, key, v)
    {
        put_member(c, key, v, json_object_get(after, key));
    }
    json_object_foreach((json_t *)(uintptr_t)after, key, v)
    {
        if (!json_object_get(before, key))
            put_member(c, key, NULL, v);
    }
}

int manage_confirm(struct ctl *c, const char *question)
{
    if (ctl_confirm(c, question))
        return CTL_OK;
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "not_confirmed",
                                           "Not done: it was not confirmed", question,
                                           "If that is what you want, repeat it with "
                                           "--yes." });
}
