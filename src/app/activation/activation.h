/*
 * activation: the Activation Proxy's one process.
 *
 * Purpose   A device asks for a lease of the licence; the seat is recorded in PostgreSQL
 *           under the fence, and the signed lease is the answer.
 * Shape     One event loop.  Requests wait in one queue for the one DBMS session, at most
 *           JOBS_MAX of them, each at most JOB_WAIT_MS.
 * Safety    A lease leaves only after its seat was committed, and only while this node
 *           holds the cluster's lease with the epoch of its role.
 * Threads   loop thread only
 */
#ifndef APP_ACTIVATION_ACTIVATION_H
#define APP_ACTIVATION_ACTIVATION_H

#include <redoubt/service.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "app/activation/front.h"
#include "app/activation/licence.h"
#include "sys/conf/conf.h"
#include "sys/fence/dbc.h"

enum { JOBS_MAX = 256, JOB_WAIT_MS = 3000, JOB_QUERY_MS = 3000 };

struct job {
    TAILQ_ENTRY(job) next;
    void *call; /* of front.h */
    struct uuid device;
    struct licence licence; /* as it was when the device asked */
    uint64_t asked_ms;
};
TAILQ_HEAD(job_queue, job);

struct activation {
    sd_event *event;
    struct redoubt_service *service;
    struct conf conf;
    uint8_t anchor[LICENCE_KEY_BYTES], seed[LICENCE_KEY_BYTES];

    bool keys_loaded;
    struct licence licence;
    enum refusal licence_state; /* REFUSED_NOT: it is good */
    char licence_why[240];
    struct stat licence_file; /* of what was read last */

    bool active;
    uint64_t epoch; /* while active */
    struct front *front;
    struct dbc *dbc;
    bool announced; /* the session knows the epoch */
    struct job_queue jobs;
    struct job
        *asking; /* the one whose query is under way; NULL: none, or it was dropped */
    uint32_t job_count;
    uint64_t granted, refused, used;
};

/* May a device be answered now? */
bool activation_may_answer(const struct activation *a);

/* One request (front.h); jobs.c. */
void jobs_request(void *arg, const struct front_request *rq);
/* Goes on with the queue if the DBMS session is free. */
void jobs_pump(struct activation *a);
/* Refuses what waits longer than it may; all: everything. */
void jobs_sweep(struct activation *a, bool all, enum refusal why);

/* Reads the licence file if it changed since. */
void licence_refresh(struct activation *a);

#endif
