/*
 * unit: one service under supervision (internal to sys/supervisor).
 *
 * Purpose   A small machine: what lives of it (enum unit_life), what it was told, and
 *           what is reported (enum service_state).  unit_converge() compares with what
 *           is wanted and does the next step; every event of the world ends there.
 *
 *             NONE --start--> STARTING --ready--> UP --SIGTERM--> STOPPING
 *              ^                  |                |                  |
 *              |                  +----failure-----+---kill-----------+
 *              |                            v
 *              +---- stopped --------- KILLING --- failed ---> BACKOFF --timer--> NONE
 *
 * Owns      Its descriptors and event sources; unit_release() closes them all.
 * Threads   loop thread only
 */
#ifndef SYS_SUPERVISOR_UNIT_H
#define SYS_SUPERVISOR_UNIT_H

#include "sys/supervisor/cgroup.h"
#include "sys/supervisor/notify.h"
#include "sys/supervisor/output.h"
#include "sys/supervisor/processes.h"
#include "sys/supervisor/spawn.h"
#include "sys/supervisor/supervisor.h"

enum unit_life {
    UNIT_NONE,     /* no process */
    UNIT_STARTING, /* started, not yet ready */
    UNIT_UP,       /* ready */
    UNIT_STOPPING, /* asked to end */
    UNIT_KILLING,  /* its group is killed; waits until it is empty */
    UNIT_BACKOFF,  /* failed; waits before the next start */
};

enum { UNIT_SOCKET_BYTES = 108 };

struct unit {
    struct supervisor *s;
    const struct supervisor_service *conf;
    uint32_t index;
    enum unit_life life;
    bool failed;       /* KILLING: because of a failure, so BACKOFF follows */
    bool restarts_due; /* the next start is a restart */
    enum service_state state;
    bool changed; /* state is to be reported */
    char why[SUPERVISOR_WHY_BYTES];
    char failure[SUPERVISOR_WHY_BYTES];
    char status[NOTIFY_STATUS_BYTES], metrics[NOTIFY_METRICS_BYTES];
    uint32_t restarts, backoff_ms;
    uint64_t up_since_us;

    struct cgroup group;
    struct spawn_user user;
    bool user_found;
    char socket[UNIT_SOCKET_BYTES];
    char runtime[UNIT_SOCKET_BYTES]; /* a folder of its own, RUNTIME_DIRECTORY */
    uint64_t data_bytes; /* RLIMIT_DATA, where the group cannot limit memory */

    pid_t pid; /* 0: none, or reaped */
    int pidfd, exec_fd, notify_fd, role_fd;
    enum notify_role told; /* NONE: nothing yet */
    uint64_t told_epoch;
    bool acked;

    sd_event_source *on_exit, *on_exec, *on_notify, *on_events;
    sd_event_source *phase, *watchdog, *role_timer; /* timers */
    struct output output;
    struct processes processes;
};

struct supervisor {
    struct supervisor_options o;
    struct unit units[SERVICES_MAX];
    uint32_t by_order[SERVICES_MAX]; /* indexes, ascending order */
    struct cgroup own, services;
    bool ours;           /* no other daemon uses the group of the services */
    bool born_in_cgroup; /* spawn_probe() */
    enum service_want want;
    uint64_t epoch;
    sd_event_source *report;
};

/* The group, the socket and what watches them; the unit is otherwise zero. */
MUST_USE enum err unit_init(struct unit *u, struct supervisor *s, uint32_t index,
                            struct err_info *info);
void unit_release(struct unit *u);

/* One step towards what is wanted. */
void unit_converge(struct unit *u);
/* Kills it, not as a failure. */
void unit_kill(struct unit *u);
/* Ends its present life as a failure. */
void unit_fail(struct unit *u, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
bool unit_lives(const struct unit *u);

/* Carries out and follows its role (role.c); only while UP. */
void unit_role(struct unit *u);
void unit_heard(struct unit *u, const struct notify_message *m);

void unit_state(struct unit *u, enum service_state state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* In supervisor.c: all units again, after one of them changed. */
void supervisor_converge(struct supervisor *s);
void supervisor_remark(struct supervisor *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* A one-shot timer, made at its first use; ms from now, to the millisecond. */
void unit_timer(struct unit *u, sd_event_source **timer, uint32_t ms,
                sd_event_time_handler_t handler);
void unit_timer_off(sd_event_source *timer);
uint64_t unit_now_us(const struct unit *u);

/* Lower goes first: messages are heard before the timers that judge their absence. */
enum {
    UNIT_PRIO_REPORT = -20,
    UNIT_PRIO_NOTIFY = -10,
    UNIT_PRIO_TIMER = 10,
    UNIT_PRIO_OUTPUT = 20
};

#endif
