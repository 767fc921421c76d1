/*
 * redoubt/lease.h: the lease page, which tells a service whether its node may act.
 *
 * Purpose   A program on the active node acts for the cluster only while the node holds
 *           the lease on the file share. The node daemon publishes (epoch, deadline) in
 *           one page of memory; everybody else maps it read-only and looks before acting.
 * Shape     A sealed memfd of REDOUBT_LEASE_BYTES; its start is struct
 *           redoubt_lease_page.  A service finds the descriptor's number in the
 *           environment: REDOUBT_LEASE_FD.
 * Units     deadline_us: microseconds of CLOCK_BOOTTIME; 0 means that there is no lease.
 * Safety    held <=> deadline_us != 0 && now < deadline_us.  The writer never shows an
 *           old deadline with a new epoch: to change the epoch it stores deadline 0, then
 *           the epoch, then the deadline.  A reader takes the deadline before and after
 *           the epoch, and counts them only if they are equal.  A writer that stops
 *           between two of its stores leaves "no lease".
 * Threads   any, any number of readers
 * Tests     tests/unit/test_lease.c
 */
#ifndef REDOUBT_LEASE_H
#define REDOUBT_LEASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    REDOUBT_LEASE_MAGIC = 0x52444c50, /* "RDLP" */
    REDOUBT_LEASE_VERSION = 1,
    REDOUBT_LEASE_BYTES = 4096,
};

struct redoubt_lease_page {
    uint32_t magic, version;
    _Atomic uint64_t epoch;
    _Atomic uint64_t deadline_us;
};

/*
 * redoubt_lease_map - map the page behind fd read-only; fd may be closed afterwards.
 *
 * Returns NULL with errno: EPROTO if it is not a lease page of this version, EBADF, ...
 */
const struct redoubt_lease_page *redoubt_lease_map(int fd);
/* NULL is fine. */
void redoubt_lease_unmap(const struct redoubt_lease_page *page);

/*
 * redoubt_lease_held - may this node act now?
 *
 * page   NULL is "no": without a page there is no lease
 * epoch  out, may be NULL; set only if the answer is true
 */
bool redoubt_lease_held(const struct redoubt_lease_page *page, uint64_t *epoch);

/* Milliseconds until the deadline, rounded down; 0 if the lease is not held. */
uint32_t redoubt_lease_remaining_ms(const struct redoubt_lease_page *page);

#endif
