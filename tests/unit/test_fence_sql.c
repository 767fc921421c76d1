/*
 * The fence in SQL (db/0001_fence.sql), attacked with plain connections: who may commit?
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>

#include "own_postgres.h"
#include "sys/fence/fence.h"
#include "sys/fence/migrate.h"

static struct own_postgres pg;
static uint64_t top; /* the fence's epoch; each test goes on from there */

/* --- helpers -------------------------------------------------------------------- */

static PGconn *connect_as(const char *conninfo)
{
    PGconn *c = PQconnectdb(conninfo);

    assert_int_equal(PQstatus(c), CONNECTION_OK);
    return c;
}

static PGconn *session(void)
{
    return connect_as(pg.conninfo);
}

/* The SQLSTATE of what failed, "" if nothing did. */
__attribute__((format(printf, 2, 3))) static const char *sql(PGconn *c, const char *fmt,
                                                             ...)
{
    static char state[8];
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    PGresult *r = PQexec(c, text);
    const char *code = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    ExecStatusType st = PQresultStatus(r);
    state[0] = '\0';
    if (st != PGRES_COMMAND_OK && st != PGRES_TUPLES_OK)
        (void)snprintf(state, sizeof(state), "%s", code ? code : "lost");
    PQclear(r);
    return state;
}

static uint64_t number(PGconn *c, const char *query)
{
    uint64_t n = UINT64_MAX;
    PGresult *r = PQexec(c, query);

    assert_int_equal(PQresultStatus(r), PGRES_TUPLES_OK);
    assert_true(str_u64(str_of(PQgetvalue(r, 0, 0)), INT64_MAX, &n));
    PQclear(r);
    return n;
}

struct raised {
    bool ok;
    uint64_t epoch;
    char why[128];
};

static struct raised raise_fence(PGconn *c, uint64_t epoch, const char *node, int wait_ms)
{
    struct raised out = { 0 };
    char text[200];

    (void)snprintf(text, sizeof(text),
                   "SELECT ok, epoch, why FROM redoubt.raise_fence(%llu, '%s', %d)",
                   (unsigned long long)epoch, node, wait_ms);
    PGresult *r = PQexec(c, text);
    assert_int_equal(PQresultStatus(r), PGRES_TUPLES_OK);
    out.ok = strcmp(PQgetvalue(r, 0, 0), "t") == 0;
    assert_true(str_u64(str_of(PQgetvalue(r, 0, 1)), INT64_MAX, &out.epoch));
    (void)snprintf(out.why, sizeof(out.why), "%s", PQgetvalue(r, 0, 2));
    PQclear(r);
    return out;
}

static void raise_to(uint64_t epoch, const char *node)
{
    PGconn *c = session();

    assert_true(raise_fence(c, epoch, node, 2000).ok);
    PQfinish(c);
    top = epoch;
}

static void announce(PGconn *c, uint64_t epoch)
{
    assert_string_equal(
        sql(c, "SELECT redoubt.announce(%llu, 'test')", (unsigned long long)epoch), "");
}

static uint64_t rows(void)
{
    PGconn *c = session();
    uint64_t n = number(c, "SELECT count(*) FROM redoubt.thing");

    PQfinish(c);
    return n;
}

static int make_server(void **state)
{
    struct migrate_result m;
    struct err_info why = { .what = "" };

    (void)state;
    if (migrate_run(pg.conninfo, DB_FOLDER, NULL, NULL, &m, &why) != ERR_OK ||
        m.before != 0) {
        print_error("%s\n", why.what);
        return -1;
    }
    return own_postgres_sql(pg.conninfo,
                            "CREATE TABLE redoubt.thing (what text);"
                            "CREATE TRIGGER fenced BEFORE INSERT OR UPDATE OR DELETE OR"
                            " TRUNCATE ON redoubt.thing FOR EACH STATEMENT"
                            " EXECUTE FUNCTION redoubt.fenced()")
               ? 0
               : -1;
}

