/* What the daemon is told when the file server or redoubt-keeper fails, hangs or lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cutter.h"
#include "keeper_end.h"

/* START_MS: what keeper.c gives a keeper to start, besides one timeout. */
enum { PATIENT_MS = 10000, START_MS = 1000 };

static struct smbd server;
static struct contract_world world;
static struct keeper_end one;

static uint64_t now_ms(void)
{
    struct timespec t;

    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &t), 0);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void open_with(const struct keeper_options *o)
{
    keeper_end_open(&one, &world.a, o);
    world.pump = keeper_end_pump;
    world.arg = &one;
}

static struct keeper_options hasty(uint32_t timeout_ms)
{
    struct keeper_options o = keeper_end_options(&server);

    o.timeout_ms = timeout_ms;
    o.slow_timeout_ms = 2 * timeout_ms;
    return o;
}

static int open_default(void **state)
{
    const struct keeper_options o = keeper_end_options(&server);

    (void)state;
    smbd_clear(&server);
    open_with(&o);
    return 0;
}

static int close_it(void **state)
{
    (void)state;
    if (one.keeper)
        keeper_end_close(&one);
    one.keeper = NULL;
    return 0;
}

static enum err poll_1(void)
{
    return contract_poll(&world, &world.a, 1);
}

/* Until it works again; each single answer may be an error, but one must come. */
static void works_again_with(uint64_t epoch)
{
    for (int i = 0; i < 500; i++) {
        if (contract_poll(&world, &world.a, epoch) == ERR_OK)
            return;
        (void)poll(NULL, 0, 10);
    }
    fail_msg("the share does not come back: %s", world.a.why.what);
}

static int open_hasty(void **state)
{
    const struct keeper_options o =
        hasty(3000); /* a busy machine must be able to keep it */

    (void)state;
    smbd_clear(&server);
    open_with(&o);
    works_again_with(0); /* a busy machine may need more than its timeout to start */
    return 0;
}

static void works_again(void)
{
    works_again_with(1);
}

static void a_restarted_server_costs_no_error(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    for (int i = 0; i < 5; i++) {
        smbd_kill(&server);
        smbd_start(&server, "");
        assert_int_equal(i % 2 ? poll_1() : contract_renew(&world, &world.a, 1, "b"),
                         ERR_OK);
    }
    assert_int_equal(one.replaced, 0);
    assert_true(keeper_stats(one.keeper).connections >= 6);
}

/* What the lease was found free by was read over a connection that is gone: the server may
 * have forgotten an epoch since, so nothing is created before it has been read again. */
static void a_claim_does_not_cross_a_restart(void **state)
{
    const struct contract_lease l = contract_record("a");

    (void)state;
    for (uint64_t n = 1; n <= 5; n++) {
        assert_int_equal(contract_poll(&world, &world.a, n - 1), ERR_OK);
        smbd_kill(&server);
        smbd_start(&server, "");
        assert_int_equal(contract_do(&world, &world.a,
                                     (struct share_request){ .op = SHARE_CLAIM,
                                                             .epoch = n,
                                                             .body = contract_str(&l) }),
                         ERR_CLOSED);
        assert_int_equal(contract_poll(&world, &world.a, n), ERR_NOT_FOUND);
        assert_int_equal(contract_claim(&world, &world.a, n, "a"), ERR_OK);
        assert_int_equal(contract_claim(&world, &world.a, n, "b"), ERR_EXISTS);
    }
    assert_int_equal(one.replaced, 0);
}

static void a_dead_server_is_an_error_and_not_a_replacement(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    smbd_kill(&server);
    for (int i = 0; i < 3; i++)
        assert_int_equal(poll_1(), ERR_IO);
    assert_int_equal(contract_renew(&world, &world.a, 1, "b"),
                     ERR_IO); /* was never sent */
    assert_int_equal(one.replaced, 0);
    smbd_start(&server, "");
    assert_int_equal(poll_1(), ERR_OK);
}

static void a_connection_that_broke_before_the_write_leaves_no_doubt(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    smbd_kill(&server);
    assert_int_equal(contract_renew(&world, &world.a, 1, "b"), ERR_IO);
    smbd_start(&server, "");
    assert_int_equal(poll_1(), ERR_OK);
}

