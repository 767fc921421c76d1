/*
 * front: HTTP/1.1 over TLS for devices, inside the event loop.
 *
 * Purpose   Takes requests, knows from the certificate which device asks, and sends the
 *           answer when it is there, which may be later.
 * Contract  handle() is called once for each complete request, and front_answer() must be
 *           called exactly once for it: from within, or later.  front_close() only when
 *           every request was answered.
 * Shape     A body of at most FRONT_BODY_MAX bytes, FRONT_CONNECTIONS_MAX connections,
 *           FRONT_ADDRESS_MAX of one address, each idle for at most FRONT_IDLE_S.
 * Safety    Whoever has no certificate of the authority has no device; the handler decides
 *           what such a one may see.  TLS 1.2 or later.  The certificate is verified once a
 *           connection.
 * Threads   loop thread only
 */
#ifndef APP_ACTIVATION_FRONT_H
#define APP_ACTIVATION_FRONT_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/str.h"
#include "sys/tls/tls.h"

enum {
    FRONT_BODY_MAX = 4096,
    FRONT_CONNECTIONS_MAX = 512,
    FRONT_ADDRESS_MAX =
        256, /* of them from one address: nobody keeps all the others out */
    FRONT_IDLE_S = 10
};

struct front_request {
    const char *method, *path;
    struct str body;
    bool too_long;                   /* the body was cut */
    const struct tls_device *device; /* NULL: none */
    void *call; /* for front_answer(), valid until then; the rest only in handle() */
};

typedef void front_handler(void *arg, const struct front_request *rq);

struct front_options {
    sd_event *loop;
    const char *host; /* numeric; "::" takes IPv4, too */
    uint16_t port;
    const char *certificate, *key, *ca; /* paths of PEM files */
    front_handler *handle;
    void *arg;
};

struct front;

/* ERR_CONFIG: a certificate or key; ERR_IO: the port. */
MUST_USE enum err front_open(struct front **out, const struct front_options *o,
                             struct err_info *info);
void front_close(struct front *f);

struct front_reply {
    unsigned status;
    char *json;             /* from malloc, taken over; NULL: no body */
    unsigned retry_after_s; /* 0: nothing is said of it */
};
void front_answer(struct front *f, void *call, const struct front_reply *reply);

#endif
