#include "app/ctl/report.h"

#include <stdarg.h>

static const char *const grade_names[] = { "ok", "warn", "FAIL" };

void report_init(struct report *r, struct ctl *c)
{
    *r = (struct report){ .c = c, .items = json_array() };
}

static void print_item(const struct report *r, enum report_grade grade, const char *name,
                       const char *text, const char *suggestion)
{
    static const enum ctl_colour inks[] = { CTL_GREEN, CTL_YELLOW, CTL_RED };

    printf("%s%-4s%s  %s: %s\n", ctl_ink(r->c, inks[grade]), grade_names[grade],
           ctl_ink(r->c, CTL_PLAIN), name, text);
    if (suggestion)
        ctl_paragraph(stdout, 6, suggestion);
    (void)fflush(stdout); /* a failure shows at the end of the program */
}

void report_add(struct report *r, enum report_grade grade, const char *name,
                const char *suggestion, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    r->warnings += grade == REPORT_WARN;
    r->failures += grade == REPORT_FAIL;
    if (r->c->opt.json)
        (void)json_array_append_new(r->items,
                                    json_pack("{s:s, s:s, s:s, s:s?}", "name", name,
                                              "result", grade_names[grade], "text", text,
                                              "suggestion", suggestion));
    else
        print_item(r, grade, name, text, suggestion);
}

int report_finish(struct report *r)
{
    if (r->c->opt.json) {
        json_t *j =
            json_pack("{s:b, s:i, s:i, s:O}", "ok", r->failures == 0, "failures",
                      (int)r->failures, "warnings", (int)r->warnings, "checks", r->items);

        ctl_print_json(j);
        json_decref(j);
    } else {
        printf("\n%u failed, %u to look at\n", r->failures, r->warnings);
    }
    json_decref(r->items);
    r->items = NULL;
    return r->failures ? CTL_FAILED : CTL_OK;
}

void report_progress(const struct report *r, const char *what, uint32_t done,
                     uint32_t total)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    uint32_t full = total ? done * WIDTH / total : WIDTH;

    if (!r->c->tty || r->c->opt.json)
        return;
    if (done >= total) {
        fprintf(stderr, "\r\033[K");
        return;
    }
    memset(bar, ' ', WIDTH);
    memset(bar, '#', full);
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3u %%", what, bar, done * 100 / total);
}
