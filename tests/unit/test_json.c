/* JSON of the records: one row a text; and records in which one member is not as it should. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "wire/json.h"
#include "wire/record.h"

static const struct row {
    const char *text;
    enum err e;
} rows[] = {
    { "{}", ERR_OK },
    { " \t\r\n{ } \n", ERR_OK },
    { "{\"a\":1}", ERR_OK },
    { "{\"a\":-1.5e+3,\"b\":1E2,\"c\":2e-1,\"d\":0,\"e\":-0.0}", ERR_OK },
    { "{\"a\":true,\"b\":false,\"c\":null}", ERR_OK },
    { "{\"a\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00fF\"}", ERR_OK },
    { "{\"a\":[],\"b\":{},\"c\":[1,\"x\",[{\"d\":[null]}]] }", ERR_OK },
    { "{\"a\":[[[[[[[[]]]]]]]]}", ERR_CORRUPT }, /* one level too deep */
    { "{\"a\":[[[[[[[]]]]]]]}", ERR_OK },
    { "", ERR_CORRUPT },
    { " ", ERR_CORRUPT },
    { "[]", ERR_CORRUPT },
    { "1", ERR_CORRUPT },
    { "{", ERR_CORRUPT },
    { "{}x", ERR_CORRUPT },
    { "{\"a\"", ERR_CORRUPT },
    { "{\"a\":", ERR_CORRUPT },
    { "{\"a\" 1}", ERR_CORRUPT },
    { "{\"a\":1", ERR_CORRUPT },
    { "{\"a\":1,", ERR_CORRUPT },
    { "{\"a\":1,}", ERR_CORRUPT },
    { "{\"a\":1 \"b\":2}", ERR_CORRUPT },
    { "{,\"a\":1}", ERR_CORRUPT },
    { "{a:1}", ERR_CORRUPT },
    { "{\"a\":1]", ERR_CORRUPT },
    { "{\"a\":[1}", ERR_CORRUPT },
    { "{\"a\":[1", ERR_CORRUPT },
    { "{\"a\":[1 2]}", ERR_CORRUPT },
    { "{\"a\":1,\"a\":2}", ERR_CORRUPT },
    { "{\"\\u0061\":1}", ERR_CORRUPT }, /* a key with an escape */
    { "{\"a\":tru}", ERR_CORRUPT },
    { "{\"a\":fals", ERR_CORRUPT },
    { "{\"a\":nulL}", ERR_CORRUPT },
    { "{\"a\":01}", ERR_CORRUPT },
    { "{\"a\":-}", ERR_CORRUPT },
    { "{\"a\":1.}", ERR_CORRUPT },
    { "{\"a\":.5}", ERR_CORRUPT },
    { "{\"a\":1e}", ERR_CORRUPT },
    { "{\"a\":1e+}", ERR_CORRUPT },
    { "{\"a\":1", ERR_CORRUPT },
    { "{\"a\":-", ERR_CORRUPT },
    { "{\"a\":1e", ERR_CORRUPT },
    { "{\"a\":1e-", ERR_CORRUPT },
    { "{\"a\":\"", ERR_CORRUPT },
    { "{\"a\":\"\\", ERR_CORRUPT },
    { "{\"a\":\"\\x\"}", ERR_CORRUPT },
    { "{\"a\":\"\\u12\"}", ERR_CORRUPT },
    { "{\"a\":\"\\u12", ERR_CORRUPT },
    { "{\"a\":\"\\u12g4\"}", ERR_CORRUPT },
    { "{\"a\":\"\\u12:4\"}", ERR_CORRUPT },
    { "{\"a\":\"\\u12G4\"}", ERR_CORRUPT },
    { "{\"a\":\"\n\"}", ERR_CORRUPT },
    { "{\"a\":\"\x1f\"}", ERR_CORRUPT },
    { "{\"a\":{\"b\":}}", ERR_CORRUPT },
    { "{\"a\":{1:2}}", ERR_CORRUPT },
};