static int fresh(void **state)
{
    (void)state;
    raise_to(top + 10, "node-a");
    return 0;
}

/* --- who may write ---------------------------------------------------------------- */

static void only_the_present_epoch_may_write(void **state)
{
    PGconn *c = session();
    uint64_t before = rows();

    (void)state;
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "RD001");
    assert_string_equal(sql(c, "SELECT redoubt.check_epoch()"), "RD001");
    announce(c, top - 1);
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "RD001");
    assert_string_equal(sql(c, "UPDATE redoubt.thing SET what = ''"), "RD001");
    assert_string_equal(sql(c, "DELETE FROM redoubt.thing"), "RD001");
    assert_string_equal(sql(c, "TRUNCATE redoubt.thing"), "RD001");
    announce(c, top + 1);
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "RD001");
    assert_int_equal(rows(), before);
    announce(c, top);
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "");
    assert_int_equal(rows(), before + 1);
    PQfinish(c);
}

/* A share that went back in time may give one epoch to both nodes: the fence is one node's. */
static void of_two_nodes_in_one_epoch_one_may_write(void **state)
{
    PGconn *c = session();

    (void)state;
    raise_to(top + 1, "node-a");
    assert_string_equal(sql(c, "SELECT redoubt.announce(%llu, 'test', 'node-b')",
                            (unsigned long long)top),
                        "");
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "RD001");
    assert_string_equal(sql(c, "SELECT redoubt.announce(%llu, 'test', 'node-a')",
                            (unsigned long long)top),
                        "");
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "");
    PQfinish(c);
}

/* Its snapshot may be older than the lock it gets: it would see the fence of before. */
static void an_isolation_that_looks_back_is_refused(void **state)
{
    PGconn *c = session();

    (void)state;
    announce(c, top);
    assert_string_equal(sql(c, "BEGIN ISOLATION LEVEL REPEATABLE READ"), "");
    assert_string_equal(sql(c, "SELECT redoubt.check_epoch()"), "RD002");
    assert_string_equal(sql(c, "ROLLBACK"), "");
    assert_string_equal(sql(c, "BEGIN ISOLATION LEVEL SERIALIZABLE"), "");
    assert_string_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "RD002");
    PQfinish(c);
}

static void rolling_back_to_a_savepoint_does_not_open_a_hole(void **state)
{
    PGconn *c = session();

    (void)state;
    announce(c, top);
    assert_string_equal(sql(c, "BEGIN; SAVEPOINT s"), "");
    assert_string_equal(sql(c, "SELECT redoubt.check_epoch()"), "");
    assert_string_equal(sql(c, "ROLLBACK TO s"), ""); /* and with it goes the lock */
    raise_to(top + 1, "node-b");
    assert_string_not_equal(sql(c, "INSERT INTO redoubt.thing VALUES ('x')"), "");
    PQfinish(c);
}

/* --- the takeover -------------------------------------------------------------------- */

static void a_frozen_transaction_can_not_commit_afterwards(void **state)
{
    PGconn *old = session();
    uint64_t before = rows();

    (void)state;
    announce(old, top);
    assert_string_equal(sql(old, "BEGIN"), "");
    assert_string_equal(sql(old, "SELECT redoubt.check_epoch()"), "");
    assert_string_equal(sql(old, "INSERT INTO redoubt.thing VALUES ('late')"), "");
    raise_to(top + 1, "node-b"); /* the old one says nothing: it is frozen */
    assert_string_not_equal(sql(old, "COMMIT"), "");
    assert_int_equal(rows(), before);
    PQreset(old); /* thawed, it connects again and believes what it believed before */
    announce(old, top - 1);
    assert_string_equal(sql(old, "INSERT INTO redoubt.thing VALUES ('late')"), "RD001");
    assert_int_equal(rows(), before);
    PQfinish(old);
}

