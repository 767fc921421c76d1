#include <unistd.h>

#include "app/ctl/ctl.h"

/* A list of sentences stands on lines of its own. */
static void print_sentences(const char *name, const json_t *list)
{
    const json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        if (json_is_string(item))
            printf("      %s: %s\n", name, json_string_value(item));
    }
}

static void print_evidence(const json_t *evidence)
{
    const char *key;
    const json_t *v;
    bool first = true;

    json_object_foreach((json_t *)(uintptr_t)evidence, key, v)
    {
        if (json_is_array(v))
            continue;
        printf("%s%s=", first ? "      evidence: " : " ", key);
        first = false;
        if (json_is_string(v))
            printf("%s", json_string_value(v));
        else
            (void)json_dumpf(v, stdout, JSON_ENCODE_ANY | JSON_COMPACT);
    }
    if (!first)
        printf("\n");
}

static enum ctl_colour ink_of(const char *kind)
{
    if (strcmp(kind, "switch") == 0)
        return CTL_BOLD;
    if (strcmp(kind, "alarm") == 0)
        return CTL_RED;
    return strcmp(kind, "operator") == 0 ? CTL_YELLOW : CTL_PLAIN;
}

static void print_entry(const struct ctl *c, const json_t *e)
{
    const char *kind = ctl_str(e, "kind", "?"), *from = ctl_str(e, "from", ""),
               *to = ctl_str(e, "to", "");
    char outage[32];

    printf("%s  %-10s %s%-8s%s", ctl_str(e, "at", "?"), ctl_str(e, "node", "?"),
           ctl_ink(c, ink_of(kind)), kind, ctl_ink(c, CTL_PLAIN));
    if (from[0] || to[0])
        printf(" %s -> %s", from[0] ? from : "none", to[0] ? to : "none");
    if (ctl_str(e, "why", "")[0])
        printf("  why=%s", ctl_str(e, "why", ""));
    if (ctl_u64(e, "epoch", 0))
        printf("  epoch=%llu", (unsigned long long)ctl_u64(e, "epoch", 0));
    if (json_is_number(json_object_get(e, "outage_ms")))
        printf("  outage %s",
               ctl_duration(ctl_u64(e, "outage_ms", 0), outage, sizeof(outage)));
    printf("\n");
    if (ctl_str(e, "text", "")[0])
        ctl_paragraph(stdout, 6, ctl_str(e, "text", ""));
    print_evidence(json_object_get(e, "evidence"));
    print_sentences("obstacle",
                    json_object_get(json_object_get(e, "evidence"), "obstacles"));
    ctl_print_phases(json_object_get(e, "phases"), 6);
    if (ctl_str(e, "action", "")[0])
        printf("      action: %s\n", ctl_str(e, "action", ""));
}

static void show_entry(const struct ctl *c, const json_t *e)
{
    if (!c->opt.json) {
        print_entry(c, e);
        return;
    }
    /* While following, one entry a line. */
    (void)json_dumpf(e, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    fputc('\n', stdout);
}

/* What tells an entry from all others. */
static void mark(const json_t *e, char *buf, size_t size)
{
    (void)snprintf(buf, size, "%s|%s|%s|%s|%s", ctl_str(e, "at", ""),
                   ctl_str(e, "node", ""), ctl_str(e, "kind", ""), ctl_str(e, "to", ""),
                   ctl_str(e, "text", ""));
}

/* Entries behind the one marked; all if it is not there. */
static void show_new(const struct ctl *c, const json_t *entries, char *last, size_t size)
{
    size_t i, from = 0;
    const json_t *e;
    char m[320];

    json_array_foreach(entries, i, e)
    {
        mark(e, m, sizeof(m));
        if (strcmp(m, last) == 0)
            from = i + 1;
    }
    for (i = from; i < json_array_size(entries); i++) {
        e = json_array_get(entries, i);
        show_entry(c, e);
        mark(e, last, size);
    }
}

static int follow(struct ctl *c, const char *path)
{
    char last[320] = "";

    for (;;) {
        json_t *answer = NULL;

        if (ctl_try_get(c, path, &answer) == CTL_OK)
            show_new(c, json_object_get(answer, "entries"), last, sizeof(last));
        json_decref(answer);
        if (fflush(stdout) != 0)
            return CTL_FAILED;
        (void)sleep(1); /* Ctrl-C ends it; a daemon that restarts is waited for */
    }
}

int cmd_log(struct ctl *c)
{
    json_t *answer = NULL, *entry;
    char path[64];
    size_t i;

    (void)snprintf(path, sizeof(path), "/v1/history?limit=%u",
                   c->opt.number ? c->opt.number : 20);
    int r = ctl_get(c, path, &answer);

    if (r != CTL_OK)
        return r;
    if (c->opt.follow) {
        json_decref(answer);
        return follow(c, path);
    }
    if (c->opt.json)
        ctl_print_json(answer);
    else
        json_array_foreach(json_object_get(answer, "entries"), i, entry)
        {
            print_entry(c, entry);
        }
    json_decref(answer);
    return CTL_OK;
}

/*
 * The answer of /v1/explain: {"text":"...", or "lines":["..."], and anything else}.  Lists of
 * sentences become paragraphs, named parts become headings.
 */
static void print_explained(const struct ctl *c, const char *name, const json_t *v)
{
    const json_t *item;
    const char *key;
    size_t i;

    if (json_is_string(v)) {
        ctl_paragraph(stdout, name ? 2 : 0, json_string_value(v));
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, item)
        {
            print_explained(c, name, item);
        }
    } else if (json_is_object(v)) {
        if (ctl_str(v, "id", NULL)) { /* an alarm */
            printf("  %s:\n", ctl_str(v, "id", ""));
            ctl_paragraph(stdout, 4, ctl_str(v, "text", ""));
            return;
        }
        json_object_foreach((json_t *)(uintptr_t)v, key, item)
        {
            if (json_is_array(item) && json_array_size(item) == 0)
                continue;
            if (!json_is_string(item) && !json_is_array(item) && !json_is_object(item))
                continue;
            printf("%s%s%s\n", ctl_ink(c, CTL_BOLD), key, ctl_ink(c, CTL_PLAIN));
            print_explained(c, key, item);
        }
    }
}

int cmd_explain(struct ctl *c)
{
    json_t *answer = NULL;
    int r = ctl_get(c, "/v1/explain", &answer);

    if (r != CTL_OK)
        return r;
    if (c->opt.json)
        ctl_print_json(answer);
    else
        print_explained(c, NULL, answer);
    json_decref(answer);
    return CTL_OK;
}
