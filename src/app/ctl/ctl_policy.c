#include "app/ctl/manage.h"

enum { PATH_MAX_BYTES = 1024 };

static int policy_path(const char *group, const char *what, struct where *w)
{
    char path[PATH_MAX_BYTES];
    int r = manage_group(group, path, sizeof(path));

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/groups");
    where_add(w, path);
    where_add(w, what);
    return CTL_OK;
}

/* {"key":{"value":v,"locked":bool,"from":path or null}} as rows. */
static int by_key(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static json_t *rows_of(const json_t *settings)
{
    size_t n = json_object_size(settings), i = 0;
    const char **keys = calloc(n + 1, sizeof(*keys)), *key;
    json_t *rows = json_array(), *v;

    CHECK(keys != NULL);
    json_object_foreach((json_t *)(uintptr_t)settings, key, v)
    {
        keys[i++] = key;
    }
    qsort(keys, n, sizeof(*keys), by_key);
    for (i = 0; i < n; i++) {
        json_t *row = json_object();

        key = keys[i];
        v = json_object_get(settings, key);

        (void)json_object_set_new(row, "key", json_string(key));
        (void)json_object_set(row, "value", json_object_get(v, "value"));
        (void)json_object_set_new(
            row, "locked", json_string(ctl_bool(v, "locked", false) ? "locked" : ""));
        (void)json_object_set_new(row, "from",
                                  json_string(ctl_str(v, "from", "default")));
        (void)json_array_append_new(rows, row);
    }
    free(keys);
    return rows;
}

static void print_settings(const struct ctl *c, const json_t *answer)
{
    static const struct column own[] = {
        { "SETTING", "key", CELL_TEXT },
        { "LOCKED", "locked", CELL_TEXT },
        { "VALUE", "value", CELL_JSON },
    };
    json_t *rows = rows_of(json_object_get(answer, "settings"));

    print_table(c, rows, own, LEN(own),
                "Nothing is set here: all comes from the groups above.");
    json_decref(rows);
}

static void print_effective(const struct ctl *c, const json_t *answer)
{
    static const struct column all[] = {
        { "SETTING", "key", CELL_TEXT },
        { "FROM", "from", CELL_TEXT },
        { "LOCKED", "locked", CELL_TEXT },
        { "VALUE", "value", CELL_JSON },
    };
    json_t *rows = rows_of(json_object_get(answer, "settings"));

    print_table(c, rows, all, LEN(all), "No settings.");
    json_decref(rows);
}

static int show(struct ctl *c, const char *path,
                void (*print)(const struct ctl *, const json_t *))
{
    json_t *answer = NULL;
    int r = manage_get(c, path, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print(c, answer);
    json_decref(answer);
    return r;
}

int cmd_policy_show(struct ctl *c)
{
    struct where w;
    int r = policy_path(c->argv[0], "policy", &w);

    return r != CTL_OK ? r : show(c, w.buf, print_settings);
}

int cmd_policy_effective(struct ctl *c)
{
    struct where w;
    int r = policy_path(c->argv[0], "effective", &w);

    return r != CTL_OK ? r : show(c, w.buf, print_effective);
}

int cmd_device_policy(struct ctl *c)
{
    char id[MANAGE_ID];
    struct where w;
    int r = manage_device(c, c->argv[0], id);

    if (r != CTL_OK)
        return r;
    where_start(&w, "/v1/devices");
    where_add(&w, id);
    where_add(&w, "policy");
    return show(c, w.buf, print_effective);
}

static void print_catalogue(const struct ctl *c, const json_t *answer)
{
    const json_t *items = json_object_get(answer, "items"), *s;
    size_t i;

    json_array_foreach(items, i, s)
    {
        static const struct column words = { "", "words", CELL_LIST },
                                   standard = { "", "default", CELL_JSON };
        char *choice = cell_text(s, &words), *value = cell_text(s, &standard);

        printf("%s%s%s = %s  (", ctl_ink(c, CTL_BOLD), ctl_str(s, "key", "?"),
               ctl_ink(c, CTL_PLAIN), value ? value : "");
        if (json_array_size(json_object_get(s, "words")) > 0)
            printf("one of %s)\n", choice ? choice : "");
        else if (strcmp(ctl_str(s, "type", ""), "int") == 0)
            printf("%llu to %llu)\n", (unsigned long long)ctl_u64(s, "min", 0),
                   (unsigned long long)ctl_u64(s, "max", 0));
        else
            printf("%s)\n", ctl_str(s, "type", "?"));
        ctl_paragraph(stdout, 4, ctl_str(s, "doc", ""));
        free(choice);
        free(value);
    }
}

int cmd_policy_catalogue(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/settings");
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_catalogue(c, answer);
    json_decref(answer);
    return r;
}

/* ---- changes: the settings are written as a whole, with the version that was read ---- */

static json_t *settings_of(const json_t *now)
{
    json_t *copy = json_deep_copy(json_object_get(now, "settings"));

    return json_is_object(copy) ? copy : json_object();
}

/* "100", "true", "[\"/a\"]", "off": JSON where it is JSON, else text. */
static json_t *value_of(const char *text)
{
    json_t *v = json_loads(text, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL);

    return v ? v : json_string(text);
}

static int set_one(const struct ctl *c, json_t *settings, const char *word)
{
    const char *eq = strchr(word, '=');
    char key[128];

    if (!eq || eq == word ||
        !str_copy(key, sizeof(key), (struct str){ word, (size_t)(eq - word) }))
        return ctl_usage("'%s' is not KEY=VALUE", word);
    json_t *value = value_of(eq + 1), *was = json_object_get(settings, key);

    if (!value)
        return ctl_usage("the value of %s is not UTF-8", key);
    bool locked = c->opt.lock || ctl_bool(was, "locked", false);

    (void)json_object_set_new(settings, key,
                              json_pack("{s:o, s:b}", "value", value, "locked", locked));
    return CTL_OK;
}

static int edit_set(struct ctl *c, const json_t *now, json_t *body)
{
    json_t *settings = settings_of(now);
    int r = CTL_OK;

    for (int i = 1; i < c->argc && r == CTL_OK; i++)
        r = set_one(c, settings, c->argv[i]);
    (void)json_object_set_new(body, "settings", settings);
    return r;
}

static int not_set_here(struct ctl *c, const char *key)
{
    char title[200];

    (void)snprintf(title, sizeof(title), "%.100s is not set in this group", key);
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "not_set", title, NULL,
                                           "redoubt policy effective GROUP shows where "
                                           "each value comes from." });
}

