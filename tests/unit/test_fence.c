/*
 * sys/fence against a PostgreSQL of the test's own, which is stopped, frozen and restarted.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>

#include "base/mono.h"
#include "own_postgres.h"
#include "sys/fence/dbc.h"
#include "sys/fence/dsn.h"
#include "sys/fence/fence.h"
#include "sys/fence/lookup.h"
#include "sys/fence/migrate.h"

enum { PROBE_MS = 50, FENCE_MS = 4000, IN_TIME_MS = 4000, SLACK_MS = 20000 };

static struct own_postgres pg;

static struct {
    sd_event *loop;
    struct fence_pg *fence;
    uint32_t answered, answers;
    enum err err;
    uint64_t found;
    uint32_t healths;
    struct fence_health health; /* the latest; why is not kept */
    char why[240];
} t;

/* --- helpers -------------------------------------------------------------------- */

static struct mono now_of(void)
{
    struct timespec ts;

    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &ts), 0);
    return (struct mono){ (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u };
}

static void on_answer(void *ctx, uint32_t request, enum err err, uint64_t found,
                      const struct err_info *why)
{
    (void)ctx;
    assert_true((err == ERR_OK) == (why == NULL));
    t.answered = request;
    t.answers++;
    t.err = err;
    t.found = found;
}

static void on_health(void *ctx, const struct fence_health *h)
{
    (void)ctx;
    assert_true(h->ok == (h->state == FENCE_GOOD) && h->ok == (h->why == NULL));
    t.healths++;
    t.health = *h;
    (void)snprintf(t.why, sizeof(t.why), "%s", h->why ? h->why->what : "");
}

static const struct fence_events events = { .answer = on_answer, .health = on_health };

static void open_fence(const char *conninfo, const char *node)
{
    struct fence_options o = { .conninfo = conninfo,
                               .node = node,
                               .probe_ms = PROBE_MS,
                               .fence_timeout_ms = FENCE_MS };
    struct err_info why;

    t.answered = t.answers = t.healths = 0;
    t.health = (struct fence_health){ .state = FENCE_UNKNOWN };
    assert_true(sd_event_new(&t.loop) >= 0);
    assert_int_equal(fence_open(&t.fence, t.loop, &o, &events, &why), ERR_OK);
}

static int start(void **state)
{
    (void)state;
    open_fence(pg.conninfo, "node-a");
    return 0;
}

static int stop(void **state)
{
    (void)state;
    fence_close(t.fence);
    t.fence = NULL;
    t.loop = sd_event_unref(t.loop);
    return 0;
}

static void turn(void)
{
    assert_true(sd_event_run(t.loop, 5000) >= 0);
}

static void wait_state(enum fence_state state)
{
    for (struct mono end = mono_after(now_of(), SLACK_MS);
         t.health.state != state && !mono_reached(now_of(), end);)
        turn();
    if (t.health.state != state)
        print_error("# %s (%s), not %s\n", fence_state_name(t.health.state), t.why,
                    fence_state_name(state));
    assert_int_equal(t.health.state, state);
}

static void ask(uint32_t request, uint64_t epoch)
{
    struct fence f = fence_port(t.fence);

    f.ops->raise(f.impl, request, epoch);
    assert_int_not_equal(t.answered, request); /* never from within the call */
}

static enum err wait_answer(uint32_t request)
{
    struct mono end = mono_after(now_of(), FENCE_MS + SLACK_MS);

    while (t.answered != request && !mono_reached(now_of(), end))
        turn();
    assert_int_equal(t.answered, request);
    return t.err;
}

static uint64_t epoch_now(void)
{
    uint64_t n = 0;
    PGconn *c = PQconnectdb(pg.conninfo);
    PGresult *r = PQexec(c, "SELECT epoch FROM redoubt.fence");

    assert_true(str_u64(str_of(PQgetvalue(r, 0, 0)), INT64_MAX, &n));
    PQclear(r);
    PQfinish(c);
    return n;
}

