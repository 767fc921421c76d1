/*
 * inherit: what the node daemon gives to redoubt-guard, and what the guard says back.
 *
 * Purpose   The whole contract between the two programs: descriptors at fixed numbers
 *           and one page that the guard writes.  Needs nothing but libc, as the guard
 *           does.
 * Units     _us: microseconds of CLOCK_BOOTTIME.
 */
#ifndef SYS_GUARD_INHERIT_H
#define SYS_GUARD_INHERIT_H

#include <stdatomic.h>
#include <stdint.h>

enum guard_inherited {
    GUARD_FD_LEASE = 3, /* the lease page, read-only */
    GUARD_FD_WORD,      /* struct guard_word; the guard seals it after mapping */
    GUARD_FD_DAEMON,    /* pidfd of the node daemon */
    GUARD_FD_CGROUP,    /* directory of the group that holds all services */
    GUARD_FD_GONE,    /* one byte: no process of a service lives (/dev/null if unused) */
    GUARD_FD_GOODBYE, /* memfd: rtnetlink requests to send then (may be empty) */
    GUARD_FD_READY,   /* one byte: the guard stands */
    GUARD_FD_END,
};

enum {
    GUARD_WORD_BYTES = 4096,
    GUARD_GOODBYE_MAX = 4096,
    GUARD_BEAT_MS = 50, /* at most so long between two beats */
};

/* What the guard could not get of the machine. */
enum {
    GUARD_WEAK_MEMORY = 1,   /* not locked in memory */
    GUARD_WEAK_REALTIME = 2, /* no real-time priority */
    GUARD_WEAK_OOM = 4,      /* not shielded from the out-of-memory killer */
};

struct guard_word {
    _Atomic uint64_t beat_us; /* the guard was awake then */
    _Atomic uint64_t kills;   /* how often it killed the services */
    _Atomic uint64_t killed_at_us;
    _Atomic uint32_t weak; /* GUARD_WEAK_... */
};

/* Exit status of the guard. */
enum {
    GUARD_EXIT_DONE = 0,     /* the daemon ended, and everything was done */
    GUARD_EXIT_USAGE = 2,    /* not started by a node daemon */
    GUARD_EXIT_SETUP = 3,    /* an inherited thing is not what it should be */
    GUARD_EXIT_NO_GROUP = 4, /* the services' group has vanished */
    GUARD_EXIT_ALIVE = 5,    /* services would not end although killed */
};

#endif
