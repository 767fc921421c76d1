/*
 * A simulated node: its clock, daemon, guard, address, and its way to the DBMS.
 */
#include "sim.h"

struct impl sim_impl[HOSTS];

struct mono host_clock(const struct sim *s, uint32_t i)
{
    const struct host *h = &s->host[i];
    uint64_t t = h->frozen && h->clock_stops ? h->frozen_at : s->now;

    /* t stays below 2^43 us here, so the product fits, and the clock never goes back. */
    return (struct mono){ h->offset + t +
                          (uint64_t)((int64_t)t * h->rate_ppm / 1000000) };
}

uint64_t host_true_time(const struct sim *s, uint32_t i, struct mono local)
{
    struct mono now = host_clock(s, i);

    if (local.us <= now.us)
        return s->now;
    if (local.us - now.us > 3600000000ull)
        return UINT64_MAX;
    uint64_t d = local.us - now.us;
    int64_t ppm = s->host[i].rate_ppm;

    return s->now + (uint64_t)((int64_t)d - (int64_t)d * ppm / (1000000 + ppm)) + 1;
}

bool host_runs(const struct host *h)
{
    return h->on && h->daemon && !h->paused && !h->frozen;
}

/* When what waits for a daemon that does not run is looked at by it. */
uint64_t host_wakes(struct sim *s, uint32_t i)
{
    const struct host *h = &s->host[i];
    const uint64_t at = h->resume_at > s->now ? h->resume_at : s->now + 500;

    return at + rng_in(&s->rng, 0, 500);
}

void host_schedule(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!host_runs(h))
        return;
    struct mono wake = node_next_wakeup(&h->run->node);

    if (wake.us == UINT64_MAX)
        return;
    uint64_t at = host_true_time(s, i, wake);

    if (at == UINT64_MAX || (h->tick_at == at && h->serial_tick))
        return;
    h->tick_at = at;
    h->serial_tick++;
    sim_at(s, at, SIM_TICK, i, 0, h->life, (uint32_t)h->serial_tick);
}

void host_tick(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    h->tick_at = 0;
    node_run_simple(h->run, NODE_EV_TICK, host_clock(s, i));
    host_schedule(s, i);
}

/* ---- ports ---- */

static void address_up(void *impl, uint32_t request)
{
    struct impl *im = impl;
    struct host *h = &im->s->host[im->i];
    bool all = true;

    for (uint32_t k = 0; k < SERVICES; k++)
        all &= h->service[k].told == SERVICE_ACTIVE;
    if (!all && h->run->node.state == NODE_PROMOTING &&
        !mono_reached(host_clock(im->s, im->i), h->run->node.promotion.limit))
        sim_violation(im->s, "address opened before the services were active");
    h->address_request = request;
    h->address_up = true;
    sim_after_us(im->s, rng_in(&im->s->rng, 50, 3000), SIM_ADDRESS, im->i, 0, h->life,
                 request);
}

static void address_down(void *impl, uint32_t request)
{
    struct impl *im = impl;
    struct host *h = &im->s->host[im->i];

    h->address_request = request;
    h->address_up = false;
    sim_after_us(im->s, rng_in(&im->s->rng, 50, 3000), SIM_ADDRESS, im->i, 0, h->life,
                 request);
}

static void fence_raise(void *impl, uint32_t request, uint64_t epoch)
{
    struct impl *im = impl;
    struct host *h = &im->s->host[im->i];

    h->fence_request = request;
    h->fence_epoch = epoch;
    h->fence_answered = false;
    h->set_at = im->s->now;
    sim_after_us(im->s, rng_in(&im->s->rng, 100, im->s->weather.fence_us_max), SIM_FENCE,
                 im->i, 0, h->life, request);
}

