#include "sys/spool/spool.h"

#include <errno.h>
#include <sqlite3.h>

struct spool {
    sqlite3 *db;
    sqlite3_stmt *add, *drop, *walk, *remove, *count;
    uint32_t max;
    struct spool_counts counts;
};

static const char schema[] =
    "PRAGMA locking_mode = EXCLUSIVE;"
    "PRAGMA journal_mode = WAL;"
    "PRAGMA synchronous = FULL;"
    "PRAGMA trusted_schema = OFF;"
    "CREATE TABLE IF NOT EXISTS report ("
    "  seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, body BLOB NOT "
    "NULL);"
    "CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
    "  WITHOUT ROWID;"
    "INSERT OR IGNORE INTO counter VALUES ('dropped', 0);"
    /* takes the write lock, so that a second process is found out at once */
    "UPDATE counter SET value = value WHERE name = 'dropped';";

static enum err kind_of(int code)
{
    switch (code & 0xff) {
    case SQLITE_FULL: return ERR_FULL;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return ERR_STATE;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return ERR_CORRUPT;
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN: return ERR_DENIED;
    case SQLITE_NOMEM: return ERR_MEMORY;
    default: return ERR_IO;
    }
}

static enum err failed(const struct spool *s, int code, struct err_info *info,
                       const char *what)
{
    return err_set(info, kind_of(code), 0, "%s: %s", what,
                   s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(code));
}

static int prepare(struct spool *s)
{
    const struct {
        sqlite3_stmt **to;
        const char *sql;
    } all[] = {
        { &s->add, "INSERT INTO report (seq, id, body) VALUES (?1, ?2, ?3)" },
        { &s->drop, "DELETE FROM report WHERE seq = (SELECT min(seq) FROM report)" },
        { &s->walk, "SELECT seq, body FROM report WHERE seq > ?1 ORDER BY seq" },
        { &s->remove, "DELETE FROM report WHERE id = ?1" },
        { &s->count,
          "SELECT (SELECT count(*) FROM report),"
          " (SELECT value FROM counter WHERE name = 'dropped'),"
          " coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'report'), 0)" },
    };
    int n = SQLITE_OK;

    for (size_t i = 0; i < LEN(all) && n == SQLITE_OK; i++)
        n = sqlite3_prepare_v3(s->db, all[i].sql, -1, SQLITE_PREPARE_PERSISTENT,
                               all[i].to, NULL);
    return n;
}

static int load_counts(struct spool *s)
{
    int n = sqlite3_step(s->count);

    if (n == SQLITE_ROW) {
        s->counts.pending = (uint64_t)sqlite3_column_int64(s->count, 0);
        s->counts.dropped = (uint64_t)sqlite3_column_int64(s->count, 1);
        s->counts.last_seq = (uint64_t)sqlite3_column_int64(s->count, 2);
    }
    int end = sqlite3_reset(s->count);
    return n == SQLITE_ROW ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

static enum err open_once(struct spool *s, const char *path, struct err_info *info)
{
    int n = sqlite3_open_v2(path, &s->db,
                            SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE |
                                SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_PRIVATECACHE,
                            NULL);

    if (n == SQLITE_OK)
        n = sqlite3_extended_result_codes(s->db, 1);
    if (n == SQLITE_OK)
        n = sqlite3_exec(s->db, schema, NULL, NULL, NULL);
    if (n == SQLITE_OK)
        n = prepare(s);
    if (n == SQLITE_OK)
        n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : failed(s, n, info, path);
}

static void finish(struct spool *s)
{
    sqlite3_stmt **all[] = { &s->add, &s->drop, &s->walk, &s->remove, &s->count };

    for (size_t i = 0; i < LEN(all); i++) {
        (void)sqlite3_finalize(*all[i]);
        *all[i] = NULL;
    }
    (void)sqlite3_close(s->db);
    s->db = NULL;
}

/* The damaged file is kept for whoever wants to look; its journal belongs to it. */
static enum err put_aside(const char *path, struct err_info *info)
{
    char to[512], wal[512];

    (void)snprintf(to, sizeof(to), "%s.damaged", path);
    if (rename(path, to) != 0)
        return err_set(info, ERR_IO, errno, "move the damaged %s aside", path);
    (void)snprintf(wal, sizeof(wal), "%s-wal", path);
    (void)remove(wal);
    return ERR_OK;
}

enum err spool_open(const char *path, uint32_t max, struct spool **out,
                    struct err_info *info)
{
    struct spool *s = calloc(1, sizeof(*s));

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "spool");
    CHECK(max > 0);
    s->max = max;
    enum err e = open_once(s, path, info);
    if (e == ERR_CORRUPT) {
        finish(s);
        s->counts = (struct spool_counts){ .damaged = true };
        e = put_aside(path, info);
        if (e == ERR_OK)
            e = open_once(s, path, info);
    }
    if (e != ERR_OK) {
        spool_close(s);
        return e;
    }
    *out = s;
    return ERR_OK;
}

