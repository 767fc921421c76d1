/*
 * cvd: signature databases of ClamAV as they travel: the header, the names of files.
 *
 * Purpose   A database begins with 512 bytes of text that say its version, when it was
 *           built, and how it is signed.  Its increments say which version they lead to.
 *           What a file may be called decides what a mirror asks for and publishes.
 * Shape     Plain data, bounded; no pointers into the bytes remain.
 * Safety    The header itself is not signed: sys/cvd compares it with the copy within.
 * Threads   any; pure
 * Source    sigtool(1), freshclam(1); files made by ClamAV 0.103 to 1.4
 */
#ifndef WIRE_CVD_H
#define WIRE_CVD_H

#include "base/err.h"
#include "base/str.h"

enum {
    CVD_HEADER = 512,
    CVD_NAME_MAX = 31,  /* "daily" */
    CVD_FILE_MAX = 64,  /* "daily-27890.cvd.sign" */
    CVD_SIGN_MAX = 350, /* characters of a digital signature */
    CVD_TEXT_MAX = 64,
};

struct cvd {
    uint32_t version;
    uint32_t signatures;
    uint32_t level;              /* the functionality that an engine needs */
    uint64_t built;              /* seconds since 1970 */
    uint8_t md5[16];             /* of all that follows the header */
    char time[CVD_TEXT_MAX];     /* "22 Jun 2021 14-58 -0400" */
    char builder[CVD_TEXT_MAX];  /* printable */
    char sign[CVD_SIGN_MAX + 1]; /* "X" or "": none */
};

/* The first CVD_HEADER bytes of a database (.cvd, .cld, .cud). */
MUST_USE enum err cvd_header(struct str bytes, struct cvd *out);
/* The first line of the copy within, which has no digest and no signature. */
MUST_USE enum err cvd_info(struct str bytes, struct cvd *out);
/* Does it have a signature at all? */
bool cvd_is_signed(const struct cvd *c);

/* "ClamAV-Diff:<version>:<size>:", the beginning of an increment. */
MUST_USE enum err cvd_diff_header(struct str bytes, uint32_t *version);

enum cvd_kind {
    CVD_DATABASE,      /* daily.cvd */
    CVD_LOCAL,         /* daily.cld: made by freshclam from increments */
    CVD_UNSIGNED,      /* own.cud */
    CVD_DIFF,          /* daily-27890.cdiff */
    CVD_DATABASE_SIGN, /* daily-27890.cvd.sign */
    CVD_DIFF_SIGN,     /* daily-27890.cdiff.sign */
};

struct cvd_file {
    enum cvd_kind kind;
    char name[CVD_NAME_MAX + 1]; /* a-z, 0-9 and '-', the first no '-' */
    uint32_t version;            /* of increments and signatures, from 1 on; else 0 */
};

/* What a file name says; false: it is none of these. */
MUST_USE bool cvd_file_name(struct str file, struct cvd_file *out);
/* The name of the file that f says; false if it does not fit. */
MUST_USE bool cvd_file_print(const struct cvd_file *f, char *buf, size_t size);
/* main, daily, test: a name without an ending. */
bool cvd_name_ok(struct str name);

/*
 * May this be a signature file of an administrator's own?  a-z, 0-9, '.', '_' and '-' with an
 * ending that the engine loads, and no name of an official database.
 */
bool cvd_custom_name(struct str file);

#endif
