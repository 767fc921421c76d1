/*
 * pool: some sessions of the DBMS, and the queries that wait for one.
 *
 * Purpose   Whoever needs the DBMS says what and gets the answer later.  While the node is
 *           active its sessions have announced (epoch, 'manager', node); in standby they
 *           are connected and idle.  The first one LISTENs to the channel redoubt.
 * Contract  Each query is answered exactly once, from the loop, never from within
 *           pool_query(): by the DBMS, or with ERR_TIMEOUT, ERR_CLOSED, or ERR_STALE when
 *           the role ended.  After a timeout or a loss the outcome is unknown.
 * Shape     POOL_SESSIONS sessions, POOL_QUEUE_MAX queries waiting for at most
 *           POOL_WAIT_MS; what is more is refused.
 * Owns      pool_query copies its values; sql must be static.
 * Threads   loop thread only
 * Tests     tests/contract/test_manager.py
 */
#ifndef APP_MANAGER_POOL_H
#define APP_MANAGER_POOL_H

#include "sys/fence/dbc.h"

enum {
    POOL_SESSIONS = 4,
    POOL_QUEUE_MAX = 256,
    POOL_WAIT_MS = 5000,
    POOL_QUERY_MS = 10000,
    POOL_VALUES_MAX = 12,
};

struct pool_options {
    sd_event *loop;
    const char *conninfo, *node; /* borrowed for the call; node: until pool_close */
    void *arg;
    /* A notification of the channel redoubt came; "" after some may have been lost. */
    void (*notified)(void *arg, const char *payload);
};

struct pool;

MUST_USE enum err pool_open(struct pool **out, const struct pool_options *o,
                            struct err_info *info);
/* Answers what waits with ERR_CLOSED first. */
void pool_close(struct pool *p);

/* The sessions announce this epoch before their next query. */
void pool_active(struct pool *p, uint64_t epoch);
/* Every query, waiting or under way, is answered with ERR_STALE within the call. */
void pool_standby(struct pool *p);

/* ERR_LIMIT: too many wait.  ERR_STALE: not active.  Else done() will come. */
MUST_USE enum err pool_query(struct pool *p, const char *sql, size_t count,
                             const char *const values[], dbc_done *done, void *ctx,
                             struct err_info *info);

bool pool_connected(const struct pool *p);
/* Why it is not: the last words of the DBMS, "" if none. */
const char *pool_why(const struct pool *p);
/* Call it about once a second. */
void pool_sweep(struct pool *p);

#endif
