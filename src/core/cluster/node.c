#include "core/cluster/node.h"

#include "core/cluster/internal.h"

#define TO(s) (1u << (s))

/* The whole diagram.  node_move() checks it; docs/states.md is drawn from it. */
static const struct {
    const char *name;
    uint32_t to;
} node_table[NODE_STATE_COUNT] = {
    [NODE_STOPPED] = { "stopped", TO(NODE_FOLLOWING) },
    [NODE_FOLLOWING] = { "following",
                         TO(NODE_READY) | TO(NODE_CLAIMING) | TO(NODE_DEMOTING) },
    [NODE_READY] = { "ready",
                     TO(NODE_FOLLOWING) | TO(NODE_CLAIMING) | TO(NODE_DEMOTING) },
    [NODE_CLAIMING] = { "claiming", TO(NODE_FOLLOWING) | TO(NODE_PROMOTING) },
    [NODE_PROMOTING] = { "promoting",
                         TO(NODE_ACTIVE) | TO(NODE_DEMOTING) | TO(NODE_FENCED) },
    [NODE_ACTIVE] = { "active", TO(NODE_DEMOTING) | TO(NODE_FENCED) },
    [NODE_DEMOTING] = { "demoting",
                        TO(NODE_FOLLOWING) | TO(NODE_STOPPED) | TO(NODE_FENCED) },
    [NODE_FENCED] = { "fenced", TO(NODE_FOLLOWING) | TO(NODE_STOPPED) },
};

static const char *const why_names[NODE_WHY_COUNT] = {
#define X(code, name) [code] = name,
    NODE_WHY_MAP(X)
#undef X
};

const char *node_state_name(enum node_state s)
{
    return (unsigned)s < NODE_STATE_COUNT ? node_table[s].name : "unknown";
}

const char *node_why_name(enum node_why w)
{
    return (unsigned)w < NODE_WHY_COUNT ? why_names[w] : "unknown";
}

uint32_t node_moves_from(enum node_state s)
{
    CHECK((unsigned)s < NODE_STATE_COUNT);
    return node_table[s].to;
}

uint32_t node_wait_ms(const struct node_conf *conf, uint32_t hold_ms)
{
    /* L4: 1 % of drift, rounded up, and the margin for killing the services. */
    return hold_ms + (hold_ms + 99) / 100 + conf->margin_ms;
}

struct node_action *node_act(struct node_actions *out, enum node_action_kind kind)
{
    CHECK(out->count < NODE_ACTIONS_MAX);
    struct node_action *a = &out->at[out->count++];

    *a = (struct node_action){ .kind = kind };
    return a;
}

uint32_t node_new_request(struct node *n)
{
    if (++n->last_request == 0)
        n->last_request = 1;
    return n->last_request;
}

void node_move(struct node *n, enum node_state to, enum node_why why,
               struct node_actions *out)
{
    CHECK(node_table[n->state].to & TO(to));
    struct node_action *a = node_act(out, NODE_ACT_MOVED);

    a->from = n->state;
    a->to = to;
    a->why = why;
    a->epoch = n->lease.epoch;
    n->state = to;
    n->why = why;
    n->since = n->last;
    n->due.put_now = true;
}

bool node_holds(const struct node *n)
{
    return n->lease.epoch != 0 && !mono_reached(n->last, n->lease.deadline);
}

bool node_services_all(const struct node *n, uint32_t states)
{
    for (uint32_t i = 0; i < n->conf.service_count; i++)
        if (!(SERVICE_BIT(n->services.state[i]) & states))
            return false;
    return true;
}

static bool regressed(const struct node *n)
{
    /* A gap that a crash of the file server can explain is walked; more is not (L1). */
    return n->seen.known && n->known_epoch > n->seen.top &&
           n->known_epoch - n->seen.top > NODE_GAP_MAX &&
           n->adopted_epoch < n->known_epoch;
}

