/*
 * What goes wrong, when and for how long: all drawn from the seed.
 */
#include "sim.h"

static uint32_t sometimes(struct rng *r, uint32_t permille, uint32_t lo, uint32_t hi)
{
    bool yes = rng_permille(r, permille);
    uint32_t v = rng_in(r, lo, hi);

    return yes ? v : 0;
}

static void draw_timing(struct sim *s)
{
    struct node_conf *c = &s->conf;
    struct rng *r = &s->rng;

    const bool patient = rng_permille(r, 150);

    c->renew_ms = patient ? rng_in(r, 400, 2000) : rng_in(r, 50, 200);
    const uint32_t others = rng_permille(r, 300) ? rng_in(r, 0, 400) : 0;
    c->hold_ms = c->renew_ms * rng_in(r, 3, 12);
    c->hold_ms += rng_in(r, 0, 200);
    s->hold_ms[0] = c->hold_ms;
    s->hold_ms[1] = s->hold_ms[2] = c->hold_ms + others;
    c->poll_ms = rng_in(r, c->renew_ms / 10 + 5, c->renew_ms);
    c->demote_before_ms = c->hold_ms / rng_in(r, 4, 8);
    c->scan_ms = rng_in(r, c->renew_ms, 3 * c->renew_ms);
    c->put_ms = 2 * c->scan_ms;
    c->fence_wait_ms = rng_in(r, 50, 1000);
    c->promote_limit_ms = rng_in(r, 500, 3000);
    c->demote_limit_ms = rng_in(r, 200, 3000);
    c->yield_ms = 2 * c->hold_ms;
    c->unready_ms = c->hold_ms;
    c->peer_fresh_ms = 4 * c->put_ms + c->hold_ms;
    c->switch_max = 2;
    c->switch_window_ms = 10000;
    c->service_count = SERVICES;
    /* The tight edge: nothing in the margin but what it is there for (docs/timing.md). */
    c->margin_ms = s->weather.kill_ms + s->weather.stale_ms + 1;
}

/* The clocks: often at the two ends of what L4 allows for, 1 % apart. */
static void draw_clocks(struct sim *s)
{
    const uint32_t kind = rng_in(&s->rng, 0, 3);

    for (uint32_t i = 0; i < HOSTS; i++) {
        int32_t ppm = (int32_t)rng_in(&s->rng, 0, 9900) - 4950;

        if (kind < 2)
            ppm = (i == 0) == (kind == 0) ? 4950 : -4950;
        s->host[i].rate_ppm = ppm;
        s->host[i].offset = rng_in(&s->rng, 0, 1000000000);
    }
}

static void draw_layers(struct sim *s)
{
    struct layers *l = &s->layers;
    struct rng *r = &s->rng;

    *l = (struct layers){ true, true, true, true, true };
    switch (rng_in(r, 0, 4)) {
    case 0: break;
    case 1: l->service = l->kernel = false; break; /* the guard alone */
    case 2: l->guard = false; break;               /* the services' own look alone */
    case 3: l->guard = l->kernel = l->service = false; break; /* the daemon alone */
    case 4: l->fence = false; break;
    }
    s->judge_serving = true;
}

static const struct layers services_alone = { true, false, true, true, true };
static const struct layers guard_alone = { true, true, false, false, true };