static void idle_sessions_of_other_epochs_are_ended(void **state)
{
    PGconn *old = session(), *other = session(), *unannounced = session();

    (void)state;
    announce(old, top);
    announce(other, top + 5);
    raise_to(top + 1, "node-b");
    assert_string_not_equal(sql(old, "SELECT 1"), "");
    assert_string_not_equal(sql(other, "SELECT 1"), "");
    assert_string_equal(sql(unannounced, "SELECT 1"), ""); /* a warm standby */
    PQfinish(old);
    PQfinish(other);
    PQfinish(unannounced);
}

static void the_fence_rises_only(void **state)
{
    PGconn *c = session();
    struct raised r = raise_fence(c, top - 1, "node-a", 100);

    (void)state;
    assert_false(r.ok);
    assert_int_equal(r.epoch, top);
    assert_string_equal(r.why, "stale");
    r = raise_fence(c, top, "node-b", 100); /* at this epoch, for somebody else */
    assert_false(r.ok);
    r = raise_fence(c, top, "node-a", 100); /* the same call, its answer was lost */
    assert_true(r.ok);
    assert_string_equal(sql(c, "UPDATE redoubt.fence SET epoch = epoch - 1"), "RD003");
    assert_string_equal(sql(c, "DELETE FROM redoubt.fence"), "RD003");
    assert_string_equal(sql(c, "TRUNCATE redoubt.fence"), "RD003");
    assert_string_not_equal(sql(c, "INSERT INTO redoubt.fence (epoch, node)"
                                   " VALUES (99999999, 'x')"),
                            "");
    assert_string_not_equal(
        sql(c, "INSERT INTO redoubt.fence VALUES (false, 99999999, 'x')"), "");
    PQfinish(c);
}

static void raising_again_spares_the_sessions_of_the_epoch(void **state)
{
    PGconn *mine = session(), *c = session();

    (void)state;
    announce(mine, top);
    assert_string_equal(sql(mine, "BEGIN; SELECT redoubt.check_epoch()"), "");
    assert_true(raise_fence(c, top, "node-a", 100).ok);
    assert_string_equal(sql(mine, "COMMIT"), "");
    PQfinish(mine);
    PQfinish(c);
}

/* A transaction that this role may not end (a superuser's): bounded, and it says who. */
static void what_it_may_not_end_is_named(void **state)
{
    char super[200];

    (void)state;
    (void)snprintf(super, sizeof(super), "host=%s dbname=redoubt user=root", pg.folder);
    PGconn *admin = connect_as(super), *c = session();
    announce(admin, top);
    assert_string_equal(sql(admin, "BEGIN; SELECT redoubt.check_epoch()"), "");
    struct raised r = raise_fence(c, top + 1, "node-b", 150);
    assert_false(r.ok);
    assert_non_null(strstr(r.why, "(root)"));
    assert_int_equal(number(c, "SELECT epoch FROM redoubt.fence"), top);
    assert_string_equal(sql(admin, "COMMIT"), ""); /* nothing was half done */
    assert_true(raise_fence(c, top + 1, "node-b", 150).ok);
    top++;
    PQfinish(admin);
    PQfinish(c);
}

static void of_concurrent_raises_the_highest_stands(void **state)
{
    enum { N = 8 };
    PGconn *c[N];
    char text[128];

    (void)state;
    for (int i = 0; i < N; i++) {
        c[i] = session();
        (void)snprintf(text, sizeof(text),
                       "SELECT ok FROM redoubt.raise_fence(%llu, 'node-%c', 3000)",
                       (unsigned long long)top + 1 + (unsigned)(i * 3 % N), 'a' + i % 2);
        assert_int_equal(PQsendQuery(c[i], text), 1);
    }
    for (int i = 0; i < N; i++) {
        PGresult *r = PQgetResult(c[i]);
        assert_int_equal(PQresultStatus(r), PGRES_TUPLES_OK);
        if (i * 3 % N == N - 1)
            assert_string_equal(PQgetvalue(r, 0, 0), "t");
        PQclear(r);
        PQfinish(c[i]);
    }
    PGconn *s = session();
    assert_int_equal(number(s, "SELECT epoch FROM redoubt.fence"), top + N);
    top += N;
    PQfinish(s);
}

