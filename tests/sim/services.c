/*
 * The simulated services and their supervisor.
 */
#include "sim.h"

static uint32_t role_timeout_ms(const struct sim *s)
{
    return s->weather.role_timeout_ms;
}

static void report(struct sim *s, uint32_t i, uint32_t k, enum service_state state)
{
    struct host *h = &s->host[i];

    h->service[k].state = state;
    if (!host_runs(h))
        return; /* host_resume() tells what was missed */
    h->service[k].told = state;
    node_run_service(h->run, host_clock(s, i), k, state);
    host_schedule(s, i);
}

/* Begin a transition that ends in target after us. */
static void begin(struct sim *s, uint32_t i, uint32_t k, enum service_state target,
                  uint64_t us)
{
    struct service_sim *v = &s->host[i].service[k];

    /* Told "active" and then "standby": it may act on the first before it hears the second. */
    if (v->under_way && v->target == SERVICE_ACTIVE && target == SERVICE_STANDBY &&
        v->alive)
        sim_after_us(s, rng_in(&s->rng, 0, (uint32_t)us / 2), SIM_ACTS, i, k,
                     s->host[i].life, v->generation + 1);
    v->target = target;
    v->under_way = true;
    v->generation++;
    sim_after_us(s, us, SIM_SERVICE, i, k, s->host[i].life, v->generation);
}

static uint64_t role_us(struct sim *s)
{
    return rng_in(&s->rng, 100, s->weather.role_us_max);
}

/* A service that will not stop: the supervisor kills it in the end. */
static uint64_t stop_us(struct sim *s, const struct service_sim *v)
{
    const uint64_t us = role_us(s);
    const bool stubborn = rng_permille(&s->rng, s->weather.stubborn_pm);

    return v->broken || (stubborn && v->active) ? role_timeout_ms(s) * 1000ull : us;
}

/* What the adapter does next to get this service where it is wanted. */
static void converge(struct sim *s, uint32_t i, uint32_t k, bool told)
{
    struct host *h = &s->host[i];
    struct service_sim *v = &h->service[k];

    if (h->want == SERVICE_WANT_STOPPED) {
        if (v->alive)
            begin(s, i, k, SERVICE_STOPPED, stop_us(s, v));
        else if (v->state != SERVICE_STOPPED)
            begin(s, i, k, SERVICE_STOPPED, 100);
        return;
    }
    if (!v->alive) {
        if (v->state != SERVICE_STARTING) {
            uint64_t backoff =
                v->state == SERVICE_FAILED ? s->conf.hold_ms * 500ull : 1000;

            begin(s, i, k, SERVICE_STARTING, backoff);
        }
        return;
    }
    if (v->state == SERVICE_STARTING)
        return; /* told its role when it is ready */
    if (h->want == SERVICE_WANT_ACTIVE &&
        (told || !(v->active && v->epoch == h->want_epoch)))
        begin(s, i, k, SERVICE_ACTIVE,
              v->broken ? role_timeout_ms(s) * 1000ull : role_us(s));
    else if (h->want == SERVICE_WANT_STANDBY &&
             (told || v->active || v->state != SERVICE_STANDBY))
        begin(s, i, k, SERVICE_STANDBY, stop_us(s, v));
}

static void set(void *impl, enum service_want want, uint64_t epoch)
{
    struct impl *im = impl;
    struct sim *s = im->s;
    struct host *h = &s->host[im->i];

    if (want == SERVICE_WANT_ACTIVE) {
        /* by the node's own clock, which may be fast */
        bool waited = s->now - h->set_at + 2000 >= (uint64_t)s->conf.fence_wait_ms * 990;

        if (!(h->fence_answered && h->fence_epoch == epoch) && !waited)
            sim_violation(s, "services activated before the DBMS fence was raised");
    }
    h->want = want;
    h->want_epoch = epoch;
    for (uint32_t k = 0; k < SERVICES; k++) {
        h->service[k].told = SERVICE_CHANGING;
        converge(s, im->i, k, true);
    }
}

/* Every process dies now; reports follow. */
void services_killed(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    for (uint32_t k = 0; k < SERVICES; k++) {
        struct service_sim *v = &h->service[k];

        v->alive = v->active = v->broken = v->under_way = false;
        v->generation++;
    }
}

