/* Real services under the supervisor: the example of the documents, and redoubt-web. */
#include "fault/services_world.h"

#include <arpa/inet.h>
#include <limits.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void the_example_of_the_documents_works(void **state)
{
    struct world *w = *state;
    char work[PATH_MAX];

    add(w, SUPERVISOR_HOT, "example", NULL, NULL);
    w->argv[0][0] = EXAMPLE;
    (void)snprintf(work, sizeof(work), "%s/service/example/working", box.run);
    if (access("/usr/bin/systemd-notify", X_OK) != 0)
        skip();
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(access(work, F_OK), 0);
    assert_string_equal(supervisor_status(w->s, 0), "works in epoch 41");
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_int_equal(access(work, F_OK), -1);
}

static char web[512], listen_on[32], published[PATH_MAX];
static uint16_t port;
static int port_fd = -1; /* keeps the port ours while nginx does not listen */

static struct mono in_ms(uint32_t ms)
{
    struct timespec t;

    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &t), 0);
    return mono_after(
        (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u }, ms);
}

static struct sockaddr_in local(uint16_t p)
{
    return (struct sockaddr_in){ .sin_family = AF_INET,
                                 .sin_port = htons(p),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

/* Not listening, and with SO_REUSEADDR as nginx's own: nginx can bind to it, and nobody else
 * is given it. */
static void hold_port(void)
{
    struct sockaddr_in a = local(0);
    socklen_t size = sizeof(a);
    int on = 1;

    if (port_fd >= 0)
        return;
    port_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(port_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)), 0);
    assert_int_equal(bind(port_fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(getsockname(port_fd, (struct sockaddr *)&a, &size), 0);
    port = ntohs(a.sin_port);
}

static bool listens(void)
{
    struct sockaddr_in a = local(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool there = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;

    (void)close(fd);
    return there;
}

/* redoubt-web, with a lease of the epoch. */
static void begin_web(struct world *w, uint64_t epoch)
{
    const char *const argv[] = { web,      "--http", listen_on, "--root", published,
                                 "--node", "node-a", "--conf",  "" };
    struct supervisor_service *c = add(w, SUPERVISOR_HOT, "web", NULL, NULL);

    if (access("/usr/sbin/nginx", X_OK) != 0)
        skip();
    hold_port();
    (void)snprintf(listen_on, sizeof(listen_on), "127.0.0.1:%u", port);
    (void)snprintf(published, sizeof(published), "%s/www", box.run);
    (void)mkdir(published, 0755);
    for (size_t i = 0; i < LEN(argv); i++)
        w->argv[0][i] = argv[i];
    c->all_processes = true;
    c->watchdog_ms = 9000; /* nginx answers within half of it */
    assert_int_equal(lease_writer_init(&w->lease, NULL), ERR_OK);
    lease_writer_extend(&w->lease, epoch, in_ms(600000));
    begin(w, w->lease.fd);
}

static void web_serves_only_while_active(void **state)
{
    struct world *w = *state;

    begin_web(w, 41);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_false(listens());
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_true(listens());
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_false(listens());
    want(w, SERVICE_WANT_STOPPED, 0);
    assert_turns(w, 0, SERVICE_STOPPED);
    assert_int_equal(w->failures[0], 0);
}

static void each_process_of_web_counts(void **state)
{
    struct world *w = *state;
    uint32_t killed = 0;

    begin_web(w, 41);
    want(w, SERVICE_WANT_ACTIVE, 41);
    for (; killed < 3; killed++) { /* redoubt-web, nginx's master, its worker */
        pid_t pids[8];

        assert_turns(w, 0, SERVICE_ACTIVE);
        assert_int_equal(pids_of(w, 0, pids, 8), 3);
        assert_int_equal(kill(pids[killed], SIGKILL), 0);
        assert_turns(w, 0, SERVICE_FAILED);
        assert_int_equal(pids_of(w, 0, pids, 8), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(the_example_of_the_documents_works),
        T(web_serves_only_while_active),
        T(each_process_of_web_counts),
    };

    sandbox_sibling(web, sizeof(web), "../../src/app/web/redoubt-web");
    return world_run("services", tests, LEN(tests));
}
