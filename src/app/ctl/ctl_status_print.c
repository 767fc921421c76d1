#include "app/ctl/ctl.h"

/* address may be one word, a list of words, or an object of them. */
static void print_words(const json_t *v)
{
    const json_t *item;
    const char *key;
    size_t i;

    if (json_is_string(v))
        printf(" %s", json_string_value(v));
    json_array_foreach(v, i, item)
    {
        if (json_is_string(item))
            printf(" %s", json_string_value(item));
    }
    if (json_is_object(v))
        json_object_foreach((json_t *)(uintptr_t)v, key, item)
        {
            if (json_is_string(item))
                printf(" %s", json_string_value(item));
        }
}

static const json_t *node_named(const json_t *status, const char *name)
{
    const json_t *node;
    size_t i;

    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (strcmp(ctl_str(node, "name", ""), name) == 0)
            return node;
    }
    return NULL;
}

static void print_head(const struct ctl *c, const json_t *s)
{
    const char *active = ctl_str(s, "active", NULL);
    const json_t *node = active ? node_named(s, active) : NULL;
    char when[64];

    printf("%sCluster %s%s   epoch %llu%s", ctl_ink(c, CTL_BOLD),
           ctl_str(s, "cluster", "?"), ctl_ink(c, CTL_PLAIN),
           (unsigned long long)ctl_u64(s, "epoch", 0),
           json_object_get(s, "address") ? "   address" : "");
    print_words(json_object_get(s, "address"));
    printf("\n");
    if (!active) {
        printf("%sNo node is active.%s\n", ctl_ink(c, CTL_RED), ctl_ink(c, CTL_PLAIN));
    } else {
        printf("%s%s is active%s", ctl_ink(c, CTL_GREEN), active, ctl_ink(c, CTL_PLAIN));
        if (ctl_str(node, "since", NULL))
            printf(" since %s", ctl_when(ctl_str(node, "since", ""), when, sizeof(when)));
        if (ctl_str(node, "why", "")[0])
            printf(", because: %s", ctl_str(node, "why", ""));
        printf("\n");
    }
    if (ctl_bool(s, "paused", false))
        printf("%sPaused: the cluster does not switch by itself (redoubt resume).%s\n",
               ctl_ink(c, CTL_YELLOW), ctl_ink(c, CTL_PLAIN));
    bool alarms = json_array_size(json_object_get(s, "alarms")) > 0;

    if (ctl_bool(s, "degraded", false) && (active || alarms))
        printf("%sDegraded%s%s\n", ctl_ink(c, CTL_YELLOW),
               alarms ? ": see the alarms below." : ".", ctl_ink(c, CTL_PLAIN));
}

static void print_lease(const json_t *lease)
{
    char age[32], left[32], hold[32];

    if (!json_is_object(lease) || !ctl_str(lease, "holder", "")[0])
        return;
    printf("Lease: %s, epoch %llu", ctl_str(lease, "holder", ""),
           (unsigned long long)ctl_u64(lease, "epoch", 0));
    if (json_is_number(json_object_get(lease, "age_ms")))
        printf(", renewed %s ago",
               ctl_duration(ctl_u64(lease, "age_ms", 0), age, sizeof(age)));
    if (json_is_number(json_object_get(lease, "remaining_ms")))
        printf(", %s left",
               ctl_duration(ctl_u64(lease, "remaining_ms", 0), left, sizeof(left)));
    if (json_is_number(json_object_get(lease, "hold_ms")))
        printf("%s%s",
               json_is_number(json_object_get(lease, "remaining_ms")) ? " of "
                                                                      : ", hold ",
               ctl_duration(ctl_u64(lease, "hold_ms", 0), hold, sizeof(hold)));
    printf("\n");
}

/* "0.3 ms", "down", "?". */
static const char *reach(const json_t *o, char *buf, size_t size)
{
    const json_t *latency = json_object_get(o, "latency_ms");

    if (!json_is_object(o))
        return "?";
    if (!ctl_bool(o, "ok", false))
        return "down";
    if (!json_is_number(latency))
        return "ok";
    (void)snprintf(buf, size, "%.1f ms", json_number_value(latency));
    return buf;
}

