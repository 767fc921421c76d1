/* Events and runs in the spool: order, bounds, crashes, a full disk, damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/spool/run_store.h"

enum { SEEN_MAX = 4096 };

struct world {
    char folder[64], path[80];
    struct spool *spool;
    uint64_t seen[SEEN_MAX];
    char last[64];
    uint32_t seen_count;
};

static void open_it(struct world *w)
{
    struct err_info info = { 0 };

    if (spool_open(w->path, 10, &w->spool, &info) != ERR_OK)
        fail_msg("%s", info.what);
}

static void again(struct world *w)
{
    spool_close(w->spool);
    w->spool = NULL;
    open_it(w);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    (void)snprintf(w->folder, sizeof(w->folder), "/tmp/test_events.XXXXXX");
    if (!mkdtemp(w->folder))
        return -1;
    (void)snprintf(w->path, sizeof(w->path), "%s/spool.db", w->folder);
    open_it(w);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    static const char *const ends[] = { "", "-wal", "-shm", ".damaged" };
    struct world *w = *state;
    char path[120];

    spool_close(w->spool);
    for (size_t i = 0; i < LEN(ends); i++) {
        (void)snprintf(path, sizeof(path), "%s%s", w->path, ends[i]);
        (void)remove(path);
    }
    (void)rmdir(w->folder);
    free(w);
    return 0;
}

static enum err put(struct world *w, enum event_stream stream,
                    enum event_severity severity, const char *body)
{
    struct event_add e = { stream, severity, str_of(body), NULL };

    return event_spool_add(w->spool, &e, NULL, NULL);
}

static void add(struct world *w, enum event_stream stream, enum event_severity severity,
                const char *body)
{
    assert_int_equal(put(w, stream, severity, body), ERR_OK);
}

static bool see(void *arg, uint64_t seq, struct str body)
{
    struct world *w = arg;

    assert_true(w->seen_count < SEEN_MAX);
    w->seen[w->seen_count++] = seq;
    (void)snprintf(w->last, sizeof(w->last), "%.*s", (int)(body.n < 60 ? body.n : 60),
                   body.p);
    return true;
}

static uint32_t walk(struct world *w, enum event_stream stream, uint64_t after)
{
    w->seen_count = 0;
    assert_int_equal(event_spool_walk(w->spool, stream, after, see, w, NULL), ERR_OK);
    return w->seen_count;
}

static void two_streams_with_numbers_of_their_own(void **state)
{
    struct world *w = *state;
    struct uuid ids[2];

    for (int i = 0; i < 3; i++)
        add(w, EVENT_NORMAL, EVENT_SEV_INFO, "n");
    add(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, "c");
    ids[0] = *event_spool_id(w->spool, EVENT_CRITICAL);
    ids[1] = *event_spool_id(w->spool, EVENT_NORMAL);
    assert_false(uuid_eq(&ids[0], &ids[1]));
    again(w);
    assert_true(uuid_eq(&ids[1], event_spool_id(w->spool, EVENT_NORMAL)));
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 3);
    assert_int_equal(w->seen[0], 1);
    assert_int_equal(w->seen[2], 3);
    assert_int_equal(walk(w, EVENT_CRITICAL, 0), 1);
    assert_int_equal(w->seen[0], 1);
    assert_string_equal(w->last, "c");
}

static void what_is_acknowledged_is_gone_and_numbers_go_on(void **state)
{
    struct world *w = *state;

    for (int i = 0; i < 5; i++)
        add(w, EVENT_NORMAL, EVENT_SEV_INFO, "x");
    assert_int_equal(event_spool_ack(w->spool, EVENT_NORMAL, 3, NULL), ERR_OK);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 2);
    assert_int_equal(w->seen[0], 4);
    assert_int_equal(event_spool_ack(w->spool, EVENT_NORMAL, 1, NULL), ERR_OK); /* late */
    assert_int_equal(event_spool_ack(w->spool, EVENT_NORMAL, UINT64_MAX, NULL), ERR_OK);
    assert_int_equal(event_spool_counts(w->spool)->pending[EVENT_NORMAL], 0);
    assert_int_equal(event_spool_counts(w->spool)->bytes, 0);
    again(w);
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "x");
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 1);
    assert_int_equal(w->seen[0], 6);
}

