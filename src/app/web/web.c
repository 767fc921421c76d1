#include "app/web/web.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "sys/log/log.h"

enum {
    START_LIMIT_MS = 5000, /* nginx answers after some 10 ms */
    STOP_PATIENCE_MS =
        300, /* of a fast shutdown, which takes some 5 ms; then it is killed */
    STOP_LIMIT_MS = 3000,
    LEASE_WAIT_MS = 5,      /* between two looks for a lease that is to come at once */
    CHECK_MS = 500,         /* at most between two health requests */
    ANSWER_LIMIT_MS = 2000, /* without a watchdog to derive it from */
    POLL_FDS = 4 + NGINX_WORKERS_MAX,
};

static struct mono now(void)
{
    struct timespec t = { 0 };

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

static void enter(struct web *w, enum web_state state, struct mono t)
{
    static const char *const texts[] = {
        [WEB_STANDBY] = "standby: nginx is prepared",
        [WEB_WAITING] = "waits for the lease",
        [WEB_STARTING] = "nginx starts",
        [WEB_SERVING] = "serving",
        [WEB_STOPPING] = "nginx stops",
    };

    log_event(LOG_LEVEL_INFO, "web", log_str("state", texts[state]),
              log_u64("epoch", w->epoch),
              log_u64("after_ms", mono_since_ms(t, w->since)));
    w->state = state;
    w->since = t;
    health_clear(&w->health);
    /* No reason to fail: it may be filled by whoever publishes, on both nodes. */
    if (!nginx_has_root(&w->nginx)) {
        log_event(LOG_LEVEL_WARNING, "web_nothing_published",
                  log_str("root", w->nginx.conf->root));
        (void)redoubt_service_status(w->service,
                                     "%s; nothing is published: %s is missing",
                                     texts[state], w->nginx.conf->root);
        return;
    }
    (void)redoubt_service_status(w->service, "%s", texts[state]);
}

/* The watchdog's third, or what it would be: how often we look and say that we live. */
static uint32_t period_ms(const struct web *w)
{
    uint32_t ms = redoubt_service_watchdog_period_ms(w->service);

    return ms == 0 || ms > CHECK_MS ? CHECK_MS : ms;
}

/* An answer must come in half of the watchdog's time, so that its absence is told by us,
 * with the reason, and not by the supervisor's watchdog without one. */
static uint32_t answer_limit_ms(const struct web *w)
{
    uint32_t third = redoubt_service_watchdog_period_ms(w->service);

    return third == 0 ? ANSWER_LIMIT_MS : third + third / 2;
}

static bool lease_held(const struct web *w)
{
    uint64_t epoch = 0;

    return redoubt_service_lease_held(w->service, &epoch) && epoch == w->epoch;
}

static enum err acknowledge(struct web *w, enum redoubt_role role, struct err_info *info)
{
    int r = w->ack_due ? redoubt_service_ack(w->service, role, w->epoch) : 0;

    w->ack_due = false;
    return r == 0 ? ERR_OK : err_set(info, ERR_IO, -r, "acknowledge the role");
}

static enum err ask_health(struct web *w, struct mono t, struct err_info *info)
{
    enum err e = health_ask(&w->health, w->nginx.health, t);

    w->next_check = mono_after(t, period_ms(w));
    /* While it starts, its socket comes some time; later it must be there. */
    if (e == ERR_CLOSED && w->state == WEB_STARTING)
        return ERR_OK;
    return e ? err_set(info, e, 0, "nginx does not accept a health request") : ERR_OK;
}

static enum err step_starting(struct web *w, struct mono t, struct err_info *info)
{
    enum err e = ERR_OK;

