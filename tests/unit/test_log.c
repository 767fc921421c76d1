/* The log: form of a line, levels, the bound of its rate, a full pipe, the ring. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "sys/log/log.h"

static int saved = -1, reader = -1;
static char seen[65536];

/* stderr becomes a pipe of ours. */
static int capture(void **state)
{
    int p[2];

    (void)state;
    assert_int_equal(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
    saved = dup(STDERR_FILENO);
    assert_true(saved >= 0 && dup2(p[1], STDERR_FILENO) >= 0);
    /* The writing end blocks, as a real pipe does: the log must not rely on O_NONBLOCK. */
    assert_int_equal(fcntl(STDERR_FILENO, F_SETFL, 0), 0);
    assert_int_equal(close(p[1]), 0);
    reader = p[0];
    return 0;
}

static int release(void **state)
{
    (void)state;
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    assert_int_equal(close(saved), 0);
    assert_int_equal(close(reader), 0);
    return 0;
}

static const char *written(void)
{
    size_t n = 0;
    ssize_t got;

    while (n < sizeof(seen) - 1 &&
           (got = read(reader, seen + n, sizeof(seen) - 1 - n)) > 0)
        n += (size_t)got;
    seen[n] = '\0';
    return seen;
}

static void a_line_has_time_level_program_and_fields(void **state)
{
    (void)state;
    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_STDERR);
    log_event(LOG_LEVEL_WARNING, "node_move", log_str("from", "ready"),
              log_u64("epoch", 18446744073709551615u), log_i64("skew_ms", -3),
              log_bool("paused", true), log_str("why", "a \"b\"\nc"),
              log_str("none", NULL));
    const char *line = written();

    assert_int_equal(line[4], '-');
    assert_int_equal(line[23], 'Z');
    assert_string_equal(line + 24, " warning tester: node_move from=ready "
                                   "epoch=18446744073709551615 skew_ms=-3 paused=yes "
                                   "why=\"a \\\"b\\\" c\" none=\"\"\n");
    log_event(LOG_LEVEL_INFO, "bare");
    assert_non_null(strstr(written(), " info tester: bare\n"));
}

static void the_level_filters_and_the_ring_keeps_all(void **state)
{
    (void)state;
    static char ring[LOG_RING_LINES * LOG_LINE_BYTES];
    FILE *f = fmemopen(ring, sizeof(ring), "w");

    log_start("tester", LOG_LEVEL_WARNING, LOG_TARGET_STDERR);
    log_event(LOG_LEVEL_DEBUG, "quiet", log_u64("n", 1));
    assert_string_equal(written(), "");
    log_set_level(LOG_LEVEL_DEBUG);
    log_event(LOG_LEVEL_DEBUG, "quiet", log_u64("n", 2));
    assert_non_null(strstr(written(), "quiet n=2"));
    log_ring_dump(f);
    assert_int_equal(fclose(f), 0);
    assert_non_null(strstr(ring, "quiet n=1"));
    assert_true(strstr(ring, "quiet n=1") < strstr(ring, "quiet n=2"));
}

static void count_lines(void *arg, const char *line)
{
    (void)line;
    ++*(uint32_t *)arg;
}

static void a_storm_is_bounded_and_told(void **state)
{
    (void)state;
    uint32_t lines = 0, kept = 0;

    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_STDERR);
    for (uint32_t i = 0; i < 2 * LOG_RING_LINES; i++)
        log_event(LOG_LEVEL_INFO, "storm", log_u64("n", i));
    log_event(LOG_LEVEL_INFO, "other");
    written();
    for (const char *p = seen; (p = strstr(p, "storm n=")); p++)
        lines++;
    assert_int_equal(lines, LOG_BURST);
    assert_non_null(strstr(seen, ": other\n"));
    log_ring_each(count_lines, &kept);
    assert_int_equal(kept, LOG_RING_LINES);
}

static void a_full_pipe_loses_lines_but_never_time(void **state)
{
    (void)state;
    static const char junk[4096];
    char event[16];

    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_STDERR);
    assert_int_equal(fcntl(STDERR_FILENO, F_SETFL, O_NONBLOCK), 0);
    while (write(STDERR_FILENO, junk, sizeof(junk)) > 0)
        ;
    assert_int_equal(fcntl(STDERR_FILENO, F_SETFL, 0), 0);
    alarm(5); /* a log that blocks would hang here for ever */
    for (int i = 0; i < 5; i++) {
        (void)snprintf(event, sizeof(event), "full_%d", i);
        log_event(LOG_LEVEL_INFO, event);
    }
    alarm(0);
    while (read(reader, seen, sizeof(seen)) > 0)
        ;
    log_event(LOG_LEVEL_INFO, "after");
    assert_non_null(strstr(written(), ": after lost=5\n"));
}

static void a_long_line_is_cut(void **state)
{
    (void)state;
    char value[2000];

    memset(value, 'x', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_STDERR);
    log_event(LOG_LEVEL_INFO, "long", log_str("v", value));
    written();
    assert_true(strlen(seen) < LOG_LINE_BYTES);
    assert_int_equal(seen[strlen(seen) - 1], '\n');
}

/* A journal of our own, in a mount namespace of our own. */
static int open_journal(void)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX,
                              .sun_path = "/run/systemd/journal/socket" };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/run", "tmpfs", 0, "size=64k") != 0)
        return -1;
    assert_int_equal(mkdir("/run/systemd", 0755), 0);
    assert_int_equal(mkdir("/run/systemd/journal", 0755), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    return fd;
}

static void the_journal_gets_fields(void **state)
{
    (void)state;
    int journal = open_journal();

    if (journal < 0)
        skip(); /* needs root */
    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_JOURNAL);
    log_event(LOG_LEVEL_ERROR, "node_move", log_str("why", "a\nPRIORITY=0"),
              log_u64("epoch", 41));
    ssize_t n = read(journal, seen, sizeof(seen) - 1);

    assert_true(n > 0);
    seen[n] = '\0';
    /* A newline in a value must not make a field of its own. */
    assert_string_equal(seen, "PRIORITY=3\nSYSLOG_IDENTIFIER=tester\n"
                              "MESSAGE=node_move why=\"a PRIORITY=0\" epoch=41\n"
                              "REDOUBT_EVENT=node_move\nREDOUBT_WHY=a PRIORITY=0\n"
                              "REDOUBT_EPOCH=41\n");
    /* Nobody reads any more: the queue fills, and the program goes on. */
    alarm(5);
    for (int i = 0; i < 2000; i++) {
        char event[16];

        (void)snprintf(event, sizeof(event), "event_%d", i);
        log_event(LOG_LEVEL_INFO, event);
    }
    alarm(0);
    assert_int_equal(close(journal), 0);
    log_start("tester", LOG_LEVEL_INFO, LOG_TARGET_STDERR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_line_has_time_level_program_and_fields, capture,
                                        release),
        cmocka_unit_test_setup_teardown(the_level_filters_and_the_ring_keeps_all, capture,
                                        release),
        cmocka_unit_test_setup_teardown(a_storm_is_bounded_and_told, capture, release),
        cmocka_unit_test_setup_teardown(a_full_pipe_loses_lines_but_never_time, capture,
                                        release),
        cmocka_unit_test_setup_teardown(a_long_line_is_cut, capture, release),
        cmocka_unit_test(the_journal_gets_fields),
    };

    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
