#include "sys/spool/run_store.h"

#include "sys/spool/spool_db.h"

const char run_schema[] =
    "CREATE TABLE IF NOT EXISTS run ("
    "  n INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, type TEXT NOT NULL,"
    "  params TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,"
    "  percent INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,"
    "  not_before INTEGER NOT NULL, not_after INTEGER NOT NULL,"
    "  outcome TEXT NOT NULL DEFAULT '', told INTEGER NOT NULL DEFAULT 0,"
    "  finish BLOB NOT NULL DEFAULT x'', ended INTEGER NOT NULL DEFAULT 0);"
    "CREATE INDEX IF NOT EXISTS run_open ON run (state, priority DESC, n);";

enum {
    ADD,
    STATE,
    REWIND,
    FINISH,
    TOLD,
    BODY,
    GET,
    WALK,
    OPEN,
    FINISHED,
    TRIM,
    TRIM_OLD
};

#define COLUMNS                                                                          \
    "id, type, params, state, priority, percent, attempts, not_before, not_after, "      \
    "outcome, told"

static const char *const sql[RUN_SQL] = {
    [ADD] = "INSERT INTO run (id, type, params, priority, not_before, not_after, state,"
            " outcome, finish, ended, told)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 1)",
    [STATE] = "UPDATE run SET attempts = attempts + (state = 0 AND ?2 = 1), state = ?2,"
              " percent = ?3 WHERE id = ?1 AND state < 3",
    [REWIND] = "UPDATE run SET state = state - (state = 1), percent = 0"
               " WHERE state IN (1, 2)",
    [FINISH] = "UPDATE run SET state = 3, outcome = ?2, finish = ?3, ended = ?4, told = 1"
               " WHERE id = ?1 AND state < 3",
    [TOLD] = "UPDATE run SET told = 1 WHERE id = ?1",
    [BODY] = "SELECT told, finish FROM run WHERE id = ?1 AND state = 3",
    [GET] = "SELECT " COLUMNS " FROM run WHERE id = ?1",
    [WALK] = "SELECT " COLUMNS " FROM run WHERE state < 3 ORDER BY priority DESC, n",
    [OPEN] = "SELECT count(*) FROM run WHERE state < 3",
    [FINISHED] = "SELECT count(*) FROM run WHERE state = 3",
    [TRIM] = "DELETE FROM run WHERE state = 3 AND n <= (SELECT n FROM run WHERE state = 3"
             " ORDER BY n DESC LIMIT 1 OFFSET ?1)",
    [TRIM_OLD] = "DELETE FROM run WHERE state = 3 AND ended < ?2 AND n <= (SELECT n FROM"
                 " run WHERE state = 3 ORDER BY n DESC LIMIT 1 OFFSET ?1)",
};

int run_store_start(struct spool *s)
{
    return spool_prepare(s, sql, LEN(sql), s->run);
}

static uint32_t number(sqlite3_stmt *st)
{
    int64_t n = 0;

    return spool_number(st, &n) == SQLITE_OK ? (uint32_t)n : 0;
}

struct run_counts run_store_counts(struct spool *s)
{
    return (struct run_counts){ number(s->run[OPEN]), number(s->run[FINISHED]) };
}

/* Of an UPDATE or INSERT that must have hit exactly one row. */
static bool hit(struct spool *s)
{
    return sqlite3_changes(s->db) == 1;
}

static int trim(struct spool *s, int64_t now_s)
{
    int n = spool_run(s->run[TRIM], "i", (int64_t)RUNS_KEPT_MAX);

    return n == SQLITE_OK ? spool_run(s->run[TRIM_OLD], "ii", (int64_t)RUNS_KEPT_MIN,
                                      now_s - (int64_t)RUNS_KEPT_S)
                          : n;
}

enum err run_store_accept(struct spool *s, const struct run_row *run, int64_t now_s,
                          const struct event_add *event, struct err_info *info)
{
    bool refused = run->state == RUN_FINISHED;
    struct event_add told = *event;
    uint64_t seq = 0;

    told.run = refused ? &run->id : NULL;
    if (!refused && number(s->run[OPEN]) >= RUNS_OPEN_MAX)
        return err_set(info, ERR_LIMIT, 0, "%d runs are not finished yet", RUNS_OPEN_MAX);
    if (run->params.n > RUN_PARAMS_MAX || event->body.n > EVENT_BYTES_MAX)
        return err_set(info, ERR_LIMIT, 0, "the order is too big");
    int n = spool_begin(s);
    if (n == SQLITE_OK)
        n = spool_run(s->run[ADD], "bssiiiisbi", run->id.bytes, (size_t)UUID_BYTES,
                      str_of(run->type), run->params, (int64_t)run->priority,
                      run->not_before, run->not_after, (int64_t)run->state,
                      str_of(run->outcome), refused ? event->body.p : "",
                      refused ? event->body.n : (size_t)0, now_s);
    if ((n & 0xff) == SQLITE_CONSTRAINT) {
        spool_undo(s);
        return err_set(info, ERR_EXISTS, 0, "the run is there already");
    }
    if (n == SQLITE_OK)
        n = trim(s, now_s);
    if (n == SQLITE_OK)
        n = event_spool_put(s, &told, &seq);
    enum err e = spool_end(s, n, info, "store a run");
    return e == ERR_OK ? event_spool_done(s, event, seq, info) : e;
}

