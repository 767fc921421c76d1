/*
 * http_head: the head of an HTTP/1.1 request or response.
 *
 * Purpose   What the device port needs before it switches to WebSocket: method, path,
 *           status, headers.  No bodies, no folding, no chunks.
 * Shape     Views into the caller's bytes.  A head is at most HTTP_HEAD_MAX bytes with
 *           HTTP_HEADERS_MAX headers.
 * Errors    HTTP_BAD: answer 400 and close.  HTTP_TOO_BIG: answer 431 and close.
 * Threads   any; pure
 * Source    RFC 9112; stricter where it leaves a choice: CRLF line ends only, and no
 *           blank before the colon (request smuggling)
 */
#ifndef WIRE_HTTP_HEAD_H
#define WIRE_HTTP_HEAD_H

#include "base/str.h"

enum { HTTP_HEAD_MAX = 8192, HTTP_HEADERS_MAX = 48 };

enum http_result { HTTP_MORE, HTTP_DONE, HTTP_BAD, HTTP_TOO_BIG };

struct http_header {
    struct str name, value;
};

struct http_head {
    struct str method, target; /* request */
    uint32_t status;           /* response */
    size_t size;               /* bytes of the head, blank line included */
    uint32_t count;
    struct http_header at[HTTP_HEADERS_MAX];
};

enum http_result http_request(struct str bytes, struct http_head *out);
enum http_result http_response(struct str bytes, struct http_head *out);

/* The value of the only header of that name (any case); false if none or several. */
bool http_find(const struct http_head *h, const char *name, struct str *out);
/* Does the comma-separated header hold this token (any case)? */
bool http_has_token(const struct http_head *h, const char *name, const char *token);

#endif