/* What makes the one danger of this run. */
static void draw_danger(struct sim *s)
{
    struct weather *w = &s->weather;
    struct node_conf *c = &s->conf;

    switch (w->focus) {
    case FOCUS_NONE: break;
    case FOCUS_DRIFT:
        c->renew_ms = rng_in(&s->rng, 400, 1000);
        c->hold_ms = s->hold_ms[0] = s->hold_ms[1] = 14 * c->renew_ms;
        c->poll_ms = c->renew_ms / 10;
        if (rng_permille(&s->rng, 300))
            s->hold_ms[rng_in(&s->rng, 0, 1)] /= 2;
        c->demote_before_ms = c->hold_ms / 8;
        w->fault_every_ms = c->hold_ms / 2;
        break;
    case FOCUS_LATE_RENEWALS:
        s->layers = services_alone;
        c->hold_ms = s->hold_ms[0] = s->hold_ms[1] = 3 * c->renew_ms;
        c->demote_before_ms = c->hold_ms / 8;
        w->slow_lease_pm = 250;
        w->slow_read_pm = 150;
        break;
    case FOCUS_SLOW_CLAIMS:
        w->slow_lease_pm = 700;
        w->moment_pm = 500;
        w->stubborn_pm = 500;
        break;
    case FOCUS_LOST_CLAIMS: w->crash = w->power = true; break;
    case FOCUS_FORGETTING:
        /* By a crash of the file server, or removed by hand while a renewal hangs. */
        if (rng_permille(&s->rng, 500))
            w->moment_pm = 500;
        else
            w->hang_pm = 100;
        w->vanish = w->power = true;
        /* The DBMS is asked as often as the share: either may be the first to tell. */
        if (rng_permille(&s->rng, 500))
            c->poll_ms = c->scan_ms = c->renew_ms;
        break;
    case FOCUS_DOUBLED:
        w->dup_pm = 500;
        w->late_pm = 1000;
        w->slow_lease_pm = w->moment_pm = 500;
        w->hang_pm = w->lost_pm = 50;
        w->power = w->cut = w->share_faults = true;
        break;
    case FOCUS_FROZEN:
        s->layers = (struct layers){ true, true, true, true, true };
        s->judge_serving = false;
        w->suspend = true;
        w->fault_every_ms = c->hold_ms / 4;
        break;
    case FOCUS_ROLES:
        s->layers = guard_alone;
        w->role_us_max = c->hold_ms * 250;
        w->service_fail_pm = 1000;
        w->start_fail_pm = w->stubborn_pm = 100;
        w->operators = true;
        w->fault_every_ms = c->hold_ms / 8;
        break;
    case FOCUS_COUNT: break;
    }
}

/* Nothing but one danger, and the layers that it is a danger to. */
static void draw_focus(struct sim *s)
{
    struct weather *w = &s->weather;
    struct node_conf *c = &s->conf;
    uint32_t focus = rng_in(&s->rng, 1, 3 * FOCUS_COUNT);

    if (focus >= FOCUS_COUNT + 2)
        return;
    if (focus >= FOCUS_COUNT) /* the rarest meeting of all gets more runs */
        focus = FOCUS_LATE_RENEWALS;
    const uint32_t kill_ms = w->kill_ms;

    *w = (struct weather){ .focus = (enum focus)focus, .kill_ms = kill_ms };
    w->latency_us_min = 50;
    w->latency_us_max = w->role_us_max = w->fence_us_max = 400;
    c->margin_ms = kill_ms + 1;
    s->hold_ms[1] = s->hold_ms[2] = c->hold_ms;
    s->layers = rng_permille(&s->rng, 500) ? services_alone : guard_alone;
    s->judge_serving = w->pause = true;
    w->fault_every_ms = c->hold_ms;
    draw_danger(s);
    w->role_timeout_ms = c->hold_ms;
    if (!s->layers.guard)
        w->crash = false; /* who would kill the services of a daemon that died? */
}

/* What is published, and which node never gets it: nobody may be worse off for that. */
static void draw_content(struct sim *s)
{
    struct weather *w = &s->weather;

    s->content.s = ~s->seed;
    const bool yes = rng_permille(&s->content, 300) && w->focus == FOCUS_NONE;

    w->content_pm = yes ? rng_in(&s->content, 1, 100) : 0;
    w->content_never =
        yes && rng_permille(&s->content, 300) ? rng_in(&s->content, 1, 3) : 0;
}

