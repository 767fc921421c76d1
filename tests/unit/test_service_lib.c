/* libredoubt-service: the contract with a service, seen from the service. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "redoubt/service.h"

static void set_number(const char *name, int v)
{
    char text[16];

    (void)snprintf(text, sizeof(text), "%d", v);
    assert_int_equal(setenv(name, text, 1), 0);
}

/* A service with a role pipe; *tell is the daemon's end. */
static struct redoubt_service *with_role(int *tell)
{
    int p[2];

    assert_int_equal(pipe(p), 0);
    set_number("REDOUBT_ROLE_FD", p[0]);
    struct redoubt_service *s = redoubt_service_start(0);

    assert_non_null(s);
    *tell = p[1];
    return s;
}

static void say(int fd, const char *text)
{
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void by_hand_there_is_no_role_and_no_lease(void **state)
{
    struct redoubt_service *s = redoubt_service_start(0);

    (void)state;
    assert_non_null(s);
    assert_int_equal(redoubt_service_read_role(s, NULL), REDOUBT_ROLE_NONE);
    assert_int_equal(redoubt_service_role_fd(s), -1);
    assert_false(redoubt_service_lease_held(s, NULL));
    assert_int_equal(redoubt_service_ready(s), 0);
    assert_int_equal(redoubt_service_watchdog_period_ms(s), 0);
    assert_string_equal(redoubt_service_name(s), "");
    redoubt_service_stop(s);
}

static void standalone_holds_the_lease_only_without_a_page(void **state)
{
    struct redoubt_service *s = redoubt_service_start(REDOUBT_STANDALONE);
    uint64_t epoch = 9;

    (void)state;
    assert_true(redoubt_service_lease_held(s, &epoch));
    assert_int_equal(epoch, 0);
    redoubt_service_stop(s);
}

static void the_latest_role_counts(void **state)
{
    int tell;
    struct redoubt_service *s = with_role(&tell);
    uint64_t epoch = 0;

    (void)state;
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_NONE);
    say(tell, "active 41\n");
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_ACTIVE);
    assert_int_equal(epoch, 41);
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_NONE);
    say(tell, "standby\nactive 42\nstandby\n");
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_STANDBY);
    say(tell, "active 4");
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_NONE);
    say(tell, "3\n");
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_ACTIVE);
    assert_int_equal(epoch, 43);
    (void)close(tell);
    assert_int_equal(redoubt_service_read_role(s, &epoch), REDOUBT_ROLE_GONE);
    redoubt_service_stop(s);
}

static void lines_of_another_version_are_skipped(void **state)
{
    static const char *const strange[] = {
        "active\n",    "active \n",       "active x\n", "active 18446744073709551616\n",
        "standby 1\n", "maintenance 3\n", "\n",         "ACTIVE 1\n",
    };
    char longer[200];
    int tell;
    struct redoubt_service *s = with_role(&tell);

    (void)state;
    for (size_t i = 0; i < sizeof(strange) / sizeof(strange[0]); i++)
        say(tell, strange[i]);
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    memcpy(longer, "standby", 7);
    say(tell, longer);
    say(tell, "\n");
    assert_int_equal(redoubt_service_read_role(s, NULL), REDOUBT_ROLE_NONE);
    say(tell, "standby\n");
    assert_int_equal(redoubt_service_read_role(s, NULL), REDOUBT_ROLE_STANDBY);
    (void)close(tell);
    redoubt_service_stop(s);
}