static void hold_extend(void *impl, uint64_t epoch, struct mono deadline)
{
    struct impl *im = impl;
    struct sim *s = im->s;
    struct host *h = &s->host[im->i];

    if (epoch == h->revoked_epoch)
        sim_violation(s, "a lease was extended after it had been revoked");
    if (epoch != h->used_epoch &&
        (h->known_epoch != epoch || h->remembered_step != s->steps))
        sim_violation(s, "an epoch is served that this node knew to be used (L1)");
    h->used_epoch = epoch;
    h->page.epoch = epoch;
    h->page.deadline = deadline;
    if (h->address && h->address_up)
        h->nft = deadline;
    h->guard_serial++;
    sim_at(s, host_true_time(s, im->i, deadline), SIM_GUARD, im->i, 0, h->life,
           h->guard_serial);
}

static void hold_revoke(void *impl)
{
    struct impl *im = impl;
    struct host *h = &im->s->host[im->i];

    if (mono_is_set(h->page.deadline))
        h->revoked_epoch = h->page.epoch;
    h->page.deadline = (struct mono){ 0 };
    h->nft = (struct mono){ 0 };
    h->guard_serial++;
}

static void moved(void *impl, const struct journal_move *m)
{
    struct impl *im = impl;
    struct sim *s = im->s;

    sim_note(s, "%s: %s -> %s why=%s epoch=%llu", sim_node_name(im->i), m->from, m->to,
             m->why, (unsigned long long)m->epoch);
    if (s->host[im->i].run->node.state == NODE_ACTIVE)
        s->takeovers++;
}

static void remember(void *impl, uint64_t known, bool maintenance)
{
    struct impl *im = impl;

    struct host *h = &im->s->host[im->i];

    if (known > h->known_epoch)
        h->remembered_step = im->s->steps;
    h->known_epoch = known;
    h->maintenance = maintenance;
}

static void answer(void *impl, uint32_t token, enum err e)
{
    struct impl *im = impl;

    sim_note(im->s, "%s answers operator %u: %s", sim_node_name(im->i), token,
             err_name(e));
}

static size_t node_extra(void *impl, char *buf, size_t size)
{
    (void)impl;
    (void)buf;
    (void)size;
    return 0;
}

static void scanned(void *impl, const struct share_answer *a)
{
    (void)impl;
    (void)a;
}

static void exited(void *impl, const char *why)
{
    struct impl *im = impl;

    sim_note(im->s, "%s exits: %s", sim_node_name(im->i), why);
    im->s->host[im->i].exited = true;
}

static const struct address_ops address_ops = { address_up, address_down };
static const struct fence_ops fence_ops = { fence_raise };
static const struct hold_ops hold_ops = { hold_extend, hold_revoke };
static const struct journal_ops journal_ops = { moved,      remember, answer,
                                                node_extra, scanned,  exited };

/* ---- life and death ---- */

void host_boot(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];
    struct impl *im = &sim_impl[i];
    struct node_conf conf = s->conf;
    const struct node_ports ports = {
        .share = { &sim_share_ops, im },
        .services = { &sim_services_ops, im },
        .address = { &address_ops, im },
        .fence = { &fence_ops, im },
        .hold = { &hold_ops, im },
        .journal = { &journal_ops, im },
    };

    services_killed(s, i); /* leftovers of an earlier daemon, before anything else */
    for (uint32_t k = 0; k < SERVICES; k++)
        h->service[k].state = SERVICE_STOPPED;
    h->on = h->daemon = h->guard = true;
    h->paused = h->frozen = h->exited = h->killing = false;
    h->life++;
    h->page.deadline = h->nft = (struct mono){ 0 };
    h->will_epoch = h->revoked_epoch = h->used_epoch = 0;
    h->want = SERVICE_WANT_STOPPED;
    h->tick_at = 0;
    h->fence_answered = false;
    conf.incarnation = rng_next(&s->rng);
    conf.hold_ms = s->hold_ms[i];
    const char *self = sim_node_name(sim_name(i)), *peer = sim_node_name(1 - sim_name(i));

    memcpy(conf.self, self, strlen(self) + 1);
    memcpy(conf.peer, peer, strlen(peer) + 1);
    node_run_init(h->run, &conf, &s->key, &ports, h->known_epoch, h->maintenance);
    sim_note(s, "%s boots, life %u", sim_node_name(i), h->life);
    node_run_simple(h->run, NODE_EV_START, host_clock(s, i));
    host_schedule(s, i);
    sim_after_us(s, 1000, SIM_PROBE, i, 0, h->life, 0);
    sim_after_us(s, 5000, SIM_COMMIT, i, 0, h->life, 0);
}

