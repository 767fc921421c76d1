/*
 * gzip: bodies of HTTP, in one piece and bounded.
 *
 * Errors    ERR_LIMIT: it does not fit; ERR_CORRUPT: not one whole gzip member
 * Threads   loop thread only
 * Source    RFC 1952
 */
#ifndef APP_SERVER_GZIP_H
#define APP_SERVER_GZIP_H

#include "base/err.h"
#include "base/str.h"

MUST_USE enum err gzip_open(struct str packed, uint8_t *out, size_t size, size_t *n);
MUST_USE enum err gzip_pack(struct str plain, uint8_t *out, size_t size, size_t *n);

#endif
