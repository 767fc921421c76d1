/*
 * blob_local: what blob_local.c and blob_fetch.c share; nobody else includes it.
 *
 * Threads   any
 */
#ifndef SYS_BLOB_LOCAL_H
#define SYS_BLOB_LOCAL_H

#include "sys/blob/blob_private.h"

/* <store>/<folder>/<sha256>; id NULL: the folder. */
MUST_USE enum err blob_local_file(const char *store, const char *folder,
                                  const struct blob_id *id, char out[BLOB_PATH],
                                  struct err_info *info);
/* Verifies it and gives it open; the caller closes. */
MUST_USE enum err blob_local_open(const char *store, const struct blob *b,
                                  const struct blob_watch *w, int *out,
                                  struct err_info *info);

#endif
