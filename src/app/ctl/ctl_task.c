#include <strings.h>
#include <unistd.h>

#include "app/ctl/manage.h"

static const struct column task_columns[] = {
    { "ID", "id", CELL_ID },          { "NAME", "name", CELL_TEXT },
    { "TYPE", "type", CELL_TEXT },    { "ENABLED", "enabled", CELL_TEXT },
    { "NEXT", "next_at", CELL_TIME }, { "TARGET", "target", CELL_JSON },
};

static int task_path(struct ctl *c, const char *what, struct where *w)
{
    char id[MANAGE_ID];
    int r = manage_task(c, c->argv[0], id);

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/tasks");
    where_add(w, id);
    if (what)
        where_add(w, what);
    return CTL_OK;
}

int cmd_task_list(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/tasks");
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), task_columns, LEN(task_columns),
                    "No tasks.");
    json_decref(answer);
    return r;
}

static void print_task(const struct ctl *c, const json_t *task)
{
    static const struct column fields[] = {
        { "Id", "id", CELL_TEXT },
        { "Name", "name", CELL_TEXT },
        { "Type", "type", CELL_TEXT },
        { "Parameters", "params", CELL_JSON },
        { "Target", "target", CELL_JSON },
        { "Schedule", "schedule", CELL_JSON },
        { "Next", "next_at", CELL_TIME },
        { "Priority", "priority", CELL_TEXT },
        { "Expires after min", "expires_min", CELL_TEXT },
        { "Enabled", "enabled", CELL_TEXT },
        { "Version", "version", CELL_TEXT },
    };

    print_fields(c, task, fields, LEN(fields));
}

static const struct column occurrence_columns[] = {
    { "OCCURRENCE", "id", CELL_TEXT },
    { "AT", "at", CELL_TIME },
    { "STATE", "state", CELL_TEXT },
    { "DEVICES", "totals.total", CELL_RIGHT },
    { "DONE", "totals.done", CELL_RIGHT },
    { "FAILED", "totals.failed", CELL_RIGHT },
    { "RUNNING", "totals.running", CELL_RIGHT },
    { "PENDING", "totals.pending", CELL_RIGHT },
};

int cmd_task_show(struct ctl *c)
{
    json_t *task = NULL, *all = NULL;
    struct where w;
    int r = task_path(c, NULL, &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &task);
    if (r == CTL_OK && c->opt.json) {
        ctl_print_json(task);
    } else if (r == CTL_OK) {
        print_task(c, task);
        where_add(&w, "occurrences");
        c->opt.limit = c->opt.limit ? c->opt.limit : 10;
        r = manage_list(c, &w, &all);
        if (r == CTL_OK)
            print_table(c, json_object_get(all, "items"), occurrence_columns,
                        LEN(occurrence_columns), "It has not run yet.");
    }
    json_decref(task);
    json_decref(all);
    return r;
}

/* ---- create ---- */

static void add_number(json_t *o, const char *key, uint32_t value)
{
    if (value)
        (void)json_object_set_new(o, key, json_integer(value));
}

static void add_text(json_t *o, const char *key, const char *value)
{
    if (value)
        (void)json_object_set_new(o, key, json_string(value));
}

static json_t *texts(const struct ctl_list *list)
{
    json_t *a = json_array();

    for (size_t i = 0; i < list->count; i++)
        (void)json_array_append_new(a, json_string(list->at[i]));
    return a;
}

static json_t *params_of(const struct ctl_options *o, const char *type)
{
    const char *mode = o->path.count > 0 ? "paths" : "quick";
    json_t *p = json_object();

    if (o->mode || strcmp(type, "scan") == 0)
        add_text(p, "mode", o->mode ? o->mode : mode);
    if (o->path.count > 0)
        (void)json_object_set_new(p, "paths", texts(&o->path));
    add_number(p, "cpu_percent", o->cpu);
    add_text(p, "item", o->item);
    return p;
}

