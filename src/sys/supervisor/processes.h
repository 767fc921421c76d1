/*
 * processes: watches all lasting processes of a service, not only its main one
 * (internal).
 *
 * Purpose   A worker that is killed or stopped while its main process lives on is a
 *           failure of the service.  Short-lived helpers are not.
 * Shape     The group is read every PROCESSES_SCAN_MS; each process found gets a pidfd,
 *           so that its end is seen at once.  A process counts as lasting if it was there
 *           when the service had just become ready or acknowledged a role and still was
 *           PROCESSES_EARLY_MS later, or has lived for PROCESSES_LASTING_MS since it was
 *           found.  Shorter, and a helper on a busy machine would count.
 * Limits    PROCESSES_MAX; a service with more is watched in part.
 * Safety    Ended processes are forgotten without alarm by processes_pause(), which is
 *           in force while the service starts, changes its role, or stops.
 */
#ifndef SYS_SUPERVISOR_PROCESSES_H
#define SYS_SUPERVISOR_PROCESSES_H

#include <systemd/sd-event.h>

#include "base/err.h"

enum {
    PROCESSES_MAX = 128,
    PROCESSES_SCAN_MS = 200,
    PROCESSES_EARLY_MS = 1000,
    PROCESSES_LASTING_MS = 3000,
    PROCESSES_STOPPED_MS = 600, /* so long in state T (SIGSTOP) is a hang */
};

struct unit;

struct process {
    pid_t pid; /* 0: free slot */
    int pidfd;
    sd_event_source *source;
    struct unit *unit;
    uint64_t seen_us, stopped_us; /* since when; stopped_us 0: it runs */
    bool early;                   /* there at the first scan */
    bool lasting;
};

struct processes {
    bool watching;
    sd_event_source *timer;
    struct process
        main; /* its end is seen by the unit; here only whether it is stopped */
    struct process at[PROCESSES_MAX];
};

/* From now on; all that are there now are lasting. */
void processes_watch(struct unit *u);
void processes_pause(struct unit *u);

#endif
