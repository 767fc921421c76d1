#include "sys/supervisor/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ENV_MAX = 256, HIGH_FD = 16 };

enum err spawn_user_find(struct spawn_user *out, const char *name, struct err_info *info)
{
    struct spawn_user u = { .set = true };
    const struct passwd *pw;
    int count = SPAWN_GROUPS_MAX;

    if (!name || !name[0]) {
        *out = (struct spawn_user){ .set = false };
        return ERR_OK;
    }
    errno = 0;
    pw = getpwnam(name);
    if (!pw)
        return err_set(info, ERR_CONFIG, errno,
                       "there is no user \"%s\" on this machine: useradd --system %s",
                       name, name);
    u.uid = pw->pw_uid;
    u.gid = pw->pw_gid;
    if (!str_copy(u.name, sizeof(u.name), str_of(name)) ||
        !str_copy(u.home, sizeof(u.home), str_of(pw->pw_dir)))
        return err_set(info, ERR_LIMIT, 0, "user \"%s\": name or home too long", name);
    if (getgrouplist(name, u.gid, u.groups, &count) < 0)
        return err_set(info, ERR_LIMIT, 0, "user \"%s\" is in more than %d groups", name,
                       SPAWN_GROUPS_MAX);
    u.group_count = (size_t)count;
    *out = u;
    return ERR_OK;
}

_Noreturn static void give_up(int fd, const char *step)
{
    struct spawn_failure f = { .sys_errno = errno };

    (void)snprintf(f.step, sizeof(f.step), "%s", step);
    if (write(fd, &f, sizeof(f)) < 0)
        _exit(126);
    _exit(127);
}

/* The daemon's mask and ignored signals would be inherited over exec. */
static void default_signals(void)
{
    struct sigaction dfl = { .sa_handler = SIG_DFL };
    sigset_t none;

    for (int sig = 1; sig < NSIG; sig++)
        if (sig != SIGKILL && sig != SIGSTOP)
            (void)sigaction(sig, &dfl, NULL); /* fails for those libc keeps: fine */
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool limit(__rlimit_resource_t what, uint64_t value)
{
    struct rlimit r = { value, value }, now;

    if (value == 0 || setrlimit(what, &r) == 0)
        return true;
    /* More than the daemon may give (no CAP_SYS_RESOURCE): as much as it may. */
    if (errno != EPERM || getrlimit(what, &now) != 0)
        return false;
    r.rlim_cur = r.rlim_max = now.rlim_max;
    return setrlimit(what, &r) == 0;
}

/* Puts fd at `to`, open over exec; -1 is nothing to do. */
static bool place(int fd, int to)
{
    return fd < 0 || dup2(fd, to) == to;
}

static int high(int fd)
{
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
}

/* Descriptors 0-4 are placed, all others close at exec.  Returns where failures go. */
static int child_fds(const struct spawn_options *o, int fail)
{
    int null, role = high(o->role_fd), lease = high(o->lease_fd),
              out = high(o->output_fd);

    fail = high(fail);
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (fail < 0 || null < 0 || (o->role_fd >= 0 && role < 0) ||
        (o->lease_fd >= 0 && lease < 0) || (o->output_fd >= 0 && out < 0))
        give_up(fail, "keep the descriptors");
    if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) != 0)
        give_up(fail, "close descriptors at exec");
    if (!place(null, 0) || !place(out, 1) || !place(out, 2) ||
        !place(role, SPAWN_ROLE_FD) || !place(lease, SPAWN_LEASE_FD))
        give_up(fail, "place the descriptors");
    return fail;
}

static void child_user(const struct spawn_options *o, int fail)
{
    const struct spawn_user *u = o->user;

    if (u->set && (setgroups(u->group_count, u->groups) != 0 ||
                   setresgid(u->gid, u->gid, u->gid) != 0 ||
                   setresuid(u->uid, u->uid, u->uid) != 0))
        give_up(fail, "become the user");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        give_up(fail, "give up new privileges");
}

/* The daemon may run with a real-time policy and shielded from the OOM killer; what it
 * starts does not.  Neither can fail for a reason that matters here. */
