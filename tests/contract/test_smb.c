/* One connection and the checks for `redoubt check`, against a real smbd. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "smbd.h"
#include "sys/smb/smb_check.h"

static struct smbd server;
static struct smb_cred cred;
static struct err_info why;

static struct smb_options options(const char *share)
{
    return (struct smb_options){
        .share = share,
        .cred = &cred,
        .min = SMB_DIALECT_2_02,
        .max = SMB_DIALECT_3_11,
        .port = server.port,
        .timeout_ms = 5000,
    };
}

static struct smb *connected(const char *share)
{
    const struct smb_options o = options(share);
    struct smb *s = NULL;

    assert_int_equal(smb_connect(&s, &o, &why), ERR_OK);
    return s;
}

/* With a timeout so short that a busy machine may miss it: tried until it is made. */
static struct smb *connected_within(uint32_t timeout_ms)
{
    struct smb_options o = options(server.share);
    struct smb *s = NULL;
    enum err e = ERR_TIMEOUT;

    o.timeout_ms = timeout_ms;
    for (int i = 0; i < 20 && e; i++)
        e = smb_connect(&s, &o, &why);
    assert_int_equal(e, ERR_OK);
    return s;
}

static int fresh(void **state)
{
    (void)state;
    smbd_clear(&server);
    assert_int_equal(smb_cred_load(&cred, server.credentials, &why), ERR_OK);
    return 0;
}

static void restart(const char *extra)
{
    smbd_kill(&server);
    smbd_start(&server, extra);
}

static int plain_again(void **state)
{
    (void)state;
    restart("");
    return 0;
}

static void every_dialect_from_2_02_on_is_spoken(void **state)
{
    static const enum smb_dialect all[] = { SMB_DIALECT_2_02, SMB_DIALECT_2_10,
                                            SMB_DIALECT_3_00, SMB_DIALECT_3_02,
                                            SMB_DIALECT_3_11 };
    (void)state;
    for (size_t i = 0; i < LEN(all); i++) {
        struct smb_options o = options(server.share);
        struct smb_negotiated n;
        struct smb *s = NULL;
        bool there = true;

        o.max = all[i];
        assert_int_equal(smb_ask(&o, &n, &why), ERR_OK);
        assert_int_equal(n.dialect, all[i]);
        o.min = all[i];
        assert_int_equal(smb_connect(&s, &o, &why), ERR_OK);
        assert_int_equal(smb_create(s, "x", STR("body"), &why), ERR_OK);
        assert_int_equal(smb_remove(s, "x", &why), ERR_OK);
        assert_int_equal(smb_exists(s, "x", &there, &why), ERR_OK);
        assert_false(there);
        smb_free(s);
    }
}

static void a_server_with_smb_1_only_is_refused(void **state)
{
    const struct smb_options o = options(server.share);
    struct smb_negotiated n;
    struct smb *s = NULL;

    (void)state;
    restart("server min protocol = NT1\nserver max protocol = NT1");
    assert_int_equal(smb_connect(&s, &o, &why), ERR_VERSION);
    assert_non_null(strstr(why.what, "SMB"));
    assert_int_equal(smb_ask(&o, &n, &why), ERR_VERSION);
}

static void a_server_below_the_minimum_is_refused(void **state)
{
    struct smb_options o = options(server.share);
    struct smb *s = NULL;

    (void)state;
    restart("server max protocol = SMB2_10");
    o.min = SMB_DIALECT_3_00;
    assert_int_equal(smb_connect(&s, &o, &why), ERR_VERSION);
}

static void a_wrong_password_is_denied(void **state)
{
    const struct smb_options o = options(server.share);
    struct smb *s = NULL;

    (void)state;
    (void)snprintf(cred.password, sizeof(cred.password), "wrong");
    assert_int_equal(smb_connect(&s, &o, &why), ERR_DENIED);
}

static void a_missing_share_is_told_from_a_missing_file(void **state)
{
    const struct smb_options o = options("//127.0.0.1/nothing");
    struct smb_options folder = options("//127.0.0.1/state/no-such-folder");
    struct smb *s = NULL;
    char c;
    size_t n;

    (void)state;
    assert_int_equal(smb_connect(&s, &o, &why), ERR_NOT_FOUND);
    assert_int_equal(smb_connect(&s, &folder, &why), ERR_NOT_FOUND);
    s = connected(server.share);
    assert_int_equal(smb_read(s, "no-file", &c, 1, &n, &why), ERR_NOT_FOUND);
    assert_int_equal(smb_read(s, "no-folder/no-file", &c, 1, &n, &why), ERR_NOT_FOUND);
    assert_int_equal(smb_rewrite(s, "no-file", STR("x"), &why), ERR_NOT_FOUND);
    assert_int_equal(smb_remove(s, "no-file", &why), ERR_NOT_FOUND);
    assert_false(smb_is_lost(s));
    smb_free(s);
}

