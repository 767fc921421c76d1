/*
 * app/ctl/installer, app/ctl/run: a package packed anew, and the script beside it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/ctl/installer.h"
#include "app/ctl/run.h"

static struct {
    char folder[64], good[128], other[128];
    struct err_info why;
} t;

static void shell(const char *text, char *out, size_t size)
{
    const char *const argv[] = { "sh", "-ec", text, NULL };
    struct text told;

    text_init(&told, out, size);
    if (run_program(argv, &told, &t.why) != ERR_OK)
        fail_msg("%s: %s", text, t.why.what);
    assert_false(told.cut);
}

/* A package of this name, as small as one can be. */
static void make_package(const char *name, char path[128])
{
    char text[1024], none[64];

    (void)snprintf(path, 128, "%s/%s.deb", t.folder, name);
    (void)snprintf(
        text, sizeof(text),
        "d=%s/tree; mkdir -p $d/DEBIAN $d/usr/share/x; echo x >$d/usr/share/x/file\n"
        "printf 'Package: %s\\nVersion: 1.2-3\\nArchitecture: all\\nMaintainer: x "
        "<x@x>\\nDescription: x\\n' >$d/DEBIAN/control\n"
        "dpkg-deb --root-owner-group --build $d %s >/dev/null\nrm -r $d\n",
        t.folder, name, path);
    shell(text, none, sizeof(none));
}

static int make_packages(void **state)
{
    (void)state;
    (void)snprintf(t.folder, sizeof(t.folder), "/tmp/test-installer.XXXXXX");
    assert_non_null(mkdtemp(t.folder));
    assert_int_equal(setenv("TMPDIR", t.folder, 1), 0);
    make_package("redoubt-agent", t.good);
    make_package("something-else", t.other);
    return 0;
}

static int remove_packages(void **state)
{
    (void)state;
    assert_int_equal(unlink(t.good), 0);
    assert_int_equal(unlink(t.other), 0);
    return rmdir(t.folder); /* nothing else is left in it */
}

static const struct installer_brings brings = { "redoubt.example:13299",
                                                "rdt1.id.secret.digest", "PEM\n" };

static void the_package_brings_what_enrolment_needs_for_root_only(void **state)
{
    struct installer n;
    char text[1024], told[4096];
    struct stat st;

    (void)state;
    (void)umask(0);
    assert_int_equal(installer_begin(&n, t.good, &t.why), ERR_OK);
    assert_string_equal(n.version, "1.2-3");
    assert_string_equal(n.platform, "all");
    assert_int_equal(stat(n.folder, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(installer_pack(&n, &brings, &t.why), ERR_OK);
    (void)snprintf(text, sizeof(text), "dpkg-deb -c '%s' | awk '{print $1, $2, $6}'",
                   n.package);
    shell(text, told, sizeof(told));
    assert_non_null(strstr(told, "-rw------- root/root ./etc/redoubt/enrolment.json\n"));
    assert_non_null(strstr(told, "drwxr-xr-x root/root ./etc/redoubt/\n"));
    assert_non_null(strstr(told, "./usr/share/x/file\n"));
    (void)snprintf(
        text, sizeof(text),
        "dpkg-deb --fsys-tarfile '%s' | tar -xO ./etc/redoubt/enrolment.json | "
        "tr -d '\\n'; sha256sum <'%s'",
        n.package, n.package);
    shell(text, told, sizeof(told));
    assert_non_null(strstr(told, "{ \"server\": \"redoubt.example:13299\", \"token\": "
                                 "\"rdt1.id.secret.digest\", \"ca\": \"PEM\\n\"}"));
    assert_non_null(strstr(told, n.digest.hex));
    installer_end(&n);
    installer_end(&n); /* does nothing */
}

static void the_script_is_whole_or_does_nothing(void **state)
{
    struct installer n;
    char text[2048], told[8192];

    (void)state;
    assert_int_equal(installer_begin(&n, t.good, &t.why), ERR_OK);
    assert_int_equal(installer_pack(&n, &brings, &t.why), ERR_OK);
    assert_int_equal(
        installer_script(&n, "sha256//pin=", "https://r:8061/x?a=1&b=2';id;'", &t.why),
        ERR_INVALID);
    assert_int_equal(
        installer_script(&n, "sha256//pin=", "https://r:8061/x?a=1&b=2", &t.why), ERR_OK);
    (void)snprintf(text, sizeof(text), "sh -n '%s'; cat '%s'", n.script, n.script);
    shell(text, told, sizeof(told));
    assert_non_null(strstr(told, "\nurl='https://r:8061/x?a=1&b=2'\n"));
    assert_non_null(strstr(told, "\npin='sha256//pin='\n"));
    assert_non_null(strstr(told, n.digest.hex));
    /* Cut off anywhere before its last line, it runs no program: PATH leads nowhere. */
    (void)snprintf(
        text, sizeof(text),
        "i=1; n=$(wc -l <'%s'); while [ $i -lt $n ]; do\n"
        "head -n $i '%s' >'%s/cut'; PATH= /bin/sh '%s/cut' 2>&1 | "
        "grep -v -e Syntax -e Unterminated && exit 1; i=$((i + 1)); done; true",
        n.script, n.script, n.folder, n.folder);
    shell(text, told, sizeof(told));
    installer_end(&n);
}

static void what_is_no_package_of_the_agent_is_refused(void **state)
{
    struct installer n;
    char path[128];

    (void)state;
    assert_int_equal(installer_begin(&n, t.other, &t.why), ERR_INVALID);
    assert_non_null(strstr(t.why.what, "something-else"));
    installer_end(&n);
    (void)snprintf(path, sizeof(path), "%s/none.deb", t.folder);
    assert_int_equal(installer_begin(&n, path, &t.why), ERR_INVALID);
    installer_end(&n);
    assert_int_equal(installer_begin(&n, "/etc/hosts", &t.why), ERR_INVALID);
    installer_end(&n);
}

static void a_program_that_fails_says_why(void **state)
{
    static const char *const bad[] = { "sh", "-c", "echo first; echo why >&2; exit 3",
                                       NULL },
                             *const none[] = { "/nonexistent", NULL },
                             *const killed[] = { "sh", "-c", "kill -9 $$", NULL },
                             *const much[] = { "head", "-c", "300000", "/dev/zero",
                                               NULL };
    char buf[32];
    struct text out;

    (void)state;
    text_init(&out, buf, sizeof(buf));
    assert_int_equal(run_program(bad, &out, &t.why), ERR_IO);
    assert_string_equal(buf, "first\n");
    assert_string_equal(t.why.what, "sh: why");
    assert_int_equal(run_program(none, NULL, &t.why), ERR_IO);
    assert_non_null(strstr(t.why.what, "No such file"));
    assert_int_equal(run_program(killed, NULL, &t.why), ERR_IO);
    text_init(&out, buf, sizeof(buf));
    assert_int_equal(run_program(much, &out, &t.why), ERR_OK);
    assert_true(out.cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_package_brings_what_enrolment_needs_for_root_only),
        cmocka_unit_test(the_script_is_whole_or_does_nothing),
        cmocka_unit_test(what_is_no_package_of_the_agent_is_refused),
        cmocka_unit_test(a_program_that_fails_says_why),
    };

    return cmocka_run_group_tests_name("installer", tests, make_packages,
                                       remove_packages);
}
