/* protect_runs: tasks of the server, and the update that the policy schedules. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>

#include "app/agent/files.h"
#include "app/agent/protect_in.h"
#include "sys/log/log.h"

enum { ROOTS_MAX = 64, FIRST_UPDATE_S = 60, UPDATE_AGAIN_S = 300, BUILT_S = 60 };

static struct run *find(struct protect *p, const struct uuid *id)
{
    for (size_t i = 0; i < LEN(p->runs); i++)
        if (p->runs[i].state != RUN_FREE && uuid_eq(&p->runs[i].id, id))
            return &p->runs[i];
    return NULL;
}

static void run_end(struct protect *p, struct run *run, const char *outcome,
                    json_t *result)
{
    struct uuid id = run->id;

    json_decref(run->params);
    json_decref(run->roots);
    *run = (struct run){ 0 };
    p->hooks.run_done(p->hooks.arg, &id, outcome, result);
    protect_kick(p);
}

static void run_refuse(struct run *run, const char *why)
{
    run->state = RUN_REFUSED;
    (void)snprintf(run->why, sizeof(run->why), "%s", why);
}

/* From a worker's last message to the words of a result. */
static void run_result(struct protect *p, struct run *run, const json_t *done)
{
    bool ok = json_is_true(json_object_get(done, "ok"));
    json_t *counts = json_object_get(done, "counts"), *result = json_object();
    json_t *error = json_object_get(done, "error");
    const char *outcome = json_is_true(json_object_get(done, "cancelled")) ? "cancelled"
                          : ok                                             ? "done"
                                                                           : "failed";

    if (counts)
        (void)json_object_set(result, "counts", counts);
    if (!ok && error)
        (void)json_object_set(result, "error", error);
    run_end(p, run, outcome, result);
}

static void on_done(struct protect *p, struct job *job, const json_t *done)
{
    if (job->run)
        run_result(p, job->run, done);
}

/* ---- scans ---- */

static json_t *list_of(const struct policy_list *l)
{
    json_t *j = json_array();

    for (uint32_t i = 0; i < l->count; i++)
        (void)json_array_append_new(j, json_string(l->at[i]));
    return j;
}

static json_t *roots_of(const struct protect *p, const json_t *params)
{
    const char *mode = json_string_value(json_object_get(params, "mode"));
    const json_t *paths = json_object_get(params, "paths"), *one;
    size_t i;

    if (mode && strcmp(mode, "quick") == 0)
        return list_of(&p->policy->scan_quick_paths);
    if (mode && strcmp(mode, "full") == 0)
        return json_pack("[s]", "/");
    if (!mode || strcmp(mode, "paths") != 0 || json_array_size(paths) == 0 ||
        json_array_size(paths) > ROOTS_MAX)
        return NULL;
    json_array_foreach(paths, i, one)
    {
        if (!json_is_string(one) || json_string_value(one)[0] != '/')
            return NULL;
    }
    return json_deep_copy(paths);
}

static void scan_done(struct protect *p, struct job *job, const json_t *done)
{
    struct run *run = job->run;

    if (!run)
        return;
    if (json_is_true(json_object_get(done, "ok")) &&
        !json_is_true(json_object_get(done, "cancelled"))) {
        threats_scanned(p, run->roots, run->begun_us);
        if (run->is_whole) {
            p->facts.last_scan = protect_unix_s();
            protect_save(p);
            protect_facts_dirty(p);
        }
    }
    run_result(p, run, done);
}

static void start_scan(struct protect *p, struct run *run)
{
    const struct policy *y = p->policy;
    const json_t *cpu = json_object_get(run->params, "cpu_percent");
    json_int_t percent =
        json_is_integer(cpu) ? json_integer_value(cpu) : (json_int_t)y->scan_cpu_percent;
    const char *mode = json_string_value(json_object_get(run->params, "mode"));
    json_t *exclude = list_of(&y->exclusions_paths);

    json_decref(run->roots); /* of a start for which there was no worker */
    run->roots = roots_of(p, run->params);
    if (!run->roots || percent < 1 || percent > 100) {
        json_decref(exclude);
        run_refuse(run, "params of scan: mode quick, full or paths; paths absolute; "
                        "cpu_percent 1 to 100");
        return;
    }
    (void)json_array_append_new(exclude, json_string(p->quarantine));
    run->is_whole = strcmp(mode, "paths") != 0;
    run->begun_us = protect_now_us();
    json_t *job = json_pack("{s:s,s:s,s:O,s:o,s:I,s:I,s:I,s:b,s:o}", "do", "scan",
                            "clamd", p->conf.agent.clamd, "roots", run->roots, "exclude",
                            exclude, "in_flight", (json_int_t)y->engine_threads * 2,
                            "max_file_mib", (json_int_t)y->engine_max_file_size_mib,
                            "cpu_percent", percent, "one_filesystem",
                            y->scan_one_filesystem, "quarantine", protect_quarantine(p));
    run->job = job_start(p, job, -1, scan_done, run);
}