void host_power_off(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    sim_note(s, "%s loses power", sim_node_name(i));
    h->on = h->daemon = h->guard = h->frozen = h->paused = false;
    h->address = false;
    services_killed(s, i);
    share_drop(s, i, true);
    h->will_epoch = 0;
    if (rng_permille(&s->rng, 300))
        h->known_epoch = 0; /* its disk is new */
}

void host_daemon_dies(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!h->on || !h->daemon || h->frozen)
        return;
    sim_note(s, "%s daemon dies", sim_node_name(i));
    h->daemon = h->paused = false;
    share_drop(s, i, true);
    if (h->guard && s->layers.guard)
        sim_after_us(s, (rng_in(&s->rng, 1, 2) + s->weather.kill_ms) * 1000ull,
                     SIM_KILLED, i, 2, h->life, 0);
}

void host_guard_dies(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!h->on || !h->guard || !h->daemon || h->frozen)
        return;
    sim_note(s, "%s guard dies", sim_node_name(i));
    h->guard = false;
    if (host_runs(h)) {
        node_run_simple(h->run, NODE_EV_GUARD_LOST, host_clock(s, i));
        host_schedule(s, i);
    }
}

void host_resume(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];
    bool was_frozen = h->frozen;

    if (!h->paused && !h->frozen)
        return;
    const struct mono stopped = host_clock(s, i);
    const bool stops = h->frozen && h->clock_stops;

    h->paused = h->frozen = h->clock_stops = false;
    if (stops)
        h->offset += stopped.us - host_clock(s, i).us;
    sim_note(s, "%s goes on", sim_node_name(i));
    if (was_frozen && mono_is_set(h->page.deadline))
        sim_at(s, host_true_time(s, i, h->page.deadline), SIM_GUARD, i, 0, h->life,
               h->guard_serial);
    if (!h->on || !h->daemon)
        return;
    /* What the daemon looks at first is open: its clock, its services, or its mail. */
    sim_after_us(s, rng_in(&s->rng, 0, 1000), SIM_RESUME, i, 1, h->life, 0);
}

static void wake_up(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!host_runs(h))
        return;
    if (!h->guard)
        node_run_simple(h->run, NODE_EV_GUARD_LOST, host_clock(s, i));
    services_revive(s, i);
    host_tick(s, i);
}

/* ---- events ---- */

static void on_guard(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!h->on || !h->guard || h->frozen || !s->layers.guard ||
        !mono_is_set(h->page.deadline))
        return;
    if (!mono_reached(host_clock(s, i), h->page.deadline)) { /* rounding of the clocks */
        sim_at(s, host_true_time(s, i, h->page.deadline) + 1, SIM_GUARD, i, 0, h->life,
               h->guard_serial);
        return;
    }
    sim_note(s, "%s guard: the deadline has passed", sim_node_name(i));
    sim_after_us(s, s->weather.kill_ms * 1000ull, SIM_KILLED, i, 0, h->life, 0);
}

/* arg 0: killed by the guard, 1: by the daemon, 2: by the guard after the daemon's death */
static void on_killed(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];

    if (!h->on || (e->arg == 1 && h->want != SERVICE_WANT_STOPPED))
        return; /* all were dead already, and the daemon has gone on */
    services_killed(s, e->node);
    if (e->arg == 2) {
        h->address = false;
        sim_after_us(s, rng_in(&s->rng, 500, 5000), SIM_WILL, e->node, 0, h->life, 0);
        return;
    }
    if (!host_runs(h))
        return;
    for (uint32_t k = 0; k < SERVICES; k++) {
        h->service[k].state = e->arg == 1 ? SERVICE_STOPPED : SERVICE_FAILED;
        h->service[k].told = h->service[k].state;
        node_run_service(h->run, host_clock(s, e->node), k, h->service[k].state);
    }
    if (e->arg == 0)
        services_revive(s, e->node);
    host_schedule(s, e->node);
}

