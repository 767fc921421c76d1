/*
 * clamd: what the anti-malware engine answers on its socket.
 *
 * Purpose   One IDSESSION asks PING, VERSION and STATS; the replies come as
 *           "<id>: <text>" NUL-terminated, in any order.  Nothing is parsed blindly: the
 *           version may come without database number and date, STATS is free text of
 *           which only what is recognised is used.
 * Shape     All views point into the caller's bytes.
 * Threads   any; pure
 * Source    clamd(8); replies seen with ClamAV 1.4.6
 */
#ifndef WIRE_CLAMD_H
#define WIRE_CLAMD_H

#include "base/err.h"
#include "base/str.h"

enum { CLAMD_REPLY_MAX = 16384, CLAMD_TEXT_MAX = 64, CLAMD_NAME_MAX = 200 };

/* The request of one probe, and the ids that its replies carry. */
#define CLAMD_PROBE "zIDSESSION\0zPING\0zVERSION\0zSTATS\0zEND"
enum clamd_id { CLAMD_ID_PING = 1, CLAMD_ID_VERSION = 2, CLAMD_ID_STATS = 3 };

struct clamd_reply {
    uint32_t id;
    struct str text;
};

/*
 * clamd_reply - takes one NUL-terminated reply off the front of bytes.
 * used    out: bytes consumed; 0 if the reply is not whole yet (ERR_OK then too)
 */
MUST_USE enum err clamd_reply(struct str bytes, struct clamd_reply *out, size_t *used);

bool clamd_is_pong(struct str text);

struct clamd_version {
    char engine[CLAMD_TEXT_MAX]; /* "1.4.6" */
    uint32_t database;           /* 0: custom databases only */
    char built[CLAMD_TEXT_MAX];  /* "Wed Nov  1 08:00:00 2026", "" if not said */
};

MUST_USE enum err clamd_version(struct str text, struct clamd_version *out);

struct clamd_stats {
    char state[CLAMD_TEXT_MAX]; /* "VALID PRIMARY", "" if not said */
    uint32_t pools, threads_live, threads_idle, threads_max, queue;
};

/*
 * What a file is: the reply to FILDES, "fd[11]: Name FOUND".  What stands before the last
 * ": " is not looked at, because it may hold anything.
 */
enum clamd_found {
    CLAMD_CLEAN,
    CLAMD_FOUND,   /* text: the signature */
    CLAMD_LIMITED, /* text: which limit; the file was not scanned to its end */
    CLAMD_ERROR    /* text: the reason */
};
struct clamd_verdict {
    enum clamd_found found;
    char text[CLAMD_NAME_MAX]; /* printable ASCII, cut; "" for CLAMD_CLEAN */
};

MUST_USE enum err clamd_verdict(struct str text, struct clamd_verdict *out);

/* Never fails on content: what is not recognised stays 0 or "". */
void clamd_stats(struct str text, struct clamd_stats *out);

#endif
