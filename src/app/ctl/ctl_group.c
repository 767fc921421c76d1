#include "app/ctl/manage.h"

enum { PATH_MAX_BYTES = 1024 };

static int group_path(const char *word, const char *what, struct where *w)
{
    char path[PATH_MAX_BYTES];
    int r = manage_group(word, path, sizeof(path));

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/groups");
    where_add(w, path);
    if (what)
        where_add(w, what);
    return CTL_OK;
}

/* How deep "/a/b" is: the root 0, "/a" 1. */
static int depth_of(const char *path)
{
    int n = 0;

    for (const char *p = path; *p; p++)
        n += *p == '/' && p[1] != '\0';
    return n;
}

static int by_path(const void *a, const void *b)
{
    const json_t *const *x = a, *const *y = b;

    return strcmp(ctl_str(*x, "path", ""), ctl_str(*y, "path", ""));
}

/* The tree: sorted by path, each group indented below its parent. */
static void print_tree(const json_t *items)
{
    size_t n = json_array_size(items);
    const json_t **sorted = calloc(n + 1, sizeof(*sorted));

    CHECK(sorted != NULL);
    for (size_t i = 0; i < n; i++)
        sorted[i] = json_array_get(items, i);
    qsort(sorted, n, sizeof(*sorted), by_path);
    for (size_t i = 0; i < n; i++) {
        const char *path = ctl_str(sorted[i], "path", "?"), *name = strrchr(path, '/');
        const json_t *devices = json_object_get(sorted[i], "devices");
        int width = printf("%*s", 2 * depth_of(path), "");

        width += put_safe(stdout, name && name[1] ? name + 1 : path);
        if (json_is_integer(devices))
            printf("%*s%lld device%s", width < 40 ? 40 - width : 2, "",
                   (long long)json_integer_value(devices),
                   json_integer_value(devices) == 1 ? "" : "s");
        fputc('\n', stdout);
    }
    free(sorted);
}

int cmd_group_list(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/groups");
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_tree(json_object_get(answer, "items"));
    json_decref(answer);
    return r;
}

int cmd_group_show(struct ctl *c)
{
    static const struct column fields[] = {
        { "Path", "path", CELL_TEXT },         { "Id", "id", CELL_TEXT },
        { "Name", "name", CELL_TEXT },         { "Parent", "parent", CELL_TEXT },
        { "Devices", "devices", CELL_TEXT },   { "Groups below", "groups", CELL_TEXT },
        { "Settings", "settings", CELL_TEXT }, { "Made", "created_at", CELL_TIME },
        { "Version", "version", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;
    int r = group_path(c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_fields(c, answer, fields, LEN(fields));
    json_decref(answer);
    return r;
}

/* "/a/b/c" is the group c below /a/b. */
int cmd_group_create(struct ctl *c)
{
    char path[PATH_MAX_BYTES];
    json_t *answer = NULL;
    int r = manage_group(c->argv[0], path, sizeof(path));

    if (r != CTL_OK)
        return r;
    char *name = strrchr(path, '/');

    if (!name || !name[1])
        return ctl_usage("the group / is there already");
    *name++ = '\0';
    r = manage_send(c, "POST", "/v1/groups",
                    json_pack("{s:s, s:s}", "parent", path[0] ? path : "/", "name", name),
                    &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s is made.", ctl_str(answer, "path", c->argv[0]));
    json_decref(answer);
    return r;
}

static int change(struct ctl *c, const char *key, const char *value)
{
    json_t *answer = NULL, *body = json_pack("{s:s}", key, value);
    struct where w;
    int r = group_path(c->argv[0], NULL, &w);

    if (!body)
        return ctl_usage("the name is not UTF-8");
    if (r == CTL_OK)
        r = manage_send(c, "PATCH", w.buf, json_incref(body), &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The group is %s now.", ctl_str(answer, "path", value));
    json_decref(body);
    json_decref(answer);
    return r;
}

int cmd_group_rename(struct ctl *c)
{
    return change(c, "name", c->argv[1]);
}

int cmd_group_move(struct ctl *c)
{
    char parent[PATH_MAX_BYTES];
    int r = manage_group(c->argv[1], parent, sizeof(parent));

    return r != CTL_OK ? r : change(c, "parent", parent);
}

int cmd_group_remove(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = group_path(c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_confirm(c, "The group and its policy are removed. Remove it?");
    if (r == CTL_OK)
        r = manage_send(c, "DELETE", w.buf, NULL, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The group %s is removed.", c->argv[0]);
    json_decref(answer);
    return r;
}
