/*
 * internal: what the files of the node machine share with each other.
 *
 * node.c     states, moves, what an event tells us, the step
 * watch.c    passive: when may the lease be claimed (L1, L3, L4, L5)
 * serve.c    holder: promotion, renewal's effect, demotion (L2, L6, L7)
 * share_io.c the one request in flight and which comes next
 */
#ifndef CORE_CLUSTER_INTERNAL_H
#define CORE_CLUSTER_INTERNAL_H

#include "core/cluster/node.h"

/* An answer of the share that matched the request in flight. */
struct answer {
    bool got;
    bool aux;
    enum share_op op;
    enum err err;
    struct mono sent;
    bool read; /* a SCAN or POLL that told us the top record: evidence for L3 */
};

struct node_action *node_act(struct node_actions *out, enum node_action_kind kind);
uint32_t node_new_request(struct node *n);
void node_move(struct node *n, enum node_state to, enum node_why why,
               struct node_actions *out);

void node_know_epoch(struct node *n, uint64_t epoch, struct node_actions *out);

/* watch.c */
void node_watch(struct node *n, const struct answer *a, struct node_actions *out);
void node_claiming(struct node *n, const struct answer *a, struct node_actions *out);
struct mono node_claim_time(const struct node *n);
bool node_just_connected(const struct node *n);

/* serve.c */
void node_promote(struct node *n, struct node_actions *out);
void node_serve(struct node *n, const struct answer *a, struct node_actions *out);
void node_demote(struct node *n, enum node_why why, bool to_peer,
                 struct node_actions *out);
void node_demoting(struct node *n, const struct answer *a, struct node_actions *out);
void node_fence_self(struct node *n, enum node_why why, struct node_actions *out);
void node_fenced(struct node *n, struct node_actions *out);
void node_follow(struct node *n, enum node_why why, struct node_actions *out);
bool node_services_all(const struct node *n, uint32_t states);
void node_address(struct node *n, bool up, struct node_actions *out);
struct mono node_serve_wakeup(const struct node *n);

/* share_io.c */
void node_share_next(struct node *n, struct node_actions *out);
struct mono node_share_wakeup(const struct node *n);
void node_submit(struct node *n, enum share_op op, uint64_t epoch,
                 struct node_actions *out);
void node_submit_lease(struct node *n, enum share_op op, struct node_actions *out);

#define SERVICE_BIT(state) (1u << (state))

#endif
