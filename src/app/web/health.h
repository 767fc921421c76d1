/*
 * health: one request at a time to nginx's health socket, without waiting.
 *
 * Purpose   An nginx that hangs accepts connections and answers nothing.  So it is asked,
 *           again and again, for an answer that only its worker can give.
 * Owns      The connection in flight.
 * Threads   one
 */
#ifndef APP_WEB_HEALTH_H
#define APP_WEB_HEALTH_H

#include <sys/types.h>

#include "base/err.h"
#include "base/mono.h"

struct health {
    int fd; /* -1: nothing in flight; POLLIN when the answer has come */
    struct mono asked;
    char answer[64];
    size_t used;
};

void health_init(struct health *h);
/* Drops what is in flight. */
void health_clear(struct health *h);
/* Begins a request; ERR_CLOSED: nobody listens (yet). */
MUST_USE enum err health_ask(struct health *h, const char *socket, struct mono now);
/* ERR_OK: answered.  ERR_TIMEOUT: not yet.  ERR_IO: a wrong answer.  Ends the request. */
MUST_USE enum err health_read(struct health *h);

#endif
