#include "app/agent/protect.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/files.h"
#include "app/agent/protect_in.h"
#include "app/agent/worker.h"
#include "sys/log/log.h"

enum { TICK_S = 5, RECOVER_EVERY = 17280 /* ticks: a day */, STATE_BYTES = 768 * 1024 };

int64_t protect_unix_s(void)
{
    return (int64_t)time(NULL);
}

uint64_t protect_now_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

void protect_kick(struct protect *p)
{
    (void)sd_event_source_set_enabled(p->kick, SD_EVENT_ONESHOT);
}

void protect_facts_dirty(struct protect *p)
{
    p->facts_dirty = true;
    protect_kick(p);
}

void protect_facts(const struct protect *p, struct protect_facts *out)
{
    *out = p->facts;
}

/* ---- what is kept over a restart ---- */

void protect_save(struct protect *p)
{
    struct err_info info = { 0 };
    json_t *list = json_array();

    for (uint32_t i = 0; i < p->facts.threats_open; i++)
        (void)json_array_append_new(list, json_string(p->threats[i].path));
    json_t *j = json_pack("{s:I,s:I,s:o}", "last_scan", (json_int_t)p->facts.last_scan,
                          "last_update", (json_int_t)p->last_update, "threats", list);
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    p->unsaved = !text || file_store(p->state_file, str_of(text), NULL, &info) != ERR_OK;
    if (p->unsaved)
        log_event(LOG_LEVEL_ERROR, "protection_state", log_str("why", info.what));
    free(text);
    json_decref(j);
}

static void add_threat(struct protect *p, const char *path)
{
    struct threat *t = &p->threats[p->facts.threats_open];

    if (p->facts.threats_open == PROTECT_THREATS_MAX)
        return; /* the number is what counts, and it is bad enough */
    (void)snprintf(t->path, sizeof(t->path), "%s", path);
    t->found_us = protect_now_us();
    p->facts.threats_open++;
}

static void load_state(struct protect *p)
{
    char *text = malloc(STATE_BYTES);
    const json_t *one;
    size_t n, i;

    if (!text || file_load(p->state_file, text, STATE_BYTES, &n, NULL) != ERR_OK) {
        free(text);
        return; /* the first start, or a file that is of no use */
    }
    json_t *j = json_loadb(text, n, 0, NULL);
    p->facts.last_scan = json_integer_value(json_object_get(j, "last_scan"));
    p->last_update = json_integer_value(json_object_get(j, "last_update"));
    json_array_foreach(json_object_get(j, "threats"), i, one)
    {
        if (json_is_string(one))
            add_threat(p, json_string_value(one));
    }
    json_decref(j);
    free(text);
}

/* ---- threats that are not cured ---- */

static void drop_threat(struct protect *p, uint32_t i)
{
    p->threats[i] = p->threats[--p->facts.threats_open];
}

static void forget_threat(struct protect *p, const char *path)
{
    for (uint32_t i = 0; i < p->facts.threats_open; i++)
        if (strcmp(p->threats[i].path, path) == 0) {
            drop_threat(p, i);
            return;
        }
}

static void threats_changed(struct protect *p, uint32_t before)
{
    if (p->facts.threats_open == before)
        return;
    protect_save(p);
    protect_facts_dirty(p);
}

static bool is_below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    while (n > 1 && folder[n - 1] == '/')
        n--;
    return n == 1 ||
           (strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == '\0'));
}

/* A scan of these folders has ended: what it did not find again is no threat any more. */
void threats_scanned(struct protect *p, const json_t *roots, uint64_t since_us)
{
    uint32_t before = p->facts.threats_open;
    const json_t *root;
    size_t k;

    for (uint32_t i = 0; i < p->facts.threats_open;) {
        bool seen = false;

        json_array_foreach(roots, k, root)
        {
            seen = seen || is_below(p->threats[i].path, json_string_value(root));
        }
        if (seen && p->threats[i].found_us < since_us)
            drop_threat(p, i);
        else
            i++;
    }
    threats_changed(p, before);
}

/* Somebody may have deleted the file.  A path with '?' may not be the file's own. */
static void check_threats(struct protect *p)
{
    uint32_t before = p->facts.threats_open;
    struct stat st;

    for (uint32_t i = 0; i < p->facts.threats_open;)
        if (!strchr(p->threats[i].path, '?') && lstat(p->threats[i].path, &st) != 0 &&
            errno == ENOENT)
            drop_threat(p, i);
        else
            i++;
    threats_changed(p, before);
}

