#include "core/scan/exclude.h"

/* Where to go on when a comparison fails: the last star takes one character more. */
struct retry {
    size_t pattern, text;
    bool set;
};

struct place {
    size_t pattern, text;
};

static bool go_back(struct retry *star, struct retry *deep, struct str text,
                    struct place *at)
{
    if (star->set && star->text < text.n && text.p[star->text] != '/') {
        *at = (struct place){ star->pattern, ++star->text };
        return true;
    }
    if (!deep->set || deep->text >= text.n)
        return false;
    star->set = false;
    *at = (struct place){ deep->pattern, ++deep->text };
    return true;
}

/* The pattern is used up: it fits if the path is too, or goes on below. */
static bool fits_here(struct str text, size_t at)
{
    return at == text.n || text.p[at] == '/';
}

static bool same(char pattern, char c)
{
    return pattern == c || (pattern == '?' && c != '/');
}

static bool matches(struct str pattern, struct str text)
{
    struct retry star = { 0 }, deep = { 0 };
    struct place at = { 0 };

    for (;;) {
        bool left = at.pattern < pattern.n;

        if (left && pattern.p[at.pattern] == '*') {
            bool two = at.pattern + 1 < pattern.n && pattern.p[at.pattern + 1] == '*';

            at.pattern += two ? 2 : 1;
            *(two ? &deep : &star) = (struct retry){ at.pattern, at.text, true };
            star.set = two ? false : star.set;
        } else if (left && at.text < text.n &&
                   same(pattern.p[at.pattern], text.p[at.text])) {
            at.pattern++;
            at.text++;
        } else if (!left && fits_here(text, at.text)) {
            return true;
        } else if (!go_back(&star, &deep, text, &at)) {
            return false;
        }
    }
}

bool exclude_match(struct str pattern, struct str path)
{
    while (pattern.n > 1 && pattern.p[pattern.n - 1] == '/')
        pattern.n--;
    if (pattern.n == 0 || path.n == 0)
        return false;
    if (pattern.n == 1 && pattern.p[0] == '/')
        return path.p[0] == '/';
    if (pattern.p[0] == '/')
        return matches(pattern, path);
    /* A name: compared with each name of the path, so that folders exclude what is below. */
    for (size_t i = 0; i < path.n; i++)
        if (path.p[i] == '/' &&
            matches(pattern, (struct str){ path.p + i + 1, path.n - i - 1 }))
            return true;
    return false;
}
