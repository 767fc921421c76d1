/* The table of words for operators: complete, distinct, whole sentences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/alarm.h"

static bool is_sentence(const char *s)
{
    size_t n = strlen(s);

    return n > 20 && s[n - 1] == '.' && !strstr(s, "  ");
}

static void every_alarm_is_complete_and_distinct(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ALARM_COUNT; i++) {
        const struct alarm_info *a = alarm_info((enum alarm)i);

        assert_true(strspn(a->id, "abcdefghijklmnopqrstuvwxyz_") == strlen(a->id));
        assert_ptr_equal(alarm_find(a->id), a); /* the first of its name: distinct */
        assert_true(strlen(a->title) > 10 && a->title[strlen(a->title) - 1] != '.');
        assert_true(is_sentence(a->text));
        assert_true(is_sentence(a->suggestion));
        assert_string_not_equal(alarm_severity_name(a->severity), "unknown");
    }
    assert_null(alarm_find("no_such_alarm"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_alarm_is_complete_and_distinct),
    };

    return cmocka_run_group_tests_name("alarm", tests, NULL, NULL);
}
