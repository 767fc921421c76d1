/*
 * http_fetch: the rest of a file over HTTP or HTTPS, blocking.
 *
 * Purpose   Appends what is missing to a file; called again it goes on where it stopped.
 * Shape     One GET with a range.  A server that does not know ranges sends the whole file:
 *           then it begins anew.  Nothing is redirected, no proxy.
 * Errors    ERR_CLOSED, ERR_TIMEOUT the connection broke or stalls: call again; ERR_STATE
 *           the server asks to come later (429, 503) or does not have it yet (404): the same;
 *           ERR_LIMIT longer than allowed; ERR_FULL the disk is; ERR_DENIED another status;
 *           ERR_FOREIGN the certificate does not verify; ERR_INVALID no such URL.
 * Threads   any
 * Tests     tests/contract/test_upgrade.py
 */
#ifndef SYS_HTTP_FETCH_H
#define SYS_HTTP_FETCH_H

#include <stdint.h>

#include "base/err.h"

struct http_fetch {
    const char *url;
    const char *ca_file;        /* whom to trust over TLS */
    const char *const *headers; /* "Name: value", ended by NULL; NULL: none */
    uint64_t max_bytes;         /* of the whole file */
    uint32_t stall_s;           /* so long without a byte is a broken connection */
    /* Called now and then; total is 0 if nobody knows; false ends it with ERR_CLOSED. */
    bool (*progress)(void *arg, uint64_t have, uint64_t total);
    void *arg;
};

/* fd: opened to write; what it holds is the beginning of the file. */
MUST_USE enum err http_fetch(const struct http_fetch *f, int fd, struct err_info *info);

#endif
