/*
 * child_env: the environment of a service's main process (internal).
 *
 * Purpose   The daemon's own environment, less what was meant for the daemon alone
 *           (its notify socket, its watchdog), and the contract of docs/services.md.
 * Owns      all[] points into own[] and into environ: valid as long as both.
 */
#ifndef SYS_SUPERVISOR_CHILD_ENV_H
#define SYS_SUPERVISOR_CHILD_ENV_H

#include "base/err.h"

enum { CHILD_ENV_MAX = 240, CHILD_ENV_OWN = 9, CHILD_ENV_BYTES = 320 };

struct unit;

struct child_env {
    size_t own_count;
    bool cut;
    char own[CHILD_ENV_OWN][CHILD_ENV_BYTES];
    char *all[CHILD_ENV_MAX]; /* ends with NULL */
};

/* False: too many or too long variables. */
MUST_USE bool child_env_make(struct child_env *env, const struct unit *u);

#endif
