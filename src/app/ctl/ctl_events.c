#include "app/ctl/manage.h"

enum { POLL_S = 25, PAGE = 500, LAST = 100, TIME_BYTES = 40 };

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
    put_data(json_object_get(e, "data"));
    fputc('\n', stdout);
}

static void show_event(const struct ctl *c, const json_t *e)
{
    if (!c->opt.json) {
        print_event(c, e);
        return;
    }
    (void)json_dumpf(e, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
    fputc('\n', stdout);
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

/* The number behind which the next question goes on; as text or as a number. */
static void remember(const json_t *answer, uint64_t *after)
{
    const json_t *v = json_object_get(answer, "after");
    uint64_t n = 0;

    if (json_is_integer(v) && json_integer_value(v) >= 0)
        n = (uint64_t)json_integer_value(v);
    else if (!json_is_string(v) || !str_u64(str_of(json_string_value(v)), INT64_MAX, &n))
        return;
    *after = n > *after ? n : *after;
}

/* New ones as they come.  An answer that was lost is asked for again behind the same
 * number, so each is shown once, over a switch too. */
static int follow(struct ctl *c, const struct where *base, uint64_t after)
{
    for (;;) {
        struct manage_answer a;
        struct where w;
        json_t *e;
        size_t i;

        where_start(&w, base->buf);
        where_number(&w, "after", after);
        where_number(&w, "limit", PAGE);
        where_number(&w, "wait_s", POLL_S);
        int r = manage_call(
            c, &(struct manage_call){ .method = "GET", .path = w.buf, .wait_s = POLL_S },
            &a);

        json_array_foreach(json_object_get(a.body, "items"), i, e)
        {
            show_event(c, e);
        }
        remember(a.body, &after);
        json_decref(a.body);
        if (fflush(stdout) != 0)
            r = CTL_FAILED;
        if (r != CTL_OK)
            return r;
    }
}

/* The newest ones are asked for and shown in the order of time. */
int cmd_events(struct ctl *c)
{
    json_t *answer = NULL;
    uint64_t after = 0;
    struct where w;

    c->opt.limit = c->opt.limit ? c->opt.limit : LAST;
    where_start(&w, "/v1/events");
    int r = filter(c, &w);

    if (r == CTL_OK)
        r = manage_list(c, &w, &answer);
    if (r == CTL_OK) {
        const json_t *items = json_object_get(answer, "items");

        for (size_t i = json_array_size(items); i > 0; i--)
            show_event(c, json_array_get(items, i - 1));
        remember(answer, &after);
        if (!c->opt.follow && !c->opt.json && json_array_size(items) == 0)
            printf("No events.\n");
    }
    json_decref(answer);
    return r == CTL_OK && c->opt.follow ? follow(c, &w, after) : r;
}

static void print_act(const struct ctl *c, const json_t *a)
{
    static const struct column at = { "", "at", CELL_TIME };
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
    print_difference(c, json_object_get(a, "before"), json_object_get(a, "after"));
}

int cmd_audit(struct ctl *c)
{
    char since[TIME_BYTES], until[TIME_BYTES];
    json_t *answer = NULL;
    struct where w;

    c->opt.limit = c->opt.limit ? c->opt.limit : LAST;
    where_start(&w, "/v1/audit");
    if (c->opt.since)
        where_arg(&w, "since", when_of(c->opt.since, since));
    if (c->opt.until)
        where_arg(&w, "until", when_of(c->opt.until, until));
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        for (size_t i = json_array_size(json_object_get(answer, "items")); i > 0; i--)
            print_act(c, json_array_get(json_object_get(answer, "items"), i - 1));
    json_decref(answer);
    return r;
}

/* ---- retention ---- */

/* {"default":{...}, "audit":{...}, ..., "kinds":{"threat_found":{...}}} as rows. */
static void add_rows(json_t *rows, const json_t *from)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)from, key, v)
    {
        if (!json_is_object(v) || strcmp(key, "kinds") == 0)
            continue;
        json_t *row = json_copy(v);

        (void)json_object_set_new(row, "kind", json_string(key));
        (void)json_array_append_new(rows, row);
    }
}

static void print_retention(const struct ctl *c, const json_t *answer)
{
    static const struct column columns[] = {
        { "KIND", "kind", CELL_TEXT },
        { "DAYS", "days", CELL_RIGHT },
        { "AT MOST", "count_max", CELL_RIGHT },
    };
    json_t *rows = json_array();

    add_rows(rows, answer);
    add_rows(rows, json_object_get(answer, "kinds"));
    print_table(c, rows, columns, LEN(columns), "Nothing is set.");
    json_decref(rows);
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

/* All of it is written at once: what there is of this kind is changed, or it is added. */
static int edit_retention(struct ctl *c, const json_t *now, json_t *body)
{
    static const char *const own[] = { "default", "audit", "reports", "runs" };
    json_t *kinds, *mine, *in;

    (void)json_object_update_new(body, json_deep_copy(now));
    kinds = json_object_get(body, "kinds");
    if (!json_is_object(kinds)) {
        kinds = json_object();
        (void)json_object_set_new(body, "kinds", kinds);
    }
    in = kinds;
    for (size_t i = 0; i < LEN(own); i++)
        if (strcmp(c->argv[0], own[i]) == 0)
            in = body;
    mine = json_object_get(in, c->argv[0]);
    if (!json_is_object(mine)) {
        mine = json_object();
        /* The days have no default: those of all others. */
        (void)json_object_set(mine, "days",
                              json_object_get(json_object_get(body, "default"), "days"));
        (void)json_object_set_new(in, c->argv[0], mine);
    }
    if (c->opt.keep_days)
        (void)json_object_set_new(mine, "days", json_integer(c->opt.keep_days));
    if (c->opt.keep_count)
        (void)json_object_set_new(mine, "count_max", json_integer(c->opt.keep_count));
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
