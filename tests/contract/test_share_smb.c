/* The contract of port/share.h, kept by the real keeper against a real smbd. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sys/stat.h>
#include <unistd.h>

#include "keeper_end.h"

static struct smbd server;
static struct contract_world world;
static struct keeper_end ends[2];

static void pump_both(void *arg)
{
    (void)arg;
    if (world.a.waiting)
        keeper_end_pump(&ends[0]);
    if (world.b.waiting)
        keeper_end_pump(&ends[1]);
}

static int open_on(const char *share)
{
    struct keeper_options o = keeper_end_options(&server);

    o.share = share;
    smbd_clear(&server);
    keeper_end_open(&ends[0], &world.a, &o);
    keeper_end_open(&ends[1], &world.b, &o);
    world.pump = pump_both;
    return 0;
}

static int open_world(void **state)
{
    (void)state;
    return open_on(server.share);
}

static int open_read_only(void **state)
{
    (void)state;
    return open_on(server.ro);
}

static int open_full(void **state)
{
    (void)state;
    return open_on(server.full);
}

static int close_world(void **state)
{
    (void)state;
    keeper_end_close(&ends[0]);
    keeper_end_close(&ends[1]);
    return 0;
}

static void contract_holds(void **state)
{
    const struct contract_test *t = *state;

    t->run(&world);
}

static enum err scan(void)
{
    return contract_do(
        &world, &world.a,
        (struct share_request){ .op = SHARE_SCAN, .name = "node-b", .self = "node-a" });
}

static void remove_folder(const char *name)
{
    char path[128];

    smbd_path(&server, path, sizeof(path), name);
    assert_int_equal(rmdir(path), 0);
}

static void a_share_never_initialised_is_not_an_empty_one(void **state)
{
    (void)state;
    remove_folder("state/epoch");
    remove_folder("state/node");
    remove_folder("state/request");
    assert_int_equal(scan(), ERR_NOT_FOUND);
    assert_int_equal(contract_poll(&world, &world.a, 1), ERR_NOT_FOUND);
    smbd_write(&server, "cluster", "sealed");
    assert_int_equal(scan(), ERR_OK);
    assert_true(world.a.a.top == 0);
    assert_true(str_is(world.a.a.cluster, "sealed"));
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_NOT_FOUND);
}

static void a_share_that_vanishes_is_not_an_empty_one(void **state)
{
    char from[128], to[128];

    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_OK);
    smbd_path(&server, from, sizeof(from), "state");
    smbd_path(&server, to, sizeof(to), "elsewhere");
    assert_int_equal(rename(from, to), 0);
    enum err moved = scan();
    assert_int_equal(rename(to, from), 0);
    assert_int_not_equal(moved, ERR_OK);
    assert_int_equal(scan(), ERR_OK);
    assert_true(world.a.a.top == 1);
}

static void only_canonical_numbers_are_epochs(void **state)
{
    (void)state;
    smbd_write(&server, "epoch/3", "three");
    smbd_write(&server, "epoch/0", "");
    smbd_write(&server, "epoch/007", "");
    smbd_write(&server, "epoch/+9", "");
    smbd_write(&server, "epoch/9 ", "");
    smbd_write(&server, "epoch/0x9", "");
    smbd_write(&server, "epoch/9.new", "");
    smbd_write(&server, "epoch/9007199254740992", ""); /* beyond the last */
    smbd_write(&server, "epoch/9223372036854775807", "");
    smbd_write(&server, "epoch/18446744073709551615", "");
    smbd_write(&server, "epoch/18446744073709551616", "");
    assert_int_equal(scan(), ERR_OK);
    assert_true(world.a.a.top == 3);
    assert_true(str_is(world.a.a.lease, "three"));
    assert_int_equal(
        contract_do(&world, &world.a,
                    (struct share_request){ .op = SHARE_PRUNE, .epoch = 100 }),
        ERR_OK);
    assert_int_equal(contract_named(&world, &world.a, SHARE_GET, "epoch/007", ""),
                     ERR_OK);
    assert_int_equal(contract_poll(&world, &world.a, 3), ERR_NOT_FOUND);
}

static void what_is_too_long_counts_as_unreadable(void **state)
{
    char large[SHARE_NODE_BYTES + 2];

    (void)state;
    memset(large, 'x', sizeof(large));
    large[sizeof(large) - 1] = '\0';
    smbd_write(&server, "node/node-a", large);
    smbd_write(&server, "node/node-b", "short");
    large[SHARE_REQUEST_BYTES + 1] = '\0';
    smbd_write(&server, "cluster", large);
    smbd_write(&server, "request/long", large);
    smbd_write(&server, "request/NOT A NAME", "x");
    smbd_write(&server, "request/pause", "p");
    smbd_write(&server, "epoch/1", large); /* its first 512 bytes are what counts */
    assert_int_equal(scan(), ERR_OK);
    assert_int_equal(world.a.a.self.n, 0);
    assert_true(str_is(world.a.a.peer, "short"));
    assert_int_equal(world.a.a.cluster.n, 0);
    assert_int_equal(world.a.a.request_count, 1);
    assert_string_equal(world.a.a.requests[0].name, "pause");
    assert_int_equal(world.a.a.lease.n, SHARE_LEASE_BYTES);
    assert_int_equal(contract_named(&world, &world.a, SHARE_GET, "node/node-a", ""),
                     ERR_LIMIT);
}

