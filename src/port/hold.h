/*
 * hold: everything that lets this node's services be heard, and only until a deadline.
 *
 * Contract  extend() publishes (epoch, deadline) to the lease page, which the guard and the
 *           services see, and to the nftables lease once the address is up.  revoke() ends
 *           all of it at once: services refuse, the address falls silent.  Both are done
 *           when they return, within about a millisecond.
 * Who       app/node over sys/guard and sys/net, tests/sim.
 */
#ifndef PORT_HOLD_H
#define PORT_HOLD_H

#include <stdint.h>

#include "base/mono.h"

struct hold_ops {
    void (*extend)(void *impl, uint64_t epoch, struct mono deadline);
    void (*revoke)(void *impl);
};

struct hold {
    const struct hold_ops *ops;
    void *impl;
};

#endif
