/*
 * cvd_look: what a signature mirror has that is newer than what we have.
 *
 * Purpose   Fetches new databases, the increments that lead to them and their .sign files
 *           into a folder, and verifies each: a set is whole and genuine, or there is none.
 * Shape     Asks for 512 bytes first; a database that has not changed costs one 304.  The
 *           increments are fetched from the newest back, until one is missing.
 * Safety    Killed anywhere, it goes on with what is in the folder.
 * Errors    As cvd_fetch.h; ERR_NOT_FOUND the source has no such database; ERR_CORRUPT what
 *           it gave is not genuine.
 * Threads   one; blocks
 */
#ifndef SYS_CVD_LOOK_H
#define SYS_CVD_LOOK_H

#include "sys/cvd/cvd_check.h"
#include "sys/cvd/cvd_fetch.h"

enum {
    LOOK_FILES_MAX = 1000,
    LOOK_CHAIN_FIRST = 30, /* increments of a database that we do not have yet */
    LOOK_PATH = 600,
};

struct look_file {
    char file[CVD_FILE_MAX]; /* as the mirror calls it */
    char path[LOOK_PATH];
    struct cvd_checked checked;
    struct cvd_file name;
};

struct look {
    struct fetch fetch;
    const char *folder; /* borrowed */
    uint32_t keep;      /* increments of a database */
    struct look_file *files;
    size_t count;
};

MUST_USE enum err look_init(struct look *l, const char *folder, uint32_t keep,
                            const struct fetch_options *o, struct err_info *info);
void look_release(struct look *l);

/* version 0: we have none.  Adds to l->files what is new. */
MUST_USE enum err look_database(struct look *l, const char *name, uint32_t version,
                                uint64_t built, struct err_info *info);

/* Removes what is left in the folder; with older_s > 0 only what is older. */
void look_clean(const char *folder, uint64_t older_s);

#endif
