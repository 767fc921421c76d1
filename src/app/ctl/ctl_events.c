#include "app/ctl/manage.h"

enum { POLL_S = 25, TIME_BYTES = 40 };

static enum ctl_colour ink_of(const char *severity)
{
    if (strcmp(severity, "critical") == 0 || strcmp(severity, "error") == 0)
        return CTL_RED;
    return strcmp(severity, "warning") == 0 ? CTL_YELLOW : CTL_PLAIN;
}

/* "key=value key=value" of an object, nested ones as JSON. */
static void put_data(const json_t *data)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)data, key, v)
    {
        char *text =
            json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

        fputc(' ', stdout);
        (void)put_safe(stdout, key);
        fputc('=', stdout);
        (void)put_safe(stdout, text ? text : json_string_value(v));
        free(text);
    }
}

static void print_event(const struct ctl *c, const json_t *e)
{
    static const struct column at = { "", "at", CELL_TIME };
    const char *severity = ctl_str(e, "severity", "?");
    char *when = cell_text(e, &at);

    printf("%s  %s%-8s%s  ", when ? when : "?", ctl_ink(c, ink_of(severity)), severity,
           ctl_ink(c, CTL_PLAIN));
    free(when);
    (void)put_safe(stdout, ctl_str(e, "kind", "?"));
    fputs("  ", stdout);
    (void)put_safe(stdout, ctl_str(e, "device_name", ctl_str(e, "device", "server")));
    fputc(' ', stdout);
    put_data(json_object_get(e, "data"));
    fputc('\n', stdout);
}

static void show_events(const struct ctl *c, const json_t *items)
{
    const json_t *e;
    size_t i;

    json_array_foreach(items, i, e)
    {
        if (!c->opt.json) {
            print_event(c, e);
            continue;
        }
        (void)json_dumpf(e, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        fputc('\n', stdout);
    }
}

/* "2 h", "30min", "7d" before now as RFC 3339; anything else goes to the server as it is. */
static const char *when_of(const char *text, char buf[TIME_BYTES])
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = { { 's', 1 }, { 'm', 60 }, { 'h', 3600 }, { 'd', 86400 } };
    size_t n = strspn(text, "0123456789");
    uint64_t number;
    struct tm tm;

    if (n == 0 || !str_u64((struct str){ text, n }, 1000000, &number))
        return text;
    for (size_t i = 0; i < LEN(units); i++)
        if (text[n] == units[i].unit && text[n + 1] == '\0') {
            time_t t = time(NULL) - (time_t)((int64_t)number * units[i].seconds);

            (void)strftime(buf, TIME_BYTES, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&t, &tm));
            return buf;
        }
    return text;
}

static void joined(struct where *w, const char *name, const struct ctl_list *list)
{
    char buf[1024];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    for (size_t i = 0; i < list->count; i++)
        text_add(&t, "%s%s", i ? "," : "", list->at[i]);
    if (list->count > 0)
        where_arg(w, name, buf);
}

static int filter(struct ctl *c, struct where *w)
{
    const struct ctl_options *o = &c->opt;
    char group[1024], id[MANAGE_ID], since[TIME_BYTES], until[TIME_BYTES];
    int r = CTL_OK;

    joined(w, "kind", &o->kind);
    joined(w, "severity", &o->severity);
    if (o->since)
        where_arg(w, "since", when_of(o->since, since));
    if (o->until)
        where_arg(w, "until", when_of(o->until, until));
    if (o->group && (r = manage_group(o->group, group, sizeof(group))) == CTL_OK)
        where_arg(w, "group", group);
    if (r == CTL_OK && o->device.count > 1)
        return ctl_usage("--device can be given once here");
    if (r == CTL_OK && o->device.count == 1) {
        r = manage_device(c, o->device.at[0], id);
        if (r == CTL_OK)
            where_arg(w, "device", id);
    }
    return r;
}

/* Remembers the id of the last one. */
static void remember(const json_t *items, json_int_t *after)
{
    const json_t *e;
    size_t i;

    json_array_foreach(items, i, e)
    {
        json_int_t id = json_integer_value(json_object_get(e, "id"));

        if (id > *after)
            *after = id;
    }
}

/* New ones as they come.  An answer that was lost is asked for again from the same id. */
static int follow(struct ctl *c, const struct where *base, json_int_t after)
{
    for (;;) {
        struct manage_answer a;
        struct where w;

        where_start(&w, base->buf);
        where_number(&w, "after", (uint64_t)after);
        where_number(&w, "limit", 500);
        where_number(&w, "wait_s", POLL_S);
        int r = manage_call(
            c, &(struct manage_call){ .method = "GET", .path = w.buf, .wait_s = POLL_S },
            &a);

        if (r == CTL_OK) {
            show_events(c, json_object_get(a.body, "items"));
            remember(json_object_get(a.body, "items"), &after);
            /* Where nothing passed the filter, the server says how far it looked. */
            json_int_t seen = json_integer_value(json_object_get(a.body, "through"));

            after = seen > after ? seen : after;
        }
        json_decref(a.body);
        if (fflush(stdout) != 0)
            r = CTL_FAILED;
        if (r != CTL_OK)
            return r;
    }
}