static void row_holds(void **state)
{
    const struct row *row = *state;
    struct json_object o;

    assert_int_equal(json_load(&o, str_of(row->text)), row->e);
    if (row->e != ERR_OK)
        return;
    /* Every beginning of a good text is a bad one, unless only blanks are missing. */
    const size_t n = strlen(row->text),
                 end = (size_t)(strrchr(row->text, '}') - row->text);

    for (size_t k = 0; k <= end && k < n; k++)
        assert_int_equal(json_load(&o, (struct str){ row->text, k }), ERR_CORRUPT);
}

static void members_are_read_as_what_they_are(void **state)
{
    (void)state;
    struct json_object o;
    uint64_t v = 7;
    bool b = true;
    char text[4];

    assert_int_equal(json_load(&o, STR("{\"n\":18446744073709551615,\"m\":-1,\"t\":true,"
                                       "\"f\":false,\"s\":\"abc\",\"l\":\"abcd\","
                                       "\"e\":\"\\n\",\"z\":null}")),
                     ERR_OK);
    assert_true(json_get_u64(&o, "n", UINT64_MAX, &v) && v == UINT64_MAX);
    assert_false(json_get_u64(&o, "n", UINT64_MAX - 1, &v));
    assert_false(json_get_u64(&o, "m", UINT64_MAX, &v));
    assert_false(json_get_u64(&o, "t", UINT64_MAX, &v));
    assert_false(json_get_u64(&o, "absent", UINT64_MAX, &v));
    assert_true(json_get_bool(&o, "t", &b) && b);
    assert_true(json_get_bool(&o, "f", &b) && !b);
    assert_false(json_get_bool(&o, "z", &b));
    assert_false(json_get_bool(&o, "absent", &b));
    assert_true(json_get_text(&o, "s", text, sizeof(text)));
    assert_string_equal(text, "abc");
    assert_false(json_get_text(&o, "l", text, sizeof(text)));
    assert_false(json_get_text(&o, "e", text, sizeof(text)));
    assert_false(json_get_text(&o, "n", text, sizeof(text)));
    assert_false(json_get_text(&o, "absent", text, sizeof(text)));
}

static void more_members_than_the_limit_are_refused(void **state)
{
    (void)state;
    char body[1024];
    struct text t;
    struct json_object o;

    text_init(&t, body, sizeof(body));
    text_add(&t, "{\"k0\":0");
    for (int i = 1; i < JSON_MEMBERS_MAX; i++)
        text_add(&t, ",\"k%d\":%d", i, i);
    const size_t n = t.n;

    text_add(&t, "}");
    assert_int_equal(json_load(&o, (struct str){ body, t.n }), ERR_OK);
    assert_int_equal(o.count, JSON_MEMBERS_MAX);
    t.n = n;
    text_add(&t, ",\"one\":1}");
    assert_int_equal(json_load(&o, (struct str){ body, t.n }), ERR_LIMIT);
}

/* ---- records ---- */

static const struct mac_key key = { { 9 } };
#define CLUSTER "00112233445566778899aabbccddeeff"
#define HEAD    "{\"v\":1,\"cluster\":\"" CLUSTER "\","

static const char *const lease_members[] = {
    "\"epoch\":3",        "\"owner\":\"node-a\"", "\"incarnation\":1", "\"seq\":2",
    "\"state\":\"held\"", "\"hold_ms\":1500",     "\"to\":\"\"",       "\"why\":\"\"",
    "\"down_ms\":0",      "\"moves\":0",
};
static const char *const node_members[] = {
    "\"node\":\"node-a\"", "\"incarnation\":1",     "\"seq\":2",
    "\"known_epoch\":3",   "\"hold_ms\":1500",      "\"ready\":true",
    "\"fit\":true",        "\"maintenance\":false", "\"state\":\"ready\"",
};

/* A body of all members, but number `but` as `instead`. */
static size_t body_of(char *body, size_t size, const char *const *members, size_t count,
                      size_t but, const char *instead)
{
    struct text t;

    text_init(&t, body, size);
    text_add(&t, HEAD "\"last\":0");
    for (size_t i = 0; i < count; i++)
        if (i != but || instead[0])
            text_add(&t, ",%s", i == but ? instead : members[i]);
    text_add(&t, "}");
    return t.n;
}

