#include "app/ctl/manage.h"

#include <stdarg.h>
#include <unistd.h>

void ctl_print_json(const json_t *j)
{
    (void)json_dumpf(j, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    fputc('\n', stdout);
}

static json_t *text_or_null(const char *s)
{
    return s && s[0] ? json_string(s) : json_null();
}

/* A paragraph for each line of the text: a list of errors is one a line. */
static void put_lines(FILE *to, const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");
        char *line = strndup(text, n);

        if (line && n > 0)
            ctl_paragraph(to, 2, line);
        free(line);
        text += n + (text[n] == '\n');
    }
}

int ctl_fail(struct ctl *c, int exit, const struct ctl_problem *p)
{
    if (c->opt.json) {
        json_t *j = json_pack("{s:{s:s, s:s, s:o, s:o}}", "error", "id", p->id, "title",
                              p->title, "text", text_or_null(p->text), "suggestion",
                              text_or_null(p->suggestion));

        if (j)
            ctl_print_json(j);
        json_decref(j);
        return exit;
    }
    (void)fflush(stdout); /* in order, where both go to one terminal */
    fputs("redoubt: ", stderr);
    (void)put_safe(stderr, p->title);
    fputc('\n', stderr);
    if (p->text && p->text[0])
        put_lines(stderr, p->text);
    if (p->suggestion && p->suggestion[0]) {
        fprintf(stderr, "What to do:\n");
        ctl_paragraph(stderr, 2, p->suggestion);
    }
    return exit;
}

int ctl_usage(const char *fmt, ...)
{
    va_list ap;

    fputs("redoubt: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs("\n", stderr);
    return CTL_USAGE;
}

const char *ctl_ink(const struct ctl *c, enum ctl_colour k)
{
    static const char *const codes[] = {
        [CTL_PLAIN] = "\033[0m",   [CTL_BOLD] = "\033[1m", [CTL_GREEN] = "\033[32m",
        [CTL_YELLOW] = "\033[33m", [CTL_RED] = "\033[31m", [CTL_DIM] = "\033[2m",
    };

    return c->colour ? codes[k] : "";
}

const char *ctl_duration(uint64_t ms, char *buf, size_t size)
{
    uint64_t s = ms / 1000, min = s / 60, h = min / 60, d = h / 24;

    if (ms < 1000)
        (void)snprintf(buf, size, "%llu ms", (unsigned long long)ms);
    else if (s < 10)
        (void)snprintf(buf, size, "%llu.%02llu s", (unsigned long long)s,
                       (unsigned long long)(ms % 1000 / 10));
    else if (min < 2)
        (void)snprintf(buf, size, "%llu s", (unsigned long long)s);
    else if (h < 2)
        (void)snprintf(buf, size, "%llu min", (unsigned long long)min);
    else if (d < 2)
        (void)snprintf(buf, size, "%llu h %llu min", (unsigned long long)h,
                       (unsigned long long)(min % 60));
    else
        (void)snprintf(buf, size, "%llu d %llu h", (unsigned long long)d,
                       (unsigned long long)(h % 24));
    return buf;
}

bool ctl_parse_time(const char *text, int64_t *ret_ms)
{
    struct tm tm = { 0 };
    unsigned ms = 0;
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);

    if (!rest)
        return false;
    if (*rest == '.' && sscanf(rest, ".%3u", &ms) != 1)
        return false;
    *ret_ms = (int64_t)timegm(&tm) * 1000 + (int64_t)ms;
    return true;
}

const char *ctl_when(const char *text, char *buf, size_t size)
{
    struct timespec now;
    char ago[32];
    int64_t then;

    if (!ctl_parse_time(text, &then) || clock_gettime(CLOCK_REALTIME, &now) != 0) {
        (void)snprintf(buf, size, "%s", text);
        return buf;
    }
    int64_t age = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - then;

    (void)snprintf(buf, size, "%.10s %.8s UTC (%s ago)", text, text + 11,
                   ctl_duration(age > 0 ? (uint64_t)age : 0, ago, sizeof(ago)));
    return buf;
}

bool ctl_confirm(const struct ctl *c, const char *question)
{
    char answer[16];

    if (c->opt.yes)
        return true;
    if (!isatty(STDIN_FILENO) || !c->tty)
        return false;
    fprintf(stderr, "%s [y/N] ", question);
    return fgets(answer, sizeof(answer), stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

static int put_word(FILE *to, const char *word, int bytes)
{
    char buf[256];

    (void)snprintf(buf, sizeof(buf), "%.*s", bytes, word);
    return put_safe(to, buf);
}

void ctl_paragraph(FILE *to, int indent, const char *text)
{
    int column = 0;

    while (*text) {
        int word = (int)strcspn(text, " \n");

        word = word < 255 ? word : 255; /* no word is as long */

        if (column > 0 && column + 1 + word > 78) {
            fputc('\n', to);
            column = 0;
        }
        if (column == 0)
            column = fprintf(to, "%*s", indent, "");
        else
            column += fprintf(to, " ");
        column += put_word(to, text, word);
        text += word;
        text += strspn(text, " \n");
    }
    fputc('\n', to);
}

const char *ctl_str(const json_t *o, const char *key, const char *or_else)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : or_else;
}

uint64_t ctl_u64(const json_t *o, const char *key, uint64_t or_else)
{
    const json_t *v = json_object_get(o, key);

    if (json_is_real(v) && json_real_value(v) >= 0)
        return (uint64_t)json_real_value(v);
    return json_is_integer(v) && json_integer_value(v) >= 0
               ? (uint64_t)json_integer_value(v)
               : or_else;
}

bool ctl_bool(const json_t *o, const char *key, bool or_else)
{
    const json_t *v = json_object_get(o, key);

    return json_is_boolean(v) ? json_is_true(v) : or_else;
}
