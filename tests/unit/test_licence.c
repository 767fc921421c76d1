/* Licence files and leases: signatures, fields, times. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <sodium.h>

#include "sys/licence/lease.h"

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
        { "{\"format\":1," ID "," WHO "," WHEN ",\"serial\":-1," REST "}", "serial" },
        { "{\"format\":1," ID "," WHO "," WHEN ",\"issued\":7," REST "}", "issued" },
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

/* --- leases ---------------------------------------------------------------------------- */

static const char device_key[] =
    "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

static char *lease(int64_t life_s)
{
    struct licence l;
    struct err_info why;
    struct lease_signer signer;
    struct lease_terms terms = { .cluster = "demo",
                                 .device_key = device_key,
                                 .issued = 1767225600,
                                 .expires = 1767225600 + life_s };

    assert_int_equal(open_document(GOOD, true, &l, &why), ERR_OK);
    lease_signer_init(&signer, vendor_seed);
    char *text = lease_sign(&l, &terms, &signer);
    assert_non_null(text);
    assert_true(strlen(text) < LEASE_BYTES_MAX);
    return text;
}

static void a_lease_verifies_with_the_key_beside_it_and_says_who_it_is_for(void **state)
{
    char *text = lease(30 * 86400), *again = lease(30 * 86400);
    struct lease l = { .expires = 7 };
    struct err_info why;

    (void)state;
    assert_string_equal(text, again); /* on either node, the same bytes */
    assert_int_equal(lease_open(&l, str_of(text), &why), ERR_OK);
    assert_string_equal(l.device_key, device_key);
    assert_int_equal(l.issued, 1767225600);
    assert_int_equal(l.expires, 1767225600 + 30 * 86400);
    assert_int_equal(l.renew_after, 1767225600 + 7 * 86400);
    free(text);
    free(again);
    text = lease(86400); /* a short one is renewed at half its life */
    assert_int_equal(lease_open(&l, str_of(text), &why), ERR_OK);
    assert_int_equal(l.renew_after, 1767225600 + 43200);
    free(text);
}

static void a_lease_that_was_changed_is_none(void **state)
{
    static const char *const rows[] = { "", "{}", "[]", "{\"document\":\"{}\"}" };
    char *text = lease(86400);
    struct lease l = { .expires = 7 };
    struct err_info why;

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++)
        assert_int_equal(lease_open(&l, str_of(rows[i]), &why), ERR_CORRUPT);
    for (size_t i = 0; text[i]; i++) {
        char was = text[i];
        text[i] = was == 'x' ? 'y' : 'x';
        assert_int_equal(lease_open(&l, str_of(text), &why), ERR_CORRUPT);
        text[i] = was;
    }
    assert_int_equal(l.expires, 7); /* untouched */
    free(text);
}

/* --- answers --------------------------------------------------------------------------- */

#define ASKED                                                                            \
    "\"kind\":\"answer\",\"code\":\"C\",\"nonce\":\"n\",\"at\":\"2026-01-02T00:00:00Z\""
#define UNTIL "\"valid_until\":\"2026-01-09T00:00:00Z\",\"grace_s\":86400"

/* Puts a licence (a JSON string) into an answer, signs, and opens it. */
static enum err open_answer(const char *head, const char *licence,
                            struct licence_answer *a, struct err_info *why)
{
    json_t *o = json_loads(head, 0, NULL);

    assert_non_null(o);
    if (licence)
        (void)json_object_set_new(o, "licence", json_string(licence));
    char *document = json_dumps(o, 0), *text = sign(document, true);
    enum err e = licence_answer_open(a, str_of(text), vendor_public, why);

    assert_true(licence_is_answer(str_of(text)));
    json_decref(o);
    free(document);
    free(text);
    return e;
}

