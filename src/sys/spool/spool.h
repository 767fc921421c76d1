/*
 * spool: reports that the server has not confirmed yet, on disk (SQLite).
 *
 * Purpose   A report is in the spool before it is sent, and until a receipt has come: a
 *           crash or a power failure of the device loses nothing that was added.
 * Shape     Reports have a seq of their own, rising by one, never used again.  At most
 *           `max` reports wait; one more drops the oldest, and that is counted for ever.
 * Owns      The file, exclusively: a second spool_open of the same file fails.
 * Errors    ERR_FULL no space, ERR_STATE another process has it, ERR_IO, ERR_DENIED.
 *           A file that is damaged is moved aside (path.damaged), and a new one begun.
 * Threads   loop thread only.  Writing waits for the disk (WAL, synchronous=FULL).
 * Tests     tests/unit/test_spool.c
 */
#ifndef SYS_SPOOL_H
#define SYS_SPOOL_H

#include "base/err.h"
#include "wire/report.h"

struct spool;

struct spool_counts {
    uint64_t pending, dropped, last_seq;
    bool damaged; /* the file had to be replaced at spool_open */
};

MUST_USE enum err spool_open(const char *path, uint32_t max, struct spool **out,
                             struct err_info *info);
void spool_close(struct spool *s);

/* Stores the report; sets r->seq.  ERR_OK means that it is on the disk. */
MUST_USE enum err spool_add(struct spool *s, struct report *r, struct err_info *info);

/* One report as it goes to the server; bytes are borrowed for the call.  False: stop. */
typedef bool spool_each(void *arg, uint64_t seq, struct str bytes);
/* The reports behind `after`, in order. */
MUST_USE enum err spool_walk(struct spool *s, uint64_t after, spool_each *each, void *arg,
                             struct err_info *info);

/* The server has them, or will never take them.  Unknown ones are fine. */
MUST_USE enum err spool_remove(struct spool *s, const struct receipt *receipts,
                               uint32_t count, struct err_info *info);

const struct spool_counts *spool_counts(const struct spool *s);

#endif
