/*
 * store: the fenced DBMS session of the Administration Server.
 *
 * Purpose   Keeps one PostgreSQL session warm, announces the epoch when the node becomes
 *           active, and writes what devices say in batches: one batch is one transaction
 *           that checks the fence first (redoubt.device_store).  Several batches are on
 *           their way at a time (libpq pipeline mode); the loop never waits.
 * Shape     An item is one JSON object, element of the array that redoubt.device_store
 *           takes, with a ticket of the caller.  Bounds: STORE_ITEM_MAX bytes an item,
 *           STORE_BATCH_MAX items a batch, STORE_QUEUE_MAX batches waiting.
 * Owns      Items are copied.  The hooks are called from the loop, never from within
 *           store_add; they may call store_add and store_standby.
 * Safety    STORE_COMMITTED is told only after the DBMS reported the end of the
 *           transaction.  STORE_UNKNOWN may have been committed or not: the device sends
 *           again, and the identity of a report makes the second time harmless.
 * Errors    An item that the DBMS refuses as data (SQLSTATE classes 21, 22, 23) does not
 *           take the others of its batch with it: they are sent again one by one.
 * Threads   loop thread only
 * Source    db/0001 (announce, check_epoch: SQLSTATE RD001), db/0002_devices.sql
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
    STORE_IN_FLIGHT_MAX = 4
};

enum store_outcome { STORE_COMMITTED, STORE_UNKNOWN, STORE_REFUSED };

enum store_state {
    STORE_DOWN,  /* no session; trying again */
    STORE_WARM,  /* connected; nothing announced */
    STORE_READY, /* epoch announced: writes are accepted */
    STORE_STALE  /* the fence is at a higher epoch: this node must not write */
};

struct store_hooks {
    void *arg;
    /* why: words for STORE_UNKNOWN and STORE_REFUSED, else "" */
    void (*done)(void *arg, uint64_t ticket, enum store_outcome outcome, const char *why);
    /* The state changed; why it is down or stale. */
    void (*changed)(void *arg, enum store_state state, const char *why);
};

struct store_counts {
    uint64_t batches, items, stored, doubled, refused, reconnects;
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
/* The node is not active: what waits and what is on its way is dropped without a word. */
void store_standby(struct store *s);

/* ERR_STATE: not ready (the item is not taken).  ERR_LIMIT: too much waits. */
MUST_USE enum err store_add(struct store *s, uint64_t ticket, struct str item);

enum store_state store_state(const struct store *s);
const char *store_state_name(enum store_state state);
const struct store_counts *store_counts(const struct store *s);

#endif
