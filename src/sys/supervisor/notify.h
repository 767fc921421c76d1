/*
 * notify: the messages of a service to its supervisor (the sd_notify protocol).
 *
 * Purpose   One datagram socket a service, in a folder of the run directory.  The
 *           kernel says who sent a message; only a process in the service's own group
 *           is heard.
 * Shape     A message is lines NAME=value, at most NOTIFY_BYTES. Unknown names are
 *           skipped.
 * Owns      The caller closes the descriptor of notify_open and removes the path.
 * Threads   loop thread only; notify_decode is pure
 * Source    sd_notify(3); REDOUBT_ROLE=, REDOUBT_METRICS= are ours (docs/services.md)
 * Tests     tests/unit/test_notify.c
 */
#ifndef SYS_SUPERVISOR_NOTIFY_H
#define SYS_SUPERVISOR_NOTIFY_H

#include <sys/types.h>

#include "base/err.h"
#include "base/str.h"

enum { NOTIFY_BYTES = 4096, NOTIFY_STATUS_BYTES = 200, NOTIFY_METRICS_BYTES = 1024 };

enum notify_role { NOTIFY_ROLE_NONE, NOTIFY_ROLE_STANDBY, NOTIFY_ROLE_ACTIVE };

struct notify_message {
    bool ready, watchdog, stopping, has_status, has_metrics;
    enum notify_role role;
    uint64_t epoch;                     /* of NOTIFY_ROLE_ACTIVE */
    char status[NOTIFY_STATUS_BYTES];   /* cut; bytes below blank replaced by '?' */
    char metrics[NOTIFY_METRICS_BYTES]; /* as it was said; "" if it is too long */
};

/* Any bytes are legal; what is not understood is skipped. */
void notify_decode(struct notify_message *out, struct str datagram);

/* Makes the socket at path for the user to send to.  A file in its way is removed. */
MUST_USE enum err notify_open(int *ret_fd, const char *path, uid_t uid, gid_t gid,
                              struct err_info *info);

/*
 * notify_receive - the next datagram, into buf (NOTIFY_BYTES).
 *
 * ERR_NOT_FOUND: none waits.  *ret_pid is the sender as the kernel saw it, 0 if unknown.
 */
MUST_USE enum err notify_receive(int fd, char *buf, struct str *ret_datagram,
                                 pid_t *ret_pid);

#endif