    if (mono_since_ms(t, w->since) > START_LIMIT_MS)
        return err_set(info, ERR_TIMEOUT, 0,
                       "nginx did not answer within %d ms of its start", START_LIMIT_MS);
    if (w->health.fd < 0)
        return ask_health(w, t, info);
    e = health_read(&w->health);
    if (e == ERR_TIMEOUT)
        return ERR_OK;
    if (e)
        return err_set(info, e, 0, "nginx gave a wrong answer to a health request");
    if (nginx_find_workers(&w->nginx, NULL))
        return ERR_OK; /* asks again */
    enter(w, WEB_SERVING, t);
    w->next_check = mono_after(t, period_ms(w));
    return acknowledge(w, REDOUBT_ROLE_ACTIVE, info);
}

static enum err step_serving(struct web *w, struct mono t, struct err_info *info)
{
    if (w->health.fd >= 0) {
        enum err e = health_read(&w->health);

        if (e == ERR_TIMEOUT && mono_since_ms(t, w->health.asked) > answer_limit_ms(w))
            return err_set(info, ERR_TIMEOUT, 0,
                           "nginx hangs: no answer to a health request in %" PRIu32 " ms",
                           answer_limit_ms(w));
        if (e && e != ERR_TIMEOUT)
            return err_set(info, e, 0, "nginx gave a wrong answer to a health request");
    }
    if (w->health.fd < 0 && mono_reached(t, w->next_check)) {
        if (nginx_dead(&w->nginx, true, info))
            return ERR_CLOSED;
        return ask_health(w, t, info);
    }
    return ERR_OK;
}

static enum err step_stopping(struct web *w, struct mono t, struct err_info *info)
{
    if (!nginx_reap(&w->nginx)) {
        if (mono_since_ms(t, w->since) > STOP_LIMIT_MS)
            return err_set(info, ERR_TIMEOUT, 0, "nginx does not end although killed");
        if (mono_since_ms(t, w->since) > STOP_PATIENCE_MS)
            nginx_kill(&w->nginx);
        return ERR_OK;
    }
    enter(w, w->wanted ? WEB_WAITING : WEB_STANDBY, t);
    return ERR_OK;
}

/* What the present state asks for; several states may pass in one turn. */
static enum err step(struct web *w, struct mono t, struct err_info *info)
{
    enum err e = ERR_OK;

    if (w->state == WEB_STARTING || w->state == WEB_SERVING) {
        if (!w->wanted) {
            nginx_stop(&w->nginx);
            enter(w, WEB_STOPPING, t);
        } else if (nginx_dead(&w->nginx, false, info)) {
            return ERR_CLOSED;
        } else if (!lease_held(w)) {
            nginx_kill(&w->nginx);
            enter(w, WEB_STOPPING, t);
        }
    }
    if (w->state == WEB_STOPPING)
        e = step_stopping(w, t, info);
    if (!e && w->state == WEB_STANDBY && w->wanted)
        enter(w, WEB_WAITING, t);
    if (!e && w->state == WEB_WAITING && !w->wanted)
        enter(w, WEB_STANDBY, t);
    if (!e && w->state == WEB_STANDBY)
        e = acknowledge(w, REDOUBT_ROLE_STANDBY, info);
    if (!e && w->state == WEB_WAITING && lease_held(w)) {
        e = nginx_start(&w->nginx, info);
        if (!e)
            enter(w, WEB_STARTING, t);
    }
    if (!e && w->state == WEB_STARTING)
        e = step_starting(w, t, info);
    if (!e && w->state == WEB_SERVING)
        e = step_serving(w, t, info);
    return e;
}

static enum err hear_role(struct web *w, struct err_info *info)
{
    uint64_t epoch = 0;

