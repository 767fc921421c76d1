/*
 * node: decides what this node does.
 *
 * Purpose   Turns what this node has seen (clock, share, services, DBMS, operator) into
 *           what it should do next. No I/O, no clock, no allocation, no logging: the same
 *           state and the same event give the same actions, on any machine.
 * Shape     struct node is plain data: no pointers, fixed size; it may be copied,
 *           compared byte by byte after node_init(), and explored.
 * Units     Durations are ms (suffix _ms); instants are struct mono of CLOCK_BOOTTIME.
 * Safety    At most one node serves, as long as, for the holder's hold and the watcher's
 *           wait,
 *               wait(hold) = hold * 1.01 + margin_ms,
 *               margin_ms >= time to kill the services,
 *           and the clocks of the two nodes run apart by less than 1 % (docs/timing.md).
 *           Rules L1..L8 are named at the lines that carry them.
 * Errors    Every event is legal in every state; an answer that does not match the
 *           request in flight is dropped.
 * Threads   loop thread only
 * Source    design.md sections 3 and 4; ARCHITECTURE.md "The life of one switch"
 * Tests     tests/unit/test_node.c (a row a rule), tests/sim (any weather)
 */
#ifndef CORE_CLUSTER_NODE_H
#define CORE_CLUSTER_NODE_H

#include "base/mono.h"
#include "port/services.h"
#include "port/share.h"
#include "wire/record.h"

enum node_state {
    NODE_STOPPED,   /* before the start and after the end: nothing of ours runs */
    NODE_FOLLOWING, /* passive, not prepared to take over: node_obstacles() says why */
    NODE_READY,     /* passive, prepared */
    NODE_CLAIMING,  /* the create of the next epoch is under way */
    NODE_PROMOTING, /* holds the lease; fences, activates, opens the address */
    NODE_ACTIVE,    /* serves */
    NODE_DEMOTING,  /* stands the services down, then releases the lease */
    NODE_FENCED,    /* past its deadline or told to: everything is being killed */
    NODE_STATE_COUNT
};

/* The reason of a move: logged, counted, shown, written into the lease, tested. */
#define NODE_WHY_MAP(X)                                                                  \
    X(NODE_WHY_NONE, "none")                                                             \
    X(NODE_WHY_START, "start")                                                           \
    X(NODE_WHY_PREPARED, "prepared")             /* nothing hinders a takeover */        \
    X(NODE_WHY_UNPREPARED, "unprepared")         /* something hinders a takeover */      \
    X(NODE_WHY_LEASE_RELEASED, "lease_released") /* the holder gave it up */             \
    X(NODE_WHY_LEASE_EXPIRED, "lease_expired")   /* unchanged for wait (L3) */           \
    X(NODE_WHY_CLAIMED, "claimed")               /* epoch n is ours (L1) */              \
    X(NODE_WHY_CLAIM_LOST, "claim_lost")         /* the peer was first */                \
    X(NODE_WHY_CLAIM_UNKNOWN, "claim_unknown")   /* no answer in time (L5, L8) */        \
    X(NODE_WHY_WALKED, "walked")                 /* epoch known to be used: next (L1) */ \
    X(NODE_WHY_PROMOTED, "promoted")             /* all steps done */                    \
    X(NODE_WHY_PROMOTION_FAILED, "promotion_failed") /* services would not activate */   \
    X(NODE_WHY_SERVICE_FAILED, "service_failed")                                         \
    X(NODE_WHY_SHARE_LOST, "share_lost")   /* no renewal in time (L2) */                 \
    X(NODE_WHY_LEASE_LOST, "lease_lost")   /* deadline passed (L6) */                    \
    X(NODE_WHY_SUPERSEDED, "superseded")   /* epoch n+1 exists */                        \
    X(NODE_WHY_VANISHED, "vanished")       /* our record is gone */                      \
    X(NODE_WHY_FENCE_STALE, "fence_stale") /* the DBMS knows a higher epoch */           \
    X(NODE_WHY_OPERATOR, "operator")       /* switchover */                              \
    X(NODE_WHY_MAINTENANCE, "maintenance")                                               \
    X(NODE_WHY_STOP, "stop") /* SIGTERM */                                               \
    X(NODE_WHY_GUARD_LOST, "guard_lost")                                                 \
    X(NODE_WHY_STUCK, "stuck")           /* services would not stand down */             \
    X(NODE_WHY_STOOD_DOWN, "stood_down") /* demotion done, lease released */             \
    X(NODE_WHY_CLEANED, "cleaned")       /* everything killed is gone */

