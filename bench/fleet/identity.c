#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fleet.h"

static gnutls_x509_crt_t authority;
static gnutls_x509_privkey_t authority_key, device_key;

static bool failed(const char *what, int code)
{
    fprintf(stderr, "fleet: %s: %s\n", what, gnutls_strerror(code));
    return false;
}

static int load(const char *path, gnutls_datum_t *out)
{
    return gnutls_load_file(path, out);
}

bool identity_open(struct fleet *f)
{
    gnutls_datum_t crt = { 0 }, key = { 0 };
    int n = load(f->ca, &crt);

    if (n >= 0)
        n = load(f->ca_key, &key);
    if (n < 0)
        return failed("read the authority", n);
    (void)gnutls_x509_crt_init(&authority);
    (void)gnutls_x509_privkey_init(&authority_key);
    (void)gnutls_x509_privkey_init(&device_key);
    n = gnutls_x509_crt_import(authority, &crt, GNUTLS_X509_FMT_PEM);
    if (n >= 0)
        n = gnutls_x509_privkey_import2(authority_key, &key, GNUTLS_X509_FMT_PEM, NULL,
                                        0);
    gnutls_free(crt.data);
    gnutls_free(key.data);
    if (n >= 0)
        n = gnutls_x509_privkey_generate(device_key, GNUTLS_PK_ECDSA,
                                         GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1),
                                         0);
    if (n >= 0)
        n = gnutls_privkey_init(&f->key);
    if (n >= 0)
        n = gnutls_privkey_import_x509(f->key, device_key, 0);
    if (n >= 0)
        n = gnutls_certificate_allocate_credentials(&f->trust);
    if (n >= 0)
        n = gnutls_certificate_set_x509_trust(f->trust, &authority, 1);
    if (n < 0)
        return failed("the authority", n);
    gnutls_certificate_set_retrieve_function2(f->trust, identity_show);
    n = gnutls_priority_init(&f->priority, "NORMAL:-VERS-ALL:+VERS-TLS1.3", NULL);
    return n < 0 ? failed("TLS", n) : true;
}

bool identity_make(struct device *d)
{
    gnutls_x509_crt_t crt;
    char uri[64] = "urn:uuid:", name[32];
    uint8_t serial[12] = { 1 };
    time_t now = time(NULL);
    int n = gnutls_x509_crt_init(&crt);

    uuid_format(uri + 9, &d->id);
    memcpy(serial + 4, &d->index, sizeof(d->index));
    int len = snprintf(name, sizeof(name), "bench-%u", d->index);
    if (n >= 0)
        n = gnutls_x509_crt_set_key(crt, device_key);
    if (n >= 0)
        n = gnutls_x509_crt_set_version(crt, 3);
    if (n >= 0)
        n = gnutls_x509_crt_set_serial(crt, serial, sizeof(serial));
    if (n >= 0)
        n = gnutls_x509_crt_set_dn_by_oid(crt, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                          (unsigned)len);
    if (n >= 0)
        n = gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_URI, uri,
                                                 (unsigned)strlen(uri), 0);
    if (n >= 0)
        n = gnutls_x509_crt_set_key_purpose_oid(crt, GNUTLS_KP_TLS_WWW_CLIENT, 0);
    if (n >= 0)
        n = gnutls_x509_crt_set_key_usage(crt, GNUTLS_KEY_DIGITAL_SIGNATURE);
    if (n >= 0)
        n = gnutls_x509_crt_set_activation_time(crt, now - 3600);
    if (n >= 0)
        n = gnutls_x509_crt_set_expiration_time(crt, now + 7 * 86400);
    if (n >= 0)
        n = gnutls_x509_crt_sign2(crt, authority, authority_key, GNUTLS_DIG_SHA256, 0);
    if (n >= 0)
        n = gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_DER, &d->certificate);
    gnutls_x509_crt_deinit(crt);
    return n < 0 ? failed("a device's certificate", n) : true;
}

int identity_show(gnutls_session_t s, const gnutls_datum_t *rdn, int n,
                  const gnutls_pk_algorithm_t *algorithms, int algorithm_n,
                  gnutls_pcert_st **certificate, unsigned *length, gnutls_privkey_t *key)
{
    struct device *d = gnutls_session_get_ptr(s);

    (void)rdn, (void)n, (void)algorithms, (void)algorithm_n;
    if (!d->shown) {
        d->shown = calloc(1, sizeof(*d->shown));
        if (!d->shown || gnutls_pcert_import_x509_raw(d->shown, &d->certificate,
                                                      GNUTLS_X509_FMT_DER, 0) < 0)
            return -1;
    }
    *certificate = d->shown;
    *length = 1;
    *key = d->fleet->key;
    return 0;
}
