#include "sys/ca/ca_gnutls.h"
#include "sys/ca/ca_sign.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SERIAL_BYTES = 16,
    SKEW_S = 3600, /* a certificate is good from an hour before: clocks differ */
    DAY_S = 86400,
    NAME_BYTES = 64 /* ub-common-name, RFC 5280 appendix A */
};

struct ca {
    gnutls_x509_crt_t crt;
    gnutls_x509_privkey_t key;
};

enum err ca_failed(struct err_info *info, enum err e, int code, const char *what)
{
    return err_set(info, e, 0, "%s: %s", what, gnutls_strerror(code));
}

gnutls_datum_t ca_datum(struct str s)
{
    return (gnutls_datum_t){ .data = (unsigned char *)(uintptr_t)s.p,
                             .size = (unsigned)s.n };
}

void ca_pem_wipe(struct ca_pem *p)
{
    gnutls_memset(p, 0, sizeof(*p));
}

struct str ca_pem_str(const struct ca_pem *p)
{
    return (struct str){ p->text, p->n };
}

/* Frees d. */
enum err ca_take_pem(int code, gnutls_datum_t *d, struct ca_pem *out,
                     struct err_info *info)
{
    enum err e = ERR_OK;

    if (code < 0)
        return ca_failed(info, ERR_MEMORY, code, "write PEM");
    if (d->size >= sizeof(out->text)) {
        e = err_set(info, ERR_LIMIT, 0, "PEM is too long");
    } else {
        memcpy(out->text, d->data, d->size);
        out->text[d->size] = '\0';
        out->n = d->size;
    }
    gnutls_memset(d->data, 0, d->size);
    gnutls_free(d->data);
    return e;
}

enum err ca_bounded(struct str pem, size_t most, struct err_info *info)
{
    if (pem.n == 0)
        return err_set(info, ERR_CORRUPT, 0, "it is empty");
    if (pem.n > most)
        return err_set(info, ERR_LIMIT, 0, "it is longer than %zu bytes", most);
    return ERR_OK;
}

/* --- keys --- */

static enum err key_of(gnutls_pk_algorithm_t kind, unsigned bits,
                       gnutls_x509_privkey_t *out, struct err_info *info)
{
    gnutls_x509_privkey_t key = NULL;
    int n = gnutls_x509_privkey_init(&key);

    if (n >= 0)
        n = gnutls_x509_privkey_generate(key, kind, bits, 0);
    if (n < 0) {
        if (key)
            gnutls_x509_privkey_deinit(key);
        return ca_failed(info, ERR_MEMORY, n, "make a key");
    }
    *out = key;
    return ERR_OK;
}

static enum err key_make(gnutls_x509_privkey_t *out, struct err_info *info)
{
    return key_of(GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), out,
                  info);
}

enum err ca_key_import(struct str pem, gnutls_x509_privkey_t *out, struct err_info *info)
{
    gnutls_x509_privkey_t key = NULL;
    gnutls_datum_t d = ca_datum(pem);
    enum err e = ca_bounded(pem, CA_PEM_MAX, info);

    if (e != ERR_OK)
        return e;
    if (gnutls_x509_privkey_init(&key) < 0)
        return err_set(info, ERR_MEMORY, ENOMEM, "key");
    int n = gnutls_x509_privkey_import2(key, &d, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (n < 0) {
        gnutls_x509_privkey_deinit(key);
        return ca_failed(info, ERR_CORRUPT, n, "no private key");
    }
    *out = key;
    return ERR_OK;
}

static enum err key_export(gnutls_x509_privkey_t key, struct ca_pem *out,
                           struct err_info *info)
{
    gnutls_datum_t d = { 0 };
    int n = gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_PEM, NULL,
                                              GNUTLS_PKCS_PLAIN, &d);

    return ca_take_pem(n, &d, out, info);
}

enum err ca_key_new(struct ca_pem *key, struct err_info *info)
{
    gnutls_x509_privkey_t made = NULL;
    enum err e = key_make(&made, info);

    if (e == ERR_OK)
        e = key_export(made, key, info);
    if (made)
        gnutls_x509_privkey_deinit(made);
    return e;
}

/* --- certificates --- */

