/*
 * Passive: watching the holder's record, and when the next epoch may be claimed.
 */
#include "core/cluster/internal.h"

/* An obstacle that forbids a takeover, whatever the state of the lease. */
enum {
    FORBIDS = NODE_OB_MAINTENANCE | NODE_OB_REGRESSED | NODE_OB_DUPLICATE |
              NODE_OB_RECORD | NODE_OB_STOPPING | NODE_OB_ADDRESS | NODE_OB_SCHEMA,
};

/* Free by the holder's word: the read that shows it is evidence enough. */
static const struct mono AT_ONCE = { 0 };

/*
 * Who lacks one of these leaves the lease to a node that lacks none, but only for unready_ms:
 * a node that serves what it has is better than nobody.  A lease of the peer that has expired
 * is not left to it for its published files: the peer has just failed to hold it.
 */
enum { YIELDS = NODE_OB_SERVICES | NODE_OB_CONTENT, YIELDS_EXPIRED = NODE_OB_SERVICES };

/*
 * The hold of a lease whose record we cannot read: cut off in the middle of a claim, or gone
 * from the share.  It is ours or the peer's, and both write their hold into their node records
 * before they claim (L4: the holder's word).  Only what was asked for after `since` counts.
 */
static uint32_t unread_hold(const struct node *n, struct mono since)
{
    uint32_t hold_ms = n->conf.hold_ms;

    if (!mono_reached(n->seen.scanned, since))
        return RECORD_HOLD_MAX_MS;
    if (n->peer.known && n->peer.rec.hold_ms > hold_ms)
        hold_ms = n->peer.rec.hold_ms;
    if (n->seen.lease_err == ERR_OK && n->seen.lease.hold_ms > hold_ms)
        hold_ms = n->seen.lease.hold_ms;
    return hold_ms;
}

/* We released the top epoch to ourselves: it, or a later one, had been used before. */
static bool own_walk(const struct node *n)
{
    const struct lease_rec *rec = &n->seen.lease;

    return n->seen.lease_err == ERR_OK && rec->released &&
           rec->incarnation == n->conf.incarnation && strcmp(rec->to, n->conf.self) == 0;
}

/*
 * Just connected, we cannot know what the file server has forgotten in a crash, perhaps an
 * epoch that we never saw: its holder gets the whole wait.
 */
bool node_just_connected(const struct node *n)
{
    const uint32_t wait_ms = node_wait_ms(&n->conf, unread_hold(n, n->seen.connected));

    return !mono_reached(n->last, mono_after(n->seen.connected, wait_ms));
}

/*
 * May a newer epoch have existed that the share has forgotten?  Then what the top record says
 * is history, and its holder, whom we cannot see, gets the whole wait of L3 (L1: a vanished
 * or regressed epoch counts as a change).
 */
static bool doubtful(const struct node *n)
{
    /* On a walk the wait was kept once, before its first claim, and over this connection.  If
     * we learned only afterwards that the number had been used, somebody may hold it.  And only
     * the step just made counts: the record of a walk of long ago comes to light again when
     * the epochs above it have vanished, and one of those may be held. */
    if (own_walk(n))
        return !n->promotion.walk_waited ||
               n->seen.session != n->promotion.walk_session ||
               n->seen.top != n->promotion.walk_epoch ||
               mono_reached(n->last, n->promotion.walk_until);
    return n->seen.top < n->known_epoch || node_just_connected(n);
}

/* The lease that we gave away to go into maintenance.  If the peer, seen alive a moment before,
 * does not take it, a node in maintenance that serves is better than nobody. */
static bool unclaimed(const struct node *n)
{
    const struct lease_rec *rec = &n->seen.lease;

    return n->seen.known && n->seen.lease_err == ERR_OK && rec->released &&
           rec->incarnation == n->conf.incarnation &&
           strcmp(rec->why, node_why_name(NODE_WHY_MAINTENANCE)) == 0;
}

/* A lease that its holder has released; AT_ONCE: this very read is evidence enough. */
static struct mono released_time(const struct node *n, bool to_us, bool prepared)
{
    if (to_us)
        return AT_ONCE;
    if (n->seen.lease.to[0] != '\0')
        return mono_after(n->seen.changed, n->conf.yield_ms);
    return prepared ? AT_ONCE : mono_after(n->seen.changed, n->conf.unready_ms);
}

/* When the lease that was seen last becomes free, if it stays unchanged. */
static struct mono free_time(const struct node *n)
{
    const struct lease_rec *rec = &n->seen.lease;
    const bool prepared = !(node_obstacles(n) & YIELDS);
    const bool readable = n->seen.lease_err == ERR_OK;

    uint32_t forbids = node_obstacles(n) & FORBIDS;

    if (unclaimed(n))
        forbids &= ~(uint32_t)NODE_OB_MAINTENANCE;
    if (!n->seen.known || !n->self.written || forbids)
        return MONO_FOREVER;
    const bool to_us = readable && rec->released && strcmp(rec->to, n->conf.self) == 0;

    /* Paused: the cluster does not switch by itself; the last holder may come back. */
    if (n->paused && !to_us && !(readable && strcmp(rec->owner, n->conf.self) == 0))
        return MONO_FOREVER;
    const bool doubt = doubtful(n);

    if (readable && rec->released && !doubt)
        return released_time(n, to_us, prepared);
    /* L3, L4 */
    const uint32_t hold_ms =
        readable && !doubt ? rec->hold_ms : unread_hold(n, n->seen.changed);
    struct mono t = mono_after(n->seen.changed, node_wait_ms(&n->conf, hold_ms));
    const bool of_peer = readable && !doubt && strcmp(rec->owner, n->conf.self) != 0;
    const uint32_t yields = of_peer ? YIELDS_EXPIRED : YIELDS;