enum node_why {
#define X(code, name) code,
    NODE_WHY_MAP(X)
#undef X
        NODE_WHY_COUNT
};

/* What hinders this node from being ready: bits of node_obstacles(). */
#define NODE_OBSTACLE_MAP(X)                                                             \
    X(NODE_OB_SHARE, 0, "the state share has not been read lately")                      \
    X(NODE_OB_SERVICES, 1, "a service is not in standby")                                \
    X(NODE_OB_DATABASE, 2, "the DBMS cannot be reached from here")                       \
    X(NODE_OB_MAINTENANCE, 3, "this node is in maintenance")                             \
    X(NODE_OB_REGRESSED, 4, "the share knows fewer epochs than this node: restored?")    \
    X(NODE_OB_DUPLICATE, 5, "another daemon uses this node's name")                      \
    X(NODE_OB_RECORD, 6, "the newest lease record is not of this cluster or format")     \
    X(NODE_OB_STOPPING, 7, "this node is stopping")                                      \
    X(NODE_OB_ADDRESS, 8, "the virtual IP could not be removed here")                    \
    X(NODE_OB_CONNECTED, 9, "the connection to the file server is too new to be sure")   \
    X(NODE_OB_SCHEMA, 10, "the DBMS or its schema does not fit this program")            \
    X(NODE_OB_CONTENT, 11, "published files are not all here yet")

enum node_obstacle {
#define X(code, bit, text) code = 1u << (bit),
    NODE_OBSTACLE_MAP(X)
#undef X
};

struct node_conf {
    char cluster[RECORD_CLUSTER_BYTES];
    char self[RECORD_NAME_BYTES], peer[RECORD_NAME_BYTES];
    uint64_t
        incarnation; /* random, new at each start: tells two daemons of one name apart */
    uint32_t renew_ms, hold_ms, margin_ms, poll_ms; /* the timing profile */
    uint32_t demote_before_ms; /* begin to stand down this long before the deadline */
    uint32_t scan_ms, put_ms;  /* read everything; write our node record */
    uint32_t fence_wait_ms;    /* promotion goes on without the DBMS after this */
    uint32_t promote_limit_ms; /* services that are not active by then count as failed */
    uint32_t demote_limit_ms;  /* services that have not stood down by then are killed */
    uint32_t yield_ms;         /* how long a lease released to the peer is left to it */
    uint32_t unready_ms;       /* an unprepared node leaves an expired lease this long */
    uint32_t peer_fresh_ms;    /* a node record older than this says nothing */
    uint32_t switch_max, switch_window_ms; /* switches because of failed services */
    uint32_t service_count;
};

/* Epochs that a file server crash may have forgotten; more is a restored share (L1). */
enum { NODE_GAP_MAX = 8, NODE_PRUNE_KEEP = 16, NODE_PRUNE_MS = 60000 };

enum node_operation {
    NODE_OP_SWITCHOVER, /* give the lease to the peer */
    NODE_OP_MAINTENANCE_ON,
    NODE_OP_MAINTENANCE_OFF,
    NODE_OP_ADOPT, /* go on although the share has gone back in time */
};

