#include "sys/keeper/keeper.h"

#include <errno.h>
#include <sys/epoll.h>

#include "sys/keeper/keeper_child.h"
#include "sys/keeper/keeper_wire.h"

enum {
    SLOTS =
        5, /* the live one, the spare, and killed ones that the kernel has not ended */
    LOOK_MS = 100,
    BACKOFF_STEP_MS = 50,
    BACKOFF_MAX_MS = 1000,
    SPARE_STEP_MS = 200, /* not while the live one starts: that costs a core 50 ms */
    SPARE_MAX_MS = 10000,
    START_MS = 1000, /* for HELLO, besides one timeout_ms */
};

struct slot {
    struct keeper *k;
    struct keeper_child child;
    bool ready;           /* has said HELLO: it gets no request before */
    uint32_t connections; /* as it last said */
    sd_event_source *io, *death, *start_limit;
};

struct keeper {
    struct keeper_options o;
    struct keeper_callbacks cb;
    sd_event *loop;
    sd_event_source *timeout, *restart, *restart_spare;
    struct slot slots[SLOTS];
    struct slot *live;  /* NULL: none just now, a restart is scheduled */
    struct slot *spare; /* started and connected, idle; NULL: a restart is scheduled */
    uint32_t failures;  /* of live ones, in a row */
    uint32_t spare_wait_ms;
    struct keeper_stats stats;

    bool busy, sent; /* a request is in flight; the live one has it */
    bool refused;    /* ... or will not get it */
    uint32_t claim_session;
    uint32_t id;
    enum share_op op;
    struct mono began;
    size_t request_n;
    struct err_info why; /* why there is no child, or it was replaced */
    char request[KEEPER_WIRE_MAX];
    char packet[KEEPER_WIRE_MAX];
};

static struct mono now(void)
{
    struct timespec t = { .tv_sec = 0 };

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail for this clock */
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

static bool writes(enum share_op op)
{
    switch (op) {
    case SHARE_CLAIM:
    case SHARE_RENEW:
    case SHARE_RELEASE:
    case SHARE_PUT:
    case SHARE_REMOVE:
    case SHARE_PRUNE: return true;
    case SHARE_SCAN:
    case SHARE_POLL:
    case SHARE_GET: return false;
    }
    return true;
}

static uint32_t limit_ms(const struct keeper *k, enum share_op op)
{
    bool quick =
        op == SHARE_POLL || op == SHARE_CLAIM || op == SHARE_RENEW || op == SHARE_RELEASE;

    return quick ? k->o.timeout_ms : k->o.slow_timeout_ms;
}

/* While it waits it looks now and then whether the child was stopped: that one will never
 * answer, whereas one that waits for a stalled file server may. */
static uint32_t look_again_ms(uint32_t rest_ms)
{
    return rest_ms < LOOK_MS ? rest_ms : LOOK_MS;
}

/* sd-event fails here only when memory runs out at setup, or through a bug of ours. */
static void arm(sd_event_source *timer, uint32_t ms)
{
    CHECK(sd_event_source_set_time_relative(timer, (uint64_t)ms * 1000u) >= 0);
    CHECK(sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT) >= 0);
}

static void finish(struct keeper *k, struct share_answer *a)
{
    uint64_t us = now().us - k->began.us;

    k->busy = false;
    CHECK(sd_event_source_set_enabled(k->timeout, SD_EVENT_OFF) >= 0);
    a->session = k->stats.connections;
    a->latency_us = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    if (a->err == ERR_OK || a->err == ERR_NOT_FOUND || a->err == ERR_EXISTS ||
        a->err == ERR_STALE) {
        k->stats.last_ok = now();
        k->stats.latency_us = a->latency_us;
    }
    k->cb.answer(k->cb.arg, a);
}

static void finish_without(struct keeper *k, enum err e)
{
    struct err_info why = k->why;
    struct share_answer a = { .id = k->id, .err = e, .why = &why };

    finish(k, &a);
}

static void send_pending(struct keeper *k);

static void end(struct keeper *k, struct slot *slot)
{
    slot->io = sd_event_source_disable_unref(slot->io);
    slot->start_limit = sd_event_source_disable_unref(slot->start_limit);
    keeper_child_kill(&slot->child);
    k->stats.replacements++;
    if (k->cb.replaced)
        k->cb.replaced(k->cb.arg, k->why.what);
}

