/* What a service may say to its supervisor, and what is made of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sys/supervisor/notify.h"

static struct notify_message heard(const char *text)
{
    struct notify_message m;

    notify_decode(&m, str_of(text));
    return m;
}

static void the_known_assignments(void **state)
{
    struct notify_message m = heard("READY=1\nWATCHDOG=1\nSTATUS=5 devices\n");

    (void)state;
    assert_true(m.ready && m.watchdog && m.has_status && !m.stopping);
    assert_string_equal(m.status, "5 devices");
    assert_int_equal(m.role, NOTIFY_ROLE_NONE);
    assert_true(heard("STOPPING=1").stopping);
}

static void a_role_is_acknowledged_exactly(void **state)
{
    static const char *const wrong[] = {
        "REDOUBT_ROLE=",          "REDOUBT_ROLE=active",
        "REDOUBT_ROLE=active ",   "REDOUBT_ROLE=active x",
        "REDOUBT_ROLE=active -1", "REDOUBT_ROLE=active 18446744073709551616",
        "REDOUBT_ROLE=Standby",   "REDOUBT_ROLE=standby ",
        " REDOUBT_ROLE=standby",  "redoubt_role=standby",
    };
    struct notify_message m = heard("REDOUBT_ROLE=active 41");

    (void)state;
    assert_int_equal(m.role, NOTIFY_ROLE_ACTIVE);
    assert_int_equal(m.epoch, 41);
    assert_int_equal(heard("REDOUBT_ROLE=standby").role, NOTIFY_ROLE_STANDBY);
    for (size_t i = 0; i < LEN(wrong); i++)
        assert_int_equal(heard(wrong[i]).role, NOTIFY_ROLE_NONE);
}

static void unknown_and_empty_lines_are_skipped(void **state)
{
    struct notify_message m =
        heard("\n\nMAINPID=1\nREADY=0\nREADY=11\nERRNO=5\n\nWATCHDOG=1");

    (void)state;
    assert_true(m.watchdog);
    assert_false(m.ready);
    assert_false(heard("").watchdog);
}

static void a_status_is_cut_and_printable(void **state)
{
    char text[NOTIFY_BYTES];
    struct notify_message m = heard("STATUS=a\tb\033[31mc");

    (void)state;
    assert_string_equal(m.status, "a?b?[31mc");
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    memcpy(text, "STATUS=", 7);
    m = heard(text);
    assert_int_equal(strlen(m.status), NOTIFY_STATUS_BYTES - 1);
}

static void metrics_are_whole_or_nothing(void **state)
{
    char text[NOTIFY_BYTES];
    struct notify_message m = heard("REDOUBT_METRICS=a=1 b:c=2\nWATCHDOG=1");

    (void)state;
    assert_true(m.has_metrics && m.watchdog);
    assert_string_equal(m.metrics, "a=1 b:c=2");
    m = heard("REDOUBT_METRICS=");
    assert_true(m.has_metrics);
    assert_string_equal(m.metrics, "");
    assert_false(heard("WATCHDOG=1").has_metrics);
    memset(text, '7', sizeof(text) - 1);
    memcpy(text, "REDOUBT_METRICS=", 16);
    text[16 + NOTIFY_METRICS_BYTES] = '\0';
    m = heard(text);
    assert_true(m.has_metrics);
    assert_string_equal(m.metrics, "");
    text[16 + NOTIFY_METRICS_BYTES - 1] = '\0';
    assert_int_equal(strlen(heard(text).metrics), NOTIFY_METRICS_BYTES - 1);
}

static void bytes_that_are_no_text_do_no_harm(void **state)
{
    struct notify_message m;

    (void)state;
    notify_decode(&m, STR("\0\0READY=1\nSTATUS=\0\xff\nWATCHDOG=1"));
    assert_false(m.ready);
    assert_true(m.watchdog);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_known_assignments),
        cmocka_unit_test(a_role_is_acknowledged_exactly),
        cmocka_unit_test(unknown_and_empty_lines_are_skipped),
        cmocka_unit_test(a_status_is_cut_and_printable),
        cmocka_unit_test(metrics_are_whole_or_nothing),
        cmocka_unit_test(bytes_that_are_no_text_do_no_harm),
    };

    return cmocka_run_group_tests_name("notify", tests, NULL, NULL);
}