/* Stops or continues every process of the server: a frozen machine. */
static void signal_server(int sig)
{
    PGconn *c = sig == SIGSTOP ? PQconnectdb(pg.super) : NULL;
    static pid_t pids[64];
    static int count;

    if (c) {
        PGresult *r = PQexec(c, "SELECT pid FROM pg_stat_activity"
                                " WHERE pid <> pg_backend_pid()");
        count = 0;
        for (int i = 0; i < PQntuples(r) && i < 64; i++) {
            uint64_t pid = 0;
            assert_true(str_u64(str_of(PQgetvalue(r, i, 0)), INT32_MAX, &pid));
            pids[count++] = (pid_t)pid;
        }
        PQclear(r);
        PQfinish(c);
    }
    assert_int_equal(kill(pg.pid, sig), 0);
    for (int i = 0; i < count; i++)
        (void)kill(pids[i], sig);
}

static int make_server(void **state)
{
    struct migrate_result m;
    struct err_info why = { .what = "" };

    (void)state;
    if (migrate_run(pg.conninfo, DB_FOLDER, NULL, NULL, &m, &why) == ERR_OK)
        return 0;
    print_error("%s\n", why.what);
    return -1;
}

/* --- the fence ---------------------------------------------------------------------- */

static void health_says_what_the_fence_is_at(void **state)
{
    (void)state;
    wait_state(FENCE_GOOD);
    assert_int_equal(t.health.epoch, epoch_now());
    assert_int_equal(t.health.schema, FENCE_SCHEMA_VERSION);
    assert_true(t.health.server_version >= FENCE_SERVER_MIN);
    assert_true(t.health.latency_us > 0);
    uint32_t healths = t.healths;
    for (struct mono end = mono_after(now_of(), SLACK_MS);
         t.healths < healths + 3 && !mono_reached(now_of(), end);)
        turn();
    assert_true(t.healths >= healths + 3); /* again and again */
}

static void raising_is_answered_and_seen(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    ask(5, epoch + 1); /* before there is a connection */
    assert_int_equal(wait_answer(5), ERR_OK);
    assert_int_equal(t.found, epoch + 1);
    assert_int_equal(epoch_now(), epoch + 1);
    ask(6, epoch + 1);
    assert_int_equal(wait_answer(6), ERR_OK);
    ask(7, epoch);
    assert_int_equal(wait_answer(7), ERR_STALE);
    assert_int_equal(t.found, epoch + 1);
    wait_state(FENCE_GOOD);
    assert_int_equal(t.answers, 3);
}

static void a_newer_raise_overtakes(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    ask(5, epoch + 1);
    ask(6, epoch + 2);
    assert_int_equal(wait_answer(5), ERR_STATE);
    assert_int_equal(wait_answer(6), ERR_OK);
    assert_int_equal(epoch_now(), epoch + 2);
    assert_int_equal(t.answers, 2);
}

/* A raise waits for it, until the caller ends the session. */
static PGconn *transaction_in_the_way(void)
{
    char super[200];

    (void)snprintf(super, sizeof(super), "host=%s dbname=redoubt user=root", pg.folder);
    PGconn *c = PQconnectdb(super);

    PQclear(PQexec(c, "BEGIN; SELECT pg_advisory_xact_lock_shared(1380208450, 1)"));
    return c;
}

/* The answer to the older one, which was on its way, is not the newer one's. */
static void a_newer_raise_overtakes_one_that_is_on_its_way(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    PGconn *c = transaction_in_the_way();
    ask(5, epoch + 1);
    for (struct mono end = mono_after(now_of(), 200); !mono_reached(now_of(), end);)
        assert_true(sd_event_run(t.loop, 10000) >= 0);
    ask(6, epoch + 2);
    PQfinish(c);
    enum err e = wait_answer(6);
    assert_int_equal(e, ERR_OK);
    assert_int_equal(t.found, epoch + 2);
    assert_int_equal(epoch_now(), epoch + 2);
}

static void a_transaction_in_the_way_is_reported_in_time(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    PGconn *c = transaction_in_the_way();
    ask(5, epoch + 1);
    enum err e = wait_answer(5);
    PQfinish(c);
    assert_int_equal(e, ERR_STATE);
    assert_int_equal(epoch_now(), epoch);
}

static void a_frozen_dbms_is_noticed_and_a_raise_answered_in_time(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    signal_server(SIGSTOP);
    struct mono began = now_of();
    ask(5, epoch + 1);
    enum err e = wait_answer(5);
    uint32_t took = mono_since_ms(now_of(), began);
    wait_state(FENCE_UNREACHABLE);
    signal_server(SIGCONT);
    assert_int_equal(e, ERR_TIMEOUT);
    assert_true(took < FENCE_MS + IN_TIME_MS);
    wait_state(FENCE_GOOD);
    ask(6, epoch + 1); /* whether the first one landed or not */
    assert_int_equal(wait_answer(6), ERR_OK);
}

