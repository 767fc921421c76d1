/*
 * Holder: promotion step by step, serving, standing down, and the end of the lease.
 */
#include "core/cluster/internal.h"

static void want_services(struct node *n, enum service_want want,
                          struct node_actions *out)
{
    struct node_action *a = node_act(out, NODE_ACT_SERVICES);

    a->want = want;
    a->epoch = n->lease.epoch;
    n->services.want = want;
    /* What they were says nothing any more: each is reported again when it has got there. */
    for (uint32_t i = 0; i < n->conf.service_count; i++)
        if (n->services.state[i] == SERVICE_STANDBY ||
            n->services.state[i] == SERVICE_ACTIVE)
            n->services.state[i] = SERVICE_CHANGING;
}

void node_address(struct node *n, bool up, struct node_actions *out)
{
    struct node_action *a =
        node_act(out, up ? NODE_ACT_ADDRESS_UP : NODE_ACT_ADDRESS_DOWN);

    a->request = node_new_request(n);
    n->address.request = a->request;
    n->address.want_up = up;
    n->address.err = ERR_OK;
    if (!up)
        n->address.up = true; /* until the answer says that it is gone */
}

static void extend(struct node *n, struct node_actions *out)
{
    struct node_action *a = node_act(out, NODE_ACT_EXTEND);

    a->epoch = n->lease.epoch;
    a->deadline = n->lease.deadline;
}

static void raise_fence(struct node *n, struct node_actions *out)
{
    struct node_action *a = node_act(out, NODE_ACT_FENCE);

    a->request = node_new_request(n);
    a->epoch = n->lease.epoch;
    n->fence.request = a->request;
    n->fence.retry = MONO_FOREVER;
}

/* The epoch is ours: fence first, then the services, then the address. */
void node_promote(struct node *n, struct node_actions *out)
{
    n->takeover.claimed = n->last;
    n->takeover.fenced = n->takeover.activated = n->takeover.opened = (struct mono){ 0 };
    node_know_epoch(n, n->lease.epoch, out);
    node_move(n, NODE_PROMOTING, NODE_WHY_CLAIMED, out);
    extend(n, out);
    n->lease.calm_since = n->last;
    n->fence.ok = n->fence.stale = false;
    n->fence.waiting = true;
    n->fence.give_up = mono_after(n->last, n->conf.fence_wait_ms);
    n->promotion.services_told = false;
    n->promotion.walk_epoch = 0; /* the walk has led here: its records are history */
    n->promotion.limit = mono_after(n->last, n->conf.promote_limit_ms);
    raise_fence(n, out);
}

void node_follow(struct node *n, enum node_why why, struct node_actions *out)
{
    n->lease.epoch = 0;
    n->fence.request = 0;
    n->fence.ok = n->fence.waiting = false;
    node_move(n, NODE_FOLLOWING, why, out);
    if (why == NODE_WHY_START) {
        node_act(out, NODE_ACT_REVOKE);
        node_address(n, false, out); /* one left by a daemon that crashed */
    }
    want_services(n, SERVICE_WANT_STANDBY, out);
    n->due.scan = n->last;
}

/* Past the deadline, or standing down takes too long: everything ends now (L6). */
void node_fence_self(struct node *n, enum node_why why, struct node_actions *out)
{
    node_act(out, NODE_ACT_REVOKE);
    node_act(out, NODE_ACT_KILL);
    for (uint32_t i = 0; i < n->conf.service_count; i++)
        n->services.state[i] = SERVICE_CHANGING; /* until reported dead after this */
    n->services.want = SERVICE_WANT_STOPPED;
    n->lease.epoch = 0;
    n->fence.request = 0;
    n->fence.ok = n->fence.waiting = false;
    node_address(n, false, out);
    if (n->state != NODE_FENCED)
        node_move(n, NODE_FENCED, why, out);
}

void node_fenced(struct node *n, struct node_actions *out)
{
    if (!node_services_all(n, SERVICE_BIT(SERVICE_STOPPED)))
        return;
    if (n->address.request != 0)
        return;
    if (n->stop) {
        node_move(n, NODE_STOPPED, n->stop_why, out);
        node_act(out, NODE_ACT_EXIT)->why = n->stop_why;
        return;
    }
    node_follow(n, NODE_WHY_CLEANED, out);
}

