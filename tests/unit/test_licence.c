/* Licence files and leases: signatures, fields, times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <sodium.h>

#include "app/activation/licence.h"

static uint8_t vendor_public[crypto_sign_PUBLICKEYBYTES];
static uint8_t vendor_secret[crypto_sign_SECRETKEYBYTES];
static const uint8_t vendor_seed[LICENCE_KEY_BYTES] = { 1, 2, 3 };

#define ID  "\"licence\":\"39998c3e-9e93-4f9e-bc96-343e962a417c\""
#define WHO "\"customer\":\"Example\",\"product\":\"p\",\"cluster\":\"demo\""
#define WHEN                                                                             \
    "\"not_before\":\"2026-01-01T00:00:00Z\",\"expires\":\"2027-01-01T00:00:00Z\""
#define REST "\"seats\":5,\"features\":[\"a\",\"b\"]"
#define GOOD "{\"format\":1," ID "," WHO "," WHEN "," REST "}"

/* The envelope of a document, signed by the vendor; the caller frees it. */
static char *sign(const char *document, bool well)
{
    uint8_t signature[crypto_sign_BYTES];
    char hex[2 * crypto_sign_BYTES + 1];

    assert_int_equal(crypto_sign_detached(signature, NULL, (const uint8_t *)document,
                                          strlen(document), vendor_secret),
                     0);
    signature[7] ^= well ? 0 : 1;
    hex_encode(hex, signature, sizeof(signature));
    json_t *o = json_pack("{s:s, s:s}", "document", document, "signature", hex);
    char *text = json_dumps(o, 0);
    json_decref(o);
    assert_non_null(text);
    return text;
}

static enum err open_document(const char *document, bool well, struct licence *l,
                              struct err_info *why)
{
    char *text = sign(document, well);
    enum err e = licence_open(l, str_of(text), vendor_public, why);

    free(text);
    return e;
}

static void a_signed_licence_is_read(void **state)
{
    struct licence l;
    struct err_info why;
    char id[UUID_TEXT];

    (void)state;
    assert_int_equal(open_document(GOOD, true, &l, &why), ERR_OK);
    uuid_format(id, &l.id);
    assert_string_equal(id, "39998c3e-9e93-4f9e-bc96-343e962a417c");
    assert_string_equal(l.customer, "Example");
    assert_string_equal(l.cluster, "demo");
    assert_int_equal(l.seats, 5);
    assert_int_equal(l.feature_count, 2);
    assert_string_equal(l.features[1], "b");
    assert_int_equal(l.not_before, 1767225600);
    assert_int_equal(l.expires, 1798761600);
}

static void a_wrong_signature_is_refused_before_the_document_is_read(void **state)
{
    struct licence l;
    struct err_info why;

    (void)state;
    assert_int_equal(open_document(GOOD, false, &l, &why), ERR_CORRUPT);
    assert_non_null(strstr(why.what, "signature"));
    assert_int_equal(open_document("not JSON", false, &l, &why), ERR_CORRUPT);
    assert_non_null(strstr(why.what, "signature"));
}

static void a_document_that_is_not_understood_is_refused(void **state)
{
    static const struct {
        const char *document, *field;
    } rows[] = {
        { "not JSON", "JSON" },
        { "{}", "format" },
        { "{\"format\":2," ID "," WHO "," WHEN "," REST "}", "format" },
        { "{\"format\":1," WHO "," WHEN "," REST "}", "licence" },
        { "{\"format\":1,\"licence\":\"7\"," WHO "," WHEN "," REST "}", "licence" },
        { "{\"format\":1," ID "," WHEN "," REST "}", "customer" },
        { "{\"format\":1," ID
          ",\"customer\":\"c\",\"product\":\"p\",\"cluster\":\"\"," WHEN "," REST "}",
          "cluster" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":0,\"features\":[]}", "seats" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":-1,\"features\":[]}",
          "seats" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":9999999999,\"features\":[]}",
          "seats" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":\"5\",\"features\":[]}",
          "seats" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":5}", "features" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"seats\":5,\"features\":[7]}",
          "features" },
        { "{\"format\":1," ID "," WHO
          ",\"not_before\":\"2026-01-01T00:00:00Z\",\"expires\":"
          "\"2026-01-01T00:00:00Z\"," REST "}",
          "expires" },
        { "{\"format\":1," ID "," WHO ",\"not_before\":\"yesterday\",\"expires\":"
          "\"2026-01-01T00:00:00Z\"," REST "}",
          "not_before" },
        { "{\"format\":1,\"format\":1," ID "," WHO "," WHEN "," REST "}", "JSON" },
    };

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        struct licence l = { .seats = 77 };
        struct err_info why = { .what = "" };
        assert_int_equal(open_document(rows[i].document, true, &l, &why), ERR_CORRUPT);
        if (!strstr(why.what, rows[i].field))
            fail_msg("%s: %s", rows[i].document, why.what);
        assert_int_equal(l.seats, 77); /* untouched */
    }
}