static void kill_all(void *impl)
{
    struct impl *im = impl;
    struct host *h = &im->s->host[im->i];

    h->want = SERVICE_WANT_STOPPED;
    sim_after_us(im->s, im->s->weather.kill_ms * 1000ull, SIM_KILLED, im->i, 1, h->life,
                 0);
}

const struct services_ops sim_services_ops = { set, kill_all };

void services_fail(struct sim *s, uint32_t i, uint32_t k, bool hang)
{
    struct service_sim *v = &s->host[i].service[k];

    if (!v->alive)
        return;
    sim_note(s, "%s service %u %s", sim_node_name(i), k, hang ? "hangs" : "dies");
    if (hang) {
        v->broken = true; /* the watchdog sees it */
        begin(s, i, k, SERVICE_FAILED, role_timeout_ms(s) * 1000ull);
        return;
    }
    v->alive = v->active = v->broken = v->under_way = false;
    v->generation++;
    if (host_runs(&s->host[i])) {
        report(s, i, k, SERVICE_FAILED);
        converge(s, i, k, false);
    } else {
        v->state = SERVICE_FAILED;
    }
}

/* The daemon runs again after a pause: it hears of what happened meanwhile. */
void services_revive(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    for (uint32_t k = 0; k < SERVICES; k++) {
        struct service_sim *v = &h->service[k];

        if (!v->alive)
            report(s, i, k,
                   h->want == SERVICE_WANT_STOPPED ? SERVICE_STOPPED : SERVICE_FAILED);
        else if (v->under_way &&
                 (v->target == SERVICE_ACTIVE || v->target == SERVICE_STANDBY))
            /* What it was before it was told says nothing (port/services.h). */
            report(s, i, k, SERVICE_CHANGING);
        else
            report(s, i, k, v->state);
        converge(s, i, k, false);
    }
}

static void reached(struct sim *s, uint32_t i, uint32_t k)
{
    struct host *h = &s->host[i];
    struct service_sim *v = &h->service[k];
    enum service_state target = v->target;

    v->under_way = false;
    switch (target) {
    case SERVICE_STARTING: /* the process is made; READY comes later */
        v->alive = true;
        v->active = v->broken = false;
        report(s, i, k, SERVICE_STARTING);
        if (v->target == SERVICE_STARTING)
            begin(s, i, k, SERVICE_CHANGING, role_us(s));
        return;
    case SERVICE_CHANGING: /* READY=1, or it would not start */
        if (s->now < s->faults.bad_service_until ||
            rng_permille(&s->rng, s->weather.start_fail_pm)) {
            v->alive = false;
            report(s, i, k, SERVICE_FAILED);
        } else {
            report(s, i, k, SERVICE_STANDBY);
        }
        break;
    case SERVICE_ACTIVE:
    case SERVICE_STANDBY:
        if (v->broken) {
            v->alive = v->active = v->broken = false;
            report(s, i, k, SERVICE_FAILED);
            break;
        }
        v->active = target == SERVICE_ACTIVE;
        v->epoch = h->want_epoch;
        report(s, i, k, target);
        return;
    case SERVICE_STOPPED:
    case SERVICE_FAILED:
        v->alive = v->active = v->broken = false;
        report(s, i, k, target);
        break;
    case SERVICE_STATE_COUNT: break;
    }
    if (v->generation && host_runs(h))
        converge(s, i, k, false);
}

void services_event(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];
    struct service_sim *v = &h->service[e->arg];

    if (e->life != h->life || e->arg2 != v->generation)
        return;
    if (e->kind == SIM_ACTS) {
        if (h->on && !h->frozen && v->alive && !v->broken && v->under_way) {
            v->active = true;
            v->epoch = h->page.epoch;
        }
        return;
    }
    if (!host_runs(h)) {
        /* The supervisor is paused: what the service itself does still happens. */
        if (h->daemon && h->paused && !h->frozen && v->alive && !v->broken &&
            (v->target == SERVICE_ACTIVE || v->target == SERVICE_STANDBY)) {
            v->active = v->target == SERVICE_ACTIVE;
            v->epoch = h->want_epoch;
            v->state = v->target;
            v->under_way = false;
        } else if (h->daemon && h->on) {
            sim_at(s, host_wakes(s, e->node), SIM_SERVICE, e->node, e->arg, e->life,
                   e->arg2);
        }
        return;
    }
    reached(s, e->node, e->arg);
}
