#include "app/agent/deb_version.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

struct part {
    const char *p, *end;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* '~' before the end before letters before everything else. */
static int order(const struct part *s)
{
    if (s->p == s->end || is_digit(*s->p))
        return 0;
    if (*s->p == '~')
        return -1;
    if ((*s->p >= 'a' && *s->p <= 'z') || (*s->p >= 'A' && *s->p <= 'Z'))
        return *s->p;
    return (unsigned char)*s->p + 256;
}

static bool is_word(const struct part *s)
{
    return s->p < s->end && !is_digit(*s->p);
}

static int compare_numbers(struct part *a, struct part *b)
{
    int first = 0;

    while (a->p < a->end && *a->p == '0')
        a->p++;
    while (b->p < b->end && *b->p == '0')
        b->p++;
    while (a->p < a->end && is_digit(*a->p) && b->p < b->end && is_digit(*b->p)) {
        if (first == 0)
            first = *a->p - *b->p;
        a->p++;
        b->p++;
    }
    if (a->p < a->end && is_digit(*a->p))
        return 1;
    return b->p < b->end && is_digit(*b->p) ? -1 : first;
}

static int compare_parts(struct part a, struct part b)
{
    while (a.p < a.end || b.p < b.end) {
        while (is_word(&a) || is_word(&b)) {
            int difference = order(&a) - order(&b);

            if (difference != 0)
                return difference;
            a.p += a.p < a.end;
            b.p += b.p < b.end;
        }
        int difference = compare_numbers(&a, &b);
        if (difference != 0)
            return difference;
    }
    return 0;
}

struct version {
    struct part epoch, upstream, revision;
};

static struct version split(const char *text)
{
    const char *end = text + strlen(text), *colon = strchr(text, ':');
    const char *from = colon ? colon + 1 : text, *dash = strrchr(from, '-');

    return (struct version){ { text, colon ? colon : text },
                             { from, dash ? dash : end },
                             { dash ? dash + 1 : end, end } };
}

int deb_version_compare(const char *a, const char *b)
{
    struct version x = split(a), y = split(b);
    int difference = compare_parts(x.epoch, y.epoch);

    if (difference == 0)
        difference = compare_parts(x.upstream, y.upstream);
    return difference != 0 ? difference : compare_parts(x.revision, y.revision);
}