enum err ca_crt_import(struct str pem, gnutls_x509_crt_t *out, struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL;
    gnutls_datum_t d = ca_datum(pem);
    enum err e = ca_bounded(pem, CA_PEM_MAX, info);

    if (e != ERR_OK)
        return e;
    if (gnutls_x509_crt_init(&crt) < 0)
        return err_set(info, ERR_MEMORY, ENOMEM, "certificate");
    int n = gnutls_x509_crt_import(crt, &d, GNUTLS_X509_FMT_PEM);
    if (n < 0) {
        gnutls_x509_crt_deinit(crt);
        return ca_failed(info, ERR_CORRUPT, n, "no certificate");
    }
    *out = crt;
    return ERR_OK;
}

static enum err crt_export(gnutls_x509_crt_t crt, struct ca_pem *out,
                           struct err_info *info)
{
    gnutls_datum_t d = { 0 };
    int n = gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &d);

    return ca_take_pem(n, &d, out, info);
}

/* Version, serial, times: what all certificates have. */
static int crt_begin(gnutls_x509_crt_t crt, uint32_t days, struct ca_issued *out)
{
    uint8_t serial[SERIAL_BYTES];
    time_t now = time(NULL);

    /* Positive and without a leading zero: the hex text is the number (RFC 5280 4.1.2.2). */
    int n = gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof(serial));
    serial[0] = (uint8_t)((serial[0] & 0x7f) | 0x40);
    hex_encode(out->serial, serial, sizeof(serial));
    out->not_before = (int64_t)now - SKEW_S;
    out->not_after = (int64_t)now + (int64_t)days * DAY_S;
    if (n >= 0)
        n = gnutls_x509_crt_set_version(crt, 3);
    if (n >= 0)
        n = gnutls_x509_crt_set_serial(crt, serial, sizeof(serial));
    if (n >= 0)
        n = gnutls_x509_crt_set_activation_time(crt, (time_t)out->not_before);
    if (n >= 0)
        n = gnutls_x509_crt_set_expiration_time(crt, (time_t)out->not_after);
    return n;
}

static int crt_name(gnutls_x509_crt_t crt, const char *name)
{
    size_t n = strlen(name);

    return gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                         n > NAME_BYTES ? NAME_BYTES : (unsigned)n);
}

/* Key identifier of the certificate's own key (RFC 5280 4.2.1.2). */
static int crt_key_id(gnutls_x509_crt_t crt)
{
    uint8_t id[64];
    size_t n = sizeof(id);
    int r = gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA1, id, &n);

    return r < 0 ? r : gnutls_x509_crt_set_subject_key_id(crt, id, n);
}

enum err ca_create(const char *name, struct ca_pem *certificate, struct ca_pem *key,
                   struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL;
    gnutls_x509_privkey_t made = NULL;
    struct ca_issued about;
    enum err e = key_make(&made, info);
    int n = 0;

    if (e == ERR_OK && (n = gnutls_x509_crt_init(&crt)) >= 0) {
        n = crt_begin(crt, CA_DAYS, &about);
        if (n >= 0)
            n = crt_name(crt, name);
        if (n >= 0)
            n = gnutls_x509_crt_set_key(crt, made);
        if (n >= 0)
            n = gnutls_x509_crt_set_basic_constraints(crt, 1, 0); /* none below it */
        if (n >= 0)
            n = gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_KEY_CERT_SIGN |
                                                       GNUTLS_KEY_CRL_SIGN);
        if (n >= 0)
            n = crt_key_id(crt);
        if (n >= 0)
            n = gnutls_x509_crt_sign2(crt, crt, made, GNUTLS_DIG_SHA256, 0);
    }
    if (e == ERR_OK && n < 0)
        e = ca_failed(info, ERR_MEMORY, n, "make the authority");
    if (e == ERR_OK)
        e = key_export(made, key, info);
    if (e == ERR_OK)
        e = crt_export(crt, certificate, info);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    if (made)
        gnutls_x509_privkey_deinit(made);
    return e;
}

/* Does the certificate hold the public half of the key? */
bool ca_same_key(gnutls_x509_crt_t crt, gnutls_x509_privkey_t key)
{
    uint8_t a[64], b[64];
    size_t an = sizeof(a), bn = sizeof(b);

    return gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, a, &an) >= 0 &&
           gnutls_x509_privkey_get_key_id(key, GNUTLS_KEYID_USE_SHA256, b, &bn) >= 0 &&
           an == bn && memcmp(a, b, an) == 0;
}