int cmd_events(struct ctl *c)
{
    json_t *answer = NULL;
    json_int_t after = 0;
    struct where w;

    where_start(&w, "/v1/events");
    int r = filter(c, &w);

    if (r == CTL_OK)
        r = manage_list(c, &w, &answer);
    if (r == CTL_OK) {
        show_events(c, json_object_get(answer, "items"));
        remember(json_object_get(answer, "items"), &after);
        if (!c->opt.follow && !c->opt.json &&
            json_array_size(json_object_get(answer, "items")) == 0)
            printf("No events.\n");
    }
    json_decref(answer);
    return r == CTL_OK && c->opt.follow ? follow(c, &w, after) : r;
}

static void print_act(const struct ctl *c, const json_t *a)
{
    static const struct column at = { "", "at", CELL_TIME };
    static const char *const sides[] = { "before", "after" };
    const json_t *actor = json_object_get(a, "actor");
    char *when = cell_text(a, &at);

    printf("%s  ", when ? when : "?");
    free(when);
    (void)put_safe(stdout, json_is_string(actor) ? json_string_value(actor)
                                                 : ctl_str(actor, "name", "?"));
    printf("  %s", ctl_ink(c, CTL_BOLD));
    (void)put_safe(stdout, ctl_str(a, "action", "?"));
    printf("%s  ", ctl_ink(c, CTL_PLAIN));
    (void)put_safe(stdout, ctl_str(a, "object", "-"));
    fputc('\n', stdout);
    for (size_t i = 0; i < LEN(sides); i++) {
        const json_t *v = json_object_get(a, sides[i]);

        if (!v || json_is_null(v))
            continue;
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

        printf("    %-6s  ", sides[i]);
        (void)put_safe(stdout, text ? text : "");
        fputc('\n', stdout);
        free(text);
    }
}

int cmd_audit(struct ctl *c)
{
    char since[TIME_BYTES], until[TIME_BYTES];
    json_t *answer = NULL, *a;
    struct where w;
    size_t i;

    where_start(&w, "/v1/audit");
    if (c->opt.since)
        where_arg(&w, "since", when_of(c->opt.since, since));
    if (c->opt.until)
        where_arg(&w, "until", when_of(c->opt.until, until));
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        json_array_foreach(json_object_get(answer, "items"), i, a)
        {
            print_act(c, a);
        }
    json_decref(answer);
    return r;
}

/* ---- retention ---- */

static void print_retention(const struct ctl *c, const json_t *answer)
{
    static const struct column columns[] = {
        { "KIND", "kind", CELL_TEXT },
        { "DAYS", "days", CELL_RIGHT },
        { "AT MOST", "count_max", CELL_RIGHT },
    };

    print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                "Nothing is set.");
}

int cmd_retention_show(struct ctl *c)
{
    json_t *answer = NULL;
    int r = manage_get(c, "/v1/retention", &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_retention(c, answer);
    json_decref(answer);
    return r;
}

/* All rows are written at once: the one of this kind is changed or added. */
static int edit_retention(struct ctl *c, const json_t *now, json_t *body)
{
    json_t *items = json_deep_copy(json_object_get(now, "items")), *row, *mine = NULL;
    size_t i;

    if (!json_is_array(items)) {
        json_decref(items);
        items = json_array();
    }
    json_array_foreach(items, i, row)
    {
        if (strcmp(ctl_str(row, "kind", ""), c->argv[0]) == 0)
            mine = row;
    }
    if (!mine) {
        mine = json_pack("{s:s}", "kind", c->argv[0]);
        (void)json_array_append_new(items, mine);
    }
    if (c->opt.keep_days)
        (void)json_object_set_new(mine, "days", json_integer(c->opt.keep_days));
    if (c->opt.keep_count)
        (void)json_object_set_new(mine, "count_max", json_integer(c->opt.keep_count));
    (void)json_object_set_new(body, "items", items);
    return CTL_OK;
}

int cmd_retention_set(struct ctl *c)
{
    json_t *answer = NULL;

    if (!c->opt.keep_days && !c->opt.keep_count)
        return ctl_usage("redoubt retention set needs --days or --count");
    int r = manage_edit(c,
                        &(struct manage_edit){ .path = "/v1/retention",
                                               .method = "PUT",
                                               .edit = edit_retention },
                        &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_retention(c, answer);
    json_decref(answer);
    return r;
}
