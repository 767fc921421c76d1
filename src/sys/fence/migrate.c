#include "sys/fence/migrate.h"

#include <dirent.h>
#include <errno.h>
#include <libpq-fe.h>

#include "base/str.h"
#include "sys/fence/dbc.h"

enum { MIGRATIONS_MAX = 999, MIGRATION_BYTES_MAX = 1024 * 1024 };

struct migration {
    int version, works_since;
    char *sql;
    const char *name; /* borrowed from the entry */
};

static int wanted(const struct dirent *e)
{
    size_t n = strlen(e->d_name);

    return n > 9 && strspn(e->d_name, "0123456789") == 4 && e->d_name[4] == '_' &&
           strcmp(e->d_name + n - 4, ".sql") == 0;
}

/* "-- works-since: N" anywhere in the text; without it only this very version. */
static int works_since(const char *sql, int version)
{
    static const char mark[] = "\n-- works-since: ";
    const char *p = strstr(sql, mark);
    uint64_t n;

    if (!p)
        return version;
    p += sizeof(mark) - 1;
    return str_u64((struct str){ p, strspn(p, "0123456789") }, (uint64_t)version, &n) &&
                   n > 0
               ? (int)n
               : version;
}

static enum err read_file(const char *folder, struct migration *m, struct err_info *info)
{
    char path[512];
    FILE *f;

    (void)snprintf(path, sizeof(path), "%s/%s", folder, m->name);
    f = fopen(path, "re");
    if (!f)
        return err_set(info, ERR_NOT_FOUND, errno, "%s", path);
    m->sql = calloc(1, MIGRATION_BYTES_MAX + 1);
    size_t n = m->sql ? fread(m->sql, 1, MIGRATION_BYTES_MAX + 1, f) : 0;
    bool ok = m->sql && !ferror(f) && n <= MIGRATION_BYTES_MAX && !memchr(m->sql, 0, n);
    (void)fclose(f);
    if (!ok) {
        free(m->sql);
        m->sql = NULL;
        return err_set(info, ERR_CORRUPT, 0, "%s cannot be read, or is no SQL text",
                       path);
    }
    m->sql[n < MIGRATION_BYTES_MAX ? n : MIGRATION_BYTES_MAX] = '\0';
    m->works_since = works_since(m->sql, m->version);
    return ERR_OK;
}

static enum err run(PGconn *c, const char *sql, const char *what, struct err_info *info)
{
    PGresult *r = PQexec(c, sql);
    ExecStatusType st = PQresultStatus(r);
    enum err e = ERR_OK;

    if (st != PGRES_COMMAND_OK && st != PGRES_TUPLES_OK && st != PGRES_EMPTY_QUERY) {
        char state[DBC_SQLSTATE];
        struct err_info why;

        e = dbc_error(r, state, &why);
        (void)err_set(info, e, 0, "%s: %.150s (%s)", what, why.what, state);
    }
    PQclear(r);
    return e;
}

/* The schema's version; 0 if there is none; -1 with *e set. */
static int version_now(PGconn *c, enum err *e, struct err_info *info)
{
    uint64_t n = 0;
    int found = -1;
    PGresult *r = PQexec(c, "SELECT to_regclass('redoubt.schema_version')::text");

    if (PQresultStatus(r) == PGRES_TUPLES_OK && PQgetisnull(r, 0, 0)) {
        PQclear(r);
        return 0;
    }
    PQclear(r);
    r = PQexec(c, "SELECT max(version) FROM redoubt.schema_version");
    if (PQresultStatus(r) != PGRES_TUPLES_OK)
        *e = dbc_error(r, NULL, info);
    else if (PQgetisnull(r, 0, 0) ||
             str_u64(str_of(PQgetvalue(r, 0, 0)), MIGRATIONS_MAX, &n))
        found = (int)n;
    else
        *e = err_set(info, ERR_CORRUPT, 0, "redoubt.schema_version: %s",
                     PQgetvalue(r, 0, 0));
    PQclear(r);
    return found;
}

/* In a transaction: the file, and the note that it was applied. */
static enum err apply(PGconn *c, const struct migration *m, struct err_info *info)
{
    char *name = PQescapeLiteral(c, m->name, strlen(m->name));
    enum err e = name ? run(c, m->sql, m->name, info)
                      : err_set(info, ERR_MEMORY, 0, "%s", m->name);

