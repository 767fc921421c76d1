/*
 * sys/ca: what it issues, what it refuses, and the seal.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sys/ca/ca.h"
#include "sys/ca/ca_link.h"
#include "sys/ca/ca_sign.h"
#include "sys/ca/seal.h"

static struct {
    struct ca_pem crt, key, device_key, csr;
    struct ca *ca;
    struct err_info why;
} t;

static const struct uuid device = { { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                                      16 } };
static const struct uuid other = { { 9 } };

static int make_authority(void **state)
{
    (void)state;
    assert_int_equal(ca_create("Test", &t.crt, &t.key, &t.why), ERR_OK);
    assert_int_equal(ca_load(ca_pem_str(&t.crt), ca_pem_str(&t.key), &t.ca, &t.why),
                     ERR_OK);
    assert_int_equal(ca_key_new(&t.device_key, &t.why), ERR_OK);
    assert_int_equal(ca_csr_new(ca_pem_str(&t.device_key), "host", NULL, &t.csr, &t.why),
                     ERR_OK);
    return 0;
}

static int drop_authority(void **state)
{
    (void)state;
    ca_free(t.ca);
    return 0;
}

static struct ca_csr *checked(struct str pem)
{
    struct ca_csr *r = NULL;

    assert_int_equal(ca_csr_check(pem, &r, &t.why), ERR_OK);
    return r;
}

static gnutls_x509_crt_t parsed(const struct ca_pem *pem)
{
    gnutls_datum_t d = { (unsigned char *)(uintptr_t)pem->text, (unsigned)pem->n };
    gnutls_x509_crt_t crt;

    assert_true(gnutls_x509_crt_init(&crt) >= 0);
    assert_true(gnutls_x509_crt_import(crt, &d, GNUTLS_X509_FMT_PEM) >= 0);
    return crt;
}

/* --- certificates --- */

static void a_device_gets_its_id_and_nothing_else(void **state)
{
    struct ca_csr *r = checked(ca_pem_str(&t.csr));
    struct ca_issued out;
    struct ca_certificate read;
    char oid[64], dn[200];
    unsigned critical = 0, usage = 0;
    size_t n = sizeof(oid);
    (void)state;

    assert_int_equal(ca_sign_device(t.ca, r, &device, 90, &out, &t.why), ERR_OK);
    assert_int_equal(ca_certificate_read(ca_pem_str(&out.pem), &read, &t.why), ERR_OK);
    assert_true(read.has_device && uuid_eq(&read.device, &device));
    assert_string_equal(read.serial, out.serial);
    assert_int_equal(strlen(out.serial), 32);
    assert_int_equal(read.not_after, out.not_after);
    assert_in_range((uint64_t)(out.not_after - time(NULL)), 90 * 86400 - 60, 90 * 86400);
    assert_true(out.not_before < time(NULL));
    assert_int_equal(ca_certificate_check(ca_pem_str(&out.pem), ca_pem_str(&t.device_key),
                                          ca_pem_str(&t.crt), &t.why),
                     ERR_OK);

    gnutls_x509_crt_t crt = parsed(&out.pem);
    assert_int_equal(gnutls_x509_crt_get_ca_status(crt, &critical), 0);
    assert_int_equal(gnutls_x509_crt_get_key_purpose_oid(crt, 0, oid, &n, &critical), 0);
    assert_string_equal(oid, GNUTLS_KP_TLS_WWW_CLIENT);
    n = sizeof(oid);
    assert_int_equal(gnutls_x509_crt_get_key_purpose_oid(crt, 1, oid, &n, &critical),
                     GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE);
    assert_int_equal(gnutls_x509_crt_get_key_usage(crt, &usage, &critical), 0);
    assert_int_equal(usage, GNUTLS_KEY_DIGITAL_SIGNATURE);
    n = sizeof(dn);
    assert_int_equal(gnutls_x509_crt_get_dn(crt, dn, &n), 0);
    assert_string_equal(dn, "CN=01020304-0506-0708-090a-0b0c0d0e0f10");
    gnutls_x509_crt_deinit(crt);
    ca_csr_free(r);
}