static void child_ordinary(void)
{
    struct sched_param none = { 0 };
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    (void)sched_setscheduler(0, SCHED_OTHER, &none);
    if (fd >= 0) {
        ssize_t n = write(fd, "0", 1);

        (void)n;
        (void)close(fd);
    }
}

_Noreturn static void child(const struct spawn_options *o, pid_t parent, int fail)
{
    char *env[ENV_MAX];
    char watchdog_pid[40];
    size_t n = 0;

    default_signals();
    if (!o->born_in_cgroup) {
        int fd = openat(o->cgroup_dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);

        if (fd < 0 || write(fd, "0", 1) != 1)
            give_up(fail, "enter the cgroup");
    }
    fail = child_fds(o, fail);
    child_ordinary();
    (void)umask(027);
    if (setsid() < 0 || chdir("/") != 0)
        give_up(fail, "begin a session");
    if (!limit(RLIMIT_NOFILE, o->nofile) || !limit(RLIMIT_DATA, o->data_bytes))
        give_up(fail, "set the limits");
    child_user(o, fail);
    /* After the change of user, which clears it; then look whether it came too late. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0 || getppid() != parent)
        give_up(fail, "tie its life to the daemon's");
    for (; n < ENV_MAX - 2 && o->env[n]; n++)
        env[n] = o->env[n];
    (void)snprintf(watchdog_pid, sizeof(watchdog_pid), "WATCHDOG_PID=%d", (int)getpid());
    env[n++] = watchdog_pid;
    env[n] = NULL;
    (void)execve(o->argv[0], (char *const *)(uintptr_t)o->argv, env);
    give_up(fail, "exec");
}

static pid_t fork_born_in(int cgroup_dir, int *pidfd)
{
    struct clone_args a = {
        .flags = CLONE_INTO_CGROUP | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = (unsigned)cgroup_dir,
    };

    return (pid_t)syscall(SYS_clone3, &a, sizeof(a));
}

static pid_t fork_with_pidfd(int *pidfd)
{
    pid_t pid = fork();

    if (pid <= 0)
        return pid;
    *pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (*pidfd < 0) {
        int e = errno;

        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        errno = e;
        return -1;
    }
    return pid;
}

bool spawn_may_raise(uint64_t nofile)
{
    struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { 0 };
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && nofile <= r.rlim_max)
        return true;
    return syscall(SYS_capget, &head, data) == 0 &&
           (data[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &
            CAP_TO_MASK(CAP_SYS_RESOURCE)) != 0;
}

static bool survives_birth(int cgroup_dir)
{
    int pidfd = -1, status = 0;
    pid_t pid = fork_born_in(cgroup_dir, &pidfd);

    if (pid == 0)
        _exit(0);
    if (pid < 0)
        return false;
    (void)close(pidfd);
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status);
}

bool spawn_probe(int cgroup_dir)
{
    int fd = openat(cgroup_dir, "cgroup.kill", O_WRONLY | O_CLOEXEC);
    /* Before and after a kill: our own group may have been killed once, too. */
    bool ok = survives_birth(cgroup_dir) && fd >= 0 && write(fd, "1", 1) == 1 &&
              survives_birth(cgroup_dir);

    if (fd >= 0)
        (void)close(fd);
    return ok;
}

enum err spawn(struct spawned *out, const struct spawn_options *o, struct err_info *info)
{
    pid_t parent = getpid();
    int fail[2], pidfd = -1;

    if (pipe2(fail, O_CLOEXEC | O_NONBLOCK) != 0)
        return err_set(info, ERR_IO, errno, "start %s: pipe", o->argv[0]);
    pid_t pid =
        o->born_in_cgroup ? fork_born_in(o->cgroup_dir, &pidfd) : fork_with_pidfd(&pidfd);
    if (pid == 0)
        child(o, parent, fail[1]);
    int e = errno;
    (void)close(fail[1]);
    if (pid < 0) {
        (void)close(fail[0]);
        return err_set(info, ERR_IO, e, "start %s: fork", o->argv[0]);
    }
    *out = (struct spawned){ .pid = pid, .pidfd = pidfd, .exec_fd = fail[0] };
    return ERR_OK;
}
