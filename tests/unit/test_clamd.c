/* Replies of clamd, as 1.4.6 gives them and as it should not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/clamd.h"

static void the_version_with_official_databases(void **state)
{
    (void)state;
    struct clamd_version v;

    assert_int_equal(
        clamd_version(STR("ClamAV 1.4.6/27890/Wed Nov  1 08:00:00 2026"), &v), ERR_OK);
    assert_string_equal(v.engine, "1.4.6");
    assert_int_equal(v.database, 27890);
    assert_string_equal(v.built, "Wed Nov  1 08:00:00 2026");
}

static void the_version_with_custom_databases_only(void **state)
{
    (void)state;
    struct clamd_version v;

    assert_int_equal(clamd_version(STR("ClamAV 1.4.6"), &v), ERR_OK);
    assert_string_equal(v.engine, "1.4.6");
    assert_int_equal(v.database, 0);
    assert_string_equal(v.built, "");
}

static void a_strange_version_is_corrupt(void **state)
{
    (void)state;
    struct clamd_version v = { .database = 7 };

    assert_int_equal(clamd_version(STR("UNKNOWN COMMAND"), &v), ERR_CORRUPT);
    assert_int_equal(clamd_version(STR("ClamAV "), &v), ERR_CORRUPT);
    assert_int_equal(clamd_version(STR("ClamAV 1.4.6/x/y"), &v), ERR_CORRUPT);
    assert_int_equal(clamd_version(STR("ClamAV 1.4.6/99999999999/y"), &v), ERR_CORRUPT);
    assert_int_equal(clamd_version(STR("ClamAV 1.\x01"), &v), ERR_CORRUPT);
    assert_int_equal(
        clamd_version(STR("ClamAV 123456789012345678901234567890123456789012345678901234"
                          "5678901234567890"),
                      &v),
        ERR_CORRUPT);
    assert_int_equal(v.database, 7);
}

static void replies_carry_their_id(void **state)
{
    (void)state;
    struct clamd_reply r;
    size_t used = 9;

    assert_int_equal(clamd_reply(STR("1: PON"), &r, &used), ERR_OK);
    assert_int_equal(used, 0);
    assert_int_equal(clamd_reply(STR("12: PONG\0 2: x"), &r, &used), ERR_OK);
    assert_int_equal(used, 9);
    assert_int_equal(r.id, 12);
    assert_true(clamd_is_pong(r.text));
    assert_int_equal(clamd_reply(STR("PONG\0"), &r, &used), ERR_CORRUPT);
    assert_int_equal(clamd_reply(STR("1:\0"), &r, &used), ERR_CORRUPT);
    assert_int_equal(clamd_reply(STR("\0"), &r, &used), ERR_CORRUPT);
}

static void a_reply_without_end_is_too_long(void **state)
{
    (void)state;
    static char big[CLAMD_REPLY_MAX + 1];
    struct clamd_reply r;
    size_t used;

    memset(big, 'x', sizeof(big));
    assert_int_equal(clamd_reply((struct str){ big, CLAMD_REPLY_MAX - 1 }, &r, &used),
                     ERR_OK);
    assert_int_equal(clamd_reply((struct str){ big, CLAMD_REPLY_MAX }, &r, &used),
                     ERR_LIMIT);
    memcpy(big, "1: ", 3);
    big[CLAMD_REPLY_MAX] = '\0';
    assert_int_equal(clamd_reply((struct str){ big, sizeof(big) }, &r, &used), ERR_LIMIT);
}

static void statistics_give_what_is_recognised(void **state)
{
    (void)state;
    struct clamd_stats s;

    clamd_stats(STR("POOLS: 1\n\nSTATE: VALID PRIMARY\n"
                    "THREADS: live 1  idle 0 max 10 idle-timeout 30\nQUEUE: 3 items\n"
                    "\tSTATS 0.000013 \n\nMEMSTATS: heap N/A\nEND"),
                &s);
    assert_string_equal(s.state, "VALID PRIMARY");
    assert_int_equal(s.pools, 1);
    assert_int_equal(s.threads_live, 1);
    assert_int_equal(s.threads_idle, 0);
    assert_int_equal(s.threads_max, 10);
    assert_int_equal(s.queue, 3);
    clamd_stats(STR("STATE: \x01\nTHREADS: live -1 max\nQUEUE:"), &s);
    assert_string_equal(s.state, "");
    assert_int_equal(s.threads_live, 0);
    assert_int_equal(s.threads_max, 0);
}

static void verdicts_are_read_from_the_right(void **state)
{
    static const struct {
        const char *reply;
        enum clamd_found found;
        const char *text;
    } rows[] = {
        { "fd[11]: OK", CLAMD_CLEAN, "" },
        { "/a: FOUND/b: OK", CLAMD_CLEAN, "" },
        { "fd[9]: Own.Marker.UNOFFICIAL FOUND", CLAMD_FOUND, "Own.Marker.UNOFFICIAL" },
        { "/tmp/x: OK: Own FOUND", CLAMD_FOUND, "Own" },
        { "fd[9]: Heuristics.Limits.Exceeded.MaxFileSize FOUND", CLAMD_LIMITED,
          "Heuristics.Limits.Exceeded.MaxFileSize" },
        { "fd[9]: Can't open file or directory ERROR", CLAMD_ERROR,
          "Can't open file or directory" },
        { "fd[9]: a\x01\xff FOUND", CLAMD_FOUND, "a??" },
    };
    struct clamd_verdict v;

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        assert_int_equal(clamd_verdict(str_of(rows[i].reply), &v), ERR_OK);
        assert_int_equal(v.found, rows[i].found);
        assert_string_equal(v.text, rows[i].text);
    }
    assert_int_equal(clamd_verdict(STR(""), &v), ERR_CORRUPT);
    assert_int_equal(clamd_verdict(STR("fd[1]: MAYBE"), &v), ERR_CORRUPT);
    assert_int_equal(clamd_verdict(STR("fd[1]:  FOUND"), &v), ERR_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_version_with_official_databases),
        cmocka_unit_test(the_version_with_custom_databases_only),
        cmocka_unit_test(a_strange_version_is_corrupt),
        cmocka_unit_test(replies_carry_their_id),
        cmocka_unit_test(a_reply_without_end_is_too_long),
        cmocka_unit_test(verdicts_are_read_from_the_right),
        cmocka_unit_test(statistics_give_what_is_recognised),
    };

    return cmocka_run_group_tests_name("clamd", tests, NULL, NULL);
}
