/*
 * lookup: host names to addresses without blocking the caller.
 *
 * Purpose   The resolver of the C library blocks for seconds when a name server is silent.
 *           A child process asks it; this process reads the answer from a pipe.
 * Contract  done() is called exactly once, from the loop, within the time limit; not at
 *           all after lookup_stop().  An address that was not found is "".
 * Safety    The child closes every other descriptor first (it must not keep the daemon's
 *           sockets open) and dies with the daemon.
 * Threads   loop thread only; the process must have one thread
 * Tests     tests/unit/test_fence.c
 */
#ifndef SYS_FENCE_LOOKUP_H
#define SYS_FENCE_LOOKUP_H

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "sys/fence/dsn.h"

struct lookup {
    sd_event *loop; /* borrowed */
    sd_event_source *io, *timer;
    pid_t child;  /* that is asking; 0: none */
    pid_t ending; /* that was told to end, or has said all; 0: none */
    int fd;
    size_t count, got;
    char text[DSN_HOSTS_MAX * DSN_ADDRESS_BYTES];
    void (*done)(void *ctx, const char addresses[][DSN_ADDRESS_BYTES]);
    void *ctx;
};

/* Prepared once; loop and ctx are borrowed for its life. */
void lookup_init(struct lookup *l, sd_event *loop,
                 void (*done)(void *ctx, const char addresses[][DSN_ADDRESS_BYTES]),
                 void *ctx);
/* ERR_LIMIT: the last child is still ending.  Replaces a lookup that is under way. */
MUST_USE enum err lookup_start(struct lookup *l, size_t count, const char *const names[],
                               uint32_t timeout_ms, struct err_info *info);
void lookup_stop(struct lookup *l);
/* As stop, and waits for the child's end: at the end of the program. */
void lookup_close(struct lookup *l);

#endif
