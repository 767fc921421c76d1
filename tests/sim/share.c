/*
 * The simulated share, and the keeper's way to it: what is asked now may land later, never,
 * or be answered twice.
 */
#include "sim.h"

static uint32_t latency(struct sim *s)
{
    struct weather *w = &s->weather;
    uint32_t us = rng_in(&s->rng, w->latency_us_min, w->latency_us_max);

    if (s->now < s->faults.share_slow_until || rng_permille(&s->rng, w->slow_pm))
        us += rng_in(&s->rng, 1, s->conf.hold_ms) * 1000;
    return us;
}

/* A request that takes long, but not so long that it does not count any more. */
static uint32_t extra_delay(struct sim *s, enum share_op op)
{
    const struct weather *w = &s->weather;
    uint32_t permille = 0;

    if (op == SHARE_CLAIM || op == SHARE_RENEW)
        permille = w->slow_lease_pm;
    else if (op == SHARE_SCAN || op == SHARE_POLL)
        permille = w->slow_read_pm;
    if (!rng_permille(&s->rng, permille))
        return 0;
    return rng_in(&s->rng, 0, s->conf.hold_ms / 3) * 1000;
}

static uint32_t share_timeout_ms(const struct sim *s)
{
    return s->conf.hold_ms / 2;
}

void share_init(struct sim *s)
{
    struct share_sim *sh = &s->share;
    struct lease_rec first = { .epoch = 1,
                               .owner = "init",
                               .seq = 1,
                               .released = true,
                               .hold_ms = s->conf.hold_ms,
                               .why = "init" };
    struct text t;
    char body[200];
    enum err e;

    memset(sh, 0, sizeof(*sh));
    text_init(&t, body, sizeof(body));
    text_add(&t, "{\"v\":1,\"cluster\":\"%s\",\"name\":\"sim\"}", s->conf.cluster);
    e = record_seal(sh->cluster, sizeof(sh->cluster), &sh->cluster_n, &s->key,
                    STR("cluster"), str_of(body));
    CHECK(e == ERR_OK);
    e = record_seal(sh->pause_body, sizeof(sh->pause_body), &sh->pause_n, &s->key,
                    STR("request/pause"), STR("{\"v\":1}"));
    CHECK(e == ERR_OK);
    memcpy(first.cluster, s->conf.cluster, sizeof(first.cluster));
    e = lease_encode(sh->now[1].bytes, &s->key, &first);
    CHECK(e == ERR_OK);
    sh->now[1].n = RECORD_LEASE_BYTES;
    sh->exists[1] = true;
    sh->top = 1;
}

/* Epochs that were used and released before the story begins. */
void share_age(struct sim *s, uint64_t epochs)
{
    struct share_sim *sh = &s->share;

    for (uint64_t n = 2; n <= epochs; n++) {
        struct lease_rec r = { .epoch = n,
                               .owner = "init",
                               .seq = 1,
                               .released = true,
                               .hold_ms = s->conf.hold_ms,
                               .why = "init" };

        memcpy(r.cluster, s->conf.cluster, sizeof(r.cluster));
        const enum err e = lease_encode(sh->now[n].bytes, &s->key, &r);

        CHECK(e == ERR_OK);
        sh->now[n].n = RECORD_LEASE_BYTES;
        sh->exists[n] = true;
        sh->top = n;
    }
}

static void find_top(struct share_sim *sh)
{
    sh->top = 0;
    for (uint64_t n = EPOCHS - 1; n > 0 && sh->top == 0; n--)
        if (sh->exists[n])
            sh->top = n;
}

/* Somebody removes the newest record, when everybody has seen it (or it could not be known). */
void share_remove_top(struct sim *s)
{
    struct share_sim *sh = &s->share;

    for (uint32_t i = 0; i < HOSTS; i++)
        if (s->host[i].on && s->host[i].run->node.known_epoch < sh->top)
            return;
    if (sh->top <= 1)
        return;
    sim_note(s, "epoch %llu is removed from the share", (unsigned long long)sh->top);
    sh->exists[sh->top] = false;
    sh->now[sh->top].n = sh->old[sh->top].n = 0;
    find_top(sh);
}

