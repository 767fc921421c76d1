/*
 * http_client: one HTTP request over a Unix socket or TLS, blocking.
 *
 * Purpose   The command line's way to the daemons.
 * Shape     Answers of at most HTTP_ANSWER_MAX bytes.  Nothing is redirected, no proxy.
 * Errors    ERR_NOT_FOUND no socket there, or no such host; ERR_CLOSED nobody listens or the
 *           connection broke; ERR_DENIED not allowed to connect; ERR_TIMEOUT; ERR_LIMIT too
 *           long an answer; ERR_FOREIGN the server's certificate does not verify;
 *           ERR_CONFIG the CA file cannot be used.  An HTTP status of 400 and more is not
 *           an error here.
 * Threads   any
 * Tests     tests/unit/test_http.c
 */
#ifndef SYS_HTTP_CLIENT_H
#define SYS_HTTP_CLIENT_H

#include <stdint.h>

#include "base/err.h"

enum { HTTP_ANSWER_MAX = 16 * 1024 * 1024, HTTP_TAG_MAX = 64, HTTP_PATH_MAX = 8192 };

struct http_call {
    const char *unix_path;         /* NULL: */
    const char *server;            /* "host:port", over TLS 1.2 or later */
    const char *ca_file;           /* whom to trust; NULL: the system's certificates */
    const char *certificate, *key; /* PEM files that we show over TLS; NULL: none */
    bool unverified;            /* whoever answers: for what is checked in another way */
    const char *const *headers; /* "Name: value", ended by NULL; NULL: none */
    const char *method;
    const char *path; /* with the query, encoded */
    const char *body; /* JSON, or NULL */
    uint32_t timeout_ms;
};

struct http_answer {
    unsigned status;
    char etag[HTTP_TAG_MAX]; /* as it came, with its quotes; "" without one */
    char *body;              /* NUL-terminated, never NULL after ERR_OK */
    size_t body_bytes;
    bool sent; /* after an error: the request may have been carried out all the same */
};

/* out is to be released with http_answer_release, whatever the result. */
MUST_USE enum err http_call(const struct http_call *call, struct http_answer *out,
                            struct err_info *info);
void http_answer_release(struct http_answer *a);

#endif
