/*
 * licence: what the vendor allows: licences, and its answers to a code.
 *
 * Shape     A licence, an answer and a lease (lease.h) are the same kind of envelope:
 *               {"document": "<text>", "signature": "<128 hex digits>"}
 *           The signature (Ed25519) is over the bytes of <text>, which is JSON itself:
 *           nobody has to agree on a canonical form.  docs/protocol/activation.md.
 * Safety    Nothing of a document is looked at before its signature was verified.
 * Threads   any; libsodium must have been started (mac_start)
 * Tests     tests/unit/test_licence.c
 */
#ifndef SYS_LICENCE_H
#define SYS_LICENCE_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "wire/uuid.h"

enum {
    LICENCE_BYTES_MAX = 64 * 1024,
    LICENCE_FEATURES_MAX = 32,
    LICENCE_TEXT = 128,
    LICENCE_KEY_BYTES = 32,
    LICENCE_GRACE_MAX_S = 366 * 24 * 3600,
};

struct licence {
    struct uuid id;
    char customer[LICENCE_TEXT], product[LICENCE_TEXT];
    char cluster[LICENCE_TEXT]; /* name of the cluster it is for; "*": any */
    uint32_t seats;
    uint64_t serial; /* of the document; a lower one of the same licence is an old copy */
    int64_t issued;  /* 0: not said */
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
    X(REFUSED_REFUSED, "refused", 403, "The vendor refuses the activation code",         \
      "redoubt licence list tells why; ask the vendor.")                                 \
    X(REFUSED_PENDING, "pending", 503, "The vendor was not asked yet",                   \
      "Ask again in a minute. redoubt licence list tells what the vendor answered.")     \
    X(REFUSED_STALE, "stale", 403, "The vendor was not reached within the grace time",   \
      "Is the way to [activation] vendor open? redoubt licence list tells the error.")   \
    X(REFUSED_CLOCK, "clock_suspect", 503, "A clock of the cluster was set back",        \
      "Correct the clock that redoubt licence list names. Leases go on meanwhile.")      \
    X(REFUSED_REVOKED, "revoked", 403, "The device was revoked or removed",              \
      "Enrol it anew.")                                                                  \
    X(REFUSED_NOT_ADMITTED, "not_admitted", 403, "The device waits for approval",        \
      "redoubt device approve DEVICE lets it in.")                                       \
    X(REFUSED_FLOOD, "too_often", 429, "The device asks too often",                      \
      "Ask again after the time in Retry-After.")                                        \
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

/* What the vendor said to a code. */
struct licence_answer {
    char code[LICENCE_TEXT], nonce[LICENCE_TEXT];
    int64_t at; /* by the vendor's clock */
    bool refused;
    char reason[LICENCE_TEXT];        /* if it was */
    struct licence licence;           /* if not; with its own signature */
    int64_t valid_until, stale_until; /* stale_until: the grace has passed */
};

/* ERR_CORRUPT as licence_open(); the licence in it is verified, too. */
MUST_USE enum err licence_answer_open(struct licence_answer *out, struct str file,
                                      const uint8_t anchor[LICENCE_KEY_BYTES],
                                      struct err_info *info);

/* Does it look like an answer and not like a licence?  Says nothing about its worth. */
bool licence_is_answer(struct str file);

/* RFC 3339 in UTC, to the second: "2026-11-22T19:56:14Z". */
MUST_USE bool licence_time_parse(const char *text, int64_t *out);
void licence_time_format(char out[32], int64_t t);

/* File of [activation] anchor: 64 hex digits.  ERR_CONFIG or what reading it gave. */
MUST_USE enum err licence_anchor_load(const char *path, uint8_t out[LICENCE_KEY_BYTES],
                                      struct err_info *info);

#endif