static void serials_differ(void **state)
{
    struct ca_csr *r = checked(ca_pem_str(&t.csr));
    struct ca_issued a, b;
    (void)state;

    assert_int_equal(ca_sign_device(t.ca, r, &device, 1, &a, &t.why), ERR_OK);
    assert_int_equal(ca_sign_device(t.ca, r, &device, 1, &b, &t.why), ERR_OK);
    assert_string_not_equal(a.serial, b.serial);
    ca_csr_free(r);
}

static void no_certificate_outlives_the_authority(void **state)
{
    struct ca_csr *r = checked(ca_pem_str(&t.csr));
    struct ca_certificate authority;
    struct ca_issued out;
    (void)state;

    assert_int_equal(ca_certificate_read(ca_pem_str(&t.crt), &authority, &t.why), ERR_OK);
    assert_int_equal(ca_sign_device(t.ca, r, &device, 20000, &out, &t.why), ERR_OK);
    assert_true(out.not_after <= authority.not_after);
    ca_csr_free(r);
}

static void a_server_gets_its_names(void **state)
{
    struct ca_names names = { { "redoubt", "10.0.0.1", "fd00::1" }, 3 };
    struct ca_issued out;
    struct ca_pem key;
    (void)state;

    assert_int_equal(ca_sign_server(t.ca, &names, 397, &out, &key, &t.why), ERR_OK);
    gnutls_x509_crt_t crt = parsed(&out.pem);
    for (uint32_t i = 0; i < names.count; i++)
        assert_true(gnutls_x509_crt_check_hostname(crt, names.at[i]));
    assert_false(gnutls_x509_crt_check_hostname(crt, "elsewhere"));
    gnutls_x509_crt_deinit(crt);
    assert_int_equal(ca_certificate_check(ca_pem_str(&out.pem), ca_pem_str(&key),
                                          ca_pem_str(&t.crt), &t.why),
                     ERR_OK);
    struct ca_issued again;
    assert_int_equal(
        ca_sign_server_key(t.ca, &names, 397, ca_pem_str(&key), &again, &t.why), ERR_OK);
    assert_string_not_equal(again.serial, out.serial);
    assert_int_equal(ca_certificate_check(ca_pem_str(&again.pem), ca_pem_str(&key),
                                          ca_pem_str(&t.crt), &t.why),
                     ERR_OK);
    names.count = 0;
    assert_int_equal(ca_sign_server(t.ca, &names, 397, &out, &key, &t.why), ERR_INVALID);
}

static void foreign_certificates_are_seen(void **state)
{
    struct ca_csr *r = checked(ca_pem_str(&t.csr));
    struct ca_pem crt, key;
    struct ca_issued out;
    (void)state;

    assert_int_equal(ca_create("Other", &crt, &key, &t.why), ERR_OK);
    assert_int_equal(ca_sign_device(t.ca, r, &device, 1, &out, &t.why), ERR_OK);
    assert_int_equal(ca_certificate_check(ca_pem_str(&out.pem), ca_pem_str(&t.device_key),
                                          ca_pem_str(&crt), &t.why),
                     ERR_DENIED);
    assert_int_equal(ca_certificate_check(ca_pem_str(&out.pem), ca_pem_str(&key),
                                          ca_pem_str(&t.crt), &t.why),
                     ERR_DENIED);
    ca_csr_free(r);
}

static void an_authority_is_checked(void **state)
{
    struct ca_names names = { { "redoubt" }, 1 };
    struct ca *ca = NULL;
    struct ca_pem crt, key;
    struct ca_issued leaf;
    (void)state;

    assert_int_equal(ca_create("Other", &crt, &key, &t.why), ERR_OK);
    assert_int_equal(ca_load(ca_pem_str(&t.crt), ca_pem_str(&key), &ca, &t.why),
                     ERR_DENIED);
    assert_int_equal(ca_sign_server(t.ca, &names, 1, &leaf, &key, &t.why), ERR_OK);
    assert_int_equal(ca_load(ca_pem_str(&leaf.pem), ca_pem_str(&key), &ca, &t.why),
                     ERR_DENIED);
    assert_int_equal(ca_load(STR("nothing"), ca_pem_str(&key), &ca, &t.why), ERR_CORRUPT);
    assert_int_equal(ca_load(ca_pem_str(&t.crt), STR(""), &ca, &t.why), ERR_CORRUPT);
    assert_null(ca);
}

