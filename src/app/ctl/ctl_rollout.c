#include <unistd.h>

#include "app/ctl/manage.h"

enum { WAVES_MAX = 20, SOAK_MAX_MIN = 10080, FAILURES_MAX = 1000000 };

static int rollout_path(struct ctl *c, const char *what, struct where *w)
{
    char id[MANAGE_ID];
    int r = manage_rollout(c, c->argv[0], id);

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/rollouts");
    where_add(w, id);
    if (what)
        where_add(w, what);
    return CTL_OK;
}

/* "5,25,100" */
static int waves_of(const char *text, json_t **out)
{
    json_t *list = json_array();
    uint64_t percent, before = 0;
    bool ok = true;

    for (const char *p = text; ok && *p; p += strspn(p, ",")) {
        struct str word = { p, strcspn(p, ",") };

        ok = str_u64(word, 100, &percent) && percent > before &&
             json_array_size(list) < WAVES_MAX;
        before = percent;
        (void)json_array_append_new(list, json_integer((json_int_t)percent));
        p += word.n;
    }
    if (ok && before == 100) {
        *out = list;
        return CTL_OK;
    }
    json_decref(list);
    return ctl_usage("--waves takes rising numbers of per cent up to 100: 5,25,100");
}

static int number_of(const char *text, uint64_t max, const char *option, json_t *body,
                     const char *key, uint64_t unit)
{
    uint64_t v;

    if (!text)
        return CTL_OK;
    if (!str_u64(str_of(text), max, &v))
        return ctl_usage("%s takes a number up to %llu", option, (unsigned long long)max);
    (void)json_object_set_new(body, key, json_integer((json_int_t)(v * unit)));
    return CTL_OK;
}

/* What is to be done, from PACKAGE[=VERSION] and the options. */
static int body_of(struct ctl *c, json_t *body)
{
    const struct ctl_options *o = &c->opt;
    const char *version = strchr(c->argv[0], '=');
    size_t name_n = version ? (size_t)(version - c->argv[0]) : strlen(c->argv[0]);
    char group[1024];
    json_t *waves = NULL;
    int r = o->group ? manage_group(o->group, group, sizeof(group))
                     : ctl_usage("redoubt rollout start needs --group GROUP");

    if (r != CTL_OK)
        return r;
    (void)json_object_set_new(body, "package", json_stringn(c->argv[0], name_n));
    if (version)
        (void)json_object_set_new(body, "version", json_string(version + 1));
    (void)json_object_set_new(body, "group", json_string(group));
    if (o->waves && (r = waves_of(o->waves, &waves)) == CTL_OK)
        (void)json_object_set_new(body, "waves", waves);
    if (r == CTL_OK)
        r = number_of(o->soak, SOAK_MAX_MIN, "--soak", body, "soak_s", 60);
    if (r == CTL_OK)
        r = number_of(o->max_failures, FAILURES_MAX, "--max-failures", body,
                      "max_failures", 1);
    return r;
}

/* ---- progress ---- */

static uint64_t total(const json_t *rollout, const char *key)
{
    return ctl_u64(json_object_get(rollout, "totals"), key, 0);
}

static bool is_over(const json_t *rollout)
{
    const char *state = ctl_str(rollout, "state", "");

    if (strcmp(state, "rolled_back") == 0)
        return json_is_string(json_object_get(rollout, "finished_at"));
    return strcmp(state, "running") != 0 && strcmp(state, "paused") != 0;
}

static void show_progress(const struct ctl *c, const json_t *o, char *last, size_t size)
{
    static const char full[] = "##############################";
    static const char *const parts[] = { "total",      "offered",     "downloading",
                                         "installing", "installed",   "failed",
                                         "returning",  "rolled_back", "withdrawn" };
    uint64_t all = total(o, "total");
    uint64_t done = total(o, "installed") + total(o, "failed") + total(o, "rolled_back") +
                    total(o, "withdrawn");
    unsigned p = all ? (unsigned)(done * 100 / all) : 0;
    char *line = NULL;
    size_t n;
    FILE *to = open_memstream(&line, &n);

    if (!to)
        return;
    fprintf(to, "[%-30.*s] %3u %%  ", (int)(p * 30 / 100), full, p);
    (void)put_safe(to, ctl_str(o, "state", "?"));
    fprintf(to, "  wave %llu/%zu", (unsigned long long)ctl_u64(o, "wave", 0),
            json_array_size(json_object_get(o, "waves")));
    for (size_t i = 0; i < LEN(parts); i++)
        if (total(o, parts[i]) > 0)
            fprintf(to, "  %s %llu", parts[i], (unsigned long long)total(o, parts[i]));
    if (ctl_str(o, "why", "")[0]) {
        fprintf(to, "  ");
        (void)put_safe(to, ctl_str(o, "why", ""));
    }
    if (fclose(to) == 0 && strcmp(line, last) != 0) {
        (void)snprintf(last, size, "%s", line);
        /* One line that moves on a terminal, a line a change elsewhere. */
        fprintf(stderr, c->tty ? "\r\033[K%s" : "%s\n", line);
    }
    free(line);
}

