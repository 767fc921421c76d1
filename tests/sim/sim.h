/*
 * sim: two nodes, one share, one DBMS and the weather, in one deterministic process.
 *
 * Purpose   Runs the product's own core and run code (src/core, src/run) against a world in
 *           which everything may go wrong, and checks after every event that at most one
 *           node serves.  One seed decides everything; the same seed gives the same trace.
 * Shape     True time is `now` in microseconds; each node has a clock of its own, off by up
 *           to 0.5 % either way.  Everything that will happen is an event in one heap.
 * Layers    Of design.md section 5.  They may be switched off one by one (struct layers), or
 *           they would mask each other's absence.
 * Start     world.c: sim_run()
 */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "run/node_run.h"

enum {
    NODES = 2, /* names in the cluster */
    HOSTS =
        3, /* the third, in some runs, is a second daemon with the name of the second */
    SERVICES = 3,
    EPOCHS = 192, /* of the simulated share */
    HEAP = 2048,
    PENDING = 16,     /* requests under way or still able to land late, a node */
    NODE_BYTES = 640, /* of a simulated node record */
};

struct rng {
    uint64_t s;
};

static inline uint64_t rng_next(struct rng *r)
{
    /* splitmix64 (Steele, Lea, Flood 2014) */
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* lo..hi, both included */
static inline uint32_t rng_in(struct rng *r, uint32_t lo, uint32_t hi)
{
    return lo + (uint32_t)(rng_next(r) % ((uint64_t)hi - lo + 1));
}

static inline bool rng_permille(struct rng *r, uint32_t p)
{
    return rng_next(r) % 1000 < p;
}

enum event_kind {
    SIM_NONE,
    SIM_TICK,          /* a node's own wakeup */
    SIM_SHARE_STEP,    /* the next step of a pending request lands on the share */
    SIM_SHARE_REPLY,   /* its answer arrives */
    SIM_SHARE_TIMEOUT, /* the adapter gives up */
    SIM_SERVICE,       /* a service finishes what it was doing */
    SIM_SERVICE_FAULT, /* a service breaks */
    SIM_ADDRESS,       /* up or down is done */
    SIM_FENCE,         /* raise is done at the DBMS (step 0), answered (step 1) */
    SIM_PROBE,         /* the DBMS is probed */
    SIM_COMMIT,        /* a service's transaction reaches its commit */
    SIM_GUARD,         /* the guard wakes up: deadline, or the daemon's death */
    SIM_KILLED,        /* the kill has ended the services */
    SIM_ACTS,          /* a service acts on a role that has been taken back meanwhile */
    SIM_WILL,          /* the keeper writes the last will of a dead daemon */
    SIM_BOOT,          /* the daemon starts */
    SIM_RESUME,        /* a paused daemon goes on */
    SIM_FAULT,         /* the weather changes */
};

struct event {
    uint64_t at;
    uint32_t order; /* of creation: ties are broken the same way every time */
    uint8_t kind, node;
    uint16_t arg;
    uint32_t life; /* of the daemon that it is meant for; 0: any */
    uint32_t arg2;
};

/* One request on its way between a keeper and the share. */
struct pending {
    bool used, answered, dead; /* dead: nothing of it lands any more */
    uint32_t id, life, serial;
    enum share_op op;
    uint64_t epoch, top;
    uint32_t step, session, asked_session;
    char will[RECORD_LEASE_BYTES];
    char mark[SHARE_MARK_BYTES];
    enum err err;
    char body[RECORD_LEASE_BYTES + NODE_BYTES];
    size_t body_n;
    char lease[RECORD_LEASE_BYTES];
    size_t lease_n;
    char rec[NODES][NODE_BYTES];
    size_t rec_n[NODES];
    bool pause;
};

struct service_sim {
    enum service_state told;  /* what the daemon has heard since the last set() */
    enum service_state state; /* what the adapter last reported */
    bool alive, active;       /* the process lives; it acts as active */
    bool broken;              /* hangs: does not hear of roles */
    bool under_way;           /* a transition to target has begun */
    uint64_t epoch;           /* it was told */
    uint32_t generation;      /* of its latest transition: older ones are void */
    enum service_state target;
};

struct host {
    bool on;             /* the computer runs */
    bool daemon, paused; /* the daemon lives; it does not run */
    bool frozen;         /* nothing on the computer runs */
    bool clock_stops;    /* ... and when it goes on, its clock has not moved */
    uint64_t frozen_at, resume_at;
    bool guard;
    uint32_t life;
    int32_t rate_ppm; /* of its clock, against true time */
    uint64_t offset;
    uint64_t tick_at;
    uint64_t serial_tick;
    struct node_run *run;
    struct service_sim service[SERVICES];
    enum service_want want;
    uint64_t want_epoch;
    uint64_t set_at;
    uint64_t revoked_epoch; /* of this life */
    uint64_t used_epoch;    /* the last one that was extended */
    uint32_t remembered_step;
    struct {
        uint64_t epoch;
        struct mono deadline; /* of the node's own clock; 0: none */
    } page;
    struct mono nft; /* the kernel's lease on the address */
    bool address;    /* present on the interface */
    uint32_t address_request;
    bool address_up;
    uint32_t fence_request;
    uint64_t fence_epoch;
    uint64_t fence_ok_epoch; /* answered ERR_OK, or unreachable, for this epoch */
    bool fence_answered;
    struct pending pending[PENDING];
    uint32_t pending_serial, session;
    uint32_t in_flight; /* slot of the latest request */
    uint64_t gives_up;  /* when the adapter does; one event for all that come and go */
    bool timeout_armed;
    /* The keeper's last will, and the record that it may replace. */
    char will[RECORD_LEASE_BYTES], will_over[RECORD_LEASE_BYTES];
    uint64_t will_epoch; /* 0: none */
    bool killing;
    uint64_t known_epoch; /* on its disk */
    bool maintenance;
    bool exited;
    uint32_t guard_serial;
};

struct version {
    char bytes[RECORD_LEASE_BYTES];
    size_t n;
    uint64_t until; /* when it was replaced */
};

struct share_sim {
    uint64_t top;     /* highest epoch that exists */
    uint32_t session; /* grows when the file server restarts */
    bool exists[EPOCHS];
    struct version now[EPOCHS], old[EPOCHS];
    char rec[NODES][NODE_BYTES];
    size_t rec_n[NODES];
    bool pause;
    char pause_body[256];
    size_t pause_n;
    char cluster[256];
    size_t cluster_n;
};

/* Layers that keep the loser harmless; true = on. */
struct layers {
    bool daemon, guard, kernel, service, fence;
};

/* Some runs look hard at one danger; what hides it in a mixed run is left out. */
enum focus {
    FOCUS_NONE,
    FOCUS_DRIFT,         /* L4: clocks 1 % apart, long holds, a holder that freezes */
    FOCUS_LATE_RENEWALS, /* L2: a renewal lands between the peer's last read and its claim */
    FOCUS_SLOW_CLAIMS, /* L5: a claim is answered late, then its maker is cut off */
    FOCUS_LOST_CLAIMS, /* L8: a claim never lands */
    FOCUS_FORGETTING,  /* L1: newest epochs vanish just after they were made */
    FOCUS_DOUBLED,     /* answers that come twice, and late */
    FOCUS_FROZEN,      /* nodes whose clocks stand still while they are frozen */
    FOCUS_ROLES,       /* roles given and taken back while services still change */
    FOCUS_COUNT
};

/* What may go wrong in this run, and how often; all drawn from the seed. */
struct weather {
    enum focus focus;
    uint32_t latency_us_min, latency_us_max;
    uint32_t slow_pm, lost_pm, hang_pm, late_pm, dup_pm, stale_pm, torn_pm, error_pm;
    uint32_t stale_ms; /* how far back a stale read may look */
    uint32_t kill_ms;  /* time that killing the services takes */
    uint32_t role_us_max, fence_us_max, role_timeout_ms;
    uint32_t slow_read_pm;
    uint32_t
        slow_lease_pm; /* claims and renewals that take long, but not too long to count */
    uint32_t moment_pm; /* something breaks just when a claim or renewal was answered */
    uint32_t stubborn_pm, address_fail_pm;
    uint32_t fault_every_ms;
    uint32_t service_fail_pm, service_hang_pm, start_fail_pm;
    bool crash, power, pause, suspend, guard_dies, restore, vanish, db_down, operators,
        cut, twin;
    bool share_faults;
    uint32_t content_pm;    /* a probe finds that more has been published */
    uint32_t content_never; /* bits of nodes that never get all of it */
};

/* Faults that hold now. */
struct faults {
    uint64_t share_down_until, share_full_until, share_denied_until, share_slow_until;
    uint64_t db_down_until;
    uint64_t cut_until[HOSTS];     /* requests of this node do not arrive */
    uint64_t deaf_until[HOSTS];    /* its answers do not come back */
    uint64_t bad_service_until;    /* services fail on both nodes */
    uint64_t content_until[HOSTS]; /* published files are not all on this node */
};

struct sim {
    uint64_t seed;
    struct rng rng, content; /* apart: what is published moves nothing else */
    uint64_t now, epoch_of_trace;
    bool trace, trace_io, fair;
    bool judge_serving; /* false: a suspended clock makes only the DBMS fence count */
    uint64_t hash;
    uint32_t order, steps, still;
    struct event heap[HEAP];
    uint32_t heap_n;
    struct node_conf conf;
    uint32_t hold_ms[HOSTS]; /* the nodes need not agree (L4) */
    struct mac_key key;
    struct layers layers;
    struct weather weather;
    struct faults faults;
    struct share_sim share;
    struct host host[HOSTS];
    struct { /* the DBMS */
        uint64_t fence;
        uint32_t fence_owner, last_commit_owner, replaced; /* a name; hosts */
        uint64_t last_commit_epoch;
        uint64_t commits;
    } db;
    uint64_t takeovers;
    const char *violation;
};

/* world.c */
void sim_set_up(struct sim *s, uint64_t seed, bool trace);
void sim_event(struct sim *s);
/* Both phases; NULL, or what was violated. */
const char *sim_run(struct sim *s, uint64_t seed, bool trace);
void sim_at(struct sim *s, uint64_t at, enum event_kind kind, uint32_t node, uint32_t arg,
            uint32_t life, uint32_t arg2);
void sim_after_us(struct sim *s, uint64_t us, enum event_kind kind, uint32_t node,
                  uint32_t arg, uint32_t life, uint32_t arg2);
void sim_note(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_violation(struct sim *s, const char *what);
const char *sim_node_name(uint32_t i); /* of a host, for the trace */

/* Which of the two names host i bears. */
static inline uint32_t sim_name(uint32_t i)
{
    return i < NODES ? i : 1;
}

/* host.c */
struct mono host_clock(const struct sim *s, uint32_t i);
uint64_t host_true_time(const struct sim *s, uint32_t i, struct mono local);
bool host_lacks_content(const struct sim *s, uint32_t i);
void host_boot(struct sim *s, uint32_t i);
void host_power_off(struct sim *s, uint32_t i);
void host_daemon_dies(struct sim *s, uint32_t i);
void host_guard_dies(struct sim *s, uint32_t i);
bool host_runs(const struct host *h);
uint64_t host_wakes(struct sim *s, uint32_t i);
void host_tick(struct sim *s, uint32_t i);
void host_schedule(struct sim *s, uint32_t i);
void host_event(struct sim *s, const struct event *e);
void host_resume(struct sim *s, uint32_t i);

/* services.c */
extern const struct services_ops sim_services_ops;
void services_event(struct sim *s, const struct event *e);
void services_killed(struct sim *s, uint32_t i);
void services_fail(struct sim *s, uint32_t i, uint32_t k, bool hang);
void services_revive(struct sim *s, uint32_t i);

/* share.c */
extern const struct share_ops sim_share_ops;
void share_init(struct sim *s);
void share_age(struct sim *s, uint64_t epochs);
void share_event(struct sim *s, const struct event *e);
void share_drop(struct sim *s, uint32_t i, bool may_land);
void share_restore(struct sim *s, uint64_t back);
void share_remove_top(struct sim *s);
void share_write_will(struct sim *s, uint32_t i);

/* weather.c */
void weather_draw(struct sim *s);
void weather_event(struct sim *s, const struct event *e);
void weather_fair(struct sim *s);
void weather_calm(struct sim *s);
void weather_freeze(struct sim *s, uint32_t i, bool whole, uint64_t until);
void weather_moment(struct sim *s, uint32_t i);
void weather_claim(struct sim *s, uint32_t i);
void weather_hung(struct sim *s);
void weather_told(struct sim *s, uint32_t i);
uint64_t weather_late_renewal(struct sim *s, uint32_t i);
uint64_t weather_bound_us(const struct sim *s);

/* judge.c */
void check_world(struct sim *s);
bool check_serves(const struct sim *s, uint32_t i);
bool check_address_open(const struct sim *s, uint32_t i);
bool check_healthy(const struct sim *s);

struct impl { /* what the ports get: which host of which world */
    struct sim *s;
    uint32_t i;
};
extern struct impl sim_impl[HOSTS];

#endif