static void the_digest_is_that_of_the_certificate(void **state)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const uint8_t ones[CA_HASH_BYTES] = { 0xff, 0xff, 0xff, [31] = 0x01 };
    char text[CA_DIGEST], again[CA_DIGEST];
    (void)state;

    ca_digest_text(ones, text);
    assert_string_equal(text, "____AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE");
    assert_int_equal(ca_digest(ca_pem_str(&t.crt), text, &t.why), ERR_OK);
    assert_int_equal(strspn(text, digits), CA_DIGEST - 1);
    assert_int_equal(ca_digest(ca_pem_str(&t.csr), again, &t.why), ERR_CORRUPT);
}

/* --- requests --- */

static enum err verdict(struct str pem)
{
    struct ca_csr *r = NULL;
    enum err e = ca_csr_check(pem, &r, &t.why);

    assert_true((e == ERR_OK) == (r != NULL));
    ca_csr_free(r);
    return e;
}

/* A request of any key, with what nobody should get. */
static void request_with(gnutls_pk_algorithm_t algorithm, unsigned bits,
                         struct ca_pem *out)
{
    gnutls_x509_privkey_t key;
    gnutls_x509_crq_t crq;
    size_t n = sizeof(out->text) - 1;

    assert_true(gnutls_x509_privkey_init(&key) >= 0);
    assert_true(gnutls_x509_privkey_generate(key, algorithm, bits, 0) >= 0);
    assert_true(gnutls_x509_crq_init(&crq) >= 0);
    assert_true(gnutls_x509_crq_set_key(crq, key) >= 0);
    assert_true(gnutls_x509_crq_set_dn_by_oid(crq, GNUTLS_OID_X520_COMMON_NAME, 0, "root",
                                              4) >= 0);
    assert_true(gnutls_x509_crq_set_basic_constraints(crq, 1, 3) >= 0);
    assert_true(gnutls_x509_crq_set_key_purpose_oid(crq, GNUTLS_KP_TLS_WWW_SERVER, 0) >=
                0);
    assert_true(gnutls_x509_crq_set_subject_alt_name(crq, GNUTLS_SAN_DNSNAME, "redoubt",
                                                     7, GNUTLS_FSAN_SET) >= 0);
    assert_true(gnutls_x509_crq_sign2(crq, key,
                                      algorithm == GNUTLS_PK_EDDSA_ED25519
                                          ? GNUTLS_DIG_UNKNOWN
                                          : GNUTLS_DIG_SHA256,
                                      0) >= 0);
    assert_true(gnutls_x509_crq_export(crq, GNUTLS_X509_FMT_PEM, out->text, &n) >= 0);
    out->n = n;
    gnutls_x509_crq_deinit(crq);
    gnutls_x509_privkey_deinit(key);
}

static void only_p256_is_signed(void **state)
{
    struct ca_pem pem = { 0 };
    (void)state;

    request_with(GNUTLS_PK_RSA, 2048, &pem);
    assert_int_equal(verdict(ca_pem_str(&pem)), ERR_DENIED);
    request_with(GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP384R1), &pem);
    assert_int_equal(verdict(ca_pem_str(&pem)), ERR_DENIED);
    request_with(GNUTLS_PK_EDDSA_ED25519, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_ED25519),
                 &pem);
    assert_int_equal(verdict(ca_pem_str(&pem)), ERR_DENIED);
}

static void what_a_request_wishes_is_ignored(void **state)
{
    struct ca_pem pem = { 0 };
    struct ca_issued out;
    unsigned critical = 0;
    (void)state;

    request_with(GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), &pem);
    struct ca_csr *r = checked(ca_pem_str(&pem));
    assert_int_equal(ca_sign_device(t.ca, r, &device, 1, &out, &t.why), ERR_OK);
    gnutls_x509_crt_t crt = parsed(&out.pem);
    assert_int_equal(gnutls_x509_crt_get_ca_status(crt, &critical), 0);
    assert_false(gnutls_x509_crt_check_hostname(crt, "redoubt"));
    assert_false(gnutls_x509_crt_check_hostname(crt, "root"));
    assert_true(gnutls_x509_crt_check_key_purpose(crt, GNUTLS_KP_TLS_WWW_CLIENT, 0));
    assert_false(gnutls_x509_crt_check_key_purpose(crt, GNUTLS_KP_TLS_WWW_SERVER, 0));
    gnutls_x509_crt_deinit(crt);
    ca_csr_free(r);
}