void node_demote(struct node *n, enum node_why why, bool to_peer,
                 struct node_actions *out)
{
    n->demotion.why = why;
    n->demotion.to_peer = to_peer && node_peer_fit(n);
    n->demotion.to_self = false;
    n->demotion.revoked = false;
    n->demotion.began = n->last;
    n->demotion.limit = mono_after(n->last, n->conf.demote_limit_ms);
    n->demotion.retry = n->last;
    n->fence.waiting = false;
    node_move(n, NODE_DEMOTING, why, out);
    /* Standby is quicker than stopped: the peer need not wait for the rest. */
    want_services(
        n, n->stop && n->lease.epoch == 0 ? SERVICE_WANT_STOPPED : SERVICE_WANT_STANDBY,
        out);
    node_address(n, false, out);
}

/* L2: the renewal counts only if it ended before the previous deadline. */
static void renewed(struct node *n, const struct answer *a, struct node_actions *out)
{
    struct mono deadline = mono_after(a->sent, n->conf.hold_ms);

    CHECK(!mono_reached(n->last, n->lease.deadline)); /* node_step() saw to that */
    if (deadline.us > n->lease.deadline.us)
        n->lease.deadline = deadline;
    extend(n, out);
}

/* What an answer to a renewal means, in any state of a holder; true: the lease is gone.
 */
static bool renewal(struct node *n, const struct answer *a, struct node_actions *out)
{
    if (!a->got || a->aux || a->op != SHARE_RENEW || n->lease.epoch == 0)
        return false;
    if (n->state == NODE_DEMOTING && n->demotion.revoked)
        return false; /* too late: what was revoked is not given again */
    if (a->err == ERR_OK) {
        renewed(n, a, out);
    } else if (a->err == ERR_STALE || a->err == ERR_NOT_FOUND) {
        node_fence_self(n, a->err == ERR_STALE ? NODE_WHY_SUPERSEDED : NODE_WHY_VANISHED,
                        out);
        return true;
    } else {
        /* Unknown or failed (L8): try again, the deadline rules; a timeout has cost its time
         * already, a quick refusal is given a pause. */
        n->due.renew =
            a->err == ERR_TIMEOUT ? n->last : mono_after(n->last, n->conf.poll_ms);
    }
    return false;
}

/* Does a service keep us from serving as we should? */
static bool service_trouble(const struct node *n)
{
    if (n->state == NODE_PROMOTING) {
        if (!n->promotion.services_told)
            return false;
        if (mono_reached(n->last, n->promotion.limit))
            return !node_services_all(n, SERVICE_BIT(SERVICE_ACTIVE));
        return !node_services_all(n, ~SERVICE_BIT(SERVICE_FAILED));
    }
    /* While it restarts in place (starting, standby, changing) it is given its time. */
    return !node_services_all(
        n, ~(SERVICE_BIT(SERVICE_FAILED) | SERVICE_BIT(SERVICE_STOPPED)));
}

/* A service failed: hand over if somebody is prepared and this is no ping-pong. */
static bool hand_over(struct node *n, struct node_actions *out)
{
    if (!service_trouble(n))
        return false;
    n->lease.calm_since = n->last;
    if (n->paused || n->lease.moves >= n->conf.switch_max || !node_peer_fit(n))
        return false;
    n->lease.moves++;
    node_demote(n,
                n->state == NODE_PROMOTING ? NODE_WHY_PROMOTION_FAILED
                                           : NODE_WHY_SERVICE_FAILED,
                true, out);
    return true;
}

static void promotion_steps(struct node *n, struct node_actions *out)
{
    if (n->fence.waiting && !mono_reached(n->last, n->fence.give_up))
        return;
    if (!n->promotion.services_told) {
        n->fence.waiting = false;
        n->takeover.fenced = n->last;
        n->promotion.services_told = true;
        want_services(n, SERVICE_WANT_ACTIVE, out);
        return;
    }
    if (!node_services_all(n, SERVICE_BIT(SERVICE_ACTIVE)) &&
        !mono_reached(n->last, n->promotion.limit))
        return;
    if (!n->address.want_up) {
        n->takeover.activated = n->last;
        node_address(n, true, out);
    } else if (n->address.request == 0) {
        n->takeover.opened = n->last;
        node_move(n, NODE_ACTIVE, NODE_WHY_PROMOTED, out);
    }
}

/* Things that failed and are tried again while we serve. */
static void mend(struct node *n, struct node_actions *out)
{
    if (!n->fence.ok && n->fence.request == 0 && n->database.ok &&
        mono_reached(n->last, n->fence.retry))
        raise_fence(n, out);
    if (n->address.request == 0 && !n->address.up && n->address.want_up &&
        mono_reached(n->last, n->address.retry))
        node_address(n, true, out);
    if (n->lease.moves != 0 &&
        mono_since_ms(n->last, n->lease.calm_since) >= n->conf.switch_window_ms)
        n->lease.moves = 0;
}

