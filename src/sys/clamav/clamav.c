#include "sys/clamav/clamav.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { ALL_REPLIES = 1 << CLAMD_ID_PING | 1 << CLAMD_ID_VERSION | 1 << CLAMD_ID_STATS };

struct clamav {
    sd_event *event;
    char *path;
    clamav_done *done;
    void *arg;
    sd_event_source *io, *timer; /* io owns the descriptor; NULL: no probe */
    struct clamav_state state;   /* of the probe under way */
    unsigned got;                /* bits by reply id */
    size_t n;
    char buf[2 * CLAMD_REPLY_MAX];
};

static void finish(struct clamav *c, bool up, const char *why)
{
    struct clamav_state state = c->state;

    state.up = up;
    (void)snprintf(state.why, sizeof(state.why), "%s", why);
    c->io = sd_event_source_disable_unref(c->io);
    (void)sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
    c->done(c->arg, &state);
}

/* False: the probe is over. */
static bool take_reply(struct clamav *c, const struct clamd_reply *r)
{
    if (r->id < CLAMD_ID_PING || r->id > CLAMD_ID_STATS) {
        finish(c, false, "clamd answered what was not asked");
        return false;
    }
    switch ((enum clamd_id)r->id) {
    case CLAMD_ID_PING:
        if (!clamd_is_pong(r->text)) {
            finish(c, false, "clamd does not answer PING with PONG");
            return false;
        }
        break;
    case CLAMD_ID_VERSION:
        if (clamd_version(r->text, &c->state.version) != ERR_OK) {
            finish(c, false, "clamd tells no version that can be read");
            return false;
        }
        break;
    case CLAMD_ID_STATS: clamd_stats(r->text, &c->state.stats); break;
    }
    c->got |= 1u << r->id;
    if (c->got != ALL_REPLIES)
        return true;
    finish(c, true, "");
    return false;
}

static void take_bytes(struct clamav *c)
{
    size_t at = 0, used = 0;
    struct clamd_reply r;

    do {
        enum err e = clamd_reply((struct str){ c->buf + at, c->n - at }, &r, &used);

        if (e != ERR_OK) {
            finish(c, false, "clamd answers in a way that is not understood");
            return;
        }
        at += used;
        if (used > 0 && !take_reply(c, &r))
            return;
    } while (used > 0);
    memmove(c->buf, c->buf + at, c->n - at);
    c->n -= at;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct clamav *c = arg;

    (void)source, (void)revents;
    ssize_t n = recv(fd, c->buf + c->n, sizeof(c->buf) - c->n, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        finish(c, false, "clamd closed the connection");
        return 0;
    }
    c->n += (size_t)n;
    take_bytes(c);
    return 0;
}

static int on_timer(sd_event_source *source, uint64_t us, void *arg)
{
    (void)source, (void)us;
    finish(arg, false, "clamd does not answer in time");
    return 0;
}

/* Connects and asks; a Unix socket does both at once or not at all. */
static int ask(struct clamav *c, int *out)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    static const char question[] = CLAMD_PROBE;

    if (!str_copy(to.sun_path, sizeof(to.sun_path), str_of(c->path)))
        return ENAMETOOLONG;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return errno;
    /* sizeof counts the NUL behind the last command, which ends it. */
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0 ||
        send(fd, question, sizeof(question), MSG_NOSIGNAL) != (ssize_t)sizeof(question)) {
        int e = errno;

        (void)close(fd);
        return e;
    }
    *out = fd;
    return 0;
}

void clamav_probe(struct clamav *c)
{
    char why[160];
    int fd = -1;

    if (c->io)
        return;
    c->state = (struct clamav_state){ 0 };
    c->got = 0;
    c->n = 0;
    int e = ask(c, &fd);
    if (e == 0 && sd_event_add_io(c->event, &c->io, fd, EPOLLIN, on_io, c) < 0) {
        (void)close(fd);
        e = ENOMEM;
    }
    if (e != 0) {
        (void)snprintf(why, sizeof(why), "clamd at %.90s: %s", c->path,
                       strerrordesc_np(e));
        finish(c, false, why);
        return;
    }
    (void)sd_event_source_set_io_fd_own(c->io, true);
    (void)sd_event_source_set_time_relative(c->timer, CLAMAV_PROBE_MS * 1000u);
    (void)sd_event_source_set_enabled(c->timer, SD_EVENT_ONESHOT);
}

enum err clamav_new(sd_event *event, const char *path, clamav_done *done, void *arg,
                    struct clamav **out)
{
    struct clamav *c = calloc(1, sizeof(*c));

    if (!c)
        return ERR_MEMORY;
    c->event = sd_event_ref(event);
    c->path = strdup(path);
    c->done = done;
    c->arg = arg;
    if (!c->path || sd_event_add_time_relative(event, &c->timer, CLOCK_BOOTTIME, 0, 0,
                                               on_timer, c) < 0) {
        clamav_free(c);
        return ERR_MEMORY;
    }
    (void)sd_event_source_set_enabled(c->timer, SD_EVENT_OFF);
    *out = c;
    return ERR_OK;
}

void clamav_free(struct clamav *c)
{
    if (!c)
        return;
    c->io = sd_event_source_disable_unref(c->io);
    c->timer = sd_event_source_disable_unref(c->timer);
    sd_event_unref(c->event);
    free(c->path);
    free(c);
}
