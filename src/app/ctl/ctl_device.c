#include "app/ctl/manage.h"

static const struct column device_columns[] = {
    { "ID", "id", CELL_ID },
    { "NAME", "name", CELL_TEXT },
    { "GROUP", "group.path", CELL_TEXT },
    { "STATUS", "status", CELL_TEXT },
    { "STATE", "state", CELL_TEXT },
    { "CONNECTED", "connected", CELL_TEXT },
    { "POLICY", "policy.state", CELL_TEXT },
    { "LAST SEEN", "last_seen", CELL_AGO },
    { "TAGS", "tags", CELL_LIST },
};

static const struct column device_fields[] = {
    { "Id", "id", CELL_TEXT },
    { "Name", "name", CELL_TEXT },
    { "Calls itself", "told_name", CELL_TEXT },
    { "Group", "group.path", CELL_TEXT },
    { "Tags", "tags", CELL_LIST },
    { "State", "state", CELL_TEXT },
    { "Status", "status", CELL_TEXT },
    { "Since", "status_at", CELL_TIME },
    { "Connected", "connected", CELL_TEXT },
    { "To node", "connection.node", CELL_TEXT },
    { "Address", "address", CELL_TEXT },
    { "Policy", "policy.state", CELL_TEXT },
    { "Policy error", "policy.error", CELL_TEXT },
    { "First seen", "first_seen", CELL_TIME },
    { "Last seen", "last_seen", CELL_AGO },
    { "Certificate", "certificate.serial", CELL_TEXT },
    { "Certificate ends", "certificate.not_after", CELL_TIME },
};

static int device_path(struct ctl *c, const char *word, const char *what, struct where *w)
{
    char id[MANAGE_ID];
    int r = manage_device(c, word, id);

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/devices");
    where_add(w, id);
    if (what)
        where_add(w, what);
    return CTL_OK;
}

int cmd_device_list(struct ctl *c)
{
    const struct ctl_options *o = &c->opt;
    json_t *answer = NULL;
    struct where w;
    char group[1024];

    where_start(&w, "/v1/devices");
    if (o->group) {
        int r = manage_group(o->group, group, sizeof(group));

        if (r != CTL_OK)
            return r;
        where_arg(&w, "group", group);
    }
    where_arg(&w, "status", o->status);
    where_arg(&w, "state", o->state);
    where_arg(&w, "q", o->search);
    where_arg(&w, "tag", o->tag);
    if (o->connected || o->offline)
        where_arg(&w, "connected", o->connected ? "true" : "false");
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && o->json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), device_columns,
                    LEN(device_columns), "No devices.");
    json_decref(answer);
    return r;
}

static void print_reasons(const json_t *reasons)
{
    const json_t *reason;
    size_t i;

    json_array_foreach(reasons, i, reason)
    {
        fputs("  ", stdout);
        (void)put_safe(stdout, ctl_str(reason, "severity", "?"));
        fputs(": ", stdout);
        (void)put_safe(stdout, ctl_str(reason, "text", "?"));
        fputc('\n', stdout);
    }
}

/* What the device tells of itself: {"os.type":"linux", ...}. */
static void print_facts(const json_t *facts)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)facts, key, v)
    {
        struct column column = { "", key, CELL_TEXT };
        json_t *one = json_object(); /* the key may hold dots: not a path */

        (void)json_object_set(one, "v", v);
        column.key = "v";
        char *text = cell_text(one, &column);

        fputs("  ", stdout);
        (void)put_safe(stdout, key);
        fputs(": ", stdout);
        (void)put_safe(stdout, text ? text : "");
        fputc('\n', stdout);
        free(text);
        json_decref(one);
    }
}

static void print_device(const struct ctl *c, const json_t *d)
{
    const json_t *facts = json_object_get(d, "description");

    print_fields(c, d, device_fields, LEN(device_fields));
    if (json_array_size(json_object_get(d, "reasons")) > 0) {
        printf("Reasons of the status:\n");
        print_reasons(json_object_get(d, "reasons"));
    }
    if (json_is_object(facts) && json_object_size(facts) > 0) {
        printf("What it tells of itself:\n");
        print_facts(json_object_get(facts, "identifying"));
        print_facts(json_object_get(facts, "non_identifying"));
    }
}

