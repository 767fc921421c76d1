#include <errno.h>

#include "app/ctl/manage.h"

/* ---- the file ---- */

static int bad_file(struct ctl *c, const char *name, const char *why)
{
    char title[300];

    (void)snprintf(title, sizeof(title), "%.200s cannot be used", name);
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){ "bad_file", title, why,
                               "It must be a file in YAML or JSON, as redoubt "
                               "export prints it." });
}

/* All of it; NULL after printing why not. */
static char *read_all(struct ctl *c, const char *name, size_t *ret_n, int *ret)
{
    FILE *f = strcmp(name, "-") == 0 ? stdin : fopen(name, "re");
    char *text = malloc(YAML_BYTES_MAX + 1);

    CHECK(text != NULL);
    if (!f) {
        *ret = bad_file(c, name, strerror(errno));
        free(text);
        return NULL;
    }
    *ret_n = fread(text, 1, YAML_BYTES_MAX + 1, f);
    bool broken = ferror(f) != 0;

    if (f != stdin)
        (void)fclose(f); /* it was only read */
    if (!broken && *ret_n <= YAML_BYTES_MAX)
        return text;
    *ret = bad_file(c, name, broken ? strerror(errno) : "it is too long");
    free(text);
    return NULL;
}

int manage_read_file(struct ctl *c, const char *name, json_t **out)
{
    int r = CTL_FAILED;
    char why[300] = "";
    json_error_t e;
    size_t n = 0;
    char *text = read_all(c, name, &n, &r);

    *out = NULL;
    if (!text)
        return r;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    /* Most JSON is YAML as well; what is not JSON is told in YAML's words. */
    if (!*out)
        *out = yaml_read(text, n, why, sizeof(why));
    free(text);
    return *out ? CTL_OK : bad_file(c, name, why);
}

/* ---- the difference ---- */

static void put_change(const struct ctl *c, const json_t *change)
{
    const json_t *before = json_object_get(change, "before"),
                 *after = json_object_get(change, "after");

    printf("%s", ctl_ink(c, CTL_BOLD));
    (void)put_safe(stdout, ctl_str(change, "action", "?"));
    fputc(' ', stdout);
    (void)put_safe(stdout, ctl_str(change, "object", "?"));
    printf("%s\n", ctl_ink(c, CTL_PLAIN));
    print_difference(c, before, after);
}

static void print_changes(const struct ctl *c, const json_t *answer)
{
    const json_t *changes = json_object_get(answer, "changes"), *change;
    size_t i, n = json_array_size(changes);

    json_array_foreach(changes, i, change)
    {
        put_change(c, change);
    }
    if (n == 0)
        printf("Nothing differs.\n");
    else if (c->opt.dry_run)
        printf("%zu change%s; nothing was done (dry run).\n", n, n == 1 ? "" : "s");
    else
        printf("%zu change%s, done.\n", n, n == 1 ? "" : "s");
}

int cmd_apply(struct ctl *c)
{
    json_t *file = NULL, *answer = NULL;

    if (!c->opt.file)
        return ctl_usage("redoubt apply needs --file FILE");
    int r = manage_read_file(c, c->opt.file, &file);

    if (r != CTL_OK)
        return r;
    if (c->opt.prune && json_is_object(file))
        (void)json_object_set_new(file, "prune", json_true());
    r = manage_send(c, "POST", c->opt.dry_run ? "/v1/apply?dry_run=1" : "/v1/apply", file,
                    &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_changes(c, answer);
    json_decref(answer);
    return r;
}

/* ---- export ---- */

/* What people look for first; the others follow in the order of the alphabet. */
static const char *const first_keys[] = { "version", "groups",    "policies", "rules",
                                          "tasks",   "retention", "name",     "type",
                                          "params",  "target",    "schedule", "value" };

static size_t rank_of(const char *key)
{
    for (size_t i = 0; i < LEN(first_keys); i++)
        if (strcmp(key, first_keys[i]) == 0)
            return i;
    return LEN(first_keys);
}

static int by_rank(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    size_t i = rank_of(*x), k = rank_of(*y);

    return i != k ? (i > k) - (i < k) : strcmp(*x, *y);
}

/* A copy with the members of each object in order. */
static json_t *in_order(const json_t *j)
{
    size_t n = json_object_size(j), i = 0;
    json_t *copy, *v;
    const char *key;

    if (json_is_array(j)) {
        copy = json_array();
        json_array_foreach(j, i, v)
        {
            (void)json_array_append_new(copy, in_order(v));
        }
        return copy;
    }
    if (!json_is_object(j))
        return json_copy((json_t *)(uintptr_t)j);
    const char **keys = calloc(n + 1, sizeof(*keys));

    CHECK(keys != NULL);
    json_object_foreach((json_t *)(uintptr_t)j, key, v)
    {
        keys[i++] = key;
    }
    qsort(keys, n, sizeof(*keys), by_rank);
    copy = json_object();
    for (i = 0; i < n; i++)
        (void)json_object_set_new(copy, keys[i], in_order(json_object_get(j, keys[i])));
    free(keys);
    return copy;
}

int cmd_export(struct ctl *c)
{
    json_t *answer = NULL;
    int r = manage_get(c, "/v1/export", &answer);

    if (r == CTL_OK && c->opt.json) {
        ctl_print_json(answer);
    } else if (r == CTL_OK) {
        json_t *j = in_order(answer);

        r = yaml_write(j, stdout) ? CTL_OK : CTL_FAILED;
        json_decref(j);
    }
    json_decref(answer);
    return r;
}
