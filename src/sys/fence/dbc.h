/*
 * dbc: one connection to PostgreSQL that never blocks and comes back by itself.
 *
 * Purpose   libpq on sd-event: connects, runs one query at a time with a time limit, and
 *           reconnects with backoff after a loss until it is closed.
 * Contract  Callbacks come from the loop, never from within a call.  Each query is
 *           answered exactly once: ERR_OK, ERR_TIMEOUT (the outcome is unknown), ERR_CLOSED,
 *           or what the DBMS said (dbc_error).  After a timeout the connection is dropped.
 *           A callback may call anything here but dbc_close().
 * Safety    Names are looked up in a child (lookup.h); connecting and queries have limits.
 * Owns      struct dbc owns the dsn it is given.
 * Threads   loop thread only
 * Tests     tests/unit/test_fence.c
 */
#ifndef SYS_FENCE_DBC_H
#define SYS_FENCE_DBC_H

#include <libpq-fe.h>
#include <systemd/sd-event.h>

#include "sys/fence/dsn.h"

enum { DBC_SQLSTATE = 6 };

struct dbc_events {
    void (*up)(void *ctx);
    /* The connection was lost, or an attempt to connect failed.  Comes again. */
    void (*down)(void *ctx, enum err err, const struct err_info *why);
    /* A notification of a channel that the session LISTENs to.  May be NULL. */
    void (*notify)(void *ctx, const char *channel, const char *payload);
    void *ctx;
};

/* result: NULL unless the DBMS answered; borrowed for the call. */
typedef void dbc_done(void *ctx, enum err err, const PGresult *result,
                      const struct err_info *why);

struct dbc;

MUST_USE enum err dbc_open(struct dbc **out, sd_event *loop, struct dsn *dsn,
                           uint32_t connect_timeout_ms, const struct dbc_events *events,
                           struct err_info *info);
/* The query in flight is not answered.  No events after it returns. */
void dbc_close(struct dbc *d);

/* Connected and without a query in flight? */
bool dbc_idle(const struct dbc *d);
bool dbc_connected(const struct dbc *d);
/* As PQserverVersion(); 0 if not connected. */
int dbc_server_version(const struct dbc *d);

/* Only if dbc_idle().  values: text, NULL is SQL NULL; all borrowed for the call. */
void dbc_query(struct dbc *d, uint32_t timeout_ms, const char *sql, size_t count,
               const char *const values[], dbc_done *done, void *ctx);
/* The query in flight, or the attempt to connect, gets at most this long from now. */
void dbc_hurry(struct dbc *d, uint32_t timeout_ms);
/* Connect at once if it is waiting to try again; the backoff starts anew. */
void dbc_retry_now(struct dbc *d);

/*
 * dbc_error - what a failed result means: ERR_STALE for RD001, ERR_DENIED, ERR_NOT_FOUND
 *             (schema, table or function is missing), ERR_STATE (read-only), ERR_LIMIT,
 *             ERR_CLOSED (the DBMS is going), else ERR_IO.  state: out, may be NULL.
 */
enum err dbc_error(const PGresult *result, char state[DBC_SQLSTATE],
                   struct err_info *info);

#endif
