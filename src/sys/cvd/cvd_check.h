/*
 * cvd_check: is a file of a signature mirror what its name says, and genuine?
 *
 * Purpose   What nobody could use is not published, and what was tampered with is told.
 *             .cvd          header, MD5, digital signature, and that the signed archive says
 *                           the same version and time as the header
 *             .cdiff        version and digital signature
 *             .cud          header and MD5; it has no signature
 *             .sign         text of bounded size; who uses it verifies it
 * Shape     Reads the file once, in pieces.
 * Errors    ERR_CORRUPT: it is not what it must be, and why in words.
 * Threads   any; blocks
 */
#ifndef SYS_CVD_CHECK_H
#define SYS_CVD_CHECK_H

#include "wire/cvd.h"

/* Largest file of a mirror: main.cvd has 0.2 GiB, increments a few MiB. */
#define CVD_DATABASE_BYTES ((uint64_t)2 << 30)
#define CVD_DIFF_BYTES     ((uint64_t)256 << 20)
#define CVD_TEXT_BYTES     ((uint64_t)64 << 10)

/* How long a file of this kind may be. */
uint64_t cvd_bytes_max(enum cvd_kind kind);

struct cvd_checked {
    struct cvd head; /* of databases; else version only */
    uint64_t size;
    char sha256[65];
    bool genuine; /* signed by ClamAV's makers */
};

/* fd: a regular file; its position is not used. */
MUST_USE enum err cvd_check(int fd, const struct cvd_file *name, struct cvd_checked *out,
                            struct err_info *info);

#endif