static void what_is_no_envelope_is_refused(void **state)
{
    static const char *const rows[] = {
        "",
        "{}",
        "[]",
        "null",
        "{\"document\":\"{}\"}",
        "{\"document\":7,\"signature\":\"\"}",
        "{\"document\":\"{}\",\"signature\":\"00\"}",
        "{\"document\":\"{}\",\"document\":\"{}\",\"signature\":\"00\"}",
    };
    static char blanks[LICENCE_BYTES_MAX + 10];
    struct licence l;
    struct err_info why;

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++)
        assert_int_equal(licence_open(&l, str_of(rows[i]), vendor_public, &why),
                         ERR_CORRUPT);
    char *text = sign(GOOD, true); /* good, but too long */
    memset(blanks, ' ', sizeof(blanks));
    memcpy(blanks, text, strlen(text));
    free(text);
    assert_int_equal(
        licence_open(&l, (struct str){ blanks, LICENCE_BYTES_MAX }, vendor_public, &why),
        ERR_OK);
    assert_int_equal(licence_open(&l, (struct str){ blanks, LICENCE_BYTES_MAX + 1 },
                                  vendor_public, &why),
                     ERR_CORRUPT);
}

static void a_licence_holds_for_its_cluster_and_its_time(void **state)
{
    struct licence l;
    struct err_info why;

    (void)state;
    assert_int_equal(open_document(GOOD, true, &l, &why), ERR_OK);
    assert_int_equal(licence_refuses(&l, "demo", l.not_before), REFUSED_NOT);
    assert_int_equal(licence_refuses(&l, "demo", l.not_before - 1),
                     REFUSED_NOT_YET_VALID);
    assert_int_equal(licence_refuses(&l, "demo", l.expires - 1), REFUSED_NOT);
    assert_int_equal(licence_refuses(&l, "demo", l.expires), REFUSED_EXPIRED);
    assert_int_equal(licence_refuses(&l, "demos", l.not_before), REFUSED_OTHER_CLUSTER);
    (void)snprintf(l.cluster, sizeof(l.cluster), "*");
    assert_int_equal(licence_refuses(&l, "demos", l.not_before), REFUSED_NOT);
}

static void a_lease_verifies_with_the_public_half(void **state)
{
    struct licence l;
    struct err_info why;
    struct lease_terms terms = { .cluster = "demo",
                                 .issued = 1767225600,
                                 .expires = 1767225600 + LEASE_HOLD_S };

    (void)state;
    assert_int_equal(open_document(GOOD, true, &l, &why), ERR_OK);
    char *text = licence_lease(&l, &terms, vendor_seed);
    assert_non_null(text);
    assert_true(strlen(text) < LEASE_BYTES_MAX);
    json_t *o = json_loads(text, 0, NULL);
    const char *document = json_string_value(json_object_get(o, "document"));
    const char *hex = json_string_value(json_object_get(o, "signature"));
    uint8_t signature[crypto_sign_BYTES];
    assert_true(hex_decode(signature, sizeof(signature), str_of(hex)));
    assert_int_equal(crypto_sign_verify_detached(signature, (const uint8_t *)document,
                                                 strlen(document), vendor_public),
                     0);
    assert_non_null(strstr(document, "\"renew_after\":\"2026-01-08T00:00:00Z\""));
    assert_non_null(strstr(document, "\"expires\":\"2026-01-31T00:00:00Z\""));
    json_decref(o);
    free(text);
}

static void times_are_exactly_rfc_3339_in_utc(void **state)
{
    static const struct {
        const char *text;
        int64_t t; /* -1: refused */
    } rows[] = {
        { "2026-11-22T19:56:14Z", 1795377374 },
        { "2028-02-29T23:59:59Z", 1835481599 },
        { "2026-02-29T00:00:00Z", -1 },
        { "2026-13-01T00:00:00Z", -1 },
        { "2026-00-01T00:00:00Z", -1 },
        { "2026-01-01T24:00:00Z", -1 },
        { "2026-01-01T00:60:00Z", -1 },
        { "1999-01-01T00:00:00Z", -1 },
        { "2026-01-01T00:00:00", -1 },
        { "2026-01-01T00:00:00z", -1 },
        { "2026-01-01T00:00:00Z ", -1 },
        { "2026-01-01 00:00:00Z", -1 },
        { "2026- 1-01T00:00:00Z", -1 },
        { "+026-01-01T00:00:00Z", -1 },
        { "", -1 },
    };

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        int64_t t = -1;
        char back[32];
        bool ok = licence_time_parse(rows[i].text, &t);
        if (ok != (rows[i].t >= 0) || t != rows[i].t)
            fail_msg("%s gives %lld", rows[i].text, (long long)t);
        licence_time_format(back, t);
        if (ok)
            assert_string_equal(back, rows[i].text);
    }
}

static void every_refusal_has_words(void **state)
{
    (void)state;
    for (int r = REFUSED_NOT + 1; r <= REFUSED_BAD_REQUEST; r++) {
        const struct refusal_words *w = refusal_words((enum refusal)r);
        assert_true(w->id[0] && w->title[0] && w->suggestion[0]);
        assert_true(w->status >= 400 && w->status < 600);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_signed_licence_is_read),
        cmocka_unit_test(a_wrong_signature_is_refused_before_the_document_is_read),
        cmocka_unit_test(a_document_that_is_not_understood_is_refused),
        cmocka_unit_test(what_is_no_envelope_is_refused),
        cmocka_unit_test(a_licence_holds_for_its_cluster_and_its_time),
        cmocka_unit_test(a_lease_verifies_with_the_public_half),
        cmocka_unit_test(times_are_exactly_rfc_3339_in_utc),
        cmocka_unit_test(every_refusal_has_words),
    };

    if (sodium_init() < 0 ||
        crypto_sign_seed_keypair(vendor_public, vendor_secret, vendor_seed) != 0)
        return 1;
    return cmocka_run_group_tests_name("licence", tests, NULL, NULL);
}
