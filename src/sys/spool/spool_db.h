/*
 * spool_db: what the parts of the spool share: the open file and how statements are run.
 *
 * Shape     Statements of a part are a table of SQL and an array as long in struct spool.
 *           Functions that return int return SQLite's codes; spool_end turns them into
 *           enum err at the end of a transaction.
 * Threads   loop thread only; private to sys/spool
 */
#ifndef SYS_SPOOL_DB_H
#define SYS_SPOOL_DB_H

#include <sqlite3.h>
#include <stdarg.h>

#include "sys/spool/event_spool.h"
#include "sys/spool/run_store.h"
#include "sys/spool/spool.h"

enum { REPORT_SQL = 5, EVENT_SQL = 11, RUN_SQL = 12 };
enum { EVENTS_COUNT_DEFAULT = 20000, EVENTS_BYTES_DEFAULT = 16 << 20 };

struct spool_stream {
    struct uuid id;
    uint64_t last_seq, through;
};

struct spool {
    sqlite3 *db;
    sqlite3_stmt *report[REPORT_SQL], *event[EVENT_SQL], *run[RUN_SQL];
    uint32_t max;
    struct spool_counts counts;
    /* events */
    struct spool_stream stream[EVENT_STREAMS];
    uint32_t events_max;
    uint64_t events_bytes_max;
    struct event_counts events;
    uint64_t lost[EVENT_SEVERITIES]; /* could not even be counted on the disk */
};

int spool_prepare(struct spool *s, const char *const *sql, size_t n, sqlite3_stmt **to);

/* Binds the arguments in order: 'i' int64_t, 'b' pointer and size_t, 's' struct str. */
int spool_bind(sqlite3_stmt *st, const char *kinds, ...);
/* Binds and runs a statement that returns no rows. */
int spool_run(sqlite3_stmt *st, const char *kinds, ...);
/* Runs a statement without arguments that returns one number. */
int spool_number(sqlite3_stmt *st, int64_t *out);
int spool_text(struct spool *s, const char *sql);

int spool_begin(struct spool *s);
void spool_undo(struct spool *s);
/* Commits, or rolls back when n is an error; the words say what was tried. */
MUST_USE enum err spool_end(struct spool *s, int n, struct err_info *info,
                            const char *what);
MUST_USE enum err spool_failed(const struct spool *s, int n, struct err_info *info,
                               const char *what);

/* (number, body) rows of a bound statement, until each() says stop. */
MUST_USE enum err spool_each_row(struct spool *s, sqlite3_stmt *st, int n,
                                 spool_each *each, void *arg, struct err_info *info);

/* Of the parts: tables are made, statements prepared, counts read. */
extern const char event_schema[], run_schema[];
int report_start(struct spool *s);
int event_spool_start(struct spool *s);
int run_store_start(struct spool *s);
/* Inside a transaction of the caller. */
int event_spool_put(struct spool *s, const struct event_add *e, uint64_t *seq);
/* After its commit: what is in memory follows. */
MUST_USE enum err event_spool_done(struct spool *s, const struct event_add *e,
                                   uint64_t seq, struct err_info *info);

#endif
