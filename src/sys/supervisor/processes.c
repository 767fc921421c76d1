#include "sys/supervisor/processes.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sys/supervisor/unit.h"

static void forget(struct process *p)
{
    if (p->pid == 0)
        return;
    p->source = sd_event_source_disable_unref(p->source);
    (void)close(p->pidfd);
    *p = (struct process){ .pidfd = -1 };
}

static bool older(uint64_t now_us, uint64_t since_us, uint32_t ms)
{
    return now_us - since_us >= (uint64_t)ms * 1000u;
}

static int ended(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct process *p = user;
    struct unit *u = p->unit;
    uint64_t now = unit_now_us(u);
    bool alarm = p->lasting || older(now, p->seen_us, PROCESSES_LASTING_MS);
    pid_t pid = p->pid;

    (void)source;
    (void)fd;
    (void)events;
    forget(p);
    if (alarm)
        unit_fail(u, "its process %d ended while the main process lives", (int)pid);
    return 0;
}

static struct process *find(struct processes *all, pid_t pid)
{
    for (size_t i = 0; i < PROCESSES_MAX; i++)
        if (all->at[i].pid == pid)
            return &all->at[i];
    return NULL;
}

static void add(struct unit *u, pid_t pid, bool early)
{
    struct process *p = find(&u->processes, 0);
    int fd;

    if (!p)
        return;
    fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return; /* already gone: a helper */
    *p = (struct process){
        .pid = pid, .pidfd = fd, .unit = u, .seen_us = unit_now_us(u), .early = early
    };
    if (sd_event_add_io(u->s->o.event, &p->source, fd, EPOLLIN, ended, p) < 0) {
        (void)close(fd);
        *p = (struct process){ .pidfd = -1 };
    }
}

/* The state letter of /proc/<pid>/stat, which follows the name in parentheses. */
static char process_state(pid_t pid)
{
    char path[64], buf[512];
    int fd;
    ssize_t n;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return '?';
    n = read(fd, buf, sizeof(buf) - 1);
    (void)close(fd);
    if (n <= 0)
        return '?';
    buf[n] = '\0';
    const char *end = strrchr(buf, ')');

    return end && end[1] == ' ' ? end[2] : '?';
}

/* True: it has been stopped for too long. */
static bool hangs(struct process *p, uint64_t now)
{
    if (process_state(p->pid) != 'T') {
        p->stopped_us = 0;
        return false;
    }
    if (p->stopped_us == 0)
        p->stopped_us = now;
    return older(now, p->stopped_us, PROCESSES_STOPPED_MS);
}

static void scan(struct unit *u, bool early)
{
    pid_t pids[PROCESSES_MAX];
    size_t count = cgroup_pids(&u->group, pids, PROCESSES_MAX);

    for (size_t i = 0; i < count; i++)
        if (pids[i] != u->pid && !find(&u->processes, pids[i]))
            add(u, pids[i], early);
}

static int scan_again(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;
    uint64_t now = unit_now_us(u);

    (void)source;
    (void)when;
    u->processes.main.pid = u->pid;
    if (hangs(&u->processes.main, now)) {
        unit_fail(u, "is stopped");
        return 0;
    }
    for (size_t i = 0; i < PROCESSES_MAX; i++) {
        struct process *p = &u->processes.at[i];

        if (p->pid != 0 && hangs(p, now)) {
            unit_fail(u, "its process %d is stopped", (int)p->pid);
            return 0;
        }
        p->lasting |= p->early && older(now, p->seen_us, PROCESSES_EARLY_MS);
    }
    scan(u, false);
    unit_timer(u, &u->processes.timer, PROCESSES_SCAN_MS, scan_again);
    return 0;
}

void processes_watch(struct unit *u)
{
    if (!u->conf->all_processes || u->processes.watching)
        return;
    u->processes.watching = true;
    u->processes.main = (struct process){ .pidfd = -1 };
    scan(u, true);
    unit_timer(u, &u->processes.timer, PROCESSES_SCAN_MS, scan_again);
}

void processes_pause(struct unit *u)
{
    if (!u->processes.watching)
        return;
    u->processes.watching = false;
    unit_timer_off(u->processes.timer);
    for (size_t i = 0; i < PROCESSES_MAX; i++)
        forget(&u->processes.at[i]);
}