/* ---- updates ---- */

static void update_done(struct protect *p, struct job *job, const json_t *done)
{
    bool ok = json_is_true(json_object_get(done, "ok"));
    bool failed = !ok && !json_is_true(json_object_get(done, "cancelled"));
    bool changed = json_is_true(json_object_get(done, "changed"));
    const char *error = json_string_value(json_object_get(done, "error"));
    json_t *code = json_object_get(done, "exit"), *text = json_object_get(done, "output");

    p->update_job = NULL;
    p->update_failures = ok ? 0 : p->update_failures + failed;
    if (changed) {
        access_flush(p);
        protect_event(p, "signatures_updated", "info",
                      json_pack("{s:O?}", "files", json_object_get(done, "files")));
    }
    if (ok) {
        p->last_update = protect_unix_s();
        protect_save(p);
    }
    const int64_t wait = update_schedule(p);
    if (failed)
        protect_event(p, "signature_update_failed", "warning",
                      json_pack("{s:s,s:O*,s:O*,s:I}", "why", error ? error : "?", "exit",
                                code, "output", text, "again_s", (json_int_t)wait));
    if (job->run)
        run_result(p, job->run, done);
}

static bool has_source(const struct protect *p)
{
    return p->policy->update_source[0] != '\0' ||
           p->policy->update_custom_urls.count > 0 ||
           p->conf.agent.freshclam_conf[0] != '\0';
}

/* Where clamd looks for its databases; "" if its configuration is not ours to read. */
static void databases_of(const struct protect *p, char *out, size_t size)
{
    char *text = malloc(ENGINE_CONF_MAX);
    size_t n;

    out[0] = '\0';
    if (text && p->conf.agent.clamd_conf[0] &&
        file_load(p->conf.agent.clamd_conf, text, ENGINE_CONF_MAX, &n, NULL) == ERR_OK &&
        !engine_conf_value((struct str){ text, n }, "DatabaseDirectory", out, size))
        out[0] = '\0';
    free(text);
}

static int64_t newest_in(const char *folder)
{
    DIR *dir = opendir(folder);
    const struct dirent *d;
    int64_t newest = 0;
    struct stat st;

    while (dir && (d = readdir(dir)) != NULL)
        if (strcmp(d->d_name, "freshclam.dat") != 0 &&
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(st.st_mode) && st.st_mtim.tv_sec > newest)
            newest = st.st_mtim.tv_sec;
    if (dir)
        (void)closedir(dir);
    return newest;
}

/* clamd tells no date of databases that are not official. */
int64_t protect_built(struct protect *p)
{
    uint64_t now = protect_now_us();
    char folder[256];

    if (p->own_built_us == 0 || now - p->own_built_us > BUILT_S * 1000000ull) {
        databases_of(p, folder, sizeof(folder));
        p->own_built = newest_in(folder[0] ? folder : "/var/lib/clamav");
        p->own_built_us = now;
    }
    /* An update that found nothing newer says that they are of today all the same. */
    return p->own_built > p->last_update ? p->own_built : p->last_update;
}

/* The cluster's Web Server: as configured, or on the host of the Administration Server. */
static void web_of(const struct protect *p, char *out, size_t size)
{
    const struct conf_agent *c = &p->conf.agent;
    const char *colon = strrchr(c->server, ':');

    if (c->web[0])
        (void)snprintf(out, size, "%s", c->web);
    else
        (void)snprintf(out, size, "http://%.*s:8060",
                       (int)(colon ? (size_t)(colon - c->server) : strlen(c->server)),
                       c->server);
}