static void on_address(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];

    if (e->arg2 != h->address_request || !h->on)
        return;
    if (h->paused || h->frozen) {
        sim_at(s, host_wakes(s, e->node), SIM_ADDRESS, e->node, 0, e->life, e->arg2);
        return;
    }
    const bool fails = rng_permille(&s->rng, s->weather.address_fail_pm);

    if (!fails) {
        h->address = h->address_up;
        if (h->address)
            h->nft = h->page.deadline;
    }
    node_run_event(h->run, &(struct node_event){ .kind = NODE_EV_ADDRESS,
                                                 .now = host_clock(s, e->node),
                                                 .err = fails ? ERR_IO : ERR_OK,
                                                 .request = e->arg2 });
    host_schedule(s, e->node);
}

static void on_fence(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];
    struct node_event ev = { .kind = NODE_EV_FENCE, .request = e->arg2 };

    if (e->arg2 != h->fence_request || e->life != h->life)
        return;
    if (e->arg == 0) { /* at the DBMS: it happens whether or not anybody hears of it */
        enum err err = ERR_OK;

        if (s->now < s->faults.db_down_until)
            err = ERR_IO;
        else if (h->fence_epoch < s->db.fence || (h->fence_epoch == s->db.fence &&
                                                  s->db.fence_owner != sim_name(e->node)))
            err = ERR_STALE;
        else {
            s->db.fence = h->fence_epoch;
            s->db.fence_owner = sim_name(e->node);
        }
        sim_after_us(s, rng_in(&s->rng, 100, s->weather.fence_us_max), SIM_FENCE, e->node,
                     1 + (uint32_t)err, e->life, e->arg2);
        return;
    }
    if (!host_runs(h)) {
        sim_at(s, host_wakes(s, e->node), SIM_FENCE, e->node, e->arg, e->life, e->arg2);
        return;
    }
    ev.now = host_clock(s, e->node);
    ev.err = (enum err)(e->arg - 1);
    ev.epoch = s->db.fence;
    h->fence_answered = true;
    sim_note(s, "%s fence: %s", sim_node_name(e->node), err_name(ev.err));
    node_run_event(h->run, &ev);
    host_schedule(s, e->node);
}

bool host_lacks_content(const struct sim *s, uint32_t i)
{
    return (s->weather.content_never & 1u << i) || s->now < s->faults.content_until[i];
}

/* More is published: it takes its time to get to this node. */
static void publish(struct sim *s, uint32_t i)
{
    if (rng_permille(&s->content, s->weather.content_pm))
        s->faults.content_until[i] =
            s->now + rng_in(&s->content, 1, 4 * s->conf.hold_ms) * 1000ull;
}

/* The mirror tells what it sees as often as the DBMS is probed. */
static void tell_content(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    publish(s, i);
    const bool lacks = host_lacks_content(s, i);

    if (lacks == h->run->node.content && (lacks || s->faults.content_until[i] != 0))
        sim_note(s, "%s %s", sim_node_name(i),
                 lacks ? "lacks published files" : "has all published files");
    node_run_event(h->run, &(struct node_event){ .kind = NODE_EV_CONTENT,
                                                 .now = host_clock(s, i),
                                                 .err = lacks ? ERR_NOT_FOUND : ERR_OK });
}

static void on_probe(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];

    if (e->life != h->life || !h->on || !h->daemon)
        return;
    sim_after_us(s, s->conf.scan_ms * 1000ull, SIM_PROBE, e->node, 0, e->life, 0);
    if (!host_runs(h))
        return;
    node_run_event(h->run, &(struct node_event){
                               .kind = NODE_EV_DATABASE,
                               .now = host_clock(s, e->node),
                               .err = s->now < s->faults.db_down_until ? ERR_IO : ERR_OK,
                               .epoch = s->db.fence });
    tell_content(s, e->node);
    host_schedule(s, e->node);
    weather_told(s, e->node);
}

