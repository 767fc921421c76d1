/* protect_policy: makes the policy true: the engine's configuration and on-access. */
#include <errno.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/files.h"
#include "app/agent/protect_in.h"
#include "app/agent/worker.h"
#include "sys/log/log.h"

enum { ACCESS_AGAIN_S = 2, ACCESS_AGAIN_MAX_S = 60, CURE_TRIES = 3 };

/* ---- on-access ---- */

static void realtime(struct protect *p, const char *state, const char *why)
{
    bool worse =
        strcmp(state, "failed") == 0 &&
        (strcmp(p->facts.realtime, "failed") != 0 || strcmp(why, p->access_why) != 0);

    (void)snprintf(p->access_why, sizeof(p->access_why), "%s", why);
    if (worse)
        protect_event(p, "realtime_failed", "error", json_pack("{s:s}", "why", why));
    if (strcmp(p->facts.realtime, state) == 0)
        return;
    p->facts.realtime = state;
    protect_facts_dirty(p);
}

static const char *mode_name(const struct protect *p)
{
    return p->policy->onaccess_mode == POLICY_ONACCESS_BLOCK    ? "block"
           : p->policy->onaccess_mode == POLICY_ONACCESS_NOTIFY ? "notify"
                                                                : "off";
}

static void access_stop(struct protect *p)
{
    child_free(p->access);
    p->access = NULL;
}

static void access_retry(struct protect *p)
{
    uint64_t s = (uint64_t)ACCESS_AGAIN_S
                 << (p->access_failures < 5 ? p->access_failures : 5);

    p->access_failures++;
    s = s > ACCESS_AGAIN_MAX_S ? ACCESS_AGAIN_MAX_S : s;
    (void)sd_event_source_set_time_relative(p->access_timer, s * 1000000u);
    (void)sd_event_source_set_enabled(p->access_timer, SD_EVENT_ONESHOT);
}

static void cure_next(struct protect *p);

/* What a worker says of a file that it cannot cure, for there is none that could say it. */
static void cannot_cure(struct protect *p, const struct found *f, const char *why)
{
    char link[40], path[PATH_MAX];
    struct stat st = { 0 };

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", f->fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    path[n > 0 ? n : 0] = '\0';
    (void)fstat(f->fd, &st);
    json_t *data = cure_describe(path, f->threat, "", &st, "on-access");

    protect_event(p, "threat_found", "critical", json_copy(data));
    (void)json_object_set_new(data, "why", json_string(why));
    protect_event(p, "threat_not_cured", "critical", data);
}

static void cured(struct protect *p, struct job *job, const json_t *done)
{
    const char *why = json_string_value(json_object_get(done, "error"));

    (void)job;
    p->curing = NULL;
    if (why) {
        log_event(LOG_LEVEL_ERROR, "cure_failed", log_str("why", why));
        if (++p->found[0].tries < CURE_TRIES) {
            cure_next(p);
            return;
        }
        cannot_cure(p, &p->found[0], why);
    }
    (void)close(p->found[0].fd);
    p->found_count--;
    memmove(&p->found[0], &p->found[1], p->found_count * sizeof(p->found[0]));
    if (p->access)
        child_hold(p->access, false);
    cure_next(p);
}

static void cure_next(struct protect *p)
{
    if (p->curing || p->found_count == 0)
        return;
    /* NULL: no process to be had now; the next kick tries again. */
    p->curing =
        job_start(p,
                  json_pack("{s:s,s:s,s:o}", "do", "cure", "threat", p->found[0].threat,
                            "quarantine", protect_quarantine(p)),
                  p->found[0].fd, cured, NULL);
}

