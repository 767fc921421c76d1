/*
 * migrate: brings the schema in a database up to the files of a folder (db/).
 *
 * Purpose   `redoubt init` and `redoubt database migrate`.
 * Shape     Files NNNN_name.sql, numbered from 0001 without a gap; each is applied in a
 *           transaction of its own and recorded in redoubt.schema_version.
 * Contract  Blocks: for the command line only.  Safe against another one at the same time.
 * Threads   any
 * Tests     tests/unit/test_fence.c
 */
#ifndef SYS_FENCE_MIGRATE_H
#define SYS_FENCE_MIGRATE_H

#include "base/err.h"

struct migrate_result {
    int before, after; /* schema version; 0: none */
};

/*
 * migrate_run - ERR_VERSION the database is newer than the files; ERR_NOT_FOUND no such
 *               folder, or it is not numbered as it should be; else what the DBMS says,
 *               with the file's name.  `result` is set as far as it came.
 * each          is told of each file before it is applied; may be NULL.
 */
MUST_USE enum err migrate_run(const char *conninfo, const char *folder,
                              void (*each)(void *ctx, const char *file), void *ctx,
                              struct migrate_result *result, struct err_info *info);

#endif
