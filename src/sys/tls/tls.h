/*
 * tls: mutual TLS over non-blocking sockets (GnuTLS).
 *
 * Purpose   Both ends show a certificate of the cluster's authority.  The identity of a
 *           device is the subjectAltName URI urn:uuid:<device id> of its certificate; the
 *           server is known by its name.
 * Shape     struct tls_creds is loaded once and shared by all sessions; struct tls is one
 *           connection over a descriptor that it does not own.
 * Owns      new/free pairs; creds must outlive the sessions.
 * Safety    TLS 1.2 or later.  A handshake that did not verify the other side is TLS_FAILED.
 * Errors    TLS_FAILED with words; the connection is then only to be closed.
 * Threads   loop thread only
 * Source    RFC 8446, RFC 5280; tickets: RFC 5077, RFC 8446 section 4.6.1
 * Tests     tests/contract/test_server.py
 */
#ifndef SYS_TLS_H
#define SYS_TLS_H

#include <sys/types.h>

#include "base/err.h"
#include "wire/uuid.h"

enum tls_side { TLS_SERVER, TLS_CLIENT };

struct tls_files {
    const char *certificate, *key, *ca; /* paths of PEM files; borrowed for the call */
};

struct tls_creds;
struct tls;

/* ERR_CONFIG: a file is missing or wrong, in words. */
MUST_USE enum err tls_creds_new(enum tls_side side, const struct tls_files *files,
                                struct tls_creds **out, struct err_info *info);
void tls_creds_free(struct tls_creds *c);
/* TLS_CLIENT whose clock cannot be believed: the dates of certificates do not count for the
 * next tls_new; authority, name and purpose still do. */
void tls_creds_undated(struct tls_creds *c, bool undated);

/* The device id in a certificate file; ERR_NOT_FOUND if it carries none. */
MUST_USE enum err tls_file_device(const char *certificate, struct uuid *out,
                                  struct err_info *info);

enum { TLS_SERIAL = 65, TLS_TICKET_KEY = 64, TLS_DIGEST = 32, TLS_KEY_HEX = 65 };
/* What a device's certificate says of it. */
struct tls_device {
    struct uuid id;
    char serial[TLS_SERIAL]; /* lower-case hex without leading zeros */
    char key[TLS_KEY_HEX];   /* SHA-256 of its SubjectPublicKeyInfo, in hex */
};

/* From the DER bytes; ERR_NOT_FOUND if it carries no device id. */
MUST_USE enum err tls_der_device(const void *der, size_t size, struct tls_device *out);
/* The key in a certificate file (PEM), as struct tls_device has it. */
MUST_USE enum err tls_file_key(const char *certificate, char out[TLS_KEY_HEX],
                               struct err_info *info);

/* name: of the server (TLS_CLIENT), borrowed for the call; NULL for TLS_SERVER. */
MUST_USE enum err tls_new(struct tls_creds *c, int fd, const char *name, struct tls **out,
                          struct err_info *info);
void tls_free(struct tls *t);

enum tls_result { TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, TLS_CLOSED, TLS_FAILED };

enum tls_result tls_handshake(struct tls *t, struct err_info *info);
/* *n: bytes read or written with TLS_DONE, at least 1. */
enum tls_result tls_read(struct tls *t, void *buf, size_t size, size_t *n,
                         struct err_info *info);
/* After TLS_WANT_WRITE the next call must begin with the same bytes. */
enum tls_result tls_write(struct tls *t, const void *buf, size_t size, size_t *n,
                          struct err_info *info);
/* Bytes that are decrypted and wait for tls_read: no poll will tell of them. */
size_t tls_pending(const struct tls *t);
/* Says that nothing more follows; never waits. */
void tls_bye(struct tls *t);

/* After the handshake: the other side's device id; ERR_NOT_FOUND if it has none. */
MUST_USE enum err tls_peer_device(struct tls *t, struct uuid *out);

/* What else the other side's certificate says; a resumed session knows it, too. */
struct tls_peer {
    char serial[TLS_SERIAL]; /* lower-case hex without leading zeros */
    int64_t not_after;       /* Unix seconds */
};
MUST_USE enum err tls_peer_certificate(struct tls *t, struct tls_peer *out);

/*
 * tls_creds_ticket_key - the key that seals session tickets, the same on both nodes and in
 *                        all workers, so that any of them resumes a session (server).
 */
MUST_USE enum err tls_creds_ticket_key(struct tls_creds *c,
                                       const uint8_t key[TLS_TICKET_KEY],
                                       struct err_info *info);

/* SHA-256. */
void tls_digest(uint8_t out[TLS_DIGEST], struct str bytes);

/*
 * tls_remember - keep the session for the next tls_new of these creds (client).  Call it
 *                once data has come from the server: tickets arrive after the handshake.
 */
void tls_remember(struct tls *t);
bool tls_resumed(const struct tls *t);

enum { TLS_WS_KEY = 25, TLS_WS_ACCEPT = 29 };
/* The answer to a Sec-WebSocket-Key (RFC 6455 section 4.2.2); "" if it is no key. */
void tls_ws_accept(char out[TLS_WS_ACCEPT], struct str key);
void tls_ws_key(char out[TLS_WS_KEY]);
/* Random bytes that nobody can guess. */
void tls_random(void *out, size_t n);

#endif
