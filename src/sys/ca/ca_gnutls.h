/*
 * ca_gnutls: what the files of this folder share; nobody else includes it.
 *
 * Owns      what an import gives is the caller's to deinit
 */
#ifndef SYS_CA_GNUTLS_H
#define SYS_CA_GNUTLS_H

#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include "sys/ca/ca.h"

enum err ca_failed(struct err_info *info, enum err e, int code, const char *what);
gnutls_datum_t ca_datum(struct str s);
/* Copies *d, which is freed, unless code tells of a failure. */
MUST_USE enum err ca_take_pem(int code, gnutls_datum_t *d, struct ca_pem *out,
                              struct err_info *info);
MUST_USE enum err ca_bounded(struct str pem, size_t most, struct err_info *info);
MUST_USE enum err ca_key_import(struct str pem, gnutls_x509_privkey_t *out,
                                struct err_info *info);
MUST_USE enum err ca_crt_import(struct str pem, gnutls_x509_crt_t *out,
                                struct err_info *info);
/* Does the certificate hold the public half of the key? */
bool ca_same_key(gnutls_x509_crt_t crt, gnutls_x509_privkey_t key);
/* Is the name urn:uuid:<id>? */
bool ca_uri_device(const char *name, size_t n, struct uuid *out);
gnutls_pubkey_t ca_csr_key(const struct ca_csr *r);

#endif
