/* Headers of signature databases and the names of their files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/cvd.h"

#define MD5   "0123456789abcdef0123456789ABCDEF"
#define FIRST "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5
#define WHOLE FIRST ":abcXYZ09+/:someone:1624388302"

/* The header padded as sigtool does it. */
static struct str padded(const char *text)
{
    static char buf[CVD_HEADER];
    size_t n = strlen(text);

    assert_true(n <= sizeof(buf));
    memset(buf, ' ', sizeof(buf));
    memcpy(buf, text, n);
    return (struct str){ buf, sizeof(buf) };
}

static void a_header_says_what_it_is(void **state)
{
    (void)state;
    struct cvd c;

    assert_int_equal(cvd_header(padded(WHOLE), &c), ERR_OK);
    assert_int_equal(c.version, 1);
    assert_int_equal(c.signatures, 13);
    assert_int_equal(c.level, 81);
    assert_int_equal(c.built, 1624388302);
    assert_string_equal(c.time, "22 Jun 2021 14-58 -0400");
    assert_string_equal(c.builder, "someone");
    assert_string_equal(c.sign, "abcXYZ09+/");
    assert_int_equal(c.md5[15], 0xef);
    assert_true(cvd_is_signed(&c));
}

static void an_old_header_is_dated_by_its_words(void **state)
{
    (void)state;
    struct cvd c;

    assert_int_equal(cvd_header(padded(FIRST ":X:someone"), &c), ERR_OK);
    assert_int_equal(c.built, 1624388280); /* 18:58 UTC */
    assert_false(cvd_is_signed(&c));
    assert_int_equal(
        cvd_header(padded("ClamAV-VDB:29 Feb 2024 00-30 +0100:7:1:1:" MD5 ":X:b"), &c),
        ERR_OK);
    assert_int_equal(c.built, 1709163000); /* 2024-02-28 23:30 UTC */
    assert_int_equal(
        cvd_header(padded("ClamAV-VDB:01 Mar 2100 00-00 +0000:7:1:1:" MD5 ":X:b"), &c),
        ERR_OK);
    assert_int_equal(c.built, 4107542400);
}

static void a_wrong_header_is_corrupt(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        "ClamAV-VDB",
        "ClamAV-VDB::::::::",
        "clamav-vdb:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:0:13:81:" MD5 ":X:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:-1:13:81:" MD5 ":X:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:4294967296:13:81:" MD5 ":X:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:0123:X:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X Y:b:1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X::1",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X:b:1:2",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X:b:99999999999999",
        "ClamAV-VDB:22 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X:b\t:1",
        "ClamAV-VDB:22 Jux 2021 14-58 -0400:1:13:81:" MD5 ":X:b",
        "ClamAV-VDB:32 Jun 2021 14-58 -0400:1:13:81:" MD5 ":X:b",
        "ClamAV-VDB:22 Jun 2021 24-58 -0400:1:13:81:" MD5 ":X:b",
        "ClamAV-VDB:22 Jun 2021 14-58:1:13:81:" MD5 ":X:b",
        "ClamAV-VDB:22 Jun 1969 14-58 -0400:1:13:81:" MD5 ":X:b",
    };
    struct cvd c = { .version = 9 };

    for (size_t i = 0; i < LEN(wrong); i++)
        assert_int_equal(cvd_header(padded(wrong[i]), &c), ERR_CORRUPT);
    assert_int_equal(cvd_header(STR(WHOLE), &c), ERR_CORRUPT); /* cut off */
    assert_int_equal(c.version, 9);
}

static void the_copy_within_has_no_digest(void **state)
{
    (void)state;
    struct cvd c;

    assert_int_equal(
        cvd_info(STR("ClamAV-VDB:22 Jun 2021 14-58 -0400:6:2:81:X:X:b:1624388302\nx:1"),
                 &c),
        ERR_OK);
    assert_int_equal(c.version, 6);
    assert_int_equal(c.built, 1624388302);
    assert_false(cvd_is_signed(&c));
    assert_int_equal(
        cvd_info(STR("ClamAV-VDB:22 Jun 2021 14-58 -0400:6:2:81:X:X:b:1624388302"), &c),
        ERR_CORRUPT); /* the line is not whole */
}

