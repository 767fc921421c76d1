/* The guard with real processes: the daemon is killed, stopped, or forgets to renew. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fault/sandbox.h"
#include "sys/guard/guard.h"
#include "sys/guard/inherit.h"
#include "sys/supervisor/cgroup.h"
#include "sys/supervisor/supervisor.h"

enum { PATIENCE_MS = 10000, FAR_MS = 600000 };

static struct sandbox box;
static char program[PATH_MAX];

struct world {
    struct cgroup own, services;
    struct lease_writer lease;
    struct guard *guard;
    int gone[2];
};

static struct mono in_ms(uint32_t ms)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return mono_after(
        (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u }, ms);
}

static int setup(void **state)
{
    static struct world w;
    struct err_info info = { 0 };

    w = (struct world){ .guard = NULL };
    if (cgroup_own(&w.own, &info) ||
        cgroup_open(&w.services, &w.own, "services", &info) ||
        lease_writer_init(&w.lease, &info) || pipe2(w.gone, O_CLOEXEC) != 0) {
        print_error("%s\n", info.what);
        return -1;
    }
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;

    guard_free(w->guard);
    lease_writer_release(&w->lease);
    (void)close(w->gone[0]);
    (void)close(w->gone[1]);
    (void)!cgroup_empty(&w->services, PATIENCE_MS, NULL);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    cgroup_release(&w->services);
    cgroup_remove(&w->own, "services");
    cgroup_release(&w->own);
    return 0;
}

/* A process of a service, which does not want to end. */
static pid_t service(struct world *w)
{
    char text[16];
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)signal(SIGTERM, SIG_IGN);
        for (;;)
            (void)pause();
    }
    (void)snprintf(text, sizeof(text), "%d", (int)pid);
    assert_int_equal(cgroup_write(&w->services, "cgroup.procs", text, NULL), ERR_OK);
    return pid;
}

static void start(struct world *w, struct str goodbye)
{
    struct err_info info = { 0 };

    if (guard_start(&w->guard,
                    &(struct guard_options){ .program = program,
                                             .lease = &w->lease,
                                             .cgroup_dir = w->services.dir,
                                             .gone_fd = w->gone[1],
                                             .goodbye = goodbye },
                    &info))
        fail_msg("guard_start: %s", info.what);
}

static bool empties(const struct world *w)
{
    for (int ms = 0; ms < PATIENCE_MS; ms++) {
        if (!cgroup_populated(&w->services))
            return true;
        (void)usleep(1000);
    }
    return false;
}

static bool readable(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    return poll(&p, 1, ms) == 1 && (p.revents & POLLIN);
}

/* Until the guard has done what the page asked for before this call: a beat ends each look. */
static void has_looked(const struct world *w)
{
    const struct mono began = in_ms(0);
    uint32_t waited = 0;

    while (guard_silence_ms(w->guard) + 1 >= waited && waited < PATIENCE_MS) {
        (void)usleep(1000);
        waited = mono_since_ms(in_ms(0), began);
    }
    assert_in_range(waited, 0, PATIENCE_MS - 1);
}

static void without_a_lease_nothing_is_killed(void **state)
{
    struct world *w = *state;

    start(w, STR(""));
    (void)service(w);
    (void)usleep(300000);
    assert_true(cgroup_populated(&w->services));
    assert_int_equal(guard_kills(w->guard), 0);
}

static void a_passed_deadline_kills(void **state)
{
    struct world *w = *state;

    const struct mono deadline = in_ms(1000);

    start(w, STR(""));
    (void)service(w);
    guard_extend(w->guard, 41, deadline);
    while (guard_kills(w->guard) == 0 && mono_since_ms(in_ms(0), deadline) < PATIENCE_MS)
        (void)usleep(1000);
    assert_true(mono_reached(in_ms(0), deadline));
    assert_true(guard_kills(w->guard) >= 1);
    assert_true(empties(w));
}

static void a_renewed_deadline_does_not(void **state)
{
    struct world *w = *state;

    start(w, STR(""));
    (void)service(w);
    for (int i = 0; i < 8; i++) {
        guard_extend(w->guard, 41, in_ms(FAR_MS + (uint32_t)i));
        (void)usleep(50000);
    }
    assert_true(cgroup_populated(&w->services));
    assert_int_equal(guard_kills(w->guard), 0);
}

static void a_revoked_deadline_does_not(void **state)
{
    struct world *w = *state;

    start(w, STR(""));
    (void)service(w);
    const struct mono deadline = in_ms(3000);
    guard_extend(w->guard, 41, deadline);
    (void)usleep(60000);
    guard_revoke(w->guard);
    while (!mono_reached(in_ms(0), deadline))
        (void)usleep(10000);
    (void)usleep(200000);
    assert_true(cgroup_populated(&w->services));
    assert_int_equal(guard_kills(w->guard), 0);
}

