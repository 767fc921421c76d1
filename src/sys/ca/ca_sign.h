/*
 * ca_sign: signatures of what the cluster publishes: packages, manifests, updates of agents.
 *
 * Purpose   A key for signing with a certificate of the authority, so that whoever pins the
 *           authority can verify what it is handed, from wherever the bytes came.
 * Shape     signer      PEM: the private key (Ed25519), then its certificate (codeSigning)
 *           signature   64 bytes Ed25519 over the 32 bytes of the file's SHA-256, then the
 *                       certificate of the signer, DER
 * Safety    A certificate of a device or a server signs nothing: only codeSigning counts.
 * Errors    ERR_DENIED not signed by this authority's signer, in words for people;
 *           ERR_CORRUPT ERR_LIMIT no such object
 * Threads   any
 * Source    RFC 8032 (Ed25519), RFC 8410 (in X.509)
 * Tests     tests/unit/test_ca.c
 */
#ifndef SYS_CA_SIGN_H
#define SYS_CA_SIGN_H

#include "sys/ca/ca.h"

enum { CA_SIGNATURE_MIN = 64 + 1, CA_SIGNATURE_MAX = 8192 };

struct ca_signature {
    size_t n;
    uint8_t bytes[CA_SIGNATURE_MAX];
};

/* A new signer: good as long as its authority. */
MUST_USE enum err ca_create_signer(const struct ca *ca, const char *name,
                                   struct ca_pem *out, struct err_info *info);
/* Is it a signer of this authority (PEM)? */
MUST_USE enum err ca_check_signer(struct str signer, struct str authority,
                                  struct err_info *info);
MUST_USE enum err ca_sign_digest(struct str signer, const uint8_t sha256[CA_HASH_BYTES],
                                 struct ca_signature *out, struct err_info *info);
/* authority: PEM, what the caller has pinned. */
MUST_USE enum err ca_verify_digest(struct str authority,
                                   const uint8_t sha256[CA_HASH_BYTES],
                                   struct str signature, struct err_info *info);

#endif
