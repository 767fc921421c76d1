/* The lowest layer: bounded text, numbers, hex, MACs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mac.h"
#include "base/mono.h"

static void numbers_stop_at_their_limit(void **state)
{
    (void)state;
    uint64_t v = 7;

    assert_true(str_u64(STR("18446744073709551615"), UINT64_MAX, &v));
    assert_true(v == UINT64_MAX);
    assert_false(str_u64(STR("18446744073709551616"), UINT64_MAX, &v));
    assert_true(str_u64(STR("10"), 10, &v));
    v = 7;
    assert_false(str_u64(STR("11"), 10, &v));
    assert_false(str_u64(STR(""), 10, &v));
    assert_false(str_u64(STR("-1"), 10, &v));
    assert_false(str_u64(STR(" 1"), 10, &v));
    assert_true(v == 7);
}

static void text_is_cut_and_says_so(void **state)
{
    (void)state;
    char buf[8];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    text_add(&t, "%s", "1234567");
    assert_false(t.cut);
    text_bytes(&t, STR("8"));
    assert_true(t.cut);
    assert_string_equal(buf, "1234567");
}

static void a_mac_binds_key_name_and_body(void **state)
{
    (void)state;
    struct mac_key k = { { 1 } }, other = { { 2 } };
    struct mac m;

    assert_int_equal(mac_start(), ERR_OK);
    mac_of(&m, &k, STR("epoch/1"), STR("body"));
    assert_true(mac_verifies(&m, &k, STR("epoch/1"), STR("body")));
    assert_false(mac_verifies(&m, &other, STR("epoch/1"), STR("body")));
    assert_false(mac_verifies(&m, &k, STR("epoch/2"), STR("body")));
    assert_false(mac_verifies(&m, &k, STR("epoch/1"), STR("bodz")));
}

static void instants_saturate(void **state)
{
    (void)state;
    assert_true(mono_after(MONO_FOREVER, 1).us == UINT64_MAX);
    assert_true(mono_before((struct mono){ 500 }, 1).us == 0);
    assert_true(mono_since_ms((struct mono){ 1999 }, (struct mono){ 1000 }) == 0);
    assert_true(mono_since_ms((struct mono){ 2000 }, (struct mono){ 1000 }) == 1);
}

static void hex_refuses_odd_and_foreign(void **state)
{
    (void)state;
    uint8_t b[2];
    char text[5];

    assert_true(hex_decode(b, 2, STR("0aFf")));
    hex_encode(text, b, 2);
    assert_string_equal(text, "0aff");
    assert_false(hex_decode(b, 2, STR("0aF")));
    assert_false(hex_decode(b, 2, STR("0aFg")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_stop_at_their_limit),
        cmocka_unit_test(text_is_cut_and_says_so),
        cmocka_unit_test(a_mac_binds_key_name_and_body),
        cmocka_unit_test(instants_saturate),
        cmocka_unit_test(hex_refuses_odd_and_foreign),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