static void a_new_connection_is_a_new_session(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    uint32_t session = world.a.a.session;
    smbd_kill(&server);
    smbd_start(&server, "");
    assert_int_equal(poll_1(), ERR_OK);
    assert_int_not_equal(world.a.a.session, session);
    session = world.a.a.session;
    assert_int_equal(kill(keeper_stats(one.keeper).pid, SIGKILL), 0);
    while (one.replaced < 1)
        keeper_end_pump(&one);
    assert_int_equal(poll_1(), ERR_OK);
    assert_int_not_equal(world.a.a.session, session);
}

static void a_server_that_hangs_is_a_timeout_and_heals(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    smbd_signal(&server, SIGSTOP);
    assert_int_equal(poll_1(), ERR_TIMEOUT);
    assert_int_equal(one.replaced, 1);
    assert_int_not_equal(contract_renew(&world, &world.a, 1, "b"), ERR_OK);
    assert_int_not_equal(contract_claim(&world, &world.a, 2, "b"), ERR_OK);
    smbd_signal(&server, SIGCONT);
    works_again();
}

/* A process that is started costs CPU time, and a server may hang for days. */
static void a_server_that_hangs_for_long_does_not_make_a_storm_of_keepers(void **state)
{
    struct keeper_options o = hasty(300);

    (void)state;
    smbd_clear(&server);
    o.timeout_ms = 100;
    open_with(&o);
    works_again_with(0);
    smbd_signal(&server, SIGSTOP);
    uint32_t before = one.replaced;
    uint64_t began = now_ms();
    for (int i = 0; i < 30; i++)
        (void)poll_1();
    uint64_t took = now_ms() - began;
    smbd_signal(&server, SIGCONT);
    assert_in_range(one.replaced - before, 1, took / 500); /* 6 in 3 s */
    works_again_with(0);
}

static pid_t keeper_pid(void)
{
    for (int i = 0; i < 200 && keeper_stats(one.keeper).pid == 0; i++)
        keeper_end_pump(&one);
    pid_t pid = keeper_stats(one.keeper).pid;
    assert_true(pid > 0);
    return pid;
}

static void a_killed_keeper_is_replaced_before_it_is_needed(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    for (uint32_t i = 1; i <= 3; i++) {
        pid_t old = keeper_pid();

        assert_int_equal(kill(old, SIGKILL), 0);
        while (one.replaced < i)
            keeper_end_pump(&one);
        assert_int_equal(contract_renew(&world, &world.a, 1, "b"), ERR_OK);
        assert_int_not_equal(keeper_pid(), old);
        for (int k = 0; k < 300 && kill(old, 0) == 0; k++)
            keeper_end_pump(&one);
        assert_int_equal(kill(old, 0), -1); /* reaped */
    }
}

static void a_stopped_keeper_is_replaced(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    assert_int_equal(kill(keeper_pid(), SIGSTOP), 0);
    assert_int_equal(poll_1(), ERR_IO);
    assert_int_equal(one.replaced, 1);
    works_again();
    assert_int_equal(one.replaced, 1);
}

/* Submits rq, kills the keeper while the server does not answer, and waits. */
static enum err killed_in(struct share_request rq)
{
    rq.id = ++world.a.last_id;
    world.a.waiting = rq.id;
    smbd_signal(&server, SIGSTOP);
    world.a.share.ops->submit(world.a.share.impl, &rq);
    keeper_end_pump(&one);
    assert_int_equal(kill(keeper_pid(), SIGKILL), 0);
    while (world.a.waiting)
        keeper_end_pump(&one);
    smbd_signal(&server, SIGCONT);
    return world.a.a.err;
}

static void a_keeper_that_dies_over_a_write_leaves_it_unknown(void **state)
{
    const struct contract_lease l = contract_record("b");

    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    assert_int_equal(killed_in((struct share_request){
                         .op = SHARE_RENEW, .epoch = 1, .body = contract_str(&l) }),
                     ERR_TIMEOUT);
    works_again();
    assert_int_equal(killed_in((struct share_request){ .op = SHARE_POLL, .epoch = 1 }),
                     ERR_IO);
    works_again();
}

