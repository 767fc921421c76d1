#include "app/ctl/manage.h"

enum { MATCHES_SHOWN = 5 };

static bool is_uuid(const char *s)
{
    if (strlen(s) != 36)
        return false;
    for (size_t i = 0; i < 36; i++)
        if (i == 8 || i == 13 || i == 18 || i == 23
                ? s[i] != '-'
                : !strchr("0123456789abcdefABCDEF", s[i]))
            return false;
    return true;
}

/* Four digits of an id at least, or any word would be the beginning of some. */
static bool begins_id(const char *word, const char *id)
{
    size_t n = strlen(word);

    return n >= 4 && strncasecmp(id, word, n) == 0;
}

struct wanted {
    const char *what;  /* "device" */
    const char *word;  /* of the command line */
    const char *title; /* the member that names it: "name" */
    const json_t *items;
};

static void list_matches(const struct wanted *w, bool by_name, char *buf, size_t size)
{
    const json_t *item;
    struct text t;
    size_t i, shown = 0;

    text_init(&t, buf, size);
    json_array_foreach(w->items, i, item)
    {
        const char *id = ctl_str(item, "id", ""), *name = ctl_str(item, w->title, "");

        if (by_name ? strcmp(name, w->word) != 0 : !begins_id(w->word, id))
            continue;
        if (shown++ == MATCHES_SHOWN)
            text_add(&t, ", ...");
        else if (shown < MATCHES_SHOWN)
            text_add(&t, "%s%s (%.100s)", shown > 1 ? ", " : "", id, name);
    }
}

/* The one that the word means: a name goes before the beginning of an id. */
static int choose(struct ctl *c, const struct wanted *w, char id[MANAGE_ID])
{
    const json_t *item, *found[2] = { NULL, NULL };
    size_t count[2] = { 0, 0 }, i;
    char text[700], title[200];

    json_array_foreach(w->items, i, item)
    {
        if (strcmp(ctl_str(item, w->title, ""), w->word) == 0 && count[0]++ == 0)
            found[0] = item;
        if (begins_id(w->word, ctl_str(item, "id", "")) && count[1]++ == 0)
            found[1] = item;
    }
    int which = count[0] > 0 ? 0 : 1;

    if (count[which] == 1 &&
        str_copy(id, MANAGE_ID, str_of(ctl_str(found[which], "id", ""))))
        return CTL_OK;
    if (count[which] == 0) {
        (void)snprintf(title, sizeof(title), "There is no %s '%.120s'", w->what, w->word);
        (void)snprintf(text, sizeof(text), "redoubt %s list shows them.", w->what);
        return ctl_fail(
            c, CTL_FAILED,
            &(struct ctl_problem){ "not_found", title,
                                   "Neither a name nor the beginning of an id "
                                   "(four characters or more) is like this.",
                                   text });
    }
    (void)snprintf(title, sizeof(title), "'%.120s' means more than one %s", w->word,
                   w->what);
    list_matches(w, which == 0, text, sizeof(text));
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){ "ambiguous", title, text, "Give the id, or more of it." });
}

static int find(struct ctl *c, const char *path, const char *what, const char *word,
                char id[MANAGE_ID])
{
    struct wanted w = { .what = what, .word = word, .title = "name" };
    uint32_t limit = c->opt.limit;
    json_t *answer = NULL;
    struct where where;

    if (is_uuid(word)) {
        (void)snprintf(id, MANAGE_ID, "%s", word);
        return CTL_OK;
    }
    where_start(&where, path);
    if (strcmp(what, "device") == 0)
        where_arg(&where, "q", word); /* the server looks into names and ids */
    c->opt.limit = 5000;
    int r = manage_list(c, &where, &answer);

    c->opt.limit = limit;
    w.items = json_object_get(answer, "items");
    if (r == CTL_OK)
        r = choose(c, &w, id);
    json_decref(answer);
    return r;
}

int manage_device(struct ctl *c, const char *word, char id[MANAGE_ID])
{
    return find(c, "/v1/devices", "device", word, id);
}

int manage_task(struct ctl *c, const char *word, char id[MANAGE_ID])
{
    return find(c, "/v1/tasks", "task", word, id);
}

/* "name=version" */
static int find_version(struct ctl *c, const char *word, const char *equals,
                        char id[MANAGE_ID])
{
    const json_t *item, *found = NULL;
    json_t *answer = NULL;
    struct where where;
    char name[128], title[200];
    size_t i, count = 0;

    (void)snprintf(name, sizeof(name), "%.*s", (int)(equals - word), word);
    where_start(&where, "/v1/packages");
    where_arg(&where, "name", name);
    int r = manage_list(c, &where, &answer);
    json_array_foreach(json_object_get(answer, "items"), i, item)
    {
        if (strcmp(ctl_str(item, "version", ""), equals + 1) == 0 && count++ == 0)
            found = item;
    }
    (void)snprintf(title, sizeof(title), "There is no package '%.120s'", word);
    if (r == CTL_OK && count == 1 &&
        str_copy(id, MANAGE_ID, str_of(ctl_str(found, "id", ""))))
        r = CTL_OK;
    else if (r == CTL_OK)
        r = ctl_fail(c, CTL_FAILED,
                     &(struct ctl_problem){
                         count > 1 ? "ambiguous" : "not_found",
                         count > 1 ? "There is one for more than one platform" : title,
                         NULL, "redoubt package list shows them with their ids." });
    json_decref(answer);
    return r;
}

int manage_package(struct ctl *c, const char *word, char id[MANAGE_ID])
{
    const char *equals = strchr(word, '=');

    return equals ? find_version(c, word, equals, id)
                  : find(c, "/v1/packages", "package", word, id);
}

int manage_rollout(struct ctl *c, const char *word, char id[MANAGE_ID])
{
    return find(c, "/v1/rollouts", "rollout", word, id);
}

int manage_group(const char *word, char *path, size_t size)
{
    size_t n = strlen(word);
    struct text t;

    text_init(&t, path, size);
    if (is_uuid(word)) {
        text_add(&t, "%s", word);
        return CTL_OK;
    }
    while (n > 1 && word[n - 1] == '/')
        n--;
    text_add(&t, "%s%.*s", word[0] == '/' ? "" : "/", (int)n, word);
    if (t.cut)
        return ctl_usage("'%.40s...' is too long a path of a group", word);
    return CTL_OK;
}