int cmd_device_show(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = device_path(c, c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_device(c, answer);
    json_decref(answer);
    return r;
}

/* ---- changes of one or more devices ---- */

struct act {
    const char *method, *what; /* "approve", NULL: the device itself */
    json_t *body;              /* borrowed */
    const char *words;         /* "%s is approved." without the name */
};

/* The same for each of argv[0..count); the answers as a list with --json. */
static int for_each_device(struct ctl *c, int count, const struct act *a)
{
    json_t *answers = json_array();
    int r = CTL_OK;

    for (int i = 0; i < count && r == CTL_OK; i++) {
        json_t *answer = NULL;
        struct where w;

        r = device_path(c, c->argv[i], a->what, &w);
        if (r == CTL_OK)
            r = manage_send(c, a->method, w.buf, json_incref(a->body), &answer);
        if (r == CTL_OK && c->opt.json)
            (void)json_array_append(answers, answer);
        else if (r == CTL_OK)
            say_done(c, NULL, "%s %s", ctl_str(answer, "name", c->argv[i]), a->words);
        json_decref(answer);
    }
    if (c->opt.json && r == CTL_OK) {
        json_t *all = json_pack("{s:O}", "items", answers);

        ctl_print_json(count == 1 ? json_array_get(answers, 0) : all);
        json_decref(all);
    }
    json_decref(answers);
    return r;
}

int cmd_device_move(struct ctl *c)
{
    char group[1024], words[1100];
    int r = manage_group(c->argv[c->argc - 1], group, sizeof(group));

    if (r != CTL_OK)
        return r;
    json_t *body = json_pack("{s:s}", "group", group);

    (void)snprintf(words, sizeof(words), "is in %s.", group);
    r = for_each_device(c, c->argc - 1,
                        &(struct act){ .method = "PATCH", .body = body, .words = words });
    json_decref(body);
    return r;
}

int cmd_device_rename(struct ctl *c)
{
    json_t *body = json_pack("{s:s}", "name", c->argv[1]);

    if (!body)
        return ctl_usage("the name is not UTF-8");
    int r = for_each_device(
        c, 1, &(struct act){ .method = "PATCH", .body = body, .words = "is its name." });

    json_decref(body);
    return r;
}

int cmd_device_approve(struct ctl *c)
{
    json_t *body = json_object();
    int r = for_each_device(
        c, c->argc,
        &(struct act){
            .method = "POST", .what = "approve", .body = body, .words = "is approved." });

    json_decref(body);
    return r;
}

int cmd_device_revoke(struct ctl *c)
{
    int r = manage_confirm(c, "The device is refused from now on and has to be enrolled "
                              "again with a token. Revoke it?");

    if (r != CTL_OK)
        return r;
    json_t *body = json_pack("{s:s*}", "reason", c->opt.reason);

    r = for_each_device(
        c, c->argc,
        &(struct act){
            .method = "POST", .what = "revoke", .body = body, .words = "is revoked." });
    json_decref(body);
    return r;
}

int cmd_device_remove(struct ctl *c)
{
    int r = manage_confirm(c, "The device, its results and its quarantine list are "
                              "forgotten, and its certificate is refused. Remove it?");

    return r != CTL_OK ? r
                       : for_each_device(
                             c, c->argc,
                             &(struct act){ .method = "DELETE", .words = "is removed." });
}

/* ---- tags: all are written at once, so they are read first ---- */

static bool in_words(const struct ctl *c, const char *tag)
{
    for (int i = 1; i < c->argc; i++)
        if (strcmp(c->argv[i], tag) == 0)
            return true;
    return false;
}

/* The tags that stay: those that the command does not name. */
static json_t *other_tags(const struct ctl *c, const json_t *now)
{
    json_t *tags = json_array();
    const json_t *tag;
    size_t i;

    json_array_foreach(json_object_get(now, "tags"), i, tag)
    {
        if (json_is_string(tag) && !in_words(c, json_string_value(tag)))
            (void)json_array_append(tags, (json_t *)(uintptr_t)tag);
    }
    return tags;
}

static int add_tags(struct ctl *c, const json_t *now, json_t *body)
{
    json_t *tags = other_tags(c, now);

    for (int i = 1; i < c->argc; i++)
        if (json_array_append_new(tags, json_string(c->argv[i])) != 0) {
            json_decref(tags);
            return ctl_usage("a tag is not UTF-8");
        }
    (void)json_object_set_new(body, "tags", tags);
    return CTL_OK;
}

static int drop_tags(struct ctl *c, const json_t *now, json_t *body)
{
    (void)json_object_set_new(body, "tags", other_tags(c, now));
    return CTL_OK;
}

static int change_tags(struct ctl *c, int (*edit)(struct ctl *, const json_t *, json_t *))
{
    static const struct column tags = { "", "tags", CELL_LIST };
    json_t *answer = NULL;
    struct where w;
    int r = device_path(c, c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_edit(
            c, &(struct manage_edit){ .path = w.buf, .method = "PATCH", .edit = edit },
            &answer);
    if (r == CTL_OK) {
        char *text = cell_text(answer, &tags);

        say_done(c, answer, "%s has the tags: %s", ctl_str(answer, "name", c->argv[0]),
                 text ? text : "");
        free(text);
    }
    json_decref(answer);
    return r;
}

int cmd_device_tag(struct ctl *c)
{
    return change_tags(c, add_tags);
}

int cmd_device_untag(struct ctl *c)
{
    return change_tags(c, drop_tags);
}

int cmd_device_quarantine(struct ctl *c)
{
    static const struct column columns[] = {
        { "ITEM", "item", CELL_TEXT },   { "AT", "at", CELL_TIME },
        { "STATE", "state", CELL_TEXT }, { "THREAT", "threat", CELL_TEXT },
        { "BYTES", "size", CELL_RIGHT }, { "PATH", "path", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;
    int r = device_path(c, c->argv[0], "quarantine", &w);

    if (r == CTL_OK)
        r = manage_list(c, &w, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                    "Nothing is in quarantine.");
    json_decref(answer);
    return r;
}