static void take_found(struct protect *p, const json_t *m, int fd)
{
    const char *threat = json_string_value(json_object_get(m, "threat"));

    if (fd < 0 || !threat || p->found_count == PROTECT_FOUND_MAX) {
        log_event(LOG_LEVEL_ERROR, "threat_not_handled",
                  log_str("threat", threat ? threat : "?"));
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    struct found *f = &p->found[p->found_count++];
    f->fd = fd;
    f->tries = 0;
    (void)snprintf(f->threat, sizeof(f->threat), "%s", threat);
    if (p->found_count == PROTECT_FOUND_MAX)
        child_hold(p->access, true); /* the listener keeps the others */
    cure_next(p);
}

static void access_message(void *arg, json_t *m, int fd)
{
    struct protect *p = arg;
    const char *t = json_string_value(json_object_get(m, "t"));
    const char *why = json_string_value(json_object_get(m, "why"));

    if (t && strcmp(t, "found") == 0) {
        take_found(p, m, fd);
        return;
    }
    if (fd >= 0)
        (void)close(fd);
    if (t && strcmp(t, "state") == 0) {
        bool ok = json_is_true(json_object_get(m, "ok"));

        realtime(p, ok ? mode_name(p) : "failed", why ? why : "");
        p->access_failures = ok ? 0 : p->access_failures;
    } else if (t && strcmp(t, "event") == 0) {
        protect_event(p, "onaccess_missed", "warning",
                      json_incref(json_object_get(m, "data")));
    }
}

static void access_ended(void *arg, int code)
{
    struct protect *p = arg;
    char why[160];

    access_stop(p);
    (void)snprintf(why, sizeof(why),
                   code == 3 ? "the listener hung and was ended (%d)"
                             : "the listener ended unexpectedly (%d)",
                   code);
    if (strcmp(p->facts.realtime, "failed") != 0)
        realtime(p, "failed", why);
    access_retry(p);
}

static json_t *list_of(const struct policy_list *l)
{
    json_t *j = json_array();

    for (uint32_t i = 0; i < l->count; i++)
        (void)json_array_append_new(j, json_string(l->at[i]));
    return j;
}

static json_t *access_job(const struct protect *p)
{
    const struct policy *y = p->policy;
    json_t *exclude = list_of(&y->exclusions_paths);

    (void)json_array_append_new(exclude, json_string(p->quarantine));
    return json_pack("{s:s,s:o,s:o,s:I,s:I,s:s,s:s}", "mode", mode_name(p), "paths",
                     list_of(&y->onaccess_paths), "exclude", exclude, "timeout_ms",
                     (json_int_t)y->onaccess_timeout_ms, "max_file_mib",
                     (json_int_t)y->onaccess_max_file_mib, "clamd", p->conf.agent.clamd,
                     "quarantine", p->quarantine);
}

static void access_start(struct protect *p)
{
    struct child_hooks hooks = { p, access_message, access_ended };
    struct err_info info = { 0 };
    json_t *job = access_job(p);
    enum err e = child_new(p->event, "--on-access", &hooks, &p->access, &info);

    if (e != ERR_OK) {
        json_decref(job);
        realtime(p, "failed", info.what);
        access_retry(p);
        return;
    }
    child_hold(p->access, p->found_count == PROTECT_FOUND_MAX);
    if (!child_send(p->access, job, -1))
        log_event(LOG_LEVEL_ERROR, "on_access_unheard"); /* its end follows */
    for (size_t i = 0; i < LEN(p->jobs); i++)
        if (p->jobs[i].p)
            access_ignore(p, child_pid(p->jobs[i].child));
}

/* Starts it anew if what it should do has changed. */
static void access_apply(struct protect *p)
{
    json_t *job = access_job(p);
    char *settings = json_dumps(job, JSON_COMPACT | JSON_SORT_KEYS);

    json_decref(job);
    if (settings && p->access_settings && strcmp(settings, p->access_settings) == 0) {
        free(settings);
        return;
    }
    free(p->access_settings);
    p->access_settings = settings;
    p->access_failures = 0;
    (void)sd_event_source_set_enabled(p->access_timer, SD_EVENT_OFF);
    access_stop(p);
    if (p->policy->onaccess_mode == POLICY_ONACCESS_OFF)
        realtime(p, "off", "");
    else
        access_start(p);
}

int access_again(sd_event_source *source, uint64_t us, void *arg)
{
    struct protect *p = arg;

    (void)source, (void)us;
    if (p->policy && !p->access && p->policy->onaccess_mode != POLICY_ONACCESS_OFF)
        access_start(p);
    return 0;
}

void access_flush(struct protect *p)
{
    if (p->access)
        (void)child_send(p->access, json_pack("{s:s}", "do", "flush"), -1);
}

void access_ignore(struct protect *p, pid_t pid)
{
    if (p->access)
        (void)child_send(p->access,
                         json_pack("{s:s,s:I}", "do", "ignore", "pid", (json_int_t)pid),
                         -1);
}

/* ---- the policy ---- */

static void policy_is_done(struct protect *p, bool ok, const char *why)
{
    if (!p->policy_due)
        return;
    p->policy_due = false;
    log_event(ok ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, "policy", log_str("hash", p->hash),
              log_bool("applied", ok), log_str("why", why));
    p->hooks.policy_done(p->hooks.arg, p->hash, ok, why);
}

static void engine_done(struct protect *p, struct job *job, const json_t *done)
{
    const char *why = json_string_value(json_object_get(done, "error"));
    const char *text = json_string_value(json_object_get(done, "text"));
    bool ok = json_is_true(json_object_get(done, "ok"));
    char said[240];

    (void)job;
    p->engine_job = NULL;
    if (text) {
        free(p->engine_text);
        p->engine_text = strdup(text);
    }
    /* The server knows by the first word that it is the device that was changed. */
    (void)snprintf(said, sizeof(said), "%s%s", p->drift ? "drift: " : "", why ? why : "");
    /* It is looked at every few seconds, and told once. */
    bool again = p->drift && !ok && p->drift_stays;
    p->drift_stays = p->drift && !ok;
    if (again && !p->engine_due)
        p->policy_due = false;
    if (p->drift && !again)
        protect_event(p, "policy_drift", "warning",
                      json_pack("{s:s,s:b,s:s}", "file", p->conf.agent.clamd_conf,
                                "corrected", ok, "why", why ? why : ""));
    p->drift = false;
    if (!p->engine_due) /* else a newer policy waits, and is answered instead */
        policy_is_done(p, ok, ok ? "" : said);
    protect_kick(p);
}

static void engine_configure(struct protect *p)
{
    char buf[1024], kept[CONF_PATH + 32];
    struct text block;

    text_init(&block, buf, sizeof(buf));
    engine_conf_block(p->policy, &block);
    (void)snprintf(kept, sizeof(kept), "%s/clamd.conf.kept", p->conf.agent.state_dir);
    p->engine_job = job_start(p,
                              json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "do", "engine",
                                        "conf", p->conf.agent.clamd_conf, "kept", kept,
                                        "block", block.p, "clamd", p->conf.agent.clamd,
                                        "restart", p->conf.agent.engine_restart),
                              -1, engine_done, NULL);
    p->engine_due = p->engine_job == NULL;
}