static void rewrite_credentials(const char *text, mode_t mode)
{
    int fd = open(server.credentials, O_WRONLY | O_TRUNC | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    (void)close(fd);
}

static void a_corrected_password_needs_no_restart(void **state)
{
    const struct keeper_options o = keeper_end_options(&server);

    (void)state;
    smbd_clear(&server);
    rewrite_credentials("username=root\npassword=wrong\n", 0600);
    open_with(&o);
    assert_int_equal(contract_poll(&world, &world.a, 0), ERR_DENIED);
    rewrite_credentials("username=root\npassword=" SMBD_PASSWORD "\n", 0640);
    assert_int_equal(contract_poll(&world, &world.a, 0), ERR_DENIED);
    assert_non_null(strstr(world.a.why.what, "0600"));
    rewrite_credentials("username=root\npassword=" SMBD_PASSWORD "\n", 0600);
    assert_int_equal(contract_poll(&world, &world.a, 0), ERR_OK);
    assert_int_equal(one.replaced, 0);
}

/* A server that comes back from a crash may refuse everybody at first, before it knows its
 * users; what it has forgotten it has forgotten all the same. */
static void a_connection_after_a_refused_one_is_a_new_session(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    uint32_t session = world.a.a.session;
    for (int i = 0; i < 3; i++) {
        smbd_kill(&server);
        smbd_start(&server, "invalid users = root");
        assert_int_equal(poll_1(), ERR_DENIED);
        smbd_kill(&server);
        smbd_start(&server, "");
        assert_int_equal(poll_1(), ERR_OK);
        assert_true(world.a.a.session > session);
        session = world.a.a.session;
    }
}

static void a_program_that_is_missing_is_a_wrong_configuration(void **state)
{
    struct keeper_options o = keeper_end_options(&server);
    const struct keeper_callbacks cb = { .answer = NULL };
    struct keeper *k = NULL;
    struct err_info why;
    sd_event *loop = NULL;

    (void)state;
    o.program = "/no/such/redoubt-keeper";
    assert_true(sd_event_new(&loop) >= 0);
    assert_int_equal(keeper_new(&k, loop, &o, &cb, &why), ERR_CONFIG);
    assert_non_null(strstr(why.what, o.program));
    (void)sd_event_unref(loop);
}

/* The fake keeper (fake_keeper.c) does what the share's name says. */
static void faked(const char *behaviour, uint32_t timeout_ms)
{
    static char share[64];
    struct keeper_options o = hasty(timeout_ms);

    (void)snprintf(share, sizeof(share), "//fake/%s", behaviour);
    o.program = getenv("FAKE_KEEPER");
    o.share = share;
    open_with(&o);
}

static void a_keeper_that_ends_at_once_is_an_error_and_not_a_storm(void **state)
{
    (void)state;
    faked("exit", 300);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(poll_1(), ERR_IO);
        (void)poll(NULL, 0, 20);
    }
    assert_in_range(one.replaced, 1, 12); /* backoff: 0, 50, 100, 150 ... ms */
}

static void a_keeper_that_talks_nonsense_is_replaced(void **state)
{
    (void)state;
    faked("garbage", PATIENT_MS);
    assert_int_equal(poll_1(), ERR_IO);
    assert_true(one.replaced >= 1);
}

static void an_answer_to_another_question_is_not_believed(void **state)
{
    (void)state;
    faked("wrong-id", PATIENT_MS);
    assert_int_equal(poll_1(), ERR_IO);
    assert_true(one.replaced >= 1);
}

static void an_answer_twice_is_given_once(void **state)
{
    (void)state;
    faked("twice", PATIENT_MS);
    /* contract_take() would fail the test if it took the second one */
    for (uint32_t i = 1; i <= 3; i++) {
        works_again(); /* a busy machine may need more than its timeout to start the next */
        while (one.replaced < i)
            keeper_end_pump(&one);
    }
}

