#include "sys/keeper/keeper_child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/keeper/keeper_wire.h"

enum { SOCKET_BUFFER = 4 * KEEPER_WIRE_MAX, NUMBER_BYTES = 16 };

/* Nothing of the daemon's reaches the child but its socket, the pipe, and standard error. */
static int prepare(posix_spawn_file_actions_t *fa, int socket, int gone)
{
    int rc = posix_spawn_file_actions_addopen(fa, 0, "/dev/null", O_RDONLY, 0);

    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(fa, 1, "/dev/null", O_WRONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_adddup2(fa, socket, KEEPER_FD_SOCKET);
    if (rc == 0)
        rc = gone >= 0 ? posix_spawn_file_actions_adddup2(fa, gone, KEEPER_FD_GONE)
                       : posix_spawn_file_actions_addopen(fa, KEEPER_FD_GONE, "/dev/null",
                                                          O_RDONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_addclosefrom_np(fa, KEEPER_FD_GONE + 1);
    return rc;
}

/* A session of its own: a Ctrl-C at the daemon's terminal is not for the keeper. */
static int spawn(pid_t *pid, const struct keeper_options *o, char *const *argv,
                 int socket, int gone)
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int rc = posix_spawn_file_actions_init(&fa);

    if (rc != 0)
        return rc;
    rc = posix_spawnattr_init(&attr);
    if (rc == 0) {
        (void)sigemptyset(&none);
        (void)sigfillset(&all);
        (void)posix_spawnattr_setsigmask(&attr, &none);
        (void)posix_spawnattr_setsigdefault(&attr, &all);
        (void)posix_spawnattr_setflags(
            &attr,
            (short)(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID));
        rc = prepare(&fa, socket, gone);
        if (rc == 0)
            rc = posix_spawn(pid, o->program, &fa, &attr, argv, environ);
        (void)posix_spawnattr_destroy(&attr);
    }
    (void)posix_spawn_file_actions_destroy(&fa);
    return rc;
}

/* dup2 onto the same number would keep close-on-exec: move fd out of the way. */
static int high_copy(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, KEEPER_FD_GONE + 1);
}

static enum err run_program(struct keeper_child *c, const struct keeper_options *o,
                            int socket, int gone, struct err_info *info)
{
    char port[NUMBER_BYTES], timeout[NUMBER_BYTES], wait[NUMBER_BYTES];

    (void)snprintf(port, sizeof(port), "%u", (unsigned)o->port);
    (void)snprintf(timeout, sizeof(timeout), "%u", (unsigned)o->slow_timeout_ms);
    (void)snprintf(wait, sizeof(wait), "%u", (unsigned)o->will_wait_ms);
    const char *argv[] = { "redoubt-keeper",
                           "--share",
                           o->share,
                           "--credentials",
                           o->credentials,
                           "--dialect-min",
                           o->dialect_min,
                           "--dialect-max",
                           o->dialect_max,
                           "--port",
                           port,
                           "--timeout-ms",
                           timeout,
                           "--will-wait-ms",
                           wait,
                           o->encrypt ? "--encrypt" : NULL,
                           NULL };

    int rc = spawn(&c->pid, o, (char *const *)(uintptr_t)argv, socket, gone);
    if (rc != 0) {
        c->pid = 0;
        return err_set(info, ERR_CONFIG, rc, "start %s", o->program);
    }
    c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
    if (c->pidfd < 0) {
        int sys = errno;

        (void)kill(c->pid, SIGKILL);
        (void)waitpid(c->pid, NULL, 0); /* killed, and it has done nothing yet */
        c->pid = 0;
        return err_set(info, ERR_IO, sys, "pidfd_open");
    }
    return ERR_OK;
}

enum err keeper_child_start(struct keeper_child *c, const struct keeper_options *o,
                            struct err_info *info)
{
    int pair[2], size = SOCKET_BUFFER;
    enum err e;

    CHECK(c->pid == 0);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set(info, ERR_IO, errno, "socketpair");
    for (int i = 0; i < 2; i++) /* a hint: the default holds our packets too */
        (void)setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    int socket = high_copy(pair[1]);
    int gone = o->gone_fd >= 0 ? high_copy(o->gone_fd) : -1;
    (void)close(pair[1]);
    if (socket < 0 || (o->gone_fd >= 0 && gone < 0))
        e = err_set(info, ERR_IO, errno, "file descriptors for redoubt-keeper");
    else
        e = run_program(c, o, socket, gone, info);
    if (socket >= 0)
        (void)close(socket);
    if (gone >= 0)
        (void)close(gone);
    if (e) {
        (void)close(pair[0]);
        *c = KEEPER_NO_CHILD;
        return e;
    }
    c->socket = pair[0];
    return ERR_OK;
}

bool keeper_child_send(const struct keeper_child *c, const char *buf, size_t n)
{
    return send(c->socket, buf, n, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

ssize_t keeper_child_receive(const struct keeper_child *c, char *buf, size_t size)
{
    ssize_t n = recv(c->socket, buf, size, MSG_DONTWAIT);

    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    return n == 0 ? -1 : n;
}

void keeper_child_kill(struct keeper_child *c)
{
    if (c->socket >= 0)
        (void)close(c->socket);
    c->socket = -1;
    if (c->pid > 0) /* unreaped, so the pid is still its own */
        (void)kill(c->pid, SIGKILL);
}

void keeper_child_release(struct keeper_child *c)
{
    if (c->socket >= 0)
        (void)close(c->socket);
    if (c->pidfd >= 0)
        (void)close(c->pidfd);
    *c = KEEPER_NO_CHILD;
}

bool keeper_child_reap(struct keeper_child *c)
{
    siginfo_t si = { .si_pid = 0 };

    if (c->pid == 0)
        return true;
    if (waitid(P_PID, (id_t)c->pid, &si, WEXITED | WNOHANG) == 0 && si.si_pid == 0)
        return false;
    keeper_child_release(c);
    return true;
}

bool keeper_child_is_stopped(const struct keeper_child *c)
{
    siginfo_t si = { .si_pid = 0 };

    return waitid(P_PIDFD, (id_t)c->pidfd, &si, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
           si.si_pid != 0 && si.si_code == CLD_STOPPED;
}