static void the_oldest_of_the_lowest_severity_goes_first(void **state)
{
    struct world *w = *state;
    const struct event_counts *c;

    event_spool_limit(w->spool, 4, EVENT_BYTES_MAX);
    add(w, EVENT_NORMAL, EVENT_SEV_WARNING, "1");
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "2");
    add(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, "3");
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "4");
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "5");  /* 2 goes */
    add(w, EVENT_NORMAL, EVENT_SEV_ERROR, "6"); /* 4 goes */
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 3);
    assert_int_equal(w->seen[0], 1);
    assert_int_equal(w->seen[1], 4); /* the fourth of the stream: "5" */
    assert_int_equal(walk(w, EVENT_CRITICAL, 0), 1);
    c = event_spool_counts(w->spool);
    assert_int_equal(c->dropped, 2);
    assert_int_equal(c->untold[EVENT_SEV_INFO], 2);
    again(w);
    c = event_spool_counts(w->spool);
    assert_int_equal(c->untold[EVENT_SEV_INFO], 2);
    assert_int_equal(c->dropped, 2);
}

static void bytes_are_bounded_too(void **state)
{
    struct world *w = *state;
    static char big[EVENT_BYTES_MAX + 2];

    memset(big, 'x', sizeof(big) - 1);
    event_spool_limit(w->spool, 100, EVENT_BYTES_MAX);
    assert_int_equal(put(w, EVENT_NORMAL, EVENT_SEV_INFO, big), ERR_LIMIT);
    big[EVENT_BYTES_MAX] = '\0';
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "small");
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, big);
    assert_int_equal(event_spool_counts(w->spool)->pending[EVENT_NORMAL], 1);
    assert_int_equal(event_spool_counts(w->spool)->bytes, EVENT_BYTES_MAX);
}

static void what_was_dropped_is_told_once(void **state)
{
    struct world *w = *state;
    uint64_t told[EVENT_SEVERITIES] = { 1, 0, 0, 2 };
    struct event_add record = { EVENT_CRITICAL, EVENT_SEV_CRITICAL, STR("dropped"),
                                NULL };

    event_spool_lost(w->spool, EVENT_SEV_INFO);
    event_spool_lost(w->spool, EVENT_SEV_CRITICAL);
    event_spool_lost(w->spool, EVENT_SEV_CRITICAL);
    assert_int_equal(event_spool_counts(w->spool)->untold[EVENT_SEV_CRITICAL], 2);
    assert_int_equal(event_spool_tell(w->spool, &record, told, NULL), ERR_OK);
    again(w);
    for (int i = 0; i < EVENT_SEVERITIES; i++)
        assert_int_equal(event_spool_counts(w->spool)->untold[i], 0);
    assert_int_equal(event_spool_counts(w->spool)->dropped, 3);
    assert_int_equal(walk(w, EVENT_CRITICAL, 0), 1);
}

static void a_renewed_stream_keeps_what_waits(void **state)
{
    struct world *w = *state;
    struct uuid old;

    for (int i = 0; i < 5; i++)
        add(w, EVENT_NORMAL, EVENT_SEV_INFO, i == 2 ? "third" : "x");
    assert_int_equal(event_spool_ack(w->spool, EVENT_NORMAL, 2, NULL), ERR_OK);
    old = *event_spool_id(w->spool, EVENT_NORMAL);
    assert_int_equal(event_spool_renew(w->spool, EVENT_NORMAL, NULL), ERR_OK);
    assert_false(uuid_eq(&old, event_spool_id(w->spool, EVENT_NORMAL)));
    assert_int_equal(event_spool_last(w->spool, EVENT_NORMAL), 3);
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "new");
    again(w);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(w->seen[i], i + 1);
    assert_int_equal(event_spool_renew(w->spool, EVENT_NORMAL, NULL), ERR_OK); /* twice */
}

