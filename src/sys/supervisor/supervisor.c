#include "sys/supervisor/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/supervisor/unit.h"

enum { CLEAN_LIMIT_MS = 5000, GUARD_LIMIT_MS = 2000 };

static const char SERVICES_GROUP[] = "services";

void supervisor_remark(struct supervisor *s, const char *fmt, ...)
{
    char text[320];
    va_list ap;

    if (!s->o.line)
        return;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    s->o.line(s->o.user, s->o.service_count, text);
}

void supervisor_converge(struct supervisor *s)
{
    /* Stops go down the order, starts go up; a unit that waits for another does nothing.
     */
    for (uint32_t i = s->o.service_count; i > 0; i--) {
        struct unit *u = &s->units[s->by_order[i - 1]];

        if (s->want == SERVICE_WANT_STOPPED)
            unit_converge(u);
    }
    for (uint32_t i = 0; i < s->o.service_count; i++)
        if (s->want != SERVICE_WANT_STOPPED)
            unit_converge(&s->units[s->by_order[i]]);
}

static int deliver(sd_event_source *source, void *user)
{
    struct supervisor *s = user;

    (void)source;
    for (uint32_t i = 0; i < s->o.service_count; i++) {
        struct unit *u = &s->units[i];
        struct supervisor_report r = { .service = i,
                                       .state = u->state,
                                       .restarts = u->restarts };

        if (!u->changed)
            continue;
        u->changed = false;
        memcpy(r.why, u->why, sizeof(r.why));
        s->o.report(s->o.user, &r); /* may call set() and kill() */
    }
    return 0;
}

static void ops_set(void *impl, enum service_want want, uint64_t epoch)
{
    struct supervisor *s = impl;

    s->want = want;
    s->epoch = epoch;
    supervisor_converge(s);
    /* Every service is reported once more, also one that is where it is wanted already. */
    for (uint32_t i = 0; i < s->o.service_count; i++)
        s->units[i].changed = true;
    (void)sd_event_source_set_enabled(s->report, SD_EVENT_ONESHOT);
}

static void ops_kill(void *impl)
{
    struct supervisor *s = impl;
    struct err_info info = { 0 };

    s->want = SERVICE_WANT_STOPPED;
    if (cgroup_kill(&s->services, &info)) /* all at once, then each for its own state */
        supervisor_remark(s, "%s", info.what);
    for (uint32_t i = 0; i < s->o.service_count; i++)
        unit_kill(&s->units[i]);
}

static const struct services_ops ops = { .set = ops_set, .kill = ops_kill };

struct services supervisor_services(struct supervisor *s)
{
    return (struct services){ .ops = &ops, .impl = s };
}

int supervisor_cgroup_fd(const struct supervisor *s)
{
    return s->services.dir;
}

const char *supervisor_cgroup_path(const struct supervisor *s)
{
    return s->services.path;
}

const char *supervisor_status(const struct supervisor *s, uint32_t service)
{
    return service < s->o.service_count ? s->units[service].status : "";
}

const char *supervisor_metrics(const struct supervisor *s, uint32_t service)
{
    return service < s->o.service_count ? s->units[service].metrics : "";
}

pid_t supervisor_pid(const struct supervisor *s, uint32_t service)
{
    return service < s->o.service_count ? s->units[service].pid : 0;
}

static enum err check_service(const struct supervisor_options *o, uint32_t i,
                              struct err_info *info)
{
    const struct supervisor_service *c = &o->services[i];
    size_t n = strlen(c->name);

