/* What sys/smb reads without a server: shares, credentials, a server's first answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/smb/smb.h"
#include "sys/smb/smb_url.h"

static struct err_info why;

static void a_share_is_taken_apart(void **state)
{
    static const struct {
        const char *share, *host, *folder, *base;
    } rows[] = {
        { "//fs/state", "fs", "", "smb://fs/state" },
        { "//fs.example.org/state/", "fs.example.org", "", "smb://fs.example.org/state" },
        { "//10.77.0.10/s/a/b", "10.77.0.10", "a/b", "smb://10.77.0.10/s/a/b" },
        { "//[fd77::10]/s", "fd77::10", "", "smb://fd77%3A%3A10/s" },
        { "//fd77::10/s", "fd77::10", "", "smb://fd77%3A%3A10/s" },
        { "//fs/my share$/x y", "fs", "x y", "smb://fs/my%20share%24/x%20y" },
        { "//fs/50%/a?b", "fs", "a?b", "smb://fs/50%25/a%3Fb" },
    };
    struct smb_url u;

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        assert_true(smb_url_parse(&u, str_of(rows[i].share)));
        assert_string_equal(u.host, rows[i].host);
        assert_string_equal(u.folder, rows[i].folder);
        assert_string_equal(u.base, rows[i].base);
    }
}

static void what_is_not_a_share_is_refused(void **state)
{
    static const char *const bad[] = {
        "",         "fs/state", "/fs/state",  "//",        "//fs",       "//fs/",
        "///state", "//fs//x",  "//fs/s/../", "//fs/s/..", "//fs/s/./x", "\\\\fs\\state",
        "//../s",   "//fs/s\n", "//fs/a\\b",  "//fs/s//x",
    };
    char longer[400];
    struct smb_url u;

    (void)state;
    for (size_t i = 0; i < LEN(bad); i++)
        assert_false(smb_url_parse(&u, str_of(bad[i])));
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    memcpy(longer, "//fs/", 5);
    assert_false(smb_url_parse(&u, str_of(longer)));
    longer[85] = '\0'; /* 80 characters of a share's name are allowed */
    assert_true(smb_url_parse(&u, str_of(longer)));
    longer[85] = 'x';
    longer[86] = '\0';
    assert_false(smb_url_parse(&u, str_of(longer)));
    longer[7] = '/';
    longer[86] = 'x'; /* a folder that does not fit */
    assert_false(smb_url_parse(&u, str_of(longer)));
}

static void credentials_are_lines(void **state)
{
    struct smb_cred c;

    (void)state;
    assert_int_equal(smb_cred_parse(&c,
                                    STR("# who\n\nusername=svc\r\npassword= a=b \n"
                                        "domain=EXAMPLE"),
                                    "f", &why),
                     ERR_OK);
    assert_string_equal(c.user, "svc");
    assert_string_equal(c.password, " a=b ");
    assert_string_equal(c.domain, "EXAMPLE");
}

static void a_bad_line_is_named_and_not_repeated(void **state)
{
    struct smb_cred c = { .user = "before" };
    char longer[SMB_CRED_BYTES + 16];

    (void)state;
    assert_int_equal(smb_cred_parse(&c, STR("username=x\nhunter2\n"), "cred", &why),
                     ERR_CONFIG);
    assert_non_null(strstr(why.what, "cred:2:"));
    assert_null(strstr(why.what, "hunter2")); /* it may be the password */
    assert_int_equal(smb_cred_parse(&c, STR("password=x\n"), "cred", &why), ERR_CONFIG);
    memset(longer, 'x', sizeof(longer));
    memcpy(longer, "username=", 9);
    assert_int_equal(
        smb_cred_parse(&c, (struct str){ longer, 9 + SMB_CRED_BYTES }, "cred", &why),
        ERR_CONFIG);
    assert_int_equal(smb_cred_parse(&c, STR("username=a\0b\n"), "cred", &why),
                     ERR_CONFIG);
    assert_string_equal(c.user, "before");
    assert_int_equal(
        smb_cred_parse(&c, (struct str){ longer, 9 + SMB_CRED_BYTES - 1 }, "cred", &why),
        ERR_OK);
}

static void a_file_that_others_can_read_is_refused(void **state)
{
    char path[] = "/tmp/redoubt-cred-XXXXXX";
    struct smb_cred c;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "username=u\n", 11), 11);
    static const mode_t bad[] = { 0640, 0604, 0620, 0602, 0610, 0601 };
    for (size_t i = 0; i < LEN(bad); i++) {
        assert_int_equal(fchmod(fd, bad[i]), 0);
        assert_int_equal(smb_cred_load(&c, path, &why), ERR_DENIED);
    }
    assert_int_equal(fchmod(fd, 0600), 0);
    assert_int_equal(smb_cred_load(&c, path, &why), ERR_OK);
    assert_string_equal(c.user, "u");
    assert_int_equal(ftruncate(fd, SMB_CRED_FILE_MAX + 1), 0);
    assert_int_equal(smb_cred_load(&c, path, &why), ERR_CONFIG);
    (void)close(fd);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(smb_cred_load(&c, path, &why), ERR_NOT_FOUND);
    assert_int_equal(smb_cred_load(&c, "/dev/null", &why), ERR_DENIED);
}

/* A server's NEGOTIATE response, 128 bytes, as far as it matters. */
struct response {
    uint8_t b[256];
    size_t n;
};

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v & 0xff);
    p[1] = (uint8_t)(v >> 8);
}

static struct response response(unsigned dialect)
{
    struct response r = { .n = 64 + 64 };

