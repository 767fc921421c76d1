/*
 * share: the state share, as the node machine needs it.
 *
 * Contract  submit() never blocks and never answers from within the call.  Each request is
 *           answered exactly once, within the time limit of the adapter; one request is in
 *           flight at a time (submit is not called before the answer).  ERR_TIMEOUT says
 *           nothing about whether a write landed, and it may still land later (L8).
 * Shape     Records are opaque bytes here; src/wire/record.h knows them.  Files:
 *               cluster          written once by `redoubt init`
 *               epoch/<n>        n in decimal without leading zeros; 512 bytes
 *               node/<name>      up to SHARE_NODE_BYTES
 *               request/<id>     up to SHARE_REQUEST_BYTES; request/pause = paused
 * Owns      Everything a request or an answer points to is borrowed for the call.
 * Who       sys/keeper (a child process that may hang alone), tests/sim.  Both pass
 *           tests/contract.
 * Threads   loop thread only
 */
#ifndef PORT_SHARE_H
#define PORT_SHARE_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

enum {
    SHARE_LEASE_BYTES = 512,
    SHARE_NODE_BYTES = 16384,
    SHARE_REQUEST_BYTES = 1024,
    SHARE_REQUESTS_MAX = 8,
    SHARE_NAME_BYTES = 80, /* "node/node-a" and its NUL */
    SHARE_MARK_BYTES = 48, /* "\"incarnation\":<20 digits>," and its NUL */
};

/*
 * The last epoch: exact in every JSON reader and far within a bigint of the DBMS.  A higher
 * number is no epoch: one planted file must not lead the nodes to where nothing can follow.
 */
#define SHARE_EPOCH_MAX ((UINT64_C(1) << 53) - 1)

enum share_op {
    SHARE_SCAN,  /* name = peer's node name, self = ours: everything, slowly (some ms) */
    SHARE_POLL,  /* epoch: read epoch/<n>, and look whether epoch/<n+1> exists */
    SHARE_CLAIM, /* epoch, session, body, will: create exclusively and write; ERR_EXISTS if
                      there.  Only over the connection whose reads found the lease free:
                      ERR_CLOSED, and nothing is created, if there is another by now */
    SHARE_RENEW, /* epoch, mark, body, will: read the file and look that it contains mark,
                      rewrite it, then look for n+1.  ERR_NOT_FOUND: the file has vanished;
                      ERR_STALE: it is another's, or n+1 exists */
    SHARE_RELEASE, /* epoch, body: as RENEW, and the will is dropped */
    SHARE_PUT, /* name, body: write a file that only this node writes, in place, so that
                      it works on a full share too: the MAC tells a torn one */
    SHARE_GET, /* name: read a file; ERR_NOT_FOUND */
    SHARE_REMOVE, /* name: remove a file; a missing one is ERR_OK */
    SHARE_PRUNE,  /* epoch: remove epoch/<m>, m <= epoch, a bounded number a call */
};

struct share_request {
    uint32_t id; /* never 0 */
    enum share_op op;
    uint64_t epoch;
    char name[SHARE_NAME_BYTES];
    char self[SHARE_NAME_BYTES]; /* SCAN: own node name */
    char mark
        [SHARE_MARK_BYTES]; /* RENEW, RELEASE: a piece of text that only our record has */
    uint32_t session;       /* CLAIM: of the answer that it rests on */
    struct str body;
    /* What the keeper writes over epoch/<n> once this daemon has died AND the guard has
     * confirmed that no service lives: the same record, released.  Replaces the last one. */
    struct str will;
};

struct share_file {
    char name[SHARE_NAME_BYTES]; /* without the folder: "pause" */
    struct str body;
};

struct share_answer {
    uint32_t id;
    enum err err;
    const struct err_info *why; /* NULL if ERR_OK */
    uint32_t latency_us;
    /* Differs from the last answer's whenever the connection to the file server was made anew
     * in between: the server may have crashed and forgotten what it had acknowledged. */
    uint32_t session;
    /* SCAN: highest epoch on the share, 0 if none.  POLL: the epoch asked for, or n+1 if
     * that exists (then lease is empty: scan next).  A vanished record: ERR_NOT_FOUND. */
    uint64_t top;
    struct str lease;               /* SCAN, POLL: the top record; empty if unreadable */
    struct str cluster, self, peer; /* SCAN: those files; empty if missing */
    struct str body;                /* GET */
    uint32_t request_count;         /* SCAN */
    struct share_file requests[SHARE_REQUESTS_MAX];
};

struct share_ops {
    void (*submit)(void *impl, const struct share_request *rq);
};

struct share {
    const struct share_ops *ops;
    void *impl; /* owned by the adapter */
};

#endif