/* Else a machine that is busy enough never gets a keeper that works. */
static void a_keeper_is_not_killed_for_starting_slowly(void **state)
{
    (void)state;
    uint64_t began = now_ms();
    faked("mute", 300);
    pid_t pid = keeper_stats(one.keeper).pid;
    for (int i = 0; i < 2 || one.replaced == 0; i++) {
        assert_int_equal(poll_1(), ERR_IO);
        if (one.replaced == 0)
            assert_int_equal(keeper_stats(one.keeper).pid, pid);
    }
    assert_true(now_ms() - began >= START_MS + 300);
    while (one.replaced < 2) /* but not for ever: the live one and the spare */
        keeper_end_pump(&one);
}

static void a_keeper_of_another_version_is_not_believed(void **state)
{
    (void)state;
    faked("old", PATIENT_MS);
    assert_int_equal(poll_1(), ERR_IO);
    assert_true(one.replaced >= 1);
}

static struct cutter cutter;

static void open_through(enum cut cut)
{
    struct keeper_options o = keeper_end_options(&server);

    smbd_clear(&server);
    cutter_start(&cutter, server.port, cut);
    o.port = cutter.port;
    open_with(&o);
}

static int close_cutter(void **state)
{
    cutter_stop(&cutter);
    return close_it(state);
}

static void a_claim_whose_answer_is_lost_is_unknown_and_not_tried_again(void **state)
{
    (void)state;
    open_through(CUT_CREATE_ANSWER);
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_TIMEOUT);
    assert_int_equal(poll_1(), ERR_OK);
    assert_true(world.a.a.top == 1); /* it was made, and its writer knows nothing of it */
    assert_int_equal(world.a.a.lease.n, 0);
    assert_int_equal(one.replaced, 0);
}

static void a_claim_whose_write_is_lost_is_unknown(void **state)
{
    (void)state;
    open_through(CUT_WRITE);
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_TIMEOUT);
    assert_int_equal(poll_1(), ERR_OK);
    assert_int_equal(world.a.a.lease.n, 0);
}

static void renew_through(enum cut cut)
{
    const struct contract_lease l = contract_record("new");

    open_through(cut);
    smbd_write(&server, "epoch/1", "old");
    assert_int_equal(contract_renew(&world, &world.a, 1, "new"), ERR_OK);
    assert_int_equal(keeper_stats(one.keeper).connections, 2);
    assert_int_equal(poll_1(), ERR_OK);
    assert_true(str_eq(world.a.a.lease, contract_str(&l)));
}

static void a_renewal_whose_answer_is_lost_is_written_again(void **state)
{
    (void)state;
    renew_through(CUT_WRITE_ANSWER);
}

static void a_renewal_whose_write_is_lost_is_written_again(void **state)
{
    (void)state;
    renew_through(CUT_WRITE);
}

static void a_renewal_that_cannot_be_repeated_is_unknown(void **state)
{
    (void)state;
    open_through(CUT_WRITE_ANSWER_FOR_GOOD);
    smbd_write(&server, "epoch/1", "old");
    assert_int_equal(contract_renew(&world, &world.a, 1, "new"), ERR_TIMEOUT);
    assert_int_equal(contract_renew(&world, &world.a, 1, "new"), ERR_IO);
}

static void nothing_leaks_into_the_keeper(void **state)
{
    char path[64], text[4096], target[256];
    struct dirent *d;

    (void)state;
    int leak = open("/dev/zero", O_RDONLY); /* without close-on-exec */
    assert_true(leak >= 0);
    for (uint32_t i = 1; i <= 3; i++) { /* the last one is born with leak open here */
        assert_int_equal(kill(keeper_pid(), SIGKILL), 0);
        while (one.replaced < i)
            keeper_end_pump(&one);
        assert_int_equal(contract_poll(&world, &world.a, 0), ERR_OK);
    }
    (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)keeper_pid());
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((d = readdir(dir)) != NULL) {
        ssize_t n = readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);

        target[n > 0 ? n : 0] = '\0';
        assert_string_not_equal(target, "/dev/zero");
    }
    (void)closedir(dir);
    (void)close(leak);
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)keeper_pid());
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof(text));
    (void)close(fd);
    assert_true(n > 0);
    assert_null(memmem(text, (size_t)n, SMBD_PASSWORD, strlen(SMBD_PASSWORD)));
}

