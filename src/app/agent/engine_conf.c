#include "app/agent/engine_conf.h"

#include <strings.h>

static const char heading[] =
    "# What follows is written by redoubt-agent from the policy "
    "of the server.\n";

static const char *const decided[] = {
    "MaxFileSize",     "MaxScanSize", "MaxRecursion", "ScanArchive",
    "AlertExceedsMax", "DetectPUA",   "MaxThreads",
};

static const char *const sources[] = {
    "DatabaseMirror",    "PrivateMirror",         "DNSDatabaseInfo",
    "DatabaseCustomURL", "ExcludeDatabase",       "ExtraDatabase",
    "ScriptedUpdates",   "HTTPProxyServer",       "HTTPProxyPort",
    "HTTPProxyUsername", "HTTPProxyPassword",     "HTTPUserAgent",
    "MaxAttempts",       "TestDatabases",         "ConnectTimeout",
    "ReceiveTimeout",    "CompressLocalDatabase", "Bytecode",
};

/* Takes a line off the front of *s, without its end. */
static struct str take_line(struct str *s)
{
    const char *end = memchr(s->p, '\n', s->n);
    struct str line = { s->p, end ? (size_t)(end - s->p) : s->n };
    size_t used = end ? line.n + 1 : line.n;

    *s = (struct str){ s->p + used, s->n - used };
    return line;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static struct str trim(struct str s)
{
    while (s.n > 0 && is_blank(s.p[0]))
        s = (struct str){ s.p + 1, s.n - 1 };
    while (s.n > 0 && is_blank(s.p[s.n - 1]))
        s.n--;
    return s;
}

/* "Key value" taken apart; both empty for a comment. */
static void take_apart(struct str line, struct str *key, struct str *value)
{
    size_t n = 0;

    line = trim(line);
    while (n < line.n && !is_blank(line.p[n]))
        n++;
    *key = (struct str){ line.p, n };
    *value = trim((struct str){ line.p + n, line.n - n });
    if (n > 0 && line.p[0] == '#')
        *key = *value = (struct str){ line.p, 0 };
}

static bool is_one_of(struct str key, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (key.n == strlen(names[i]) && strncasecmp(key.p, names[i], key.n) == 0)
            return true;
    return false;
}

void engine_conf_block(const struct policy *p, struct text *out)
{
    text_add(out, "MaxFileSize %uM\n", p->engine_max_file_size_mib);
    text_add(out, "MaxScanSize %uM\n", p->engine_max_scan_size_mib);
    text_add(out, "MaxRecursion %u\n", p->engine_max_recursion);
    text_add(out, "ScanArchive %s\n", p->engine_scan_archives ? "yes" : "no");
    text_add(out, "AlertExceedsMax %s\n", p->engine_alert_exceeds_max ? "yes" : "no");
    text_add(out, "DetectPUA %s\n", p->engine_detect_pua ? "yes" : "no");
    text_add(out, "MaxThreads %u\n", p->engine_threads);
}

void engine_conf_render(struct str base, struct str block, struct text *out)
{
    struct str key, value, marker = { heading, sizeof(heading) - 2 };

    while (base.n > 0) {
        struct str line = take_line(&base);

        take_apart(line, &key, &value);
        if (is_one_of(key, decided, LEN(decided)) || str_eq(line, marker))
            continue;
        text_bytes(out, line);
        text_bytes(out, STR("\n"));
    }
    text_bytes(out, (struct str){ heading, sizeof(heading) - 1 });
    text_bytes(out, block);
}

bool engine_conf_value(struct str conf, const char *key, char *out, size_t size)
{
    struct str k, v, last = { NULL, 0 };

    while (conf.n > 0) {
        take_apart(take_line(&conf), &k, &v);
        if (is_one_of(k, &key, 1))
            last = v;
    }
    return last.n > 0 && str_copy(out, size, last);
}

void engine_conf_sources(struct str conf, struct text *out)
{
    struct str key, value;

    while (conf.n > 0) {
        struct str line = take_line(&conf);

        take_apart(line, &key, &value);
        if (!is_one_of(key, sources, LEN(sources)))
            continue;
        text_bytes(out, line);
        text_bytes(out, STR("\n"));
    }
}
