/* The list of what is published: bounded, sorted, and no path that leads anywhere else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/publication.h"

#define A    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define B    "00000000000000000000000000000000000000000000000000000000000000ff"
#define HEAD "redoubt-publication 2 "

static struct publication_entry list[4];
static struct publication_head head;

static enum err parse(const char *text)
{
    return publication_parse(str_of(text), &head, list, LEN(list), NULL);
}

static void a_list_says_which_blob_is_where(void **state)
{
    (void)state;
    assert_int_equal(
        parse(HEAD "9 2\n" A " 12 1700000000 package:x-1 private/packages/x/1.0/x.deb\n" B
                   " 0 1 signatures public/sig/main.cvd\n"),
        ERR_OK);
    assert_int_equal(head.serial, 9);
    assert_int_equal(head.count, 2);
    assert_true(str_is(list[0].path, "private/packages/x/1.0/x.deb"));
    assert_true(str_is(list[0].blob, A));
    assert_true(str_is(list[0].owner, "package:x-1"));
    assert_int_equal(list[0].size, 12);
    assert_int_equal(list[0].mtime, 1700000000);
    assert_true(str_is(list[1].blob, B));
}

static void nothing_published_is_a_list(void **state)
{
    (void)state;
    assert_int_equal(parse(HEAD "1 0\n"), ERR_OK);
    assert_int_equal(head.count, 0);
}

static void what_is_not_of_the_shape_is_corrupt(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        HEAD,
        HEAD "1\n",
        HEAD "1 1\n",
        HEAD "1 -1\n",
        HEAD "9007199254740992 0\n",
        "redoubt-publication 1 1 0\n",
        HEAD "1 0\n\n",
        HEAD "1 1\n" A " 1 1 own public/a",       /* cut off */
        HEAD "1 1\n" A " 1 1 own public/a\nrest", /* more than it says */
        HEAD "1 1\n" A " 1 own public/a\n",
        HEAD "1 1\n" A " -1 1 own public/a\n",
        HEAD "1 1\n" A " 17592186044417 1 own public/a\n",
        HEAD "1 1\n" A " 1 1 public/a\n", /* no owner */
        HEAD "1 1\n" A " 1 1 Own public/a\n",
        HEAD "1 1\n" A " 1 1  public/a\n",
        HEAD "1 1\nAAAA 1 1 own public/a\n",
        HEAD "1 2\n" A " 1 1 own public/b\n" A " 1 1 own public/a\n", /* not sorted */
        HEAD "1 2\n" A " 1 1 own public/a\n" A " 1 1 own public/a\n", /* twice */
        HEAD "1 2\n" A " 1 1 own public/a\n" B " 1 1 own public/a/b\n",
        HEAD "1 3\n" A " 1 1 own public/a\n" A " 1 1 own public/a-b\n" B
             " 1 1 own public/a/b/c\n",
    };

    for (size_t i = 0; i < LEN(bad); i++)
        if (parse(bad[i]) != ERR_CORRUPT)
            fail_msg("not refused: %s", bad[i]);
}

static void more_than_there_is_room_for_is_refused(void **state)
{
    (void)state;
    struct err_info info;

    assert_int_equal(
        publication_parse(str_of(HEAD "1 5\n"), &head, list, LEN(list), &info),
        ERR_LIMIT);
}

static void a_path_that_could_lead_elsewhere_is_refused(void **state)
{
    (void)state;
    static const char *const good[] = { "public/a", "private/a-b/1.0~rc1+2/x_y.deb",
                                        "public/1/2/3/4/5/6/7/8" };
    static const char *const bad[] = {
        "",
        "public",
        "public/",
        "/public/a",
        "public//a",
        "public/../a",
        "public/./a",
        "public/.hidden",
        "public/a/",
        "publicx/a",
        "secret/a",
        "public/A",
        "public/a b",
        "public/-a",
        "public/a\\b",
        "public/a\nb",
        "public/\xc3\xa4",
        "public/1/2/3/4/5/6/7/8/9",
        "../public/a",
    };
    char name[PUBLICATION_NAME_MAX + 16] = "public/", path[512];

    for (size_t i = 0; i < LEN(good); i++)
        assert_true(publication_path_ok(str_of(good[i])));
    for (size_t i = 0; i < LEN(bad); i++)
        if (publication_path_ok(str_of(bad[i])))
            fail_msg("not refused: %s", bad[i]);
    memset(name + 7, 'x', PUBLICATION_NAME_MAX);
    assert_true(publication_path_ok(str_of(name)));
    name[7 + PUBLICATION_NAME_MAX] = 'x';
    assert_false(publication_path_ok(str_of(name)));
    (void)snprintf(path, sizeof(path), "public/%0100d/%0100d/%0100d/%090d", 0, 0, 0, 0);
    assert_int_equal(strlen(path), PUBLICATION_PATH_BYTES - 1);
    assert_true(publication_path_ok(str_of(path)));
    path[PUBLICATION_PATH_BYTES - 1] = '0';
    assert_false(publication_path_ok(str_of(path)));
}

static void a_link_leads_from_its_folder_to_the_blob(void **state)
{
    (void)state;
    static const struct {
        const char *path, *link;
    } rows[] = { { "public/a", "../../../blob/" A },
                 { "private/packages/x/1.0/x.deb", "../../../../../../blob/" A },
                 { "public/1/2/3/4/5/6/7/8", "../../../../../../../../../../blob/" A } };
    char link[PUBLICATION_LINK_BYTES];

    for (size_t i = 0; i < LEN(rows); i++) {
        publication_link(link, &(struct publication_entry){ .path = str_of(rows[i].path),
                                                            .blob = STR(A) });
        assert_string_equal(link, rows[i].link);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_list_says_which_blob_is_where),
        cmocka_unit_test(nothing_published_is_a_list),
        cmocka_unit_test(what_is_not_of_the_shape_is_corrupt),
        cmocka_unit_test(more_than_there_is_room_for_is_refused),
        cmocka_unit_test(a_path_that_could_lead_elsewhere_is_refused),
        cmocka_unit_test(a_link_leads_from_its_folder_to_the_blob),
    };

    return cmocka_run_group_tests_name("publication", tests, NULL, NULL);
}
