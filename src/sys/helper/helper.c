#include "sys/helper/helper.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    CALM_MS = 60000,    /* who lived so long begins anew with the shortest pause */
    LAST_WORDS_MAX = 32 /* packets of a child that has ended */
};

struct helper {
    struct helper_options o;
    struct helper_callbacks cb;
    sd_event *loop;
    pid_t pid; /* 0: none */
    int socket;
    uint32_t backoff_ms, restarts;
    uint64_t started_us;
    sd_event_source *io, *death, *restart, *silence;
    char packet[HELPER_PACKET];
};

static uint64_t now_us(const struct helper *h)
{
    uint64_t us = 0;

    (void)sd_event_now(h->loop, CLOCK_BOOTTIME, &us);
    return us;
}

/* ---- its life ---- */

static void start(struct helper *h);

static void again(struct helper *h, const char *why)
{
    if (h->started_us != 0 && now_us(h) - h->started_us >= CALM_MS * 1000ull)
        h->backoff_ms = h->o.backoff_ms;
    CHECK(sd_event_source_set_time_relative(h->restart,
                                            (uint64_t)h->backoff_ms * 1000u) >= 0);
    CHECK(sd_event_source_set_enabled(h->restart, SD_EVENT_ONESHOT) >= 0);
    h->backoff_ms =
        h->backoff_ms * 2 < h->o.backoff_max_ms ? h->backoff_ms * 2 : h->o.backoff_max_ms;
    h->restarts++;
    h->cb.ended(h->cb.arg, why);
}

static void hang_up(struct helper *h)
{
    h->io = sd_event_source_disable_unref(h->io);
    if (h->socket >= 0)
        (void)close(h->socket);
    h->socket = -1;
    (void)sd_event_source_set_enabled(h->silence, SD_EVENT_OFF);
}

static void quiet(struct helper *h)
{
    if (h->o.silence_ms == 0)
        return;
    (void)sd_event_source_set_time_relative(h->silence,
                                            (uint64_t)h->o.silence_ms * 1000u);
    (void)sd_event_source_set_enabled(h->silence, SD_EVENT_ONESHOT);
}

/* One packet; false: there is none. */
static bool hear(struct helper *h)
{
    struct iovec iov = { h->packet, sizeof(h->packet) };
    struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t n = recvmsg(h->socket, &m, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0) { /* it hung up: of no use any more, on_death() comes */
        hang_up(h);
        (void)kill(h->pid, SIGKILL);
        return false;
    }
    quiet(h);
    if (!(m.msg_flags & MSG_TRUNC))
        h->cb.said(h->cb.arg, (struct str){ h->packet, (size_t)n });
    return true;
}

static int on_packet(sd_event_source *s, int fd, uint32_t events, void *user)
{
    (void)s;
    (void)fd;
    (void)events;
    (void)hear(user);
    return 0;
}

static int on_death(sd_event_source *s, const siginfo_t *si, void *user)
{
    struct helper *h = user;
    char why[80];

    (void)s;
    (void)snprintf(why, sizeof(why), "it ended with %s %d",
                   si->si_code == CLD_EXITED ? "status" : "signal", si->si_status);
    /* Its last words first: they wait behind everything else in the loop. */
    for (int i = 0; i < LAST_WORDS_MAX && h->socket >= 0 && hear(h); i++)
        continue;
    hang_up(h);
    h->death = sd_event_source_disable_unref(h->death);
    h->pid = 0;
    again(h, why);
    return 0;
}

static int on_silence(sd_event_source *s, uint64_t when, void *user)
{
    struct helper *h = user;

    (void)s;
    (void)when;
    if (h->pid > 0) /* not reaped yet, so the pid is still its own */
        (void)kill(h->pid, SIGKILL);
    return 0;
}

static int on_restart(sd_event_source *s, uint64_t when, void *user)
{
    (void)s;
    (void)when;
    start(user);
    return 0;
}

static void start(struct helper *h)
{
    int pair[2], rc;
    char why[120];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
        again(h, "it could not be started: socketpair");
        return;
    }
    rc = helper_start(&h->pid, h->o.program, h->o.argv, pair[1], h->o.shared_fd);
    (void)close(pair[1]);
    if (rc != 0) {
        (void)close(pair[0]);
        (void)snprintf(why, sizeof(why), "it could not be started: %s", strerror(rc));
        again(h, why);
        return;
    }
    h->socket = pair[0];
    h->started_us = now_us(h);
    CHECK(sd_event_add_child(h->loop, &h->death, h->pid, WEXITED, on_death, h) >= 0);
    CHECK(sd_event_add_io(h->loop, &h->io, h->socket, EPOLLIN, on_packet, h) >= 0);
    /* What it says is for people: everything that keeps the lease goes first. */
    (void)sd_event_source_set_priority(h->io, SD_EVENT_PRIORITY_IDLE);
    quiet(h);
}

enum err helper_new(struct helper **out, sd_event *loop, const struct helper_options *o,
                    const struct helper_callbacks *cb, struct err_info *info)
{
    struct helper *h = calloc(1, sizeof(*h));

    if (!h)
        return err_set(info, ERR_MEMORY, 0, "no memory for a child process");
    h->o = *o;
    h->cb = *cb;
    h->loop = sd_event_ref(loop);
    h->socket = -1;
    h->backoff_ms = o->backoff_ms;
    int r = sd_event_add_time_relative(loop, &h->restart, CLOCK_BOOTTIME, 0, 1000,
                                       on_restart, h);

    if (r >= 0)
        r = sd_event_add_time_relative(loop, &h->silence, CLOCK_BOOTTIME, UINT64_MAX / 4,
                                       100000, on_silence, h);
    if (r >= 0)
        r = sd_event_source_set_enabled(h->silence, SD_EVENT_OFF);
    if (r < 0) {
        helper_free(h);
        return err_set(info, ERR_IO, -r, "event loop");
    }
    *out = h;
    return ERR_OK;
}

void helper_free(struct helper *h)
{
    if (!h)
        return;
    h->restart = sd_event_source_disable_unref(h->restart);
    h->silence = sd_event_source_disable_unref(h->silence);
    h->io = sd_event_source_disable_unref(h->io);
    h->death = sd_event_source_disable_unref(h->death);
    if (h->socket >= 0)
        (void)close(h->socket);
    if (h->pid > 0) {
        (void)kill(h->pid, SIGKILL);
        (void)waitpid(h->pid, NULL, WNOHANG); /* else init does, soon */
    }
    sd_event_unref(h->loop);
    free(h);
}

enum err helper_say(struct helper *h, struct str packet)
{
    if (h->socket < 0)
        return ERR_CLOSED;
    const ssize_t n = send(h->socket, packet.p, packet.n, MSG_NOSIGNAL | MSG_DONTWAIT);

    return n == (ssize_t)packet.n ? ERR_OK : errno == EAGAIN ? ERR_LIMIT : ERR_CLOSED;
}

pid_t helper_pid(const struct helper *h)
{
    return h->pid;
}

uint32_t helper_restarts(const struct helper *h)
{
    return h->restarts;
}