static void nobody_listening_is_answered_quickly(void **state)
{
    struct smb_options o = options(server.share);
    struct smb *s = NULL;

    (void)state;
    smbd_kill(&server);
    assert_int_equal(smb_connect(&s, &o, &why), ERR_IO);
    smbd_start(&server, "");
}

static void a_share_may_have_a_folder_of_ours(void **state)
{
    char path[128];
    struct stat st;

    (void)state;
    smbd_path(&server, path, sizeof(path), "state/a b");
    assert_int_equal(mkdir(path, 0700), 0);
    struct smb *s = connected("//127.0.0.1/state/a b");
    assert_int_equal(smb_put(s, "file", STR("x"), &why), ERR_OK);
    smb_free(s);
    smbd_path(&server, path, sizeof(path), "state/a b/file");
    assert_int_equal(stat(path, &st), 0);
}

static void a_read_only_share_is_denied(void **state)
{
    struct smb *s = connected(server.ro);
    struct smb_rights r;
    bool there;

    (void)state;
    smbd_write(&server, "epoch/1", "record");
    assert_int_equal(smb_create(s, "epoch/2", STR("x"), &why), ERR_DENIED);
    assert_int_equal(smb_rewrite(s, "epoch/1", STR("x"), &why), ERR_DENIED);
    assert_int_equal(smb_put(s, "node/a", STR("x"), &why), ERR_DENIED);
    assert_int_equal(smb_remove(s, "epoch/1", &why), ERR_DENIED);
    assert_int_equal(smb_exists(s, "epoch/1", &there, &why), ERR_OK);
    assert_true(there);
    assert_int_equal(smb_check_rights(s, &r, &why), ERR_OK);
    assert_false(r.create);
    assert_int_not_equal(r.why.what[0], '\0');
    assert_false(smb_is_lost(s));
    smb_free(s);
}

static void a_full_share_is_full_and_keeps_no_empty_claim(void **state)
{
    struct smb *s = connected(server.full);
    char large[16384];
    char name[SMB_NAME_BYTES];
    enum err e = ERR_OK;
    bool there = true;

    (void)state;
    memset(large, 'x', sizeof(large));
    assert_int_equal(smb_create(s, "epoch/1", STR("before"), &why), ERR_OK);
    for (int i = 0; i < 16 && e == ERR_OK; i++) {
        (void)snprintf(name, sizeof(name), "node/%d", i);
        e = smb_put(s, name, (struct str){ large, sizeof(large) }, &why);
    }
    assert_int_equal(e, ERR_FULL);
    for (int i = 100; i < 120 && e != ERR_OK;
         i++) { /* fill what is left, to the last page */
        (void)snprintf(name, sizeof(name), "node/%d", i);
        e = smb_put(s, name, STR("x"), &why) == ERR_FULL ? ERR_OK : ERR_FULL;
    }
    assert_int_equal(smb_create(s, "epoch/2", STR("x"), &why), ERR_FULL);
    assert_int_equal(smb_exists(s, "epoch/2", &there, &why), ERR_OK);
    assert_false(there);
    assert_int_equal(smb_rewrite(s, "epoch/1", STR("renews"), &why), ERR_OK);
    smb_free(s);
}

static void names_never_climb(void **state)
{
    static const char *const bad[] = { "",         "/x",   "x/",    "..",  "../x",
                                       "epoch/..", "a//b", "A",     "a b", "a\\b",
                                       ".x",       "a/.b", "a%2fb", "a:b" };
    struct smb *s = connected("//127.0.0.1/state/epoch");
    char c;
    size_t n;

    (void)state;
    smbd_write(&server, "x", "outside");
    for (size_t i = 0; i < LEN(bad); i++) {
        assert_false(smb_name_ok(bad[i]));
        assert_int_equal(smb_read(s, bad[i], &c, 1, &n, &why), ERR_INVALID);
        assert_int_equal(smb_create(s, bad[i], STR("x"), &why), ERR_INVALID);
        assert_int_equal(smb_remove(s, bad[i], &why), ERR_INVALID);
    }
    assert_true(smb_name_ok("epoch/18446744073709551615"));
    smb_free(s);
}

