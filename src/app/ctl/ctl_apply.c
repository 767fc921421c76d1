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

static void put_sides(const struct ctl *c, char sign, enum ctl_colour ink,
                      const char *key, const json_t *v)
{
    char *text =
        v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_SORT_KEYS) : NULL;

    if (!text)
        return;
    printf("%s    %c ", ctl_ink(c, ink), sign);
    (void)put_safe(stdout, key);
    fputs(key[0] ? ": " : "", stdout);
    (void)put_safe(stdout, text);
    printf("%s\n", ctl_ink(c, CTL_PLAIN));
    free(text);
}

static void put_member(const struct ctl *c, const char *key, const json_t *before,
                       const json_t *after)
{
    if (before && after && json_equal(before, after))
        return;
    put_sides(c, '-', CTL_RED, key, before);
    put_sides(c, '+', CTL_GREEN, key, after);
}

/* Member by member, so that one changed setting of a policy is one line. */
static void put_change(const struct ctl *c, const json_t *change)
{
    json_t *before = json_object_get(change, "before"),
           *after = json_object_get(change, "after"), *v;
    const char *key;

    printf("%s", ctl_ink(c, CTL_BOLD));
    (void)put_safe(stdout, ctl_str(change, "action", "?"));
    fputc(' ', stdout);
    (void)put_safe(stdout, ctl_str(change, "object", "?"));
    printf("%s\n", ctl_ink(c, CTL_PLAIN));
    if (!json_is_object(before) && !json_is_object(after)) {
        put_member(c, "", json_is_null(before) ? NULL : before,
                   json_is_null(after) ? NULL : after);
        return;
    }
    json_object_foreach(before, key, v)
    {
        put_member(c, key, v, json_object_get(after, key));
    }
    json_object_foreach(after, key, v)
    {
        if (!json_object_get(before, key))
            put_member(c, key, NULL, v);
    }
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

int cmd_export(struct ctl *c)
{
    json_t *answer = NULL;
    int r = manage_get(c, "/v1/export", &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK && !yaml_write(answer, stdout))
        r = CTL_FAILED;
    json_decref(answer);
    return r;
}