static void print_node(const struct ctl *c, const json_t *n)
{
    char share[32], database[32], seen[32];
    bool active = strcmp(ctl_str(n, "role", ""), "active") == 0;
    bool ready = ctl_bool(n, "ready", false);
    /* What it measured when it was last heard says nothing of now. */
    bool silent = strcmp(ctl_str(n, "state", ""), "silent") == 0;
    const json_t *reason;
    size_t i;

    printf("%-12s %-8s %-10s %s%-6s%s %-9s %-9s %-9s ", ctl_str(n, "name", "?"),
           ctl_str(n, "role", "?"), ctl_str(n, "state", "?"),
           ctl_ink(c, ready || active ? CTL_GREEN : CTL_RED),
           active  ? "-"
           : ready ? "yes"
                   : "NO",
           ctl_ink(c, CTL_PLAIN),
           silent ? "?" : reach(json_object_get(n, "share"), share, sizeof(share)),
           silent ? "?"
                  : reach(json_object_get(n, "database"), database, sizeof(database)),
           ctl_str(n, "version", "?"));
    if (json_is_number(json_object_get(n, "seen_ms_ago")))
        printf("%s ago\n",
               ctl_duration(ctl_u64(n, "seen_ms_ago", 0), seen, sizeof(seen)));
    else
        printf("-\n");
    if (ctl_bool(n, "maintenance", false))
        printf("  %sin maintenance: it will not take over%s\n", ctl_ink(c, CTL_YELLOW),
               ctl_ink(c, CTL_PLAIN));
    json_array_foreach(json_object_get(n, "not_ready_because"), i, reason)
    {
        if (json_is_string(reason))
            printf("  %snot ready: %s%s\n", ctl_ink(c, CTL_YELLOW),
                   json_string_value(reason), ctl_ink(c, CTL_PLAIN));
    }
}

static const char *size_text(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    double n = (double)bytes;
    size_t i = 0;

    for (; n >= 1024 && i + 1 < LEN(units); i++)
        n /= 1024;
    (void)snprintf(buf, size, i == 0 ? "%.0f %s" : "%.1f %s", n, units[i]);
    return buf;
}

/* "12 files, 1.5 GiB, all here"; nothing without a data share. */
static void print_content(const struct ctl *c, const json_t *n)
{
    const json_t *o = json_object_get(n, "content");
    const uint64_t missing = ctl_u64(o, "missing", 0);
    const bool prepared = ctl_bool(o, "prepared", false);
    char all[32], rest[32];

    if (!json_is_object(o))
        return;
    printf("  %-12s ", ctl_str(n, "name", "?"));
    if (!ctl_bool(o, "known", false)) {
        printf("%snot known yet%s\n", ctl_ink(c, CTL_YELLOW), ctl_ink(c, CTL_PLAIN));
        return;
    }
    printf("%llu files, %s, ", (unsigned long long)ctl_u64(o, "files", 0),
           size_text(ctl_u64(o, "bytes", 0), all, sizeof(all)));
    if (missing > 0)
        printf("%s%llu missing (%s)%s", ctl_ink(c, CTL_YELLOW),
               (unsigned long long)missing,
               size_text(ctl_u64(o, "missing_bytes", 0), rest, sizeof(rest)),
               ctl_ink(c, CTL_PLAIN));
    else
        printf("%s", prepared ? "all here" : "being laid out");
    printf("%s%s\n", ctl_bool(o, "share_ok", true) ? "" : "; the data share is away",
           ctl_bool(o, "scrubbing", false) ? "; being read again" : "");
    if (ctl_str(o, "detail", "")[0])
        printf("    %.*s\n", 100, ctl_str(o, "detail", ""));
}

/* "3.61 s", "12 min": since when, without the date. */
static const char *age_of(const json_t *o, char *buf, size_t size)
{
    const char *since = ctl_str(o, "since", NULL);
    struct timespec now;
    int64_t then;

    if (!since || !ctl_parse_time(since, &then) ||
        clock_gettime(CLOCK_REALTIME, &now) != 0)
        return "";
    int64_t age = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - then;

    return ctl_duration(age > 0 ? (uint64_t)age : 0, buf, size);
}

static void print_service(const struct ctl *c, const json_t *s)
{
    const char *state = ctl_str(s, "state", "?");
    bool bad = strcmp(state, "failed") == 0 || strcmp(state, "stopped") == 0;
    uint64_t restarts = ctl_u64(s, "restarts", 0);
    char age[32];

    printf("    %-14s %s%-9s%s %-10s", ctl_str(s, "name", "?"),
           ctl_ink(c, bad ? CTL_RED : CTL_PLAIN), state, ctl_ink(c, CTL_PLAIN),
           age_of(s, age, sizeof(age)));
    if (restarts)
        printf(" %llu restart%s;", (unsigned long long)restarts,
               restarts == 1 ? "" : "s");
    printf(" %.*s\n", 90, ctl_str(s, "detail", ""));
}