static void a_read_is_bounded(void **state)
{
    struct smb *s = connected(server.share);
    char buf[8];
    size_t n = 77;

    (void)state;
    smbd_write(&server, "file", "12345678");
    assert_int_equal(smb_read(s, "file", buf, 7, &n, &why), ERR_LIMIT);
    assert_int_equal(n, 77);
    assert_int_equal(smb_read(s, "file", buf, 8, &n, &why), ERR_OK);
    assert_int_equal(n, 8);
    assert_int_equal(smb_read_head(s, "file", buf, 3, &n, &why), ERR_OK);
    assert_int_equal(n, 3);
    smb_free(s);
}

static void a_rewrite_keeps_the_length(void **state)
{
    struct smb *s = connected(server.share);
    char buf[8];
    size_t n;

    (void)state;
    smbd_write(&server, "file", "12345");
    assert_int_equal(smb_rewrite(s, "file", STR("ab"), &why), ERR_OK);
    assert_int_equal(smb_read(s, "file", buf, sizeof(buf), &n, &why), ERR_OK);
    assert_true(str_is((struct str){ buf, n }, "ab345"));
    assert_int_equal(smb_put(s, "file", STR("ab"), &why), ERR_OK);
    assert_int_equal(smb_read(s, "file", buf, sizeof(buf), &n, &why), ERR_OK);
    assert_true(str_is((struct str){ buf, n }, "ab"));
    smb_free(s);
}

/* Does smbd's log at level 10 hold all of these words in one line? */
static bool logged(const char *a, const char *b)
{
    char path[128], line[4096];
    bool found = false;

    smbd_path(&server, path, sizeof(path), "smbd.log");
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    while (!found && fgets(line, sizeof(line), f))
        found = strstr(line, a) && strstr(line, b);
    (void)fclose(f);
    return found;
}

static void a_claim_is_create_disposition_file_create(void **state)
{
    (void)state;
    restart("log level = 10\nmax log size = 0");
    struct smb *s = connected(server.share);
    assert_int_equal(smb_create(s, "epoch/31", STR("x"), &why), ERR_OK);
    assert_int_equal(smb_rewrite(s, "epoch/31", STR("y"), &why), ERR_OK);
    smb_free(s);
    /* MS-SMB2 2.2.13: FILE_CREATE is 2, FILE_OPEN is 1; no oplock is asked for. */
    assert_true(logged("fname=epoch/31", "create_disposition = 0x2"));
    assert_true(logged("fname=epoch/31", "create_disposition = 0x1"));
    assert_true(logged("fname=epoch/31", "oplock_request=0"));
    assert_false(logged("fname=epoch/31", "create_disposition = 0x3"));
    assert_false(logged("fname=epoch/31", "create_disposition = 0x5"));
}

static void of_two_connections_exactly_one_creates(void **state)
{
    const struct smb_options o = options(server.share);
    struct smb_exclusive x;

    (void)state;
    assert_int_equal(smb_check_exclusive(&o, 200, &x, &why), ERR_OK);
    assert_int_equal(x.rounds, 200);
    assert_int_equal(x.both, 0);
    assert_int_equal(x.none, 0);
    assert_in_range(x.ours, 1, 199); /* else it was no race */
}

static bool count(void *arg, const char *entry, bool is_folder)
{
    int *n = arg;

    (void)entry, (void)is_folder;
    ++*n;
    return true;
}

static bool progress(void *arg, bool writing, uint64_t done, uint64_t total)
{
    uint64_t *last = arg;

    (void)writing;
    assert_true(done > *last && done <= total);
    *last = done;
    return true;
}

static bool stop_at_once(void *arg, bool writing, uint64_t done, uint64_t total)
{
    (void)arg, (void)writing, (void)done, (void)total;
    return false;
}

