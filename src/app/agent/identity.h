/*
 * identity: who this device is: its key, its certificate, and their renewal.
 *
 * Purpose   Loads the identity; renews the certificate at two thirds of its life; takes the
 *           new identity that a server gives to a clone.  The protocol's side calls it:
 *               a connection is made with identity_files()
 *               the server's first answer came             identity_accepted()
 *               the connection ended                       identity_lost()
 *               connection_settings offers a certificate   identity_offered()
 *               agent_identification.new_instance_uid      identity_reassigned()
 *               every few seconds                          identity_tick()
 *           and it asks back: send this signing request; connect anew, for the files changed.
 * Shape     Each renewal has a new key, made here; it stays in memory until its certificate
 *           came.  Then both lie beside the old ones as <file>.new and are tried: the first
 *           connection that the server answers makes them the identity, and IDENTITY_TRIES
 *           that fail drop them.  A crash between the two renames is repaired at the next
 *           start.
 * Owns      conf is copied.  new/free pair; identity_free(NULL) is fine.
 * Safety    The private key never leaves this device.  A certificate is tried only if it is of
 *           our key, for our id (or the one assigned) and signed by the authority that was
 *           pinned at enrolment.
 * Errors    ERR_CONFIG: a file is missing or wrong, in words.
 * Threads   loop thread only
 * Tests     tests/unit/test_identity.c
 */
#ifndef APP_AGENT_IDENTITY_H
#define APP_AGENT_IDENTITY_H

#include "sys/conf/conf.h"
#include "sys/tls/tls.h"

enum {
    IDENTITY_TRIES = 5,      /* failed connections with a new certificate */
    IDENTITY_REPEAT_S = 90,  /* between two requests that were not answered */
    IDENTITY_PAUSE_S = 3600, /* after a new certificate did not work */
    IDENTITY_INSTANCE = 33
};

struct identity_hooks {
    void *arg;
    /* Send this as connection_settings_request.opamp.certificate_request.csr; PEM, borrowed.
     * Only called between identity_accepted() and identity_lost(). */
    void (*request)(void *arg, struct str csr);
    /* identity_files() or identity_device() changed: make new TLS credentials, connect anew.
     * Not called from within identity_new(). */
    void (*changed)(void *arg);
};

struct identity;

MUST_USE enum err identity_new(const struct conf_agent *conf,
                               const struct identity_hooks *hooks, struct identity **out,
                               struct err_info *info);
void identity_free(struct identity *i);

/* The device id of identity_files(). */
const struct uuid *identity_device(const struct identity *i);
/* The attribute redoubt.instance: random, of this process. */
const char *identity_instance(const struct identity *i);
/* Paths for the next connection; they stay valid until `changed`. */
struct tls_files identity_files(const struct identity *i);

/* now: Unix seconds. */
void identity_accepted(struct identity *i, int64_t now);
/* The connection is gone; refused: it never had an answer, though TCP was connected. */
void identity_lost(struct identity *i, bool refused, int64_t now);
void identity_tick(struct identity *i, int64_t now);
/* ERR_DENIED: not of our key, id or authority: it is ignored.  ERR_EXISTS: it is the one in
 * use.  ERR_OK: it is being tried. */
MUST_USE enum err identity_offered(struct identity *i, struct str certificate,
                                   struct err_info *info);
/* The server says that another device uses our id, and gives us this one. */
void identity_reassigned(struct identity *i, const struct uuid *id, int64_t now);

/* For `redoubt-agent status` and the log. */
struct identity_status {
    char serial[65];
    int64_t not_after, renew_at;
    bool trying, asking; /* a new certificate; for one */
    const char *trouble; /* "" or why the last renewal did not work; borrowed */
};
void identity_status(const struct identity *i, struct identity_status *out);

#endif