static void start_update(struct protect *p, struct run *run)
{
    char conf[CONF_PATH + 32], databases[256], web[CONF_PATH + 32];

    if (!has_source(p) && run) {
        run_refuse(run,
                   "no source of signatures: set update.source or "
                   "update.custom_urls in the policy, or freshclam_conf on the device");
        return;
    }
    (void)snprintf(conf, sizeof(conf), "%s/freshclam.conf", p->conf.agent.state_dir);
    databases_of(p, databases, sizeof(databases));
    web_of(p, web, sizeof(web));
    json_t *job =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:o,s:s,s:s,s:s,s:b}", "do", "update", "conf",
                  conf, "databases", databases, "own", p->conf.agent.freshclam_conf,
                  "clamd", p->conf.agent.clamd, "source", p->policy->update_source,
                  "custom", list_of(&p->policy->update_custom_urls), "web", web, "ca",
                  p->conf.agent.ca, "state", p->conf.agent.state_dir, "cluster_files",
                  p->policy->update_cluster_files);
    p->update_job = job_start(p, job, -1, update_done, run);
    if (run)
        run->job = p->update_job;
}

/* Each device has its own minute: up to a tenth sooner or later. */
static int64_t spread(int64_t s)
{
    return s + (int64_t)randombytes_uniform((uint32_t)s / 5 + 1) - s / 10;
}

/* The source may be down, and for all devices: twice as long each time, up to the interval. */
static int64_t update_again(const struct protect *p, int64_t period)
{
    int64_t wait = UPDATE_AGAIN_S;

    for (unsigned i = 1; i < p->update_failures && wait < period; i++)
        wait *= 2;
    return wait < period ? wait : period;
}

int64_t update_schedule(struct protect *p)
{
    if (!p->policy || !has_source(p)) {
        (void)sd_event_source_set_enabled(p->update_timer, SD_EVENT_OFF);
        return 0;
    }
    int64_t period = (int64_t)p->policy->update_interval_min * 60;
    int64_t gone = protect_unix_s() - p->last_update;
    int64_t wait = p->update_failures > 0 ? spread(update_again(p, period))
                   : gone < 0 || gone > period
                       ? (int64_t)randombytes_uniform(FIRST_UPDATE_S)
                       : spread(period) - gone;

    wait = wait < 1 ? 1 : wait;
    (void)sd_event_source_set_time_relative(p->update_timer, (uint64_t)wait * 1000000u);
    (void)sd_event_source_set_enabled(p->update_timer, SD_EVENT_ONESHOT);
    return wait;
}

int update_due(sd_event_source *source, uint64_t us, void *arg)
{
    struct protect *p = arg;

    (void)source, (void)us;
    if (p->policy && !p->update_job && has_source(p))
        start_update(p, NULL);
    if (!p->update_job) /* else its end plans the next one */
        (void)update_schedule(p);
    return 0;
}

/* ---- the others ---- */

static void start_on_item(struct protect *p, struct run *run, const char *what)
{
    const char *item = json_string_value(json_object_get(run->params, "item"));
    struct uuid id;

    if (!item || !uuid_parse(&id, str_of(item))) {
        run_refuse(run, "params.item must be the UUID of a quarantined file");
        return;
    }
    run->job = job_start(p,
                         json_pack("{s:s,s:s,s:o}", "do", what, "item", item,
                                   "quarantine", protect_quarantine(p)),
                         -1, on_done, run);
}

static void start_restore(struct protect *p, struct run *run)
{
    start_on_item(p, run, "restore");
}

static void start_delete(struct protect *p, struct run *run)
{
    start_on_item(p, run, "delete");
}

static void start_inventory(struct protect *p, struct run *run)
{
    run->job = job_start(p, json_pack("{s:s}", "do", "inventory"), -1, on_done, run);
}

static void engine_restarted(struct protect *p, struct job *job, const json_t *done)
{
    p->engine_job = NULL;
    on_done(p, job, done);
    protect_kick(p);
}

static void start_restart(struct protect *p, struct run *run)
{
    run->job = p->engine_job =
        job_start(p,
                  json_pack("{s:s,s:s,s:s}", "do", "engine", "clamd", p->conf.agent.clamd,
                            "restart", p->conf.agent.engine_restart),
                  -1, engine_restarted, run);
}

static const struct {
    const char *type;
    void (*start)(struct protect *p, struct run *run);
    bool alone; /* one of them at a time */
} types[] = {
    { "scan", start_scan, true },
    { "update", start_update, true },
    { "inventory", start_inventory, true },
    { "restart_engine", start_restart, true },
    { "quarantine_restore", start_restore, false },
    { "quarantine_delete", start_delete, false },
};

