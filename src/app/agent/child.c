#include "app/agent/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/agent/channel.h"

struct child {
    struct child_hooks hooks;
    sd_event_source *end, *io; /* each owns its descriptor */
    int fd;                    /* of io */
    pid_t pid;
    bool held;
    bool closed;         /* the channel has ended */
    bool busy, unwanted; /* a hook runs; and it has freed us meanwhile */
};

_Noreturn static void become(const char *mode, int fd, pid_t above)
{
    char self[] = "/proc/self/exe", name[] = "redoubt-agent", arg[32];
    char *argv[] = { name, arg, NULL };
    sigset_t none;

    (void)snprintf(arg, sizeof(arg), "%s", mode);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != above)
        _exit(1);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    if (fd == CHANNEL_FD)
        (void)fcntl(fd, F_SETFD, 0);
    else
        (void)dup2(fd, CHANNEL_FD);
    (void)close_range(CHANNEL_FD + 1, ~0u, CLOSE_RANGE_CLOEXEC);
    (void)execv(self, argv);
    _exit(127);
}

/* Everything that has arrived; false if a hook has freed the child. */
static bool deliver(struct child *c)
{
    json_t *m;
    int fd;

    c->busy = true;
    while (!c->unwanted && !c->closed && !c->held) {
        enum err e = channel_receive(c->fd, &m, &fd, false);

        if (e == ERR_TIMEOUT)
            break;
        if (e == ERR_CLOSED)
            c->closed = true;
        if (e != ERR_OK)
            continue;
        c->hooks.message(c->hooks.arg, m, fd);
        json_decref(m);
    }
    c->busy = false;
    if (!c->unwanted)
        return true;
    free(c);
    return false;
}

static int on_message(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct child *c = arg;

    (void)fd, (void)revents;
    if (deliver(c) && c->closed)
        (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
    return 0;
}

static int on_end(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct child *c = arg;
    siginfo_t info = { 0 };

    (void)revents;
    (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
    if (waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG) == 0 && info.si_pid == c->pid)
        c->pid = 0;
    int code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
    if (deliver(c))
        c->hooks.ended(c->hooks.arg, code);
    return 0;
}

static enum err watch(struct child *c, sd_event *event, int pidfd, struct err_info *info)
{
    int n = sd_event_add_io(event, &c->io, c->fd, EPOLLIN, on_message, c);

    if (n < 0) {
        (void)close(c->fd);
        (void)close(pidfd);
        return err_set(info, ERR_MEMORY, -n, "event loop");
    }
    (void)sd_event_source_set_io_fd_own(c->io, true);
    n = sd_event_add_io(event, &c->end, pidfd, EPOLLIN, on_end, c);
    if (n < 0) {
        (void)close(pidfd);
        return err_set(info, ERR_MEMORY, -n, "event loop");
    }
    (void)sd_event_source_set_io_fd_own(c->end, true);
    return ERR_OK;
}

enum err child_new(sd_event *event, const char *mode, const struct child_hooks *hooks,
                   struct child **out, struct err_info *info)
{
    struct child *c = calloc(1, sizeof(*c));
    pid_t above = getpid();
    int pair[2], size = 1 << 20;

    if (!c)
        return err_set(info, ERR_MEMORY, ENOMEM, "child");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        free(c);
        return err_set(info, ERR_IO, errno, "child");
    }
    (void)setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    c->hooks = *hooks;
    c->fd = pair[0];
    c->pid = fork();
    if (c->pid == 0)
        become(mode, pair[1], above);
    (void)close(pair[1]);
    int pidfd = c->pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, c->pid, 0);
    if (pidfd < 0) {
        int error = errno;

        (void)close(pair[0]);
        c->fd = -1;
        child_free(c);
        return err_set(info, ERR_IO, error, "start redoubt-agent %s", mode);
    }
    enum err e = watch(c, event, pidfd, info);
    if (e != ERR_OK) {
        child_free(c);
        return e;
    }
    *out = c;
    return ERR_OK;
}

void child_free(struct child *c)
{
    if (!c)
        return;
    if (c->pid > 0) {
        (void)kill(c->pid, SIGKILL);
        (void)waitpid(c->pid, NULL, 0);
    }
    c->io = sd_event_source_disable_unref(c->io);
    c->end = sd_event_source_disable_unref(c->end);
    c->pid = 0;
    c->unwanted = true;
    if (!c->busy)
        free(c);
}

bool child_send(struct child *c, json_t *message, int fd)
{
    return channel_send(c->fd, message, fd, false) == ERR_OK;
}

void child_finish(struct child *c)
{
    (void)shutdown(c->fd, SHUT_WR);
}

void child_hold(struct child *c, bool held)
{
    if (c->held == held)
        return;
    c->held = held;
    (void)sd_event_source_set_enabled(c->io,
                                      held || c->closed ? SD_EVENT_OFF : SD_EVENT_ON);
}

pid_t child_pid(const struct child *c)
{
    return c->pid;
}