static void the_checks_measure_and_leave_nothing_behind(void **state)
{
    struct smb *s = connected(server.share);
    struct smb_rights r;
    struct smb_latency l;
    struct smb_bandwidth b;
    struct smb_space space;
    uint64_t last = 0;
    int left = 0;

    (void)state;
    assert_int_equal(smb_check_rights(s, &r, &why), ERR_OK);
    assert_true(r.create && r.write && r.read && r.rename && r.remove);
    assert_int_equal(smb_check_latency(s, 50, &l, &why), ERR_OK);
    assert_true(l.poll.min_us > 0 && l.poll.min_us <= l.poll.p50_us &&
                l.poll.p50_us <= l.poll.p99_us && l.poll.p99_us <= l.poll.max_us);
    print_message("# poll p50 %u us, renew p50 %u us, create p50 %u us\n", l.poll.p50_us,
                  l.renew.p50_us, l.create.p50_us);
    assert_int_equal(smb_check_bandwidth(s, 4, progress, &last, &b, &why), ERR_OK);
    assert_true(last == UINT64_C(8) << 20);
    assert_true(b.write_bytes_s > 0 && b.read_bytes_s > 0);
    assert_int_equal(smb_check_bandwidth(s, 4, stop_at_once, NULL, &b, &why), ERR_STATE);
    assert_int_equal(smb_space(s, &space, &why), ERR_OK);
    assert_true(space.total_bytes == UINT64_C(32) << 20); /* the tmpfs of the test */
    assert_true(space.free_bytes > 0 && space.free_bytes < space.total_bytes);
    assert_int_equal(smb_list(s, "", count, &left, &why), ERR_OK);
    assert_int_equal(left, 3); /* epoch, node, request */
    smb_free(s);
}

static void encryption_is_never_silently_missing(void **state)
{
    struct smb_options o = options(server.share);
    struct smb *s = NULL;

    (void)state;
    o.encrypt = true;
    restart("server smb encrypt = required");
    assert_int_equal(smb_connect(&s, &o, &why), ERR_OK);
    assert_int_equal(smb_put(s, "file", STR("x"), &why), ERR_OK);
    smb_free(s);
    s = NULL;
    restart("server smb encrypt = off");
    assert_int_equal(smb_connect(&s, &o, &why), ERR_UNSUPPORTED);
    restart("host msdfs = no"); /* then libsmbclient 4.17 would not turn it on */
    assert_int_equal(smb_connect(&s, &o, &why), ERR_UNSUPPORTED);
    restart("server max protocol = SMB2_10");
    assert_int_equal(smb_connect(&s, &o, &why), ERR_VERSION);
    o.max = SMB_DIALECT_2_10;
    assert_int_equal(smb_connect(&s, &o, &why), ERR_UNSUPPORTED);
}

static void a_connection_that_breaks_is_lost_and_another_one_works(void **state)
{
    struct smb *s = connected(server.share);
    char buf[8];
    size_t n;

    (void)state;
    smbd_write(&server, "file", "x");
    restart("");
    assert_int_not_equal(smb_read(s, "file", buf, sizeof(buf), &n, &why), ERR_NOT_FOUND);
    smb_free(s);
    s = connected(server.share);
    assert_int_equal(smb_read(s, "file", buf, sizeof(buf), &n, &why), ERR_OK);
    smb_free(s);
}

static void a_share_that_vanishes_is_not_a_missing_file(void **state)
{
    /* libsmbclient looks whether the server lives after this time, and then reconnects
     * within the call; the share it finds no more is "no such file" to it. */
    struct smb *s = connected_within(4000);
    bool there = true;

    (void)state;
    (void)poll(NULL, 0, 6000);
    restart("[state]\navailable = no");
    assert_int_equal(smb_exists(s, "epoch/1", &there, &why), ERR_IO);
    assert_true(smb_is_lost(s));
    smb_free(s);
}

/* A copy in the mount namespace of the test: what other programs of the machine open is
 * another file. */
static void watch_configuration_of_the_machine(int in)
{
    static const char its[] = "/etc/samba/smb.conf";
    char copy[128];

    if (access(its, F_OK) != 0)
        return;
    smbd_write(&server, "smb.conf", "[global]\nclient signing = disabled\n");
    smbd_path(&server, copy, sizeof(copy), "state/smb.conf");
    assert_int_equal(mount(copy, its, NULL, MS_BIND, NULL), 0);
    assert_true(inotify_add_watch(in, its, IN_OPEN) >= 0);
}

static void no_configuration_of_the_machine_is_read(void **state)
{
    char home[128], event[256];
    int in = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);

    (void)state;
    smbd_path(&server, home, sizeof(home), "state/.smb");
    assert_int_equal(mkdir(home, 0700), 0);
    smbd_write(&server, ".smb/smb.conf", "[global]\nclient signing = disabled\n");
    assert_true(inotify_add_watch(in, home, IN_OPEN) >= 0);
    watch_configuration_of_the_machine(in);
    smbd_path(&server, home, sizeof(home), "state");
    assert_int_equal(setenv("HOME", home, 1), 0);
    for (int i = 0; i < 3; i++) { /* also when no other connection is left */
        struct smb *s = connected(server.share);

        assert_string_equal(getenv("HOME"), home);
        smb_free(s);
    }
    assert_int_equal(read(in, event, sizeof(event)), -1);
    (void)close(in);
    (void)umount2("/etc/samba/smb.conf", MNT_DETACH); /* if it is there */
}

