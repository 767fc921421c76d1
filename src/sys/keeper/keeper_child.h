/*
 * keeper_child: one redoubt-keeper process, as the daemon holds it.
 *
 * Purpose   Start, talk, kill, and reap, without ever waiting.
 * Owns      The pid, a pidfd and the daemon's end of the socket.
 * Threads   loop thread only
 */
#ifndef KEEPER_CHILD_H
#define KEEPER_CHILD_H

#include <sys/types.h>

#include "sys/keeper/keeper.h"

struct keeper_child {
    pid_t pid; /* 0: none */
    int pidfd, socket;
};

#define KEEPER_NO_CHILD ((struct keeper_child){ .pid = 0, .pidfd = -1, .socket = -1 })

/* *c is KEEPER_NO_CHILD before, and after a failure. */
MUST_USE enum err keeper_child_start(struct keeper_child *c,
                                     const struct keeper_options *o,
                                     struct err_info *info);
/* One packet; false: the socket is closed or full, so the child is of no use. */
MUST_USE bool keeper_child_send(const struct keeper_child *c, const char *buf, size_t n);
/* > 0 bytes of one packet, 0 nothing there now, -1 the child has closed. */
ssize_t keeper_child_receive(const struct keeper_child *c, char *buf, size_t size);
/* SIGKILL; *c keeps the pid and pidfd until keeper_child_reap(). */
void keeper_child_kill(struct keeper_child *c);
/* Somebody has stopped the process (SIGSTOP). */
bool keeper_child_is_stopped(const struct keeper_child *c);
/* True, and *c is KEEPER_NO_CHILD, once the process has ended. */
MUST_USE bool keeper_child_reap(struct keeper_child *c);
/* Lets go of it: it sees the end of its socket, and ends by itself. */
void keeper_child_release(struct keeper_child *c);

#endif
