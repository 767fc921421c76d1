/* A child that may block: what it says is heard, and it is started again whatever it does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/helper/helper.h"

enum { LIMIT_MS = 20000 };

static struct {
    sd_event *loop;
    struct helper *h;
    uint32_t said, ended;
    char last[100], why[100];
    int shared;
} w;

static void said(void *arg, struct str packet)
{
    (void)arg;
    w.said++;
    (void)snprintf(w.last, sizeof(w.last), "%.*s", (int)packet.n, packet.p);
}

static void ended(void *arg, const char *why)
{
    (void)arg;
    w.ended++;
    (void)snprintf(w.why, sizeof(w.why), "%s", why);
}

static void start(const char *program, const char *script, uint32_t silence_ms)
{
    static const char *argv[4];
    struct err_info info;
    const struct helper_callbacks cb = { said, ended, NULL };
    const struct helper_options o = { .program = program,
                                      .argv = argv,
                                      .shared_fd = w.shared,
                                      .backoff_ms = 10,
                                      .backoff_max_ms = 40,
                                      .silence_ms = silence_ms };

    argv[0] = "sh";
    argv[1] = "-c";
    argv[2] = script;
    argv[3] = NULL;
    assert_int_equal(helper_new(&w.h, w.loop, &o, &cb, &info), ERR_OK);
}

static void run_until(const uint32_t *count, uint32_t n)
{
    for (int ms = 0; *count < n && ms < LIMIT_MS; ms += 10)
        assert_true(sd_event_run(w.loop, 10000) >= 0);
    assert_true(*count >= n);
}

static int set_up(void **state)
{
    sigset_t set;

    (void)state;
    (void)memset(&w, 0, sizeof(w));
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    w.shared = memfd_create("shared", MFD_CLOEXEC);
    return w.shared < 0 || sd_event_new(&w.loop) < 0;
}

static int tear_down(void **state)
{
    (void)state;
    helper_free(w.h);
    sd_event_unref(w.loop);
    (void)close(w.shared);
    return 0;
}

static void what_it_says_is_heard_and_it_hears(void **state)
{
    (void)state;
    start("/bin/sh", "echo hello >&3; head -c 5 <&3 >&3; exec sleep 60", 0);
    run_until(&w.said, 1);
    assert_string_equal(w.last, "hello\n");
    assert_int_equal(helper_say(w.h, STR("again")), ERR_OK);
    run_until(&w.said, 2);
    assert_string_equal(w.last, "again");
    assert_true(helper_pid(w.h) > 0);
}

static void it_has_what_is_shared_and_nothing_else(void **state)
{
    (void)state;
    assert_int_equal(write(w.shared, "page", 4), 4);
    start("/bin/sh",
          "head -c 4 /proc/self/fd/4 >&3; exec >&3; ls /proc/$$/fd; exec sleep 60", 0);
    run_until(&w.said, 2);
    assert_string_equal(w.last, "0\n1\n2\n3\n4\n");
}

static void one_that_ends_is_started_again(void **state)
{
    (void)state;
    start("/bin/sh", "echo $$ >&3; exit 7", 0);
    run_until(&w.ended, 3);
    assert_string_equal(w.why, "it ended with status 7");
    assert_true(w.said >= 3 && helper_restarts(w.h) >= 3); /* last words are heard */
}

static void one_that_is_killed_is_started_again(void **state)
{
    (void)state;
    start("/bin/sh", "echo up >&3; exec sleep 60", 0);
    run_until(&w.said, 1);
    assert_int_equal(kill(helper_pid(w.h), SIGKILL), 0);
    run_until(&w.said, 2);
    assert_string_equal(w.why, "it ended with signal 9");
}

static void one_that_falls_silent_is_replaced(void **state)
{
    (void)state;
    start("/bin/sh", "echo up >&3; exec sleep 60", 50);
    run_until(&w.said, 2);
    assert_string_equal(w.why, "it ended with signal 9");
}

static void one_that_hangs_up_is_replaced(void **state)
{
    (void)state;
    start("/bin/sh", "exec 3>&-; exec sleep 60", 0);
    run_until(&w.ended, 2);
    assert_string_equal(w.why, "it ended with signal 9");
}

static void one_that_is_not_there_is_tried_again(void **state)
{
    (void)state;
    start("/nonexistent/program", "", 0);
    run_until(&w.ended, 2);
    assert_non_null(strstr(w.why, "could not be started: No such file"));
    assert_int_equal(helper_say(w.h, STR("x")), ERR_CLOSED);
    assert_int_equal(helper_pid(w.h), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
        TEST(what_it_says_is_heard_and_it_hears),
        TEST(it_has_what_is_shared_and_nothing_else),
        TEST(one_that_ends_is_started_again),
        TEST(one_that_is_killed_is_started_again),
        TEST(one_that_falls_silent_is_replaced),
        TEST(one_that_hangs_up_is_replaced),
        TEST(one_that_is_not_there_is_tried_again),
    };

    return cmocka_run_group_tests_name("helper", tests, NULL, NULL);
}