static void nothing_lives_while_a_passed_deadline_stands(void **state)
{
    struct world *w = *state;

    start(w, STR(""));
    guard_extend(w->guard, 41, in_ms(10));
    for (int ms = 0; ms < PATIENCE_MS && guard_kills(w->guard) == 0; ms++)
        (void)usleep(1000);
    (void)service(w); /* a child that was on its way into the group */
    assert_true(empties(w));
    guard_extend(w->guard, 42, in_ms(FAR_MS)); /* a new lease: services may live again */
    has_looked(w);
    uint64_t kills = guard_kills(w->guard);
    (void)service(w);
    (void)usleep(200000);
    assert_true(cgroup_populated(&w->services));
    assert_int_equal(guard_kills(w->guard), kills);
}

/* A node daemon of its own; returns when it says that its guard stands. */
static pid_t daemon_process(struct world *w, struct str goodbye, uint32_t deadline_ms,
                            bool own_network)
{
    int stands[2];
    char byte = 0;
    pid_t pid;

    assert_int_equal(pipe2(stands, O_CLOEXEC), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (own_network && unshare(CLONE_NEWNET) != 0)
            _exit(1);
        start(w, goodbye);
        if (deadline_ms > 0)
            guard_extend(w->guard, 41, in_ms(deadline_ms));
        if (write(stands[1], "r", 1) != 1)
            _exit(1);
        for (;;)
            (void)pause();
    }
    (void)close(stands[1]);
    assert_int_equal(read(stands[0], &byte, 1), 1);
    (void)close(stands[0]);
    return pid;
}

static void a_stopped_daemon_loses_its_services_at_the_deadline(void **state)
{
    struct world *w = *state;

    (void)service(w);
    pid_t daemon = daemon_process(w, STR(""), 400, false);
    assert_int_equal(kill(daemon, SIGSTOP), 0);
    assert_true(empties(w));
    assert_false(readable(w->gone[0], 50)); /* it is not dead: it may come back */
    assert_int_equal(kill(daemon, SIGKILL), 0);
    assert_true(readable(w->gone[0], PATIENCE_MS));
    assert_int_equal(waitpid(daemon, NULL, 0), daemon);
}

static void a_dead_daemon_takes_its_services_along(void **state)
{
    struct world *w = *state;
    char byte = 0;

    (void)service(w);
    (void)service(w);
    pid_t daemon = daemon_process(w, STR(""), FAR_MS, false);
    assert_false(readable(w->gone[0], 100));
    assert_int_equal(kill(daemon, SIGKILL), 0);
    assert_true(readable(w->gone[0], PATIENCE_MS));
    assert_false(cgroup_populated(&w->services)); /* the byte says so */
    assert_int_equal(read(w->gone[0], &byte, 1), 1);
    assert_int_equal(waitpid(daemon, NULL, 0), daemon);
}

/* One rtnetlink request about the IPv4 address 10.99.1.1 on lo. */
struct address_request {
    struct nlmsghdr head;
    struct ifaddrmsg what;
    struct rtattr local_head;
    uint32_t local;
};

static struct address_request address_request(uint16_t type, uint16_t flags)
{
    struct address_request rq = {
        .head = { .nlmsg_len = sizeof(rq), .nlmsg_type = type, .nlmsg_flags = flags },
        .what = { .ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = 1 },
        .local_head = { .rta_len = sizeof(struct rtattr) + 4, .rta_type = IFA_LOCAL },
    };

    assert_int_equal(inet_pton(AF_INET, "10.99.1.1", &rq.local), 1);
    return rq;
}

/* Can 10.99.1.1 be bound to in the present network namespace? */
static bool address_is_there(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET };
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    assert_int_equal(inet_pton(AF_INET, "10.99.1.1", &a.sin_addr), 1);
    bool there = bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
    (void)close(fd);
    return there;
}

static void the_address_goes_with_the_daemon(void **state)
{
    struct world *w = *state;
    struct address_request del = address_request(RTM_DELADDR, NLM_F_REQUEST);
    struct address_request add =
        address_request(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL);
    char path[64];
    int route, home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    pid_t daemon =
        daemon_process(w, (struct str){ (const char *)&del, sizeof(del) }, FAR_MS, true);

    (void)snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)daemon);
    int net = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(setns(net, CLONE_NEWNET), 0);
    route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    assert_int_equal(send(route, &add, sizeof(add), 0), sizeof(add));
    assert_true(address_is_there());
    assert_int_equal(kill(daemon, SIGKILL), 0);
    assert_true(readable(w->gone[0], PATIENCE_MS));
    assert_false(address_is_there());
    assert_int_equal(setns(home, CLONE_NEWNET), 0);
    (void)close(route);
    (void)close(net);
    (void)close(home);
    assert_int_equal(waitpid(daemon, NULL, 0), daemon);
}