/* A loser that connects, announces and writes as fast as it can, in three processes. */
static _Noreturn void hammer(uint64_t epoch)
{
    char text[400];

    (void)snprintf(text, sizeof(text),
                   "SELECT redoubt.announce(%llu, 'loser');"
                   "BEGIN; SELECT redoubt.check_epoch();"
                   "INSERT INTO redoubt.thing VALUES ('loser'); COMMIT",
                   (unsigned long long)epoch);
    for (;;) {
        PGconn *c = PQconnectdb(pg.conninfo);
        for (int i = 0; i < 20 && PQstatus(c) == CONNECTION_OK; i++)
            PQclear(PQexec(c, text));
        PQfinish(c);
    }
}

static void a_hammering_loser_can_not_hold_the_fence(void **state)
{
    pid_t loser[3];

    (void)state;
    uint64_t before = rows();
    for (size_t i = 0; i < LEN(loser); i++) {
        loser[i] = fork();
        assert_true(loser[i] >= 0);
        if (loser[i] == 0)
            hammer(top);
    }
    for (int i = 0; i < 200 && rows() < before + 20; i++)
        (void)poll(NULL, 0, 10);
    assert_true(rows() >= before + 20); /* they write, as long as they may */
    PGconn *c = session();
    struct raised r = raise_fence(c, top + 1, "node-b", 5000);
    uint64_t at_takeover = rows();
    (void)poll(NULL, 0, 200);
    uint64_t later = rows();
    for (size_t i = 0; i < LEN(loser); i++) {
        (void)kill(loser[i], SIGKILL);
        (void)waitpid(loser[i], NULL, 0);
    }
    PQfinish(c);
    assert_true(r.ok);
    top++;
    assert_int_equal(later, at_takeover);
}

static void a_raise_survives_a_crash_of_the_dbms(void **state)
{
    (void)state;
    assert_true(
        own_postgres_sql(pg.super, "ALTER ROLE redoubt SET synchronous_commit = off"));
    raise_to(top + 1, "node-b");
    own_postgres_end(&pg, SIGQUIT); /* no checkpoint */
    assert_true(own_postgres_launch(&pg));
    PGconn *c = session();
    assert_int_equal(number(c, "SELECT epoch FROM redoubt.fence"), top);
    announce(c, top);
    assert_int_equal(
        number(c, "SELECT (current_setting('synchronous_commit') = 'on')::int"),
        1); /* and so does what a service acknowledges */
    PQfinish(c);
    assert_true(
        own_postgres_sql(pg.super, "ALTER ROLE redoubt RESET synchronous_commit"));
}

/* --- migrations ------------------------------------------------------------------------ */

static char folder[64];