    switch (redoubt_service_read_role(w->service, &epoch)) {
    case REDOUBT_ROLE_NONE: break;
    case REDOUBT_ROLE_GONE:
        return err_set(info, ERR_CLOSED, 0, "the node daemon has ended");
    case REDOUBT_ROLE_STANDBY:
        w->wanted = false;
        w->ack_due = true;
        break;
    case REDOUBT_ROLE_ACTIVE: web_activate(w, epoch); break;
    }
    return ERR_OK;
}

void web_activate(struct web *w, uint64_t epoch)
{
    w->wanted = !w->ending;
    w->ack_due = true;
    w->epoch = epoch;
}

static void feed_watchdog(struct web *w, struct mono t)
{
    if (!mono_reached(t, w->next_ping))
        return;
    (void)redoubt_service_watchdog(w->service);
    w->next_ping = mono_after(t, period_ms(w));
}

/* Until when nothing needs to be looked at unless a descriptor says so. */
static int timeout_ms(const struct web *w, struct mono t)
{
    struct mono next = mono_min(w->next_ping, mono_after(t, CHECK_MS));
    uint32_t lease = redoubt_lease_remaining_ms(redoubt_service_lease(w->service));

    switch (w->state) {
    case WEB_STANDBY: break;
    case WEB_WAITING: next = mono_min(next, mono_after(t, LEASE_WAIT_MS)); break;
    case WEB_STARTING: next = mono_min(next, mono_after(t, 1)); break;
    case WEB_SERVING:
        next = mono_min(next, w->next_check);
        if (w->health.fd >= 0)
            next = mono_after(w->health.asked, answer_limit_ms(w) + 1);
        next = mono_min(next, w->next_ping);
        if (redoubt_service_lease(w->service))
            next = mono_min(next, mono_after(t, lease + 1));
        break;
    case WEB_STOPPING: next = mono_min(next, mono_after(t, 10)); break;
    }
    return mono_reached(t, next) ? 0 : (int)((next.us - t.us) / 1000u) + 1;
}

static void wait_for_something(const struct web *w, struct mono t)
{
    struct pollfd p[POLL_FDS];
    nfds_t n = 0;

    p[n++] = (struct pollfd){ .fd = w->signal_fd, .events = POLLIN };
    p[n++] =
        (struct pollfd){ .fd = redoubt_service_role_fd(w->service), .events = POLLIN };
    p[n++] = (struct pollfd){ .fd = w->health.fd, .events = POLLIN };
    if (nginx_runs(&w->nginx)) {
        p[n++] = (struct pollfd){ .fd = w->nginx.master.pidfd, .events = POLLIN };
        /* While it stops, its workers end before it does: wait for the master. */
        for (uint32_t i = 0; i < w->nginx.worker_count && w->state == WEB_SERVING; i++)
            p[n++] = (struct pollfd){ .fd = w->nginx.workers[i].pidfd, .events = POLLIN };
    }
    (void)poll(p, n, timeout_ms(w, t));
}

static void take_signals(struct web *w)
{
    struct signalfd_siginfo si;

    while (read(w->signal_fd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
        w->ending = true;
        w->wanted = false;
    }
}

enum err web_init(struct web *w, struct redoubt_service *service,
                  const struct nginx_conf *conf, struct err_info *info)
{
    sigset_t ends;
    enum err e = ERR_OK;

    *w = (struct web){ .service = service, .signal_fd = -1, .since = now() };
    health_init(&w->health);
    e = nginx_init(&w->nginx, conf, info);
    if (e)
        return e;
    (void)sigemptyset(&ends);
    (void)sigaddset(&ends, SIGTERM);
    (void)sigaddset(&ends, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &ends, NULL);
    w->signal_fd = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    if (w->signal_fd < 0)
        return err_set(info, ERR_IO, errno, "take signals");
    enter(w, WEB_STANDBY, now());
    return ERR_OK;
}

enum err web_run(struct web *w, struct err_info *info)
{
    enum err e = ERR_OK;

    while (!e) {
        struct mono t = now();

        e = hear_role(w, info);
        if (!e)
            e = step(w, t, info);
        if (e || (w->ending && w->state == WEB_STANDBY))
            break;
        feed_watchdog(w, t);
        wait_for_something(w, t);
        take_signals(w);
    }
    nginx_kill(&w->nginx);
    health_clear(&w->health);
    (void)close(w->signal_fd);
    return e;
}
