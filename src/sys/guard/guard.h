/*
 * guard: starts redoubt-guard and watches it, for the node daemon.
 *
 * Purpose   The guard kills all services when the lease's deadline passes or the
 *           daemon ends (src/app/guard).  If the guard ends or falls silent, the
 *           daemon must step down.
 * Owns      struct guard owns the process and its page; options are borrowed for the
 *           call, except lease, which must outlive the guard.
 * Safety    As long as guard_fd() is not readable and guard_silence_ms() is small, no
 *           process in the services' group runs for longer than about a millisecond
 *           (plus what the kernel needs to kill) after a deadline on the lease page
 *           has passed.
 * Errors    guard_start: ERR_NOT_FOUND (no such program), ERR_TIMEOUT or ERR_CLOSED
 *           (it does not stand), ERR_IO.
 * Threads   loop thread only
 * Tests     tests/fault/test_guard.c
 */
#ifndef SYS_GUARD_GUARD_H
#define SYS_GUARD_GUARD_H

#include <sys/types.h>

#include "base/err.h"
#include "base/str.h"
#include "sys/guard/page.h"

struct guard_options {
    const char *program;        /* path of redoubt-guard */
    struct lease_writer *lease; /* borrowed until guard_free() */
    int cgroup_dir;             /* the group of all services (supervisor_cgroup_fd) */
    int gone_fd;        /* gets a byte when the daemon is dead and no service lives;
                                   -1: none.  Close your own copy afterwards. */
    struct str goodbye; /* rtnetlink requests to send before that byte; may be empty */
};

struct guard;

/* Waits at most 2 s until the guard stands. */
MUST_USE enum err guard_start(struct guard **out, const struct guard_options *o,
                              struct err_info *info);
/* Kills the guard (nothing else) and frees; NULL is fine.  Not needed before exit. */
void guard_free(struct guard *g);

/* A pidfd: readable once the guard has ended.  Borrowed. */
int guard_fd(const struct guard *g);
pid_t guard_pid(const struct guard *g);

/* port/hold.h, the guard's and the services' half of it. */
void guard_extend(struct guard *g, uint64_t epoch, struct mono deadline);
void guard_revoke(struct guard *g);

/* How often it has killed the services since it started. */
uint64_t guard_kills(const struct guard *g);
/* Milliseconds since the guard was last awake; beats come every GUARD_BEAT_MS. */
uint32_t guard_silence_ms(const struct guard *g);
/* "" or what it could not get: "not locked in memory, ...".  Static text. */
const char *guard_weakness(const struct guard *g);

#endif
