/*
 * active: what redoubt-mirror does only while its node is active.
 *
 * Purpose   Fills the store, tidies it up: whatever writes to the data share or to the DBMS.
 *           A task is a function and a line in the table of active.c.
 * Contract  run() is called at the first turn after this node became active, and then every
 *           every_s seconds; after a failure again in a minute.  It may take its time and
 *           block, but asks mirror_goes_on() now and then, and returns ERR_STATE when that
 *           says no: it is called again in the next turn.
 * Safety    The session has announced the epoch and this node: what it writes is fenced, and
 *           ERR_STALE (RD001) says that this node is active no more.  A file is put on the
 *           share before its row is written, so whoever loses the lease in between leaves a
 *           file that nothing refers to, and collect.c takes that away after a day.
 */
#ifndef APP_MIRROR_ACTIVE_H
#define APP_MIRROR_ACTIVE_H

#include "app/mirror/mirror.h"
#include "sys/fence/dbc.h"

struct active {
    struct mirror *m;
    PGconn *db; /* announced; one statement is one transaction unless you say BEGIN */
    struct smb *smb; /* the data share, prepared */
    uint64_t epoch;
    char sqlstate[DBC_SQLSTATE]; /* of the last statement; "": the DBMS refused nothing */
};

/* db_ask(), and the state that the DBMS refused it with, or "". */
MUST_USE enum err db_ask_state(PGconn *c, const char *sql, size_t count,
                               const char *const values[], PGresult **out,
                               char state[DBC_SQLSTATE], struct err_info *info);
/* One statement; ERR_STALE, or what the DBMS said.  *out is the caller's (PQclear). */
MUST_USE enum err active_ask(struct active *a, const char *sql, size_t count,
                             const char *const values[], PGresult **out,
                             struct err_info *info);

struct active_task {
    const char *name; /* for the log */
    uint32_t every_s;
    bool (*wanted)(struct mirror *m); /* is there anything to do?  NULL: yes */
    enum err (*run)(struct active *a, struct err_info *info);
};

/* Runs what is due, if this node is active. */
void active_turn(struct mirror *m);

/* collect.c */
enum err collect_run(struct active *a, struct err_info *info);

/* upstream.c */
bool upstream_wanted(struct mirror *m);
enum err upstream_run(struct active *a, struct err_info *info);
/* An administrator asks for a look, or changed the source. */
void upstream_news(void);

#endif
