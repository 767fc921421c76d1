/* Which version is newer (deb-version(7)). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "app/agent/deb_version.h"
#include "base/str.h"

static int sign(int v)
{
    return (v > 0) - (v < 0);
}

static void versions_are_ordered_as_dpkg_orders_them(void **state)
{
    (void)state;
    static const char *const rising[] = {
        "0~~",        "0~",      "0",         "0.1.0~rc1", "0.1.0",     "0.1.0-1",
        "0.1.0-1+b1", "0.1.0-2", "0.1.0-10",  "0.1.0a",    "0.1.0+git", "0.2",
        "0.2.0",      "0.10.0",  "1.0-alpha", "1.0-beta",  "1:0.0.1",   "2:0",
    };

    for (size_t i = 0; i < LEN(rising); i++)
        for (size_t k = 0; k < LEN(rising); k++)
            assert_int_equal(sign(deb_version_compare(rising[i], rising[k])),
                             (i > k) - (i < k));
    assert_int_equal(deb_version_compare("1.0", "0:1.0"), 0);
    assert_int_equal(deb_version_compare("1.01", "1.1"), 0);
    assert_int_equal(deb_version_compare("1.0-0", "1.0"), 0);
    assert_int_equal(deb_version_compare("", ""), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_are_ordered_as_dpkg_orders_them),
    };

    return cmocka_run_group_tests_name("deb_version", tests, NULL, NULL);
}
