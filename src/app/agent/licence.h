/*
 * licence: a lease of the Activation Proxy, as far as the agent reads it.
 *
 * Shape     The envelope of docs/protocol/activation.md, at most LEASE_BYTES_MAX.
 * Safety    It carries a signature, and it is for the device and the key of the certificate
 *           that is given: one that was copied here from elsewhere is none.
 * Threads   any
 */
#ifndef APP_AGENT_LICENCE_H
#define APP_AGENT_LICENCE_H

#include "sys/licence/lease.h"

/* ERR_CORRUPT: it is no lease; ERR_FOREIGN: not of this device, or of a key it had before. */
MUST_USE enum err licence_read(struct str envelope, const char *certificate,
                               struct lease *out, struct err_info *info);

#endif