    return node_obstacles(n) & yields ? mono_after(t, n->conf.unready_ms) : t;
}

/*
 * When we may claim, if the lease that was seen last stays unchanged.  MONO_FOREVER: not by
 * waiting.  A share that refuses every claim (rights, full) is not asked as fast as it answers.
 */
struct mono node_claim_time(const struct node *n)
{
    struct mono t = free_time(n);

    return mono_reached(t, n->promotion.retry) ? t : n->promotion.retry;
}

static void claim(struct node *n, struct node_actions *out)
{
    const bool readable = n->seen.lease_err == ERR_OK;
    const bool released = readable && n->seen.lease.released;

    n->takeover.old_alive = n->seen.changed;
    n->takeover.decided = n->last;
    n->promotion.waited = n->seen.top < n->known_epoch; /* see doubtful() */
    n->takeover.why = released ? NODE_WHY_LEASE_RELEASED : NODE_WHY_LEASE_EXPIRED;
    n->takeover.down_ms = released ? n->seen.lease.down_ms : 0;
    memset(n->takeover.from, 0, sizeof(n->takeover.from));
    memset(n->takeover.from_why, 0, sizeof(n->takeover.from_why));
    if (readable)
        memcpy(n->takeover.from, n->seen.lease.owner, sizeof(n->takeover.from));
    if (released)
        memcpy(n->takeover.from_why, n->seen.lease.why, sizeof(n->takeover.from_why));
    n->lease.epoch = 0;
    n->lease.seq = 1;
    n->lease.moves = readable ? n->seen.lease.moves : 0;
    n->promotion.walking = false;
    node_move(n, NODE_CLAIMING, n->takeover.why, out);
    /* L1: exactly one higher than the highest on the share. */
    node_submit(n, SHARE_CLAIM, n->seen.top + 1, out);
}

void node_watch(struct node *n, const struct answer *a, struct node_actions *out)
{
    if (n->stop) {
        node_demote(n, n->stop_why, false, out);
        return;
    }
    const bool ready = node_obstacles(n) == 0;

    if (n->state == NODE_FOLLOWING && ready)
        node_move(n, NODE_READY, NODE_WHY_PREPARED, out);
    else if (n->state == NODE_READY && !ready)
        node_move(n, NODE_FOLLOWING, NODE_WHY_UNPREPARED, out);
    /* An address left over is taken away again and again: it must not stay here. */
    if (n->address.up && n->address.request == 0 &&
        mono_reached(n->last, n->address.retry))
        node_address(n, false, out);
    /* L3: only a read that was sent when the time was up, and that shows no change. */
    if (a->read && n->io.request == 0 && mono_reached(a->sent, node_claim_time(n)))
        claim(n, out);
}

/* The epoch that we have just made was used before: release it and go on to the next. */
static void walk(struct node *n, struct node_actions *out)
{
    n->promotion.walking = true;
    n->promotion.walk_session = n->seen.session;
    n->promotion.walk_waited = n->promotion.waited;
    n->promotion.walk_epoch = n->lease.epoch;
    n->promotion.walk_until = mono_after(n->last, n->conf.yield_ms / 2);
    n->demotion.why = NODE_WHY_WALKED;
    n->demotion.to_peer = false;
    n->demotion.to_self = true;
    n->demotion.began = n->last;
    node_submit_lease(n, SHARE_RELEASE, out);
    n->lease.epoch = 0; /* nothing was started under it, and nothing will be */
}

/* poll_ms, doubled with each claim that brought nothing, up to hold_ms. */
static void back_off(struct node *n)
{
    uint32_t wait_ms = n->conf.poll_ms << n->promotion.refused;

    if (wait_ms >= n->conf.hold_ms)
        wait_ms = n->conf.hold_ms;
    else
        n->promotion.refused++;
    n->promotion.retry = mono_after(n->last, wait_ms);
}

void node_claiming(struct node *n, const struct answer *a, struct node_actions *out)
{
    if (!a->got || a->aux)
        return;
    if (n->promotion.walking) {
        n->due.scan = n->last;
        node_move(n, NODE_FOLLOWING, NODE_WHY_WALKED, out);
        return;
    }
    /* See unclaimed(): the epoch is ours, or may be.  Who was too late stays in maintenance. */
    if (n->maintenance && (a->err == ERR_OK || a->err == ERR_TIMEOUT)) {
        n->maintenance = false;
        node_act(out, NODE_ACT_REMEMBER)->epoch = n->known_epoch;
    }
    const uint64_t epoch = n->seen.top + 1;
    /* L5: counted from before the create was sent. */
    const struct mono deadline = mono_after(a->sent, n->conf.hold_ms);

    if (a->err == ERR_OK &&
        !mono_reached(n->last, mono_before(deadline, n->conf.demote_before_ms))) {
        n->lease.epoch = epoch;
        n->lease.deadline = deadline;
        n->due.renew = mono_after(a->sent, n->conf.renew_ms);
        n->promotion.refused = 0;
        if (epoch <= n->known_epoch)
            walk(n, out);
        else
            node_promote(n, out);
        return;
    }
    back_off(n);
    /* L8: no answer, or one too late to use, leaves the epoch unknown: read again. */
    n->due.scan = n->last;
    node_move(n, NODE_FOLLOWING,
              a->err == ERR_EXISTS ? NODE_WHY_CLAIM_LOST : NODE_WHY_CLAIM_UNKNOWN, out);
}
