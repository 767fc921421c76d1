/*
 * run_store: the runs of tasks that this device was told to do, in the spool's file.
 *
 * Purpose   A run is stored before anything is done for it, and its end in the same
 *           transaction as the event that tells it.  So an order that comes twice, or again
 *           after a crash on either side, is answered and not carried out twice.
 * Shape     At most RUNS_OPEN_MAX runs are not finished.  Finished ones are kept: the newest
 *           RUNS_KEPT_MAX, of those older than RUNS_KEPT_S only the newest RUNS_KEPT_MIN (a
 *           clock that jumps by a year must not forget them all).
 * Errors    ERR_EXISTS it is there already, ERR_LIMIT too many, ERR_NOT_FOUND, and those of
 *           the spool
 * Threads   loop thread only
 * Tests     tests/unit/test_event_spool.c
 */
#ifndef SYS_RUN_STORE_H
#define SYS_RUN_STORE_H

#include "sys/spool/event_spool.h"

enum {
    RUNS_OPEN_MAX = 64,
    RUNS_KEPT_MAX = 1000,
    RUNS_KEPT_MIN = 100,
    RUNS_KEPT_S = 30 * 86400,
    RUN_TYPE_MAX = 32,
    RUN_PARAMS_MAX = 16384
};

enum run_state { RUN_ACCEPTED, RUN_RUNNING, RUN_PAUSED, RUN_FINISHED };

struct run_row {
    struct uuid id;
    char type[RUN_TYPE_MAX];
    struct str
        params; /* JSON; add: borrowed; get and walk: borrowed until the next call */
    enum run_state state;
    uint32_t priority, percent;
    uint32_t attempts;             /* how often it was begun */
    int64_t not_before, not_after; /* Unix seconds by the server's clock; 0: none */
    char outcome[16];              /* RUN_FINISHED */
    bool told;                     /* the event of its end was stored, and not dropped */
};

/* Stores the run (RUN_ACCEPTED, or RUN_FINISHED if it is refused) and the event, both or
 * none. */
MUST_USE enum err run_store_accept(struct spool *s, const struct run_row *run,
                                   int64_t now_s, const struct event_add *event,
                                   struct err_info *info);
/* attempts goes up when it becomes RUN_RUNNING from RUN_ACCEPTED. */
MUST_USE enum err run_store_state(struct spool *s, const struct uuid *id,
                                  enum run_state state, uint32_t percent,
                                  struct err_info *info);
/* Back to RUN_ACCEPTED all that ran when the agent ended; what is paused stays so. */
MUST_USE enum err run_store_rewind(struct spool *s, struct err_info *info);
/* Stores the end and the event that tells it, both or none. */
MUST_USE enum err run_store_finish(struct spool *s, const struct uuid *id,
                                   const char *outcome, int64_t now_s,
                                   const struct event_add *event, struct err_info *info);

/* Adds the event of the end once more if it was dropped for lack of room. */
MUST_USE enum err run_store_retell(struct spool *s, const struct uuid *id,
                                   struct err_info *info);

MUST_USE enum err run_store_get(struct spool *s, const struct uuid *id,
                                struct run_row *out, struct err_info *info);

/* The runs that are not finished, by priority (high first), then by arrival.  No call of
 * the store from within. */
typedef bool run_each(void *arg, const struct run_row *run);
MUST_USE enum err run_store_walk(struct spool *s, run_each *each, void *arg,
                                 struct err_info *info);

struct run_counts {
    uint32_t open, finished;
};
struct run_counts run_store_counts(struct spool *s);

#endif
