/*
 * record: the sealed records on the state share.
 *
 * Shape     body '\n' mac '\n', where body is one JSON object and mac is 64 lower-case hex
 *           digits: the keyed MAC (base/mac.h) of the record's path below the share
 *           ("epoch/12") and the body.  A lease record is padded with blanks in the body
 *           to exactly RECORD_LEASE_BYTES, so that a rewrite never changes the length.
 * Safety    A record counts only if its MAC verifies for its own name: torn, forged,
 *           copied and foreign records are ERR_CORRUPT, and never mean "released".
 * Errors    ERR_CORRUPT bytes that do not verify or decode; ERR_VERSION verified, but of
 *           a newer format; ERR_FOREIGN verified, but of another cluster; ERR_LIMIT the
 *           output buffer is too small.
 * Threads   any; pure
 * Source    docs/protocol/share.md
 * Tests     tests/unit/test_record.c, tests/fuzz/fuzz_record.c
 */
#ifndef WIRE_RECORD_H
#define WIRE_RECORD_H

#include <stdint.h>

#include "base/mac.h"

enum {
    RECORD_FORMAT = 1,
    RECORD_LEASE_BYTES = 512,
    RECORD_TRAILER_BYTES = 2 * MAC_BYTES + 2, /* '\n' mac '\n' */
    RECORD_NAME_BYTES = 32,                   /* a node's name and its NUL */
    RECORD_CLUSTER_BYTES = 33,                /* 32 hex digits and a NUL */
    /* No holder may ask for more: what a watcher assumes of a record it cannot read. */
    RECORD_HOLD_MAX_MS = 60000,
};

/* Node names: 1..31 of [a-z0-9-], starting with a letter; they name files on the share. */
bool record_name_ok(struct str name);

/* Why a lease changed hands, as the holder wrote it. */
struct lease_rec {
    char cluster[RECORD_CLUSTER_BYTES];
    uint64_t epoch;
    char owner[RECORD_NAME_BYTES];
    uint64_t incarnation; /* random, new at each start of a daemon */
    uint64_t seq;         /* grows with each rewrite of this epoch */
    bool released;
    uint32_t hold_ms; /* 1..RECORD_HOLD_MAX_MS: the watcher's wait is made from it (L4) */
    char to[RECORD_NAME_BYTES]; /* released: who shall take it; "" = who comes first */
    char why[32];               /* released: the reason, a stable word */
    uint32_t down_ms;           /* released: how long the services had been down then */
    uint32_t moves; /* switches because of a failed service, in a row (ping-pong bound) */
};

/* The part of a node's record that decisions depend on; the rest is for people. */
struct node_rec {
    char cluster[RECORD_CLUSTER_BYTES];
    char node[RECORD_NAME_BYTES];
    uint64_t incarnation;
    uint64_t seq;
    uint64_t known_epoch; /* the highest epoch that this node has ever heard of */
    uint32_t hold_ms;     /* its word for a lease of its own that cannot be read (L4) */
    bool ready;
    bool fit; /* passive, and nothing but published files is missing, if anything */
    bool maintenance;
    char state[16];
};

/*
 * record_seal - body and its MAC into buf.
 * size    of buf; at least body.n + RECORD_TRAILER_BYTES, else ERR_LIMIT
 */
MUST_USE enum err record_seal(char *buf, size_t size, size_t *out_n,
                              const struct mac_key *key, struct str name,
                              struct str body);

/* The verified body inside bytes (borrowed), which is well-formed JSON. */
MUST_USE enum err record_open(struct str bytes, const struct mac_key *key,
                              struct str name, struct str *out_body);

/*
 * record_cluster_id - the cluster's id, made from its key: who has the key knows the id, and
 * a share sealed with another key is another cluster's.
 */
void record_cluster_id(char out[RECORD_CLUSTER_BYTES], const struct mac_key *key);

/* Is this the sealed file `cluster` of that cluster?  ERR_FOREIGN: wrong key or another's. */
MUST_USE enum err cluster_check(struct str bytes, const struct mac_key *key,
                                const char *cluster);

/* "epoch/<n>" into name. */
void record_epoch_name(char *name, size_t size, uint64_t epoch);

MUST_USE enum err lease_encode(char buf[RECORD_LEASE_BYTES], const struct mac_key *key,
                               const struct lease_rec *rec);
/* cluster: what the record must say, else ERR_FOREIGN.  epoch: of the file's name. */
MUST_USE enum err lease_decode(struct lease_rec *out, const struct mac_key *key,
                               const char *cluster, uint64_t epoch, struct str bytes);

/*
 * node_rec_encode - extra is a JSON object's members without braces, or empty
 *                   ("\"services\":[...]"), put behind ours.
 */
MUST_USE enum err node_rec_encode(char *buf, size_t size, size_t *out_n,
                                  const struct mac_key *key, const struct node_rec *rec,
                                  struct str extra);
MUST_USE enum err node_rec_decode(struct node_rec *out, const struct mac_key *key,
                                  const char *cluster, const char *node,
                                  struct str bytes);

#endif