/* The file server forgets the newest records, or is restored from an old copy. */
void share_restore(struct sim *s, uint64_t back)
{
    struct share_sim *sh = &s->share;

    sh->session++; /* it has crashed, or was stopped for it: every connection is gone */
    for (uint64_t k = 0; k < back && sh->top > 1; k++) {
        sh->exists[sh->top] = false;
        sh->now[sh->top].n = sh->old[sh->top].n = 0;
        find_top(sh);
    }
}

static void write_epoch(struct sim *s, uint64_t n, const char *bytes)
{
    struct share_sim *sh = &s->share;

    sh->old[n] = sh->now[n];
    sh->old[n].until = s->now;
    memcpy(sh->now[n].bytes, bytes, RECORD_LEASE_BYTES);
    sh->now[n].n = RECORD_LEASE_BYTES;
}

void share_write_will(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];
    uint64_t n = h->will_epoch;

    if (n != 0 && n < EPOCHS - 1 && s->share.exists[n] && !s->share.exists[n + 1] &&
        s->share.now[n].n == RECORD_LEASE_BYTES &&
        memcmp(s->share.now[n].bytes, h->will_over, RECORD_LEASE_BYTES) == 0)
        write_epoch(s, n, h->will);
    h->will_epoch = 0;
}

/* What a read of epoch n sees: now, torn, or a little while ago. */
static void read_epoch(struct sim *s, uint64_t n, struct pending *p)
{
    struct share_sim *sh = &s->share;
    const struct version *v = &sh->now[n], *old = &sh->old[n];

    if (old->n && rng_permille(&s->rng, s->weather.stale_pm) &&
        s->now - old->until <= (uint64_t)s->weather.stale_ms * 1000)
        v = old;
    p->lease_n = v->n;
    memcpy(p->lease, v->bytes, v->n);
    if (old->n && v->n && rng_permille(&s->rng, s->weather.torn_pm)) {
        uint32_t cut = rng_in(&s->rng, 1, RECORD_LEASE_BYTES - 1);

        memcpy(p->lease + cut, old->bytes + cut, RECORD_LEASE_BYTES - cut);
    }
}

static void step_scan(struct sim *s, struct pending *p)
{
    struct share_sim *sh = &s->share;

    if (p->step == 0) {
        p->top = sh->top;
        return;
    }
    if (p->top && !sh->exists[p->top]) {
        p->err = ERR_NOT_FOUND;
        return;
    }
    if (p->top)
        read_epoch(s, p->top, p);
    memcpy(p->rec, sh->rec, sizeof(p->rec));
    memcpy(p->rec_n, sh->rec_n, sizeof(p->rec_n));
    p->pause = sh->pause;
}

static void step_poll(struct sim *s, struct pending *p)
{
    if (p->step == 0) {
        p->top = p->epoch;
        if (!s->share.exists[p->epoch])
            p->err = ERR_NOT_FOUND;
        else
            read_epoch(s, p->epoch, p);
    } else if (s->share.exists[p->epoch + 1]) {
        p->top = p->epoch + 1;
        p->lease_n = 0;
    }
}

/* Which connection of this node it is, over all restarts of the server and of the keeper. */
static uint32_t session_of(const struct sim *s, uint32_t i)
{
    return s->share.session * 1000 + s->host[i].session;
}