static void tell(struct sim *s)
{
    const struct weather *w = &s->weather;
    const struct node_conf *c = &s->conf;
    const struct layers *l = &s->layers;

    sim_note(s,
             "seed %llu: renew %u hold %u/%u margin %u poll %u scan %u demote_before %u "
             "fence_wait %u promote_limit %u demote_limit %u",
             (unsigned long long)s->seed, c->renew_ms, s->hold_ms[0], s->hold_ms[1],
             c->margin_ms, c->poll_ms, c->scan_ms, c->demote_before_ms, c->fence_wait_ms,
             c->promote_limit_ms, c->demote_limit_ms);
    sim_note(s, "clocks %d, %d, %d ppm; layers:%s%s%s%s%s%s", s->host[0].rate_ppm,
             s->host[1].rate_ppm, s->host[2].rate_ppm, l->daemon ? " daemon" : "",
             l->guard ? " guard" : "", l->kernel ? " kernel" : "",
             l->service ? " service" : "", l->fence ? " fence" : "",
             s->judge_serving ? "" : " (clocks may stop: judged by the DBMS alone)");
    sim_note(s,
             "focus %d, latency %u..%u us, slow %u lost %u hang %u late %u dup %u stale "
             "%u torn %u "
             "error %u slow_lease %u moment %u per mille; stale %u kill %u ms",
             w->focus, w->latency_us_min, w->latency_us_max, w->slow_pm, w->lost_pm,
             w->hang_pm, w->late_pm, w->dup_pm, w->stale_pm, w->torn_pm, w->error_pm,
             w->slow_lease_pm, w->moment_pm, w->stale_ms, w->kill_ms);
    sim_note(
        s,
        "services fail %u hang %u will not start %u or stop %u, address fails %u per "
        "mille; content %u per mille, never on %u; a fault about each %u "
        "ms:%s%s%s%s%s%s%s%s%s%s%s%s",
        w->service_fail_pm, w->service_hang_pm, w->start_fail_pm, w->stubborn_pm,
        w->address_fail_pm, w->content_pm, w->content_never, w->fault_every_ms,
        w->crash ? " crash" : "", w->power ? " power" : "", w->pause ? " pause" : "",
        w->suspend ? " suspend" : "", w->guard_dies ? " guard" : "",
        w->restore ? " restore" : "", w->vanish ? " vanish" : "",
        w->db_down ? " dbms" : "", w->operators ? " operators" : "", w->cut ? " cut" : "",
        w->share_faults ? " share" : "", w->twin ? " twin" : "");
}

void weather_draw(struct sim *s)
{
    struct weather *w = &s->weather;
    struct rng *r = &s->rng;

    w->kill_ms = rng_in(r, 1, 25);
    w->stale_ms = sometimes(r, 300, 1, 40);
    draw_timing(s);
    draw_clocks(s);
    draw_layers(s);
    const bool quick =
        rng_permille(r, 500); /* nothing hides a margin that is too small */

    w->latency_us_min = rng_in(r, 50, quick ? 100 : 1000);
    w->latency_us_max = w->latency_us_min + rng_in(r, 100, quick ? 200 : 20000);
    w->role_us_max = quick ? 300 : rng_in(r, 300, 60000);
    w->fence_us_max = quick ? 300 : rng_in(r, 300, 60000);
    w->role_timeout_ms = rng_in(r, s->conf.hold_ms / 2, 3 * s->conf.hold_ms);
    w->slow_pm = sometimes(r, 500, 1, 60);
    w->lost_pm = sometimes(r, 500, 1, 60);
    w->hang_pm = sometimes(r, 500, 1, 60);
    w->slow_lease_pm = sometimes(r, 300, 1, 500);
    w->moment_pm = sometimes(r, 300, 1, 300);
    w->stubborn_pm = sometimes(r, 300, 1, 200);
    w->address_fail_pm = sometimes(r, 300, 1, 300);
    w->late_pm = sometimes(r, 500, 1, 1000);
    w->dup_pm = sometimes(r, 500, 1, 200);
    w->stale_pm = w->stale_ms ? sometimes(r, 700, 1, 500) : 0;
    w->torn_pm = sometimes(r, 300, 1, 200);
    w->error_pm = sometimes(r, 500, 1, 60);
    w->fault_every_ms = rng_in(r, s->conf.hold_ms / 6, 2 * s->conf.hold_ms);
    w->service_fail_pm = sometimes(r, 500, 1, 300);
    w->service_hang_pm = sometimes(r, 500, 1, 200);
    w->start_fail_pm = sometimes(r, 300, 1, 300);
    w->crash = rng_permille(r, 500);
    w->power = rng_permille(r, 500);
    w->pause = rng_permille(r, 500);
    w->suspend = rng_permille(r, 300);
    w->guard_dies = rng_permille(r, 300);
    w->restore = rng_permille(r, 150);
    w->vanish = rng_permille(r, 300);
    w->db_down = rng_permille(r, 400);
    w->operators = rng_permille(r, 500);
    w->cut = rng_permille(r, 500);
    w->share_faults = rng_permille(r, 600);
    w->twin = rng_permille(r, 60);
    if (!s->layers.guard && !s->layers.service) {
        /* The daemon alone keeps time only while it runs, and runs on time. */
        w->crash = w->pause = w->suspend = w->guard_dies = false;
    }
    if (!s->layers.guard)
        w->crash = false; /* who would kill the services of a daemon that died? */
    if (!s->layers.service)
        w->suspend = w->guard_dies = false; /* a thawed service needs to look by itself */
    if (w->suspend && rng_permille(r, 300))
        s->judge_serving =
            false; /* ... and then clocks stop, too: only the DBMS counts */
    draw_focus(s);
    draw_content(s);
    s->faults = (struct faults){ 0 };
    tell(s);
    sim_after_us(s, w->fault_every_ms * 1000ull, SIM_FAULT, 0, 0, 0, 0);
}