static enum err decode_lease(size_t but, const char *instead)
{
    enum { BODY = RECORD_LEASE_BYTES - RECORD_TRAILER_BYTES };
    char body[BODY + 1], buf[RECORD_LEASE_BYTES];
    struct lease_rec out;
    size_t n =
        body_of(body, sizeof(body), lease_members, LEN(lease_members), but, instead);

    memset(body + n, ' ', BODY - n);
    assert_int_equal(record_seal(buf, sizeof(buf), &n, &key, STR("epoch/3"),
                                 (struct str){ body, BODY }),
                     ERR_OK);
    return lease_decode(&out, &key, CLUSTER, 3, (struct str){ buf, n });
}

static enum err decode_node(size_t but, const char *instead)
{
    char body[1024], buf[1024];
    struct node_rec out;
    size_t n = body_of(body, sizeof(body), node_members, LEN(node_members), but, instead);

    assert_int_equal(record_seal(buf, sizeof(buf), &n, &key, STR("node/node-a"),
                                 (struct str){ body, n }),
                     ERR_OK);
    return node_rec_decode(&out, &key, CLUSTER, "node-a", (struct str){ buf, n });
}

static void a_lease_without_one_of_its_members_is_corrupt(void **state)
{
    (void)state;
    assert_int_equal(decode_lease(LEN(lease_members), ""), ERR_OK);
    for (size_t i = 0; i < LEN(lease_members); i++)
        assert_int_equal(decode_lease(i, ""), ERR_CORRUPT);
    assert_int_equal(decode_lease(0, "\"epoch\":4"), ERR_CORRUPT);
    assert_int_equal(decode_lease(4, "\"state\":\"free\""), ERR_CORRUPT);
    assert_int_equal(decode_lease(4, "\"state\":\"released\""), ERR_OK);
    assert_int_equal(decode_lease(5, "\"hold_ms\":0"), ERR_CORRUPT);
    assert_int_equal(decode_lease(5, "\"hold_ms\":60000"), ERR_OK);
    assert_int_equal(decode_lease(5, "\"hold_ms\":60001"), ERR_CORRUPT);
    assert_int_equal(decode_lease(8, "\"down_ms\":4294967296"), ERR_CORRUPT);
}

static void a_node_record_without_one_of_its_members_is_corrupt(void **state)
{
    (void)state;
    assert_int_equal(decode_node(LEN(node_members), ""), ERR_OK);
    for (size_t i = 0; i < LEN(node_members); i++)
        assert_int_equal(decode_node(i, ""), ERR_CORRUPT);
    assert_int_equal(decode_node(0, "\"node\":\"node-b\""), ERR_CORRUPT);
    assert_int_equal(decode_node(4, "\"hold_ms\":0"), ERR_CORRUPT);
    assert_int_equal(decode_node(5, "\"ready\":1"), ERR_CORRUPT);
    assert_int_equal(decode_node(6, "\"fit\":1"), ERR_CORRUPT);
}

static enum err check_cluster(const char *body, const char *name)
{
    char buf[512];
    size_t n;

    assert_int_equal(record_seal(buf, sizeof(buf), &n, &key, str_of(name), str_of(body)),
                     ERR_OK);
    return cluster_check((struct str){ buf, n }, &key, CLUSTER);
}

static void the_file_of_the_cluster_says_whose_it_is(void **state)
{
    (void)state;
    char buf[64];
    size_t n;

    assert_int_equal(check_cluster(HEAD "\"name\":\"x\"}", "cluster"), ERR_OK);
    assert_int_equal(check_cluster(HEAD "\"name\":\"x\"}", "other"), ERR_FOREIGN);
    assert_int_equal(check_cluster("{\"v\":1,\"cluster\":\"\"}", "cluster"), ERR_FOREIGN);
    assert_int_equal(check_cluster("{\"v\":2}", "cluster"), ERR_VERSION);
    assert_int_equal(check_cluster("{\"v\":1}", "cluster"), ERR_CORRUPT);
    assert_int_equal(check_cluster("{}", "cluster"), ERR_CORRUPT);
    assert_int_equal(record_seal(buf, sizeof(buf), &n, &key, STR("x"), STR("{}")),
                     ERR_LIMIT);
    assert_int_equal(
        record_seal(buf, RECORD_TRAILER_BYTES - 1, &n, &key, STR("x"), STR("")),
        ERR_LIMIT);
}