static int watch(struct ctl *c, const char *id)
{
    struct where w;
    char last[1200] = "";

    where_start(&w, "/v1/rollouts");
    where_add(&w, id);
    for (;;) {
        json_t *o = NULL;
        int r = manage_get(c, w.buf, &o);
        bool over = r == CTL_OK && is_over(o);

        if (r == CTL_OK && !c->opt.json)
            show_progress(c, o, last, sizeof(last));
        if (over) {
            if (c->tty && !c->opt.json)
                fputc('\n', stderr);
            if (c->opt.json)
                ctl_print_json(o);
            r = strcmp(ctl_str(o, "state", ""), "done") == 0 && total(o, "failed") == 0
                    ? CTL_OK
                    : CTL_FAILED;
        }
        json_decref(o);
        if (r != CTL_OK || over)
            return r;
        (void)sleep(1);
    }
}

/* ---- the commands ---- */

int cmd_rollout_start(struct ctl *c)
{
    json_t *body = json_object(), *answer = NULL;
    int r = body_of(c, body);

    if (r != CTL_OK) {
        json_decref(body);
        return r;
    }
    r = manage_send(c, "POST", "/v1/rollouts", body, &answer);
    const char *id = ctl_str(answer, "id", "?");
    if (r == CTL_OK && (c->opt.json || !c->opt.watch))
        say_done(c, answer, "%s %s is rolled out: %s", ctl_str(answer, "package", "?"),
                 ctl_str(answer, "version", "?"), id);
    if (r == CTL_OK && c->opt.watch)
        r = watch(c, id);
    json_decref(answer);
    return r;
}

int cmd_rollout_list(struct ctl *c)
{
    static const struct column columns[] = {
        { "ID", "id", CELL_ID },
        { "PACKAGE", "package", CELL_TEXT },
        { "VERSION", "version", CELL_TEXT },
        { "GROUP", "group.path", CELL_TEXT },
        { "STATE", "state", CELL_TEXT },
        { "WAVE", "wave", CELL_RIGHT },
        { "DEVICES", "totals.total", CELL_RIGHT },
        { "INSTALLED", "totals.installed", CELL_RIGHT },
        { "FAILED", "totals.failed", CELL_RIGHT },
        { "BEGUN", "created_at", CELL_TIME },
        { "WHY", "why", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/rollouts");
    int r = manage_list(c, &w, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                    "No rollouts.");
    json_decref(answer);
    return r;
}

static void print_rollout(const struct ctl *c, const json_t *rollout)
{
    static const struct column fields[] = {
        { "Id", "id", CELL_TEXT },
        { "Package", "package", CELL_TEXT },
        { "Version", "version", CELL_TEXT },
        { "Group", "group.path", CELL_TEXT },
        { "Waves", "waves", CELL_LIST },
        { "Soak s", "soak_s", CELL_TEXT },
        { "Failures allowed", "max_failures", CELL_TEXT },
        { "State", "state", CELL_TEXT },
        { "Why", "why", CELL_TEXT },
        { "Wave", "wave", CELL_TEXT },
        { "Watched until", "soak_until", CELL_TIME },
        { "Totals", "totals", CELL_JSON },
        { "Begun", "created_at", CELL_TIME },
        { "By", "created_by", CELL_TEXT },
        { "Finished", "finished_at", CELL_TIME },
    };

    print_fields(c, rollout, fields, LEN(fields));
}

int cmd_rollout_show(struct ctl *c)
{
    static const struct column columns[] = {
        { "DEVICE", "device_name", CELL_TEXT },
        { "WAVE", "wave", CELL_RIGHT },
        { "STATE", "state", CELL_TEXT },
        { "%", "percent", CELL_RIGHT },
        { "BEFORE", "before", CELL_TEXT },
        { "HAS", "has", CELL_TEXT },
        { "WELL", "healthy", CELL_TEXT },
        { "CHANGED", "changed_at", CELL_TIME },
        { "WHY", "why", CELL_TEXT },
    };
    json_t *rollout = NULL, *devices = NULL;
    struct where w;
    int r = rollout_path(c, NULL, &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &rollout);
    if (r == CTL_OK) {
        where_add(&w, "devices");
        r = manage_list(c, &w, &devices);
    }
    if (r == CTL_OK && c->opt.json) {
        (void)json_object_set(rollout, "devices", json_object_get(devices, "items"));
        ctl_print_json(rollout);
    } else if (r == CTL_OK) {
        print_rollout(c, rollout);
        print_table(c, json_object_get(devices, "items"), columns, LEN(columns),
                    "No device was offered it yet.");
    }
    json_decref(rollout);
    json_decref(devices);
    return r;
}

int cmd_rollout_watch(struct ctl *c)
{
    char id[MANAGE_ID];
    int r = manage_rollout(c, c->argv[0], id);

    return r != CTL_OK ? r : watch(c, id);
}

static int act(struct ctl *c, const char *what, const char *words)
{
    json_t *answer = NULL;
    struct where w;
    int r = rollout_path(c, what, &w);

    if (r == CTL_OK)
        r = manage_send(c, "POST", w.buf, json_object(), &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The rollout of %s %s %s.", ctl_str(answer, "package", "?"),
                 ctl_str(answer, "version", "?"), words);
    json_decref(answer);
    return r;
}

int cmd_rollout_pause(struct ctl *c)
{
    return act(c, "pause", "is paused: no device begins any more");
}

int cmd_rollout_resume(struct ctl *c)
{
    return act(c, "resume", "goes on");
}

int cmd_rollout_stop(struct ctl *c)
{
    return act(c, "stop", "is stopped; devices that have begun end what they do");
}

int cmd_rollout_rollback(struct ctl *c)
{
    int r = manage_confirm(c, "Devices that have it get back what they had. Go on?");

    return r != CTL_OK ? r : act(c, "rollback", "is rolled back");
}