static uint64_t some_time(struct sim *s, uint32_t holds)
{
    return s->now + rng_in(&s->rng, 1, holds * s->conf.hold_ms) * 1000ull;
}

static void share_fault(struct sim *s, uint32_t i)
{
    struct faults *f = &s->faults;

    switch (rng_in(&s->rng, 0, 5)) {
    case 0: f->share_down_until = some_time(s, 3); break;
    case 1: f->share_full_until = some_time(s, 3); break;
    case 2: f->share_denied_until = some_time(s, 3); break;
    case 3: f->share_slow_until = some_time(s, 2); break;
    case 4: f->cut_until[i] = some_time(s, 3); break;
    case 5: f->deaf_until[i] = some_time(s, 3); break;
    }
}

static void operate(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];
    struct node_event ev = { .kind = NODE_EV_OPERATOR, .token = 7 };

    if (!host_runs(h))
        return;
    ev.now = host_clock(s, i);
    switch (rng_in(&s->rng, 0, 6)) {
    case 0: ev.op = NODE_OP_MAINTENANCE_ON; break;
    case 1: ev.op = NODE_OP_MAINTENANCE_OFF; break;
    case 2: ev.op = NODE_OP_ADOPT; break;
    case 3: s->share.pause = !s->share.pause; return;
    case 4:
        ev.kind = NODE_EV_STOP;
        sim_note(s, "%s gets SIGTERM", sim_node_name(i));
        break;
    default: ev.op = NODE_OP_SWITCHOVER; break;
    }
    sim_note(s, "%s operator %d", sim_node_name(i), ev.op);
    node_run_event(h->run, &ev);
    host_schedule(s, i);
}

void weather_freeze(struct sim *s, uint32_t i, bool whole, uint64_t until)
{
    struct host *h = &s->host[i];

    if (!h->on || h->frozen || h->paused || !h->daemon)
        return;
    h->frozen = whole;
    h->paused = !whole;
    h->frozen_at = s->now;
    h->resume_at = until;
    h->clock_stops = whole && !s->judge_serving && rng_permille(&s->rng, 700);
    sim_note(s, "%s %s", sim_node_name(i), whole ? "is suspended" : "is paused");
    sim_at(s, h->resume_at, SIM_RESUME, i, 0, 0, 0);
}

static void node_fault(struct sim *s, uint32_t i)
{
    const struct weather *w = &s->weather;

    switch (rng_in(&s->rng, 0, 5)) {
    case 0:
        if (w->crash && s->host[i].daemon && !s->host[i].frozen) {
            host_daemon_dies(s, i);
            sim_after_us(s, rng_in(&s->rng, 50, 2000) * 1000ull, SIM_BOOT, i, 0, 0, 0);
        }
        break;
    case 1:
        if (w->power && s->host[i].on) {
            host_power_off(s, i);
            sim_after_us(s, rng_in(&s->rng, 100, 6000) * 1000ull, SIM_BOOT, i, 0, 0, 0);
        }
        break;
    case 2:
        if (w->pause)
            weather_freeze(s, i, false, some_time(s, 4));
        break;
    case 3:
        if (w->suspend)
            weather_freeze(s, i, true, some_time(s, 4));
        break;
    case 4:
        if (w->guard_dies)
            host_guard_dies(s, i);
        break;
    case 5:
        if (w->operators)
            operate(s, i);
        break;
    }
}