static void go_live(struct keeper *k, struct slot *slot)
{
    k->live = slot;
    k->stats.connections += slot->connections;
}

/* The spare takes its place at once; another one comes in a while, and later each time while
 * nothing helps: starting processes must not eat the machine when the server hangs for long. */
static void promote_spare(struct keeper *k)
{
    uint32_t steps = SPARE_MAX_MS / SPARE_STEP_MS;

    go_live(k, k->spare);
    k->spare = NULL;
    k->spare_wait_ms = SPARE_STEP_MS * (k->failures < steps ? k->failures + 1 : steps);
    arm(k->restart_spare, k->spare_wait_ms);
}

static uint32_t backoff_ms(const struct keeper *k)
{
    uint32_t steps = BACKOFF_MAX_MS / BACKOFF_STEP_MS;

    return (k->failures < steps ? k->failures : steps) * BACKOFF_STEP_MS;
}

/* The live child is of no use any more: replace it, and answer what it had. */
static void lose(struct keeper *k, enum err e)
{
    bool owed = k->busy && k->sent;

    CHECK(k->live);
    struct slot *slot = k->live;
    k->live = NULL;
    if (k->spare)
        promote_spare(k);
    else
        arm(k->restart, backoff_ms(k));
    k->failures++;
    end(k, slot);
    if (owed)
        finish_without(k, e);
    else
        send_pending(k);
}

static void lose_spare(struct keeper *k)
{
    struct slot *slot = k->spare;

    k->spare = NULL;
    arm(k->restart_spare, k->spare_wait_ms);
    k->spare_wait_ms *= 2;
    if (k->spare_wait_ms > SPARE_MAX_MS)
        k->spare_wait_ms = SPARE_MAX_MS;
    end(k, slot);
}

/* It died, or broke off: of a request that writes nobody knows the outcome (L8). */
static void lose_dead(struct keeper *k, struct slot *slot, const char *what)
{
    bool unsure = k->busy && writes(k->op);

    (void)err_set(&k->why, ERR_IO, 0, "redoubt-keeper %d %s", (int)slot->child.pid, what);
    if (slot == k->live)
        lose(k, unsure ? ERR_TIMEOUT : ERR_IO);
    else
        lose_spare(k);
}

static void learn(struct keeper *k, struct slot *slot, const struct keeper_news *news)
{
    if (slot == k->live) {
        memcpy(k->stats.dialect, news->dialect, sizeof(k->stats.dialect));
        k->stats.connections += news->connections - slot->connections;
    }
    slot->connections = news->connections;
}

/* One packet of a child, n bytes in k->packet. */
static void on_packet(struct keeper *k, struct slot *slot, size_t n)
{
    struct share_answer a;
    struct keeper_news news;
    struct err_info why;

    if (!keeper_wire_read_answer(&a, &news, &why, (struct str){ k->packet, n })) {
        lose_dead(k, slot, "sent a message that makes no sense");
        return;
    }
    learn(k, slot, &news);
    if (a.id == 0) { /* HELLO */
        slot->ready = true;
        slot->start_limit = sd_event_source_disable_unref(slot->start_limit);
        if (slot == k->spare)
            k->spare_wait_ms = SPARE_STEP_MS;
        send_pending(k);
        return;
    }
    if (slot != k->live || !k->busy || !k->sent || a.id != k->id) {
        lose_dead(k, slot, "answered what was not asked");
        return;
    }
    k->failures = 0;
    finish(k, &a);
}

static bool in_use(const struct keeper *k, const struct slot *slot)
{
    return slot == k->live || slot == k->spare;
}

static int on_socket(sd_event_source *source, int fd, uint32_t events, void *arg)
{
    struct slot *slot = arg;
    struct keeper *k = slot->k;

    (void)source, (void)fd, (void)events;
    /* An answer may bring the next request, and its answer: so not for ever. */
    for (int i = 0; i < 8 && in_use(k, slot); i++) {
        ssize_t n = keeper_child_receive(&slot->child, k->packet, sizeof(k->packet));

        if (n == 0)
            break;
        if (n < 0)
            lose_dead(k, slot, "ended");
        else
            on_packet(k, slot, (size_t)n);
    }
    return 0;
}

