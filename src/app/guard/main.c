/*
 * redoubt-guard: kills the services when the lease runs out or the node daemon ends.
 *
 * Purpose   The node daemon stops the services in time by itself.  This program is for
 *           the day it does not: because it is stopped, hangs, crashed, or is wrong.
 * Safety    While a deadline that has passed stands on the lease page, the services'
 *           group is kept empty.  The daemon takes it off the page (revokes) when it
 *           stood down in order; then nothing is killed.  The byte on GUARD_FD_GONE is
 *           written only when the daemon is dead and no process of a service lives:
 *           the keeper may then release the lease.
 * Shape     One process, one loop, no memory allocated, no library but libc, linked
 *           statically, locked in memory, real-time priority where allowed.
 * Units     _us: CLOCK_BOOTTIME, which counts suspend: a machine that slept past the
 *           deadline wakes up with its services killed first.
 * Source    design: src/sys/guard/inherit.h (what it inherits), docs/services.md
 * Tests     tests/fault/test_guard.c
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "redoubt/lease.h"
#include "sys/guard/inherit.h"

enum {
    PRIORITY = 10,         /* above ordinary processes; any real-time value would do */
    KILL_AGAIN_MS = 10,    /* while something lives that must not */
    GONE_LIMIT_MS = 30000, /* a process that does not end in this time waits for a disk */
    ALONE_LIMIT_MS = 1000, /* an old guard needs some ms; less than guard_start() waits */
    LINE_BYTES = 200,
};

struct guard {
    const struct redoubt_lease_page *lease;
    struct guard_word *word;
    int kill_fd, events_fd, timer_fd, route_fd;
    uint64_t killed_deadline_us; /* the deadline for which it killed last */
};

static uint64_t now_us(void)
{
    struct timespec t;

    if (clock_gettime(CLOCK_BOOTTIME, &t) != 0)
        return UINT64_MAX; /* without a clock every deadline has passed */
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* Only after the deed, and only if it cannot block: standard error may be a stuck pipe. */
static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *fmt, ...)
{
    char text[LINE_BYTES] = "redoubt-guard: ";
    size_t used = strlen(text);
    struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text + used, sizeof(text) - used - 1, fmt, ap);
    va_end(ap);
    if (n < 0 || poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
        return;
    used = strlen(text);
    text[used++] = '\n';
    if (write(STDERR_FILENO, text, used) < 0)
        return;
}

static bool populated(const struct guard *g)
{
    char buf[128];
    ssize_t n = pread(g->events_fd, buf, sizeof(buf) - 1, 0);

    if (n < 0) {
        say("the services' cgroup has vanished: %s", strerrordesc_np(errno));
        _exit(GUARD_EXIT_NO_GROUP);
    }
    buf[n] = '\0';
    return strstr(buf, "populated 0") == NULL;
}

static void kill_services(struct guard *g)
{
    if (pwrite(g->kill_fd, "1", 1, 0) != 1) {
        int e = errno;

        say("cannot kill the services: %s", strerrordesc_np(e));
        if (e == ENODEV || e == ENOENT)
            _exit(GUARD_EXIT_NO_GROUP);
        return;
    }
    atomic_store(&g->word->killed_at_us, now_us());
    atomic_fetch_add(&g->word->kills, 1);
}

/* The deadline is looked at, and what it asks for is done; returns when to look again. */
static uint64_t keep_deadline(struct guard *g)
{
    uint64_t deadline = atomic_load(&g->lease->deadline_us), now = now_us();
    uint64_t next = now + GUARD_BEAT_MS * 1000u;

    if (deadline == 0 || now < deadline)
        return deadline != 0 && deadline < next ? deadline : next;
    if (g->killed_deadline_us != deadline) {
        kill_services(g);
        g->killed_deadline_us = deadline;
        say("the lease ran out %llu us ago: killed the services",
            (unsigned long long)(now - deadline));
    } else if (populated(g)) {
        kill_services(g);
    }
    return now + KILL_AGAIN_MS * 1000u;
}

/* The daemon is dead: nothing of it may stay. */
static int last_things(struct guard *g)
{
    static char goodbye[GUARD_GOODBYE_MAX];
    uint64_t began = now_us();
    struct pollfd p = { .fd = g->events_fd, .events = POLLPRI };

    kill_services(g);
    for (int waited_ms = 1; populated(g); waited_ms++) {
        if (waited_ms > GONE_LIMIT_MS) {
            say("services do not end although killed: the lease is not released");
            return GUARD_EXIT_ALIVE;
        }
        if (waited_ms % KILL_AGAIN_MS == 0)
            kill_services(g);
        if (poll(&p, 1, 1) > 0)
            (void)usleep(500); /* not again at once, whatever the event is */
    }
    uint64_t empty = now_us();
    ssize_t n = pread(GUARD_FD_GOODBYE, goodbye, sizeof(goodbye), 0);
    if (n > 0 && g->route_fd >= 0 && send(g->route_fd, goodbye, (size_t)n, 0) < 0)
        say("cannot remove the cluster's address: %s", strerrordesc_np(errno));
    if (write(GUARD_FD_GONE, "g", 1) != 1)
        say("cannot tell the keeper: %s", strerrordesc_np(errno));
    say("the node daemon has ended: killed the services, gone after %llu us",
        (unsigned long long)(empty - began));
    return GUARD_EXIT_DONE;
}