/* Devices, a group, or a selection: exactly one of them. */
static int target_of(struct ctl *c, json_t **out)
{
    const struct ctl_options *o = &c->opt;
    bool select = o->select_status || o->select_tag || o->connected;
    char id[MANAGE_ID], group[1024];
    int r = CTL_OK;

    if ((o->device.count > 0) + (o->group != NULL) + select != 1)
        return ctl_usage(
            "redoubt task create needs one of --device, --group, or --status, "
            "--tag, --connected");
    if (o->device.count > 0) {
        json_t *ids = json_array();

        for (size_t i = 0; i < o->device.count && r == CTL_OK; i++) {
            r = manage_device(c, o->device.at[i], id);
            if (r == CTL_OK)
                (void)json_array_append_new(ids, json_string(id));
        }
        *out = json_pack("{s:o}", "devices", ids);
    } else if (o->group) {
        r = manage_group(o->group, group, sizeof(group));
        if (r == CTL_OK)
            *out = json_pack("{s:s, s:b}", "group", group, "subgroups", !o->no_subgroups);
    } else {
        json_t *s = json_object();

        add_text(s, "status", o->select_status);
        add_text(s, "tag", o->select_tag);
        if (o->connected)
            (void)json_object_set_new(s, "connected", json_true());
        *out = json_pack("{s:o}", "select", s);
    }
    if (r != CTL_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return r;
}

/* --days mon,fri or 1,15 */
static int days_of(const struct ctl_options *o, json_t *schedule)
{
    static const char *const names[] = {
        "mon", "tue", "wed", "thu", "fri", "sat", "sun"
    };
    json_t *week = json_array(), *month = json_array();
    bool ok = true;

    for (size_t i = 0; i < o->days.count; i++)
        for (const char *p = o->days.at[i]; *p && ok; p += strspn(p, ",")) {
            struct str word = { p, strcspn(p, ",") };
            uint64_t day;
            bool known = false;

            for (size_t k = 0; k < LEN(names); k++)
                if (word.n == 3 && strncasecmp(word.p, names[k], 3) == 0) {
                    (void)json_array_append_new(week, json_string(names[k]));
                    known = true;
                }
            if (!known && (known = str_u64(word, 31, &day) && day > 0))
                (void)json_array_append_new(month, json_integer((json_int_t)day));
            ok = known;
            p += word.n;
        }
    ok = ok && !(json_array_size(week) > 0 && json_array_size(month) > 0);
    if (ok && json_array_size(month) > 0)
        (void)json_object_set(schedule, "monthdays", month);
    else if (ok && json_array_size(week) > 0)
        (void)json_object_set(schedule, "days", week);
    json_decref(week);
    json_decref(month);
    return ok ? CTL_OK
              : ctl_usage(
                    "--days takes days of the week (mon,fri) or of the month (1,15)");
}

/* NULL without one: the task runs when it is started. */
static int schedule_of(const struct ctl_options *o, json_t **out)
{
    static const char *const all[] = { "mon", "tue", "wed", "thu", "fri", "sat", "sun" };
    json_t *s = json_object();
    int r;

    *out = NULL;
    if (!o->at) {
        json_decref(s);
        if (o->days.count > 0 || o->timezone || o->window || o->spread || o->missed)
            return ctl_usage("a schedule needs --at HH:MM");
        return CTL_OK;
    }
    add_text(s, "time", o->at);
    add_text(s, "timezone", o->timezone ? o->timezone : "UTC");
    add_number(s, "window_min", o->window);
    add_number(s, "spread_min", o->spread);
    add_text(s, "missed", o->missed);
    r = days_of(o, s);
    if (r == CTL_OK && o->days.count == 0) { /* each day */
        json_t *week = json_array();

        for (size_t i = 0; i < LEN(all); i++)
            (void)json_array_append_new(week, json_string(all[i]));
        (void)json_object_set_new(s, "days", week);
    }
    if (r == CTL_OK)
        *out = s;
    else
        json_decref(s);
    return r;
}

/* "restart-engine" for "restart_engine". */
static void type_name(const char *word, char *out, size_t size)
{
    (void)snprintf(out, size, "%s", word);
    for (char *p = out; *p; p++)
        if (*p == '-')
            *p = '_';
}

int cmd_task_create(struct ctl *c)
{
    const struct ctl_options *o = &c->opt;
    json_t *target = NULL, *schedule = NULL, *answer = NULL;
    char type[64];
    int r = target_of(c, &target);

    if (r == CTL_OK)
        r = schedule_of(o, &schedule);
    if (r != CTL_OK) {
        json_decref(target);
        return r;
    }
    type_name(c->argv[1], type, sizeof(type));
    json_t *body = json_pack("{s:s, s:s, s:o, s:o, s:o}", "name", c->argv[0], "type",
                             type, "params", params_of(o, type), "target", target,
                             "schedule", schedule ? schedule : json_null());

    if (!body)
        return ctl_usage("the name is not UTF-8");
    if (o->priority)
        add_number(body, "priority", o->priority);
    add_number(body, "expires_min", o->expires);
    r = manage_send(c, "POST", "/v1/tasks", body, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The task %s is made: %s",
                 ctl_str(answer, "name", c->argv[0]), ctl_str(answer, "id", "?"));
    if (r == CTL_OK && !o->at && !o->json)
        printf("It runs when it is started: redoubt task start\n");
    json_decref(answer);
    return r;
}

/* ---- start, pause, ... ---- */

static int act(struct ctl *c, const char *what, const char *words)
{
    json_t *answer = NULL;
    struct where w;
    int r = task_path(c, what, &w);

    if (r == CTL_OK)
        r = manage_send(c, "POST", w.buf, json_object(), &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The task %s %s.", ctl_str(answer, "name", c->argv[0]),
                 words);
    json_decref(answer);
    return r;
}

static int watch(struct ctl *c, const char *occurrence);

int cmd_task_start(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = task_path(c, "start", &w);

    if (r == CTL_OK)
        r = manage_send(c, "POST", w.buf, json_object(), &answer);
    const char *occurrence = ctl_str(answer, "occurrence", ctl_str(answer, "id", NULL));

    if (r == CTL_OK && (c->opt.json || !c->opt.watch))
        say_done(c, answer, "Started: %s", occurrence ? occurrence : c->argv[0]);
    if (r == CTL_OK && c->opt.watch && occurrence)
        r = watch(c, occurrence);
    json_decref(answer);
    return r;
}

int cmd_task_pause(struct ctl *c)
{
    return act(c, "pause", "is paused on all its devices");
}

int cmd_task_resume(struct ctl *c)
{
    return act(c, "resume", "goes on");
}

int cmd_task_cancel(struct ctl *c)
{
    return act(c, "cancel", "is cancelled where it is not done");
}

int cmd_task_remove(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = task_path(c, NULL, &w);

    if (r == CTL_OK)
        r = manage_confirm(c, "The task and its results are removed. Remove it?");
    if (r == CTL_OK)
        r = manage_send(c, "DELETE", w.buf, NULL, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The task %s is removed.", c->argv[0]);
    json_decref(answer);
    return r;
}

/* ---- results and progress ---- */

/* The newest occurrence of argv[0], or --occurrence. */
static int last_occurrence(struct ctl *c, char *id, size_t size)
{
    json_t *answer = NULL, *o;
    const char *best_at = "", *best = NULL;
    struct where w;
    size_t i;

    if (c->opt.item) {
        (void)snprintf(id, size, "%s", c->opt.item);
        return CTL_OK;
    }
    int r = task_path(c, "occurrences", &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &answer);
    json_array_foreach(json_object_get(answer, "items"), i, o)
    {
        if (strcmp(ctl_str(o, "at", ""), best_at) >= 0) {
            best_at = ctl_str(o, "at", "");
            best = ctl_str(o, "id", NULL);
        }
    }
    if (r == CTL_OK && best)
        (void)snprintf(id, size, "%s", best);
    json_decref(answer);
    if (r == CTL_OK && !best)
        r = ctl_fail(c, CTL_FAILED,
                     &(struct ctl_problem){ "never_run", "The task has not run yet", NULL,
                                            "Start it with redoubt task start." });
    return r;
}

int cmd_task_results(struct ctl *c)
{
    static const struct column columns[] = {
        { "DEVICE", "device_name", CELL_TEXT },
        { "STATE", "state", CELL_TEXT },
        { "OUTCOME", "outcome", CELL_TEXT },
        { "%", "percent", CELL_RIGHT },
        { "SCANNED", "counts.scanned", CELL_RIGHT },
        { "FOUND", "counts.found", CELL_RIGHT },
        { "ERRORS", "counts.errors", CELL_RIGHT },
        { "CHANGED", "changed_at", CELL_TIME },
        { "WHY", "result.error", CELL_TEXT },
    };
    char id[MANAGE_ID];
    json_t *answer = NULL;
    struct where w;
    int r = last_occurrence(c, id, sizeof(id));

    if (r != CTL_OK)
        return r;
    where_start(&w, "/v1/occurrences");
    where_add(&w, id);
    where_add(&w, "runs");
    r = manage_list(c, &w, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                    "No device was meant.");
    json_decref(answer);
    return r;
}

/* "done 3, failed 1" of the totals, without those that are zero. */
static void put_totals(FILE *to, const json_t *totals)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)(uintptr_t)totals, key, v)
    {
        if (!json_is_integer(v) || json_integer_value(v) == 0 ||
            strcmp(key, "percent") == 0)
            continue;
        fputs("  ", to);
        (void)put_safe(to, key);
        fprintf(to, " %lld", (long long)json_integer_value(v));
    }
}

