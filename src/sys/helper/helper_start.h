/*
 * helper_start: a program beside the daemon, tied to it by a socket.
 *
 * Purpose   Starts it so that nothing else of the daemon's reaches it: no descriptor, no blocked
 *           or ignored signal, no terminal.
 * Shape     The child finds the socket at HELPER_FD_SOCKET, `shared` or /dev/null at
 *           HELPER_FD_SHARED, /dev/null at 0 and 1, and the daemon's standard error.  It is a
 *           session of its own: a Ctrl-C at the daemon's terminal is not for it.
 * Safety    It outlives the daemon unless it looks at its socket, which it must.
 * Threads   any; waits until the program was executed
 * Tests     tests/unit/test_helper.c, tests/fault/test_keeper_faults.c
 */
#ifndef SYS_HELPER_START_H
#define SYS_HELPER_START_H

#include <sys/types.h>

#include "base/check.h"

enum { HELPER_FD_SOCKET = 3, HELPER_FD_SHARED = 4 };

/* argv ends with NULL; shared: -1: none.  The descriptors stay the caller's.  0, or an errno. */
MUST_USE int helper_start(pid_t *out, const char *program, const char *const *argv,
                          int socket, int shared);

#endif
