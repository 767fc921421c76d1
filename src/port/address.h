/*
 * address: the virtual IP of the cluster.
 *
 * Contract  up() adds the address, opens it (the nftables lease) and announces it; down()
 *           closes and removes it.  Each is answered exactly once with its request id,
 *           never from within the call.  down() of an absent address is ERR_OK.
 *           With `mode = none` both answer ERR_OK.
 * Who       sys/net, tests/sim.
 */
#ifndef PORT_ADDRESS_H
#define PORT_ADDRESS_H

#include <stdint.h>

struct address_ops {
    void (*up)(void *impl, uint32_t request);
    void (*down)(void *impl, uint32_t request);
};

struct address {
    const struct address_ops *ops;
    void *impl;
};

#endif