static enum err authority_check(const struct ca *ca, struct err_info *info)
{
    unsigned usage = 0, critical;
    time_t now = time(NULL);

    if (gnutls_x509_crt_get_ca_status(ca->crt, &critical) <= 0)
        return err_set(info, ERR_DENIED, 0, "the certificate is not one of an authority");
    if (gnutls_x509_crt_get_key_usage(ca->crt, &usage, &critical) >= 0 &&
        !(usage & GNUTLS_KEY_KEY_CERT_SIGN))
        return err_set(info, ERR_DENIED, 0, "the authority may not sign certificates");
    if (!ca_same_key(ca->crt, ca->key))
        return err_set(info, ERR_DENIED, 0,
                       "the private key is not that of the certificate");
    if (gnutls_x509_crt_get_expiration_time(ca->crt) <= now)
        return err_set(info, ERR_DENIED, 0, "the authority has expired");
    return ERR_OK;
}

enum err ca_load(struct str certificate, struct str key, struct ca **out,
                 struct err_info *info)
{
    struct ca *ca = calloc(1, sizeof(*ca));

    if (!ca)
        return err_set(info, ERR_MEMORY, ENOMEM, "authority");
    enum err e = ca_crt_import(certificate, &ca->crt, info);
    if (e == ERR_OK)
        e = ca_key_import(key, &ca->key, info);
    if (e == ERR_OK)
        e = authority_check(ca, info);
    if (e != ERR_OK) {
        ca_free(ca);
        return e;
    }
    *out = ca;
    return ERR_OK;
}

void ca_free(struct ca *ca)
{
    if (!ca)
        return;
    if (ca->crt)
        gnutls_x509_crt_deinit(ca->crt);
    if (ca->key)
        gnutls_x509_privkey_deinit(ca->key);
    free(ca);
}

void ca_digest_text(const uint8_t hash[CA_HASH_BYTES], char out[CA_DIGEST])
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0, have = 0;
    size_t n = 0;

    for (size_t i = 0; i < CA_HASH_BYTES; i++) {
        bits = (bits << 8 | hash[i]) & 0xffff;
        for (have += 8; have >= 6; have -= 6)
            out[n++] = digits[bits >> (have - 6) & 63];
    }
    out[n++] = digits[bits << (6 - have) & 63];
    out[n++] = '\0';
    CHECK(n == CA_DIGEST);
}

enum err ca_digest(struct str certificate, char out[CA_DIGEST], struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL;
    uint8_t hash[CA_HASH_BYTES];
    size_t n = sizeof(hash);
    enum err e = ca_crt_import(certificate, &crt, info);

    if (e != ERR_OK)
        return e;
    int r = gnutls_x509_crt_get_fingerprint(crt, GNUTLS_DIG_SHA256, hash, &n);
    gnutls_x509_crt_deinit(crt);
    if (r < 0)
        return ca_failed(info, ERR_CORRUPT, r, "digest");
    ca_digest_text(hash, out);
    return ERR_OK;
}

/* --- issuing --- */

/* What a leaf has besides its names and purpose; then the signature. */
static int leaf_finish(gnutls_x509_crt_t crt, const struct ca *ca)
{
    uint8_t id[64];
    size_t n = sizeof(id);
    int r = gnutls_x509_crt_set_basic_constraints(crt, 0, -1);

    if (r >= 0)
        r = gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
    if (r >= 0)
        r = crt_key_id(crt);
    if (r >= 0 && gnutls_x509_crt_get_subject_key_id(ca->crt, id, &n, NULL) >= 0)
        r = gnutls_x509_crt_set_authority_key_id(crt, id, n);
    if (r >= 0)
        r = gnutls_x509_crt_sign2(crt, ca->crt, ca->key, GNUTLS_DIG_SHA256, 0);
    return r;
}

/* No certificate outlives its authority. */
static uint32_t days_left(const struct ca *ca, uint32_t days)
{
    int64_t left =
        ((int64_t)gnutls_x509_crt_get_expiration_time(ca->crt) - (int64_t)time(NULL)) /
        DAY_S;

    return left < (int64_t)days ? (uint32_t)(left < 0 ? 0 : left) : days;
}

