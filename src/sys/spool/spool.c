/* spool.c: the reports; the file itself is in spool_db.c. */
#include "sys/spool/spool.h"

#include "sys/spool/spool_db.h"

enum { ADD, DROP, WALK, REMOVE, COUNT };

static const char *const sql[REPORT_SQL] = {
    [ADD] = "INSERT INTO report (seq, id, body) VALUES (?1, ?2, ?3)",
    [DROP] = "DELETE FROM report WHERE seq = (SELECT min(seq) FROM report)",
    [WALK] = "SELECT seq, body FROM report WHERE seq > ?1 ORDER BY seq",
    [REMOVE] = "DELETE FROM report WHERE id = ?1",
    [COUNT] = "SELECT (SELECT count(*) FROM report),"
              " (SELECT value FROM counter WHERE name = 'dropped'),"
              " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'report'), 0)",
};

static int load_counts(struct spool *s)
{
    sqlite3_stmt *st = s->report[COUNT];
    int n = sqlite3_step(st);

    if (n == SQLITE_ROW) {
        s->counts.pending = (uint64_t)sqlite3_column_int64(st, 0);
        s->counts.dropped = (uint64_t)sqlite3_column_int64(st, 1);
        s->counts.last_seq = (uint64_t)sqlite3_column_int64(st, 2);
    }
    int end = sqlite3_reset(st);
    return n == SQLITE_ROW ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

int report_start(struct spool *s)
{
    int n = spool_prepare(s, sql, LEN(sql), s->report);

    return n == SQLITE_OK ? load_counts(s) : n;
}

static int make_room(struct spool *s)
{
    int n = SQLITE_OK;

    for (uint64_t have = s->counts.pending; n == SQLITE_OK && have >= s->max; have--) {
        n = spool_run(s->report[DROP], "");
        if (n == SQLITE_OK)
            n = spool_text(s,
                           "UPDATE counter SET value = value + 1 WHERE name = 'dropped'");
    }
    return n;
}

enum err spool_add(struct spool *s, struct report *r, struct err_info *info)
{
    uint8_t body[REPORT_BYTES_MAX];
    size_t size;
    struct report numbered = *r;

    numbered.seq = s->counts.last_seq + 1;
    if (report_encode(&numbered, body, sizeof(body), &size) != ERR_OK)
        return err_set(info, ERR_LIMIT, 0, "a report is too big for the spool");
    int n = spool_begin(s);
    if (n == SQLITE_OK)
        n = make_room(s);
    if (n == SQLITE_OK)
        n = spool_run(s->report[ADD], "ibb", (int64_t)numbered.seq, r->id.bytes,
                      (size_t)UUID_BYTES, body, size);
    enum err e = spool_end(s, n, info, "add a report");
    if (e != ERR_OK)
        return e;
    r->seq = numbered.seq;
    n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "count the reports");
}

enum err spool_walk(struct spool *s, uint64_t after, spool_each *each, void *arg,
                    struct err_info *info)
{
    sqlite3_stmt *st = s->report[WALK];
    int n = spool_bind(st, "i", (int64_t)after);

    return spool_each_row(s, st, n, each, arg, info);
}

enum err spool_each_row(struct spool *s, sqlite3_stmt *st, int n, spool_each *each,
                        void *arg, struct err_info *info)
{
    while (n == SQLITE_OK || n == SQLITE_ROW) {
        n = sqlite3_step(st);
        if (n != SQLITE_ROW)
            break;
        struct str body = { sqlite3_column_blob(st, 1),
                            (size_t)sqlite3_column_bytes(st, 1) };
        if (!each(arg, (uint64_t)sqlite3_column_int64(st, 0), body)) {
            n = SQLITE_DONE;
            break;
        }
    }
    enum err e = n == SQLITE_DONE ? ERR_OK : spool_failed(s, n, info, "read the spool");
    (void)sqlite3_reset(st);
    return e;
}

enum err spool_remove(struct spool *s, const struct receipt *receipts, uint32_t count,
                      struct err_info *info)
{
    int n = spool_begin(s);

    for (uint32_t i = 0; i < count && n == SQLITE_OK; i++)
        n = spool_run(s->report[REMOVE], "b", receipts[i].id.bytes, (size_t)UUID_BYTES);
    enum err e = spool_end(s, n, info, "remove reports");
    if (e != ERR_OK)
        return e;
    n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "count the reports");
}

const struct spool_counts *spool_counts(const struct spool *s)
{
    return &s->counts;
}