static bool may_start(const struct protect *p, const char *type, bool alone)
{
    if (strcmp(type, "update") == 0 && p->update_job)
        return false;
    if (strcmp(type, "restart_engine") == 0 && p->engine_job)
        return false;
    for (size_t i = 0; alone && i < LEN(p->runs); i++)
        if (p->runs[i].state == RUN_RUNNING && strcmp(p->runs[i].type, type) == 0)
            return false;
    return true;
}

static void run_start(struct protect *p, struct run *run)
{
    size_t i = 0;

    while (i < LEN(types) && strcmp(types[i].type, run->type) != 0)
        i++;
    if (i == LEN(types)) {
        run_refuse(run, "this agent knows no such task");
        return;
    }
    if (run->paused || !may_start(p, run->type, types[i].alone))
        return;
    types[i].start(p, run);
    if (run->job)
        run->state = RUN_RUNNING;
    if (run->state == RUN_RUNNING)
        p->hooks.run_progress(p->hooks.arg, &run->id, "running", 0, NULL);
}

/* The oldest that waits and was not looked at. */
static struct run *next_waiting(struct protect *p, uint64_t after)
{
    struct run *best = NULL;

    for (size_t i = 0; i < LEN(p->runs); i++) {
        struct run *r = &p->runs[i];

        if (r->state == RUN_WAITING && r->order > after &&
            (!best || r->order < best->order))
            best = r;
    }
    return best;
}

void runs_work(struct protect *p)
{
    uint64_t at = 0;
    struct run *run;

    while (p->policy && (run = next_waiting(p, at)) != NULL) {
        at = run->order;
        run_start(p, run);
    }
    for (size_t i = 0; i < LEN(p->runs); i++) {
        run = &p->runs[i];
        if (run->state == RUN_REFUSED)
            run_end(p, run, "failed", json_pack("{s:s}", "error", run->why));
        else if (run->state == RUN_CANCELLED)
            run_end(p, run, "cancelled", json_object());
    }
}

void runs_progress(struct protect *p, struct run *run, const json_t *m)
{
    const char *state = json_string_value(json_object_get(m, "state"));
    json_int_t percent = json_integer_value(json_object_get(m, "percent"));
    json_t *counts = json_object_get(m, "counts");

    p->hooks.run_progress(p->hooks.arg, &run->id,
                          state && strcmp(state, "paused") == 0 ? "paused" : "running",
                          percent < 0 || percent > 100 ? 0 : (unsigned)percent,
                          json_incref(counts));
}

void protect_run(struct protect *p, const struct uuid *id, const char *type,
                 const json_t *params)
{
    struct run *run = NULL;

    if (find(p, id))
        return;
    for (size_t i = 0; i < LEN(p->runs) && !run; i++)
        run = p->runs[i].state == RUN_FREE ? &p->runs[i] : NULL;
    if (!run) {
        /* The owner of the runs keeps it: it is given again after the next start. */
        log_event(LOG_LEVEL_ERROR, "too_many_runs", log_u64("max", PROTECT_RUNS_MAX));
        return;
    }
    *run = (struct run){ .state = RUN_WAITING, .id = *id, .order = ++p->order };
    (void)snprintf(run->type, sizeof(run->type), "%s", type);
    run->params = params ? json_deep_copy(params) : json_object();
    protect_kick(p);
}

static void tell_worker(struct run *run, const char *what)
{
    if (run->job && run->job->child)
        (void)child_send(run->job->child, json_pack("{s:s}", "do", what), -1);
}

void protect_run_cancel(struct protect *p, const struct uuid *id)
{
    struct run *run = find(p, id);

    if (run && run->state == RUN_WAITING)
        run->state = RUN_CANCELLED;
    else if (run)
        tell_worker(run, "cancel");
    protect_kick(p);
}

static void set_paused(struct protect *p, const struct uuid *id, bool paused)
{
    struct run *run = find(p, id);

    if (!run || strcmp(run->type, "scan") != 0)
        return;
    run->paused = paused;
    tell_worker(run, paused ? "pause" : "resume");
    protect_kick(p);
}

void protect_run_pause(struct protect *p, const struct uuid *id)
{
    set_paused(p, id, true);
}

void protect_run_resume(struct protect *p, const struct uuid *id)
{
    set_paused(p, id, false);
}

void runs_free(struct protect *p)
{
    for (size_t i = 0; i < LEN(p->runs); i++) {
        json_decref(p->runs[i].params);
        json_decref(p->runs[i].roots);
    }
}
