#include "sys/keeper/keeper_child.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/helper/helper_start.h"
#include "sys/keeper/keeper_wire.h"

enum { SOCKET_BUFFER = 4 * KEEPER_WIRE_MAX, NUMBER_BYTES = 16 };

static_assert((int)KEEPER_FD_SOCKET == (int)HELPER_FD_SOCKET &&
                  (int)KEEPER_FD_GONE == (int)HELPER_FD_SHARED,
              "where the keeper looks for them");

static enum err run_program(struct keeper_child *c, const struct keeper_options *o,
                            int socket, struct err_info *info)
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

    int rc = helper_start(&c->pid, o->program, argv, socket, o->gone_fd);
    if (rc != 0)
        return err_set(info, rc == EMFILE || rc == ENFILE ? ERR_IO : ERR_CONFIG, rc,
                       "start %s", o->program);
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
    e = run_program(c, o, pair[1], info);
    (void)close(pair[1]);
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
