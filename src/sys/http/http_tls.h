/*
 * http_tls: the certificate of an HTTP server, read again when its files change.
 *
 * Purpose   Certificates are renewed while the server runs.  A handshake looks at the two
 *           files; if they changed and belong together, they are used from then on.
 * Owns      http_tls_new/free.  What a handshake was given stays valid until then.
 * Errors    ERR_CONFIG: a file is missing or wrong, in words.  Later changes that cannot be
 *           used are logged once, and the certificate of before stays.
 * Threads   loop thread only
 * Tests     tests/unit/test_http.c
 */
#ifndef SYS_HTTP_TLS_H
#define SYS_HTTP_TLS_H

#include <gnutls/abstract.h>

#include "base/err.h"

struct http_tls;

/* The paths are copied. */
MUST_USE enum err http_tls_new(const char *certificate, const char *key,
                               struct http_tls **out, struct err_info *info);
void http_tls_free(struct http_tls *t);

/* What to show now; borrowed. */
void http_tls_present(struct http_tls *t, gnutls_pcert_st **chain, unsigned *count,
                      gnutls_privkey_t *key);

#endif