static int edit_unset(struct ctl *c, const json_t *now, json_t *body)
{
    json_t *settings = settings_of(now);
    int r = CTL_OK;

    for (int i = 1; i < c->argc && r == CTL_OK; i++)
        if (json_object_del(settings, c->argv[i]) != 0)
            r = not_set_here(c, c->argv[i]);
    (void)json_object_set_new(body, "settings", settings);
    return r;
}

static int set_locks(struct ctl *c, const json_t *now, json_t *body, bool locked)
{
    json_t *settings = settings_of(now);
    int r = CTL_OK;

    for (int i = 1; i < c->argc && r == CTL_OK; i++) {
        json_t *s = json_object_get(settings, c->argv[i]);

        if (!json_is_object(s))
            r = not_set_here(c, c->argv[i]);
        else
            (void)json_object_set_new(s, "locked", json_boolean(locked));
    }
    (void)json_object_set_new(body, "settings", settings);
    return r;
}

static int edit_lock(struct ctl *c, const json_t *now, json_t *body)
{
    return set_locks(c, now, body, true);
}

static int edit_unlock(struct ctl *c, const json_t *now, json_t *body)
{
    return set_locks(c, now, body, false);
}

static int change(struct ctl *c, int (*edit)(struct ctl *, const json_t *, json_t *))
{
    json_t *answer = NULL;
    struct where w;
    int r = policy_path(c->argv[0], "policy", &w);

    if (r == CTL_OK)
        r = manage_edit(
            c, &(struct manage_edit){ .path = w.buf, .method = "PUT", .edit = edit },
            &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_settings(c, answer);
    json_decref(answer);
    return r;
}

int cmd_policy_set(struct ctl *c)
{
    return change(c, edit_set);
}

int cmd_policy_unset(struct ctl *c)
{
    return change(c, edit_unset);
}

int cmd_policy_lock(struct ctl *c)
{
    return change(c, edit_lock);
}

int cmd_policy_unlock(struct ctl *c)
{
    return change(c, edit_unlock);
}

/* ---- rules ---- */

static void print_rules(const struct ctl *c, const json_t *answer)
{
    static const struct column columns[] = {
        { "NAME", "name", CELL_TEXT }, { "GROUP", "group.path", CELL_TEXT },
        { "TAG", "tag", CELL_TEXT },   { "ADDRESS", "address", CELL_TEXT },
        { "OS", "os", CELL_TEXT },     { "OVERRIDE", "override", CELL_TEXT },
    };
    const json_t *rules = json_object_get(answer, "rules");

    print_table(c, rules ? rules : json_object_get(answer, "items"), columns,
                LEN(columns),
                "No rules: devices stay where they are enrolled or moved to.");
}

int cmd_rules_show(struct ctl *c)
{
    return show(c, "/v1/rules", print_rules);
}

int cmd_rules_set(struct ctl *c)
{
    json_t *file = NULL, *answer = NULL;

    if (!c->opt.file)
        return ctl_usage("redoubt rules set needs --file FILE");
    int r = manage_read_file(c, c->opt.file, &file);

    if (r != CTL_OK)
        return r;
    if (json_is_array(file))
        file = json_pack("{s:o}", "rules", file);
    r = manage_send(c, "PUT", "/v1/rules", file, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_rules(c, answer);
    json_decref(answer);
    return r;
}