static int watch(struct guard *g)
{
    struct pollfd p[] = { { .fd = GUARD_FD_DAEMON, .events = POLLIN },
                          { .fd = g->timer_fd, .events = POLLIN } };

    for (;;) {
        uint64_t next = keep_deadline(g), expirations;
        struct itimerspec at = {
            .it_value = { .tv_sec = (time_t)(next / 1000000u),
                          .tv_nsec = (long)(next % 1000000u) * 1000 },
        };

        (void)populated(g); /* is the group still there? */
        atomic_store(&g->word->beat_us, now_us());
        (void)timerfd_settime(g->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
        if (poll(p, 2, GUARD_BEAT_MS) > 0 &&
            (p[0].revents & (POLLIN | POLLERR | POLLNVAL)))
            return last_things(g);
        (void)!read(g->timer_fd, &expirations, sizeof(expirations));
    }
}

/* What makes it likely to be there when it is needed; each is said if it cannot be had. */
static uint32_t stand_firm(void)
{
    const int ignored[] = { SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGQUIT, SIGTTOU };
    struct sched_param param = { .sched_priority = PRIORITY };
    uint32_t weak = 0;
    int fd;

    /* It ends after the daemon, never before: whoever stops a whole control group or
     * session means the daemon. */
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
        (void)signal(ignored[i], SIG_IGN);
    fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "-1000", 5) != 5)
        weak |= GUARD_WEAK_OOM;
    if (fd >= 0)
        (void)close(fd);
    if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
        weak |= GUARD_WEAK_MEMORY;
    if (sched_setscheduler(0, SCHED_FIFO, &param) != 0)
        weak |= GUARD_WEAK_REALTIME;
    return weak;
}

/*
 * One guard a group: the guard of a daemon that died may still be busy, and would take the
 * services and the address of its successor for what it has to clear away.  Waited for by the
 * clock: naps last longer on a busy machine.
 */
static bool alone(void)
{
    int fd = openat(GUARD_FD_CGROUP, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint64_t end = now_us() + ALONE_LIMIT_MS * 1000u;

    while (fd >= 0) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            return true; /* fd stays open: it is the lock */
        if (now_us() >= end)
            return false;
        (void)usleep(5000);
    }
    return false;
}

static bool open_all(struct guard *g)
{
    g->lease = mmap(NULL, REDOUBT_LEASE_BYTES, PROT_READ, MAP_SHARED, GUARD_FD_LEASE, 0);
    g->word = mmap(NULL, GUARD_WORD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
                   GUARD_FD_WORD, 0);
    if (g->lease == MAP_FAILED || g->word == MAP_FAILED ||
        g->lease->magic != REDOUBT_LEASE_MAGIC ||
        g->lease->version != REDOUBT_LEASE_VERSION)
        return false;
    if (fcntl(GUARD_FD_WORD, F_ADD_SEALS,
              F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0)
        return false;
    g->kill_fd = openat(GUARD_FD_CGROUP, "cgroup.kill", O_WRONLY | O_CLOEXEC);
    g->events_fd = openat(GUARD_FD_CGROUP, "cgroup.events", O_RDONLY | O_CLOEXEC);
    g->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    /* Opened now, in the daemon's network and with its rights. */
    g->route_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    return g->kill_fd >= 0 && g->events_fd >= 0 && g->timer_fd >= 0;
}

int main(void)
{
    struct guard g = { .route_fd = -1 };
    struct stat st;

    for (int fd = GUARD_FD_LEASE; fd < GUARD_FD_END; fd++) {
        if (fstat(fd, &st) != 0) {
            (void)fprintf(stderr, "redoubt-guard " REDOUBT_VERSION
                                  ": started by redoubt-node only\n");
            return GUARD_EXIT_USAGE;
        }
    }
    if (!open_all(&g)) {
        say("cannot stand guard: %s", strerrordesc_np(errno));
        return GUARD_EXIT_SETUP;
    }
    if (!alone()) {
        say("another guard still watches these services: is redoubt-node running twice?");
        return GUARD_EXIT_SETUP;
    }
    atomic_store(&g.word->weak, stand_firm());
    atomic_store(&g.word->beat_us, now_us());
    if (chdir("/") != 0 || write(GUARD_FD_READY, "r", 1) != 1)
        return GUARD_EXIT_SETUP;
    (void)close(GUARD_FD_READY);
    return watch(&g);
}