void node_serve(struct node *n, const struct answer *a, struct node_actions *out)
{
    if (renewal(n, a, out))
        return;
    if (a->read && n->seen.top > n->lease.epoch) {
        node_fence_self(n, NODE_WHY_SUPERSEDED, out);
        return;
    }
    if (n->fence.stale || n->known_epoch > n->lease.epoch) {
        /* The DBMS or the peer knows a higher epoch: walk on (L1). */
        n->promotion.walk_waited = false;
        node_demote(n, NODE_WHY_FENCE_STALE, false, out);
        n->demotion.to_self = true;
        return;
    }
    if (n->stop) {
        node_demote(n, n->stop_why, !n->paused, out);
        return;
    }
    if (mono_reached(n->last, mono_before(n->lease.deadline, n->conf.demote_before_ms))) {
        node_demote(n, NODE_WHY_SHARE_LOST, true, out);
        return;
    }
    if (hand_over(n, out))
        return;
    if (n->state == NODE_PROMOTING)
        promotion_steps(n, out);
    else
        mend(n, out);
}

/* The lease is given up.  A node that is stopping stops its services now, then ends. */
static void demoted(struct node *n, struct node_actions *out)
{
    n->lease.epoch = 0;
    if (!n->stop) {
        node_follow(n, NODE_WHY_STOOD_DOWN, out);
    } else if (n->services.want != SERVICE_WANT_STOPPED) {
        want_services(n, SERVICE_WANT_STOPPED, out);
        n->demotion.limit = mono_after(n->last, n->conf.demote_limit_ms);
    } else if (node_services_all(n, SERVICE_BIT(SERVICE_STOPPED) |
                                        SERVICE_BIT(SERVICE_FAILED))) {
        node_move(n, NODE_STOPPED, n->stop_why, out);
        node_act(out, NODE_ACT_EXIT)->why = n->stop_why;
    } else if (mono_reached(n->last, n->demotion.limit)) {
        node_fence_self(n, NODE_WHY_STUCK, out);
    }
}

void node_demoting(struct node *n, const struct answer *a, struct node_actions *out)
{
    uint32_t down = SERVICE_BIT(SERVICE_STOPPED) | SERVICE_BIT(SERVICE_FAILED);

    if (renewal(n, a, out))
        return;
    if (n->services.want == SERVICE_WANT_STANDBY)
        down |= SERVICE_BIT(SERVICE_STANDBY);
    if (!n->demotion.revoked) {
        if (!node_services_all(n, down) || n->address.request != 0) {
            if (mono_reached(n->last, n->demotion.limit))
                node_fence_self(n, NODE_WHY_STUCK, out);
            return;
        }
        node_act(out, NODE_ACT_REVOKE); /* silences the address even if it would not go */
        n->demotion.revoked = true;
    }
    const bool answered = a->got && !a->aux && a->op == SHARE_RELEASE;

    if (n->lease.epoch == 0 || (answered && (a->err == ERR_OK || a->err == ERR_STALE ||
                                             a->err == ERR_NOT_FOUND)))
        demoted(n, out);
    else if (answered) /* not as fast as a share answers that refuses */
        n->demotion.retry = mono_after(n->last, n->conf.poll_ms);
}

struct mono node_serve_wakeup(const struct node *n)
{
    const bool passive = n->state == NODE_FOLLOWING || n->state == NODE_READY;
    struct mono t = n->lease.epoch != 0 ? n->lease.deadline : MONO_FOREVER;

    if (n->state == NODE_PROMOTING || n->state == NODE_ACTIVE)
        t = mono_min(t, mono_before(n->lease.deadline, n->conf.demote_before_ms));
    if (n->state == NODE_PROMOTING) {
        if (n->fence.waiting)
            t = mono_min(t, n->fence.give_up);
        if (n->promotion.services_told && !mono_reached(n->last, n->promotion.limit))
            t = mono_min(t, n->promotion.limit);
    }
    if (n->state == NODE_ACTIVE && !n->fence.ok && n->fence.request == 0 &&
        n->database.ok)
        t = mono_min(t, n->fence.retry);
    if (n->state == NODE_DEMOTING && (!n->demotion.revoked || n->lease.epoch == 0))
        t = mono_min(t, n->demotion.limit);
    if (n->address.request == 0 &&
        ((passive && n->address.up) || (n->state == NODE_ACTIVE && !n->address.up)))
        t = mono_min(t, n->address.retry);
    return t;
}