static void a_request_of_another_device_is_refused(void **state)
{
    struct ca_issued out;
    struct ca_pem pem;
    struct uuid named;
    (void)state;

    assert_int_equal(ca_csr_new(ca_pem_str(&t.device_key), "", &device, &pem, &t.why),
                     ERR_OK);
    struct ca_csr *r = checked(ca_pem_str(&pem));
    assert_int_equal(ca_csr_device(r, &named), ERR_OK);
    assert_true(uuid_eq(&named, &device));
    assert_int_equal(ca_sign_device(t.ca, r, &other, 1, &out, &t.why), ERR_DENIED);
    assert_int_equal(ca_sign_device(t.ca, r, &device, 1, &out, &t.why), ERR_OK);
    ca_csr_free(r);
    r = checked(ca_pem_str(&t.csr));
    assert_int_equal(ca_csr_device(r, &named), ERR_NOT_FOUND);
    ca_csr_free(r);
    /* A common name that is a UUID is one, too. */
    assert_int_equal(ca_csr_new(ca_pem_str(&t.device_key),
                                "09000000-0000-0000-0000-000000000000", NULL, &pem,
                                &t.why),
                     ERR_OK);
    r = checked(ca_pem_str(&pem));
    assert_int_equal(ca_csr_device(r, &named), ERR_OK);
    assert_true(uuid_eq(&named, &other));
    ca_csr_free(r);
}

static void bad_requests(void **state)
{
    struct ca_pem pem = t.csr;
    char *big = malloc(CA_CSR_MAX + 1);
    uint32_t taken = 0;
    (void)state;

    assert_int_equal(verdict(STR("")), ERR_CORRUPT);
    assert_int_equal(verdict(STR("hello")), ERR_CORRUPT);
    assert_int_equal(verdict(ca_pem_str(&t.crt)), ERR_CORRUPT);
    assert_int_equal(verdict(STR("-----BEGIN CERTIFICATE REQUEST-----\n"
                                 "-----END CERTIFICATE REQUEST-----\n")),
                     ERR_CORRUPT);
    assert_non_null(big);
    memset(big, 'A', CA_CSR_MAX + 1);
    memcpy(big, t.csr.text, t.csr.n);
    assert_int_equal(verdict((struct str){ big, CA_CSR_MAX + 1 }), ERR_LIMIT);
    free(big);
    memcpy(pem.text + pem.n, "\0x", 2);
    assert_int_equal(verdict((struct str){ pem.text, pem.n + 2 }), ERR_CORRUPT);
    /* One wrong digit anywhere: it does not decode, or is not signed by its key any more. */
    for (size_t i = 40; i < t.csr.n - 40; i++) {
        pem = t.csr;
        pem.text[i] = pem.text[i] == 'B' ? 'C' : 'B';
        taken += verdict(ca_pem_str(&pem)) == ERR_OK;
    }
    assert_int_equal(taken, 0);
    for (size_t i = 0; i < t.csr.n - 40; i++)
        assert_int_not_equal(verdict((struct str){ t.csr.text, i }), ERR_OK);
}

static void the_hash_is_of_the_key(void **state)
{
    uint8_t a[CA_HASH_BYTES], b[CA_HASH_BYTES];
    struct ca_pem pem;
    (void)state;

    assert_int_equal(
        ca_csr_new(ca_pem_str(&t.device_key), "another name", NULL, &pem, &t.why),
        ERR_OK);
    struct ca_csr *r = checked(ca_pem_str(&pem));
    assert_int_equal(ca_csr_key_hash(r, a, &t.why), ERR_OK);
    ca_csr_free(r);
    r = checked(ca_pem_str(&t.csr));
    assert_int_equal(ca_csr_key_hash(r, b, &t.why), ERR_OK);
    ca_csr_free(r);
    assert_memory_equal(a, b, sizeof(a));
}

/* --- the seal --- */