void protect_event(struct protect *p, const char *kind, const char *severity,
                   json_t *data)
{
    const char *path = json_string_value(json_object_get(data, "path"));
    uint32_t before = p->facts.threats_open;

    if (path && strncmp(kind, "threat_", 7) == 0) {
        if (strcmp(kind, "threat_found") != 0)
            forget_threat(p, path);
        if (strcmp(kind, "threat_not_cured") == 0) {
            add_threat(p, path);
            before = UINT32_MAX; /* its time changed, at least */
        }
        threats_changed(p, before);
    }
    log_event(LOG_LEVEL_INFO, kind, log_str("path", path ? path : ""));
    p->hooks.event(p->hooks.arg, kind, severity, data);
}

/* ---- jobs: one worker process each ---- */

json_t *protect_quarantine(const struct protect *p)
{
    const struct policy *y = p->policy;

    return json_pack("{s:s,s:b,s:I,s:I}", "folder", p->quarantine, "enabled",
                     y ? y->quarantine_enabled : true, "days",
                     (json_int_t)(y ? y->quarantine_days : 90), "max_mib",
                     (json_int_t)(y ? y->quarantine_max_mib : 1024));
}

/* The events of a worker are those of our own program: the names are constants of it. */
static void forward_event(struct protect *p, const json_t *m)
{
    static const char *const kinds[] = {
        "threat_found",       "threat_cured",     "threat_not_cured",
        "inventory",          "quarantine_added", "quarantine_restored",
        "quarantine_deleted", "onaccess_missed",
    };
    static const char *const severities[] = { "critical", "error", "warning", "info" };
    const char *kind = json_string_value(json_object_get(m, "kind"));
    const char *severity = json_string_value(json_object_get(m, "severity"));
    json_t *data = json_object_get(m, "data");
    struct uuid item;

    for (size_t k = 0; kind && severity && data && k < LEN(kinds); k++)
        for (size_t s = 0; strcmp(kind, kinds[k]) == 0 && s < LEN(severities); s++)
            if (strcmp(severity, severities[s]) == 0) {
                protect_event(p, kinds[k], severities[s], json_incref(data));
                if (strcmp(kind, "threat_cured") == 0 && /* the last word about an item */
                    uuid_parse(&item, str_of(job_text(data, "item"))))
                    quarantine_told(p->quarantine, &item);
                return;
            }
}

static void job_told(struct job *job, const json_t *done)
{
    if (job->told)
        return;
    job->told = true;
    job->done(job->p, job, done);
    job->run = NULL;
    child_finish(job->child);
}

static void on_message(void *arg, json_t *m, int fd)
{
    struct job *job = arg;
    const char *t = json_string_value(json_object_get(m, "t"));

    if (fd >= 0)
        (void)close(fd);
    if (!t)
        return;
    if (strcmp(t, "event") == 0)
        forward_event(job->p, m);
    else if (strcmp(t, "progress") == 0 && job->run)
        runs_progress(job->p, job->run, m);
    else if (strcmp(t, "done") == 0)
        job_told(job, m);
}

static void on_ended(void *arg, int code)
{
    struct job *job = arg;
    struct protect *p = job->p;
    char why[80];

    (void)snprintf(why, sizeof(why), "the worker ended unexpectedly (%d)", code);
    json_t *m = json_pack("{s:b,s:s}", "ok", false, "error", why);
    job_told(job, m);
    json_decref(m);
    child_free(job->child);
    *job = (struct job){ 0 };
    protect_kick(p);
}

struct job *job_start(struct protect *p, json_t *message, int fd, job_done *done,
                      struct run *run)
{
    struct job *job = NULL;
    struct err_info info = { 0 };

    for (size_t i = 0; i < LEN(p->jobs) && !job; i++)
        job = p->jobs[i].p ? NULL : &p->jobs[i];
    if (!job) {
        json_decref(message);
        return NULL;
    }
    *job = (struct job){ .p = p, .done = done, .run = run };
    struct child_hooks hooks = { job, on_message, on_ended };
    enum err e = child_new(p->event, "--scanner", &hooks, &job->child, &info);
    if (e != ERR_OK || !child_send(job->child, message, fd)) {
        if (e != ERR_OK)
            json_decref(message);
        log_event(LOG_LEVEL_ERROR, "worker_failed", log_str("why", info.what));
        child_free(job->child);
        *job = (struct job){ 0 };
        return NULL;
    }
    access_ignore(p, child_pid(job->child));
    return job;
}

/* ---- life ---- */

static void recovered(struct protect *p, struct job *job, const json_t *done)
{
    const char *why = json_string_value(json_object_get(done, "error"));

    (void)p, (void)job;
    if (why)
        log_event(LOG_LEVEL_ERROR, "quarantine_recovery", log_str("why", why));
}

static void recover(struct protect *p)
{
    (void)job_start(
        p, json_pack("{s:s,s:o}", "do", "recover", "quarantine", protect_quarantine(p)),
        -1, recovered, NULL);
}

