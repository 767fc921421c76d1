/* The spool: order, identity, bounds, and what a crash or damage leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/spool/spool.h"

struct world {
    char folder[64], path[80];
    struct spool *spool;
    uint64_t seen[64];
    uint32_t seen_count, stop_after;
};

static void open_it(struct world *w, uint32_t max)
{
    struct err_info info = { 0 };

    if (spool_open(w->path, max, &w->spool, &info) != ERR_OK)
        fail_msg("%s", info.what);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof(*w));

    (void)snprintf(w->folder, sizeof(w->folder), "/tmp/test_spool.XXXXXX");
    if (!mkdtemp(w->folder))
        return -1;
    (void)snprintf(w->path, sizeof(w->path), "%s/spool.db", w->folder);
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

static struct report made(uint8_t n)
{
    struct report r = { .id = { { n } }, .at_us = REPORT_AT_MIN };

    opamp_add_int(&r.attrs, STR("n"), n);
    return r;
}

static void add(struct world *w, uint8_t n)
{
    struct report r = made(n);

    assert_int_equal(spool_add(w->spool, &r, NULL), ERR_OK);
}

static bool see(void *arg, uint64_t seq, struct str bytes)
{
    struct world *w = arg;
    struct report r;

    assert_int_equal(report_decode(bytes, &r, NULL), ERR_OK);
    assert_true(r.seq == seq);
    w->seen[w->seen_count++] = seq;
    return w->seen_count != w->stop_after;
}

static void walk(struct world *w, uint64_t after)
{
    w->seen_count = 0;
    assert_int_equal(spool_walk(w->spool, after, see, w, NULL), ERR_OK);
}

static void reports_survive_in_order(void **state)
{
    struct world *w = *state;

    open_it(w, 10);
    for (uint8_t n = 1; n <= 4; n++)
        add(w, n);
    spool_close(w->spool);
    open_it(w, 10);
    assert_int_equal(spool_counts(w->spool)->pending, 4);
    walk(w, 0);
    assert_int_equal(w->seen_count, 4);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(w->seen[i], i + 1);
    walk(w, 3);
    assert_int_equal(w->seen_count, 1);
    w->stop_after = 2;
    walk(w, 0);
    assert_int_equal(w->seen_count, 2);
}

static void a_number_is_never_used_again(void **state)
{
    struct world *w = *state;
    struct receipt receipts[] = { { .id = { { 1 } } }, { .id = { { 9 } } } };

    open_it(w, 10);
    add(w, 1);
    assert_int_equal(spool_remove(w->spool, receipts, 2, NULL), ERR_OK);
    assert_int_equal(spool_counts(w->spool)->pending, 0);
    spool_close(w->spool);
    open_it(w, 10);
    add(w, 2);
    walk(w, 0);
    assert_int_equal(w->seen_count, 1);
    assert_int_equal(w->seen[0], 2);
}

static void the_oldest_is_dropped_and_counted(void **state)
{
    struct world *w = *state;

    open_it(w, 3);
    for (uint8_t n = 1; n <= 5; n++)
        add(w, n);
    assert_int_equal(spool_counts(w->spool)->pending, 3);
    assert_int_equal(spool_counts(w->spool)->dropped, 2);
    walk(w, 0);
    assert_int_equal(w->seen[0], 3);
    spool_close(w->spool);
    open_it(w, 3);
    assert_int_equal(spool_counts(w->spool)->dropped, 2);
}

static void the_same_identity_twice_is_refused(void **state)
{
    struct world *w = *state;
    struct report r = made(1);
    struct err_info info = { 0 };

    open_it(w, 3);
    add(w, 1);
    assert_int_not_equal(spool_add(w->spool, &r, &info), ERR_OK);
    assert_int_equal(spool_counts(w->spool)->pending, 1);
    add(w, 2); /* and the spool goes on */
}

static void one_process_at_a_time(void **state)
{
    struct world *w = *state;
    struct spool *second = NULL;
    struct err_info info = { 0 };

    open_it(w, 3);
    assert_int_equal(spool_open(w->path, 3, &second, &info), ERR_STATE);
    assert_null(second);
}

static void a_damaged_file_is_put_aside(void **state)
{
    struct world *w = *state;
    char aside[120];
    FILE *f = fopen(w->path, "w");

    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fputs("this is not a database ", f);
    assert_int_equal(fclose(f), 0);
    open_it(w, 3);
    assert_true(spool_counts(w->spool)->damaged);
    add(w, 1);
    (void)snprintf(aside, sizeof(aside), "%s.damaged", w->path);
    assert_int_equal(access(aside, F_OK), 0);
}

static void a_folder_that_is_not_there_is_told(void **state)
{
    struct world *w = *state;
    struct err_info info = { 0 };

    assert_int_equal(spool_open("/nonexistent/spool.db", 3, &w->spool, &info),
                     ERR_DENIED);
    assert_non_null(strstr(info.what, "/nonexistent/spool.db"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reports_survive_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(a_number_is_never_used_again, setup, teardown),
        cmocka_unit_test_setup_teardown(the_oldest_is_dropped_and_counted, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_same_identity_twice_is_refused, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(one_process_at_a_time, setup, teardown),
        cmocka_unit_test_setup_teardown(a_damaged_file_is_put_aside, setup, teardown),
        cmocka_unit_test_setup_teardown(a_folder_that_is_not_there_is_told, setup,
                                        teardown),
    };

    return cmocka_run_group_tests_name("spool", tests, NULL, NULL);
}