uint32_t node_obstacles(const struct node *n)
{
    uint32_t ob = 0;
    const uint32_t fresh_ms = 4 * n->conf.scan_ms + n->conf.hold_ms;

    if (!mono_is_set(n->seen.read_ok) ||
        mono_since_ms(n->last, n->seen.read_ok) > fresh_ms)
        ob |= NODE_OB_SHARE;
    if (!node_services_all(n, SERVICE_BIT(SERVICE_STANDBY) | SERVICE_BIT(SERVICE_ACTIVE)))
        ob |= NODE_OB_SERVICES;
    if (!n->database.ok)
        ob |= NODE_OB_DATABASE;
    if (n->maintenance)
        ob |= NODE_OB_MAINTENANCE;
    if (regressed(n))
        ob |= NODE_OB_REGRESSED;
    if (n->duplicate)
        ob |= NODE_OB_DUPLICATE;
    if (n->seen.known &&
        (n->seen.lease_err == ERR_FOREIGN || n->seen.lease_err == ERR_VERSION))
        ob |= NODE_OB_RECORD;
    if (n->stop)
        ob |= NODE_OB_STOPPING;
    if (!n->address.want_up && n->address.up)
        ob |= NODE_OB_ADDRESS;
    if (n->database.unfit)
        ob |= NODE_OB_SCHEMA;
    if (node_just_connected(n))
        ob |= NODE_OB_CONNECTED;
    if (!n->content)
        ob |= NODE_OB_CONTENT;
    return ob;
}

bool node_fit(const struct node *n)
{
    return (n->state == NODE_FOLLOWING || n->state == NODE_READY) &&
           (node_obstacles(n) & ~(uint32_t)NODE_OB_CONTENT) == 0;
}

bool node_degraded(const struct node *n)
{
    return n->state == NODE_ACTIVE &&
           (!node_services_all(n, SERVICE_BIT(SERVICE_ACTIVE)) || !n->database.ok ||
            !n->fence.ok || !n->address.up || n->lease.moves >= n->conf.switch_max);
}

bool node_peer_fit(const struct node *n)
{
    return n->peer.alive && (n->peer.rec.ready || n->peer.rec.fit) &&
           !n->peer.rec.maintenance &&
           mono_since_ms(n->last, n->peer.changed) <= n->conf.peer_fresh_ms;
}

bool node_peer_can_take(const struct node *n)
{
    return n->peer.rec.ready && node_peer_fit(n);
}

void node_know_epoch(struct node *n, uint64_t epoch, struct node_actions *out)
{
    if (epoch <= n->known_epoch)
        return;
    /* Learned elsewhere, and the share does not show it: it may have come and gone between two
     * reads.  The next read is a change, whatever it shows: the wait of L3 begins there. */
    if (epoch > n->seen.top) {
        n->seen.print = 0;
        n->seen.changed = n->last;
    }
    n->known_epoch = epoch;
    node_act(out, NODE_ACT_REMEMBER)->epoch = epoch;
}

static void see_peer(struct node *n, const struct node_rec *rec)
{
    struct node_rec *old = &n->peer.rec;

    if (n->peer.known && (old->seq != rec->seq || old->incarnation != rec->incarnation)) {
        n->peer.alive = true; /* an old record alone does not prove that it lives */
        n->peer.changed = n->last;
    }
    n->peer.known = true;
    *old = *rec;
}

static void see_self(struct node *n, const struct node_rec *rec)
{
    if (!n->self.written)
        return;
    if (rec->incarnation != n->conf.incarnation) {
        n->duplicate = true;
        n->self.ours_in_a_row = 0;
    } else if (n->duplicate && ++n->self.ours_in_a_row >= 8) {
        n->duplicate = false;
    }
}

/* A read of the share: what it shows, and whether that is a change (L3). */
static void see_share(struct node *n, const struct node_event *ev, struct answer *a,
                      struct node_actions *out)
{
    const struct node_seen *s = &ev->seen;

    if (a->op == SHARE_SCAN) {
        n->paused = s->paused;
        n->seen.scanned = a->sent;
        if (s->have_peer)
            see_peer(n, &s->peer);
        if (s->have_self)
            see_self(n, &s->self);
    } else if (s->top != n->seen.top) {
        /* The next epoch exists: a change whose record the next scan will show. */
        n->seen.known = false;
        n->seen.changed = n->last;
        n->due.scan = n->last;
        return;
    }
    const bool connected =
        !mono_is_set(n->seen.connected) || ev->session != n->seen.session;

