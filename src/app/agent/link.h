/*
 * link: the agent's connection to the server: connects, stays, comes back.
 *
 * Purpose   TCP, mutual TLS and WebSocket to one server address.  After a break it tries
 *           again at once, then in quick succession for fast_retry_ms, then ever more
 *           rarely with jitter, for ever.
 * Shape     The life of an attempt is enum link_state.
 * Units     ms of CLOCK_BOOTTIME.
 * Safety    A server that is silent for dead_after_ms, though it was pinged, is given up.
 * Threads   loop thread only.  Host names are resolved beside the loop (getaddrinfo_a).
 * Source    OpAMP specification, "Establishing connection"; RFC 6455
 */
#ifndef APP_AGENT_LINK_H
#define APP_AGENT_LINK_H

#include <systemd/sd-event.h>

#include "sys/conf/conf.h"
#include "sys/tls/tls.h"
#include "wire/opamp.h"
#include "wire/ws.h"

enum link_state {
    LINK_WAITING,
    LINK_RESOLVING,
    LINK_CONNECTING,
    LINK_TLS,
    LINK_UPGRADING,
    LINK_OPEN
};

struct link_hooks {
    void *arg;
    void (*opened)(void *arg);
    /* It was open and is not any more, or an attempt failed. */
    void (*lost)(void *arg, bool was_open, const char *why);
    void (*message)(void *arg, struct str bytes);
};

struct link;

MUST_USE enum err link_new(sd_event *event, const struct conf_agent *conf,
                           struct tls_creds *creds, const struct link_hooks *hooks,
                           struct link **out, struct err_info *info);
void link_free(struct link *l);

/* One binary message; ignored unless open. */
void link_send(struct link *l, const uint8_t *bytes, size_t n);
/* Says goodbye and stays closed. */
void link_shut(struct link *l);
/* Breaks the connection, with words, and begins anew. */
void link_break(struct link *l, const char *why);

/* It is another's from now on, who may be in more of a hurry to have it back. */
void link_rehook(struct link *l, const struct link_hooks *hooks, uint32_t fast_retry_ms);
/* Other credentials from now on; a connection that is there is broken.  The old ones may be
 * freed afterwards. */
void link_recred(struct link *l, struct tls_creds *creds);
/* Another address for the next attempt; only in LINK_WAITING.  False: it is none. */
bool link_retarget(struct link *l, const char *server);
/* Did the last attempt reach a computer that takes connections there? */
bool link_reached(const struct link *l);

/* After the loss of an open connection the first attempt comes at random within spread_ms;
 * pauses grow to backoff_max_ms (0: as ever). */
void link_pace(struct link *l, uint32_t spread_ms, uint32_t backoff_max_ms);
/* The server may be silent for so long, if that is longer than the configuration says. */
void link_patience(struct link *l, uint32_t dead_after_ms);

enum link_state link_state(const struct link *l);
const char *link_state_name(enum link_state state);
/* Bytes that wait to be sent. */
size_t link_unsent(const struct link *l);

#endif
