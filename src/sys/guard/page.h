/*
 * page: the writer's side of the lease page (include/redoubt/lease.h).
 *
 * Purpose   The node daemon publishes (epoch, deadline) here; the guard and the
 *           services map the same memory read-only.
 * Shape     A memfd sealed against growing, shrinking and any further writable
 *           mapping: who gets the descriptor can read and nothing else.
 * Owns      struct lease_writer owns its mapping and descriptor until
 *           lease_writer_release.
 * Safety    Readers never see an old deadline with a new epoch; see redoubt/lease.h.
 * Threads   one writer
 * Tests     tests/unit/test_lease.c
 */
#ifndef SYS_GUARD_PAGE_H
#define SYS_GUARD_PAGE_H

#include "base/err.h"
#include "base/mono.h"
#include "redoubt/lease.h"

struct lease_writer {
    struct redoubt_lease_page *page; /* NULL: not open */
    int fd;
};

MUST_USE enum err lease_writer_init(struct lease_writer *w, struct err_info *info);
void lease_writer_release(struct lease_writer *w);

/* deadline must be set (not 0). */
void lease_writer_extend(struct lease_writer *w, uint64_t epoch, struct mono deadline);
void lease_writer_revoke(struct lease_writer *w);

#endif
