/* The arithmetic of a scan: exclusions, percent, rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/scan/exclude.h"
#include "core/scan/pace.h"

static void patterns(void **state)
{
    static const struct {
        const char *pattern, *path;
        bool match;
    } rows[] = {
        { "/srv/backup", "/srv/backup", true },
        { "/srv/backup/", "/srv/backup/a/b", true },
        { "/srv/backup", "/srv/backup2", false },
        { "/srv/back", "/srv/backup", false },
        { "/", "/anything", true },
        { "/home/*/cache", "/home/ann/cache/x", true },
        { "/home/*/cache", "/home/ann/deep/cache", false },
        { "/home/**/cache", "/home/ann/deep/cache", true },
        { "/home/**/cache/*.tmp", "/home/a/cache/b/cache/x.tmp", true },
        { "/home/**/cache/*.tmp", "/home/a/cache/b/x.tmp", false },
        { "/a/*b*c", "/a/xbxbxc", true },
        { "/a/*b*c", "/a/xb/xc", false },
        { "/a/?", "/a/b", true },
        { "/a/?", "/a/bc", false },
        { "*.vmdk", "/data/disk.vmdk", true },
        { "*.vmdk", "/data/disk.vmdk.txt", false },
        { "node_modules", "/w/node_modules/x/y.js", true },
        { "node_modules", "/w/my_node_modules/x", false },
        { "**", "/x", true },
        { "", "/x", false },
        { "/x", "", false },
    };

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++)
        if (exclude_match(str_of(rows[i].pattern), str_of(rows[i].path)) != rows[i].match)
            fail_msg("%s on %s", rows[i].pattern, rows[i].path);
}

/* The stars of a hostile pattern do not make the comparison explode. */
static void many_stars_end_soon(void **state)
{
    char pattern[256] = "/", path[2048] = "/";

    (void)state;
    for (size_t i = 1; i + 3 < sizeof(pattern); i += 3)
        memcpy(pattern + i, "*a*", 4);
    memset(path + 1, 'a', sizeof(path) - 2);
    assert_true(exclude_match(str_of(pattern), str_of(path)));
    pattern[strlen(pattern) - 1] = 'b';
    assert_false(exclude_match(str_of(pattern), str_of(path)));
}

static void percent_never_says_100(void **state)
{
    (void)state;
    assert_int_equal(pace_percent(0, 0), 0);
    assert_int_equal(pace_percent(1, 2), 50);
    assert_int_equal(pace_percent(2, 2), 99);
    assert_int_equal(pace_percent(5, 2), 99);
    assert_int_equal(pace_percent(UINT64_MAX - 1, UINT64_MAX), 99);
}

static void rest_makes_the_share(void **state)
{
    (void)state;
    assert_int_equal(pace_rest_ms(100000, 100000, 50), 100);
    assert_int_equal(pace_rest_ms(100000, 100000, 25), 300);
    assert_int_equal(pace_rest_ms(100000, 20000, 50), 0);
    assert_int_equal(pace_rest_ms(100000, 100000, 0), 0);
    assert_int_equal(pace_rest_ms(100000, 100000, 100), 0);
    assert_int_equal(pace_rest_ms(0, UINT64_MAX, 1), PACE_REST_MAX_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patterns),
        cmocka_unit_test(many_stars_end_soon),
        cmocka_unit_test(percent_never_says_100),
        cmocka_unit_test(rest_makes_the_share),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
