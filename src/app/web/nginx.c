#include "app/web/nginx.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/web/render.h"

enum { TEST_LIMIT_MS = 5000, CONF_BYTES = 16384 };

/* Anew, as one that is there may belong to the user that was configured before. */
static enum err write_file(const char *path, struct text *t, struct err_info *info)
{
    (void)unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n = fd < 0 ? -1 : write(fd, t->p, t->n);
    int e = errno;

    if (fd >= 0)
        (void)close(fd);
    if (n != (ssize_t)t->n)
        return err_set(info, ERR_IO, e, "write %s", path);
    return ERR_OK;
}

static enum err render_to(const struct nginx *n, const char *path, bool test,
                          struct err_info *info)
{
    char buf[CONF_BYTES];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    render(&t, n->conf, n->health, test);
    enum err e = t.cut ? err_set(info, ERR_LIMIT, 0, "the values of [web] are too long")
                       : write_file(path, &t, info);
    explicit_bzero(buf, sizeof(buf)); /* the key of the links was in it */
    return e;
}

/* Runs nginx; it dies with us.  A pidfd in p, or ERR_IO. */
static enum err run(struct nginx_process *p, const struct nginx *n, const char *file,
                    bool test, struct err_info *info)
{
    const char *const argv[] = {
        n->conf->program,    "-p", n->conf->run_dir, "-e", "stderr", "-c", file,
        test ? "-tq" : NULL, NULL
    };
    pid_t parent = getpid(), pid = fork();

    if (pid == 0) {
        sigset_t none;

        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)signal(SIGPIPE, SIG_DFL);
        if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0 && getppid() == parent)
            (void)execv(argv[0], (char *const *)(uintptr_t)argv);
        (void)fprintf(stderr, "redoubt-web: run %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    if (pid < 0)
        return err_set(info, ERR_IO, errno, "start %s: fork", argv[0]);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        enum err e = err_set(info, ERR_IO, errno, "watch %s", argv[0]);

        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return e;
    }
    *p = (struct nginx_process){ .pid = pid, .pidfd = pidfd };
    return ERR_OK;
}

static bool ended(const struct nginx_process *p, int wait_ms)
{
    struct pollfd f = { .fd = p->pidfd, .events = POLLIN };

    return p->pid == 0 || poll(&f, 1, wait_ms) == 1;
}

/* What a killed nginx leaves: in the way of the next, or of another user's. */
static void remove_leftovers(const struct nginx *n)
{
    static const char *const names[] = { "test-http.sock", "test-https.sock",
                                         "nginx.pid" };
    char path[NGINX_PATH_BYTES];

    for (size_t i = 0; i < LEN(names); i++) {
        (void)snprintf(path, sizeof(path), "%.200s/%s", n->conf->run_dir, names[i]);
        (void)unlink(path);
    }
    (void)snprintf(path, sizeof(path), "%s.test", n->health);
    (void)unlink(path);
    (void)unlink(n->health);
}

static enum err test(const struct nginx *n, struct err_info *info)
{
    char file[NGINX_PATH_BYTES];
    struct nginx_process p;
    int status = 0;
    enum err e = ERR_OK;

    (void)snprintf(file, sizeof(file), "%.200s/nginx-test.conf", n->conf->run_dir);
    remove_leftovers(n);
    e = render_to(n, file, true, info);
    if (!e)
        e = run(&p, n, file, true, info);
    if (e)
        return e;
    if (!ended(&p, TEST_LIMIT_MS))
        (void)kill(p.pid, SIGKILL);
    (void)close(p.pidfd);
    if (waitpid(p.pid, &status, 0) != p.pid || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0)
        e = err_set(info, ERR_CONFIG, 0,
                    "%s refuses the configuration %s: see its message", n->conf->program,
                    file);
    remove_leftovers(n);
    return e;
}

enum err nginx_init(struct nginx *n, const struct nginx_conf *conf, struct err_info *info)
{
    struct text file, health;
    enum err e = render_check(conf, info);