static void forget(struct sim *s)
{
    const bool removed = s->weather.focus == FOCUS_FORGETTING
                             ? s->weather.moment_pm == 0
                             : rng_permille(&s->rng, 500);

    if (removed) {
        share_remove_top(s);
        return;
    }
    sim_note(s, "the file server forgets its newest epoch");
    share_restore(s, 1);
}

static void world_fault(struct sim *s, uint32_t i)
{
    const struct weather *w = &s->weather;
    struct rng *r = &s->rng;
    uint32_t k = rng_in(r, 0, SERVICES - 1);

    switch (rng_in(r, 0, 4)) {
    case 0:
        if (rng_permille(r, w->service_fail_pm) && !s->host[i].frozen)
            services_fail(s, i, k, false);
        break;
    case 1:
        if (rng_permille(r, w->service_hang_pm) && !s->host[i].frozen)
            services_fail(s, i, k, true);
        break;
    case 2:
        if (w->db_down && rng_permille(r, 300))
            s->faults.db_down_until = some_time(s, 4);
        break;
    case 3:
        if (w->vanish && rng_permille(r, 300))
            forget(s);
        break;
    case 4:
        if (w->restore && rng_permille(r, 200)) {
            sim_note(s, "the share is restored from an old copy");
            share_restore(s, rng_in(r, 2, 12));
        } else if (w->service_fail_pm && rng_permille(r, 50)) {
            s->faults.bad_service_until = some_time(s, 4);
        }
        break;
    }
}

/* Just when a claim or renewal was answered: the moments in which most is open. */
void weather_moment(struct sim *s, uint32_t i)
{
    struct faults *f = &s->faults;
    const enum focus focus = s->weather.focus;

    if (!rng_permille(&s->rng, s->weather.moment_pm))
        return;
    if (focus == FOCUS_FORGETTING && !s->fair) {
        sim_note(s, "the file server forgets its newest epoch");
        share_restore(s, 1);
        return;
    }
    switch (focus == FOCUS_SLOW_CLAIMS ? 0 : rng_in(&s->rng, 0, 3)) {
    case 0: f->cut_until[i] = s->now + s->conf.hold_ms * 2000ull; break;
    case 1: f->deaf_until[i] = some_time(s, 3); break;
    case 2: f->share_denied_until = some_time(s, 3); break;
    case 3:
        if (s->weather.pause)
            weather_freeze(s, i, false, some_time(s, 4));
        break;
    }
}

/* A renewal hangs on its way; what it is to renew may be gone when it lands. */
void weather_hung(struct sim *s)
{
    if (s->weather.focus == FOCUS_FORGETTING && !s->fair && rng_permille(&s->rng, 500))
        share_remove_top(s);
}

/* A node has heard from the DBMS, perhaps of an epoch that it has not read on the share yet. */
void weather_told(struct sim *s, uint32_t i)
{
    const struct node *n = &s->host[i].run->node;

    if (s->weather.focus == FOCUS_FORGETTING && !s->fair &&
        n->known_epoch > n->seen.top && rng_permille(&s->rng, 300))
        share_remove_top(s);
}

/* A claim is being sent. */
void weather_claim(struct sim *s, uint32_t i)
{
    const bool lost = s->weather.focus == FOCUS_LOST_CLAIMS;

    if (!s->fair && rng_permille(&s->rng, lost ? 400 : s->weather.moment_pm / 3))
        s->faults.cut_until[i] = s->now + s->conf.hold_ms * 2000ull;
}

/*
 * A renewal that reaches the share about when the peer may claim, from a daemon that sleeps
 * over its deadline: how much later it lands.
 */
uint64_t weather_late_renewal(struct sim *s, uint32_t i)
{
    const bool often = s->weather.focus == FOCUS_LATE_RENEWALS;

    if (s->fair || !s->weather.pause ||
        !rng_permille(&s->rng, often ? 100 : s->weather.moment_pm / 8))
        return 0;
    const uint64_t us = s->hold_ms[i] * (uint64_t)rng_in(&s->rng, 650, 950);

    weather_freeze(s, i, false, s->now + us + rng_in(&s->rng, 0, 5000));
    return us;
}

