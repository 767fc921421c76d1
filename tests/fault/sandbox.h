/* sandbox: a control group of the test's own, so that it can act as a node daemon. */
#ifndef TESTS_FAULT_SANDBOX_H
#define TESTS_FAULT_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

enum { SANDBOX_BYTES = 256 };

struct sandbox {
    char group[SANDBOX_BYTES]; /* the test's own cgroup */
    char run[SANDBOX_BYTES];   /* a folder for sockets */
};

/*
 * Moves this process into a fresh cgroup.  False: it cannot be done here, and the plan
 * line "1..0 # SKIP <reason>" was printed: return 0 from main().
 */
bool sandbox_enter(struct sandbox *b);
/* Moves back and removes what was made. */
void sandbox_leave(struct sandbox *b);

/* The path of a program next to this one in the build tree. */
void sandbox_sibling(char *out, size_t size, const char *name);

#endif
