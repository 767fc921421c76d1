/*
 * seal: secrets that lie on a share, readable with the cluster key only.
 *
 * Shape     "RDSEAL1\n", a nonce of 24 bytes, XSalsa20-Poly1305 (libsodium secretbox).
 * Safety    The key is derived from the cluster key and the name of the secret: what is sealed
 *           as one cannot be passed off as another, nor without the cluster key be read or
 *           changed.
 * Threads   any, after mac_start()
 * Tests     tests/unit/test_ca.c
 */
#ifndef SYS_CA_SEAL_H
#define SYS_CA_SEAL_H

#include "base/mac.h"

enum { SEAL_EXTRA = 8 + 24 + 16 };

/* out: body.n + SEAL_EXTRA bytes at least; ERR_LIMIT if there is less room. */
MUST_USE enum err seal_close(const struct mac_key *key, struct str name, struct str body,
                             void *out, size_t size, size_t *ret_n);
/* ERR_CORRUPT: not sealed with this key under this name, or changed since. */
MUST_USE enum err seal_open(const struct mac_key *key, struct str name, struct str sealed,
                            void *out, size_t size, size_t *ret_n);

#endif