/* The process is gone.  Its last answer may still wait in the socket. */
static int on_death(sd_event_source *source, int fd, uint32_t events, void *arg)
{
    struct slot *slot = arg;
    struct keeper *k = slot->k;

    (void)source;
    (void)on_socket(NULL, fd, events, slot);
    if (in_use(k, slot))
        lose_dead(k, slot, "ended");
    if (keeper_child_reap(&slot->child))
        slot->death = sd_event_source_disable_unref(slot->death);
    return 0;
}

/*
 * A request waits for a keeper that has said HELLO.  If it went into the socket before, it
 * might be carried out long after it was given up; and a keeper that starts slowly on a busy
 * machine would be killed for it again and again.
 */
static void send_pending(struct keeper *k)
{
    if (!k->live || !k->live->ready || !k->busy || k->sent || k->refused)
        return;
    if (k->op == SHARE_CLAIM && k->claim_session != k->stats.connections) {
        k->refused = true; /* what found the lease free came over another connection */
        arm(k->timeout, 0);
        return;
    }
    k->sent = true;
    if (!keeper_child_send(&k->live->child, k->request, k->request_n)) {
        k->sent = false; /* a packet goes as a whole or not at all */
        (void)err_set(&k->why, ERR_IO, errno, "redoubt-keeper takes no request");
        lose(k, ERR_IO);
    }
}

static int on_start_limit(sd_event_source *source, uint64_t at, void *arg)
{
    struct slot *slot = arg;

    (void)source, (void)at;
    if (in_use(slot->k, slot))
        lose_dead(slot->k, slot, "cannot connect to the file server, or hangs");
    return 0;
}

static enum err start(struct keeper *k, struct slot **out, struct err_info *info)
{
    struct slot *s = NULL;

    for (size_t i = 0; i < SLOTS && !s; i++)
        if (k->slots[i].child.pid == 0)
            s = &k->slots[i];
    if (!s)
        return err_set(info, ERR_LIMIT, 0,
                       "killed redoubt-keepers have not ended: is the kernel stuck?");
    enum err e = keeper_child_start(&s->child, &k->o, info);
    if (e)
        return e;
    s->connections = 0;
    s->ready = false;
    int rc = sd_event_add_io(k->loop, &s->io, s->child.socket, EPOLLIN, on_socket, s);
    if (rc >= 0)
        rc = sd_event_add_io(k->loop, &s->death, s->child.pidfd, EPOLLIN, on_death, s);
    if (rc >= 0)
        rc = sd_event_add_time(k->loop, &s->start_limit, CLOCK_BOOTTIME, 0, 1,
                               on_start_limit, s);
    CHECK(rc >= 0); /* memory, or a bug: a keeper that nobody hears would be worse */
    arm(s->start_limit, START_MS + k->o.timeout_ms);
    *out = s;
    return ERR_OK;
}

static int on_restart(sd_event_source *source, uint64_t at, void *arg)
{
    struct keeper *k = arg;
    struct slot *slot = NULL;

    (void)source, (void)at;
    if (k->live)
        return 0;
    if (k->spare) {
        promote_spare(k);
    } else if (start(k, &slot, &k->why)) {
        k->failures++;
        arm(k->restart, backoff_ms(k)); /* perhaps a killed one has ended by then */
        return 0;
    } else {
        go_live(k, slot);
    }
    send_pending(k);
    return 0;
}

static int on_restart_spare(sd_event_source *source, uint64_t at, void *arg)
{
    struct keeper *k = arg;
    struct err_info why;

    (void)source, (void)at;
    if (!k->spare && (!k->live || start(k, &k->spare, &why)))
        arm(k->restart_spare, BACKOFF_MAX_MS); /* the live one first */
    return 0;
}

