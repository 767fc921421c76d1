/*
 * store: the fenced DBMS session of the Administration Server.
 *
 * Purpose   Keeps one PostgreSQL session warm, announces the epoch when the node becomes
 *           active, and exchanges what devices say in batches: one batch is one
 *           transaction that checks the fence first (redoubt.device_exchange).  Several
 *           are on their way at a time (libpq pipeline mode); the loop never waits.
 *           Listens to the channel "redoubt", and reads, in standby too.
 * Shape     An item is one JSON object, element of the array that redoubt.device_exchange
 *           takes, with a ticket of the caller.  Bounds: STORE_ITEM_MAX bytes an item,
 *           STORE_BATCH_MAX items a batch, STORE_QUEUE_MAX batches waiting,
 *           STORE_READS_MAX reads waiting.
 * Owns      Items and values are copied; answers and rows are borrowed for the call.  The
 *           hooks are called from the loop, never from within store_add and store_read;
 *           they may call store_add, store_read and store_standby.
 * Safety    STORE_COMMITTED is told only after the DBMS reported the end of the
 *           transaction.  STORE_UNKNOWN may have been committed or not: the device sends
 *           again, and the identity of a report makes the second time harmless.
 * Errors    An item that the DBMS refuses as data (SQLSTATE classes 21, 22, 23) does not
 *           take the others of its batch with it: they are sent again one by one.
 *           Notifications are lost while there is no session: with each new one
 *           (`changed` from STORE_DOWN) the caller reads again what it keeps in memory.
 * Threads   loop thread only
 * Source    db/0001 (announce, check_epoch: SQLSTATE RD001), db/0010_exchange.sql
 */
#ifndef SYS_STORE_H
#define SYS_STORE_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/str.h"

enum {
    STORE_ITEM_MAX = 512 * 1024,
    STORE_BATCH_BYTES = 1024 * 1024,
    STORE_BATCH_MAX = 256,
    STORE_QUEUE_MAX = 8,
    STORE_IN_FLIGHT_MAX = 4,
    STORE_READS_MAX = 32,
    STORE_VALUE_MAX = 64 * 1024
};

enum store_outcome { STORE_COMMITTED, STORE_UNKNOWN, STORE_REFUSED };

enum store_state {
    STORE_DOWN,  /* no session; trying again */
    STORE_WARM,  /* connected; nothing announced */
    STORE_READY, /* epoch announced: writes are accepted */
    STORE_STALE  /* the fence is at a higher epoch: this node must not write */
};

/* What may be read, each with one text value; see store_queries in store.c. */
enum store_query {
    STORE_READ_POLICIES, /* {group: known hash} -> group, hash, document or NULL (known) */
    STORE_READ_DEVICES   /* occurrence or rollout -> devices that it has something for */
};

/* Rows of a read. */
struct store_rows;
uint32_t store_rows_count(const struct store_rows *r);
/* A field; {NULL, 0} if it is NULL. */
struct str store_rows_get(const struct store_rows *r, uint32_t row, uint32_t column);

/* What the end of a ticket's transaction brought. */
struct store_done {
    enum store_outcome outcome;
    const char *why;   /* words for STORE_UNKNOWN and STORE_REFUSED, else "" */
    struct str answer; /* STORE_COMMITTED: a JSON object, or empty */
};

struct store_hooks {
    void *arg;
    void (*done)(void *arg, uint64_t ticket, const struct store_done *done);
    /* rows: NULL if it failed */
    void (*read)(void *arg, enum store_query query, const struct store_rows *rows);
    /* A notification of the channel "redoubt". */
    void (*notified)(void *arg, struct str payload);
    /* The state changed; why it is down or stale. */
    void (*changed)(void *arg, enum store_state state, const char *why);
};

struct store_counts {
    uint64_t batches, items, refused, reconnects, notified;
};

struct store;

/* Starts to connect at once.  conninfo: of libpq, borrowed for the call. */
/* node: this node's name, as it raises the fence; "" for a program that is no node's. */
MUST_USE enum err store_new(sd_event *event, const char *conninfo, const char *node,
                            const struct store_hooks *hooks, struct store **out,
                            struct err_info *info);
void store_free(struct store *s);

/* The node is active with this epoch: announce it, now or as soon as there is a session. */
void store_active(struct store *s, uint64_t epoch);
/* The node is not active: what waits and what is on its way, reads too, is dropped without a
 * word, and so is the session if it was announced.  The caller reads again what it keeps in
 * memory with the next `changed`, as after STORE_DOWN. */
void store_standby(struct store *s);

/* ERR_STATE: not ready (the item is not taken).  ERR_LIMIT: too much waits. */
MUST_USE enum err store_add(struct store *s, uint64_t ticket, struct str item);

/* More waits than the DBMS takes at once: whoever can wait should not add to it. */
bool store_busy(const struct store *s);

/* ERR_STATE: no session.  ERR_LIMIT: too many wait, or the value is too long. */
MUST_USE enum err store_read(struct store *s, enum store_query query, const char *value);

enum store_state store_state(const struct store *s);
const char *store_state_name(enum store_state state);
const struct store_counts *store_counts(const struct store *s);

#endif