static void a_child_does_not_inherit_the_contract(void **state)
{
    int p[2];

    (void)state;
    assert_int_equal(pipe(p), 0);
    set_number("REDOUBT_ROLE_FD", p[0]);
    assert_int_equal(setenv("REDOUBT_SERVICE", "web", 1), 0);
    assert_int_equal(setenv("REDOUBT_NODE", "node-a", 1), 0);
    assert_int_equal(setenv("WATCHDOG_USEC", "3000000", 1), 0);
    set_number("WATCHDOG_PID", getpid());
    struct redoubt_service *s = redoubt_service_start(0);

    assert_non_null(s);
    assert_string_equal(redoubt_service_name(s), "web");
    assert_string_equal(redoubt_service_node(s), "node-a");
    assert_int_equal(redoubt_service_watchdog_period_ms(s), 1000);
    assert_int_equal(fcntl(p[0], F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    assert_null(getenv("REDOUBT_ROLE_FD"));
    assert_null(getenv("REDOUBT_SERVICE"));
    assert_null(getenv("WATCHDOG_PID"));
    (void)close(p[1]);
    redoubt_service_stop(s);
}

static void the_watchdog_of_another_process_is_not_ours(void **state)
{
    (void)state;
    assert_int_equal(setenv("WATCHDOG_USEC", "3000000", 1), 0);
    set_number("WATCHDOG_PID", getpid() + 1);
    struct redoubt_service *s = redoubt_service_start(0);

    assert_int_equal(redoubt_service_watchdog_period_ms(s), 0);
    redoubt_service_stop(s);
}

static void a_broken_environment_is_refused(void **state)
{
    int p[2];

    (void)state;
    assert_int_equal(setenv("REDOUBT_ROLE_FD", "nine", 1), 0);
    assert_null(redoubt_service_start(0));
    assert_int_equal(errno, EINVAL);
    assert_int_equal(setenv("REDOUBT_ROLE_FD", "1000", 1), 0);
    assert_null(redoubt_service_start(0));
    assert_int_equal(errno, EBADF);
    assert_int_equal(pipe(p), 0);
    set_number("REDOUBT_LEASE_FD", p[0]);
    assert_null(redoubt_service_start(REDOUBT_STANDALONE));
    assert_int_equal(errno, EPROTO);
    (void)close(p[1]);
    assert_int_equal(setenv("NOTIFY_SOCKET", "relative", 1), 0);
    assert_null(redoubt_service_start(0));
    assert_int_equal(errno, EINVAL);
}

static void expect(int fd, const char *text)
{
    char buf[2048];
    ssize_t n = recv(fd, buf, sizeof(buf) - 1, MSG_DONTWAIT);

    assert_true(n >= 0);
    buf[n] = '\0';
    assert_string_equal(buf, text);
}

static void messages_are_those_of_sd_notify(void **state)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    char name[64], metrics[16 + 1002] = "REDOUBT_METRICS=", *numbers = metrics + 16;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int n = snprintf(name, sizeof(name), "@redoubt-test-%d", (int)getpid());

    (void)state;
    memcpy(a.sun_path + 1, name + 1, (size_t)n - 1);
    assert_int_equal(
        bind(fd, (struct sockaddr *)&a,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n)),
        0);
    assert_int_equal(setenv("NOTIFY_SOCKET", name, 1), 0);
    struct redoubt_service *s = redoubt_service_start(0);

    assert_non_null(s);
    assert_int_equal(redoubt_service_ready(s), 0);
    expect(fd, "READY=1");
    assert_int_equal(redoubt_service_status(s, "%d devices\nREADY=1", 5), 0);
    expect(fd, "STATUS=5 devices READY=1");
    assert_int_equal(redoubt_service_metrics(s, "licences:valid=1"), 0);
    expect(fd, "REDOUBT_METRICS=licences:valid=1");
    assert_int_equal(redoubt_service_metrics(s, "licences=1\nREADY=1"), -EINVAL);
    memset(numbers, '1', 1001);
    assert_int_equal(redoubt_service_metrics(s, numbers), -EINVAL);
    numbers[1000] = '\0';
    assert_int_equal(redoubt_service_metrics(s, numbers), 0);
    expect(fd, metrics);
    assert_int_equal(redoubt_service_watchdog(s), 0);
    expect(fd, "WATCHDOG=1");
    assert_int_equal(redoubt_service_ack(s, REDOUBT_ROLE_ACTIVE, 41), 0);
    expect(fd, "REDOUBT_ROLE=active 41");
    assert_int_equal(redoubt_service_ack(s, REDOUBT_ROLE_STANDBY, 41), 0);
    expect(fd, "REDOUBT_ROLE=standby");
    assert_int_equal(redoubt_service_ack(s, REDOUBT_ROLE_GONE, 0), -EINVAL);
    redoubt_service_stop(s);
    (void)close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_hand_there_is_no_role_and_no_lease),
        cmocka_unit_test(standalone_holds_the_lease_only_without_a_page),
        cmocka_unit_test(the_latest_role_counts),
        cmocka_unit_test(lines_of_another_version_are_skipped),
        cmocka_unit_test(a_child_does_not_inherit_the_contract),
        cmocka_unit_test(the_watchdog_of_another_process_is_not_ours),
        cmocka_unit_test(a_broken_environment_is_refused),
        cmocka_unit_test(messages_are_those_of_sd_notify),
    };

    return cmocka_run_group_tests_name("service_lib", tests, NULL, NULL);
}
