/* Where the daemon's own control group lies, from what the kernel shows of the mounts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sys/supervisor/cgroup.h"

static const struct row {
    const char *name;
    const char *mounts, *member;
    const char *path; /* NULL: not found */
} rows[] = {
    { "version 2 alone",
      "23 1 0:20 / / rw - ext4 /dev/vda rw\n"
      "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n",
      "/system.slice/redoubt.service", "/sys/fs/cgroup/system.slice/redoubt.service" },
    { "version 2 beside version 1",
      "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
      "38 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
      "/lab/node-a", "/sys/fs/cgroup/unified/lab/node-a" },
    { "the root group itself", "38 31 0:31 / /cg rw - cgroup2 cgroup2 rw\n", "/", "/cg" },
    { "a mount that shows a part of the tree",
      "38 31 0:31 /lab /cg rw - cgroup2 cgroup2 rw\n", "/lab/node-a", "/cg/node-a" },
    { "a mount that shows exactly our group",
      "38 31 0:31 /lab /cg rw - cgroup2 cgroup2 rw\n", "/lab", "/cg" },
    { "a mount of another part is skipped",
      "38 31 0:31 /lab-2 /other rw - cgroup2 cgroup2 rw\n"
      "39 31 0:31 / /cg rw - cgroup2 cgroup2 rw\n",
      "/lab/node-a", "/cg/lab/node-a" },
    { "a part whose name only begins the same is another part",
      "38 31 0:31 /la /cg rw - cgroup2 cgroup2 rw\n", "/lab/node-a", NULL },
    { "only version 1", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
      "/", NULL },
    { "a cgroup2 in an optional field is not a type",
      "32 31 0:29 / /x rw cgroup2 - tmpfs cgroup2 rw\n", "/", NULL },
    { "no mounts at all", "", "/", NULL },
    { "lines cut short", "38\n38 31 0:31 / /cg\n\n38 31 0:31 / /cg rw -", "/", NULL },
};

static void row_holds(void **state)
{
    const struct row *r = *state;
    char path[CGROUP_PATH_BYTES] = "untouched";
    bool found =
        cgroup_of_mounts(str_of(r->mounts), str_of(r->member), path, sizeof(path));

    assert_int_equal(found, r->path != NULL);
    if (r->path)
        assert_string_equal(path, r->path);
}

static void a_path_that_does_not_fit_is_not_found(void **state)
{
    char path[8];

    (void)state;
    assert_false(cgroup_of_mounts(STR("38 31 0:31 / /cg rw - cgroup2 cgroup2 rw\n"),
                                  STR("/lab/node-a"), path, sizeof(path)));
}

static void the_member_is_the_line_of_version_2(void **state)
{
    struct str m = cgroup_member(STR("9:name=systemd:/x\n0::/lab/node-a\n1:cpu:/\n"));

    (void)state;
    assert_true(str_is(m, "/lab/node-a"));
    assert_null(cgroup_member(STR("9:name=systemd:/x\n")).p);
    assert_null(cgroup_member(STR("0::\n")).p);
    assert_null(cgroup_member(STR("")).p);
}

int main(void)
{
    struct CMUnitTest tests[LEN(rows) + 2];
    size_t n = 0;

    for (; n < LEN(rows); n++)
        tests[n] = (struct CMUnitTest){ .name = rows[n].name,
                                        .test_func = row_holds,
                                        .initial_state = (void *)(uintptr_t)&rows[n] };
    tests[n++] =
        (struct CMUnitTest)cmocka_unit_test(a_path_that_does_not_fit_is_not_found);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(the_member_is_the_line_of_version_2);
    return cmocka_run_group_tests_name("cgroup", tests, NULL, NULL);
}
