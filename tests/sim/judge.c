/*
 * What must hold after every event; apart from the world, so that it cannot share its errors.
 */
#include "sim.h"

/* Would a client that reaches this node's services be answered by an active one? */
bool check_serves(const struct sim *s, uint32_t i)
{
    const struct host *h = &s->host[i];

    if (!h->on || h->frozen)
        return false;
    for (uint32_t k = 0; k < SERVICES; k++) {
        const struct service_sim *v = &h->service[k];

        if (!v->alive || !v->active || v->broken)
            continue;
        if (!s->layers.service)
            return true;
        if (mono_is_set(h->page.deadline) && h->page.epoch == v->epoch &&
            !mono_reached(host_clock(s, i), h->page.deadline))
            return true;
    }
    return false;
}

/* Would this node's kernel let traffic to the virtual IP pass? */
bool check_address_open(const struct sim *s, uint32_t i)
{
    const struct host *h = &s->host[i];

    return h->on && !h->frozen && h->address && mono_is_set(h->nft) &&
           !mono_reached(host_clock(s, i), h->nft);
}

void check_world(struct sim *s)
{
    uint32_t serving = 0, open = 0;

    for (uint32_t i = 0; i < HOSTS; i++) {
        if (s->host[i].on && s->host[i].daemon)
            node_check(&s->host[i].run->node);
        serving += check_serves(s, i);
        open += check_address_open(s, i);
    }
    if (!s->judge_serving)
        return;
    if (serving > 1)
        sim_violation(s, "two nodes serve at once");
    if (s->layers.kernel && open > 1)
        sim_violation(s, "the virtual IP is open on two nodes at once");
}

/* What the liveness phase waits for. */
bool check_healthy(const struct sim *s)
{
    uint32_t active = 0, ready = 0;

    for (uint32_t i = 0; i < NODES; i++) {
        const struct host *h = &s->host[i];

        if (!host_runs(h))
            return false;
        if (h->run->node.state == NODE_ACTIVE && !node_degraded(&h->run->node) &&
            check_serves(s, i) && h->page.epoch == s->db.fence)
            active++;
        if (h->run->node.state == NODE_READY ||
            (host_lacks_content(s, i) && h->run->node.state == NODE_FOLLOWING &&
             node_obstacles(&h->run->node) == NODE_OB_CONTENT))
            ready++;
    }
    return active == 1 && ready == 1;
}
