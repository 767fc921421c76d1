/*
 * lease: what this cluster gives a device under a licence, signed with the cluster's lease key.
 *
 * Shape     The envelope of licence.h with "key" beside it, the public half of the lease
 *           key.  The same licence, terms and key give the same bytes (Ed25519 is
 *           deterministic), so nobody stores leases: what is stored are the terms.
 * Safety    Who reads one knows from elsewhere who gave it (a TLS connection to the
 *           cluster's authority); the signature holds what was given together.
 * Threads   any; libsodium must have been started (mac_start)
 * Tests     tests/unit/test_licence.c, tests/fuzz/fuzz_licence.c
 */
#ifndef SYS_LEASE_H
#define SYS_LEASE_H

#include "sys/licence/licence.h"

enum {
    LEASE_RENEW_MAX_S =
        7 * 24 * 3600, /* a device asks again after this, or half its life */
    LEASE_BYTES_MAX = 32 * 1024,
    LEASE_KEY_HEX = 2 * LICENCE_KEY_BYTES + 1,
    LEASE_SECRET_BYTES = 64
};

struct lease_signer {
    char public_hex[LEASE_KEY_HEX];
    uint8_t secret[LEASE_SECRET_BYTES];
};

void lease_signer_init(struct lease_signer *s, const uint8_t seed[LICENCE_KEY_BYTES]);

struct lease_terms {
    struct uuid device;
    const char *device_key; /* SHA-256 of its SubjectPublicKeyInfo, in hex */
    const char *cluster;
    int64_t issued, expires;
};

/* When the device is to ask again. */
int64_t lease_renew_after(int64_t issued, int64_t expires);

/* From malloc; NULL: out of memory. */
char *lease_sign(const struct licence *l, const struct lease_terms *terms,
                 const struct lease_signer *signer);

/* A lease as a device reads it. */
struct lease {
    struct uuid device;
    char device_key[LEASE_KEY_HEX];
    char key[LEASE_KEY_HEX]; /* whose signature it carries */
    int64_t issued, renew_after, expires;
};

/* ERR_CORRUPT: no lease, or not signed with the key beside it. */
MUST_USE enum err lease_open(struct lease *out, struct str envelope,
                             struct err_info *info);

#endif
