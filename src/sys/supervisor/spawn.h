/*
 * spawn: starts one process of a service, inside its control group from its first
 * moment.
 *
 * Purpose   The child cannot escape: it is in the group before it runs the program, dies
 *           with the daemon (PR_SET_PDEATHSIG), gains no privileges, and gets only the
 *           descriptors named here.
 * Shape     Where the kernel can, the child is born in the group (CLONE_INTO_CGROUP);
 *           else it moves itself there first.  In between, for some microseconds, a kill
 *           of the group misses it; it still dies if the daemon does.
 * Owns      All pointers and descriptors are borrowed for the call; struct spawned is
 *           the caller's: it closes pidfd and exec_fd.
 * Threads   loop thread only; does not wait for the exec
 * Tests     tests/fault/test_supervisor.c
 */
#ifndef SYS_SUPERVISOR_SPAWN_H
#define SYS_SUPERVISOR_SPAWN_H

#include <sys/types.h>

#include "base/err.h"
#include "base/str.h"

enum { SPAWN_GROUPS_MAX = 64, SPAWN_ROLE_FD = 3, SPAWN_LEASE_FD = 4 };

struct spawn_user {
    bool set; /* false: the daemon's own */
    uid_t uid;
    gid_t gid;
    char name[64], home[256];
    size_t group_count;
    gid_t groups[SPAWN_GROUPS_MAX];
};

struct spawn_options {
    const char *const *argv; /* argv[0]: the program's path; ends with NULL */
    char *const *env;        /* NAME=value; ends with NULL; WATCHDOG_PID is added */
    const struct spawn_user *user;
    int cgroup_dir;
    bool born_in_cgroup;   /* what spawn_probe() found out */
    int role_fd, lease_fd; /* become SPAWN_ROLE_FD and SPAWN_LEASE_FD; -1: none */
    int output_fd;         /* standard output and error; -1: the daemon's */
    uint64_t nofile;       /* RLIMIT_NOFILE, or what the daemon may give; 0: unchanged */
    uint64_t data_bytes;   /* RLIMIT_DATA; 0: unchanged */
};

struct spawned {
    pid_t pid;
    int pidfd;
    int exec_fd; /* end of file: exec succeeded; else struct spawn_failure */
};

/* What the child writes before it gives up. */
struct spawn_failure {
    int sys_errno;
    char step[60]; /* "exec", "become the user": NUL-terminated */
};

/* Looks a user up; "" or NULL is the daemon's own.  ERR_CONFIG: there is none. */
MUST_USE enum err spawn_user_find(struct spawn_user *out, const char *name,
                                  struct err_info *info);

/*
 * spawn_probe - can children be born in a group whose processes were killed before?
 *
 * Since cgroup_css_set_fork() compares kill counters, some kernels (seen: 6.18) take the
 * one of the PARENT's group and kill a child born into another group whose counter
 * differs, as it does for every service after its first failure.  So it is tried, in the
 * empty group given.
 */
bool spawn_probe(int cgroup_dir);

/* May this process give a child `nofile` open files? */
bool spawn_may_raise(uint64_t nofile);

MUST_USE enum err spawn(struct spawned *out, const struct spawn_options *o,
                        struct err_info *info);

#endif