static void step_claim(struct sim *s, uint32_t i, struct pending *p)
{
    struct share_sim *sh = &s->share;

    if (p->step == 0) {
        if (p->asked_session != session_of(s, i)) {
            p->err = ERR_CLOSED;
        } else if (s->now < s->faults.share_denied_until) {
            p->err = ERR_DENIED;
        } else if (sh->exists[p->epoch]) {
            p->err = ERR_EXISTS;
        } else {
            sh->exists[p->epoch] = true;
            sh->now[p->epoch].n = sh->old[p->epoch].n = 0;
            find_top(sh);
        }
    } else if (s->now < s->faults.share_full_until) {
        p->err = ERR_FULL; /* the empty file stays */
    } else if (sh->exists[p->epoch]) {
        write_epoch(s, p->epoch, p->body);
    } else {
        p->err = ERR_NOT_FOUND;
    }
}

static bool is_marked(const struct version *v, const char *mark)
{
    return memmem(v->bytes, v->n, mark, strlen(mark)) != NULL;
}

static void rewrite(struct sim *s, const struct pending *p)
{
    struct str old = { s->share.now[p->epoch].bytes, s->share.now[p->epoch].n };
    struct str new = { p->body, p->body_n };
    struct lease_rec was, is;

    if (lease_decode(&was, &s->key, s->conf.cluster, p->epoch, old) == ERR_OK &&
        lease_decode(&is, &s->key, s->conf.cluster, p->epoch, new) == ERR_OK &&
        was.incarnation != is.incarnation)
        sim_violation(s, "a daemon wrote over another's lease record");
    write_epoch(s, p->epoch, p->body);
}

static void step_rewrite(struct sim *s, struct pending *p)
{
    if (p->step == 0) {
        if (s->now < s->faults.share_denied_until)
            p->err = ERR_DENIED;
        else if (!s->share.exists[p->epoch])
            p->err = ERR_NOT_FOUND;
        else if (!is_marked(&s->share.now[p->epoch], p->mark))
            p->err = ERR_STALE;
        else
            rewrite(s, p);
    } else if (s->share.exists[p->epoch + 1]) {
        p->err = ERR_STALE;
    }
}

static void step_put(struct sim *s, uint32_t i, struct pending *p)
{
    if (p->step > 0)
        return;
    if (s->now < s->faults.share_denied_until)
        p->err = ERR_DENIED;
    else if (s->now < s->faults.share_full_until)
        p->err = ERR_FULL;
    else {
        memcpy(s->share.rec[sim_name(i)], p->body, p->body_n);
        s->share.rec_n[sim_name(i)] = p->body_n;
    }
}

static void land(struct sim *s, uint32_t i, struct pending *p)
{
    switch (p->op) {
    case SHARE_SCAN: step_scan(s, p); break;
    case SHARE_POLL: step_poll(s, p); break;
    case SHARE_CLAIM: step_claim(s, i, p); break;
    case SHARE_RENEW:
    case SHARE_RELEASE: step_rewrite(s, p); break;
    case SHARE_PUT: step_put(s, i, p); break;
    case SHARE_PRUNE:
    case SHARE_GET:
    case SHARE_REMOVE: break;
    }
}

static bool wants_step(const struct pending *p)
{
    return p->step < 2 && p->err == ERR_OK;
}

static void arm(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];

    if (!h->timeout_armed)
        sim_at(s, h->gives_up, SIM_SHARE_TIMEOUT, i, 0, 0, 0);
    h->timeout_armed = true;
}

