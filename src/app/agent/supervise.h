/*
 * supervise: `redoubt-agent --supervise FOLDER`, the process that exchanges the agent.
 *
 * Purpose   Installs a package, watches whether the new agent reaches the server, and puts
 *           the package of before back if it does not.
 * Shape     A process of its own session, no child of the agent: it outlives it.  It reads
 *           FOLDER/order, and writes FOLDER/outcome: what it is at, then how it ended.  The
 *           agent writes FOLDER/confirmed.  One at a time, by a lock on FOLDER/lock.
 * Safety    Each step is on the disk before it is taken.  Started again after a power cut:
 *           an installation that was interrupted is taken back, one that was complete is
 *           watched.  Putting back is tried for ever, with pauses that double up to 5 min,
 *           and told in FOLDER/outcome after three failures; it ends unfinished only when there
 *           is another order.
 * Threads   one
 * Tests     tests/contract/test_upgrade.py
 */
#ifndef APP_AGENT_SUPERVISE_H
#define APP_AGENT_SUPERVISE_H

#include <jansson.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

/* Steps in FOLDER/outcome; the last two are ends. */
#define OUTCOME_INSTALLING "installing"
#define OUTCOME_INSTALLED  "installed"
#define OUTCOME_RETURNING  "returning"
#define OUTCOME_CONFIRMED  "confirmed"
#define OUTCOME_FAILED     "failed"

/* Is one at work in this folder? */
bool supervise_runs(const char *folder);
/* Starts one, which goes on when we end. */
MUST_USE enum err supervise_start(const char *folder, struct err_info *info);
/*
 * {"state", "why", "trouble": why it cannot be put back; "": that is not so}, of the order with
 * this hash, or (NULL) of any; NULL: there is none.
 */
json_t *supervise_outcome(const char *folder, const char *hash);
/* When a process began, in ticks since the boot: an exec does not change it.  -1: it is gone. */
int64_t supervise_started(pid_t pid);
/* The program; returns its exit code. */
int supervise_main(const char *folder);

#endif