static void what_jsonb_refuses_is_seen_before(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool ok;
    } texts[] = {
        { "{\"a\":\"\\u00e4 \\\\u0000 \\n\"}", true },
        { "{\"a\":\"\\u0000\"}", false },
        { "{\"a\":\"\\ud83d\\ude00\"}", true },
        { "{\"a\":\"\\ud83d\"}", false },
        { "{\"a\":\"\\ud83d\\u0041\"}", false },
        { "{\"a\":\"\\ud83dxxxxxxxx\"}", false },
        { "{\"a\":\"\\ude00\"}", false },
        { "{\"a\":\"\xff\"}", false },
        { "{\"a\":[1e308,-2E+99,0.5]}", true },
        { "{\"a\":1e1000}", false },
        { "{\"a\":1e-9999}", false },
        { "{\"a\":\"1e9999\"}", true },
    };

    for (size_t i = 0; i < LEN(texts); i++)
        assert_int_equal(json_storable(str_of(texts[i].text)), texts[i].ok);
}

static void a_value_of_any_kind_is_walked(void **state)
{
    struct json_member all, m;
    struct json_walk w;
    char text[400], *p = text;

    (void)state;
    p += snprintf(p, 8, " [");
    for (int i = 0; i < 40; i++)
        p += snprintf(p, 8, "%s%d", i ? " , " : "", i);
    (void)snprintf(p, 8, "] ");
    assert_int_equal(json_value(&all, str_of(text)), ERR_OK);
    assert_int_equal(all.kind, JSON_ARRAY);
    json_walk(&w, &all);
    for (uint64_t i = 0, n = 0; i < 40; i++) {
        assert_true(json_next(&w, &m) && m.kind == JSON_NUMBER && m.key.n == 0);
        assert_true(str_u64(m.raw, 40, &n) && n == i);
    }
    assert_false(json_next(&w, &m));
    assert_false(json_next(&w, &m));

    assert_int_equal(json_value(&all, STR("{\"a\":{\"b\":[]},\"a\":\"x\"}")), ERR_OK);
    json_walk(&w, &all);
    assert_true(json_next(&w, &m) && str_is(m.key, "a") && m.kind == JSON_OBJECT);
    assert_true(json_next(&w, &m) && str_is(m.raw, "x") && m.kind == JSON_STRING);
    assert_false(json_next(&w, &m));

    assert_int_equal(json_value(&all, STR("[ ]")), ERR_OK);
    json_walk(&w, &all);
    assert_false(json_next(&w, &m));
    assert_int_equal(json_value(&all, STR("7")), ERR_OK);
    assert_int_equal(all.kind, JSON_NUMBER);
    static const char *const bad[] = { "", "[1,]", "[,1]", "1 2", "{\"a\"}", "[" };
    for (size_t i = 0; i < LEN(bad); i++)
        assert_int_equal(json_value(&all, str_of(bad[i])), ERR_CORRUPT);
}

int main(void)
{
    enum { MORE = 7 };
    static char names[LEN(rows)][64];
    struct CMUnitTest tests[LEN(rows) + MORE] = {
        [LEN(rows)] = cmocka_unit_test(members_are_read_as_what_they_are),
        cmocka_unit_test(more_members_than_the_limit_are_refused),
        cmocka_unit_test(a_lease_without_one_of_its_members_is_corrupt),
        cmocka_unit_test(a_node_record_without_one_of_its_members_is_corrupt),
        cmocka_unit_test(the_file_of_the_cluster_says_whose_it_is),
        cmocka_unit_test(what_jsonb_refuses_is_seen_before),
        cmocka_unit_test(a_value_of_any_kind_is_walked),
    };

    if (mac_start() != ERR_OK)
        return 1;
    for (size_t i = 0; i < LEN(rows); i++) {
        struct text t;

        text_init(&t, names[i], sizeof(names[i]));
        text_add(&t, "text %zu is %s", i, rows[i].e == ERR_OK ? "an object" : "refused");
        tests[i] = (struct CMUnitTest){ .name = names[i],
                                        .test_func = row_holds,
                                        .initial_state = (void *)(uintptr_t)&rows[i] };
    }
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