enum node_event_kind {
    NODE_EV_START,    /* once, when leftovers of an earlier life are gone */
    NODE_EV_TICK,     /* time has passed */
    NODE_EV_SHARE,    /* a share request was answered */
    NODE_EV_SERVICE,  /* a service's state changed */
    NODE_EV_ADDRESS,  /* up or down was answered */
    NODE_EV_FENCE,    /* raise was answered */
    NODE_EV_DATABASE, /* the DBMS was probed */
    NODE_EV_CONTENT,  /* ERR_OK: every published file is on the local disk */
    NODE_EV_OPERATOR,
    NODE_EV_AUX, /* somebody else wants the share once (NODE_ACT_AUX) */
    NODE_EV_GUARD_LOST,
    NODE_EV_STOP, /* SIGTERM: stand down, release, end */
};

/* What a SCAN or POLL found, decoded. */
struct node_seen {
    uint64_t top;       /* as in struct share_answer */
    uint64_t print;     /* differs from the last one iff (top, bytes of its record) do */
    enum err lease_err; /* ERR_OK: lease is decoded and verified */
    struct lease_rec lease;
    /* SCAN only: */
    bool paused;
    bool have_peer, have_self;
    struct node_rec peer, self;
};

struct node_event {
    enum node_event_kind kind;
    struct mono now; /* never goes back */
    uint32_t request;
    enum err err;
    uint32_t session;         /* SHARE: as in struct share_answer */
    struct node_seen seen;    /* SHARE: SCAN and POLL that are ERR_OK */
    uint32_t service;         /* SERVICE: index */
    enum service_state state; /* SERVICE */
    uint64_t epoch;           /* FENCE, DATABASE: what the fence holds, 0 = not known */
    enum node_operation op;   /* OPERATOR */
    uint32_t token;           /* OPERATOR: echoed by NODE_ACT_ANSWER */
};

enum node_action_kind {
    NODE_ACT_SHARE,        /* request, op, epoch, lease (CLAIM, RENEW, RELEASE) */
    NODE_ACT_AUX,          /* request: carry out the auxiliary share request */
    NODE_ACT_SERVICES,     /* want, epoch */
    NODE_ACT_KILL,         /* every process of every service */
    NODE_ACT_ADDRESS_UP,   /* request */
    NODE_ACT_ADDRESS_DOWN, /* request */
    NODE_ACT_FENCE,        /* request, epoch */
    NODE_ACT_EXTEND,       /* epoch, deadline */
    NODE_ACT_REVOKE,
    NODE_ACT_REMEMBER, /* known epoch and maintenance changed: keep on local disk */
    NODE_ACT_MOVED,    /* from, to, why: for the history */
    NODE_ACT_ANSWER,   /* token, err: to the operator */
    NODE_ACT_EXIT,     /* the daemon ends: why */
};

struct node_action {
    enum node_action_kind kind;
    uint32_t request;
    enum share_op op;
    uint32_t session; /* CLAIM */
    uint64_t epoch;
    struct mono deadline;
    enum service_want want;
    enum node_state from, to;
    enum node_why why;
    uint32_t token;
    enum err err;
    struct lease_rec lease;
};

enum { NODE_ACTIONS_MAX = 12 };

struct node_actions {
    uint32_t count;
    struct node_action at[NODE_ACTIONS_MAX];
};

struct node {
    struct node_conf conf;
    enum node_state state;
    enum node_why why;       /* of the last move */
    struct mono since, last; /* of the last move; of the last event */
    uint32_t last_request;
    bool maintenance, paused, duplicate;
    bool stop; /* end once we are passive */
    enum node_why stop_why;