static void trying_to_connect_leaks_nothing(void **state)
{
    struct smb_options o = options(server.share);
    struct smb *s = NULL;
    size_t before = 0;

    (void)state;
    smb_free(connected(server.share));
    o.port = 1;
    for (int i = 0; i < 300; i++) { /* as when the server is down for long */
        assert_int_equal(smb_connect(&s, &o, &why), ERR_IO);
        if (i == 10)
            before = mallinfo2().uordblks;
    }
    assert_true(mallinfo2().uordblks < before + 8192);
}

static void only_a_file_with_its_mark_is_rewritten(void **state)
{
    struct smb *s = connected(server.share);
    char buf[64];
    size_t n = 0;
    bool sent = false;

    (void)state;
    smbd_write(&server, "file", "the mark is here");
    assert_int_equal(smb_rewrite_own(s, "file", STR("mark!"), STR("x"), &sent, &why),
                     ERR_STALE);
    assert_false(sent);
    assert_int_equal(smb_rewrite_own(s, "file", STR("mark"), STR("THE"), &sent, &why),
                     ERR_OK);
    assert_true(sent);
    assert_int_equal(smb_read(s, "file", buf, sizeof(buf), &n, &why), ERR_OK);
    assert_true(str_is((struct str){ buf, n }, "THE mark is here"));
    sent = false;
    assert_int_equal(smb_rewrite_own(s, "none", STR("mark"), STR("x"), &sent, &why),
                     ERR_NOT_FOUND);
    assert_false(sent);
    smb_free(s);
}

static void a_connection_replaced_within_a_call_is_counted(void **state)
{
    struct smb *s = connected_within(4000);
    bool there = false;

    (void)state;
    smbd_write(&server, "epoch/1", "x");
    assert_int_equal(smb_connections(s), 1);
    (void)poll(NULL, 0, 6000); /* then libsmbclient asks whether the server lives */
    restart("");
    assert_int_equal(smb_exists(s, "epoch/1", &there, &why), ERR_OK);
    assert_true(there);
    assert_int_equal(smb_connections(s), 2);
    smb_free(s);
}

int main(void)
{
#define ONE(f)   cmocka_unit_test_setup(f, fresh)
#define AGAIN(f) cmocka_unit_test_setup_teardown(f, fresh, plain_again)
    const struct CMUnitTest tests[] = {
        ONE(no_configuration_of_the_machine_is_read),
        ONE(trying_to_connect_leaks_nothing),
        ONE(only_a_file_with_its_mark_is_rewritten),
        ONE(a_connection_replaced_within_a_call_is_counted),
        ONE(every_dialect_from_2_02_on_is_spoken),
        AGAIN(a_server_with_smb_1_only_is_refused),
        AGAIN(a_server_below_the_minimum_is_refused),
        ONE(a_wrong_password_is_denied),
        ONE(a_missing_share_is_told_from_a_missing_file),
        ONE(nobody_listening_is_answered_quickly),
        ONE(a_share_may_have_a_folder_of_ours),
        ONE(a_read_only_share_is_denied),
        ONE(a_full_share_is_full_and_keeps_no_empty_claim),
        ONE(names_never_climb),
        ONE(a_read_is_bounded),
        ONE(a_rewrite_keeps_the_length),
        AGAIN(a_claim_is_create_disposition_file_create),
        ONE(of_two_connections_exactly_one_creates),
        ONE(the_checks_measure_and_leave_nothing_behind),
        AGAIN(encryption_is_never_silently_missing),
        AGAIN(a_share_that_vanishes_is_not_a_missing_file),
        ONE(a_connection_that_breaks_is_lost_and_another_one_works),
    };
    const char *missing = smbd_missing();

    if (missing) {
        (void)printf("1..0 # SKIP %s\n", missing);
        return 0;
    }
    smbd_init(&server);
    smbd_start(&server, "");
    int rc = cmocka_run_group_tests_name("smb", tests, NULL, NULL);
    smbd_release(&server);
    return rc;
}
