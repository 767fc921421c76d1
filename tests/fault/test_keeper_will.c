/* The keeper's will: when the daemon has died, and only then, and only over its own record. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cutter.h"
#include "keeper_end.h"

static struct smbd server;
static struct contract_world world;
static struct keeper_end mine, other; /* other: the peer, and the one who looks */
static int gone[2];                   /* the guard's pipe */
static pid_t pid;                     /* of mine, the keeper with the will */

static void pump(void *arg)
{
    (void)arg;
    if (world.a.waiting)
        keeper_end_pump(&mine);
    if (world.b.waiting)
        keeper_end_pump(&other);
}

static struct cutter cutter; /* before the server of mine, if its port is set */

/* will_wait_ms: how long the keeper waits for the guard's word; the test may need a while. */
static void open_waiting(uint32_t will_wait_ms, uint32_t slow_timeout_ms)
{
    struct keeper_options o = keeper_end_options(&server);

    smbd_clear(&server);
    world.pump = pump;
    keeper_end_open(&other, &world.b, &o);
    assert_int_equal(pipe2(gone, O_CLOEXEC), 0);
    o.gone_fd = gone[0];
    o.will_wait_ms = will_wait_ms;
    o.slow_timeout_ms = slow_timeout_ms;
    if (cutter.port)
        o.port = cutter.port;
    keeper_end_open(&mine, &world.a, &o);
}

static int open_both(void **state)
{
    (void)state;
    open_waiting(30000, 10000);
    return 0;
}

static int open_impatient(void **state)
{
    (void)state;
    open_waiting(400, 10000);
    return 0;
}

static int open_short(void **state)
{
    (void)state;
    open_waiting(100, 400);
    return 0;
}

static int open_through_cutter(void **state)
{
    cutter_start(&cutter, server.port, CUT_NOTHING);
    return open_both(state);
}

static int close_both(void **state)
{
    (void)state;
    keeper_end_close(&other);
    (void)close(gone[0]);
    (void)close(gone[1]);
    if (cutter.port)
        cutter_stop(&cutter);
    cutter.port = 0;
    return 0;
}

static enum err lease(enum share_op op, uint64_t epoch, const char *text,
                      const char *will)
{
    const struct contract_lease body = contract_record(text),
                                last = contract_record(will);

    if (op == SHARE_CLAIM)
        (void)contract_poll(&world, &world.a, epoch - 1);
    return contract_do(&world, &world.a,
                       (struct share_request){ .op = op,
                                               .epoch = epoch,
                                               .body = contract_str(&body),
                                               .will = contract_str(&last) });
}

/* As the guard says it: no service lives any more. */
static void guard_speaks(void)
{
    assert_int_equal(write(gone[1], "g", 1), 1);
}

static void daemon_dies(void)
{
    pid = keeper_stats(mine.keeper).pid;
    keeper_end_close(&mine);
}

/* The keeper must end by itself; a killed or stuck one would fail here. */
static void keeper_ends(void)
{
    int status = -1;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void record_is(uint64_t epoch, const char *text)
{
    const struct contract_lease l = contract_record(text);

    assert_int_equal(contract_poll(&world, &world.b, epoch), ERR_OK);
    assert_true(world.b.a.top == epoch);
    assert_true(str_eq(world.b.a.lease, contract_str(&l)));
}

static void the_last_will_is_written_once_the_guard_has_spoken(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(lease(SHARE_RENEW, 1, "held 2", "will 2"), ERR_OK);
    daemon_dies();
    record_is(1, "held 2"); /* not before the guard has spoken */
    guard_speaks();
    keeper_ends();
    record_is(1, "will 2");
}

static void a_claim_alone_leaves_a_will(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(1, "will");
}

static void without_the_guards_word_nothing_is_written(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    keeper_ends(); /* after will_wait_ms */
    record_is(1, "held");
}

static void a_guard_that_died_silently_gives_no_word(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    assert_int_equal(close(gone[1]), 0); /* the end of the pipe is not a byte */
    keeper_ends();
    record_is(1, "held");
    gone[1] = dup(gone[0]);
}

static void a_successor_is_left_alone(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(contract_claim(&world, &world.b, 2, "peer"), ERR_OK);
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(2, "peer");
    assert_int_equal(contract_named(&world, &world.b, SHARE_GET, "epoch/1", ""), ERR_OK);
    assert_true(str_starts(world.b.a.body, STR("held")));
}

static void a_record_of_another_is_left_alone(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(contract_renew(&world, &world.b, 1, "someone else's"), ERR_OK);
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(1, "someone else's");
}

static void a_release_drops_the_will(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(lease(SHARE_RELEASE, 1, "released", ""), ERR_OK);
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(1, "released");
}

static void a_lost_claim_leaves_no_will(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.b, 1, "peer"), ERR_OK);
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_EXISTS);
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(1, "peer");
}