static int on_kick(sd_event_source *source, void *arg)
{
    struct protect *p = arg;

    (void)source;
    policy_work(p);
    runs_work(p);
    if (p->facts_dirty) {
        p->facts_dirty = false;
        p->hooks.facts_changed(p->hooks.arg);
    }
    return 0;
}

static int on_tick(sd_event_source *source, uint64_t us, void *arg)
{
    static unsigned count; /* one protect a process */
    struct protect *p = arg;

    (void)us;
    if (p->unsaved)
        protect_save(p);
    drift_check(p);
    licence_tick(p);
    if (count % 12 == 0)
        check_threats(p);
    if (count++ % RECOVER_EVERY == 0)
        recover(p);
    (void)sd_event_source_set_time_relative(source, TICK_S * 1000000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int add_sources(struct protect *p)
{
    int n = sd_event_add_defer(p->event, &p->kick, on_kick, p);

    if (n >= 0)
        n = sd_event_source_set_enabled(p->kick, SD_EVENT_OFF);
    if (n >= 0)
        n = sd_event_add_time_relative(p->event, &p->tick, CLOCK_BOOTTIME, 0, 0, on_tick,
                                       p);
    if (n >= 0)
        n = sd_event_add_time_relative(p->event, &p->update_timer, CLOCK_BOOTTIME, 0, 0,
                                       update_due, p);
    if (n >= 0)
        n = sd_event_source_set_enabled(p->update_timer, SD_EVENT_OFF);
    if (n >= 0)
        n = sd_event_add_time_relative(p->event, &p->access_timer, CLOCK_BOOTTIME, 0, 0,
                                       access_again, p);
    if (n >= 0)
        n = sd_event_source_set_enabled(p->access_timer, SD_EVENT_OFF);
    return n;
}

enum err protect_new(sd_event *event, const struct agent_conf *conf,
                     const struct protect_hooks *hooks, struct protect **out,
                     struct err_info *info)
{
    struct protect *p = calloc(1, sizeof(*p));

    if (!p)
        return err_set(info, ERR_MEMORY, ENOMEM, "protection");
    p->event = sd_event_ref(event);
    p->conf = *conf;
    p->hooks = *hooks;
    p->facts.realtime = "off";
    p->threats = calloc(PROTECT_THREATS_MAX, sizeof(*p->threats));
    (void)snprintf(p->state_file, sizeof(p->state_file), "%s/protect.json",
                   conf->agent.state_dir);
    (void)snprintf(p->quarantine, sizeof(p->quarantine), "%s/quarantine",
                   conf->agent.state_dir);
    if (!p->threats || add_sources(p) < 0) {
        protect_free(p);
        return err_set(info, ERR_MEMORY, ENOMEM, "protection");
    }
    if (mkdir(conf->agent.state_dir, 0700) != 0 && errno != EEXIST) {
        enum err e = err_set(info, ERR_IO, errno, "%s", conf->agent.state_dir);

        protect_free(p);
        return e;
    }
    load_state(p);
    licence_load(p);
    *out = p;
    return ERR_OK;
}

void protect_free(struct protect *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < LEN(p->jobs); i++)
        child_free(p->jobs[i].child);
    for (unsigned i = 0; i < p->found_count; i++)
        (void)close(p->found[i].fd);
    runs_free(p);
    policy_free(p);
    p->kick = sd_event_source_disable_unref(p->kick);
    p->tick = sd_event_source_disable_unref(p->tick);
    p->update_timer = sd_event_source_disable_unref(p->update_timer);
    p->access_timer = sd_event_source_disable_unref(p->access_timer);
    sd_event_unref(p->event);
    free(p->threats);
    free(p);
}

/* ---- the engine as the agent's probe sees it ---- */

/* "Wed Nov  1 08:00:00 2026"; 0 if it is not that. */
static int64_t built_time(const char *text)
{
    struct tm t = { 0 };
    const char *end = strptime(text, "%a %b %d %H:%M:%S %Y", &t);

    return end && *end == '\0' ? (int64_t)timegm(&t) : 0;
}

void protect_engine(struct protect *p, const struct clamav_state *state)
{
    struct protect_facts f = p->facts;

    f.engine_known = true;
    f.engine_up = state->up;
    (void)snprintf(f.engine_version, sizeof(f.engine_version), "%s",
                   state->up ? state->version.engine : "");
    if (state->up) {
        f.signatures_version = state->version.database;
        f.signatures_built = state->version.database > 0
                                 ? built_time(state->version.built)
                                 : protect_built(p);
    }
    bool same = f.engine_known == p->facts.engine_known &&
                f.engine_up == p->facts.engine_up &&
                strcmp(f.engine_version, p->facts.engine_version) == 0 &&
                f.signatures_version == p->facts.signatures_version &&
                f.signatures_built == p->facts.signatures_built;
    if (same)
        return;
    p->facts = f;
    protect_facts_dirty(p);
}
