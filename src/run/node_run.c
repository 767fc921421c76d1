#include "run/node_run.h"

void node_run_init(struct node_run *r, const struct node_conf *conf,
                   const struct mac_key *key, const struct node_ports *ports,
                   uint64_t known_epoch, bool maintenance)
{
    memset(r, 0, sizeof(*r));
    r->ports = *ports;
    r->key = *key;
    node_init(&r->node, conf, known_epoch, maintenance);
}

static void share_put(struct node_run *r, const struct node_action *a,
                      struct share_request *rq)
{
    const struct node *n = &r->node;
    struct node_rec rec = { .incarnation = n->conf.incarnation,
                            .seq = n->self.seq,
                            .known_epoch = n->known_epoch,
                            .hold_ms = n->conf.hold_ms,
                            .ready = n->state == NODE_READY,
                            .fit = node_fit(n),
                            .maintenance = n->maintenance };
    const char *state = node_state_name(n->state);
    struct text t;
    size_t len = 0;

    (void)a;
    memcpy(rec.cluster, n->conf.cluster, sizeof(rec.cluster));
    memcpy(rec.node, n->conf.self, sizeof(rec.node));
    memcpy(rec.state, state, strlen(state) + 1);
    size_t extra = r->ports.journal.ops->node_extra(r->ports.journal.impl, r->extra,
                                                    sizeof(r->extra));
    enum err e = node_rec_encode(r->put, sizeof(r->put), &len, &r->key, &rec,
                                 (struct str){ r->extra, extra });

    if (e != ERR_OK) /* too much to tell: what decisions need is more important */
        e = node_rec_encode(r->put, sizeof(r->put), &len, &r->key, &rec, STR(""));
    CHECK(e == ERR_OK);
    text_init(&t, rq->name, sizeof(rq->name));
    text_add(&t, "node/%s", n->conf.self);
    rq->body = (struct str){ r->put, len };
}

static void share_submit(struct node_run *r, const struct node_action *a)
{
    char body[RECORD_LEASE_BYTES], will[RECORD_LEASE_BYTES];
    struct share_request rq = {
        .id = a->request, .op = a->op, .epoch = a->epoch, .session = a->session
    };
    enum err e = ERR_OK;

    switch (a->op) {
    case SHARE_SCAN:
        memcpy(rq.name, r->node.conf.peer, sizeof(r->node.conf.peer));
        memcpy(rq.self, r->node.conf.self, sizeof(r->node.conf.self));
        break;
    case SHARE_CLAIM:
    case SHARE_RENEW: {
        struct lease_rec last = a->lease;

        last.released = true;
        last.seq++;
        memcpy(last.why, "daemon_died", sizeof("daemon_died"));
        e = lease_encode(will, &r->key, &last);
        CHECK(e == ERR_OK);
        rq.will = (struct str){ will, sizeof(will) };
    }
        /* fall through */
    case SHARE_RELEASE:
        if (a->op != SHARE_CLAIM) {
            struct text t;

            text_init(&t, rq.mark, sizeof(rq.mark));
            text_add(&t, "\"incarnation\":%llu,",
                     (unsigned long long)r->node.conf.incarnation);
        }
        e = lease_encode(body, &r->key, &a->lease);
        CHECK(e == ERR_OK);
        rq.body = (struct str){ body, sizeof(body) };
        break;
    case SHARE_PUT: share_put(r, a, &rq); break;
    case SHARE_POLL:
    case SHARE_PRUNE:
    case SHARE_GET:
    case SHARE_REMOVE: break;
    }
    r->ports.share.ops->submit(r->ports.share.impl, &rq);
}

static void aux_submit(struct node_run *r, const struct node_action *a)
{
    const struct node_aux *aux = &r->aux[r->aux_first];
    struct share_request rq = { .id = a->request, .op = aux->op };

    CHECK(r->aux_count > 0);
    memcpy(rq.name, aux->name, sizeof(rq.name));
    rq.body = (struct str){ aux->body, aux->body_n };
    r->aux_request = a->request;
    r->ports.share.ops->submit(r->ports.share.impl, &rq);
}

static void carry_out(struct node_run *r, const struct node_action *a)
{
    const struct node_ports *p = &r->ports;

    switch (a->kind) {
    case NODE_ACT_SHARE: share_submit(r, a); break;
    case NODE_ACT_AUX: aux_submit(r, a); break;
    case NODE_ACT_SERVICES:
        p->services.ops->set(p->services.impl, a->want, a->epoch);
        break;
    case NODE_ACT_KILL: p->services.ops->kill(p->services.impl); break;
    case NODE_ACT_ADDRESS_UP: p->address.ops->up(p->address.impl, a->request); break;
    case NODE_ACT_ADDRESS_DOWN: p->address.ops->down(p->address.impl, a->request); break;
    case NODE_ACT_FENCE: p->fence.ops->raise(p->fence.impl, a->request, a->epoch); break;
    case NODE_ACT_EXTEND: p->hold.ops->extend(p->hold.impl, a->epoch, a->deadline); break;
    case NODE_ACT_REVOKE: p->hold.ops->revoke(p->hold.impl); break;
    case NODE_ACT_REMEMBER:
        p->journal.ops->remember(p->journal.impl, r->node.known_epoch,
                                 r->node.maintenance);
        break;
    case NODE_ACT_MOVED: {
        struct journal_move m = { node_state_name(a->from), node_state_name(a->to),
                                  node_why_name(a->why), a->epoch };

        p->journal.ops->moved(p->journal.impl, &m);
        break;
    }
    case NODE_ACT_ANSWER:
        p->journal.ops->answer(p->journal.impl, a->token, a->err);
        break;
    case NODE_ACT_EXIT:
        p->journal.ops->exited(p->journal.impl, node_why_name(a->why));
        break;
    }
}