    if (n == 0 || n >= SUPERVISOR_NAME_BYTES ||
        strspn(c->name, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
        return err_set(info, ERR_CONFIG, 0,
                       "service name \"%.40s\": a-z, 0-9 and '-', at most %d characters",
                       c->name, SUPERVISOR_NAME_BYTES - 1);
    if (!c->argv[0] || c->argv[0][0] != '/')
        return err_set(info, ERR_CONFIG, 0, "service %s: exec must be an absolute path",
                       c->name);
    for (uint32_t k = 0; k < i; k++)
        if (strcmp(o->services[k].name, c->name) == 0)
            return err_set(info, ERR_CONFIG, 0, "service %s is there twice", c->name);
    return ERR_OK;
}

static void sort_by_order(struct supervisor *s)
{
    for (uint32_t i = 0; i < s->o.service_count; i++) {
        uint32_t k = i;

        for (; k > 0 && s->o.services[s->by_order[k - 1]].order > s->o.services[i].order;
             k--)
            s->by_order[k] = s->by_order[k - 1];
        s->by_order[k] = i;
    }
}

/*
 * pids works although the daemon itself lives in the parent group: it is a threaded
 * controller.  memory works there only in the root group (cgroup-v2.rst, "no internal
 * process constraint").  Moving the daemon to a leaf of its group would help, but then
 * systemd could not start the next daemon in a group that has controllers for children.
 */
static void enable_controllers(struct supervisor *s)
{
    static const char *const wanted[] = { "+memory", "+pids" };

    for (size_t i = 0; i < LEN(wanted); i++) {
        /* What fails here is said by set_limits(), where it matters. */
        (void)!cgroup_write(&s->own, "cgroup.subtree_control", wanted[i], NULL);
        (void)!cgroup_write(&s->services, "cgroup.subtree_control", wanted[i], NULL);
    }
}

static enum err make_dirs(const struct supervisor *s, struct err_info *info)
{
    static const struct {
        const char *below;
        mode_t mode;
    } dirs[] = { { "", 0755 }, { "/notify", 0711 }, { "/service", 0711 } };

    for (size_t i = 0; i < LEN(dirs); i++) {
        char path[UNIT_SOCKET_BYTES];
        struct text t;

        text_init(&t, path, sizeof(path));
        text_add(&t, "%s%s", s->o.run_dir, dirs[i].below);
        if (t.cut)
            return err_set(info, ERR_CONFIG, 0,
                           "run_dir %s is too long for sockets in it", s->o.run_dir);
        /* chmod: whatever the umask is, the users of the services must pass through. */
        if ((mkdir(path, dirs[i].mode) != 0 && errno != EEXIST) ||
            (i > 0 && chmod(path, dirs[i].mode) != 0))
            return err_set(info, ERR_IO, errno, "make the folder %s", path);
    }
    return ERR_OK;
}

/* The guard of a living daemon holds a lock on the group of the services; that of a dead one
 * gives it up within milliseconds. */
static enum err await_no_guard(const struct supervisor *s, struct err_info *info)
{
    int fd = openat(s->services.dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool alone = false;

    for (int waited_ms = 0; fd >= 0 && !alone && waited_ms < GUARD_LIMIT_MS;
         waited_ms += 5) {
        alone = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (!alone)
            (void)usleep(5000);
    }
    if (fd >= 0)
        (void)close(fd);
    return alone
               ? ERR_OK
               : err_set(info, ERR_STATE, 0,
                         "a redoubt-guard stands over %s: redoubt-node runs here already",
                         s->services.path);
}

static enum err open_groups(struct supervisor *s, struct err_info *info)
{
    struct cgroup probe;
    enum err e = cgroup_own(&s->own, info);

    if (!e)
        e = cgroup_open(&s->services, &s->own, SERVICES_GROUP, info);
    if (e)
        return e;
    e = await_no_guard(s, info);
    if (e)
        return e;
    s->ours = true;
    if (cgroup_populated(&s->services))
        supervisor_remark(s, "killing what a daemon that crashed has left in %s",
                          s->services.path);
    e = cgroup_empty(&s->services, CLEAN_LIMIT_MS, info);
    if (e)
        return e;
    enable_controllers(s);
    e = cgroup_open(&probe, &s->services, "probe", info);
    if (e)
        return e;
    s->born_in_cgroup = spawn_probe(probe.dir);
    cgroup_release(&probe);
    cgroup_remove(&s->services, "probe");
    return ERR_OK;
}

enum err supervisor_new(struct supervisor **out, const struct supervisor_options *o,
                        struct err_info *info)
{
    enum err e = ERR_OK;
    struct supervisor *s;

    CHECK(o->service_count <= SERVICES_MAX && o->report);
    for (uint32_t i = 0; i < o->service_count && !e; i++)
        e = check_service(o, i, info);
    if (e)
        return e;
    s = calloc(1, sizeof(*s));
    if (!s)
        return err_set(info, ERR_MEMORY, 0, "no memory for the supervisor");
    s->o = *o;
    s->own.dir = s->own.events = s->services.dir = s->services.events = -1;
    for (uint32_t i = 0; i < SERVICES_MAX; i++) {
        struct unit *u = &s->units[i];

        u->group.dir = u->group.events = -1;
        u->pidfd = u->exec_fd = u->notify_fd = u->role_fd = u->output.fd = -1;
    }
    sort_by_order(s);
    int r = sd_event_add_defer(o->event, &s->report, deliver, s);

    if (r < 0) {
        e = err_set(info, ERR_MEMORY, -r, "prepare the supervisor");
        goto out;
    }
    (void)sd_event_source_set_enabled(s->report, SD_EVENT_OFF);
    (void)sd_event_source_set_priority(s->report, UNIT_PRIO_REPORT);
    e = make_dirs(s, info);
    if (!e)
        e = open_groups(s, info);
    for (uint32_t i = 0; i < o->service_count && !e; i++)
        e = unit_init(&s->units[i], s, i, info);
out:
    if (e)
        supervisor_free(s);
    else
        *out = s;
    return e;
}

void supervisor_free(struct supervisor *s)
{
    if (!s)
        return;
    if (s->ours) /* as much as can be done */
        (void)!cgroup_empty(&s->services, CLEAN_LIMIT_MS, NULL);
    for (uint32_t i = 0; i < s->o.service_count; i++) {
        struct unit *u = &s->units[i];

        if (u->pid > 0)
            (void)waitpid(u->pid, NULL, WNOHANG);
        unit_release(u);
        if (s->ours)
            cgroup_remove(&s->services, s->o.services[i].name);
    }
    s->report = sd_event_source_disable_unref(s->report);
    cgroup_release(&s->services);
    if (s->ours)
        cgroup_remove(&s->own, SERVICES_GROUP);
    cgroup_release(&s->own);
    free(s);
}