void spool_close(struct spool *s)
{
    if (!s)
        return;
    finish(s);
    free(s);
}

/* Runs a statement that returns no rows. */
static int run(sqlite3_stmt *st)
{
    int n = sqlite3_step(st);
    int end = sqlite3_reset(st);

    (void)sqlite3_clear_bindings(st);
    return n == SQLITE_DONE ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

static int text(struct spool *s, const char *sql)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL);
}

/* Ends the transaction as it went; returns the first error. */
static int end(struct spool *s, int n)
{
    if (n == SQLITE_OK)
        n = text(s, "COMMIT");
    if (n != SQLITE_OK && !sqlite3_get_autocommit(s->db))
        (void)text(s, "ROLLBACK");
    return n;
}

static int make_room(struct spool *s)
{
    int n = SQLITE_OK;

    for (uint64_t have = s->counts.pending; n == SQLITE_OK && have >= s->max; have--) {
        n = run(s->drop);
        if (n == SQLITE_OK)
            n = text(s, "UPDATE counter SET value = value + 1 WHERE name = 'dropped'");
    }
    return n;
}

enum err spool_add(struct spool *s, struct report *r, struct err_info *info)
{
    uint8_t body[REPORT_BYTES_MAX];
    size_t size;
    struct err_info why = { 0 };
    struct report numbered = *r;

    numbered.seq = s->counts.last_seq + 1;
    if (report_encode(&numbered, body, sizeof(body), &size) != ERR_OK)
        return err_set(info, ERR_LIMIT, 0, "a report is too big for the spool");
    int n = text(s, "BEGIN IMMEDIATE");
    if (n == SQLITE_OK)
        n = make_room(s);
    if (n == SQLITE_OK)
        n = sqlite3_bind_int64(s->add, 1, (sqlite3_int64)numbered.seq);
    if (n == SQLITE_OK)
        n = sqlite3_bind_blob(s->add, 2, r->id.bytes, UUID_BYTES, SQLITE_STATIC);
    if (n == SQLITE_OK)
        n = sqlite3_bind_blob64(s->add, 3, body, size, SQLITE_STATIC);
    if (n == SQLITE_OK)
        n = run(s->add);
    enum err e = n == SQLITE_OK ? ERR_OK : failed(s, n, &why, "add a report");
    n = end(s, n);
    if (e == ERR_OK && n != SQLITE_OK)
        e = failed(s, n, &why, "commit a report");
    if (e != ERR_OK)
        return err_set(info, e, 0, "%s", why.what);
    r->seq = numbered.seq;
    n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : failed(s, n, info, "count the reports");
}

enum err spool_walk(struct spool *s, uint64_t after, spool_each *each, void *arg,
                    struct err_info *info)
{
    int n = sqlite3_bind_int64(s->walk, 1, (sqlite3_int64)after);

    while (n == SQLITE_OK || n == SQLITE_ROW) {
        n = sqlite3_step(s->walk);
        if (n != SQLITE_ROW)
            break;
        struct str body = { sqlite3_column_blob(s->walk, 1),
                            (size_t)sqlite3_column_bytes(s->walk, 1) };
        if (!each(arg, (uint64_t)sqlite3_column_int64(s->walk, 0), body)) {
            n = SQLITE_DONE;
            break;
        }
    }
    enum err e = n == SQLITE_DONE ? ERR_OK : failed(s, n, info, "read the spool");
    (void)sqlite3_reset(s->walk);
    return e;
}

enum err spool_remove(struct spool *s, const struct receipt *receipts, uint32_t count,
                      struct err_info *info)
{
    struct err_info why = { 0 };
    int n = text(s, "BEGIN IMMEDIATE");

    for (uint32_t i = 0; i < count && n == SQLITE_OK; i++) {
        n = sqlite3_bind_blob(s->remove, 1, receipts[i].id.bytes, UUID_BYTES,
                              SQLITE_STATIC);
        if (n == SQLITE_OK)
            n = run(s->remove);
    }
    enum err e = n == SQLITE_OK ? ERR_OK : failed(s, n, &why, "remove reports");
    n = end(s, n);
    if (e == ERR_OK && n != SQLITE_OK)
        e = failed(s, n, &why, "remove reports");
    if (e != ERR_OK)
        return err_set(info, e, 0, "%s", why.what);
    n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : failed(s, n, info, "count the reports");
}

const struct spool_counts *spool_counts(const struct spool *s)
{
    return &s->counts;
}