static void write_file(const char *name, const char *text)
{
    char path[160];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void remove_file(const char *name)
{
    char path[160];

    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    assert_int_equal(unlink(path), 0);
}

static void copy_first(void)
{
    static char text[65536];
    FILE *f = fopen(DB_FOLDER "/0001_fence.sql", "re");

    assert_non_null(f);
    size_t n = fread(text, 1, sizeof(text) - 1, f);
    (void)fclose(f);
    assert_true(n > 0 && n < sizeof(text) - 1);
    text[n] = '\0';
    write_file("0001_fence.sql", text);
}

static void files_are_applied_once_in_order_or_not_at_all(void **state)
{
    struct migrate_result m;
    struct err_info why;
    char db[200];

    (void)state;
    (void)snprintf(folder, sizeof(folder), "/tmp/redoubt-sql-XXXXXX");
    assert_non_null(mkdtemp(folder));
    (void)snprintf(db, sizeof(db), "host=%s dbname=other user=root", pg.folder);
    assert_true(own_postgres_sql(pg.super, "CREATE DATABASE other"));
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_NOT_FOUND);
    copy_first();
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_OK);
    assert_true(m.before == 0 && m.after == 1);
    write_file("0002_a.sql", "CREATE TABLE redoubt.a (x int);\n-- works-since: 1\n");
    write_file("0003_b.sql", "CREATE TABLE redoubt.b (x int); SELECT nonsense();");
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_NOT_FOUND);
    assert_non_null(strstr(why.what, "0003_b.sql"));
    assert_true(m.before == 1 && m.after == 2);
    PGconn *c = connect_as(db);
    assert_int_equal(number(c,
                            "SELECT count(*) FROM pg_tables WHERE schemaname = 'redoubt'"
                            " AND tablename IN ('a', 'b')"),
                     1);
    write_file("0003_b.sql", "CREATE TABLE redoubt.b (x int);");
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_OK);
    assert_true(m.before == 2 && m.after == 3);
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_OK);
    assert_true(m.before == 3 && m.after == 3);
    assert_int_equal(number(c, "SELECT works_since FROM redoubt.schema_version"
                               " WHERE version = 2"),
                     1);
    assert_int_equal(number(c, "SELECT works_since FROM redoubt.schema_version"
                               " WHERE version = 3"),
                     3);
    PQfinish(c);
    remove_file("0003_b.sql");
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_VERSION);
    write_file("0004_d.sql", "");
    assert_int_equal(migrate_run(db, folder, NULL, NULL, &m, &why), ERR_NOT_FOUND);
    remove_file("0004_d.sql");
    remove_file("0002_a.sql");
    remove_file("0001_fence.sql");
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(migrate_run("host=/nonexistent", DB_FOLDER, NULL, NULL, &m, &why),
                     ERR_CLOSED);
    assert_int_equal(migrate_run("nonsense", DB_FOLDER, NULL, NULL, &m, &why),
                     ERR_CONFIG);
}

static void the_program_knows_the_newest_schema(void **state)
{
    uint64_t newest = 0, n;
    DIR *d = opendir(DB_FOLDER);

    (void)state;
    assert_non_null(d);
    for (const struct dirent *e = readdir(d); e; e = readdir(d))
        if (e->d_name[4] == '_' && str_u64((struct str){ e->d_name, 4 }, 9999, &n) &&
            n > newest)
            newest = n;
    (void)closedir(d);
    assert_int_equal(newest, FENCE_SCHEMA_VERSION);
}

#define RULE(f) cmocka_unit_test_setup(f, fresh)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        RULE(only_the_present_epoch_may_write),
        RULE(of_two_nodes_in_one_epoch_one_may_write),
        RULE(an_isolation_that_looks_back_is_refused),
        RULE(rolling_back_to_a_savepoint_does_not_open_a_hole),
        RULE(a_frozen_transaction_can_not_commit_afterwards),
        RULE(idle_sessions_of_other_epochs_are_ended),
        RULE(the_fence_rises_only),
        RULE(raising_again_spares_the_sessions_of_the_epoch),
        RULE(what_it_may_not_end_is_named),
        RULE(of_concurrent_raises_the_highest_stands),
        RULE(a_hammering_loser_can_not_hold_the_fence),
        RULE(a_raise_survives_a_crash_of_the_dbms),
        cmocka_unit_test(files_are_applied_once_in_order_or_not_at_all),
        cmocka_unit_test(the_program_knows_the_newest_schema),
    };

    if (!own_postgres_start(&pg)) {
        own_postgres_stop(&pg);
        printf("1..0 # SKIP %s\n", pg.why);
        return 0;
    }
    int failed = cmocka_run_group_tests_name("fence_sql", tests, make_server, NULL);
    own_postgres_stop(&pg);
    return failed;
}
