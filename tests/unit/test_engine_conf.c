/* Configuration files of ClamAV as text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "app/agent/engine_conf.h"

static char buf[8192], again[8192];
static struct policy policy;

static struct str rendered(const char *base, char *to, size_t size)
{
    char lines[1024];
    struct text block, out;

    text_init(&block, lines, sizeof(lines));
    engine_conf_block(&policy, &block);
    text_init(&out, to, size);
    engine_conf_render(str_of(base), (struct str){ block.p, block.n }, &out);
    assert_false(out.cut);
    return (struct str){ out.p, out.n };
}

static void the_policy_wins_and_the_rest_stays(void **state)
{
    char value[64];

    (void)state;
    policy_defaults(&policy);
    policy.engine_max_file_size_mib = 7;
    struct str r = rendered("# mine\nLocalSocket /run/x\nmaxfilesize 1M\n MaxThreads 99\n"
                            "User clamav",
                            buf, sizeof(buf));
    assert_non_null(strstr(r.p, "# mine\nLocalSocket /run/x\nUser clamav\n"));
    assert_null(strstr(r.p, "maxfilesize"));
    assert_null(strstr(r.p, "99"));
    assert_true(engine_conf_value(r, "MaxFileSize", value, sizeof(value)));
    assert_string_equal(value, "7M");
    assert_true(engine_conf_value(r, "MaxThreads", value, sizeof(value)));
    assert_string_equal(value, "2");
}

static void rendering_again_changes_nothing(void **state)
{
    (void)state;
    policy_defaults(&policy);
    struct str once = rendered("User clamav\n", buf, sizeof(buf));
    struct str twice = rendered(once.p, again, sizeof(again));
    assert_true(str_eq(once, twice));
}

static void values(void **state)
{
    static const char conf[] =
        "#User no\nUser a\n\tuser   b  \r\nDatabaseDirectory /d b\n";
    char value[8];

    (void)state;
    assert_true(engine_conf_value(str_of(conf), "User", value, sizeof(value)));
    assert_string_equal(value, "b");
    assert_true(engine_conf_value(str_of(conf), "DatabaseDirectory", value, 8));
    assert_string_equal(value, "/d b");
    assert_false(engine_conf_value(str_of(conf), "DatabaseDirectory", value, 4));
    assert_false(engine_conf_value(str_of(conf), "Missing", value, sizeof(value)));
    assert_false(engine_conf_value(STR(""), "User", value, sizeof(value)));
}

static void sources(void **state)
{
    struct text t;

    (void)state;
    text_init(&t, buf, sizeof(buf));
    engine_conf_sources(STR("UpdateLogFile /var/log/x\nDatabaseMirror a\nChecks 24\n"
                            "DatabaseCustomURL http://b/c.ndb\n"),
                        &t);
    assert_string_equal(buf, "DatabaseMirror a\nDatabaseCustomURL http://b/c.ndb\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_policy_wins_and_the_rest_stays),
        cmocka_unit_test(rendering_again_changes_nothing),
        cmocka_unit_test(values),
        cmocka_unit_test(sources),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
