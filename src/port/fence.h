/*
 * fence: the DBMS fence (db/), design.md section 5 layer 5.
 *
 * Contract  raise() ends older sessions, takes the advisory lock exclusively and sets the
 *           epoch; answered exactly once: ERR_OK, ERR_STALE (the fence knows a higher epoch,
 *           which the answer holds), or why the DBMS cannot be reached.  Never blocks.
 *           Besides, the adapter probes the DBMS and reports its health and epoch unasked.
 * Who       sys/fence, tests/sim.
 */
#ifndef PORT_FENCE_H
#define PORT_FENCE_H

#include <stdint.h>

struct fence_ops {
    void (*raise)(void *impl, uint32_t request, uint64_t epoch);
};

struct fence {
    const struct fence_ops *ops;
    void *impl;
};

#endif
