/*
 * ca: the certificate authority of a cluster, and what devices need to ask it (GnuTLS).
 *
 * Purpose   Makes the authority, checks signing requests, issues the certificates of devices
 *           and of the servers.  Knows no file and no network: bytes in, bytes out.
 * Shape     PEM text throughout.  Keys are ECDSA P-256.  A device's certificate carries its id
 *           as the subjectAltName URI urn:uuid:<id> and is for clientAuth only.
 * Owns      new/free pairs; struct ca_pem is plain data of the caller: wipe it with
 *           ca_pem_wipe if it held a key.
 * Safety    Of a request nothing goes into a certificate but its public key.  A request is
 *           bounded in size before it is decoded, its key is P-256 and it is signed by that
 *           key: who asks has the key.
 * Errors    ERR_LIMIT too long; ERR_CORRUPT no such object; ERR_DENIED not as it must be, in
 *           words for who made it.
 * Threads   any; an object belongs to one at a time
 * Source    RFC 2986 (requests), RFC 5280 (certificates), RFC 5480 (P-256)
 * Tests     tests/unit/test_ca.c, tests/fuzz/fuzz_csr.c
 */
#ifndef SYS_CA_H
#define SYS_CA_H

#include "base/err.h"
#include "base/str.h"
#include "wire/uuid.h"

enum {
    CA_PEM_MAX = 16 * 1024,
    CA_CSR_MAX = 8192,
    CA_HASH_BYTES = 32,
    CA_DIGEST = 44,     /* base64url of a SHA-256, NUL-terminated */
    CA_SERIAL_HEX = 33, /* 16 bytes, NUL-terminated */
    CA_NAMES_MAX = 32,
    CA_DAYS = 3650 /* of an authority that is made here */
};

struct ca_pem {
    size_t n;
    char text[CA_PEM_MAX]; /* NUL-terminated */
};

void ca_pem_wipe(struct ca_pem *p);
struct str ca_pem_str(const struct ca_pem *p);

struct ca;

/* A new authority: its certificate and its private key. */
MUST_USE enum err ca_create(const char *name, struct ca_pem *certificate,
                            struct ca_pem *key, struct err_info *info);
/* ERR_DENIED: no authority, not of this key, or not valid now. */
MUST_USE enum err ca_load(struct str certificate, struct str key, struct ca **out,
                          struct err_info *info);
void ca_free(struct ca *ca);

/* Base64url of the SHA-256 of a certificate's DER bytes: what an enrolment token pins. */
MUST_USE enum err ca_digest(struct str certificate, char out[CA_DIGEST],
                            struct err_info *info);
/* base64url without padding of a SHA-256 */
void ca_digest_text(const uint8_t hash[CA_HASH_BYTES], char out[CA_DIGEST]);

struct ca_csr;

MUST_USE enum err ca_csr_check(struct str pem, struct ca_csr **out,
                               struct err_info *info);
void ca_csr_free(struct ca_csr *r);
/* SHA-256 of its public key. */
MUST_USE enum err ca_csr_key_hash(const struct ca_csr *r, uint8_t out[CA_HASH_BYTES],
                                  struct err_info *info);
/* The device id that it asks for: its urn:uuid: name, or else a common name that is a UUID.
 * ERR_NOT_FOUND: it names none. */
MUST_USE enum err ca_csr_device(const struct ca_csr *r, struct uuid *out);

struct ca_issued {
    struct ca_pem pem;
    char serial[CA_SERIAL_HEX];
    int64_t not_before, not_after; /* Unix seconds */
};

/* For the key of a request.  ERR_DENIED: the request names another device. */
MUST_USE enum err ca_sign_device(const struct ca *ca, const struct ca_csr *r,
                                 const struct uuid *device, uint32_t days,
                                 struct ca_issued *out, struct err_info *info);

struct ca_names {
    const char *at[CA_NAMES_MAX]; /* host names or addresses; borrowed */
    uint32_t count;
};

/* For a key that more than one node has. */
MUST_USE enum err ca_sign_server_key(const struct ca *ca, const struct ca_names *names,
                                     uint32_t days, struct str key, struct ca_issued *out,
                                     struct err_info *info);
/* With a key of its own, which is made here. */
MUST_USE enum err ca_sign_server(const struct ca *ca, const struct ca_names *names,
                                 uint32_t days, struct ca_issued *out, struct ca_pem *key,
                                 struct err_info *info);

/* --- the device's side --- */

MUST_USE enum err ca_key_new(struct ca_pem *key, struct err_info *info);
/* device: NULL before the first certificate. */
MUST_USE enum err ca_csr_new(struct str key, const char *name, const struct uuid *device,
                             struct ca_pem *out, struct err_info *info);

struct ca_certificate {
    struct uuid device;
    bool has_device;
    char serial[2 * 32 + 1];
    int64_t not_before, not_after;
};

/* What a certificate says. */
MUST_USE enum err ca_certificate_read(struct str pem, struct ca_certificate *out,
                                      struct err_info *info);
/* Is it of this key, and signed by this authority (unless that is empty)? */
MUST_USE enum err ca_certificate_check(struct str pem, struct str key,
                                       struct str authority, struct err_info *info);

#endif
