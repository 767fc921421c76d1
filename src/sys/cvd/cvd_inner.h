/*
 * cvd_inner: the copy of the header inside a database.
 *
 * Purpose   A database is a compressed tar archive behind its header; one of the first files
 *           in it, <name>.info, repeats the header.  The signature covers the archive, not
 *           the header: without this look, an old database could be given a high version.
 * Shape     Fed with the bytes behind the header; decompresses into one block of 512 bytes.
 *           Looks at no more than the first 64 MiB of the archive.
 * Threads   any
 */
#ifndef SYS_CVD_INNER_H
#define SYS_CVD_INNER_H

#include <zlib.h>

#include "wire/cvd.h"

struct cvd_inner {
    z_stream z;
    char wanted[CVD_NAME_MAX + 8]; /* "daily.info" */
    uint8_t block[CVD_HEADER];
    uint64_t skip, seen;
    size_t size; /* of the file that begins with the next block */
    bool taking, done, found;
    struct cvd info; /* if found */
};

MUST_USE enum err cvd_inner_init(struct cvd_inner *i, const char *name);
void cvd_inner_feed(struct cvd_inner *i, const uint8_t *bytes, size_t n);
void cvd_inner_release(struct cvd_inner *i);

#endif
