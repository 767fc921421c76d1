/*
 * mac: keyed checksums of records, so that who can write to the share cannot forge one.
 *
 * Shape     Keys and MACs are 32 bytes.  BLAKE2b, keyed (libsodium crypto_generichash).
 * Safety    The MAC covers the record's name too: a record copied to another name does
 *           not verify.  Comparison takes constant time.
 * Threads   any; call mac_start() once in main() before any other
 * Source    RFC 7693
 */
#ifndef BASE_MAC_H
#define BASE_MAC_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

enum { MAC_BYTES = 32, MAC_KEY_BYTES = 32 };

struct mac_key {
    uint8_t bytes[MAC_KEY_BYTES];
};

struct mac {
    uint8_t bytes[MAC_BYTES];
};

/* Prepares libsodium; ERR_UNSUPPORTED if it cannot work on this machine. */
MUST_USE enum err mac_start(void);

void mac_of(struct mac *out, const struct mac_key *key, struct str name, struct str body);
bool mac_verifies(const struct mac *mac, const struct mac_key *key, struct str name,
                  struct str body);

#endif