static int on_timeout(sd_event_source *source, uint64_t at, void *arg)
{
    struct keeper *k = arg;
    uint32_t id = k->id;

    const uint32_t limit = limit_ms(k, k->op), waited = mono_since_ms(now(), k->began);

    (void)source, (void)at;
    if (k->busy && k->refused) {
        (void)err_set(&k->why, ERR_CLOSED, 0, "the connection is another one by now");
        finish_without(k, ERR_CLOSED);
        return 0;
    }
    if (k->busy && waited < limit) {
        if (k->sent && keeper_child_is_stopped(&k->live->child)) {
            lose_dead(k, k->live, "is stopped");
            return 0;
        }
        arm(k->timeout, look_again_ms(limit - waited));
        return 0;
    }
    /* If the daemon itself was held up, the answer may have been here for long. */
    if (k->busy && k->sent)
        (void)on_socket(NULL, k->live->child.socket, EPOLLIN, k->live);
    if (!k->busy || k->id != id)
        return 0;
    if (!k->sent) {
        if (k->live)
            (void)err_set(&k->why, ERR_IO, 0,
                          "redoubt-keeper %d has not yet reached the file server",
                          (int)k->live->child.pid);
        finish_without(k, ERR_IO);
        return 0;
    }
    (void)err_set(&k->why, ERR_TIMEOUT, 0,
                  "no answer from the file server in %u ms (redoubt-keeper %d)", limit,
                  (int)k->live->child.pid);
    lose(k, ERR_TIMEOUT);
    return 0;
}

static void submit(void *impl, const struct share_request *rq)
{
    struct keeper *k = impl;

    CHECK(!k->busy && rq->id != 0);
    k->busy = true;
    k->sent = k->refused = false;
    k->claim_session = rq->session;
    k->id = rq->id;
    k->op = rq->op;
    k->began = now();
    k->request_n = keeper_wire_request(k->request, rq);
    arm(k->timeout, look_again_ms(limit_ms(k, rq->op)));
    send_pending(k);
}

static const struct share_ops ops = { .submit = submit };

struct share keeper_share(struct keeper *k)
{
    return (struct share){ .ops = &ops, .impl = k };
}

struct keeper_stats keeper_stats(const struct keeper *k)
{
    struct keeper_stats stats = k->stats;

    stats.pid = k->live ? k->live->child.pid : 0;
    stats.spare_pid = k->spare ? k->spare->child.pid : 0;
    return stats;
}

/* A timer that is off. */
static bool add_timer(struct keeper *k, sd_event_source **out,
                      sd_event_time_handler_t handler)
{
    return sd_event_add_time(k->loop, out, CLOCK_BOOTTIME, 0, 1, handler, k) >= 0 &&
           sd_event_source_set_enabled(*out, SD_EVENT_OFF) >= 0;
}

enum err keeper_new(struct keeper **out, sd_event *loop, const struct keeper_options *o,
                    const struct keeper_callbacks *cb, struct err_info *info)
{
    struct keeper *k = calloc(1, sizeof(*k));
    struct slot *slot = NULL;

    if (!k)
        return err_set(info, ERR_MEMORY, 0, "keeper");
    k->o = *o;
    k->cb = *cb;
    k->loop = loop;
    k->spare_wait_ms = SPARE_STEP_MS;
    for (size_t i = 0; i < SLOTS; i++)
        k->slots[i] = (struct slot){ .k = k, .child = KEEPER_NO_CHILD };
    enum err e = ERR_OK;
    if (!add_timer(k, &k->timeout, on_timeout) ||
        !add_timer(k, &k->restart, on_restart) ||
        !add_timer(k, &k->restart_spare, on_restart_spare))
        e = err_set(info, ERR_MEMORY, 0, "keeper timers");
    if (e == ERR_OK)
        e = start(k, &slot, info);
    if (e) {
        keeper_free(k);
        return e;
    }
    go_live(k, slot);
    arm(k->restart_spare, k->spare_wait_ms);
    *out = k;
    return ERR_OK;
}

void keeper_free(struct keeper *k)
{
    if (!k)
        return;
    (void)sd_event_source_disable_unref(k->timeout);
    (void)sd_event_source_disable_unref(k->restart);
    (void)sd_event_source_disable_unref(k->restart_spare);
    for (size_t i = 0; i < SLOTS; i++) {
        struct slot *s = &k->slots[i];

        (void)sd_event_source_disable_unref(s->io);
        (void)sd_event_source_disable_unref(s->death);
        (void)sd_event_source_disable_unref(s->start_limit);
        keeper_child_release(&s->child);
    }
    free(k);
}