static enum err leaf_export(int n, gnutls_x509_crt_t crt, struct ca_issued *out,
                            struct err_info *info)
{
    return n < 0 ? ca_failed(info, ERR_MEMORY, n, "sign a certificate")
                 : crt_export(crt, &out->pem, info);
}

enum err ca_sign_device(const struct ca *ca, const struct ca_csr *r,
                        const struct uuid *device, uint32_t days, struct ca_issued *out,
                        struct err_info *info)
{
    char id[UUID_TEXT], uri[UUID_TEXT + 16];
    gnutls_x509_crt_t crt = NULL;
    struct uuid asked;

    if (ca_csr_device(r, &asked) == ERR_OK && !uuid_eq(&asked, device))
        return err_set(info, ERR_DENIED, 0, "the request is for another device");
    uuid_format(id, device);
    (void)snprintf(uri, sizeof(uri), "urn:uuid:%s", id);
    int n = gnutls_x509_crt_init(&crt);
    if (n >= 0)
        n = crt_begin(crt, days_left(ca, days), out);
    if (n >= 0)
        n = crt_name(crt, id);
    if (n >= 0)
        n = gnutls_x509_crt_set_pubkey(crt, ca_csr_key(r));
    if (n >= 0)
        n = gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_URI, uri,
                                                 (unsigned)strlen(uri), GNUTLS_FSAN_SET);
    if (n >= 0)
        n = gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
    if (n >= 0)
        n = leaf_finish(crt, ca);
    enum err e = leaf_export(n, crt, out, info);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    return e;
}

/* One name of a server: an address, or else a host name. */
static int server_name(gnutls_x509_crt_t crt, const char *name)
{
    unsigned char address[sizeof(struct in6_addr)];
    unsigned n = 0;

    if (inet_pton(AF_INET, name, address) == 1)
        n = sizeof(struct in_addr);
    else if (inet_pton(AF_INET6, name, address) == 1)
        n = sizeof(struct in6_addr);
    return n > 0 ? gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS,
                                                        address, n, GNUTLS_FSAN_APPEND)
                 : gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, name,
                                                        (unsigned)strlen(name),
                                                        GNUTLS_FSAN_APPEND);
}

enum err ca_sign_server_key(const struct ca *ca, const struct ca_names *names,
                            uint32_t days, struct str key, struct ca_issued *out,
                            struct err_info *info)
{
    gnutls_x509_privkey_t own = NULL;
    gnutls_x509_crt_t crt = NULL;

    if (names->count == 0)
        return err_set(info, ERR_INVALID, 0, "a server needs a name");
    enum err e = ca_key_import(key, &own, info);
    if (e != ERR_OK)
        return e;
    int n = gnutls_x509_crt_init(&crt);
    if (n >= 0)
        n = crt_begin(crt, days_left(ca, days), out);
    if (n >= 0)
        n = crt_name(crt, names->at[0]);
    for (uint32_t i = 0; n >= 0 && i < names->count; i++)
        n = server_name(crt, names->at[i]);
    if (n >= 0)
        n = gnutls_x509_crt_set_key(crt, own);
    if (n >= 0)
        n = gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_SERVER, 0);
    if (n >= 0)
        n = leaf_finish(crt, ca);
    e = leaf_export(n, crt, out, info);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(own);
    return e;
}

enum err ca_sign_server(const struct ca *ca, const struct ca_names *names, uint32_t days,
                        struct ca_issued *out, struct ca_pem *key, struct err_info *info)
{
    enum err e = ca_key_new(key, info);

    return e == ERR_OK ? ca_sign_server_key(ca, names, days, ca_pem_str(key), out, info)
                       : e;
}

/* Key and certificate in one text: one file that is there or not. */
static enum err signer_export(gnutls_x509_privkey_t key, gnutls_x509_crt_t crt,
                              struct ca_pem *out, struct err_info *info)
{
    struct ca_pem certificate = { 0 };
    enum err e = crt_export(crt, &certificate, info);

    if (e == ERR_OK)
        e = key_export(key, out, info);
    if (e == ERR_OK && out->n + certificate.n >= sizeof(out->text))
        e = err_set(info, ERR_LIMIT, 0, "PEM is too long");
    if (e == ERR_OK) {
        memcpy(out->text + out->n, certificate.text, certificate.n + 1);
        out->n += certificate.n;
    }
    return e;
}