static void an_answer_brings_a_licence_or_a_refusal(void **state)
{
    char *licence = sign(GOOD, true);
    struct licence_answer a;
    struct err_info why;

    (void)state;
    assert_false(licence_is_answer(str_of(licence)));
    assert_int_equal(open_answer("{\"format\":1," ASKED ",\"state\":\"ok\"," UNTIL "}",
                                 licence, &a, &why),
                     ERR_OK);
    assert_string_equal(a.nonce, "n");
    assert_string_equal(a.code, "C");
    assert_false(a.refused);
    assert_int_equal(a.valid_until, 1767916800);
    assert_int_equal(a.stale_until, 1767916800 + 86400);
    assert_int_equal(a.licence.expires, 1798761600);
    assert_int_equal(open_answer("{\"format\":1," ASKED ",\"state\":\"refused\","
                                 "\"reason\":\"no\"}",
                                 NULL, &a, &why),
                     ERR_OK);
    assert_true(a.refused);
    assert_string_equal(a.reason, "no");
    free(licence);
}

static void an_answer_that_is_not_understood_is_refused(void **state)
{
    static const struct {
        const char *head, *field;
    } rows[] = {
        { "{\"format\":2," ASKED ",\"state\":\"ok\"," UNTIL "}", "format" },
        { "{\"format\":1," ASKED ",\"state\":\"maybe\"," UNTIL "}", "state" },
        { "{\"format\":1," ASKED ",\"state\":\"refused\"}", "reason" },
        { "{\"format\":1," ASKED ",\"state\":\"ok\"}", "valid_until" },
        { "{\"format\":1," ASKED ",\"state\":\"ok\",\"valid_until\":"
          "\"2026-01-01T00:00:00Z\",\"grace_s\":1}",
          "valid_until" }, /* it ended before it was given */
        { "{\"format\":1," ASKED ",\"state\":\"ok\",\"valid_until\":"
          "\"2026-01-09T00:00:00Z\",\"grace_s\":-1}",
          "grace_s" },
        { "{\"format\":1," ASKED ",\"state\":\"ok\",\"valid_until\":"
          "\"2026-01-09T00:00:00Z\",\"grace_s\":99999999999}",
          "grace_s" },
        { "{\"format\":1,\"kind\":\"answer\",\"code\":\"C\",\"at\":"
          "\"2026-01-02T00:00:00Z\",\"state\":\"ok\"," UNTIL "}",
          "nonce" },
    };
    char *licence = sign(GOOD, true), *forged = sign(GOOD, false);
    struct licence_answer a = { .valid_until = 7 };

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        struct err_info why = { .what = "" };
        assert_int_equal(open_answer(rows[i].head, licence, &a, &why), ERR_CORRUPT);
        if (!strstr(why.what, rows[i].field))
            fail_msg("%s: %s", rows[i].head, why.what);
    }
    static const char good[] = "{\"format\":1," ASKED ",\"state\":\"ok\"," UNTIL "}";
    struct err_info why;
    assert_int_equal(open_answer(good, forged, &a, &why), ERR_CORRUPT);
    assert_non_null(strstr(why.what, "licence"));
    assert_int_equal(open_answer(good, NULL, &a, &why), ERR_CORRUPT);
    assert_int_equal(a.valid_until, 7); /* untouched */
    free(licence);
    free(forged);
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
        cmocka_unit_test(a_lease_verifies_with_the_key_beside_it_and_says_who_it_is_for),
        cmocka_unit_test(a_lease_that_was_changed_is_none),
        cmocka_unit_test(an_answer_brings_a_licence_or_a_refusal),
        cmocka_unit_test(an_answer_that_is_not_understood_is_refused),
        cmocka_unit_test(times_are_exactly_rfc_3339_in_utc),
        cmocka_unit_test(every_refusal_has_words),
    };

    if (sodium_init() < 0 ||
        crypto_sign_seed_keypair(vendor_public, vendor_secret, vendor_seed) != 0)
        return 1;
    return cmocka_run_group_tests_name("licence", tests, NULL, NULL);
}