/* A child adds and acknowledges until it is killed; what it said it stored is there. */
static void a_crash_loses_nothing_that_was_stored(void **state)
{
    struct world *w = *state;
    uint64_t said[2] = { 0 }; /* added, acknowledged */
    int pipes[2];

    spool_close(w->spool);
    w->spool = NULL;
    for (int round = 0; round < 5; round++) {
        assert_int_equal(pipe(pipes), 0);
        pid_t child = fork();
        if (child == 0) {
            uint64_t seq = 0, now[2];

            if (spool_open(w->path, 10, &w->spool, NULL) != ERR_OK)
                _exit(1);
            for (;;) {
                struct event_add e = { EVENT_NORMAL, EVENT_SEV_INFO, STR("x"), NULL };

                if (event_spool_add(w->spool, &e, &seq, NULL) != ERR_OK)
                    _exit(2);
                if (seq % 3 == 0 &&
                    event_spool_ack(w->spool, EVENT_NORMAL, seq - 2, NULL) != ERR_OK)
                    _exit(3);
                now[0] = seq;
                now[1] = seq - seq % 3 >= 2 ? seq - seq % 3 - 2 : 0;
                if (write(pipes[1], now, sizeof(now)) != sizeof(now))
                    _exit(4);
            }
        }
        (void)close(pipes[1]);
        for (int i = 0; i < 7 + round; i++)
            assert_int_equal(read(pipes[0], said, sizeof(said)), sizeof(said));
        assert_int_equal(kill(child, SIGKILL), 0);
        while (read(pipes[0], said, sizeof(said)) == sizeof(said))
            ;
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        (void)close(pipes[0]);
        open_it(w);
        assert_false(spool_counts(w->spool)->damaged);
        assert_true(event_spool_last(w->spool, EVENT_NORMAL) >= said[0]);
        uint32_t n = walk(w, EVENT_NORMAL, 0);
        assert_true(n > 0 && w->seen[0] <= said[1] + 4);
        for (uint32_t i = 1; i < n; i++) /* no hole */
            assert_int_equal(w->seen[i], w->seen[i - 1] + 1);
        assert_true(w->seen[n - 1] >= said[0]);
        spool_close(w->spool);
        w->spool = NULL;
    }
}

/* A small file system of its own; false if this machine does not let us. */
static bool small_disk(const char *at)
{
    return unshare(CLONE_NEWNS) == 0 &&
           mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("tmpfs", at, "tmpfs", 0, "size=1m") == 0;
}

/* In a child, since a mount namespace is for ever. */
static int on_a_full_disk(struct world *w)
{
    static char body[4001];
    int n = 0, failed = 0;

    if (!small_disk(w->folder))
        return 77;
    memset(body, 'x', sizeof(body) - 1);
    open_it(w);
    event_spool_limit(w->spool, 100000, 1u << 30);
    while (put(w, EVENT_NORMAL, EVENT_SEV_INFO, body) == ERR_OK)
        n++;
    if (n < 10 || put(w, EVENT_NORMAL, EVENT_SEV_INFO, body) != ERR_FULL)
        return 2;
    for (failed = 0; failed < 50; failed++) /* again and again does no harm */
        if (put(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, body) == ERR_OK)
            return 3;
    event_spool_lost(w->spool, EVENT_SEV_CRITICAL);
    if (walk(w, EVENT_NORMAL, 0) != (uint32_t)n) /* reading goes on */
        return 4;
    again(w);
    if (walk(w, EVENT_NORMAL, 0) != (uint32_t)n)
        return 5;
    event_spool_lost(w->spool, EVENT_SEV_CRITICAL);
    if (mount("tmpfs", w->folder, "tmpfs", MS_REMOUNT, "size=8m") != 0)
        return 6;
    if (put(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, body) != ERR_OK)
        return 7;
    again(w);
    /* what could not be counted on the disk is, with the first event that could be stored */
    if (event_spool_counts(w->spool)->untold[EVENT_SEV_CRITICAL] != 1)
        return 8;
    spool_close(w->spool);
    return 0;
}