static void a_folder_in_the_way_of_a_claim_is_no_record(void **state)
{
    char path[128];

    (void)state;
    smbd_path(&server, path, sizeof(path), "state/epoch/1");
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(scan(), ERR_OK);
    assert_true(world.a.a.top == 1);
    assert_int_equal(world.a.a.lease.n, 0);
    assert_int_equal(contract_claim(&world, &world.a, 1, "a"), ERR_EXISTS);
}

static void requests_that_make_no_sense_are_refused(void **state)
{
    const struct contract_lease l = contract_record("x");

    (void)state;
    assert_int_equal(contract_claim(&world, &world.a, 0, "x"), ERR_INVALID);
    assert_int_equal(contract_claim(&world, &world.a, UINT64_MAX, "x"), ERR_INVALID);
    assert_int_equal(contract_do(&world, &world.a,
                                 (struct share_request){ .op = SHARE_CLAIM,
                                                         .epoch = 1,
                                                         .body = { l.bytes, 511 } }),
                     ERR_INVALID);
    assert_int_equal(contract_named(&world, &world.a, SHARE_PUT, "../up", "x"),
                     ERR_INVALID);
    assert_int_equal(contract_named(&world, &world.a, SHARE_GET, "epoch/../../x", ""),
                     ERR_INVALID);
    assert_int_equal(contract_named(&world, &world.a, SHARE_REMOVE, "", ""), ERR_INVALID);
    assert_int_equal(scan(), ERR_OK);
    assert_true(world.a.a.top == 0);
}

static void withdrawn_rights_are_denied(void **state)
{
    (void)state;
    smbd_write(&server, "epoch/1", "record");
    assert_int_equal(scan(), ERR_OK);
    assert_int_equal(contract_claim(&world, &world.a, 2, "x"), ERR_DENIED);
    assert_int_equal(contract_renew(&world, &world.a, 1, "x"), ERR_DENIED);
    assert_int_equal(contract_named(&world, &world.a, SHARE_PUT, "node/node-a", "x"),
                     ERR_DENIED);
    assert_int_equal(contract_named(&world, &world.a, SHARE_REMOVE, "epoch/1", ""),
                     ERR_DENIED);
    assert_int_equal(contract_poll(&world, &world.a, 1), ERR_OK);
    assert_true(str_is(world.a.a.lease, "record"));
}

static void a_full_share_renews_and_does_not_claim(void **state)
{
    char large[SHARE_NODE_BYTES], name[32];
    enum err e = ERR_OK;

    (void)state;
    memset(large, 'x', sizeof(large));
    large[sizeof(large) - 1] = '\0';
    assert_int_equal(contract_claim(&world, &world.a, 1, "before"), ERR_OK);
    for (int i = 0; i < 40; i++) { /* to the last page */
        (void)snprintf(name, sizeof(name), "node/%d", i);
        enum err now =
            contract_named(&world, &world.a, SHARE_PUT, name, i < 5 ? large : "x");
        e = now ? now : e;
    }
    assert_int_equal(e, ERR_FULL);
    assert_int_equal(contract_claim(&world, &world.a, 2, "x"), ERR_FULL);
    assert_int_equal(contract_renew(&world, &world.a, 1, "renewed"), ERR_OK);
    assert_int_equal(contract_poll(&world, &world.b, 1), ERR_OK);
    assert_true(world.b.a.top == 1); /* the failed claim left nothing behind */
    assert_true(str_starts(world.b.a.lease, STR("renewed")));
}

static void the_news_of_the_keeper_arrive(void **state)
{
    (void)state;
    assert_int_equal(scan(), ERR_OK);
    struct keeper_stats stats = keeper_stats(ends[0].keeper);
    assert_string_equal(stats.dialect, "3.1.1");
    assert_int_equal(stats.connections, 1);
    assert_int_equal(stats.replacements, 0);
    assert_true(mono_is_set(stats.last_ok));
    assert_true(world.a.a.latency_us > 0);
}

static const struct CMUnitTest smb_tests[] = {
#define SMB(f, open) cmocka_unit_test_setup_teardown(f, open, close_world)
    SMB(a_share_never_initialised_is_not_an_empty_one, open_world),
    SMB(a_share_that_vanishes_is_not_an_empty_one, open_world),
    SMB(only_canonical_numbers_are_epochs, open_world),
    SMB(what_is_too_long_counts_as_unreadable, open_world),
    SMB(a_folder_in_the_way_of_a_claim_is_no_record, open_world),
    SMB(requests_that_make_no_sense_are_refused, open_world),
    SMB(withdrawn_rights_are_denied, open_read_only),
    SMB(a_full_share_renews_and_does_not_claim, open_full),
    SMB(the_news_of_the_keeper_arrive, open_world),
};

int main(void)
{
    struct CMUnitTest tests[64];
    const char *missing = smbd_missing();

    if (missing) {
        (void)printf("1..0 # SKIP %s\n", missing);
        return 0;
    }
    const size_t n = contract_test_count + LEN(smb_tests);
    CHECK(n <= LEN(tests));
    for (size_t i = 0; i < contract_test_count; i++)
        tests[i] = (struct CMUnitTest){
            .name = contract_tests[i].name,
            .test_func = contract_holds,
            .setup_func = open_world,
            .teardown_func = close_world,
            .initial_state = (void *)(uintptr_t)&contract_tests[i],
        };
    memcpy(tests + contract_test_count, smb_tests, sizeof(smb_tests));
    smbd_init(&server);
    smbd_start(&server, "");
    int rc = _cmocka_run_group_tests("share_smb", tests, n, NULL, NULL);
    smbd_release(&server);
    return rc;
}