void policy_work(struct protect *p)
{
    cure_next(p);
    if (p->access_due) {
        p->access_due = false;
        access_apply(p);
    }
    if (!p->policy || p->engine_job)
        return;
    if (p->engine_due)
        engine_configure(p);
    else
        policy_is_done(p, true, "");
}

void protect_policy(struct protect *p, const struct policy *policy, const char *hash)
{
    if (!p->policy)
        p->policy = malloc(sizeof(*p->policy));
    if (!p->policy)
        return;
    *p->policy = *policy;
    (void)snprintf(p->hash, sizeof(p->hash), "%s", hash);
    p->policy_due = true;
    p->engine_due = p->conf.agent.clamd_conf[0] != '\0';
    p->access_due = true;
    p->update_failures = 0; /* the source may be another one */
    (void)update_schedule(p);
    protect_kick(p);
}

/* Has somebody else written the engine's configuration? */
void drift_check(struct protect *p)
{
    static char now[ENGINE_CONF_MAX];
    size_t n;

    protect_kick(p);
    if (!p->engine_text || p->engine_job || p->engine_due)
        return;
    enum err e = file_load(p->conf.agent.clamd_conf, now, sizeof(now), &n, NULL);
    if (e == ERR_OK && strcmp(now, p->engine_text) == 0)
        return;
    if (e == ERR_NOT_FOUND && /* the job wants a file to replace */
        file_store(p->conf.agent.clamd_conf, STR("\n"), NULL, NULL) != ERR_OK)
        return;
    log_event(LOG_LEVEL_WARNING, "policy_drift",
              log_str("file", p->conf.agent.clamd_conf));
    p->drift = true;
    p->engine_due = p->policy_due = true;
}

void policy_free(struct protect *p)
{
    access_stop(p);
    free(p->policy);
    free(p->engine_text);
    free(p->access_settings);
}