static void submit(void *impl, const struct share_request *rq)
{
    struct impl *im = impl;
    struct sim *s = im->s;
    struct host *h = &s->host[im->i];
    uint32_t slot = 0;

    for (uint32_t k = 1; k < PENDING; k++)
        if (!h->pending[k].used ||
            (h->pending[slot].used && h->pending[k].serial < h->pending[slot].serial))
            slot = k;
    struct pending *p = &h->pending[slot];

    p->used = true;
    p->answered = p->dead = p->pause = false;
    p->id = rq->id;
    p->life = h->life;
    p->serial = ++h->pending_serial;
    p->op = rq->op;
    p->session = s->share.session;
    p->asked_session = rq->session;
    memcpy(p->mark, rq->mark, sizeof(p->mark));
    p->epoch = rq->epoch < EPOCHS - 2 ? rq->epoch : EPOCHS - 2;
    p->top = 0;
    p->step = 0;
    p->err = ERR_OK;
    p->lease_n = 0;
    p->body_n = rq->body.n < sizeof(p->body) ? rq->body.n : 0;
    memcpy(p->body, rq->body.p ? rq->body.p : "", p->body_n);
    if (rq->op == SHARE_RELEASE && check_serves(s, im->i))
        sim_violation(s, "released while services of that node still serve (L7)");
    if (rq->op == SHARE_RELEASE && s->layers.kernel && check_address_open(s, im->i))
        sim_violation(s, "released while the address of that node is still open (L7)");
    if (rq->will.n)
        memcpy(p->will, rq->will.p, rq->will.n);
    if (s->trace_io)
        sim_note(s, "%s asks op %d epoch %llu id %u", sim_node_name(im->i), rq->op,
                 (unsigned long long)rq->epoch, rq->id);
    uint64_t us = latency(s);

    if (rq->op == SHARE_CLAIM) {
        weather_claim(s, im->i);
        us += extra_delay(s, rq->op);
    }
    if (rq->op == SHARE_RENEW)
        us += weather_late_renewal(s, im->i);
    sim_after_us(s, us, SIM_SHARE_STEP, im->i, slot, h->life, p->serial);
    h->in_flight = slot;
    h->gives_up = s->now + share_timeout_ms(s) * 1000ull;
    arm(s, im->i);
}

const struct share_ops sim_share_ops = { submit };

static void deliver(struct sim *s, uint32_t i, struct pending *p, enum err e)
{
    struct host *h = &s->host[i];
    const struct share_sim *sh = &s->share;
    struct share_answer a = {
        .id = p->id, .err = e, .top = p->top, .session = session_of(s, i)
    };

    if (!host_runs(h) || h->life != p->life)
        return;
    a.lease = (struct str){ p->lease, p->lease_n };
    a.cluster = (struct str){ sh->cluster, sh->cluster_n };
    const uint32_t self = sim_name(i);

    a.self = (struct str){ p->rec[self], p->rec_n[self] };
    a.peer = (struct str){ p->rec[1 - self], p->rec_n[1 - self] };
    if (p->pause) {
        a.request_count = 1;
        memcpy(a.requests[0].name, "pause", sizeof("pause"));
        a.requests[0].body = (struct str){ sh->pause_body, sh->pause_n };
    }
    if (s->trace_io)
        sim_note(s, "%s hears id %u: %s top %llu", sim_node_name(i), p->id, err_name(e),
                 (unsigned long long)a.top);
    node_run_share(h->run, host_clock(s, i), &a);
    host_schedule(s, i);
    if (p->op == SHARE_CLAIM || (p->op == SHARE_RENEW && rng_permille(&s->rng, 100)))
        weather_moment(s, i);
}

/* The daemon (or only its keeper) is gone: what is on its way may still land. */
void share_drop(struct sim *s, uint32_t i, bool may_land)
{
    for (uint32_t k = 0; k < PENDING; k++) {
        struct pending *p = &s->host[i].pending[k];

        p->answered = true;
        if (!may_land || rng_permille(&s->rng, 500))
            p->dead = true;
    }
}

/* The keeper's will follows what it has written itself. */
static void bequeath(struct host *h, const struct pending *p)
{
    if (p->err != ERR_OK)
        return;
    if (p->op == SHARE_RELEASE)
        h->will_epoch = 0;
    if (p->op != SHARE_CLAIM && p->op != SHARE_RENEW)
        return;
    h->will_epoch = p->epoch;
    memcpy(h->will, p->will, sizeof(h->will));
    memcpy(h->will_over, p->body, sizeof(h->will_over));
}