static void a_dead_warm_connection_does_not_cost_the_raise(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    PGconn *c = PQconnectdb(pg.super);
    PGresult *r = NULL;
    uint64_t pid = 0;
    for (struct mono end = mono_after(now_of(), SLACK_MS);
         !mono_reached(now_of(), end);) {
        PQclear(r);
        r = PQexec(c, "SELECT pid FROM pg_stat_activity"
                      " WHERE application_name LIKE 'redoubt-fence/%'");
        if (PQntuples(r) == 1) /* sessions that were closed before may end only now */
            break;
        (void)poll(NULL, 0, 20);
    }
    assert_int_equal(PQntuples(r), 1);
    assert_true(str_u64(str_of(PQgetvalue(r, 0, 0)), INT32_MAX, &pid));
    assert_int_equal(kill((pid_t)pid, SIGSTOP), 0); /* only this session hangs */
    ask(5, epoch + 1);
    enum err e = wait_answer(5);
    assert_int_equal(kill((pid_t)pid, SIGCONT), 0);
    PQclear(r);
    PQfinish(c);
    assert_int_equal(e, ERR_OK);
    assert_int_equal(epoch_now(), epoch + 1);
}

static void a_restarted_dbms_is_found_again(void **state)
{
    uint64_t epoch = epoch_now();

    (void)state;
    wait_state(FENCE_GOOD);
    own_postgres_end(&pg, SIGQUIT);
    wait_state(FENCE_UNREACHABLE);
    ask(5, epoch + 1);
    enum err e = wait_answer(5);
    assert_true(e != ERR_OK && err_may_retry(e));
    assert_true(own_postgres_launch(&pg));
    ask(6, epoch + 1);
    assert_int_equal(wait_answer(6), ERR_OK);
    wait_state(FENCE_GOOD);
}

static void a_wrong_schema_is_named(void **state)
{
    (void)state;
    assert_true(own_postgres_sql(pg.conninfo, "UPDATE redoubt.schema_version"
                                              " SET version = version + 1000"));
    wait_state(FENCE_GOOD); /* newer, but it works with our programs */
    assert_true(own_postgres_sql(pg.conninfo, "UPDATE redoubt.schema_version"
                                              " SET works_since = version"));
    wait_state(FENCE_SCHEMA_TOO_NEW);
    assert_true(own_postgres_sql(pg.conninfo,
                                 "UPDATE redoubt.schema_version SET works_since = 1;"
                                 "UPDATE redoubt.schema_version"
                                 " SET version = version - 1000"));
    wait_state(FENCE_GOOD);
    assert_true(own_postgres_sql(pg.conninfo, "DELETE FROM redoubt.schema_version"
                                              " WHERE version > 1;"
                                              "ALTER TABLE redoubt.schema_version"
                                              " RENAME TO elsewhere"));
    wait_state(FENCE_SCHEMA_MISSING);
    assert_true(own_postgres_sql(pg.conninfo, "ALTER TABLE redoubt.elsewhere"
                                              " RENAME TO schema_version"));
}

static void a_database_without_the_schema_is_named(void **state)
{
    char conninfo[200];

    (void)state;
    (void)snprintf(conninfo, sizeof(conninfo), "host=%s dbname=postgres user=root",
                   pg.folder);
    open_fence(conninfo, "node-a");
    wait_state(FENCE_SCHEMA_MISSING);
    ask(5, 1);
    assert_int_equal(wait_answer(5), ERR_NOT_FOUND);
    stop(NULL);
    (void)snprintf(conninfo, sizeof(conninfo), "host=%s dbname=redoubt user=stranger",
                   pg.folder);
    assert_true(own_postgres_sql(pg.super, "CREATE ROLE stranger LOGIN"));
    open_fence(conninfo, "node-a");
    wait_state(FENCE_DENIED);
    ask(5, 1);
    assert_int_equal(wait_answer(5), ERR_DENIED);
    stop(NULL);
}

/* --- one connection ------------------------------------------------------------------- */

static struct {
    struct dbc *dbc;
    int ups, downs, answers;
    enum err err;
} conn;

static void on_query(void *ctx, enum err err, const PGresult *r,
                     const struct err_info *why)
{
    (void)ctx, (void)r;
    assert_true((err == ERR_OK) == (why == NULL));
    conn.answers++;
    conn.err = err;
}

