#include "sys/supervisor/unit.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/supervisor/child_env.h"

enum {
    KILL_PATIENCE_MS = 1000,
    BACKOFF_FLOOR_MS = 10,
    ENV_MAX = 240,
    OWN_ENV_MAX = 8,
    OWN_ENV_BYTES = 320
};

static void begin_kill(struct unit *u, bool failed);
static void check_empty(struct unit *u);

uint64_t unit_now_us(const struct unit *u)
{
    uint64_t now = 0;

    (void)sd_event_now(u->s->o.event, CLOCK_MONOTONIC, &now); /* > 0: not running: real */
    return now;
}

void unit_timer(struct unit *u, sd_event_source **timer, uint32_t ms,
                sd_event_time_handler_t handler)
{
    uint64_t us = (uint64_t)ms * 1000u, now = 0;

    *timer = sd_event_source_disable_unref(*timer);
    (void)sd_event_now(u->s->o.event, CLOCK_MONOTONIC, &now);
    /* Without memory for a timer nothing would ever end this phase: a bug or the end. */
    CHECK(sd_event_add_time(u->s->o.event, timer, CLOCK_MONOTONIC, now + us, 1000,
                            handler, u) >= 0);
    (void)sd_event_source_set_priority(*timer, UNIT_PRIO_TIMER);
}

void unit_timer_off(sd_event_source *timer)
{
    if (timer)
        (void)sd_event_source_set_enabled(timer, SD_EVENT_OFF);
}

void unit_state(struct unit *u, enum service_state state, const char *fmt, ...)
{
    char why[SUPERVISOR_WHY_BYTES];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(why, sizeof(why), fmt, ap);
    va_end(ap);
    if (state == u->state && strcmp(why, u->why) == 0)
        return;
    u->state = state;
    memcpy(u->why, why, sizeof(why));
    u->changed = true;
    (void)sd_event_source_set_enabled(u->s->report, SD_EVENT_ONESHOT);
}