static void a_seal_keeps_its_secret(void **state)
{
    const struct mac_key key = { { 1 } }, wrong = { { 2 } };
    const struct str body = STR("the key of the authority");
    char sealed[200], again[200], out[200];
    size_t n = 0, m = 0;
    (void)state;

    assert_int_equal(mac_start(), ERR_OK);
    assert_int_equal(seal_close(&key, STR("ca.key"), body, sealed, sizeof(sealed), &n),
                     ERR_OK);
    assert_int_equal(n, body.n + SEAL_EXTRA);
    assert_null(memmem(sealed, n, body.p, body.n));
    struct str s = { sealed, n };
    assert_int_equal(seal_open(&key, STR("ca.key"), s, out, sizeof(out), &m), ERR_OK);
    assert_true(str_eq((struct str){ out, m }, body));
    assert_int_equal(seal_open(&wrong, STR("ca.key"), s, out, sizeof(out), &m),
                     ERR_CORRUPT);
    assert_int_equal(seal_open(&key, STR("ticket.key"), s, out, sizeof(out), &m),
                     ERR_CORRUPT);
    assert_int_equal(seal_open(&key, STR("ca.key"), s, out, body.n - 1, &m), ERR_LIMIT);
    for (size_t i = 0; i < n; i++) {
        assert_int_not_equal(seal_open(&key, STR("ca.key"), (struct str){ sealed, i },
                                       out, sizeof(out), &m),
                             ERR_OK);
        sealed[i] ^= 1;
        assert_int_equal(seal_open(&key, STR("ca.key"), s, out, sizeof(out), &m),
                         ERR_CORRUPT);
        sealed[i] ^= 1;
    }
    assert_int_equal(seal_close(&key, STR("ca.key"), body, again, sizeof(again), &n),
                     ERR_OK);
    assert_memory_not_equal(sealed, again, n);
    assert_int_equal(seal_close(&key, STR("ca.key"), body, again, body.n, &n), ERR_LIMIT);
}