static void on_link_up(void *ctx)
{
    (void)ctx;
    conn.ups++;
}

static void on_link_down(void *ctx, enum err err, const struct err_info *why)
{
    (void)ctx, (void)err;
    assert_non_null(why);
    conn.downs++;
}

static enum err ask_link(const char *sql, uint32_t limit_ms)
{
    int answers = conn.answers;
    struct mono end = mono_after(now_of(), SLACK_MS);

    while (!dbc_idle(conn.dbc) && !mono_reached(now_of(), end))
        turn();
    assert_true(dbc_idle(conn.dbc));
    dbc_query(conn.dbc, limit_ms, sql, 0, NULL, on_query, NULL);
    while (conn.answers == answers && !mono_reached(now_of(), end))
        turn();
    assert_int_equal(conn.answers, answers + 1);
    return conn.err;
}

static void a_query_is_answered_once_and_only_after_its_commit(void **state)
{
    static const struct dbc_events on = { .up = on_link_up, .down = on_link_down };
    struct err_info why;
    struct dsn *dsn;

    (void)state;
    assert_true(sd_event_new(&t.loop) >= 0);
    assert_true(own_postgres_sql(pg.conninfo, "CREATE TABLE redoubt.late (x int UNIQUE"
                                              " DEFERRABLE INITIALLY DEFERRED)"));
    assert_int_equal(dsn_new(&dsn, pg.conninfo, "test", &why), ERR_OK);
    assert_int_equal(dbc_open(&conn.dbc, t.loop, dsn, 15000, &on, &why), ERR_OK);
    assert_int_equal(ask_link("INSERT INTO redoubt.late VALUES (1) RETURNING x", 15000),
                     ERR_OK);
    /* The row comes back, and then the commit fails. */
    assert_int_equal(ask_link("INSERT INTO redoubt.late VALUES (1) RETURNING x", 15000),
                     ERR_IO);
    assert_int_equal(ask_link("SELECT nonsense()", 15000), ERR_NOT_FOUND);
    assert_int_equal(ask_link("SELECT pg_sleep(10)", 100), ERR_TIMEOUT);
    assert_int_equal(conn.downs, 1);
    assert_int_equal(ask_link("SELECT pg_terminate_backend(pg_backend_pid())", 15000),
                     ERR_CLOSED);
    assert_int_equal(ask_link("SELECT 1", 15000), ERR_OK);
    assert_true(conn.ups == 3 && conn.downs == 2);
    dbc_close(conn.dbc);
    t.loop = sd_event_unref(t.loop);
}

/* --- connection strings and names ------------------------------------------------------- */

static const char *word(const struct dsn *d, const char *key)
{
    for (size_t i = 0; dsn_keys(d)[i]; i++)
        if (strcmp(dsn_keys(d)[i], key) == 0)
            return dsn_values(d)[i];
    return "";
}

static void limits_are_added_and_the_operator_wins(void **state)
{
    struct err_info why;
    struct dsn *d;

    (void)state;
    assert_int_equal(dsn_new(&d, "host=10.0.0.1 dbname=x", "app", &why), ERR_OK);
    assert_string_equal(word(d, "tcp_user_timeout"), "3000");
    assert_string_equal(word(d, "keepalives_idle"), "2");
    assert_string_equal(word(d, "application_name"), "app");
    assert_string_equal(word(d, "dbname"), "x");
    assert_true(dsn_ready(d));
    dsn_free(d);
    assert_int_equal(
        dsn_new(&d, "postgresql:///x?host=/run/p&keepalives_idle=60", "app", &why),
        ERR_OK);
    assert_string_equal(word(d, "keepalives_idle"), "60");
    assert_true(dsn_ready(d));
    dsn_free(d);
    assert_int_equal(dsn_new(&d, "host=10.0.0.1 nonsense=1", "app", &why), ERR_CONFIG);
    assert_non_null(strstr(why.what, "nonsense"));
    assert_int_equal(dsn_new(&d, "host=a,b,c port=1,2", "app", &why), ERR_CONFIG);
}