static void on_step(struct sim *s, const struct event *e, struct pending *p)
{
    struct faults *f = &s->faults;
    struct weather *w = &s->weather;

    if (p->session != s->share.session) { /* its connection has ended */
        p->err = ERR_IO;
        sim_after_us(s, latency(s), SIM_SHARE_REPLY, e->node, e->arg, e->life, e->arg2);
        return;
    }
    if (s->now < f->cut_until[e->node]) { /* TCP tries again, or the keeper is killed */
        if (rng_permille(&s->rng, 500))
            sim_at(s, f->cut_until[e->node] + 1000, SIM_SHARE_STEP, e->node, e->arg,
                   e->life, e->arg2);
        return;
    }
    if (s->now < f->share_down_until || rng_permille(&s->rng, w->error_pm)) {
        if (rng_permille(&s->rng, 500)) {
            p->err = ERR_IO;
            sim_after_us(s, latency(s), SIM_SHARE_REPLY, e->node, e->arg, e->life,
                         e->arg2);
        }
        return;
    }
    if (rng_permille(&s->rng, w->hang_pm)) { /* lands much later */
        if (p->op == SHARE_RENEW)
            weather_hung(s);
        sim_after_us(s, rng_in(&s->rng, 1, 4 * s->conf.hold_ms) * 1000ull, SIM_SHARE_STEP,
                     e->node, e->arg, e->life, e->arg2);
        return;
    }
    land(s, e->node, p);
    p->step++;
    if (!wants_step(p) && !p->answered)
        bequeath(&s->host[e->node], p);
    uint64_t us = latency(s); /* in this order, whatever the compiler */

    us += extra_delay(s, p->op);
    sim_after_us(s, us, wants_step(p) ? SIM_SHARE_STEP : SIM_SHARE_REPLY, e->node, e->arg,
                 e->life, e->arg2);
}

/* The daemon does not run just now: what is for it waits in the socket. */
static bool waits(const struct host *h, const struct pending *p)
{
    return (h->paused || h->frozen) && h->life == p->life;
}

static void on_reply(struct sim *s, const struct event *e, struct pending *p)
{
    struct weather *w = &s->weather;
    bool again = rng_permille(&s->rng, w->dup_pm);

    if (s->now < s->faults.deaf_until[e->node] || rng_permille(&s->rng, w->lost_pm))
        return;
    if (p->answered && !rng_permille(&s->rng, w->late_pm))
        return;
    if (waits(&s->host[e->node], p)) {
        sim_at(s, host_wakes(s, e->node), SIM_SHARE_REPLY, e->node, e->arg, e->life,
               e->arg2);
        return;
    }
    p->answered = true;
    deliver(s, e->node, p, p->err);
    if (again)
        sim_after_us(s, rng_in(&s->rng, 0, s->conf.hold_ms / 2) * 1000ull,
                     SIM_SHARE_REPLY, e->node, e->arg, e->life, e->arg2);
}

static void on_timeout(struct sim *s, uint32_t i)
{
    struct host *h = &s->host[i];
    struct pending *p = &h->pending[h->in_flight];

    h->timeout_armed = false;
    if (!p->used || p->answered)
        return;
    if (waits(h, p))
        h->gives_up = host_wakes(s, i);
    if (s->now < h->gives_up) {
        arm(s, i);
        return;
    }
    p->answered = true;
    h->session++; /* a new keeper connects anew, and knows of no will */
    h->will_epoch = 0;
    if (rng_permille(&s->rng, 500))
        p->dead = true; /* the keeper was killed before it had sent the rest */
    deliver(s, i, p, ERR_TIMEOUT);
}

void share_event(struct sim *s, const struct event *e)
{
    struct pending *p = &s->host[e->node].pending[e->arg];

    if (e->kind == SIM_SHARE_TIMEOUT) {
        on_timeout(s, e->node);
        return;
    }
    if (p->serial != e->arg2 || !p->used)
        return;
    if (e->kind == SIM_SHARE_REPLY)
        on_reply(s, e, p);
    else if (!p->dead)
        on_step(s, e, p);
}