static pid_t spare_pid(void)
{
    for (int i = 0; i < 300 && keeper_stats(one.keeper).spare_pid == 0; i++)
        keeper_end_pump(&one);
    pid_t pid = keeper_stats(one.keeper).spare_pid;
    assert_true(pid > 0);
    return pid;
}

static void a_spare_takes_over_at_once(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    pid_t spare = spare_pid();
    assert_int_equal(kill(keeper_pid(), SIGKILL), 0);
    while (one.replaced < 1)
        keeper_end_pump(&one);
    assert_int_equal(keeper_stats(one.keeper).pid, spare);
    assert_int_equal(poll_1(), ERR_OK);
    assert_int_not_equal(spare_pid(), spare); /* and there is another one */
}

static void a_spare_that_dies_is_replaced_and_costs_nothing(void **state)
{
    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    pid_t live = keeper_pid(), spare = spare_pid();
    assert_int_equal(kill(spare, SIGKILL), 0);
    while (one.replaced < 1)
        keeper_end_pump(&one);
    assert_int_equal(contract_renew(&world, &world.a, 1, "b"), ERR_OK);
    assert_int_equal(keeper_pid(), live);
    assert_int_not_equal(spare_pid(), spare);
}

int main(void)
{
#define WITH(open, f) cmocka_unit_test_setup_teardown(f, open, close_it)
#define CUT(f)        cmocka_unit_test_setup_teardown(f, NULL, close_cutter)
    const struct CMUnitTest tests[] = {
        WITH(open_default, a_restarted_server_costs_no_error),
        WITH(open_default, a_claim_does_not_cross_a_restart),
        WITH(open_default, a_dead_server_is_an_error_and_not_a_replacement),
        WITH(open_default, a_connection_that_broke_before_the_write_leaves_no_doubt),
        WITH(open_default, a_new_connection_is_a_new_session),
        WITH(open_default, a_connection_after_a_refused_one_is_a_new_session),
        WITH(open_hasty, a_server_that_hangs_is_a_timeout_and_heals),
        WITH(NULL, a_server_that_hangs_for_long_does_not_make_a_storm_of_keepers),
        WITH(open_default, a_killed_keeper_is_replaced_before_it_is_needed),
        WITH(open_default, a_stopped_keeper_is_replaced),
        WITH(open_default, a_keeper_that_dies_over_a_write_leaves_it_unknown),
        WITH(NULL, a_corrected_password_needs_no_restart),
        WITH(NULL, a_program_that_is_missing_is_a_wrong_configuration),
        WITH(NULL, a_keeper_that_ends_at_once_is_an_error_and_not_a_storm),
        WITH(NULL, a_keeper_that_talks_nonsense_is_replaced),
        WITH(NULL, an_answer_to_another_question_is_not_believed),
        WITH(NULL, an_answer_twice_is_given_once),
        WITH(NULL, a_keeper_is_not_killed_for_starting_slowly),
        WITH(NULL, a_keeper_of_another_version_is_not_believed),
        CUT(a_claim_whose_answer_is_lost_is_unknown_and_not_tried_again),
        CUT(a_claim_whose_write_is_lost_is_unknown),
        CUT(a_renewal_whose_answer_is_lost_is_written_again),
        CUT(a_renewal_whose_write_is_lost_is_written_again),
        CUT(a_renewal_that_cannot_be_repeated_is_unknown),
        WITH(open_default, a_spare_takes_over_at_once),
        WITH(open_default, a_spare_that_dies_is_replaced_and_costs_nothing),
        WITH(open_default, nothing_leaks_into_the_keeper),
    };
    const char *missing = smbd_missing();

    if (missing) {
        (void)printf("1..0 # SKIP %s\n", missing);
        return 0;
    }
    smbd_init(&server);
    smbd_start(&server, "");
    int rc = cmocka_run_group_tests_name("keeper_faults", tests, NULL, NULL);
    smbd_release(&server);
    return rc;
}