static void only_names_are_looked_up(void **state)
{
    static const char found[][DSN_ADDRESS_BYTES] = { "10.0.0.9", "" };
    static const char none[][DSN_ADDRESS_BYTES] = { "", "" };
    const char *names[DSN_HOSTS_MAX];
    struct err_info why;
    struct dsn *d;

    (void)state;
    assert_int_equal(dsn_new(&d, "host=db1,fd00::1,db2,/run/p port=1,2,3,4", "app", &why),
                     ERR_OK);
    assert_int_equal(dsn_names(d, names), 2);
    assert_string_equal(names[0], "db1");
    assert_string_equal(names[1], "db2");
    assert_false(dsn_ready(d));
    assert_int_equal(dsn_resolved(d, found), ERR_OK);
    assert_true(dsn_ready(d));
    assert_string_equal(word(d, "host"), "db1,fd00::1,/run/p");
    assert_string_equal(word(d, "hostaddr"), "10.0.0.9,,");
    assert_string_equal(word(d, "port"), "1,2,4");
    dsn_free(d);
    assert_int_equal(dsn_new(&d, "host=db1,db2", "app", &why), ERR_OK);
    assert_int_equal(dsn_resolved(d, none), ERR_NOT_FOUND);
    assert_false(dsn_ready(d));
    assert_int_equal(dsn_resolved(d, found), ERR_OK);
    assert_int_equal(dsn_resolved(d, none), ERR_NOT_FOUND); /* the old one stays */
    assert_string_equal(word(d, "hostaddr"), "10.0.0.9");
    dsn_free(d);
    assert_int_equal(dsn_new(&d, "host=db1 hostaddr=10.0.0.1", "app", &why), ERR_OK);
    assert_int_equal(dsn_names(d, names), 0);
    dsn_free(d);
}

static char looked_up[DSN_HOSTS_MAX][DSN_ADDRESS_BYTES];
static int look_ups;

static void on_lookup(void *ctx, const char addresses[][DSN_ADDRESS_BYTES])
{
    (void)ctx;
    memcpy(looked_up, addresses, sizeof(looked_up));
    look_ups++;
}

static void names_are_looked_up_by_a_child_that_ends(void **state)
{
    static const char *const names[] = { "localhost", "no-such-host.invalid" };
    struct lookup l;
    struct err_info why;

    (void)state;
    assert_true(sd_event_new(&t.loop) >= 0);
    lookup_init(&l, t.loop, on_lookup, NULL);
    assert_int_equal(lookup_start(&l, 2, names, 15000, &why), ERR_OK);
    for (struct mono end = mono_after(now_of(), SLACK_MS);
         look_ups == 0 && !mono_reached(now_of(), end);)
        turn();
    assert_int_equal(look_ups, 1);
    assert_true(strcmp(looked_up[0], "127.0.0.1") == 0 ||
                strcmp(looked_up[0], "::1") == 0);
    assert_string_equal(looked_up[1], "");
    lookup_close(&l);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), pg.pid > 0 ? 0 : -1); /* none is left */
    assert_int_equal(lookup_start(&l, 1, names, 15000, &why), ERR_OK);
    pid_t child = l.child;
    lookup_close(&l);
    assert_int_equal(kill(child, 0), -1);
    assert_int_equal(look_ups, 1); /* and no answer comes any more */
    t.loop = sd_event_unref(t.loop);
}

#define RULE(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_are_added_and_the_operator_wins),
        cmocka_unit_test(only_names_are_looked_up),
        cmocka_unit_test(names_are_looked_up_by_a_child_that_ends),
        cmocka_unit_test(a_query_is_answered_once_and_only_after_its_commit),
        RULE(health_says_what_the_fence_is_at),
        RULE(raising_is_answered_and_seen),
        RULE(a_newer_raise_overtakes),
        RULE(a_newer_raise_overtakes_one_that_is_on_its_way),
        RULE(a_transaction_in_the_way_is_reported_in_time),
        RULE(a_frozen_dbms_is_noticed_and_a_raise_answered_in_time),
        RULE(a_dead_warm_connection_does_not_cost_the_raise),
        RULE(a_restarted_dbms_is_found_again),
        cmocka_unit_test(a_database_without_the_schema_is_named),
        RULE(a_wrong_schema_is_named),
    };

    if (!own_postgres_start(&pg)) {
        own_postgres_stop(&pg);
        printf("1..0 # SKIP %s\n", pg.why);
        return 0;
    }
    int failed = cmocka_run_group_tests_name("fence", tests, make_server, NULL);
    own_postgres_stop(&pg);
    return failed;
}
