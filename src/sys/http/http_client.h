/*
 * http_client: one HTTP request over a Unix socket, blocking.
 *
 * Purpose   The command line's way to the daemon.
 * Shape     Answers of at most HTTP_ANSWER_MAX bytes.
 * Errors    ERR_NOT_FOUND no socket there; ERR_CLOSED nobody listens or the connection
 *           broke; ERR_DENIED not allowed to connect; ERR_TIMEOUT; ERR_LIMIT too long an
 *           answer.  An HTTP status of 400 and more is not an error here.
 * Threads   any
 * Tests     tests/unit/test_http.c
 */
#ifndef SYS_HTTP_CLIENT_H
#define SYS_HTTP_CLIENT_H

#include <stdint.h>

#include "base/err.h"

enum { HTTP_ANSWER_MAX = 16 * 1024 * 1024 };

struct http_call {
    const char *unix_path;
    const char *method;
    const char *path; /* with the query, encoded */
    const char *body; /* JSON, or NULL */
    uint32_t timeout_ms;
};

struct http_answer {
    unsigned status;
    char *body; /* NUL-terminated, never NULL after ERR_OK */
    size_t body_bytes;
};

/* out is to be released with http_answer_release, whatever the result. */
MUST_USE enum err http_call(const struct http_call *call, struct http_answer *out,
                            struct err_info *info);
void http_answer_release(struct http_answer *a);

#endif
