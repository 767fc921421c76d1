/*
 * licence: a lease of the Activation Proxy, as far as the agent reads it.
 *
 * Shape     unix_s; the envelope of docs/protocol/activation.md, at most LICENCE_LEASE_MAX
 * Threads   any
 */
#ifndef APP_AGENT_LICENCE_H
#define APP_AGENT_LICENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

enum { LICENCE_LEASE_MAX = 64 * 1024 };

struct licence_lease {
    int64_t expires, renew_after;
};

/* False: it is no lease; both times are then 0 or meaningless. */
bool licence_read(struct str envelope, struct licence_lease *out);

#endif
