/*
 * alarms: which of base/alarm.h hold now, and the hook that tells somebody.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

enum {
    PEER_UNREADY_MS = 5000,
    NO_ACTIVE_MS = 2000,
    CONTENT_STILL_MS = 60000, /* nothing comes any more */
    DAMAGE_SHOWN_MS = 60000,  /* also if it was healed at once */
    MIRROR_DOWN_MS = 5000,
};

/* ---- the hook: an executable, the event as JSON on its standard input ---- */

static void alert_over(struct alert *a)
{
    a->child = sd_event_source_disable_unref(a->child);
    a->limit = sd_event_source_disable_unref(a->limit);
    a->pid = 0;
}

static int on_alert_end(sd_event_source *s, const siginfo_t *si, void *user)
{
    struct alert *a = user;

    (void)s;
    if (si->si_code != CLD_EXITED || si->si_status != 0)
        log_event(LOG_LEVEL_WARNING, "alert_hook_failed",
                  log_i64("status", si->si_status));
    alert_over(a);
    return 0;
}

static int on_alert_limit(sd_event_source *s, uint64_t when, void *user)
{
    struct alert *a = user;

    (void)s;
    (void)when;
    log_event(LOG_LEVEL_WARNING, "alert_hook_timeout", log_i64("pid", a->pid));
    /* Our own child, not yet reaped: the pid is still its own, and so is its group. */
    (void)kill(-a->pid, SIGKILL);
    (void)kill(a->pid, SIGKILL);
    return 0;
}

/* The event as the standard input of a child: a memfd, so nobody waits for a reader. */
static int event_fd(const json_t *event)
{
    int fd = memfd_create("redoubt-event", MFD_CLOEXEC);

    if (fd < 0)
        return -1;
    if (json_dumpfd(event, fd, JSON_COMPACT | JSON_PRESERVE_ORDER) < 0 ||
        write(fd, "\n", 1) != 1 || lseek(fd, 0, SEEK_SET) != 0) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

static _Noreturn void run_hook(const char *hook, int fd)
{
    sigset_t none;

    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setsid(); /* a group of its own: what it starts is killed with it */
    if (dup2(fd, STDIN_FILENO) >= 0)
        (void)execl(hook, hook, (char *)NULL);
    _exit(127);
}

static bool alert_allowed(struct daemon *d)
{
    uint64_t minute = now_mono().us / 60000000u;

    if (minute != d->alert_minute) {
        if (d->alerts_dropped)
            log_event(LOG_LEVEL_WARNING, "alerts_dropped",
                      log_u64("count", d->alerts_dropped));
        d->alert_minute = minute;
        d->alert_count = d->alerts_dropped = 0;
    }
    if (d->alert_count >= d->conf.alert.max_per_minute)
        return false;
    d->alert_count++;
    return true;
}

void alert_send(struct daemon *d, const json_t *event)
{
    struct alert *a = NULL;

    if (d->conf.alert.hook[0] == '\0')
        return;
    for (size_t i = 0; i < LEN(d->alerts) && !a; i++)
        if (d->alerts[i].pid == 0)
            a = &d->alerts[i];
    if (!a || !alert_allowed(d)) {
        if (d->alerts_dropped++ == 0)
            log_event(
                LOG_LEVEL_WARNING, "alert_dropped",
                log_str("why", a ? "max_per_minute" : "too many hooks are running"));
        return;
    }
    int fd = event_fd(event);

    if (fd < 0)
        return;
    pid_t pid = fork();

    if (pid == 0)
        run_hook(d->conf.alert.hook, fd);
    (void)close(fd);
    if (pid < 0) {
        log_event(LOG_LEVEL_WARNING, "alert_hook_failed",
                  log_str("error", strerror(errno)));
        return;
    }
    a->pid = pid;
    if (sd_event_add_child(d->loop, &a->child, pid, WEXITED, on_alert_end, a) < 0 ||
        sd_event_add_time_relative(d->loop, &a->limit, CLOCK_BOOTTIME,
                                   (uint64_t)d->conf.alert.timeout_ms * 1000, 10000,
                                   on_alert_limit, a) < 0) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        alert_over(a);
    }
}

/* ---- what holds now ---- */