static void a_stale_renewal_drops_the_will(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(contract_claim(&world, &world.b, 2, "peer"), ERR_OK);
    assert_int_equal(lease(SHARE_RENEW, 1, "held 2", "will"), ERR_STALE);
    assert_int_equal(
        contract_do(&world, &world.b,
                    (struct share_request){ .op = SHARE_REMOVE, .name = "epoch/2" }),
        ERR_OK); /* even if the successor vanishes */
    daemon_dies();
    guard_speaks();
    keeper_ends();
    record_is(1, "held 2");
}

static void the_will_survives_a_restarted_server(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    smbd_kill(&server);
    smbd_start(&server, "");
    guard_speaks();
    keeper_ends();
    record_is(1, "will");
}

static void the_will_is_written_when_the_server_comes_back(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    smbd_kill(&server);
    guard_speaks();
    (void)poll(NULL, 0, 500);
    smbd_start(&server, "");
    keeper_ends();
    record_is(1, "will");
}

/* A server that crashed may have forgotten the epoch, and the peer has made it anew, between the
 * look at the record and the write. */
static void a_will_whose_connection_breaks_looks_again(void **state)
{
    int status = 0;

    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    daemon_dies();
    *cutter.cut = CUT_WRITE_AND_STOP;
    guard_speaks();
    assert_int_equal(waitpid(cutter.pid, &status, WUNTRACED), cutter.pid);
    assert_true(WIFSTOPPED(status));
    assert_int_equal(contract_renew(&world, &world.b, 1, "someone else's"), ERR_OK);
    assert_int_equal(kill(cutter.pid, SIGCONT), 0);
    keeper_ends();
    record_is(1, "someone else's");
}

static void a_keeper_never_outlives_its_time(void **state)
{
    int status = 0;
    uint64_t epoch = 1;

    (void)state;
    /* It waits for the file server so briefly that a busy machine may need another try. */
    for (int i = 0; i < 50 && lease(SHARE_CLAIM, epoch, "held", "will") != ERR_OK; i++) {
        (void)contract_poll(&world, &world.b, epoch);
        epoch = world.b.a.top + 1;
    }
    assert_int_equal(world.a.a.err, ERR_OK);
    smbd_signal(&server, SIGSTOP);
    guard_speaks();
    daemon_dies();
    assert_int_equal(waitpid(pid, &status, 0), pid); /* its own alarm */
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGALRM);
    smbd_signal(&server, SIGCONT);
}

static void a_terminated_group_does_not_take_the_keeper_along(void **state)
{
    (void)state;
    assert_int_equal(lease(SHARE_CLAIM, 1, "held", "will"), ERR_OK);
    assert_int_equal(kill(keeper_stats(mine.keeper).pid, SIGTERM), 0);
    assert_int_equal(lease(SHARE_RELEASE, 1, "released", ""), ERR_OK);
    assert_int_equal(mine.replaced, 0);
    daemon_dies();
    keeper_ends(); /* at once: no will */
    record_is(1, "released");
}

int main(void)
{
#define WILL(f) cmocka_unit_test_setup_teardown(f, open_both, close_both)
    const struct CMUnitTest tests[] = {
        WILL(the_last_will_is_written_once_the_guard_has_spoken),
        WILL(a_claim_alone_leaves_a_will),
        cmocka_unit_test_setup_teardown(without_the_guards_word_nothing_is_written,
                                        open_impatient, close_both),
        WILL(a_guard_that_died_silently_gives_no_word),
        WILL(a_successor_is_left_alone),
        WILL(a_record_of_another_is_left_alone),
        WILL(a_release_drops_the_will),
        WILL(a_lost_claim_leaves_no_will),
        WILL(a_stale_renewal_drops_the_will),
        WILL(the_will_survives_a_restarted_server),
        WILL(the_will_is_written_when_the_server_comes_back),
        cmocka_unit_test_setup_teardown(a_will_whose_connection_breaks_looks_again,
                                        open_through_cutter, close_both),
        cmocka_unit_test_setup_teardown(a_keeper_never_outlives_its_time, open_short,
                                        close_both),
        WILL(a_terminated_group_does_not_take_the_keeper_along),
    };
    const char *missing = smbd_missing();

    if (missing) {
        (void)printf("1..0 # SKIP %s\n", missing);
        return 0;
    }
    smbd_init(&server);
    smbd_start(&server, "");
    int rc = cmocka_run_group_tests_name("keeper_will", tests, NULL, NULL);
    smbd_release(&server);
    return rc;
}