    if (connected) { /* a server that crashed may have forgotten an epoch we never saw */
        n->seen.connected = n->last;
        n->seen.session = ev->session;
    }
    if (connected || !n->seen.known || s->top != n->seen.top || s->print != n->seen.print)
        n->seen.changed = n->last;
    n->seen.known = true;
    n->seen.top = s->top;
    n->seen.print = s->print;
    n->seen.read_ok = n->last;
    n->seen.lease_err = s->lease_err;
    if (s->lease_err == ERR_OK) {
        n->seen.lease = s->lease;
        node_know_epoch(n, s->top, out);
    }
    a->read = true;
}

static void on_share(struct node *n, const struct node_event *ev, struct answer *a,
                     struct node_actions *out)
{
    if (ev->request == 0 || ev->request != n->io.request)
        return; /* late, doubled or not ours */
    *a = (struct answer){
        .got = true, .aux = n->io.aux, .op = n->io.op, .err = ev->err, .sent = n->io.sent
    };
    n->io.request = 0;
    if (a->aux)
        return;
    n->seen.last_err = ev->err;
    if (a->op == SHARE_PUT && ev->err == ERR_OK)
        n->self.written = true;
    if (a->op != SHARE_SCAN && a->op != SHARE_POLL)
        return;
    if (ev->err == ERR_OK) {
        see_share(n, ev, a, out);
    } else if (ev->err == ERR_NOT_FOUND) {
        /* The record has vanished: a change, so the wait of L3 begins anew (L1). */
        n->seen.known = false;
        n->seen.changed = n->last;
        if (a->op == SHARE_POLL)
            n->due.scan = n->last;
    }
}

static void on_operator(struct node *n, const struct node_event *ev,
                        struct node_actions *out)
{
    enum err e = ERR_OK;
    bool give = ev->op == NODE_OP_SWITCHOVER ||
                (ev->op == NODE_OP_MAINTENANCE_ON && n->state != NODE_FOLLOWING &&
                 n->state != NODE_READY && n->state != NODE_STOPPED);

    if (give && n->state != NODE_ACTIVE)
        e = ERR_STATE;
    else if (give && !node_peer_can_take(n))
        e = ERR_DENIED;
    else if (ev->op == NODE_OP_ADOPT && !regressed(n))
        e = ERR_STATE;

    struct node_action *a = node_act(out, NODE_ACT_ANSWER);

    a->token = ev->token;
    a->err = e;
    if (e != ERR_OK)
        return;
    if (ev->op == NODE_OP_ADOPT) {
        n->adopted_epoch = n->known_epoch;
    } else if (ev->op != NODE_OP_SWITCHOVER) {
        n->maintenance = ev->op == NODE_OP_MAINTENANCE_ON;
        n->due.put_now = true;
        node_act(out, NODE_ACT_REMEMBER)->epoch = n->known_epoch;
    }
    if (give)
        node_demote(
            n, ev->op == NODE_OP_SWITCHOVER ? NODE_WHY_OPERATOR : NODE_WHY_MAINTENANCE,
            true, out);
}

static void on_address(struct node *n, const struct node_event *ev)
{
    if (ev->request == 0 || ev->request != n->address.request)
        return;
    n->address.request = 0;
    n->address.err = ev->err;
    if (ev->err == ERR_OK)
        n->address.up = n->address.want_up;
    else
        n->address.retry = mono_after(n->last, 1000);
}

static void on_fence(struct node *n, const struct node_event *ev,
                     struct node_actions *out)
{
    if (ev->request == 0 || ev->request != n->fence.request)
        return;
    n->fence.request = 0;
    n->fence.waiting = false;
    n->fence.retry = mono_after(n->last, 1000);
    n->fence.ok = ev->err == ERR_OK;
    if (ev->err == ERR_STALE) {
        n->fence.stale = true;
        node_know_epoch(n, ev->epoch, out);
    }
}

static void on_database(struct node *n, const struct node_event *ev,
                        struct node_actions *out)
{
    n->database.known = true;
    n->database.ok = ev->err == ERR_OK;
    n->database.unfit = ev->err == ERR_VERSION;
    if (ev->err == ERR_OK) {
        n->database.epoch = ev->epoch;
        node_know_epoch(n, ev->epoch, out);
    }
}

/* Nothing but an event changes it: who cannot look any more keeps what was known. */
static void on_content(struct node *n, const struct node_event *ev)
{
    n->content = ev->err == ERR_OK;
}

