/*
 * fence: the DBMS fence as the node machine sees it (port/fence.h), and the DBMS's health.
 *
 * Purpose   Keeps one warm connection, over which it probes the DBMS every probe_ms and
 *           raises the fence (db/0001_fence.sql) when asked.
 * Contract  raise() is answered exactly once, from the loop, within fence_timeout_ms:
 *               ERR_OK       the fence is at this epoch and nobody else can commit
 *               ERR_STALE    the fence is at a higher one, or at this one for the other
 *                            node: `found`
 *               ERR_STATE    a transaction stands in the way, or a new raise() came
 *               ERR_TIMEOUT  unknown; a later raise() of the same epoch is harmless
 *               other        why the DBMS cannot do it; err_may_retry()
 *           Within its time a raise is tried again over a new connection when the old one
 *           turns out to be dead.
 * Safety    Only ERR_OK says that the fence stands.  The fence's epoch comes with every
 *           good probe: a DBMS that went back in time is seen there.
 * Owns      struct fence_pg owns connection and timers; option texts are copied.
 * Threads   loop thread only; the process must have one thread (lookup.h)
 * Tests     tests/unit/test_fence.c, with a real PostgreSQL
 */
#ifndef SYS_FENCE_FENCE_H
#define SYS_FENCE_FENCE_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "port/fence.h"

enum {
    FENCE_SCHEMA_VERSION = 15, /* the newest file in db/ */
    FENCE_SERVER_MIN = 130000,
};

/* What is wrong with the DBMS: stable names for status, alarms and metrics. */
#define FENCE_STATES(X)                                                                  \
    X(FENCE_GOOD, "ok")                                                                  \
    X(FENCE_UNKNOWN, "database_unknown")         /* not yet asked */                     \
    X(FENCE_UNREACHABLE, "database_unreachable") /* no connection, or no answer */       \
    X(FENCE_DENIED, "database_denied")           /* password, pg_hba.conf or rights */   \
    X(FENCE_READ_ONLY, "database_read_only")     /* a PostgreSQL standby */              \
    X(FENCE_SERVER_TOO_OLD, "database_too_old")  /* PostgreSQL before 13 */              \
    X(FENCE_SCHEMA_MISSING, "schema_missing")    /* `redoubt init` was not run */        \
    X(FENCE_SCHEMA_TOO_OLD, "schema_too_old")    /* `redoubt database migrate` */        \
    X(FENCE_SCHEMA_TOO_NEW, "schema_too_new")    /* this program is too old for it */    \
    X(FENCE_BROKEN, "database_error")            /* see why */

enum fence_state {
#define X(code, name) code,
    FENCE_STATES(X)
#undef X
        FENCE_STATE_COUNT
};

const char *fence_state_name(enum fence_state s);

struct fence_health {
    bool ok; /* state == FENCE_GOOD */
    enum fence_state state;
    uint32_t latency_us;        /* of the probe; 0 if it failed */
    uint64_t epoch;             /* of the fence; 0 if not ok */
    int server_version;         /* 150016; 0 if not connected */
    int schema;                 /* newest migration; 0 if unknown */
    const struct err_info *why; /* NULL if ok; borrowed for the call */
};

struct fence_options {
    const char *conninfo, *node;
    uint32_t probe_ms, fence_timeout_ms;
};

struct fence_events {
    void (*answer)(void *ctx, uint32_t request, enum err err, uint64_t found,
                   const struct err_info *why);
    /* After every probe, good or bad, and whenever the connection fails. */
    void (*health)(void *ctx, const struct fence_health *health);
    void *ctx;
};

struct fence_pg;

/* ERR_CONFIG: the conninfo is wrong.  An absent DBMS is no error: health says so. */
MUST_USE enum err fence_open(struct fence_pg **out, sd_event *loop,
                             const struct fence_options *o,
                             const struct fence_events *events, struct err_info *info);
/* A raise that is under way is not answered any more. */
void fence_close(struct fence_pg *f);

struct fence fence_port(struct fence_pg *f);

#endif
