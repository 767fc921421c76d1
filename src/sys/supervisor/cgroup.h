/*
 * cgroup: the control groups (version 2) that hold the services.
 *
 * Purpose   Finds the daemon's own group, keeps <own>/services/<name> below it, and
 *           kills whatever is inside with one write.
 * Shape     A group is an open directory.  Works on a machine with version 2 only and
 *           on one that has it beside version 1 ("unified"): the mount is looked up.
 * Owns      struct cgroup owns its descriptors until cgroup_release().
 * Errors    ERR_UNSUPPORTED: no cgroup v2, or no cgroup.kill (Linux < 5.14).
 * Threads   loop thread only
 * Source    Linux Documentation/admin-guide/cgroup-v2.rst
 * Tests     tests/unit/test_cgroup.c, tests/fault/test_supervisor.c
 */
#ifndef SYS_SUPERVISOR_CGROUP_H
#define SYS_SUPERVISOR_CGROUP_H

#include <sys/types.h>

#include "base/err.h"
#include "base/str.h"

enum { CGROUP_PATH_BYTES = 512 };

struct cgroup {
    int dir;    /* -1: not open */
    int events; /* cgroup.events; EPOLLPRI when `populated` changes */
    char path[CGROUP_PATH_BYTES];
    char member[CGROUP_PATH_BYTES]; /* as /proc/<pid>/cgroup shows it after "0::" */
};

/*
 * cgroup_of_mounts - where the group `member` (the "0::" line of /proc/self/cgroup) lies,
 * from the text of /proc/self/mountinfo.  Pure.  False: no cgroup v2 mount shows it.
 */
MUST_USE bool cgroup_of_mounts(struct str mountinfo, struct str member, char *path,
                               size_t size);
/* The path of the "0::" line of a /proc/<pid>/cgroup text; p == NULL if there is none. */
struct str cgroup_member(struct str proc_cgroup);

/* The daemon's own group. */
MUST_USE enum err cgroup_own(struct cgroup *out, struct err_info *info);
/* Makes (if it does not exist) and opens the group `name` below parent. */
MUST_USE enum err cgroup_open(struct cgroup *out, const struct cgroup *parent,
                              const char *name, struct err_info *info);
void cgroup_release(struct cgroup *g);

/* Kills every process in g and below; new ones forked meanwhile too. */
MUST_USE enum err cgroup_kill(const struct cgroup *g, struct err_info *info);
/* Does any process live in g or below?  If it cannot be read: true. */
bool cgroup_populated(const struct cgroup *g);
/* cgroup_kill, then waits until g is empty, at most limit_ms: ERR_TIMEOUT. */
MUST_USE enum err cgroup_empty(const struct cgroup *g, uint32_t limit_ms,
                               struct err_info *info);
/* Removes the empty group `name` and its empty children; a missing one is fine. */
void cgroup_remove(const struct cgroup *parent, const char *name);

/* Is pid in g or below? */
bool cgroup_has(const struct cgroup *g, pid_t pid);
/* The processes directly in g, at most max; the count may be cut. */
size_t cgroup_pids(const struct cgroup *g, pid_t *pids, size_t max);

/* Writes text to the file `name` of g. */
MUST_USE enum err cgroup_write(const struct cgroup *g, const char *name, const char *text,
                               struct err_info *info);

#endif
