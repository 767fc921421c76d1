/* What a running service is told, and what it says. */
#include <errno.h>
#include <inttypes.h>
#include <sys/socket.h>

#include "sys/supervisor/unit.h"

static int role_timeout(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    unit_fail(u, "did not acknowledge \"%s\" within %" PRIu32 " ms",
              u->told == NOTIFY_ROLE_ACTIVE ? "active" : "standby",
              u->conf->role_timeout_ms);
    return 0;
}

static int watchdog_missed(sd_event_source *source, uint64_t when, void *user)
{
    struct unit *u = user;

    (void)source;
    (void)when;
    unit_fail(u, "hangs: no WATCHDOG=1 for %" PRIu32 " ms", u->conf->watchdog_ms);
    return 0;
}

static bool needs_ack(const struct unit *u)
{
    return u->conf->standby == SUPERVISOR_HOT;
}

static void report_role(struct unit *u)
{
    if (!u->acked)
        unit_state(u, SERVICE_CHANGING, "told \"%s\"",
                   u->told == NOTIFY_ROLE_ACTIVE ? "active" : "standby");
    else if (u->told == NOTIFY_ROLE_ACTIVE)
        unit_state(u, SERVICE_ACTIVE, "active in epoch %" PRIu64, u->told_epoch);
    else
        unit_state(u, SERVICE_STANDBY, "ready");
}

/* One line of the role.  Hundreds of them can wait: full means that nobody reads. */
static void tell(struct unit *u, enum notify_role role, uint64_t epoch)
{
    char line[48];
    int n = role == NOTIFY_ROLE_ACTIVE
                ? snprintf(line, sizeof(line), "active %" PRIu64 "\n", epoch)
                : snprintf(line, sizeof(line), "standby\n");

    processes_pause(u);
    u->told = role;
    u->told_epoch = epoch;
    u->acked = !needs_ack(u);
    if (send(u->role_fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) {
        /* One that closed its end by design cannot be asked to acknowledge. */
        if (needs_ack(u)) {
            unit_fail(u, "does not read its role: %s",
                      errno == EAGAIN ? "it has not for long"
                                      : "its descriptor is closed");
            return;
        }
    }
    if (u->acked)
        processes_watch(u);
    else
        unit_timer(u, &u->role_timer, u->conf->role_timeout_ms, role_timeout);
}

void unit_role(struct unit *u)
{
    bool active = u->s->want == SERVICE_WANT_ACTIVE;
    enum notify_role role = active ? NOTIFY_ROLE_ACTIVE : NOTIFY_ROLE_STANDBY;
    uint64_t epoch = active ? u->s->epoch : 0;

    if (u->told == NOTIFY_ROLE_NONE && needs_ack(u)) {
        u->told = NOTIFY_ROLE_STANDBY; /* READY says so */
        u->acked = true;
        processes_watch(u);
    }
    bool same = u->told == role && u->told_epoch == epoch;
    /* An old "standby" on its way must not pass for the acknowledgement of a new one. */
    bool wait = active && u->told == NOTIFY_ROLE_STANDBY && !u->acked;

    if (!same && !wait)
        tell(u, role, epoch);
    if (u->life == UNIT_UP)
        report_role(u);
}

static void heard_role(struct unit *u, const struct notify_message *m)
{
    if (m->role != u->told || u->acked || u->life != UNIT_UP ||
        (m->role == NOTIFY_ROLE_ACTIVE && m->epoch != u->told_epoch))
        return;
    u->acked = true;
    unit_timer_off(u->role_timer);
    processes_watch(u);
    unit_role(u);
}

void unit_heard(struct unit *u, const struct notify_message *m)
{
    if (u->life != UNIT_STARTING && u->life != UNIT_UP)
        return;
    if (m->has_status)
        memcpy(u->status, m->status, sizeof(u->status));
    if (m->has_metrics)
        memcpy(u->metrics, m->metrics, sizeof(u->metrics));
    if (m->ready && u->life == UNIT_STARTING) {
        u->life = UNIT_UP;
        u->up_since_us = unit_now_us(u);
        unit_timer_off(u->phase);
        unit_converge(u);
    }
    if (u->life != UNIT_UP)
        return;
    if (u->conf->watchdog_ms != 0 && (m->ready || m->watchdog))
        unit_timer(u, &u->watchdog, u->conf->watchdog_ms, watchdog_missed);
    if (m->role != NOTIFY_ROLE_NONE)
        heard_role(u, m);
}