void node_run_event(struct node_run *r, const struct node_event *ev)
{
    CHECK(!r->busy); /* ports never answer from within a call */
    r->busy = true;
    node_step(&r->node, ev, &r->actions);
    for (uint32_t i = 0; i < r->actions.count; i++)
        carry_out(r, &r->actions.at[i]);
    r->busy = false;
}

void node_run_simple(struct node_run *r, enum node_event_kind kind, struct mono now)
{
    node_run_event(r, &(struct node_event){ .kind = kind, .now = now });
}

void node_run_service(struct node_run *r, struct mono now, uint32_t index,
                      enum service_state state)
{
    node_run_event(
        r, &(struct node_event){
               .kind = NODE_EV_SERVICE, .now = now, .service = index, .state = state });
}

/* Remembers the top record; its print changes exactly when the number or the bytes do. */
static void see_top(struct node_run *r, const struct share_answer *a)
{
    const size_t n = a->lease.n <= sizeof(r->top.bytes) ? a->lease.n : 0;

    if (r->top.known && r->top.top == a->top && r->top.n == n &&
        (n == 0 || memcmp(r->top.bytes, a->lease.p, n) == 0))
        return;
    r->top.known = true;
    r->top.print++;
    r->top.top = a->top;
    r->top.n = n;
    if (n > 0)
        memcpy(r->top.bytes, a->lease.p, n);
    r->top.err = lease_decode(&r->top.lease, &r->key, r->node.conf.cluster, a->top,
                              (struct str){ r->top.bytes, n });
}

static enum err see_cluster(struct node_run *r, struct str bytes)
{
    if (bytes.n == 0)
        return ERR_NOT_FOUND;
    if (bytes.n > sizeof(r->cluster.bytes))
        return ERR_FOREIGN;
    if (r->cluster.n != bytes.n || memcmp(r->cluster.bytes, bytes.p, bytes.n) != 0) {
        memcpy(r->cluster.bytes, bytes.p, bytes.n);
        r->cluster.n = bytes.n;
        r->cluster.err = cluster_check(bytes, &r->key, r->node.conf.cluster);
    }
    return r->cluster.err;
}

static bool has_pause(const struct node_run *r, const struct share_answer *a)
{
    struct str body;

    for (uint32_t i = 0; i < a->request_count; i++)
        if (strcmp(a->requests[i].name, "pause") == 0)
            return record_open(a->requests[i].body, &r->key, STR("request/pause"),
                               &body) == ERR_OK;
    return false;
}

static void see_nodes(struct node_run *r, const struct share_answer *a,
                      struct node_seen *seen)
{
    const struct node_conf *c = &r->node.conf;

    seen->have_peer =
        node_rec_decode(&seen->peer, &r->key, c->cluster, c->peer, a->peer) == ERR_OK;
    seen->have_self =
        node_rec_decode(&seen->self, &r->key, c->cluster, c->self, a->self) == ERR_OK;
    seen->paused = has_pause(r, a);
}

static void aux_done(struct node_run *r, const struct share_answer *a)
{
    struct node_aux *aux = &r->aux[r->aux_first];

    r->aux_request = 0;
    r->aux_first = (r->aux_first + 1) % NODE_AUX_MAX;
    r->aux_count--;
    if (aux->done)
        aux->done(aux->arg, a);
}

void node_run_share(struct node_run *r, struct mono now, const struct share_answer *a)
{
    struct node_event ev = { .kind = NODE_EV_SHARE,
                             .now = now,
                             .request = a->id,
                             .err = a->err,
                             .session = a->session };
    /* Only what answers the request in flight is looked at: the rest is late or doubled. */
    const bool ours = a->id != 0 && a->id == r->node.io.request;
    const enum share_op op = r->node.io.op;

    if (ours && !r->node.io.aux && a->err == ERR_OK &&
        (op == SHARE_SCAN || op == SHARE_POLL)) {
        if (op == SHARE_SCAN) {
            enum err e = see_cluster(r, a->cluster);

            see_nodes(r, a, &ev.seen);
            see_top(r, a);
            ev.seen.lease_err = e == ERR_OK ? r->top.err : e;
            if (e == ERR_NOT_FOUND)
                ev.err = e;
        } else if (a->top == r->node.seen.top) {
            see_top(r, a);
            ev.seen.lease_err = r->cluster.err == ERR_OK ? r->top.err : r->cluster.err;
        }
        ev.seen.top = a->top;
        ev.seen.print = r->top.print;
        ev.seen.lease = r->top.lease;
    }
    if (ours && op == SHARE_SCAN && !r->node.io.aux && a->err == ERR_OK)
        r->ports.journal.ops->scanned(r->ports.journal.impl, a);
    if (ours && r->node.io.aux && a->id == r->aux_request)
        aux_done(r, a);
    node_run_event(r, &ev);
    if (ours && r->aux_count > 0 && r->aux_request == 0)
        node_run_simple(r, NODE_EV_AUX, now);
}

enum err node_run_aux(struct node_run *r, struct mono now, const struct node_aux *aux)
{
    if (r->aux_count == NODE_AUX_MAX)
        return ERR_LIMIT;
    r->aux[(r->aux_first + r->aux_count) % NODE_AUX_MAX] = *aux;
    r->aux_count++;
    if (r->aux_request == 0)
        node_run_simple(r, NODE_EV_AUX, now);
    return ERR_OK;
}
