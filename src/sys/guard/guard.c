#include "sys/guard/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/guard/inherit.h"

enum { READY_LIMIT_MS = 2000, HIGH_FD = 32 };

struct guard {
    struct lease_writer *lease; /* borrowed */
    const struct guard_word *word;
    pid_t pid;
    int pidfd;
};

/* What the child inherits, in the order of enum guard_inherited; -1: not open. */
struct hand_over {
    int fd[GUARD_FD_END - GUARD_FD_LEASE];
};

static struct mono now(void)
{
    struct timespec t = { 0 };

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

static void hand_over_init(struct hand_over *h)
{
    for (size_t i = 0; i < LEN(h->fd); i++)
        h->fd[i] = -1;
}

static void hand_over_release(struct hand_over *h)
{
    for (size_t i = 0; i < LEN(h->fd); i++)
        if (h->fd[i] >= 0)
            (void)close(h->fd[i]);
    hand_over_init(h);
}

/* Puts a copy of fd, above all target numbers, where `what` belongs; closes fd if own. */
static bool give(struct hand_over *h, enum guard_inherited what, int fd, bool own)
{
    int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
    int e = errno;

    if (own && fd >= 0)
        (void)close(fd);
    errno = e;
    h->fd[what - GUARD_FD_LEASE] = copy;
    return copy >= 0;
}

/* The word: sealed by the guard once it has mapped it, so that only the guard can write. */
static int make_word(struct guard *g)
{
    int fd = memfd_create("redoubt-guard-word", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    void *word;

    if (fd < 0)
        return -1;
    word = ftruncate(fd, GUARD_WORD_BYTES) == 0
               ? mmap(NULL, GUARD_WORD_BYTES, PROT_READ, MAP_SHARED, fd, 0)
               : MAP_FAILED;
    if (word == MAP_FAILED) {
        (void)close(fd);
        return -1;
    }
    g->word = word;
    return fd;
}

static int make_goodbye(struct str bytes)
{
    int fd = memfd_create("redoubt-goodbye", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -1;
    if ((bytes.n > 0 && write(fd, bytes.p, bytes.n) != (ssize_t)bytes.n) ||
        fcntl(fd, F_ADD_SEALS,
              F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_SEAL) != 0) {
        (void)close(fd);
        return -1;
    }
    return fd;
}

static enum err collect(struct hand_over *h, struct guard *g,
                        const struct guard_options *o, int ready, struct err_info *info)
{
    const int null = O_WRONLY | O_CLOEXEC;

    if (o->goodbye.n > GUARD_GOODBYE_MAX)
        return err_set(info, ERR_LIMIT, 0, "too many addresses for the guard to remove");
    if (!give(h, GUARD_FD_LEASE, o->lease->fd, false) ||
        !give(h, GUARD_FD_WORD, make_word(g), true) ||
        !give(h, GUARD_FD_DAEMON, (int)syscall(SYS_pidfd_open, getpid(), 0), true) ||
        !give(h, GUARD_FD_CGROUP, o->cgroup_dir, false) ||
        !give(h, GUARD_FD_GONE, o->gone_fd >= 0 ? o->gone_fd : open("/dev/null", null),
              o->gone_fd < 0) ||
        !give(h, GUARD_FD_GOODBYE, make_goodbye(o->goodbye), true) ||
        !give(h, GUARD_FD_READY, ready, false))
        return err_set(info, ERR_IO, errno, "prepare what the guard inherits");
    return ERR_OK;
}

/* With default signals, in a session of its own, and with nothing open but what it needs. */
static int spawn_guard(pid_t *pid, const char *program, const struct hand_over *h)
{
    char *const argv[] = { (char *)(uintptr_t)program, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int r;

    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    r = posix_spawn_file_actions_init(&files);
    if (r != 0)
        return r;
    r = posix_spawnattr_init(&attr);
    if (r != 0) {
        (void)posix_spawn_file_actions_destroy(&files);
        return r;
    }
    for (size_t i = 0; i < LEN(h->fd) && r == 0; i++)
        r = posix_spawn_file_actions_adddup2(&files, h->fd[i], GUARD_FD_LEASE + (int)i);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(&files, GUARD_FD_END);
    if (r == 0)
        r = posix_spawnattr_setsigmask(&attr, &none);
    if (r == 0)
        r = posix_spawnattr_setsigdefault(&attr, &all);
    if (r == 0)
        r = posix_spawnattr_setflags(
            &attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    if (r == 0)
        r = posix_spawn(pid, program, &files, &attr, argv, environ);
    (void)posix_spawnattr_destroy(&attr);
    (void)posix_spawn_file_actions_destroy(&files);
    return r;
}

static enum err await_ready(int fd, const char *program, struct err_info *info)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    char byte;
    int r;

    do
        r = poll(&p, 1, READY_LIMIT_MS);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return err_set(info, ERR_TIMEOUT, 0, "%s does not get ready", program);
    if (read(fd, &byte, 1) != 1)
        return err_set(info, ERR_CLOSED, 0, "%s ended at once: see its message", program);
    return ERR_OK;
}

enum err guard_start(struct guard **out, const struct guard_options *o,
                     struct err_info *info)
{
    struct hand_over h;
    struct guard *g = calloc(1, sizeof(*g));
    int ready[2] = { -1, -1 };
    enum err e = ERR_OK;

    if (!g)
        return err_set(info, ERR_MEMORY, 0, "no memory for the guard");
    g->lease = o->lease;
    g->pidfd = -1;
    hand_over_init(&h);
    if (pipe2(ready, O_CLOEXEC) != 0)
        e = err_set(info, ERR_IO, errno, "make a pipe for the guard");
    if (!e)
        e = collect(&h, g, o, ready[1], info);
    if (!e) {
        int r = spawn_guard(&g->pid, o->program, &h);

        if (r != 0) {
            g->pid = 0;
            e = err_set(info, r == ENOENT ? ERR_NOT_FOUND : ERR_IO, r, "start %s",
                        o->program);
        }
    }
    hand_over_release(&h);
    if (ready[1] >= 0)
        (void)close(ready[1]);
    if (!e)
        e = await_ready(ready[0], o->program, info);
    if (ready[0] >= 0)
        (void)close(ready[0]);
    if (!e) {
        g->pidfd = (int)syscall(SYS_pidfd_open, g->pid, 0);
        if (g->pidfd < 0)
            e = err_set(info, ERR_IO, errno, "watch the guard");
    }
    if (e)
        guard_free(g);
    else
        *out = g;
    return e;
}

void guard_free(struct guard *g)
{
    if (!g)
        return;
    if (g->pid > 0) {
        (void)kill(g->pid, SIGKILL); /* not reaped yet, so the number is still its own */
        (void)waitpid(g->pid, NULL, 0);
    }
    if (g->pidfd >= 0)
        (void)close(g->pidfd);
    if (g->word)
        (void)munmap((void *)(uintptr_t)g->word, GUARD_WORD_BYTES);
    free(g);
}

int guard_fd(const struct guard *g)
{
    return g->pidfd;
}

pid_t guard_pid(const struct guard *g)
{
    return g->pid;
}

void guard_extend(struct guard *g, uint64_t epoch, struct mono deadline)
{
    lease_writer_extend(g->lease, epoch, deadline);
}

void guard_revoke(struct guard *g)
{
    lease_writer_revoke(g->lease);
}

uint64_t guard_kills(const struct guard *g)
{
    return atomic_load(&g->word->kills);
}

uint32_t guard_silence_ms(const struct guard *g)
{
    return mono_since_ms(now(), (struct mono){ atomic_load(&g->word->beat_us) });
}

const char *guard_weakness(const struct guard *g)
{
    static const char *const texts[] = {
        [GUARD_WEAK_MEMORY] = "not locked in memory",
        [GUARD_WEAK_REALTIME] = "no real-time priority",
        [GUARD_WEAK_MEMORY | GUARD_WEAK_REALTIME] =
            "not locked in memory, no real-time priority",
        [GUARD_WEAK_OOM] = "not shielded from the out-of-memory killer",
        [GUARD_WEAK_OOM | GUARD_WEAK_MEMORY] =
            "not shielded from the out-of-memory killer, not locked in memory",
        [GUARD_WEAK_OOM | GUARD_WEAK_REALTIME] =
            "not shielded from the out-of-memory killer, no real-time priority",
        [GUARD_WEAK_OOM | GUARD_WEAK_REALTIME | GUARD_WEAK_MEMORY] =
            "not shielded from the out-of-memory killer, not locked in memory, no "
            "real-time priority",
    };
    uint32_t weak = atomic_load(&g->word->weak);

    return weak == 0 || weak >= LEN(texts) ? "" : texts[weak];
}