static void a_full_disk_is_told_and_survived(void **state)
{
    struct world *w = *state;
    int status;

    spool_close(w->spool);
    w->spool = NULL;
    pid_t child = fork();
    if (child == 0)
        _exit(on_a_full_disk(w));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_damaged_page_is_found_at_the_start(void **state)
{
    struct world *w = *state;
    struct uuid old = *event_spool_id(w->spool, EVENT_NORMAL);
    struct stat st;
    static char noise[8192];

    for (int i = 0; i < 500; i++)
        add(w, EVENT_NORMAL, EVENT_SEV_INFO, "0123456789012345678901234567890123456789");
    spool_close(w->spool);
    w->spool = NULL;
    assert_int_equal(stat(w->path, &st), 0);
    memset(noise, 0xa5, sizeof(noise));
    FILE *f = fopen(w->path, "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, st.st_size / 2, SEEK_SET), 0);
    assert_int_equal(fwrite(noise, 1, sizeof(noise), f), sizeof(noise));
    assert_int_equal(fclose(f), 0);
    open_it(w);
    assert_true(spool_counts(w->spool)->damaged);
    assert_false(uuid_eq(&old, event_spool_id(w->spool, EVENT_NORMAL)));
    add(w, EVENT_NORMAL, EVENT_SEV_INFO, "on we go");
}

/* ---- runs ---- */

static struct run_row run_of(uint16_t n)
{
    struct run_row r = { .type = "scan", .params = STR("{}"), .priority = n % 10 };

    memcpy(r.id.bytes, &n, sizeof(n));
    r.id.bytes[15] = 1;
    return r;
}

static enum err accept_run(struct world *w, const struct run_row *r)
{
    struct event_add e = { EVENT_NORMAL, EVENT_SEV_ERROR, STR("accepted"), NULL };

    return run_store_accept(w->spool, r, 1000, &e, NULL);
}

static enum err finish_run(struct world *w, const struct run_row *r, int64_t now_s)
{
    struct event_add e = { EVENT_NORMAL, EVENT_SEV_INFO, STR("finished"), NULL };

    return run_store_finish(w->spool, &r->id, "done", now_s, &e, NULL);
}

static void a_run_is_stored_once_and_ends_once(void **state)
{
    struct world *w = *state;
    struct run_row r = run_of(1), got;

    r.params = STR("{\"mode\":\"quick\"}");
    r.not_after = 99;
    assert_int_equal(accept_run(w, &r), ERR_OK);
    assert_int_equal(accept_run(w, &r), ERR_EXISTS);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 1); /* one event, not two */
    again(w);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_OK);
    assert_true(str_eq(got.params, r.params) && got.not_after == 99);
    assert_int_equal(got.state, RUN_ACCEPTED);
    assert_int_equal(run_store_state(w->spool, &r.id, RUN_RUNNING, 10, NULL), ERR_OK);
    again(w);
    assert_int_equal(run_store_rewind(w->spool, NULL), ERR_OK);
    assert_int_equal(run_store_state(w->spool, &r.id, RUN_RUNNING, 0, NULL), ERR_OK);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_OK);
    assert_int_equal(got.attempts, 2);
    assert_int_equal(finish_run(w, &r, 1000), ERR_OK);
    assert_int_equal(finish_run(w, &r, 1000), ERR_NOT_FOUND);
    assert_int_equal(run_store_state(w->spool, &r.id, RUN_RUNNING, 0, NULL),
                     ERR_NOT_FOUND);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 2);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_OK);
    assert_true(got.told && strcmp(got.outcome, "done") == 0);
    assert_int_equal(run_store_retell(w->spool, &r.id, NULL), ERR_OK);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 2); /* told, so not again */
}