static void an_increment_says_where_it_leads(void **state)
{
    (void)state;
    uint32_t v = 7;

    assert_int_equal(cvd_diff_header(STR("ClamAV-Diff:5:830:\x1f\x8b"), &v), ERR_OK);
    assert_int_equal(v, 5);
    assert_int_equal(cvd_diff_header(STR("ClamAV-Diff:0:830:x"), &v), ERR_CORRUPT);
    assert_int_equal(cvd_diff_header(STR("ClamAV-Diff:6:x:x"), &v), ERR_CORRUPT);
    assert_int_equal(cvd_diff_header(STR("ClamAV-Diff:6:1:"), &v), ERR_CORRUPT);
    assert_int_equal(cvd_diff_header(STR("ClamAV-Diff:"), &v), ERR_CORRUPT);
    assert_int_equal(cvd_diff_header(STR("<html>"), &v), ERR_CORRUPT);
    assert_int_equal(v, 5);
}

static void names_are_taken_apart_and_put_together(void **state)
{
    (void)state;
    static const struct {
        const char *file, *name;
        enum cvd_kind kind;
        uint32_t version;
    } rows[] = {
        { "main.cvd", "main", CVD_DATABASE, 0 },
        { "daily.cld", "daily", CVD_LOCAL, 0 },
        { "own-rules.cud", "own-rules", CVD_UNSIGNED, 0 },
        { "daily-27890.cdiff", "daily", CVD_DIFF, 27890 },
        { "a-b-1.cdiff", "a-b", CVD_DIFF, 1 },
        { "daily-27890.cvd.sign", "daily", CVD_DATABASE_SIGN, 27890 },
        { "daily-27890.cdiff.sign", "daily", CVD_DIFF_SIGN, 27890 },
    };
    struct cvd_file f;
    char buf[CVD_FILE_MAX];

    for (size_t i = 0; i < LEN(rows); i++) {
        assert_true(cvd_file_name(str_of(rows[i].file), &f));
        assert_string_equal(f.name, rows[i].name);
        assert_int_equal(f.kind, rows[i].kind);
        assert_int_equal(f.version, rows[i].version);
        assert_true(cvd_file_print(&f, buf, sizeof(buf)));
        assert_string_equal(buf, rows[i].file);
    }
    assert_false(cvd_file_print(&f, buf, 10));
}

static void other_names_are_none(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        ".cvd",
        "../main.cvd",
        "Main.cvd",
        "main.cvd\n",
        "main.CVD",
        "a_b.cvd",
        "daily.cdiff",
        "-.cvd",
        "daily-.cdiff",
        "daily-0.cdiff",
        "daily-01.cdiff",
        "-1.cdiff",
        "daily-4294967296.cdiff",
        "main.cvd.sign",
        "main.cvd.part",
        "0123456789abcdef0123456789abcdef.cvd",
        "daily-1.cdiff.sign.daily-1.cdiff.sign.daily-1.cdiff.sign.0123456789.cvd",
    };
    struct cvd_file f;

    for (size_t i = 0; i < LEN(wrong); i++)
        assert_false(cvd_file_name(str_of(wrong[i]), &f));
    assert_false(cvd_file_name((struct str){ "a\0.cvd", 6 }, &f));
}

static void files_of_ones_own_have_endings_that_the_engine_loads(void **state)
{
    (void)state;
    static const char *const good[] = { "own.ndb", "own.hdb",   "own.hsb", "a_b-c.1.ldb",
                                        "own.cud", "rules.yar", "0.yara",  "own.ign2" };
    static const char *const wrong[] = {
        "own",
        "own.",
        ".ndb",
        "own.exe",
        "own.cvd",
        "own.cld",
        "main.cud",
        "daily.ndb",
        "../a.ndb",
        "a/b.ndb",
        "Own.ndb",
        "a b.ndb",
        "a\n.ndb",
        "_a.ndb",
        "-a.ndb",
        "",
        "own.cbc",
        "manifest.json",
        "0123456789012345678901234567890123456789012345678901234567890.ndb",
    };

    for (size_t i = 0; i < LEN(good); i++)
        assert_true(cvd_custom_name(str_of(good[i])));
    for (size_t i = 0; i < LEN(wrong); i++)
        assert_false(cvd_custom_name(str_of(wrong[i])));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_says_what_it_is),
        cmocka_unit_test(an_old_header_is_dated_by_its_words),
        cmocka_unit_test(a_wrong_header_is_corrupt),
        cmocka_unit_test(the_copy_within_has_no_digest),
        cmocka_unit_test(an_increment_says_where_it_leads),
        cmocka_unit_test(names_are_taken_apart_and_put_together),
        cmocka_unit_test(other_names_are_none),
        cmocka_unit_test(files_of_ones_own_have_endings_that_the_engine_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
