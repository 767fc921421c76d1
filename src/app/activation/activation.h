/*
 * activation: the Activation Proxy's one process.
 *
 * Purpose   A device asks for a lease of a licence; the seat is recorded in PostgreSQL under
 *           the fence, and the signed lease is the answer.  Activation codes are carried to
 *           the vendor, and its signed answers are kept.
 * Shape     One event loop and one DBMS session, which does one thing at a time: pump().
 *           Requests wait in one queue, at most JOBS_MAX of them, each at most JOB_WAIT_MS,
 *           and go to the DBMS in batches.
 * Safety    A lease leaves only after its seat was committed, and only while this node
 *           holds the cluster's lease with the epoch of its role.  What the DBMS keeps of
 *           the vendor's documents is verified each time it is read.
 * Threads   loop thread only
 */
#ifndef APP_ACTIVATION_ACTIVATION_H
#define APP_ACTIVATION_ACTIVATION_H

#include <redoubt/service.h>
#include <sys/queue.h>
#include <sys/stat.h>

#include "app/activation/devices.h"
#include "app/activation/front.h"
#include "app/activation/upstream.h"
#include "sys/conf/conf.h"
#include "sys/fence/dbc.h"
#include "sys/licence/lease.h"

enum {
    JOBS_MAX = 4096,
    JOBS_BATCH = 256,
    JOB_WAIT_MS = 3000,
    QUERY_MS = 3000,
    HELD_MAX = 64,             /* licences, as licence_sync (0013) gives */
    LEASE_YOUNG_S = 24 * 3600, /* a lease that is younger is told again, not renewed */
    SYNC_MS = 10000,           /* so often the DBMS is asked what licences there are */
    VENDOR_LOOK_MS = 1000
};

struct job {
    TAILQ_ENTRY(job) next;
    void *call; /* of front.h */
    struct tls_device who;
    uint64_t asked_ms;
    bool asking;         /* its query is under way */
    uint32_t sync_round; /* of the activation, when it came */
};
TAILQ_HEAD(job_queue, job);

/* A licence of the DBMS whose signature is good; or one that there is nothing of yet. */
struct held {
    struct licence licence;
    enum refusal state; /* REFUSED_NOT: it can be used */
    bool grace;         /* the vendor's answer is overdue */
    int64_t until;      /* no lease may be longer */
    uint64_t used;      /* seats, when it was read */
    /* by the vendor's clock; 0: it is not from a code, or there is none */
    int64_t answered;  /* the vendor's last answer */
    int64_t answer_by; /* when the next must be here */
};

struct activation {
    sd_event *event;
    struct redoubt_service *service;
    struct conf conf;

    /* licences.c: keys and the licence file */
    bool keys_loaded;
    uint8_t anchor[LICENCE_KEY_BYTES];
    struct lease_signer signer;
    struct held file;
    enum refusal file_state; /* of reading it; REFUSED_NOT: it is good */
    char file_why[240];
    char *file_text;       /* the envelope, if it is good */
    struct stat file_stat; /* of what was read last */
    /* and those of the DBMS */
    uint32_t held_count;
    struct held held[HELD_MAX];
    bool synced, sync_due, clock_suspect;
    uint64_t synced_ms;
    uint32_t sync_round; /* the DBMS was asked that often; wraps */
    int64_t now;         /* the time that decides, at now_ms */
    uint64_t now_ms;

    bool active;
    uint64_t epoch; /* while active */
    struct front *front;
    struct dbc *dbc;
    bool announced, listening; /* the session knows the epoch, and hears of changes */

    /* jobs.c */
    struct devices *devices;
    struct job_queue jobs;
    struct job *batch[JOBS_BATCH]; /* of the query under way; NULL: it was dropped */
    size_t batch_count;
    uint32_t job_count;
    uint64_t granted, cached, refused;
    struct uuid flooder; /* to be told of */
    bool has_flooder;

    struct vendor *vendor; /* vendor.c; NULL: none is configured */
};

uint64_t boot_ms(void);
/* May a device be answered now? */
bool activation_may_answer(const struct activation *a);
/* Goes on with what waits for the DBMS session, if that is free. */
void pump(struct activation *a);
/* A 64-bit number in row 0. */
int64_t cell(const PGresult *r, int row, int column);

/* --- jobs.c --- */

/* One request (front.h). */
void jobs_request(void *arg, const struct front_request *rq);
/* Asks the DBMS for what waits, if something does. */
bool jobs_ask(struct activation *a);
/* Refuses what waits longer than it may; all: everything. */
void jobs_sweep(struct activation *a, bool all, enum refusal why);

/* --- licences.c --- */

/* Reads the licence file if it changed since. */
void licences_file(struct activation *a);
/* From malloc, ended by a zero; NULL: out of memory. */
char *text_copy(struct str text);
/* Asks the DBMS what there is. */
void licences_sync(struct activation *a);
/* The time that decides about licences. */
int64_t licences_now(const struct activation *a);
/* Those that can be used, best first: the file only if there is no other.  0: why not. */
size_t licences_usable(struct activation *a, const struct held *out[HELD_MAX],
                       enum refusal *why);
uint64_t licences_limit(const struct activation *a, const struct held *h);
/* "ok", or why there is none. */
const char *licences_word(struct activation *a);
/* Seats taken and seats there are, of what can be used. */
void licences_seats(struct activation *a, uint64_t *used, uint64_t *all);
/* For redoubt_service_metrics(); nothing while it is not known what the DBMS has. */
void licences_metrics(struct activation *a, struct text *t);

/* --- vendor.c --- */

MUST_USE enum err vendor_start(struct activation *a, struct err_info *info);
void vendor_stop(struct activation *a);
/* This node is not active any more: what was asked will be asked again by who is. */
void vendor_standby(struct activation *a);
/* There may be something new to ask for. */
void vendor_look(struct activation *a);
/* Asks the DBMS, if it has something to ask or to say. */
bool vendor_ask(struct activation *a);
/* "none", "ok", "asking", "failing" */
const char *vendor_word(const struct activation *a);

#endif