static void print_nodes(const struct ctl *c, const json_t *s)
{
    const json_t *nodes = json_object_get(s, "nodes"), *n, *service;
    size_t i, k;

    printf("\n%s%-12s %-8s %-10s %-6s %-9s %-9s %-9s %s%s\n", ctl_ink(c, CTL_DIM), "NODE",
           "ROLE", "STATE", "READY", "SHARE", "DATABASE", "VERSION", "SEEN",
           ctl_ink(c, CTL_PLAIN));
    json_array_foreach(nodes, i, n)
    {
        print_node(c, n);
    }
    if (json_is_object(json_object_get(json_array_get(nodes, 0), "content")) ||
        json_is_object(json_object_get(json_array_get(nodes, 1), "content")))
        printf("\nPublished files\n");
    json_array_foreach(nodes, i, n)
    {
        print_content(c, n);
    }
    printf("\nServices\n");
    json_array_foreach(nodes, i, n)
    {
        const json_t *services = json_object_get(n, "services");

        if (json_array_size(services) == 0)
            continue;
        printf("  %s\n", ctl_str(n, "name", "?"));
        json_array_foreach(services, k, service)
        {
            print_service(c, service);
        }
    }
}

/* The daemon sends id and text; the table has the title and what to do. */
static void print_alarm(const struct ctl *c, const json_t *a)
{
    const struct alarm_info *info = alarm_find(ctl_str(a, "id", ""));
    bool error = info && info->severity == ALARM_ERROR;
    const char *text = ctl_str(a, "text", info ? info->text : "");
    const char *advice = ctl_str(a, "suggestion", info ? info->suggestion : "");
    char when[64];

    printf("  %s%s%s: %s", ctl_ink(c, error ? CTL_RED : CTL_YELLOW),
           ctl_str(a, "id", "?"), ctl_ink(c, CTL_PLAIN), info ? info->title : "");
    if (ctl_str(a, "since", NULL))
        printf(", since %s", ctl_when(ctl_str(a, "since", ""), when, sizeof(when)));
    printf("\n");
    if (text[0])
        ctl_paragraph(stdout, 4, text);
    if (advice[0]) {
        printf("    What to do:\n");
        ctl_paragraph(stdout, 6, advice);
    }
}

void ctl_print_phases(const json_t *phases, int indent)
{
    const json_t *phase;
    const char *name;

    if (json_object_size(phases) == 0)
        return;
    printf("%*sphases:", indent, "");
    json_object_foreach((json_t *)(uintptr_t)phases, name, phase)
    {
        if (json_is_number(phase))
            printf(" %s %.0f", name, json_number_value(phase));
    }
    printf(" (ms)\n");
}

static void print_switch(const json_t *w)
{
    char when[64], outage[32];

    printf("  %s  %s -> %s  %s", ctl_when(ctl_str(w, "at", "?"), when, sizeof(when)),
           ctl_str(w, "from", "none"), ctl_str(w, "to", "none"),
           ctl_str(w, "reason", "?"));
    if (json_is_number(json_object_get(w, "outage_ms")))
        printf("  outage %s",
               ctl_duration(ctl_u64(w, "outage_ms", 0), outage, sizeof(outage)));
    printf("\n");
    ctl_print_phases(json_object_get(w, "phases"), 4);
}

void ctl_print_status(const struct ctl *c, const json_t *s)
{
    const json_t *alarms = json_object_get(s, "alarms"),
                 *switches = json_object_get(s, "switches"), *item;
    size_t i;

    print_head(c, s);
    print_lease(json_object_get(s, "lease"));
    print_nodes(c, s);
    if (json_array_size(alarms) > 0) {
        printf("\n%sAlarms%s\n", ctl_ink(c, CTL_BOLD), ctl_ink(c, CTL_PLAIN));
        json_array_foreach(alarms, i, item)
        {
            print_alarm(c, item);
        }
    }
    if (json_array_size(switches) > 0) {
        printf("\nLast switches\n");
        json_array_foreach(switches, i, item)
        {
            print_switch(item);
        }
    } else if (json_is_object(json_object_get(s, "last_switch"))) {
        printf("\nLast switch\n");
        print_switch(json_object_get(s, "last_switch"));
    }
}
