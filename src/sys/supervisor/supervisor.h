/*
 * supervisor: starts the services of this node, tells them their role, and sees their
 * end.
 *
 * Purpose   Carries out port/services.h for real processes.  Any program can be a
 *           service (docs/services.md); nothing here knows which ones there are.
 * Shape     Up to SERVICES_MAX services, each in its own control group <daemon's
 *           group>/services/<name>, on one sd-event loop without threads.
 * Units     suffix _ms milliseconds, _mib MiB; 0 is "no limit" or "none".
 * Owns      Everything the options point to is borrowed until supervisor_free().
 * Safety    - A service is started only into an empty group: no two lives of it
 *             overlap, and what a crashed daemon left behind is killed before anything
 *             starts.
 *           - STOPPED, STANDBY of a cold service, and FAILED are reported only when no
 *             process of it lives (FAILED also if it cannot be killed for a second:
 *             such a process waits in the kernel and never runs its program again).
 *           - ACTIVE and STANDBY of a hot service are its own word (acknowledged), and
 *             only if the sender is in its group.
 *           - "active" is never told while a "standby" is not acknowledged, so that an
 *             old acknowledgement cannot pass for a new one.
 * Errors    supervisor_new: ERR_CONFIG (a service that cannot exist: no such user, no
 *           such program), ERR_UNSUPPORTED (no cgroup v2), ERR_IO, ERR_TIMEOUT
 *           (leftovers that do not end).  Later failures are states of a service with
 *           their reason.
 * Threads   loop thread only
 * Tests     tests/fault/test_supervisor.c
 */
#ifndef SYS_SUPERVISOR_SUPERVISOR_H
#define SYS_SUPERVISOR_SUPERVISOR_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "port/services.h"

enum { SUPERVISOR_NAME_BYTES = 32, SUPERVISOR_WHY_BYTES = 160 };

enum supervisor_standby {
    SUPERVISOR_HOT,    /* runs on both nodes, is told its role and acknowledges it */
    SUPERVISOR_COLD,   /* runs on the active node only */
    SUPERVISOR_ALWAYS, /* runs on both nodes; is told its role but need not care */
};

struct supervisor_service {
    const char *name;        /* letters, digits, '-'; also the group's name */
    const char *const *argv; /* argv[0]: absolute path; ends with NULL */
    enum supervisor_standby standby;
    const char *user;    /* NULL or "": the daemon's own */
    bool ready_at_start; /* counts as ready once started: a program without sd_notify */
    bool all_processes; /* a lasting process of it that ends or is stopped is a failure */
    int order;          /* stopped in reverse order, started in order */
    uint32_t start_timeout_ms, stop_timeout_ms, role_timeout_ms;
    uint32_t watchdog_ms;
    uint32_t restart_backoff_ms, restart_backoff_max_ms; /* doubles after each failure;
                               starts anew once the service ran for the maximum */
    uint32_t memory_max_mib, tasks_max, nofile;
};

/* What is to be told about a service. */
struct supervisor_report {
    uint32_t service; /* index in the options */
    enum service_state state;
    char why[SUPERVISOR_WHY_BYTES]; /* "exited with status 1", "ready", ... */
    uint32_t restarts;              /* starts after a failure, since the daemon began */
};

struct supervisor_options {
    sd_event *event;
    const struct supervisor_service *services;
    uint32_t service_count;
    const char *run_dir; /* sockets in <run_dir>/notify, a folder for each
                          service in <run_dir>/service; made if missing */
    const char *node, *conf;
    int lease_fd; /* given to every service; -1: none */
    /* A state has changed.  Never from within a call of ours; set() is allowed inside. */
    void (*report)(void *user, const struct supervisor_report *r);
    /* A line a service wrote to its standard output or error, or (service >= count) a
     * remark of the supervisor, as what limit it cannot enforce.  At most 100 a second
     * for each service, with a line that counts the dropped ones.  NULL: output is
     * inherited. */
    void (*line)(void *user, uint32_t service, const char *text);
    void *user;
};

struct supervisor;

/*
 * Blocks while leftovers of a crashed daemon are killed (at most 5 s).  ERR_STATE: another
 * node daemon lives over the same group, whose services are left alone.
 */
MUST_USE enum err supervisor_new(struct supervisor **out,
                                 const struct supervisor_options *o,
                                 struct err_info *info);
/* Kills every service that still lives (waits at most 5 s) and frees; NULL is fine. */
void supervisor_free(struct supervisor *s);

/* The port.  Borrowed: valid until supervisor_free(). */
struct services supervisor_services(struct supervisor *s);

/* The group that holds all services, for the guard: a directory, and its path. */
int supervisor_cgroup_fd(const struct supervisor *s);
const char *supervisor_cgroup_path(const struct supervisor *s);

/* The last STATUS= of a service, "" if none; borrowed until the next turn of the loop. */
const char *supervisor_status(const struct supervisor *s, uint32_t service);
/* The same of REDOUBT_METRICS=, as the service said it: not checked. */
const char *supervisor_metrics(const struct supervisor *s, uint32_t service);
/* Process id of its main process, 0 if none. */
pid_t supervisor_pid(const struct supervisor *s, uint32_t service);

#endif