    memcpy(r.b, "\xfeSMB", 4);
    put16(r.b + 4, 64);
    put16(r.b + 64, 65);
    put16(r.b + 64 + 2, 3); /* signing required */
    put16(r.b + 64 + 4, dialect);
    memcpy(r.b + 64 + 8, "the server guid.", 16);
    put16(r.b + 64 + 24, 0x41); /* DFS, encryption */
    return r;
}

/* As of 3.1.1: a context of another kind, then the cipher. */
static void add_contexts(struct response *r, unsigned cipher)
{
    uint8_t *p = r->b + r->n;

    put16(r->b + 64 + 6, 2);
    put16(r->b + 64 + 60, (unsigned)r->n);
    put16(p, 1);
    put16(p + 2, 6);
    put16(p + 16, 2);
    put16(p + 16 + 2, 4);
    put16(p + 16 + 8, 1);
    put16(p + 16 + 10, cipher);
    r->n += 16 + 12;
}

static void a_servers_choice_is_read(void **state)
{
    struct smb_negotiated n;
    struct response r = response(0x0302);

    (void)state;
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_OK);
    assert_int_equal(n.dialect, SMB_DIALECT_3_02);
    assert_true(n.encryption && n.dfs && n.must_sign);
    assert_memory_equal(n.server_guid, "the server guid.", 16);
    r = response(0x0202);
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_OK);
    assert_false(n.encryption); /* only SMB 3 has it, whatever the bits say */
    r = response(0x0311);
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_OK);
    assert_false(n.encryption); /* no cipher chosen */
    add_contexts(&r, 2);
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_OK);
    assert_true(n.encryption);
    r = response(0x0311);
    add_contexts(&r, 0);
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_OK);
    assert_false(n.encryption);
}

static void a_server_we_cannot_talk_to_is_told_from_noise(void **state)
{
    struct smb_negotiated n = { .dialect = SMB_DIALECT_2_10 };
    struct response r = response(0x0311);

    (void)state;
    memcpy(r.b, "\xffSMB", 4);
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_VERSION); /* SMB 1 */
    r = response(0x02ff); /* "any SMB 2": not an answer to what we ask */
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_VERSION);
    r = response(0x0311);
    memcpy(r.b + 8, "\xbb\x00\x00\xc0", 4); /* STATUS_NOT_SUPPORTED */
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_VERSION);
    r = response(0x0311);
    r.b[8] = 1;
    assert_int_equal(smb_negotiate_decode(&n, r.b, r.n), ERR_CORRUPT);
    assert_int_equal(n.dialect, SMB_DIALECT_2_10); /* untouched */
}

static void a_cut_answer_is_never_read_beyond_its_end(void **state)
{
    struct response r = response(0x0311);
    struct smb_negotiated out;

    (void)state;
    add_contexts(&r, 2);
    for (size_t n = 0; n <= r.n; n++) {
        uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees one byte more */

        memcpy(exact, r.b, n);
        enum err e = smb_negotiate_decode(&out, exact, n);
        assert_int_equal(e == ERR_OK, n >= 128);
        free(exact);
    }
    for (unsigned at = 0; at < 0x10000; at += 251) { /* contexts that lie far outside */
        put16(r.b + 64 + 60, at);
        assert_int_equal(smb_negotiate_decode(&out, r.b, r.n), ERR_OK);
    }
}

static void the_request_asks_for_the_range(void **state)
{
    uint8_t buf[SMB_NEGOTIATE_MAX], guid[16] = "0123456789abcde";

    (void)state;
    size_t n = smb_negotiate_encode(buf, SMB_DIALECT_2_02, SMB_DIALECT_3_02, guid);
    assert_int_equal(n, 4 + 64 + 36 + 2 * 4);
    assert_int_equal(buf[3], n - 4);
    assert_int_equal(buf[4 + 64 + 2], 4);
    n = smb_negotiate_encode(buf, SMB_DIALECT_3_11, SMB_DIALECT_3_11, guid);
    assert_true(n <= SMB_NEGOTIATE_MAX);
    assert_int_equal(buf[4 + 64 + 2], 1);
    assert_int_equal(buf[4 + 64 + 32], 2); /* contexts */
    assert_int_equal(buf[4 + 64 + 28] % 8, 0);
}

static void dialects_have_two_spellings(void **state)
{
    enum smb_dialect d = SMB_DIALECT_NONE;

    (void)state;
    assert_true(smb_dialect_parse(STR("SMB3_11"), &d));
    assert_int_equal(d, SMB_DIALECT_3_11);
    assert_true(smb_dialect_parse(STR("2.0.2"), &d));
    assert_int_equal(d, SMB_DIALECT_2_02);
    assert_false(smb_dialect_parse(STR("NT1"), &d));
    assert_false(smb_dialect_parse(STR("SMB3"), &d));
    assert_int_equal(d, SMB_DIALECT_2_02);
    assert_string_equal(smb_dialect_name(SMB_DIALECT_3_02), "3.0.2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_share_is_taken_apart),
        cmocka_unit_test(what_is_not_a_share_is_refused),
        cmocka_unit_test(credentials_are_lines),
        cmocka_unit_test(a_bad_line_is_named_and_not_repeated),
        cmocka_unit_test(a_file_that_others_can_read_is_refused),
        cmocka_unit_test(a_servers_choice_is_read),
        cmocka_unit_test(a_server_we_cannot_talk_to_is_told_from_noise),
        cmocka_unit_test(a_cut_answer_is_never_read_beyond_its_end),
        cmocka_unit_test(the_request_asks_for_the_range),
        cmocka_unit_test(dialects_have_two_spellings),
    };
    return cmocka_run_group_tests_name("smb_parse", tests, NULL, NULL);
}