static bool detail(struct daemon *d, enum alarm id, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool detail(struct daemon *d, enum alarm id, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(d->alarm_detail[id], sizeof(d->alarm_detail[id]), fmt, ap);
    va_end(ap);
    return true;
}

/*
 * Was a write refused lately?  A share without rights or room answers every read in between,
 * so the last answer says nothing.  A passive node writes when it claims, once a wait; all
 * nodes write their records more often than that.
 */
static bool share_refuses(const struct daemon *d)
{
    const struct node_conf *c = &d->run.node.conf;

    return mono_is_set(d->share.refused_at) &&
           mono_since_ms(now_mono(), d->share.refused_at) <
               node_wait_ms(c, c->hold_ms) + 2 * c->put_ms;
}

static void look_at_share(struct daemon *d, bool on[ALARM_COUNT])
{
    const struct node *n = &d->run.node;
    const uint32_t ob = node_obstacles(n);
    const enum err e = n->seen.last_err;

    if (ob & NODE_OB_SHARE) {
        enum alarm id = e == ERR_DENIED      ? ALARM_SHARE_DENIED
                        : e == ERR_NOT_FOUND ? ALARM_SHARE_EMPTY
                                             : ALARM_SHARE_UNREACHABLE;

        on[id] = detail(d, id, "%s", d->share.why);
    }
    if (share_refuses(d)) {
        enum alarm id =
            d->share.refused == ERR_FULL ? ALARM_SHARE_FULL : ALARM_SHARE_DENIED;

        on[id] = detail(d, id, "%s", d->share.refused_why);
    }
    if (ob & NODE_OB_REGRESSED)
        on[ALARM_SHARE_REGRESSED] =
            detail(d, ALARM_SHARE_REGRESSED, "the share shows epoch %llu, %llu is known",
                   (unsigned long long)n->seen.top, (unsigned long long)n->known_epoch);
    if (n->seen.known && n->seen.lease_err == ERR_FOREIGN)
        on[ALARM_SHARE_FOREIGN] =
            detail(d, ALARM_SHARE_FOREIGN, "%s", d->conf.share.state);
    if (n->seen.known && n->seen.lease_err == ERR_VERSION)
        on[ALARM_RECORD_VERSION] = detail(d, ALARM_RECORD_VERSION, "epoch/%llu",
                                          (unsigned long long)n->seen.top);
    if (n->seen.known && n->seen.top > 0 && n->seen.lease_err == ERR_CORRUPT) {
        /* Whole but not ours to verify, or not whole. */
        enum alarm id =
            d->run.top.n == RECORD_LEASE_BYTES ? ALARM_RECORD_MAC : ALARM_RECORD_TORN;

        on[id] = detail(d, id, "epoch/%llu", (unsigned long long)n->seen.top);
    }
    if (ob & NODE_OB_DUPLICATE)
        on[ALARM_DUPLICATE_NAME] = detail(d, ALARM_DUPLICATE_NAME, "%s", n->conf.self);
}

static void look_at_node(struct daemon *d, bool on[ALARM_COUNT])
{
    const struct node *n = &d->run.node;

    if (d->database.known && !d->database.ok) {
        const enum fence_state s = d->database.state;
        enum alarm id = s == FENCE_SERVER_TOO_OLD ? ALARM_DATABASE_VERSION
                        : s == FENCE_SCHEMA_MISSING || s == FENCE_SCHEMA_TOO_OLD ||
                                s == FENCE_SCHEMA_TOO_NEW
                            ? ALARM_DATABASE_SCHEMA
                            : ALARM_DATABASE_UNREACHABLE;

        on[id] = detail(d, id, "%s: %s", fence_state_name(s), d->database.why);
    }
    for (uint32_t i = 0; i < d->conf.service_count; i++)
        if (d->view[i].state == SERVICE_FAILED)
            on[ALARM_SERVICE_FAILED] = detail(d, ALARM_SERVICE_FAILED, "%s: %s",
                                              d->conf.service[i].name, d->view[i].why);
    if (n->state == NODE_ACTIVE && n->lease.moves >= n->conf.switch_max &&
        node_degraded(n))
        on[ALARM_SWITCH_LIMIT] =
            detail(d, ALARM_SWITCH_LIMIT, "%u switches in a row", n->lease.moves);
    if (n->paused)
        on[ALARM_PAUSED] = detail(d, ALARM_PAUSED, "%s", "");
    if (d->address_why[0] || (d->address_conflict_us != 0 &&
                              now_wall_us() - d->address_conflict_us < 60000000u))
        on[ALARM_ADDRESS_CONFLICT] =
            detail(d, ALARM_ADDRESS_CONFLICT, "%s", d->address_why);
}

/*
 * A switch takes the other node through states in which it is not ready.  That is no
 * trouble until it lasts.
 */
static bool peer_stays_unready(struct daemon *d, bool unready)
{
    if (!unready)
        d->peer_unready_since = (struct mono){ 0 };
    else if (!mono_is_set(d->peer_unready_since))
        d->peer_unready_since = now_mono();
    return unready && mono_since_ms(now_mono(), d->peer_unready_since) >= PEER_UNREADY_MS;
}

/*
 * The lease is free, or has not changed for longer than any takeover takes, and we do not
 * take it.  Without the share we cannot know; that has an alarm of its own.
 */
static void look_for_active(struct daemon *d, bool on[ALARM_COUNT])
{
    const struct node *n = &d->run.node;
    const uint32_t long_ms = 2 * node_wait_ms(&n->conf, n->conf.hold_ms) + NO_ACTIVE_MS;
    char why[160] = "it is about to";
    const char *first;

    if ((n->state != NODE_FOLLOWING && n->state != NODE_READY) || !n->seen.known ||
        (node_obstacles(n) & NODE_OB_SHARE) ||
        mono_since_ms(now_mono(), n->seen.changed) < long_ms)
        return;
    json_t *obstacles = status_obstacles(n);

    first = json_string_value(json_array_get(obstacles, 0));
    if (n->paused)
        first = "the cluster is paused";
    if (first)
        (void)snprintf(why, sizeof(why), "%s", first);
    json_decref(obstacles);
    on[ALARM_NO_ACTIVE] =
        detail(d, ALARM_NO_ACTIVE, "%s does not take over: %s", n->conf.self, why);
}

static void look_at_peer(struct daemon *d, bool on[ALARM_COUNT])
{
    const struct node *n = &d->run.node;
    const struct mono now = now_mono();
    const bool long_enough =
        mono_is_set(n->seen.connected) &&
        mono_since_ms(now, n->seen.connected) > 2 * n->conf.peer_fresh_ms;
    const bool silent =
        !n->peer.alive || mono_since_ms(now, n->peer.changed) > n->conf.peer_fresh_ms;

    const bool unready = peer_stays_unready(
        d, !silent && !n->peer.rec.maintenance && n->state == NODE_ACTIVE &&
               !n->peer.rec.ready && !n->peer.rec.fit);

    if (node_obstacles(n) & NODE_OB_SHARE)
        return; /* we cannot know */
    if (silent && long_enough)
        on[ALARM_PEER_SILENT] = detail(d, ALARM_PEER_SILENT, "%s", n->conf.peer);
    if (!silent && n->peer.rec.maintenance)
        on[ALARM_PEER_MAINTENANCE] =
            detail(d, ALARM_PEER_MAINTENANCE, "%s", n->conf.peer);
    else if (unready)
        on[ALARM_PEER_NOT_READY] =
            detail(d, ALARM_PEER_NOT_READY, "%s is %s", n->conf.peer, n->peer.rec.state);
    json_t *peer = silent ? NULL : status_peer_record(d);

    if (peer) {
        const char *digest = json_string_value(json_object_get(peer, "conf"));
        char *theirs =
            json_dumps(json_object_get(peer, "machine"), JSON_COMPACT | JSON_SORT_KEYS);
        json_t *own = json_loads(d->machine_json, 0, NULL);
        char *ours = json_dumps(own, JSON_COMPACT | JSON_SORT_KEYS);

        if (digest && strcmp(digest, d->conf_digest) != 0)
            on[ALARM_CONFIG_MISMATCH] =
                detail(d, ALARM_CONFIG_MISMATCH, "%s", "redoubt.conf differs");
        if (theirs && ours && strcmp(theirs, ours) != 0)
            on[ALARM_PEER_DIFFERS] = detail(d, ALARM_PEER_DIFFERS, "%s", n->conf.peer);
        free(theirs);
        free(ours);
        json_decref(own);
        json_decref(peer);
    }
}

/* What redoubt-mirror says; nothing here makes anybody less available. */
static void look_at_content(struct daemon *d, bool on[ALARM_COUNT])
{
    const struct content *c = &d->content;
    const struct mono now = now_mono();

    if (!content_is_used(d))
        return;
    if (mono_is_set(c->down_since) && mono_since_ms(now, c->down_since) > MIRROR_DOWN_MS)
        on[ALARM_MIRROR_DOWN] = detail(d, ALARM_MIRROR_DOWN, "%s", c->down_why);
    if (!c->told)
        return;
    if (!c->share_ok && c->share_why[0])
        on[ALARM_DATA_UNREACHABLE] =
            detail(d, ALARM_DATA_UNREACHABLE, "%s", c->share_why);
    if (c->full)
        on[ALARM_STORE_FULL] = detail(d, ALARM_STORE_FULL, "%s", c->why);
    else if (!c->prepared && mono_since_ms(now, c->moved) > CONTENT_STILL_MS)
        on[ALARM_CONTENT_MISSING] =
            detail(d, ALARM_CONTENT_MISSING, "%llu of %llu files: %s",
                   (unsigned long long)c->missing, (unsigned long long)c->files, c->why);
    if (c->refused[0])
        on[ALARM_CONTENT_REFUSED] = detail(d, ALARM_CONTENT_REFUSED, "%s", c->refused);
    if (strcmp(c->signatures, "warning") == 0)
        on[ALARM_SIGNATURES_OLD] =
            detail(d, ALARM_SIGNATURES_OLD, "%s", c->signatures_detail);
    if (strcmp(c->signatures, "critical") == 0)
        on[ALARM_SIGNATURES_STALE] =
            detail(d, ALARM_SIGNATURES_STALE, "%s", c->signatures_detail);
    if (c->damaged_now > 0 ||
        (mono_is_set(c->event_at) && mono_since_ms(now, c->event_at) < DAMAGE_SHOWN_MS))
        on[ALARM_CONTENT_DAMAGED] =
            detail(d, ALARM_CONTENT_DAMAGED, "blob %s %s, %s", c->blob, c->where,
                   c->damaged_now > 0 ? "not healed yet" : "healed");
}

static void changed(struct daemon *d, enum alarm id, bool on)
{
    const struct alarm_info *info = alarm_info(id);
    char text[500];

    d->alarm_since[id] = on ? now_wall_us() : 0;
    log_event(!on                               ? LOG_LEVEL_INFO
              : info->severity == ALARM_ERROR   ? LOG_LEVEL_ERROR
              : info->severity == ALARM_WARNING ? LOG_LEVEL_WARNING
                                                : LOG_LEVEL_INFO,
              on ? "alarm" : "alarm_over", log_str("id", info->id),
              log_str("title", info->title), log_str("detail", d->alarm_detail[id]),
              log_str("suggestion", on ? info->suggestion : ""));
    (void)snprintf(text, sizeof(text), "%s%s%s%s", on ? "" : "over: ", info->title,
                   d->alarm_detail[id][0] ? ": " : "", d->alarm_detail[id]);
    json_t *e = journal_entry(d, "alarm", text);

    (void)json_object_set_new(e, "id", json_string(info->id));
    (void)json_object_set_new(e, "on", json_boolean(on));
    alert_send(d, e);
    if (d->history)
        journal_add(d, e);
    else
        json_decref(e);
}

void alarms_update(struct daemon *d)
{
    bool on[ALARM_COUNT] = { false };

    if (d->trouble[0]) {
        on[d->trouble_id] = detail(d, d->trouble_id, "%s", d->trouble);
    } else if (d->running) {
        look_at_share(d, on);
        look_at_node(d, on);
        look_at_peer(d, on);
        look_at_content(d, on);
        look_for_active(d, on);
    }
    for (int i = 0; i < ALARM_COUNT; i++)
        if (on[i] != (d->alarm_since[i] != 0))
            changed(d, (enum alarm)i, on[i]);
}

json_t *alarms_json(const struct daemon *d)
{
    json_t *list = json_array();
    char since[40];

    for (int i = 0; i < ALARM_COUNT; i++) {
        const struct alarm_info *info = alarm_info((enum alarm)i);

        if (d->alarm_since[i] == 0)
            continue;
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "id", info->id,
                            "severity", alarm_severity_name(info->severity), "title",
                            info->title, "text", info->text, "detail", d->alarm_detail[i],
                            "suggestion", info->suggestion, "since",
                            wall_text(d->alarm_since[i], since, sizeof(since))));
    }
    return list;
}