    if (e == ERR_OK) {
        char note[400];

        (void)snprintf(note, sizeof(note),
                       "INSERT INTO redoubt.schema_version (version, name, works_since)"
                       " VALUES (%d, %.200s, %d)",
                       m->version, name, m->works_since);
        e = run(c, note, m->name, info);
    }
    PQfreemem(name);
    return e;
}

/*
 * One step: lock, look, apply the next file, commit.  *done: nothing was left to do.
 * The lock is transactional, so whoever waits for it looks again afterwards.
 */
static enum err step(PGconn *c, const char *folder, struct dirent **files, int count,
                     void (*each)(void *ctx, const char *file), void *ctx, bool *done,
                     struct migrate_result *result, struct err_info *info)
{
    enum err e = run(c,
                     "BEGIN; SET LOCAL lock_timeout = '10s';"
                     "SELECT pg_advisory_xact_lock(1380208450, 2)",
                     "lock", info);
    int version = e == ERR_OK ? version_now(c, &e, info) : -1;

    if (version < 0)
        return e;
    if (result->before < 0)
        result->before = version;
    result->after = version;
    *done = version == count;
    if (*done)
        return run(c, "COMMIT", "commit", info);
    if (version > count)
        return err_set(info, ERR_VERSION, 0,
                       "the schema is at version %d, this program knows %d; install the "
                       "newer Redoubt here",
                       version, count);
    struct migration m = { .version = version + 1, .name = files[version]->d_name };
    e = read_file(folder, &m, info);
    if (e == ERR_OK && each)
        each(ctx, m.name);
    if (e == ERR_OK)
        e = apply(c, &m, info);
    free(m.sql);
    if (e == ERR_OK)
        e = run(c, "COMMIT", m.name, info);
    if (e == ERR_OK)
        result->after = m.version;
    return e;
}

static enum err numbered(struct dirent **files, int count, const char *folder,
                         struct err_info *info)
{
    for (int i = 0; i < count; i++) {
        uint64_t n = 0;
        if (!str_u64((struct str){ files[i]->d_name, 4 }, MIGRATIONS_MAX, &n) ||
            n != (uint64_t)i + 1)
            return err_set(info, ERR_NOT_FOUND, 0, "%s: %.100s is not number %d", folder,
                           files[i]->d_name, i + 1);
    }
    return count > 0 ? ERR_OK
                     : err_set(info, ERR_NOT_FOUND, 0, "%s has no NNNN_name.sql", folder);
}

enum err migrate_run(const char *conninfo, const char *folder,
                     void (*each)(void *ctx, const char *file), void *ctx,
                     struct migrate_result *result, struct err_info *info)
{
    struct dirent **files = NULL;
    struct dsn *dsn;
    bool done = false;

    *result = (struct migrate_result){ .before = -1 };
    enum err e = dsn_new(&dsn, conninfo, "redoubt-migrate", info);
    if (e != ERR_OK)
        return e;
    int count = scandir(folder, &files, wanted, alphasort);
    e = count < 0 ? err_set(info, ERR_NOT_FOUND, errno, "%s", folder)
                  : numbered(files, count, folder, info);
    PGconn *c = e == ERR_OK ? PQconnectdbParams(dsn_keys(dsn), dsn_values(dsn), 0) : NULL;
    if (c && PQstatus(c) != CONNECTION_OK) {
        const char *text = PQerrorMessage(c);
        e = err_set(info, PQconnectionNeedsPassword(c) ? ERR_DENIED : ERR_CLOSED, 0,
                    "%.*s", (int)strcspn(text, "\n"), text);
    }
    if (e == ERR_OK && PQserverVersion(c) < 130000)
        e = err_set(info, ERR_VERSION, 0,
                    "PostgreSQL %d is too old, at least 13 is needed",
                    PQserverVersion(c) / 10000);
    while (e == ERR_OK && !done)
        e = step(c, folder, files, count, each, ctx, &done, result, info);
    PQfinish(c);
    for (int i = 0; i < count; i++)
        free(files[i]);
    free(files);
    dsn_free(dsn);
    if (result->before < 0)
        result->before = 0;
    return e;
}