/* The expected text was made by another program (Python's hashlib). */
static void a_link_is_what_nginx_checks(void **state)
{
    static const char path[] = "/private/packages/a/1/a.deb";
    char key[CA_LINK_KEY], out[CA_LINK_MAX], longest[CA_LINK_MAX + 2 * CA_LINK_KEY + 32];

    (void)state;
    assert_int_equal(ca_link_key(STR("0123456789abcde"), key, &t.why), ERR_CORRUPT);
    assert_int_equal(ca_link_key(STR("0123456789abcdef"), key, &t.why), ERR_OK);
    assert_int_equal(ca_link_make(key, path, 1700000000, out, &t.why), ERR_OK);
    assert_string_equal(
        out, "/private/packages/a/1/a.deb?md5=g-ebMrdNKbY_0sLOlrSczg&expires=1700000000");
    memset(longest, 'a', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(ca_link_make(key, longest, 1, out, &t.why), ERR_LIMIT);
    longest[CA_LINK_MAX - 8] =
        '\0'; /* it is hashed, but does not fit with what follows */
    assert_int_equal(ca_link_make(key, longest, 1, out, &t.why), ERR_LIMIT);
}

/* --- signatures --- */

static const uint8_t digest[CA_HASH_BYTES] = { 1, 2, 3 };

static enum err verify(const struct ca_signature *s)
{
    return ca_verify_digest(ca_pem_str(&t.crt), digest,
                            (struct str){ (const char *)s->bytes, s->n }, &t.why);
}

static void what_is_signed_verifies_and_nothing_else_does(void **state)
{
    struct ca_pem signer;
    struct ca_signature s;
    (void)state;

    assert_int_equal(ca_create_signer(t.ca, "Packages", &signer, &t.why), ERR_OK);
    assert_int_equal(ca_check_signer(ca_pem_str(&signer), ca_pem_str(&t.crt), &t.why),
                     ERR_OK);
    assert_int_equal(ca_sign_digest(ca_pem_str(&signer), digest, &s, &t.why), ERR_OK);
    assert_int_equal(verify(&s), ERR_OK);
    for (size_t i = 0; i < s.n; i++) { /* each single byte matters */
        s.bytes[i] ^= 0x10;
        assert_int_not_equal(verify(&s), ERR_OK);
        s.bytes[i] ^= 0x10;
    }
    for (size_t n = 0; n < s.n; n++) {
        struct ca_signature cut = { .n = n };

        memcpy(cut.bytes, s.bytes, n);
        assert_int_not_equal(verify(&cut), ERR_OK);
    }
    const uint8_t wrong[CA_HASH_BYTES] = { 1, 2, 4 };
    const struct str all = { (const char *)s.bytes, s.n };
    assert_int_equal(ca_verify_digest(ca_pem_str(&t.crt), wrong, all, &t.why),
                     ERR_DENIED);
    assert_non_null(strstr(t.why.what, "not one of these bytes"));
}

static void a_signer_of_another_authority_is_refused(void **state)
{
    struct ca_pem crt, key, signer;
    struct ca_signature s;
    struct ca *ca = NULL;
    (void)state;

    assert_int_equal(ca_create("Test", &crt, &key, &t.why), ERR_OK); /* the same name */
    assert_int_equal(ca_load(ca_pem_str(&crt), ca_pem_str(&key), &ca, &t.why), ERR_OK);
    assert_int_equal(ca_create_signer(ca, "Packages", &signer, &t.why), ERR_OK);
    assert_int_equal(ca_sign_digest(ca_pem_str(&signer), digest, &s, &t.why), ERR_OK);
    assert_int_equal(verify(&s), ERR_DENIED);
    assert_non_null(strstr(t.why.what, "authority"));
    assert_int_equal(ca_check_signer(ca_pem_str(&signer), ca_pem_str(&t.crt), &t.why),
                     ERR_DENIED);
    ca_free(ca);
}

/* Puts a key and a certificate together as a signer. */
static void pretend(struct ca_pem *out, const struct ca_pem *key,
                    const struct ca_pem *crt)
{
    *out = *key;
    assert_true(out->n + crt->n < sizeof(out->text));
    memcpy(out->text + out->n, crt->text, crt->n + 1);
    out->n += crt->n;
}

static void only_a_certificate_for_signing_signs(void **state)
{
    const struct ca_names names = { { "redoubt" }, 1 };
    struct ca_csr *r = checked(ca_pem_str(&t.csr));
    struct ca_issued issued;
    struct ca_pem key, signer;
    struct ca_signature s;
    (void)state;

    assert_int_equal(ca_sign_device(t.ca, r, &device, 90, &issued, &t.why), ERR_OK);
    ca_csr_free(r);
    pretend(&signer, &t.device_key, &issued.pem);
    assert_int_equal(ca_check_signer(ca_pem_str(&signer), ca_pem_str(&t.crt), &t.why),
                     ERR_DENIED);
    assert_int_not_equal(ca_sign_digest(ca_pem_str(&signer), digest, &s, &t.why), ERR_OK);
    assert_int_equal(ca_sign_server(t.ca, &names, 90, &issued, &key, &t.why), ERR_OK);
    pretend(&signer, &key, &issued.pem);
    assert_int_equal(ca_check_signer(ca_pem_str(&signer), ca_pem_str(&t.crt), &t.why),
                     ERR_DENIED);
    pretend(&signer, &t.device_key, &t.crt);
    assert_int_not_equal(ca_sign_digest(ca_pem_str(&signer), digest, &s, &t.why), ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_gets_its_id_and_nothing_else),
        cmocka_unit_test(serials_differ),
        cmocka_unit_test(no_certificate_outlives_the_authority),
        cmocka_unit_test(a_server_gets_its_names),
        cmocka_unit_test(foreign_certificates_are_seen),
        cmocka_unit_test(an_authority_is_checked),
        cmocka_unit_test(the_digest_is_that_of_the_certificate),
        cmocka_unit_test(only_p256_is_signed),
        cmocka_unit_test(what_a_request_wishes_is_ignored),
        cmocka_unit_test(a_request_of_another_device_is_refused),
        cmocka_unit_test(bad_requests),
        cmocka_unit_test(the_hash_is_of_the_key),
        cmocka_unit_test(a_seal_keeps_its_secret),
        cmocka_unit_test(what_is_signed_verifies_and_nothing_else_does),
        cmocka_unit_test(a_signer_of_another_authority_is_refused),
        cmocka_unit_test(only_a_certificate_for_signing_signs),
        cmocka_unit_test(a_link_is_what_nginx_checks),
    };

    return cmocka_run_group_tests_name("ca", tests, make_authority, drop_authority);
}