bool unit_lives(const struct unit *u)
{
    return u->life != UNIT_NONE && u->life != UNIT_BACKOFF;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* Everything of one life of the service. */
static void end_life(struct unit *u)
{
    processes_pause(u);
    u->on_exit = sd_event_source_disable_unref(u->on_exit);
    u->on_exec = sd_event_source_disable_unref(u->on_exec);
    unit_timer_off(u->phase);
    unit_timer_off(u->watchdog);
    unit_timer_off(u->role_timer);
    close_fd(&u->pidfd);
    close_fd(&u->exec_fd);
    close_fd(&u->role_fd);
    output_close(&u->output);
    u->pid = 0;
    u->told = NOTIFY_ROLE_NONE;
    u->told_epoch = 0;
    u->acked = false;
    u->status[0] = u->metrics[0] = '\0';
}

static int backoff_over(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    u->life = UNIT_NONE;
    unit_converge(u);
    return 0;
}

/* The next wait: doubled, unless it had run long enough to count as well. */
static uint32_t next_backoff(struct unit *u)
{
    uint64_t max = u->conf->restart_backoff_max_ms, b = (uint64_t)u->backoff_ms * 2;
    bool ran = u->up_since_us != 0 && unit_now_us(u) - u->up_since_us >= max * 1000u;

    if (ran || b < u->conf->restart_backoff_ms)
        b = u->conf->restart_backoff_ms;
    if (b > max)
        b = max;
    return b < BACKOFF_FLOOR_MS ? BACKOFF_FLOOR_MS : (uint32_t)b;
}

static void begin_backoff(struct unit *u)
{
    u->backoff_ms = next_backoff(u);
    u->up_since_us = 0;
    u->restarts_due = true;
    u->life = UNIT_BACKOFF;
    unit_timer(u, &u->phase, u->backoff_ms, backoff_over);
    unit_state(u, SERVICE_FAILED, "%s; next start in %" PRIu32 " ms", u->failure,
               u->backoff_ms);
    u->changed = true; /* FAILED again is news too */
    (void)sd_event_source_set_enabled(u->s->report, SD_EVENT_ONESHOT);
}

/* Its group is empty and its main process is reaped. */
static void ended(struct unit *u)
{
    bool failed = u->failed && u->s->want != SERVICE_WANT_STOPPED;

    end_life(u);
    u->life = UNIT_NONE;
    u->failed = false;
    if (failed)
        begin_backoff(u);
    supervisor_converge(u->s);
}

static int kill_patience(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    check_empty(u);
    if (u->life == UNIT_KILLING && u->failed)
        unit_state(u, SERVICE_FAILED, "%s; killed, but a process has not ended yet",
                   u->failure);
    return 0;
}

static void check_empty(struct unit *u)
{
    if (u->life == UNIT_KILLING && u->pid == 0 && !cgroup_populated(&u->group))
        ended(u);
}

static void begin_kill(struct unit *u, bool failed)
{
    struct err_info info = { 0 };

    processes_pause(u);
    unit_timer_off(u->watchdog);
    unit_timer_off(u->role_timer);
    u->life = UNIT_KILLING;
    u->failed = failed;
    if (cgroup_kill(&u->group, &info))
        supervisor_remark(u->s, "%s: %s", u->conf->name, info.what);
    unit_timer(u, &u->phase, KILL_PATIENCE_MS, kill_patience);
    check_empty(u);
}

void unit_fail(struct unit *u, const char *fmt, ...)
{
    va_list ap;

    if (!unit_lives(u) || u->life == UNIT_KILLING)
        return;
    va_start(ap, fmt);
    (void)vsnprintf(u->failure, sizeof(u->failure), fmt, ap);
    va_end(ap);
    unit_state(u, SERVICE_CHANGING, "failed: %s", u->failure);
    begin_kill(u, true);
}

void unit_kill(struct unit *u)
{
    if (u->life == UNIT_BACKOFF) {
        unit_timer_off(u->phase);
        u->life = UNIT_NONE;
    }
    if (u->life == UNIT_NONE) {
        unit_state(u, SERVICE_STOPPED, "killed");
        u->changed = true; /* asked anew, answered anew */
        (void)sd_event_source_set_enabled(u->s->report, SD_EVENT_ONESHOT);
        return;
    }
    unit_state(u, SERVICE_CHANGING, "killed");
    begin_kill(u, false);
}

static int stop_timeout(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    unit_state(u, SERVICE_CHANGING, "did not stop within %" PRIu32 " ms: killed",
               u->conf->stop_timeout_ms);
    begin_kill(u, false);
    return 0;
}

static void begin_stop(struct unit *u)
{
    if (u->life == UNIT_STOPPING || u->life == UNIT_KILLING)
        return;
    processes_pause(u);
    unit_timer_off(u->watchdog);
    unit_timer_off(u->role_timer);
    u->life = UNIT_STOPPING;
    unit_state(u, SERVICE_CHANGING, "stopping");
    /* pid is ours until we reap it, so it cannot be another's. */
    if (u->pid == 0 || kill(u->pid, SIGTERM) != 0)
        begin_kill(u, false);
    else
        unit_timer(u, &u->phase, u->conf->stop_timeout_ms, stop_timeout);
}

static int start_timeout(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    unit_fail(u, "was not ready within %" PRIu32 " ms", u->conf->start_timeout_ms);
    return 0;
}

static void exit_text(char *text, size_t size, const siginfo_t *si)
{
    if (si->si_code == CLD_EXITED)
        (void)snprintf(text, size, "ended with status %d", si->si_status);
    else
        (void)snprintf(text, size, "killed by signal %d (SIG%s)", si->si_status,
                       sigabbrev_np(si->si_status) ? sigabbrev_np(si->si_status) : "?");
}

static int main_exited(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct unit *u = user;
    siginfo_t si = { 0 };
    char text[64];

    (void)source;
    (void)fd;
    (void)events;
    if (waitid(P_PIDFD, (id_t)u->pidfd, &si, WEXITED | WNOHANG) != 0 || si.si_pid == 0)
        return 0;
    u->pid = 0;
    u->on_exit = sd_event_source_disable_unref(u->on_exit);
    exit_text(text, sizeof(text), &si);
    switch (u->life) {
    case UNIT_STARTING: unit_fail(u, "%s before it was ready", text); break;
    case UNIT_UP: unit_fail(u, "%s", text); break;
    case UNIT_STOPPING: begin_kill(u, false); break; /* what it left behind */
    case UNIT_KILLING: check_empty(u); break;
    case UNIT_NONE:
    case UNIT_BACKOFF: CHECK(u->life != UNIT_NONE && u->life != UNIT_BACKOFF); break;
    }
    return 0;
}

static int group_changed(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)fd;
    (void)events;
    /* Reading resets the event; an empty group matters only to what is being killed. */
    if (!cgroup_populated(&u->group))
        check_empty(u);
    return 0;
}