static void an_end_that_was_dropped_is_told_again(void **state)
{
    struct world *w = *state;
    struct run_row r = run_of(1), got;

    event_spool_limit(w->spool, 2, EVENT_BYTES_MAX);
    assert_int_equal(accept_run(w, &r), ERR_OK);
    assert_int_equal(finish_run(w, &r, 1000), ERR_OK);
    add(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, "a");
    add(w, EVENT_CRITICAL, EVENT_SEV_CRITICAL, "b");
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 0);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_OK);
    assert_false(got.told);
    event_spool_limit(w->spool, 10, EVENT_BYTES_MAX);
    assert_int_equal(run_store_retell(w->spool, &r.id, NULL), ERR_OK);
    assert_int_equal(run_store_retell(w->spool, &r.id, NULL), ERR_OK);
    assert_int_equal(walk(w, EVENT_NORMAL, 0), 1);
    assert_string_equal(w->last, "finished");
}

static bool count_run(void *arg, const struct run_row *row)
{
    struct world *w = arg;

    w->seen[w->seen_count++] = row->priority;
    return true;
}

static void runs_are_bounded_and_sorted(void **state)
{
    struct world *w = *state;
    struct run_row r;

    for (uint16_t n = 0; n < RUNS_OPEN_MAX; n++) {
        r = run_of(n);
        assert_int_equal(accept_run(w, &r), ERR_OK);
    }
    r = run_of(RUNS_OPEN_MAX);
    assert_int_equal(accept_run(w, &r), ERR_LIMIT);
    w->seen_count = 0;
    assert_int_equal(run_store_walk(w->spool, count_run, w, NULL), ERR_OK);
    assert_int_equal(w->seen_count, RUNS_OPEN_MAX);
    for (uint32_t i = 1; i < w->seen_count; i++)
        assert_true(w->seen[i] <= w->seen[i - 1]);
}

/* A clock that jumps by a year forgets the old ones, but never the newest. */
static void finished_runs_are_kept_for_a_while(void **state)
{
    struct world *w = *state;
    struct run_row r = run_of(0), got;

    for (uint16_t n = 0; n < RUNS_KEPT_MIN + 20; n++) {
        r = run_of(n);
        assert_int_equal(accept_run(w, &r), ERR_OK);
        assert_int_equal(finish_run(w, &r, 1000), ERR_OK);
    }
    assert_int_equal(run_store_counts(w->spool).finished, RUNS_KEPT_MIN + 20);
    r = run_of(5000);
    assert_int_equal(accept_run(w, &r), ERR_OK);
    assert_int_equal(finish_run(w, &r, 365 * 86400), ERR_OK);
    assert_int_equal(run_store_counts(w->spool).finished, RUNS_KEPT_MIN);
    r = run_of(RUNS_KEPT_MIN + 19);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_OK);
    r = run_of(1);
    assert_int_equal(run_store_get(w->spool, &r.id, &got, NULL), ERR_NOT_FOUND);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(two_streams_with_numbers_of_their_own),
        T(what_is_acknowledged_is_gone_and_numbers_go_on),
        T(the_oldest_of_the_lowest_severity_goes_first),
        T(bytes_are_bounded_too),
        T(what_was_dropped_is_told_once),
        T(a_renewed_stream_keeps_what_waits),
        T(a_crash_loses_nothing_that_was_stored),
        T(a_full_disk_is_told_and_survived),
        T(a_damaged_page_is_found_at_the_start),
        T(a_run_is_stored_once_and_ends_once),
        T(an_end_that_was_dropped_is_told_again),
        T(runs_are_bounded_and_sorted),
        T(finished_runs_are_kept_for_a_while),
    };

    return cmocka_run_group_tests_name("event_spool", tests, NULL, NULL);
}
