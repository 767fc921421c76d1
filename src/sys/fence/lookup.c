#include "sys/fence/lookup.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The child: one fixed-size answer a name, then it ends. */
static _Noreturn void ask(int out, pid_t parent, size_t count, const char *const names[])
{
    char answer[DSN_HOSTS_MAX][DSN_ADDRESS_BYTES] = { 0 };
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || dup3(out, 3, 0) < 0)
        _exit(1);
    (void)close_range(4, ~0U, 0);
    for (size_t i = 0; i < count; i++) {
        struct addrinfo *found = NULL;
        if (getaddrinfo(names[i], NULL, &hints, &found) != 0 || !found)
            continue;
        if (getnameinfo(found->ai_addr, found->ai_addrlen, answer[i], sizeof(answer[i]),
                        NULL, 0, NI_NUMERICHOST) != 0)
            answer[i][0] = '\0';
        freeaddrinfo(found);
    }
    size_t size = count * DSN_ADDRESS_BYTES;
    _exit(write(3, answer, size) == (ssize_t)size ? 0 : 1);
}

void lookup_init(struct lookup *l, sd_event *loop,
                 void (*done)(void *ctx, const char addresses[][DSN_ADDRESS_BYTES]),
                 void *ctx)
{
    *l = (struct lookup){ .loop = loop, .fd = -1, .done = done, .ctx = ctx };
}

/* Without waiting: on a busy machine a killed process takes its time to end. */
static bool reaped(struct lookup *l, int flags)
{
    pid_t r;

    if (l->ending == 0)
        return true;
    do
        r = waitpid(l->ending, NULL, flags);
    while (r < 0 && errno == EINTR);
    if (r == 0)
        return false;
    l->ending = 0;
    return true;
}

void lookup_stop(struct lookup *l)
{
    l->io = sd_event_source_disable_unref(l->io);
    l->timer = sd_event_source_disable_unref(l->timer);
    if (l->fd >= 0)
        close(l->fd);
    l->fd = -1;
    if (l->child > 0) {
        (void)kill(l->child, SIGKILL);
        l->ending = l->child;
        l->child = 0;
    }
    (void)reaped(l, WNOHANG); /* if not yet, then when it is needed */
}

void lookup_close(struct lookup *l)
{
    lookup_stop(l);
    (void)reaped(l, 0);
}

static void finish(struct lookup *l)
{
    char addresses[DSN_HOSTS_MAX][DSN_ADDRESS_BYTES] = { 0 };

    if (l->got == l->count * DSN_ADDRESS_BYTES)
        memcpy(addresses, l->text, l->got);
    for (size_t i = 0; i < DSN_HOSTS_MAX; i++)
        addresses[i][DSN_ADDRESS_BYTES - 1] = '\0';
    lookup_stop(l);
    l->done(l->ctx, (const char(*)[DSN_ADDRESS_BYTES])addresses);
}

static int on_answer(sd_event_source *s, int fd, uint32_t revents, void *ctx)
{
    struct lookup *l = ctx;
    size_t want = l->count * DSN_ADDRESS_BYTES;

    (void)s, (void)revents;
    ssize_t n = read(fd, l->text + l->got, want - l->got);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n > 0)
        l->got += (size_t)n;
    if (n <= 0 || l->got == want)
        finish(l);
    return 0;
}

static int on_timeout(sd_event_source *s, uint64_t usec, void *ctx)
{
    (void)s, (void)usec;
    finish(ctx);
    return 0;
}

enum err lookup_start(struct lookup *l, size_t count, const char *const names[],
                      uint32_t timeout_ms, struct err_info *info)
{
    int fds[2];
    pid_t me = getpid();

    CHECK(count > 0 && count <= DSN_HOSTS_MAX);
    lookup_stop(l);
    if (!reaped(l, WNOHANG))
        return err_set(info, ERR_LIMIT, 0, "the last lookup is still ending");
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0)
        return err_set(info, ERR_MEMORY, errno, "look up %s", names[0]);
    l->child = fork();
    if (l->child == 0)
        ask(fds[1], me, count, names);
    close(fds[1]);
    l->fd = fds[0];
    l->count = count;
    l->got = 0;
    int r = l->child < 0 ? -errno
                         : sd_event_add_io(l->loop, &l->io, l->fd, EPOLLIN, on_answer, l);
    if (r >= 0)
        r = sd_event_add_time_relative(l->loop, &l->timer, CLOCK_BOOTTIME,
                                       (uint64_t)timeout_ms * 1000u, 1000, on_timeout, l);
    if (r < 0) {
        lookup_stop(l);
        return err_set(info, ERR_MEMORY, -r, "look up %s", names[0]);
    }
    return ERR_OK;
}
