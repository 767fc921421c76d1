/*
 * protect_in: what the files of protection share among themselves.
 *
 * Shape     protect.c: life, facts, threats, jobs.  protect_runs.c: tasks of the server and
 *           the scheduled update.  protect_licence.c: the lease.  protect_policy.c: the policy, drift, on-access.
 * Threads   loop thread only
 */
#ifndef APP_AGENT_PROTECT_IN_H
#define APP_AGENT_PROTECT_IN_H

#include "app/agent/child.h"
#include "app/agent/engine_conf.h"
#include "app/agent/licence.h"
#include "app/agent/protect.h"

enum {
    PROTECT_JOBS_MAX = 16,
    PROTECT_RUNS_MAX = 64,
    PROTECT_FOUND_MAX = 64,
    PROTECT_THREATS_MAX = 500,
    PROTECT_PATH_TEXT = 1025,
};

struct job;
/* The job has ended: its "done" message, or one that says why there is none. */
typedef void job_done(struct protect *p, struct job *job, const json_t *done);

struct job {
    struct protect *p; /* NULL: free */
    struct child *child;
    job_done *done;
    struct run *run; /* NULL: nobody's */
    bool told;       /* done was called */
};

enum run_state { RUN_FREE, RUN_WAITING, RUN_RUNNING, RUN_REFUSED, RUN_CANCELLED };
struct run {
    enum run_state state;
    struct uuid id;
    char type[24];
    json_t *params;
    struct job *job;
    bool paused;
    uint64_t order;
    char why[160];     /* of RUN_REFUSED */
    json_t *roots;     /* of a scan that runs */
    uint64_t begun_us; /* of a scan, monotonic */
    bool is_whole;     /* a scan that counts as the last scan */
};

struct threat {
    char path[PROTECT_PATH_TEXT];
    uint64_t found_us; /* monotonic */
};

struct found {
    int fd;
    unsigned tries; /* workers that failed with it */
    char threat[200];
};

enum engine_step { ENGINE_IDLE, ENGINE_RUNNING };

struct protect {
    sd_event *event;
    struct agent_conf conf;
    struct protect_hooks hooks;
    char state_file[CONF_PATH + 32], quarantine[CONF_PATH + 32];
    sd_event_source *kick, *tick, *update_timer, *access_timer;
    struct job jobs[PROTECT_JOBS_MAX];
    struct run runs[PROTECT_RUNS_MAX];
    uint64_t order;
    /* facts */
    struct protect_facts facts;
    bool facts_dirty;
    bool unsaved;             /* what is kept over a restart: the disk did not take it */
    struct threat *threats;   /* facts.threats_open of them */
    int64_t last_update;      /* unix_s */
    unsigned update_failures; /* since the last one that succeeded, or the last policy */
    int64_t own_built;        /* of databases of one's own, see protect_built() */
    uint64_t own_built_us;    /* when that was looked up, monotonic; 0: never */
    /* found by on-access, waiting for a worker; `curing` has the first */
    struct found found[PROTECT_FOUND_MAX];
    unsigned found_count;
    struct job *curing;
    /* policy */
    struct policy *policy; /* NULL: none yet */
    char hash[65];
    bool policy_due; /* policy_done is owed */
    bool engine_due; /* the engine is to be configured */
    struct job *engine_job;
    char *engine_text; /* what clamd_conf should be; NULL: not known */
    bool drift;        /* corrected by the job under way */
    bool drift_stays;  /* it could not be, and that was told */
    /* on-access */
    bool access_due; /* the policy is to be looked at */
    struct child *access;
    char access_why[160];
    unsigned access_failures;
    char *access_settings; /* JSON of what runs, to see a change */
    /* updates */
    struct job *update_job;
    struct {
        char server[CONF_PATH], file[CONF_PATH + 32];
        char refused[160]; /* why there is no lease; "" unless the proxy said no */
        struct lease lease;
        struct timespec certificate_at,
            asked_with;  /* of the file that the lease was read with */
        uint64_t due_us; /* not to be asked before, monotonic */
        struct job *job;
    } licence;
};

/* protect.c */
void protect_kick(struct protect *p); /* has protect_work() called from the loop, soon */
void protect_facts_dirty(struct protect *p);
void protect_event(struct protect *p, const char *kind, const char *severity,
                   json_t *data);
int64_t protect_unix_s(void);
uint64_t protect_now_us(void);
void protect_save(struct protect *p);
/* message is stolen; NULL: no process could be started, and done was not called. */
struct job *job_start(struct protect *p, json_t *message, int fd, job_done *done,
                      struct run *run);
/* The members every job that touches the quarantine needs. */
json_t *protect_quarantine(const struct protect *p);
void threats_scanned(struct protect *p, const json_t *roots, uint64_t since_us);

/* protect_runs.c */
void runs_work(struct protect *p);
void runs_progress(struct protect *p, struct run *run, const json_t *message);
/* In how many seconds the next one comes; 0: there is no source. */
int64_t update_schedule(struct protect *p);
/* When the newest file in the folder of the databases was written; 0: not known. */
int64_t protect_built(struct protect *p);
int update_due(sd_event_source *source, uint64_t us, void *arg);
void runs_free(struct protect *p);

/* protect_licence.c */
void licence_load(struct protect *p);
void licence_tick(struct protect *p);

/* protect_policy.c */
void policy_work(struct protect *p);
void drift_check(struct protect *p);
int access_again(sd_event_source *source, uint64_t us, void *arg);
void access_flush(struct protect *p);
void access_ignore(struct protect *p, pid_t pid);
void policy_free(struct protect *p);

#endif
