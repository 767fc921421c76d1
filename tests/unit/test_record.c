/* Records on the share: what verifies, what does not, and every limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/json.h"
#include "wire/record.h"

static const struct mac_key key = { { 1, 2, 3 } };
static const char cluster[] = "00112233445566778899aabbccddeeff";

static struct lease_rec some_lease(void)
{
    return (struct lease_rec){
        .cluster = "00112233445566778899aabbccddeeff",
        .epoch = 12,
        .owner = "node-a",
        .incarnation = UINT64_MAX,
        .seq = 7,
        .released = true,
        .hold_ms = RECORD_HOLD_MAX_MS,
        .to = "node-b",
        .why = "operator",
        .down_ms = 5,
        .moves = 1,
    };
}

static void a_lease_survives_encoding(void **state)
{
    (void)state;
    struct lease_rec in = some_lease(), out;
    char buf[RECORD_LEASE_BYTES];

    assert_int_equal(lease_encode(buf, &key, &in), ERR_OK);
    assert_int_equal(
        lease_decode(&out, &key, cluster, 12, (struct str){ buf, sizeof(buf) }), ERR_OK);
    assert_int_equal(out.incarnation, in.incarnation);
    assert_string_equal(out.owner, in.owner);
    assert_string_equal(out.to, in.to);
    assert_string_equal(out.why, in.why);
    assert_true(out.released && out.hold_ms == in.hold_ms && out.seq == 7 &&
                out.moves == 1);
}

static void the_longest_lease_fits(void **state)
{
    (void)state;
    struct lease_rec in = some_lease();
    char buf[RECORD_LEASE_BYTES];

    in.epoch = in.seq = UINT64_MAX;
    in.moves = in.down_ms = UINT32_MAX;
    memset(in.owner, 'a', sizeof(in.owner) - 1);
    memset(in.to, 'b', sizeof(in.to) - 1);
    memset(in.why, 'c', sizeof(in.why) - 1);
    assert_int_equal(lease_encode(buf, &key, &in), ERR_OK);
}

static void any_changed_byte_is_corrupt(void **state)
{
    (void)state;
    struct lease_rec in = some_lease(), out;
    char buf[RECORD_LEASE_BYTES];

    assert_int_equal(lease_encode(buf, &key, &in), ERR_OK);
    for (size_t i = 0; i < sizeof(buf); i++) {
        buf[i] ^= 4;
        assert_int_equal(
            lease_decode(&out, &key, cluster, 12, (struct str){ buf, sizeof(buf) }),
            ERR_CORRUPT);
        buf[i] ^= 4;
    }
}

static void a_torn_record_is_corrupt(void **state)
{
    (void)state;
    struct lease_rec in = some_lease(), out;
    char old[RECORD_LEASE_BYTES], new[RECORD_LEASE_BYTES];

    assert_int_equal(lease_encode(old, &key, &in), ERR_OK);
    in.seq++;
    assert_int_equal(lease_encode(new, &key, &in), ERR_OK);
    memcpy(old, new, 256);
    assert_int_equal(lease_decode(&out, &key, cluster, 12, (struct str){ old, 512 }),
                     ERR_CORRUPT);
    for (size_t n = 0; n < 512; n += 73)
        assert_int_equal(lease_decode(&out, &key, cluster, 12, (struct str){ new, n }),
                         ERR_CORRUPT);
}

static void a_copied_record_is_corrupt_a_foreign_one_says_so(void **state)
{
    (void)state;
    struct lease_rec in = some_lease(), out;
    char buf[RECORD_LEASE_BYTES];

    assert_int_equal(lease_encode(buf, &key, &in), ERR_OK);
    assert_int_equal(lease_decode(&out, &key, cluster, 13, (struct str){ buf, 512 }),
                     ERR_CORRUPT);
    assert_int_equal(lease_decode(&out, &key, "ff112233445566778899aabbccddeeff", 12,
                                  (struct str){ buf, 512 }),
                     ERR_FOREIGN);
}

static void a_newer_format_says_so(void **state)
{
    (void)state;
    char buf[256];
    size_t n;
    struct node_rec out;

    assert_int_equal(record_seal(buf, sizeof(buf), &n, &key, STR("node/node-a"),
                                 STR("{\"v\":2,\"future\":[1]}")),
                     ERR_OK);
    assert_int_equal(
        node_rec_decode(&out, &key, cluster, "node-a", (struct str){ buf, n }),
        ERR_VERSION);
}

static void a_node_record_carries_what_is_added(void **state)
{
    (void)state;
    struct node_rec in = { .node = "node-b",
                           .seq = 3,
                           .hold_ms = 700,
                           .ready = true,
                           .fit = true,
                           .state = "ready" },
                    out;
    char buf[1024];
    size_t n;
    struct str body;
    struct json_object o;

    memcpy(in.cluster, cluster, sizeof(cluster));
    assert_int_equal(node_rec_encode(buf, sizeof(buf), &n, &key, &in,
                                     STR("\"services\":[{\"name\":\"web\"}]")),
                     ERR_OK);
    struct str bytes = { buf, n };

    assert_int_equal(node_rec_decode(&out, &key, cluster, "node-b", bytes), ERR_OK);
    assert_true(out.ready && out.fit && !out.maintenance && out.seq == 3);
    assert_int_equal(record_open(bytes, &key, STR("node/node-b"), &body), ERR_OK);
    assert_int_equal(json_load(&o, body), ERR_OK);
    assert_int_equal(json_find(&o, "services")->kind, JSON_ARRAY);
    assert_int_equal(node_rec_encode(buf, 100, &n, &key, &in, STR("")), ERR_LIMIT);
}

static void json_refuses_what_is_not_json(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\":01}",
        "{\"a\":1}x",
        "{\"a\":\"\x01\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":tru}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":[1,]}",
        "{\"a\":[1}",
        "{\"a\":-}",
        "{\"a\":1.}",
        "{\"a\":1e}",
        "{\"a\":\"",
        "{\"a\":1,\"a\":2}",
        "{\"a\":[[[[[[[[1]]]]]]]]}",
        "{\"a\":{\"b\":}}",
    };
    static const char *const good[] = {
        "{}",
        " { \"a\" : [ ] , \"b\" : { } } ",
        "{\"a\":[1,{\"b\":[true,null]}],\"c\":-1.5e+3}",
        "{\"a\":\"\\u00e9\\n\"}",
        "{\"a\":[[[[[[[1]]]]]]]}",
    };
    struct json_object o;

    for (size_t i = 0; i < LEN(bad); i++)
        if (json_load(&o, str_of(bad[i])) == ERR_OK)
            fail_msg("accepted: %s", bad[i]);
    for (size_t i = 0; i < LEN(good); i++)
        if (json_load(&o, str_of(good[i])) != ERR_OK)
            fail_msg("refused: %s", good[i]);
}

static void node_names_are_safe_as_file_names(void **state)
{
    (void)state;
    assert_true(record_name_ok(STR("node-a")));
    assert_false(record_name_ok(STR("")));
    assert_false(record_name_ok(STR("../x")));
    assert_false(record_name_ok(STR("Node")));
    assert_false(record_name_ok(STR("1a")));
    assert_true(record_name_ok(STR("a234567890123456789012345678901")));
    assert_false(record_name_ok(STR("a2345678901234567890123456789012")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lease_survives_encoding),
        cmocka_unit_test(the_longest_lease_fits),
        cmocka_unit_test(any_changed_byte_is_corrupt),
        cmocka_unit_test(a_torn_record_is_corrupt),
        cmocka_unit_test(a_copied_record_is_corrupt_a_foreign_one_says_so),
        cmocka_unit_test(a_newer_format_says_so),
        cmocka_unit_test(a_node_record_carries_what_is_added),
        cmocka_unit_test(json_refuses_what_is_not_json),
        cmocka_unit_test(node_names_are_safe_as_file_names),
    };

    return cmocka_run_group_tests_name("record", tests, NULL, NULL);
}