/* What the event tells, whatever the state.  Actions only where no state has a say. */
static void absorb(struct node *n, const struct node_event *ev, struct answer *a,
                   struct node_actions *out)
{
    switch (ev->kind) {
    case NODE_EV_START:
        if (n->state == NODE_STOPPED && !n->stop)
            node_follow(n, NODE_WHY_START, out);
        break;
    case NODE_EV_TICK: break;
    case NODE_EV_SHARE: on_share(n, ev, a, out); break;
    case NODE_EV_SERVICE:
        if (ev->service < n->conf.service_count &&
            (unsigned)ev->state < SERVICE_STATE_COUNT)
            n->services.state[ev->service] = ev->state;
        break;
    case NODE_EV_ADDRESS: on_address(n, ev); break;
    case NODE_EV_FENCE: on_fence(n, ev, out); break;
    case NODE_EV_DATABASE: on_database(n, ev, out); break;
    case NODE_EV_CONTENT: on_content(n, ev); break;
    case NODE_EV_OPERATOR: on_operator(n, ev, out); break;
    case NODE_EV_AUX: n->due.aux = true; break;
    case NODE_EV_GUARD_LOST:
    case NODE_EV_STOP:
        if (!n->stop) {
            n->stop = true;
            n->stop_why = ev->kind == NODE_EV_STOP ? NODE_WHY_STOP : NODE_WHY_GUARD_LOST;
        }
        break;
    }
}

void node_step(struct node *n, const struct node_event *ev, struct node_actions *out)
{
    struct answer a = { .got = false };

    CHECK(mono_reached(ev->now, n->last));
    n->last = ev->now;
    out->count = 0;
    /* L6 before anything else: an answer that comes after the deadline changes nothing.
     */
    if (n->lease.epoch != 0 && mono_reached(n->last, n->lease.deadline)) {
        if (n->state == NODE_DEMOTING && n->demotion.revoked)
            n->lease.epoch = 0; /* all is down, only the release was not heard (L7) */
        else
            node_fence_self(n, NODE_WHY_LEASE_LOST, out);
    }
    absorb(n, ev, &a, out);
    switch (n->state) {
    case NODE_STOPPED: break;
    case NODE_FOLLOWING:
    case NODE_READY: node_watch(n, &a, out); break;
    case NODE_CLAIMING: node_claiming(n, &a, out); break;
    case NODE_PROMOTING:
    case NODE_ACTIVE: node_serve(n, &a, out); break;
    case NODE_DEMOTING: node_demoting(n, &a, out); break;
    case NODE_FENCED: node_fenced(n, out); break;
    case NODE_STATE_COUNT: CHECK(n->state < NODE_STATE_COUNT); break;
    }
    if (n->state != NODE_STOPPED)
        node_share_next(n, out);
    node_check(n);
}

struct mono node_next_wakeup(const struct node *n)
{
    if (n->state == NODE_STOPPED)
        return MONO_FOREVER;
    return mono_min(node_share_wakeup(n), node_serve_wakeup(n));
}

void node_check(const struct node *n)
{
    const bool serving = n->state == NODE_PROMOTING || n->state == NODE_ACTIVE;

    CHECK((unsigned)n->state < NODE_STATE_COUNT);
    /* Who serves holds a lease whose deadline lies ahead. */
    CHECK(!serving || node_holds(n));
    /* Services are told "active" only with the epoch that we hold. */
    CHECK(n->services.want != SERVICE_WANT_ACTIVE || serving);
    /* Never serve without having known of the epoch: it must survive in local memory. */
    CHECK(!serving || n->known_epoch >= n->lease.epoch);
    CHECK(!n->address.want_up || n->state == NODE_PROMOTING || n->state == NODE_ACTIVE);
    CHECK(n->lease.epoch != 0 || n->state != NODE_ACTIVE);
}

void node_init(struct node *n, const struct node_conf *conf, uint64_t known_epoch,
               bool maintenance)
{
    memset(n, 0, sizeof(*n));
    n->conf = *conf;
    CHECK(conf->service_count <= SERVICES_MAX);
    n->known_epoch = known_epoch;
    n->maintenance = maintenance;
    n->why = NODE_WHY_NONE;
}
