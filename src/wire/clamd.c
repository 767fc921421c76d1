#include "wire/clamd.h"

static bool printable(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < 0x20 || (unsigned char)s.p[i] > 0x7e)
            return false;
    return true;
}

/* Takes everything up to and with c off *s; without c, all of it. */
static struct str until(struct str *s, char c)
{
    const char *at = s->n > 0 ? memchr(s->p, c, s->n) : NULL;
    struct str head = *s;

    if (!at) {
        *s = (struct str){ s->p + s->n, 0 };
        return head;
    }
    head.n = (size_t)(at - s->p);
    *s = (struct str){ at + 1, s->n - head.n - 1 };
    return head;
}

enum err clamd_reply(struct str bytes, struct clamd_reply *out, size_t *used)
{
    const char *end = bytes.n > 0 ? memchr(bytes.p, '\0', bytes.n) : NULL;
    uint64_t id = 0;

    if (!end) {
        if (bytes.n >= CLAMD_REPLY_MAX)
            return ERR_LIMIT;
        *used = 0;
        return ERR_OK;
    }
    struct str text = { bytes.p, (size_t)(end - bytes.p) };
    size_t size = text.n + 1;
    struct str number = until(&text, ':');
    if (size > CLAMD_REPLY_MAX)
        return ERR_LIMIT;
    if (!str_u64(number, UINT32_MAX, &id) || text.n == 0 || text.p[0] != ' ')
        return ERR_CORRUPT;
    *out = (struct clamd_reply){ .id = (uint32_t)id, .text = { text.p + 1, text.n - 1 } };
    *used = size;
    return ERR_OK;
}

bool clamd_is_pong(struct str text)
{
    return str_is(text, "PONG");
}

enum err clamd_version(struct str text, struct clamd_version *out)
{
    struct clamd_version v = { 0 };
    uint64_t number = 0;

    if (!str_starts(text, STR("ClamAV ")) || !printable(text))
        return ERR_CORRUPT;
    text = (struct str){ text.p + 7, text.n - 7 };
    struct str engine = until(&text, '/');
    if (engine.n == 0 || !str_copy(v.engine, sizeof(v.engine), engine))
        return ERR_CORRUPT;
    if (text.n > 0) {
        struct str database = until(&text, '/');
        if (!str_u64(database, UINT32_MAX, &number))
            return ERR_CORRUPT;
        v.database = (uint32_t)number;
        if (!str_copy(v.built, sizeof(v.built), text))
            return ERR_CORRUPT;
    }
    *out = v;
    return ERR_OK;
}

/* The number behind "<name> " in a line such as "THREADS: live 1  idle 0 max 10". */
static uint32_t number_after(struct str line, const char *name)
{
    uint64_t v = 0;
    bool next = false;

    while (line.n > 0) {
        struct str word = until(&line, ' ');

        if (word.n == 0)
            continue;
        if (next)
            return str_u64(word, UINT32_MAX, &v) ? (uint32_t)v : 0;
        next = str_is(word, name);
    }
    return 0;
}

void clamd_stats(struct str text, struct clamd_stats *out)
{
    *out = (struct clamd_stats){ 0 };
    while (text.n > 0) {
        struct str line = until(&text, '\n');

        if (!printable(line))
            continue;
        if (str_starts(line, STR("POOLS: "))) {
            out->pools = number_after(line, "POOLS:");
        } else if (str_starts(line, STR("STATE: ")) && out->state[0] == '\0') {
            if (!str_copy(out->state, sizeof(out->state),
                          (struct str){ line.p + 7, line.n - 7 }))
                out->state[0] = '\0';
        } else if (str_starts(line, STR("THREADS: "))) {
            out->threads_live = number_after(line, "live");
            out->threads_idle = number_after(line, "idle");
            out->threads_max = number_after(line, "max");
        } else if (str_starts(line, STR("QUEUE: "))) {
            out->queue = number_after(line, "QUEUE:");
        }
    }
}

/* Cuts tail off *s; false if it does not end so. */
static bool cut_tail(struct str *s, struct str tail)
{
    if (s->n < tail.n || memcmp(s->p + s->n - tail.n, tail.p, tail.n) != 0)
        return false;
    s->n -= tail.n;
    return true;
}

/* What stands behind the last ": ", or everything. */
static struct str behind_colon(struct str s)
{
    for (size_t i = s.n; i >= 2; i--)
        if (s.p[i - 2] == ':' && s.p[i - 1] == ' ')
            return (struct str){ s.p + i, s.n - i };
    return s;
}

static void copy_printable(char *dst, size_t size, struct str s)
{
    size_t n = s.n < size - 1 ? s.n : size - 1;

    for (size_t i = 0; i < n; i++)
        dst[i] =
            (unsigned char)s.p[i] < 0x20 || (unsigned char)s.p[i] > 0x7e ? '?' : s.p[i];
    dst[n] = '\0';
}

enum err clamd_verdict(struct str text, struct clamd_verdict *out)
{
    struct clamd_verdict v = { 0 };

    if (cut_tail(&text, STR(": OK")) || str_is(text, "OK")) {
        *out = v;
        return ERR_OK;
    }
    if (cut_tail(&text, STR(" FOUND")))
        v.found = CLAMD_FOUND;
    else if (cut_tail(&text, STR(" ERROR")))
        v.found = CLAMD_ERROR;
    else
        return ERR_CORRUPT;
    text = behind_colon(text);
    if (text.n == 0)
        return ERR_CORRUPT;
    if (v.found == CLAMD_FOUND && str_starts(text, STR("Heuristics.Limits.Exceeded")))
        v.found = CLAMD_LIMITED;
    copy_printable(v.text, sizeof(v.text), text);
    *out = v;
    return ERR_OK;
}
