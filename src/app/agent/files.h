/*
 * files: small text files, read whole and written whole.
 *
 * Threads   any; calls block on the disk
 */
#ifndef APP_AGENT_FILES_H
#define APP_AGENT_FILES_H

#include <sys/stat.h>

#include "base/err.h"
#include "base/str.h"

/* Reads the file and a NUL behind it.  ERR_LIMIT if it does not fit. */
MUST_USE enum err file_load(const char *path, char *buf, size_t size, size_t *n,
                            struct err_info *info);

/* Replaces the file at once or not at all.  like: owner and mode; NULL: 0600 and ours. */
MUST_USE enum err file_store(const char *path, struct str text, const struct stat *like,
                             struct err_info *info);

#endif