    if (e)
        return e;
    *n = (struct nginx){ .conf = conf };
    text_init(&file, n->file, sizeof(n->file));
    text_add(&file, "%s/nginx.conf", conf->run_dir);
    text_init(&health, n->health, sizeof(n->health) - sizeof(".test"));
    text_add(&health, "%s/health.sock", conf->run_dir);
    if (file.cut || health.cut)
        return err_set(info, ERR_CONFIG, 0,
                       "the run directory %s is too long for a socket", conf->run_dir);
    if (mkdir(conf->run_dir, 0750) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make the run directory %s", conf->run_dir);
    e = test(n, info);
    if (!e)
        e = render_to(n, n->file, false, info);
    return e;
}

enum err nginx_start(struct nginx *n, struct err_info *info)
{
    CHECK(n->master.pid == 0);
    (void)unlink(n->health); /* one left by a killed nginx would be in the way */
    n->worker_count = 0;
    return run(&n->master, n, n->file, false, info);
}

/* Children of the master's only thread: "12 13 ", proc(5). */
static size_t children(pid_t pid, pid_t *out, size_t max)
{
    char path[80], buf[512];
    size_t count = 0;
    int fd;
    ssize_t n;

    (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    n = read(fd, buf, sizeof(buf) - 1);
    (void)close(fd);
    buf[n > 0 ? n : 0] = '\0';
    for (const char *c = buf; *c && count < max;) {
        const char *end = strchrnul(c, ' ');
        uint64_t v;

        if (str_u64((struct str){ c, (size_t)(end - c) }, INT32_MAX, &v))
            out[count++] = (pid_t)v;
        c = *end ? end + 1 : end;
    }
    return count;
}

static void forget_workers(struct nginx *n)
{
    for (uint32_t i = 0; i < n->worker_count; i++)
        (void)close(n->workers[i].pidfd);
    n->worker_count = 0;
}

enum err nginx_find_workers(struct nginx *n, struct err_info *info)
{
    pid_t pids[NGINX_WORKERS_MAX];
    size_t count = children(n->master.pid, pids, LEN(pids));

    forget_workers(n);
    for (size_t i = 0; i < count; i++) {
        int fd = (int)syscall(SYS_pidfd_open, pids[i], 0);

        if (fd >= 0)
            n->workers[n->worker_count++] =
                (struct nginx_process){ .pid = pids[i], .pidfd = fd };
    }
    if (n->worker_count != n->conf->workers)
        return err_set(info, ERR_NOT_FOUND, 0, "nginx has %u of %u workers",
                       n->worker_count, n->conf->workers);
    return ERR_OK;
}

/* State T in /proc/<pid>/stat: stopped by a signal. */
static bool is_stopped(pid_t pid)
{
    char path[64], buf[512];
    int fd;
    ssize_t n;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    n = read(fd, buf, sizeof(buf) - 1);
    (void)close(fd);
    buf[n > 0 ? n : 0] = '\0';
    const char *end = strrchr(buf, ')');

    return end && strncmp(end, ") T", 3) == 0;
}

bool nginx_has_root(const struct nginx *n)
{
    struct stat st;

    return stat(n->conf->root, &st) == 0 && S_ISDIR(st.st_mode);
}

bool nginx_runs(const struct nginx *n)
{
    return n->master.pid != 0;
}

bool nginx_dead(const struct nginx *n, bool look_for_stopped, struct err_info *why)
{
    if (!nginx_runs(n))
        return false;
    if (ended(&n->master, 0)) {
        (void)err_set(why, ERR_CLOSED, 0, "the nginx master %d ended",
                      (int)n->master.pid);
        return true;
    }
    for (uint32_t i = 0; i < n->worker_count; i++) {
        const struct nginx_process *w = &n->workers[i];

        if (ended(w, 0) || (look_for_stopped && is_stopped(w->pid))) {
            (void)err_set(why, ERR_CLOSED, 0, "the nginx worker %d %s", (int)w->pid,
                          ended(w, 0) ? "ended" : "is stopped");
            return true;
        }
    }
    if (look_for_stopped && is_stopped(n->master.pid)) {
        (void)err_set(why, ERR_CLOSED, 0, "the nginx master %d is stopped",
                      (int)n->master.pid);
        return true;
    }
    return false;
}

void nginx_stop(struct nginx *n)
{
    if (nginx_runs(n))
        (void)kill(n->master.pid, SIGTERM); /* nginx's "fast shutdown" */
}

static void kill_workers(const struct nginx *n)
{
    for (uint32_t i = 0; i < n->worker_count; i++)
        (void)syscall(SYS_pidfd_send_signal, n->workers[i].pidfd, SIGKILL, NULL, 0);
}

void nginx_kill(struct nginx *n)
{
    pid_t pids[NGINX_WORKERS_MAX];

    if (!nginx_runs(n))
        return;
    /* Stopped first, so that it cannot start another worker meanwhile. */
    (void)kill(n->master.pid, SIGSTOP);
    size_t count = children(n->master.pid, pids, LEN(pids));
    for (size_t i = 0; i < count; i++)
        (void)kill(pids[i], SIGKILL);
    (void)kill(n->master.pid, SIGKILL);
    kill_workers(n); /* of a master that had ended already */
}

bool nginx_reap(struct nginx *n)
{
    if (!nginx_runs(n))
        return true;
    if (!ended(&n->master, 0))
        return false;
    /* Workers end before their master, unless it was killed. */
    kill_workers(n);
    for (uint32_t i = 0; i < n->worker_count; i++)
        if (!ended(&n->workers[i], 0))
            return false;
    (void)waitpid(n->master.pid, NULL, 0);
    (void)close(n->master.pidfd);
    n->master = (struct nginx_process){ .pidfd = -1 };
    forget_workers(n);
    return true;
}
