/*
 * licence: what the vendor allows, and the leases this cluster hands out under it.
 *
 * Shape     A licence file and a lease are the same kind of envelope:
 *               {"document": "<text>", "signature": "<128 hex digits>"}
 *           The signature (Ed25519) is over the bytes of <text>, which is JSON itself:
 *           nobody has to agree on a canonical form.  docs/protocol/activation.md.
 * Safety    Nothing of a document is looked at before its signature was verified.
 * Threads   any; libsodium must have been started (mac_start)
 * Tests     tests/unit/test_licence.c
 */
#ifndef APP_ACTIVATION_LICENCE_H
#define APP_ACTIVATION_LICENCE_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "wire/uuid.h"

enum {
    LICENCE_BYTES_MAX = 64 * 1024,
    LICENCE_FEATURES_MAX = 32,
    LICENCE_TEXT = 128,
    LICENCE_KEY_BYTES = 32,
    LEASE_HOLD_S = 30 * 24 * 3600, /* a device may go on this long without a renewal */
    LEASE_RENEW_S = 7 * 24 * 3600, /* and should ask again after this */
    LEASE_BYTES_MAX = 8 * 1024,
};

struct licence {
    struct uuid id;
    char customer[LICENCE_TEXT], product[LICENCE_TEXT];
    char cluster[LICENCE_TEXT]; /* name of the cluster it is for; "*": any */
    uint32_t seats;
    int64_t not_before, expires; /* seconds since 1970, UTC; until before `expires` */
    uint32_t feature_count;
    char features[LICENCE_FEATURES_MAX][LICENCE_TEXT];
};

/* Why a device gets no lease.  id, HTTP status, title, suggestion */
#define REFUSALS(X)                                                                      \
    X(REFUSED_NOT_ACTIVE, "not_active", 503, "This node is not active",                  \
      "Ask again at the cluster's address.")                                             \
    X(REFUSED_DATABASE, "database_unavailable", 503, "The seat cannot be recorded",      \
      "Ask again in a minute. The lease the device has goes on.")                        \
    X(REFUSED_BUSY, "busy", 503, "Too many devices ask at once",                         \
      "Ask again in a minute.")                                                          \
    X(REFUSED_NO_LICENCE, "no_licence", 403, "There is no licence",                      \
      "Put the vendor's licence file where [activation] licence says, on both nodes.")   \
    X(REFUSED_BAD_LICENCE, "bad_licence", 403, "The licence file is not valid",          \
      "Install the file exactly as the vendor sent it; it carries a signature.")         \
    X(REFUSED_OTHER_CLUSTER, "other_cluster", 403, "The licence is for another cluster", \
      "Ask the vendor for a licence for this cluster's name.")                           \
    X(REFUSED_NOT_YET_VALID, "not_yet_valid", 403, "The licence is not valid yet",       \
      "Wait until it begins, or correct the clock of the nodes.")                        \
    X(REFUSED_EXPIRED, "expired", 403, "The licence has expired",                        \
      "Renew the licence. Devices stay protected with what they have.")                  \
    X(REFUSED_SEATS_FULL, "seats_full", 409, "All seats of the licence are taken",       \
      "Extend the licence, or wait until the seat of a device that is gone expires.")    \
    X(REFUSED_STRANGER, "stranger", 403, "No device certificate was shown",              \
      "Connect with the device's own certificate (urn:uuid: of the device).")            \
    X(REFUSED_OTHER_DEVICE, "other_device", 403, "The request is for another device",    \
      "A device asks for itself only.")                                                  \
    X(REFUSED_BAD_REQUEST, "bad_request", 400, "The request is not understood",          \
      "See docs/protocol/activation.md.")

enum refusal {
    REFUSED_NOT,
#define X(code, id, status, title, suggestion) code,
    REFUSALS(X)
#undef X
};

struct refusal_words {
    const char *id, *title, *suggestion;
    unsigned status;
};

/* Not for REFUSED_NOT. */
const struct refusal_words *refusal_words(enum refusal r);

/*
 * licence_open - verify and read a licence file.
 *
 * ERR_CORRUPT: no envelope, a wrong signature, or a document that is not understood;
 * info says which.
 */
MUST_USE enum err licence_open(struct licence *out, struct str file,
                               const uint8_t anchor[LICENCE_KEY_BYTES],
                               struct err_info *info);

/* May a device of this cluster have a lease at this time? */
enum refusal licence_refuses(const struct licence *l, const char *cluster, int64_t now);

struct lease_terms {
    struct uuid device;
    const char *cluster;
    int64_t issued, expires;
};

/*
 * licence_lease - the signed envelope of a lease, from malloc; NULL: out of memory.
 *
 * seed  of the cluster's lease key.
 */
char *licence_lease(const struct licence *l, const struct lease_terms *terms,
                    const uint8_t seed[LICENCE_KEY_BYTES]);

/* RFC 3339 in UTC, to the second: "2026-11-22T19:56:14Z". */
MUST_USE bool licence_time_parse(const char *text, int64_t *out);
void licence_time_format(char out[32], int64_t t);

#endif