enum err run_store_state(struct spool *s, const struct uuid *id, enum run_state state,
                         uint32_t percent, struct err_info *info)
{
    CHECK(state != RUN_FINISHED);
    int n = spool_run(s->run[STATE], "bii", id->bytes, (size_t)UUID_BYTES, (int64_t)state,
                      (int64_t)percent);

    if (n != SQLITE_OK)
        return spool_failed(s, n, info, "store the state of a run");
    return hit(s) ? ERR_OK : err_set(info, ERR_NOT_FOUND, 0, "no such run");
}

enum err run_store_rewind(struct spool *s, struct err_info *info)
{
    int n = spool_run(s->run[REWIND], "");

    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "read the runs");
}

enum err run_store_finish(struct spool *s, const struct uuid *id, const char *outcome,
                          int64_t now_s, const struct event_add *event,
                          struct err_info *info)
{
    struct event_add told = *event;
    uint64_t seq = 0;

    told.run = id;
    int n = spool_begin(s);
    if (n == SQLITE_OK)
        n = spool_run(s->run[FINISH], "bsbi", id->bytes, (size_t)UUID_BYTES,
                      str_of(outcome), event->body.p, event->body.n, now_s);
    if (n == SQLITE_OK && !hit(s)) {
        spool_undo(s);
        return err_set(info, ERR_NOT_FOUND, 0, "no such run, or it is finished");
    }
    if (n == SQLITE_OK)
        n = trim(s, now_s);
    if (n == SQLITE_OK)
        n = event_spool_put(s, &told, &seq);
    enum err e = spool_end(s, n, info, "store the end of a run");
    return e == ERR_OK ? event_spool_done(s, event, seq, info) : e;
}

enum err run_store_retell(struct spool *s, const struct uuid *id, struct err_info *info)
{
    static uint8_t body[EVENT_BYTES_MAX];
    struct event_add event = { .stream = EVENT_NORMAL,
                               .severity = EVENT_SEV_ERROR,
                               .run = id };
    sqlite3_stmt *st = s->run[BODY];
    uint64_t seq = 0;
    bool again = false;
    int n = spool_bind(st, "b", id->bytes, (size_t)UUID_BYTES);

    if (n == SQLITE_OK && sqlite3_step(st) == SQLITE_ROW) {
        size_t size = (size_t)sqlite3_column_bytes(st, 1);

        again = sqlite3_column_int(st, 0) == 0 && size > 0 && size <= sizeof(body);
        if (again)
            memcpy(body, sqlite3_column_blob(st, 1), size);
        event.body = (struct str){ (char *)body, size };
    }
    (void)sqlite3_reset(st);
    if (n != SQLITE_OK || !again)
        return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "read a run");
    n = spool_begin(s);
    if (n == SQLITE_OK)
        n = spool_run(s->run[TOLD], "b", id->bytes, (size_t)UUID_BYTES);
    if (n == SQLITE_OK)
        n = event_spool_put(s, &event, &seq);
    enum err e = spool_end(s, n, info, "tell the end of a run again");
    return e == ERR_OK ? event_spool_done(s, &event, seq, info) : e;
}

static void row_of(sqlite3_stmt *st, struct run_row *out)
{
    *out = (struct run_row){ 0 };
    if (sqlite3_column_bytes(st, 0) == UUID_BYTES)
        memcpy(out->id.bytes, sqlite3_column_blob(st, 0), UUID_BYTES);
    (void)snprintf(out->type, sizeof(out->type), "%s",
                   (const char *)sqlite3_column_text(st, 1));
    out->params.p = (const char *)sqlite3_column_text(st, 2);
    out->params.n = (size_t)sqlite3_column_bytes(st, 2);
    out->state = (enum run_state)sqlite3_column_int(st, 3);
    out->priority = (uint32_t)sqlite3_column_int(st, 4);
    out->percent = (uint32_t)sqlite3_column_int(st, 5);
    out->attempts = (uint32_t)sqlite3_column_int(st, 6);
    out->not_before = sqlite3_column_int64(st, 7);
    out->not_after = sqlite3_column_int64(st, 8);
    (void)snprintf(out->outcome, sizeof(out->outcome), "%s",
                   (const char *)sqlite3_column_text(st, 9));
    out->told = sqlite3_column_int(st, 10) != 0;
}

enum err run_store_get(struct spool *s, const struct uuid *id, struct run_row *out,
                       struct err_info *info)
{
    static char params[RUN_PARAMS_MAX + 1];
    sqlite3_stmt *st = s->run[GET];
    int n = spool_bind(st, "b", id->bytes, (size_t)UUID_BYTES);

    if (n == SQLITE_OK)
        n = sqlite3_step(st);
    if (n == SQLITE_ROW) {
        row_of(st, out);
        size_t size = out->params.n < sizeof(params) ? out->params.n : 0;

        if (size > 0)
            memcpy(params, out->params.p, size);
        out->params = (struct str){ params, size };
    }
    (void)sqlite3_reset(st);
    if (n == SQLITE_ROW)
        return ERR_OK;
    return n == SQLITE_DONE ? err_set(info, ERR_NOT_FOUND, 0, "no such run")
                            : spool_failed(s, n, info, "read a run");
}

enum err run_store_walk(struct spool *s, run_each *each, void *arg, struct err_info *info)
{
    sqlite3_stmt *st = s->run[WALK];
    int n;

    while ((n = sqlite3_step(st)) == SQLITE_ROW) {
        struct run_row row;

        row_of(st, &row);
        if (!each(arg, &row)) {
            n = SQLITE_DONE;
            break;
        }
    }
    enum err e = n == SQLITE_DONE ? ERR_OK : spool_failed(s, n, info, "read the runs");
    (void)sqlite3_reset(st);
    return e;
}