enum err ca_create_signer(const struct ca *ca, const char *name, struct ca_pem *out,
                          struct err_info *info)
{
    gnutls_x509_privkey_t made = NULL;
    gnutls_x509_crt_t crt = NULL;
    struct ca_issued about;
    enum err e = key_of(GNUTLS_PK_EDDSA_ED25519,
                        GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_ED25519), &made, info);

    if (e != ERR_OK)
        return e;
    int n = gnutls_x509_crt_init(&crt);
    if (n >= 0)
        n = crt_begin(crt, days_left(ca, CA_DAYS), &about);
    if (n >= 0)
        n = crt_name(crt, name);
    if (n >= 0)
        n = gnutls_x509_crt_set_key(crt, made);
    if (n >= 0)
        n = gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_CODE_SIGNING, 1);
    if (n >= 0)
        n = leaf_finish(crt, ca);
    e = n < 0 ? ca_failed(info, ERR_MEMORY, n, "make a signer")
              : signer_export(made, crt, out, info);
    if (crt)
        gnutls_x509_crt_deinit(crt);
    gnutls_x509_privkey_deinit(made);
    return e;
}

/* --- reading --- */
/* urn:uuid: as a name; anything else is none. */
bool ca_uri_device(const char *name, size_t n, struct uuid *out)
{
    const struct str prefix = STR("urn:uuid:");
    struct str s = { name, n };

    return str_starts(s, prefix) &&
           uuid_parse(out, (struct str){ s.p + prefix.n, s.n - prefix.n });
}

static bool crt_device(gnutls_x509_crt_t crt, struct uuid *out)
{
    uint32_t found = 0;

    for (unsigned i = 0; i < 64; i++) {
        char name[256];
        size_t n = sizeof(name);
        int type = gnutls_x509_crt_get_subject_alt_name(crt, i, name, &n, NULL);

        if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            break;
        if (type == GNUTLS_SAN_URI && ca_uri_device(name, n, out))
            found++;
    }
    return found == 1;
}

enum err ca_certificate_read(struct str pem, struct ca_certificate *out,
                             struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL;
    struct ca_certificate c = { 0 };
    uint8_t serial[32];
    size_t n = sizeof(serial);
    enum err e = ca_crt_import(pem, &crt, info);

    if (e != ERR_OK)
        return e;
    int r = gnutls_x509_crt_get_serial(crt, serial, &n);
    if (r < 0) {
        e = ca_failed(info, ERR_CORRUPT, r, "serial number");
    } else {
        hex_encode(c.serial, serial, n);
        c.not_before = (int64_t)gnutls_x509_crt_get_activation_time(crt);
        c.not_after = (int64_t)gnutls_x509_crt_get_expiration_time(crt);
        c.has_device = crt_device(crt, &c.device);
        *out = c;
    }
    gnutls_x509_crt_deinit(crt);
    return e;
}

enum err ca_certificate_check(struct str pem, struct str key, struct str authority,
                              struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL, ca = NULL;
    gnutls_x509_privkey_t own = NULL;
    unsigned status = 0;
    enum err e = ca_crt_import(pem, &crt, info);

    if (e == ERR_OK && authority.n > 0)
        e = ca_crt_import(authority, &ca, info);
    if (e == ERR_OK)
        e = ca_key_import(key, &own, info);
    if (e == ERR_OK && !ca_same_key(crt, own))
        e = err_set(info, ERR_DENIED, 0, "the certificate is not of this key");
    if (e == ERR_OK && ca &&
        (gnutls_x509_crt_verify(crt, &ca, 1,
                                GNUTLS_VERIFY_DISABLE_TIME_CHECKS |
                                    GNUTLS_VERIFY_DISABLE_TRUSTED_TIME_CHECKS,
                                &status) < 0 ||
         status != 0))
        e = err_set(info, ERR_DENIED, 0,
                    "the certificate is not signed by this authority");
    if (crt)
        gnutls_x509_crt_deinit(crt);
    if (ca)
        gnutls_x509_crt_deinit(ca);
    if (own)
        gnutls_x509_privkey_deinit(own);
    return e;
}