static int exec_done(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct unit *u = user;
    struct spawn_failure f;
    ssize_t n = read(fd, &f, sizeof(f));

    (void)source;
    (void)events;
    u->on_exec = sd_event_source_disable_unref(u->on_exec);
    close_fd(&u->exec_fd);
    if (n == (ssize_t)sizeof(f)) {
        f.step[sizeof(f.step) - 1] = '\0';
        unit_fail(u, "cannot start %.60s: %s: %s", u->conf->argv[0], f.step,
                  strerrordesc_np(f.sys_errno) ? strerrordesc_np(f.sys_errno) : "?");
    } else if (n == 0 && u->conf->ready_at_start) {
        unit_heard(u, &(struct notify_message){ .ready = true });
    }
    return 0;
}

static int message(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct unit *u = user;
    char buf[NOTIFY_BYTES];
    struct notify_message m;
    struct str datagram;
    pid_t pid;

    (void)source;
    (void)events;
    for (int i = 0; i < 16; i++) {
        if (notify_receive(fd, buf, &datagram, &pid))
            break;
        if (pid <= 0 || (pid != u->pid && !cgroup_has(&u->group, pid)))
            continue;
        notify_decode(&m, datagram);
        unit_heard(u, &m);
    }
    return 0;
}

static enum err launch(struct unit *u, int role, int output, struct err_info *info)
{
    struct child_env env;
    struct spawned child;
    enum err e = ERR_OK;

    if (!u->user_found) {
        e = spawn_user_find(&u->user, u->conf->user, info);
        if (e)
            return e;
        u->user_found = true;
        if (u->user.set && (chown(u->socket, u->user.uid, u->user.gid) != 0 ||
                            chown(u->runtime, u->user.uid, u->user.gid) != 0))
            return err_set(info, ERR_IO, errno, "give %s to the user", u->runtime);
    }
    if (!child_env_make(&env, u))
        return err_set(info, ERR_LIMIT, 0, "the environment is too large");
    e = spawn(&child,
              &(struct spawn_options){ .argv = u->conf->argv,
                                       .env = env.all,
                                       .user = &u->user,
                                       .cgroup_dir = u->group.dir,
                                       .born_in_cgroup = u->s->born_in_cgroup,
                                       .role_fd = role,
                                       .lease_fd = u->s->o.lease_fd,
                                       .output_fd = output,
                                       .nofile = u->conf->nofile,
                                       .data_bytes = u->data_bytes },
              info);
    if (e)
        return e;
    u->pid = child.pid;
    u->pidfd = child.pidfd;
    u->exec_fd = child.exec_fd;
    return ERR_OK;
}

static enum err start_parts(struct unit *u, struct err_info *info)
{
    sd_event *event = u->s->o.event;
    int role[2] = { -1, -1 }, output = -1;
    enum err e = ERR_OK;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, role) != 0)
        e = err_set(info, ERR_IO, errno, "make the role descriptor");
    if (!e && u->s->o.line)
        e = output_open(&u->output, event, &output, info);
    if (!e)
        e = launch(u, role[0], output, info);
    close_fd(&role[0]);
    close_fd(&output);
    u->role_fd = role[1];
    if (e)
        return e;
    if (sd_event_add_io(event, &u->on_exit, u->pidfd, EPOLLIN, main_exited, u) < 0 ||
        sd_event_add_io(event, &u->on_exec, u->exec_fd, EPOLLIN, exec_done, u) < 0)
        return err_set(info, ERR_MEMORY, 0, "watch the process");
    /* So that an exec that failed is named before the exit it leads to. */
    (void)sd_event_source_set_priority(u->on_exec, UNIT_PRIO_NOTIFY);
    return ERR_OK;
}

static void start(struct unit *u)
{
    struct err_info info = { 0 };

    if (cgroup_populated(&u->group)) {
        /* Somebody put a process there: two lives must not overlap. */
        unit_state(u, SERVICE_CHANGING, "clearing its group");
        begin_kill(u, false);
        return;
    }
    if (u->restarts_due) {
        u->restarts_due = false;
        u->restarts++;
    }
    u->life = UNIT_STARTING;
    unit_state(u, SERVICE_STARTING, "starting");
    unit_timer(u, &u->phase, u->conf->start_timeout_ms, start_timeout);
    if (start_parts(u, &info))
        unit_fail(u, "cannot start %.60s: %s", u->conf->argv[0], info.what);
}

static bool should_run(const struct unit *u)
{
    return u->s->want == SERVICE_WANT_ACTIVE ||
           (u->s->want == SERVICE_WANT_STANDBY && u->conf->standby != SUPERVISOR_COLD);
}

/* Services that started after this one stop before it. */
static bool may_stop(const struct unit *u)
{
    if (u->s->want != SERVICE_WANT_STOPPED)
        return true;
    for (uint32_t i = 0; i < u->s->o.service_count; i++)
        if (u->s->units[i].conf->order > u->conf->order && unit_lives(&u->s->units[i]))
            return false;
    return true;
}