static void it_ignores_what_is_meant_for_the_daemon(void **state)
{
    struct world *w = *state;

    start(w, STR(""));
    assert_int_equal(kill(guard_pid(w->guard), SIGTERM), 0);
    assert_int_equal(kill(guard_pid(w->guard), SIGHUP), 0);
    assert_int_equal(kill(guard_pid(w->guard), SIGINT), 0);
    assert_false(readable(guard_fd(w->guard), 100));
    assert_int_equal(kill(guard_pid(w->guard), SIGKILL), 0);
    assert_true(readable(guard_fd(w->guard), PATIENCE_MS));
}

static void a_stopped_guard_falls_silent(void **state)
{
    struct world *w = *state;
    siginfo_t si = { 0 };

    start(w, STR(""));
    (void)usleep(150000);
    assert_in_range(guard_silence_ms(w->guard), 0, 5000);
    assert_int_equal(kill(guard_pid(w->guard), SIGSTOP), 0);
    assert_int_equal(waitid(P_PID, (id_t)guard_pid(w->guard), &si, WSTOPPED | WNOWAIT),
                     0);
    uint32_t before = guard_silence_ms(w->guard);
    (void)usleep(300000);
    assert_true(guard_silence_ms(w->guard) >= before + 250);
}

static void it_ends_when_its_group_has_vanished(void **state)
{
    struct world *w = *state;
    siginfo_t si = { 0 };

    start(w, STR(""));
    cgroup_remove(&w->own, "services");
    assert_true(readable(guard_fd(w->guard), PATIENCE_MS));
    assert_int_equal(waitid(P_PID, (id_t)guard_pid(w->guard), &si, WEXITED | WNOWAIT), 0);
    assert_int_equal(si.si_status, GUARD_EXIT_NO_GROUP);
}

static void there_is_one_guard_a_group(void **state)
{
    struct world *w = *state;
    struct guard *second = NULL;
    const struct guard_options o = { .program = program,
                                     .lease = &w->lease,
                                     .cgroup_dir = w->services.dir,
                                     .gone_fd = -1 };

    start(w, STR(""));
    assert_int_equal(guard_start(&second, &o, NULL), ERR_CLOSED);
    assert_null(second);
    guard_free(w->guard);
    w->guard = NULL;
    assert_int_equal(guard_start(&w->guard, &o, NULL), ERR_OK);
}

static void no_report(void *user, const struct supervisor_report *r)
{
    (void)user;
    (void)r;
}

static void a_second_daemon_leaves_the_services_alone(void **state)
{
    struct world *w = *state;
    struct supervisor *second = NULL;
    sd_event *event = NULL;

    start(w, STR(""));
    pid_t pid = service(w);
    assert_true(sd_event_new(&event) >= 0);
    assert_int_equal(supervisor_new(&second,
                                    &(struct supervisor_options){ .event = event,
                                                                  .run_dir = box.run,
                                                                  .node = "",
                                                                  .conf = "",
                                                                  .lease_fd = -1,
                                                                  .report = no_report },
                                    NULL),
                     ERR_STATE);
    assert_null(second);
    assert_int_equal(waitpid(pid, NULL, WNOHANG), 0); /* lives */
    sd_event_unref(event);
}

static void a_missing_program_is_named(void **state)
{
    struct world *w = *state;
    struct err_info info = { 0 };
    struct guard *g = NULL;

    assert_int_equal(guard_start(&g,
                                 &(struct guard_options){ .program = "/nonexistent/guard",
                                                          .lease = &w->lease,
                                                          .cgroup_dir = w->services.dir,
                                                          .gone_fd = -1 },
                                 &info),
                     ERR_NOT_FOUND);
    assert_non_null(strstr(info.what, "/nonexistent/guard"));
    assert_null(g);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(without_a_lease_nothing_is_killed),
        T(a_passed_deadline_kills),
        T(a_renewed_deadline_does_not),
        T(a_revoked_deadline_does_not),
        T(nothing_lives_while_a_passed_deadline_stands),
        T(a_stopped_daemon_loses_its_services_at_the_deadline),
        T(a_dead_daemon_takes_its_services_along),
        T(the_address_goes_with_the_daemon),
        T(it_ignores_what_is_meant_for_the_daemon),
        T(a_stopped_guard_falls_silent),
        T(it_ends_when_its_group_has_vanished),
        T(there_is_one_guard_a_group),
        T(a_second_daemon_leaves_the_services_alone),
        T(a_missing_program_is_named),
    };

    if (!sandbox_enter(&box))
        return 0;
    sandbox_sibling(program, sizeof(program), "../../src/app/guard/redoubt-guard");
    int failed = cmocka_run_group_tests_name("guard", tests, NULL, NULL);
    sandbox_leave(&box);
    return failed;
}
