#include "sys/spool/spool_db.h"

#include <errno.h>

static const char schema[] =
    "PRAGMA locking_mode = EXCLUSIVE;"
    "PRAGMA journal_mode = WAL;"
    "PRAGMA synchronous = FULL;"
    "PRAGMA journal_size_limit = 4194304;"
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

enum err spool_failed(const struct spool *s, int n, struct err_info *info,
                      const char *what)
{
    return err_set(info, kind_of(n), 0, "%s: %s", what,
                   s->db ? sqlite3_errmsg(s->db) : sqlite3_errstr(n));
}

int spool_prepare(struct spool *s, const char *const *sql, size_t count,
                  sqlite3_stmt **to)
{
    int n = SQLITE_OK;

    for (size_t i = 0; i < count && n == SQLITE_OK; i++)
        n = sqlite3_prepare_v3(s->db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &to[i],
                               NULL);
    return n;
}

static int bind_all(sqlite3_stmt *st, const char *kinds, va_list ap)
{
    int n = SQLITE_OK;

    for (int i = 1; kinds[i - 1] && n == SQLITE_OK; i++) {
        if (kinds[i - 1] == 'i') {
            n = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
        } else if (kinds[i - 1] == 'b') {
            const void *p = va_arg(ap, const void *);
            size_t size = va_arg(ap, size_t);

            n = sqlite3_bind_blob64(st, i, p, size, SQLITE_STATIC);
        } else {
            struct str text = va_arg(ap, struct str);

            n = sqlite3_bind_text64(st, i, text.p ? text.p : "", text.n, SQLITE_STATIC,
                                    SQLITE_UTF8);
        }
    }
    return n;
}

int spool_bind(sqlite3_stmt *st, const char *kinds, ...)
{
    va_list ap;

    va_start(ap, kinds);
    int n = bind_all(st, kinds, ap);
    va_end(ap);
    return n;
}

int spool_run(sqlite3_stmt *st, const char *kinds, ...)
{
    va_list ap;

    va_start(ap, kinds);
    int n = bind_all(st, kinds, ap);
    va_end(ap);
    if (n == SQLITE_OK)
        n = sqlite3_step(st);
    int end = sqlite3_reset(st);
    (void)sqlite3_clear_bindings(st);
    return n == SQLITE_DONE ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

int spool_number(sqlite3_stmt *st, int64_t *out)
{
    int n = sqlite3_step(st);

    if (n == SQLITE_ROW)
        *out = sqlite3_column_int64(st, 0);
    int end = sqlite3_reset(st);
    return n == SQLITE_ROW ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

int spool_text(struct spool *s, const char *sql)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL);
}

int spool_begin(struct spool *s)
{
    return spool_text(s, "BEGIN IMMEDIATE");
}

void spool_undo(struct spool *s)
{
    if (!sqlite3_get_autocommit(s->db))
        (void)spool_text(s, "ROLLBACK");
}

enum err spool_end(struct spool *s, int n, struct err_info *info, const char *what)
{
    enum err e = n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, what);

    if (e == ERR_OK && (n = spool_text(s, "COMMIT")) != SQLITE_OK)
        e = spool_failed(s, n, info, what);
    if (e != ERR_OK)
        spool_undo(s);
    return e;
}

/* A page that went bad is found now, and not in the middle of something. */
static int check(struct spool *s)
{
    sqlite3_stmt *st = NULL;
    int n = sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &st, NULL);

    if (n == SQLITE_OK)
        n = sqlite3_step(st);
    if (n == SQLITE_ROW) {
        const char *said = (const char *)sqlite3_column_text(st, 0);
        n = said && strcmp(said, "ok") == 0 ? SQLITE_OK : SQLITE_CORRUPT;
    }
    (void)sqlite3_finalize(st);
    return n;
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
        n = spool_text(s, schema);
    if (n == SQLITE_OK)
        n = check(s);
    if (n == SQLITE_OK)
        n = spool_text(s, run_schema);
    if (n == SQLITE_OK)
        n = spool_text(s, event_schema);
    if (n == SQLITE_OK)
        n = report_start(s);
    if (n == SQLITE_OK)
        n = run_store_start(s);
    if (n == SQLITE_OK)
        n = event_spool_start(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, path);
}

static void finalize(sqlite3_stmt **all, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        (void)sqlite3_finalize(all[i]);
        all[i] = NULL;
    }
}

static void finish(struct spool *s)
{
    finalize(s->report, LEN(s->report));
    finalize(s->event, LEN(s->event));
    finalize(s->run, LEN(s->run));
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
        *s = (struct spool){ .max = max, .counts = { .damaged = true } };
        e = put_aside(path, info);
        if (e == ERR_OK)
            e = open_once(s, path, info);
    }
    if (e != ERR_OK) {
        spool_close(s);
        return e;
    }
    event_spool_limit(s, EVENTS_COUNT_DEFAULT, EVENTS_BYTES_DEFAULT);
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
