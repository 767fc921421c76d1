/*
 * node_run: feeds the node machine and carries its actions to the ports.
 *
 * Purpose   The only place where actions meet ports; the daemon and the simulator run this
 *           same code.  It seals and opens the records, and finds out what has changed.
 * Shape     struct node_run is the caller's, about 60 KiB; nothing is allocated.
 * Owns      The ports are borrowed and must outlive the run.
 * Errors    Every answer may come late, twice or never: the machine drops what it did not
 *           ask for.
 * Threads   loop thread only
 * Tests     tests/sim, tests/unit/test_node.c
 */
#ifndef RUN_NODE_RUN_H
#define RUN_NODE_RUN_H

#include "core/cluster/node.h"
#include "port/address.h"
#include "port/fence.h"
#include "port/hold.h"
#include "port/journal.h"
#include "port/services.h"
#include "port/share.h"

struct node_ports {
    struct share share;
    struct services services;
    struct address address;
    struct fence fence;
    struct hold hold;
    struct journal journal;
};

/* Somebody else's use of the share: one file put, got or removed. */
struct node_aux {
    enum share_op op; /* SHARE_PUT, SHARE_GET, SHARE_REMOVE */
    char name[SHARE_NAME_BYTES];
    char body[SHARE_NODE_BYTES]; /* PUT: sealed bytes */
    size_t body_n;
    /* answer is borrowed for the call; must not feed the run from within. */
    void (*done)(void *arg, const struct share_answer *answer);
    void *arg;
};

enum { NODE_AUX_MAX = 4 };

struct node_run {
    struct node node;
    struct node_ports ports;
    struct mac_key key;
    bool busy;
    struct node_actions actions;
    struct { /* the last top record seen, to know what a change is (L3) */
        bool known;
        uint64_t top, print;
        char bytes[RECORD_LEASE_BYTES];
        size_t n;
        enum err err;
        struct lease_rec lease;
    } top;
    struct { /* the last file `cluster` that was checked */
        char bytes[SHARE_REQUEST_BYTES];
        size_t n;
        enum err err;
    } cluster;
    char put[SHARE_NODE_BYTES];
    char extra[SHARE_NODE_BYTES];
    struct node_aux aux[NODE_AUX_MAX];
    uint32_t aux_first, aux_count, aux_request;
};

void node_run_init(struct node_run *r, const struct node_conf *conf,
                   const struct mac_key *key, const struct node_ports *ports,
                   uint64_t known_epoch, bool maintenance);

/* Events; now never goes back.  None may be called from within a port. */
void node_run_event(struct node_run *r, const struct node_event *ev);
void node_run_simple(struct node_run *r, enum node_event_kind kind, struct mono now);
void node_run_share(struct node_run *r, struct mono now, const struct share_answer *a);
void node_run_service(struct node_run *r, struct mono now, uint32_t index,
                      enum service_state state);

/* Queue an auxiliary use of the share; ERR_LIMIT when NODE_AUX_MAX wait already. */
MUST_USE enum err node_run_aux(struct node_run *r, struct mono now,
                               const struct node_aux *aux);

#endif