static unsigned percent_of(const json_t *o)
{
    const json_t *totals = json_object_get(o, "totals");
    uint64_t total = ctl_u64(totals, "total", 0),
             finished = ctl_u64(totals, "finished", ctl_u64(totals, "done", 0));
    uint64_t p = ctl_u64(totals, "percent",
                         ctl_u64(o, "percent", total ? finished * 100 / total : 0));

    return p > 100 ? 100 : (unsigned)p;
}

static void show_progress(const struct ctl *c, const json_t *o, char *last, size_t size)
{
    static const char full[] = "##############################";
    unsigned p = percent_of(o);
    char *line = NULL;
    size_t n;
    FILE *to = open_memstream(&line, &n);

    if (!to)
        return;
    fprintf(to, "[%-30.*s] %3u %%  ", (int)(p * 30 / 100), full, p);
    (void)put_safe(to, ctl_str(o, "state", "?"));
    put_totals(to, json_object_get(o, "totals"));
    if (fclose(to) == 0 && strcmp(line, last) != 0) {
        (void)snprintf(last, size, "%s", line);
        /* One line that moves on a terminal, a line a change elsewhere. */
        fprintf(stderr, c->tty ? "\r\033[K%s" : "%s\n", line);
    }
    free(line);
}

static int watch(struct ctl *c, const char *occurrence)
{
    struct where w;
    char last[400] = "";

    where_start(&w, "/v1/occurrences");
    where_add(&w, occurrence);
    for (;;) {
        json_t *o = NULL;
        int r = manage_get(c, w.buf, &o);
        const char *state = ctl_str(o, "state", "");
        bool end = strcmp(state, "finished") == 0 || strcmp(state, "cancelled") == 0;

        if (r == CTL_OK && !c->opt.json)
            show_progress(c, o, last, sizeof(last));
        if (r == CTL_OK && end) {
            uint64_t failed = ctl_u64(json_object_get(o, "totals"), "failed", 0);

            if (c->tty && !c->opt.json)
                fputc('\n', stderr);
            if (c->opt.json)
                ctl_print_json(o);
            r = failed > 0 || strcmp(state, "finished") != 0 ? CTL_FAILED : CTL_OK;
        }
        json_decref(o);
        if (r != CTL_OK || end)
            return r;
        (void)sleep(1);
    }
}

int cmd_task_watch(struct ctl *c)
{
    char id[MANAGE_ID];
    int r = last_occurrence(c, id, sizeof(id));

    return r != CTL_OK ? r : watch(c, id);
}