/* arg 0: a service begins a transaction with its epoch; else it commits (arg2 = epoch). */
static void on_commit(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];
    struct service_sim *v = &h->service[0];

    if (!h->on || e->life != h->life)
        return;
    if (h->frozen) {
        sim_at(s, host_wakes(s, e->node), SIM_COMMIT, e->node, e->arg, e->life, e->arg2);
        return;
    }
    if (e->arg == 0) {
        if (check_serves(s, e->node) && v->active)
            sim_after_us(s, rng_in(&s->rng, 500, 40000), SIM_COMMIT, e->node, 1, e->life,
                         (uint32_t)v->epoch);
        sim_after_us(s, s->conf.renew_ms * 1000ull, SIM_COMMIT, e->node, 0, e->life, 0);
        return;
    }
    if (s->now < s->faults.db_down_until || !v->alive)
        return;
    if (s->layers.fence && e->arg2 != s->db.fence)
        return; /* refused: RD001 */
    if (s->layers.fence && e->arg2 < s->db.last_commit_epoch)
        sim_violation(s, "an older epoch committed after a newer one");
    if (e->arg2 != s->db.last_commit_epoch)
        s->db.replaced = HOSTS;
    else if (e->node != s->db.last_commit_owner)
        s->db.replaced = s->db.last_commit_owner;
    if (s->layers.fence && e->node == s->db.replaced)
        sim_violation(s, "a node commits again in an epoch that another has taken over");
    s->db.last_commit_owner = e->node;
    s->db.last_commit_epoch = e->arg2;
    s->db.commits++;
}

void host_event(struct sim *s, const struct event *e)
{
    struct host *h = &s->host[e->node];

    switch ((enum event_kind)e->kind) {
    case SIM_TICK:
        if (e->life == h->life && host_runs(h) && e->arg2 == (uint32_t)h->serial_tick)
            host_tick(s, e->node);
        break;
    case SIM_ADDRESS:
        if (e->life == h->life && h->daemon)
            on_address(s, e);
        break;
    case SIM_FENCE: on_fence(s, e); break;
    case SIM_PROBE: on_probe(s, e); break;
    case SIM_COMMIT: on_commit(s, e); break;
    case SIM_GUARD:
        if (e->life == h->life && e->arg2 == h->guard_serial)
            on_guard(s, e->node);
        break;
    case SIM_KILLED:
        if (e->life == h->life)
            on_killed(s, e);
        break;
    case SIM_WILL:
        if (e->life == h->life && h->on && !h->daemon) {
            sim_note(s, "%s keeper writes the will", sim_node_name(e->node));
            if (check_serves(s, e->node))
                sim_violation(s, "the will was written while services still serve");
            share_write_will(s, e->node);
        }
        break;
    case SIM_BOOT:
        if ((!h->daemon || !h->on) && !(s->fair && e->node >= NODES))
            host_boot(s, e->node);
        break;
    case SIM_RESUME:
        if (e->arg == 0)
            host_resume(s, e->node);
        else if (e->life == h->life)
            wake_up(s, e->node);
        break;
    case SIM_NONE:
    case SIM_SHARE_STEP:
    case SIM_SHARE_REPLY:
    case SIM_SHARE_TIMEOUT:
    case SIM_SERVICE:
    case SIM_SERVICE_FAULT:
    case SIM_ACTS:
    case SIM_FAULT: break;
    }
    if (h->exited) {
        h->exited = h->daemon = h->guard = false;
        services_killed(s, e->node);
        h->life++;
        share_drop(s, e->node, true);
        sim_after_us(s, rng_in(&s->rng, 10, 1000) * 1000ull, SIM_BOOT, e->node, 0, 0, 0);
    }
}