void weather_event(struct sim *s, const struct event *e)
{
    uint32_t i = rng_in(&s->rng, 0, s->weather.twin ? HOSTS - 1 : NODES - 1);

    (void)e;
    if (s->fair)
        return;
    switch (s->weather.focus == FOCUS_FORGETTING ? 3 : rng_in(&s->rng, 0, 2)) {
    case 0:
        if (s->weather.share_faults && (s->weather.cut || rng_permille(&s->rng, 500)))
            share_fault(s, i);
        break;
    case 1: node_fault(s, i); break;
    case 2: world_fault(s, i); break;
    case 3:
        if (rng_permille(&s->rng, 300))
            forget(s);
        else
            node_fault(s, i);
        break;
    }
    sim_after_us(s, rng_in(&s->rng, 1, 2 * s->weather.fault_every_ms) * 1000ull,
                 SIM_FAULT, 0, 0, 0, 0);
}

/* From now on nothing goes wrong, and an operator undoes what operators did. */
void weather_fair(struct sim *s)
{
    struct weather *w = &s->weather;

    s->fair = true;
    s->faults = (struct faults){ 0 };
    s->share.pause = false;
    w->slow_pm = w->lost_pm = w->hang_pm = w->late_pm = w->dup_pm = 0;
    w->stale_pm = w->torn_pm = w->error_pm = 0;
    w->slow_lease_pm = w->moment_pm = w->stubborn_pm = w->address_fail_pm = 0;
    w->service_fail_pm = w->service_hang_pm = w->start_fail_pm = 0;
    w->latency_us_max = w->latency_us_min + 1000;
    w->role_us_max = w->fence_us_max = 10000;
    w->slow_read_pm = w->content_pm = 0;
    if (s->host[NODES].on) /* the second daemon of one name */
        host_power_off(s, NODES);
    for (uint32_t i = 0; i < NODES; i++) {
        struct host *h = &s->host[i];

        if (h->on && h->daemon)
            host_resume(s, i);
        if (!h->on || !h->daemon)
            host_boot(s, i);
    }
    sim_note(s, "fair weather from here");
}

/* The balanced profile in a quiet world, for scenarios in which only what they say happens. */
void weather_calm(struct sim *s)
{
    struct node_conf *c = &s->conf;

    s->heap_n = 0;
    s->fair = s->judge_serving = true;
    s->faults = (struct faults){ 0 };
    s->weather = (struct weather){ .latency_us_min = 300,
                                   .latency_us_max = 500,
                                   .kill_ms = 5,
                                   .role_us_max = 3000,
                                   .fence_us_max = 2000,
                                   .role_timeout_ms = 1000 };
    s->layers = (struct layers){ true, true, true, true, true };
    c->renew_ms = 250;
    c->hold_ms = 1500;
    c->margin_ms = 180;
    c->poll_ms = 40;
    c->demote_before_ms = 300;
    c->scan_ms = 250;
    c->put_ms = 500;
    c->fence_wait_ms = 500;
    c->promote_limit_ms = 3000;
    c->demote_limit_ms = 2000;
    c->yield_ms = 3000;
    c->unready_ms = 1500;
    c->peer_fresh_ms = 3500;
    c->switch_window_ms = 60000;
    for (uint32_t i = 0; i < HOSTS; i++) {
        s->hold_ms[i] = c->hold_ms;
        s->host[i].rate_ppm = 0;
        s->host[i].offset = 0;
    }
    share_init(s);
}

/*
 * How long until one node serves and the other is ready, at the latest: the longest wait of
 * L3 (an unreadable newest record), the unprepared node's patience, a lease left to a peer,
 * the steps of a promotion, services that restart, a name that had seemed doubled; twice,
 * because a claim may be lost to the peer, or be unknown, once.
 */
uint64_t weather_bound_us(const struct sim *s)
{
    const struct node_conf *c = &s->conf;
    uint64_t ms = node_wait_ms(c, RECORD_HOLD_MAX_MS) + c->unready_ms + c->yield_ms +
                  c->fence_wait_ms + c->promote_limit_ms + c->demote_limit_ms +
                  4ull * c->hold_ms + 12ull * c->scan_ms + 2000;

    return 2 * ms * 1000;
}