void unit_converge(struct unit *u)
{
    switch (u->life) {
    case UNIT_NONE:
        if (should_run(u))
            start(u);
        else if (u->s->want == SERVICE_WANT_STANDBY)
            unit_state(u, SERVICE_STANDBY, "not running: cold");
        else
            unit_state(u, SERVICE_STOPPED, "stopped");
        break;
    case UNIT_STARTING:
    case UNIT_UP:
        if (!should_run(u) && may_stop(u))
            begin_stop(u);
        else if (should_run(u) && u->life == UNIT_UP)
            unit_role(u);
        else if (!should_run(u))
            unit_state(u, SERVICE_CHANGING, "waits to stop");
        break;
    case UNIT_BACKOFF:
        if (u->s->want == SERVICE_WANT_STOPPED) {
            unit_timer_off(u->phase);
            u->life = UNIT_NONE;
            unit_state(u, SERVICE_STOPPED, "stopped");
        }
        break;
    case UNIT_STOPPING:
    case UNIT_KILLING: break; /* it ends first */
    }
}

/* Limits of the group where it can, of each process where it cannot; says which. */
static void set_limits(struct unit *u)
{
    const struct supervisor_service *c = u->conf;
    uint64_t bytes = (uint64_t)c->memory_max_mib * 1024u * 1024u;
    char text[32];

    if (bytes != 0) {
        (void)snprintf(text, sizeof(text), "%" PRIu64, bytes);
        if (cgroup_write(&u->group, "memory.max", text, NULL)) {
            u->data_bytes = bytes;
            supervisor_remark(u->s,
                              "%s: no memory controller here: memory_max_mib limits the "
                              "data of each process instead of all together",
                              c->name);
        }
    }
    if (c->nofile != 0 && !spawn_may_raise(c->nofile))
        supervisor_remark(
            u->s, "%s: nofile is limited to what redoubt-node itself may open", c->name);
    if (c->tasks_max != 0) {
        (void)snprintf(text, sizeof(text), "%" PRIu32, c->tasks_max);
        if (cgroup_write(&u->group, "pids.max", text, NULL))
            supervisor_remark(
                u->s, "%s: no pids controller here: tasks_max is not enforced", c->name);
    }
}

enum err unit_init(struct unit *u, struct supervisor *s, uint32_t index,
                   struct err_info *info)
{
    struct text path, runtime;
    enum err e = ERR_OK;

    u->s = s;
    u->index = index;
    u->conf = &s->o.services[index];
    u->output = (struct output){
        .fd = -1, .line = s->o.line, .user = s->o.user, .service = index
    };
    text_init(&path, u->socket, sizeof(u->socket));
    text_add(&path, "%s/notify/%s", s->o.run_dir, u->conf->name);
    text_init(&runtime, u->runtime, sizeof(u->runtime));
    text_add(&runtime, "%s/service/%s", s->o.run_dir, u->conf->name);
    if (path.cut || runtime.cut)
        return err_set(info, ERR_CONFIG, 0, "run_dir %s is too long for sockets in it",
                       s->o.run_dir);
    if (mkdir(u->runtime, 0750) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make the folder %s", u->runtime);
    e = cgroup_open(&u->group, &s->services, u->conf->name, info);
    if (e)
        return e;
    set_limits(u);
    e = notify_open(&u->notify_fd, u->socket, getuid(), getgid(), info);
    if (e)
        return e;
    if (sd_event_add_io(s->o.event, &u->on_notify, u->notify_fd, EPOLLIN, message, u) <
            0 ||
        sd_event_add_io(s->o.event, &u->on_events, u->group.events, EPOLLPRI,
                        group_changed, u) < 0)
        return err_set(info, ERR_MEMORY, 0, "watch the service %s", u->conf->name);
    (void)sd_event_source_set_priority(u->on_notify, UNIT_PRIO_NOTIFY);
    return ERR_OK;
}

void unit_release(struct unit *u)
{
    if (!u->s)
        return;
    end_life(u);
    u->on_notify = sd_event_source_disable_unref(u->on_notify);
    u->on_events = sd_event_source_disable_unref(u->on_events);
    u->phase = sd_event_source_disable_unref(u->phase);
    u->watchdog = sd_event_source_disable_unref(u->watchdog);
    u->role_timer = sd_event_source_disable_unref(u->role_timer);
    u->processes.timer = sd_event_source_disable_unref(u->processes.timer);
    if (u->notify_fd >= 0)
        (void)unlink(u->socket);
    close_fd(&u->notify_fd);
    cgroup_release(&u->group);
}
