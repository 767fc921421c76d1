/*
 * The one request in flight on the share, and which comes next.
 */
#include "core/cluster/internal.h"

static void launch(struct node *n, enum share_op op, bool aux, struct node_action *a)
{
    CHECK(n->io.request == 0);
    a->request = node_new_request(n);
    a->op = op;
    n->io.request = a->request;
    n->io.op = op;
    n->io.aux = aux;
    n->io.sent = n->last; /* time before the request began: L2, L3 and L5 count from it */
}

void node_submit(struct node *n, enum share_op op, uint64_t epoch,
                 struct node_actions *out)
{
    struct node_action *a = node_act(out, NODE_ACT_SHARE);

    launch(n, op, false, a);
    a->epoch = epoch;
    if (op == SHARE_CLAIM) {
        struct lease_rec *r = &a->lease;

        a->session = n->seen.session;
        memcpy(r->cluster, n->conf.cluster, sizeof(r->cluster));
        memcpy(r->owner, n->conf.self, sizeof(r->owner));
        r->epoch = epoch;
        r->incarnation = n->conf.incarnation;
        r->seq = n->lease.seq;
        r->hold_ms = n->conf.hold_ms;
        r->moves = n->lease.moves;
    }
}

static void put_name(char *dst, const char *src)
{
    size_t n = strlen(src);

    CHECK(n < RECORD_NAME_BYTES);
    memcpy(dst, src, n + 1);
}

void node_submit_lease(struct node *n, enum share_op op, struct node_actions *out)
{
    struct node_action *a = node_act(out, NODE_ACT_SHARE);
    struct lease_rec *r = &a->lease;

    CHECK(n->lease.epoch != 0);
    launch(n, op, false, a);
    a->epoch = n->lease.epoch;
    memcpy(r->cluster, n->conf.cluster, sizeof(r->cluster));
    memcpy(r->owner, n->conf.self, sizeof(r->owner));
    r->epoch = n->lease.epoch;
    r->incarnation = n->conf.incarnation;
    r->seq = ++n->lease.seq;
    r->hold_ms = n->conf.hold_ms;
    r->moves = n->lease.moves;
    if (op == SHARE_RELEASE) {
        r->released = true;
        put_name(r->why, node_why_name(n->demotion.why));
        if (n->demotion.to_peer)
            put_name(r->to, n->conf.peer);
        else if (n->demotion.to_self)
            put_name(r->to, n->conf.self);
        r->down_ms = mono_since_ms(n->last, n->demotion.began);
    } else {
        n->due.renew = mono_after(n->last, n->conf.renew_ms);
    }
}

/* A released lease may be written only when nothing of ours serves any more (L7). */
static bool may_release(const struct node *n)
{
    return n->state == NODE_DEMOTING && n->demotion.revoked && n->lease.epoch != 0;
}

static bool may_renew(const struct node *n)
{
    /* L6: not past the deadline; node_step() has fenced such a node already. */
    if (!node_holds(n))
        return false;
    return n->state == NODE_PROMOTING || n->state == NODE_ACTIVE ||
           (n->state == NODE_DEMOTING && !n->demotion.revoked &&
            n->demotion.why != NODE_WHY_SUPERSEDED &&
            n->demotion.why != NODE_WHY_VANISHED);
}

static bool watching(const struct node *n)
{
    return n->state == NODE_FOLLOWING || n->state == NODE_READY ||
           n->state == NODE_FENCED;
}

/* Reads are timed so that one is sent at the very moment when the lease becomes free. */
static struct mono poll_time(const struct node *n)
{
    struct mono t = n->due.poll;

    if (n->state == NODE_FOLLOWING || n->state == NODE_READY) {
        struct mono free_at = node_claim_time(n);

        if (free_at.us > n->io.sent.us)
            t = mono_min(t, free_at);
    }
    return t;
}

static struct mono put_time(const struct node *n)
{
    return n->due.put_now ? n->last : n->due.put;
}

static void put(struct node *n, struct node_actions *out)
{
    n->self.seq++;
    n->due.put_now = false;
    n->due.put = mono_after(n->last, n->conf.put_ms);
    node_submit(n, SHARE_PUT, 0, out);
}

static void scan(struct node *n, struct node_actions *out)
{
    n->due.scan = mono_after(n->last, n->conf.scan_ms);
    n->due.poll = mono_after(n->last, n->conf.poll_ms);
    node_submit(n, SHARE_SCAN, 0, out);
}

static void prune(struct node *n, struct node_actions *out)
{
    n->due.prune = mono_after(n->last, NODE_PRUNE_MS);
    if (n->state == NODE_ACTIVE && n->lease.epoch > NODE_PRUNE_KEEP)
        node_submit(n, SHARE_PRUNE, n->lease.epoch - NODE_PRUNE_KEEP, out);
}

void node_share_next(struct node *n, struct node_actions *out)
{
    if (n->io.request != 0 || n->state == NODE_CLAIMING || n->state == NODE_STOPPED)
        return;
    if (may_release(n) && mono_reached(n->last, n->demotion.retry)) {
        node_submit_lease(n, SHARE_RELEASE, out);
        return;
    }
    if (may_renew(n) && mono_reached(n->last, n->due.renew)) {
        node_submit_lease(n, SHARE_RENEW, out);
        return;
    }
    if (mono_reached(n->last, n->due.scan)) {
        scan(n, out);
        return;
    }
    if (watching(n) && n->seen.known && mono_reached(n->last, poll_time(n))) {
        n->due.poll = mono_after(n->last, n->conf.poll_ms);
        node_submit(n, SHARE_POLL, n->seen.top, out);
        return;
    }
    if (mono_reached(n->last, put_time(n))) {
        put(n, out);
        return;
    }
    if (n->due.aux) {
        n->due.aux = false;
        launch(n, SHARE_GET, true, node_act(out, NODE_ACT_AUX));
        return;
    }
    if (mono_reached(n->last, n->due.prune))
        prune(n, out);
}

struct mono node_share_wakeup(const struct node *n)
{
    struct mono t = MONO_FOREVER;

    if (n->io.request != 0 || n->state == NODE_CLAIMING)
        return t;
    if (n->due.aux)
        return n->last;
    t = mono_min(mono_min(n->due.scan, put_time(n)), n->due.prune);
    if (may_release(n))
        t = mono_min(t, n->demotion.retry);
    if (may_renew(n))
        t = mono_min(t, n->due.renew);
    if (watching(n) && n->seen.known)
        t = mono_min(t, poll_time(n));
    return t;
}