    struct {              /* the one share request in flight */
        uint32_t request; /* 0: none */
        enum share_op op;
        bool aux;
        struct mono sent;
    } io;
    struct {
        struct mono renew, poll, scan, put, prune;
        bool aux, put_now;
    } due;
    struct { /* what the share showed last */
        bool known;
        uint64_t top, print;
        struct mono changed; /* when we learned of the last change (L3) */
        uint32_t session;
        struct mono connected; /* our first look at the share in this session */
        struct mono scanned;   /* when the last scan that was answered was sent */
        struct mono read_ok;
        enum err lease_err;
        struct lease_rec lease;
        enum err last_err; /* of the last share answer, ERR_OK when all is well */
    } seen;
    struct { /* what we hold; epoch 0: nothing */
        uint64_t epoch, seq;
        struct mono deadline;
        uint32_t moves;
        struct mono calm_since; /* no service failed since */
    } lease;
    uint64_t known_epoch, adopted_epoch;
    struct {
        enum service_want want;
        enum service_state state[SERVICES_MAX];
    } services;
    struct {
        bool want_up, up;
        uint32_t request;
        struct mono retry;
        enum err err;
    } address;
    struct {
        bool ok, waiting; /* raised to our epoch; promotion waits for it */
        bool stale;       /* the DBMS says that our epoch is another's, or past */
        uint32_t request;
        struct mono retry, give_up;
    } fence;
    struct {
        bool known, ok;
        bool unfit; /* reached, but of a version or with a schema that we must not use */
        uint64_t epoch;
    } database;
    bool content; /* what is published is here: as it was told last */
    struct {
        bool known, alive; /* seen at all; seen to change */
        struct mono changed;
        struct node_rec rec;
    } peer;
    struct {
        bool written; /* our record is on the share: another's there is a duplicate */
        uint64_t seq;
        uint32_t ours_in_a_row;
    } self;
    struct {
        enum node_why why;
        bool to_peer, to_self, revoked;
        struct mono began, limit;
        struct mono retry; /* the release failed: not again before */
    } demotion;
    struct {
        bool services_told, walking;
        uint32_t walk_session;    /* in which the last walk released its epoch */
        uint64_t walk_epoch;      /* that epoch, until it has led to a promotion */
        struct mono walk_until;   /* the peer leaves it to us for longer than this */
        bool waited, walk_waited; /* the claim was made after the whole wait of L3; ... */
        struct mono limit;
        uint32_t refused;  /* claims in a row that brought nothing */
        struct mono retry; /* no claim before */
    } promotion;
    struct { /* the phases of the last takeover, for the history */
        struct mono old_alive, decided, claimed, fenced, activated, opened;
        uint32_t down_ms;
        enum node_why why;
        char from[RECORD_NAME_BYTES], from_why[32];
    } takeover;
};

/*
 * node_init - a stopped node.  known_epoch and maintenance come from the local disk.
 */
void node_init(struct node *n, const struct node_conf *conf, uint64_t known_epoch,
               bool maintenance);

/*
 * node_step - apply one event.
 *
 * out    overwritten: actions to be carried out in order.  An action has happened only
 * when an event says so. Cannot fail.  CHECKs that ev->now does not go back.
 */
void node_step(struct node *n, const struct node_event *ev, struct node_actions *out);

/* When node_step() wants a NODE_EV_TICK at the latest; MONO_FOREVER: only on events. */
struct mono node_next_wakeup(const struct node *n);

/* The invariants; CHECKs each.  Called after every step by run, simulator and fuzzers. */
void node_check(const struct node *n);

/* 0: prepared to take over.  Bits of enum node_obstacle. */
uint32_t node_obstacles(const struct node *n);

/* Passive, and nothing but published files is missing, if anything is. */
bool node_fit(const struct node *n);

/* Holds a lease whose deadline has not passed, as far as it knows. */
bool node_holds(const struct node *n);

/* Active, but something does not work as it should, or a failed service would not switch any
 * more (switch_max). */
bool node_degraded(const struct node *n);

/* Would the peer take over now, as far as this node can see? */
bool node_peer_can_take(const struct node *n);

/*
 * The same, or all that it lacks is published files: it serves those that it has.  Good enough
 * for what cannot wait, a service that failed here or a stop; an operator's wish can.
 */
bool node_peer_fit(const struct node *n);

/* The wait of L3 for a holder's hold: hold + 1 % + margin. */
uint32_t node_wait_ms(const struct node_conf *conf, uint32_t hold_ms);

const char *node_state_name(enum node_state s);
const char *node_why_name(enum node_why w);
/* Bit set of the states that s may move to. */
uint32_t node_moves_from(enum node_state s);

#endif
