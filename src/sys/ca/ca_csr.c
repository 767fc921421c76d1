#include "sys/ca/ca_gnutls.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ca_csr {
    gnutls_x509_crq_t crq;
    gnutls_pubkey_t key;
};

gnutls_pubkey_t ca_csr_key(const struct ca_csr *r)
{
    return r->key;
}

static enum err check_key(const struct ca_csr *r, struct err_info *info)
{
    gnutls_ecc_curve_t curve = GNUTLS_ECC_CURVE_INVALID;
    gnutls_datum_t x = { 0 }, y = { 0 };

    if (gnutls_pubkey_get_pk_algorithm(r->key, NULL) == GNUTLS_PK_ECDSA &&
        gnutls_pubkey_export_ecc_raw2(r->key, &curve, &x, &y, 0) < 0)
        curve = GNUTLS_ECC_CURVE_INVALID;
    gnutls_free(x.data);
    gnutls_free(y.data);
    return curve == GNUTLS_ECC_CURVE_SECP256R1
               ? ERR_OK
               : err_set(info, ERR_DENIED, 0, "its key is not ECDSA P-256");
}

static enum err check(struct ca_csr *r, struct str pem, struct err_info *info)
{
    gnutls_datum_t d = ca_datum(pem);
    int n = gnutls_x509_crq_init(&r->crq);

    if (n >= 0)
        n = gnutls_pubkey_init(&r->key);
    if (n < 0)
        return ca_failed(info, ERR_MEMORY, n, "signing request");
    n = gnutls_x509_crq_import(r->crq, &d, GNUTLS_X509_FMT_PEM);
    if (n < 0)
        return ca_failed(info, ERR_CORRUPT, n, "no signing request");
    n = gnutls_pubkey_import_x509_crq(r->key, r->crq, 0);
    if (n < 0)
        return ca_failed(info, ERR_DENIED, n, "its key cannot be used");
    enum err e = check_key(r, info);
    if (e == ERR_OK && (n = gnutls_x509_crq_verify(r->crq, 0)) < 0)
        e = ca_failed(info, ERR_DENIED, n, "it is not signed by its key");
    return e;
}

enum err ca_csr_check(struct str pem, struct ca_csr **out, struct err_info *info)
{
    enum err e = ca_bounded(pem, CA_CSR_MAX, info);
    struct ca_csr *r;

    if (e != ERR_OK)
        return e;
    /* GnuTLS reads up to the first NUL; the DBMS would not take it. */
    if (memchr(pem.p, '\0', pem.n) || !text_is_utf8(pem))
        return err_set(info, ERR_CORRUPT, 0, "it is not text");
    r = calloc(1, sizeof(*r));
    if (!r)
        return err_set(info, ERR_MEMORY, ENOMEM, "signing request");
    e = check(r, pem, info);
    if (e != ERR_OK) {
        ca_csr_free(r);
        return e;
    }
    *out = r;
    return ERR_OK;
}

void ca_csr_free(struct ca_csr *r)
{
    if (!r)
        return;
    if (r->key)
        gnutls_pubkey_deinit(r->key);
    if (r->crq)
        gnutls_x509_crq_deinit(r->crq);
    free(r);
}

enum err ca_csr_key_hash(const struct ca_csr *r, uint8_t out[CA_HASH_BYTES],
                         struct err_info *info)
{
    uint8_t id[CA_HASH_BYTES];
    size_t n = sizeof(id);
    int code = gnutls_pubkey_get_key_id(r->key, GNUTLS_KEYID_USE_SHA256, id, &n);

    if (code < 0 || n != sizeof(id))
        return ca_failed(info, ERR_CORRUPT, code, "hash of the key");
    memcpy(out, id, sizeof(id));
    return ERR_OK;
}

enum err ca_csr_device(const struct ca_csr *r, struct uuid *out)
{
    char name[256];
    struct uuid id;

    for (unsigned i = 0; i < 16; i++) {
        size_t n = sizeof(name);
        unsigned type = 0;
        int code = gnutls_x509_crq_get_subject_alt_name(r->crq, i, name, &n, &type, NULL);

        if (code == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            break;
        if (code >= 0 && type == GNUTLS_SAN_URI && ca_uri_device(name, n, &id)) {
            *out = id;
            return ERR_OK;
        }
    }
    size_t n = sizeof(name);
    if (gnutls_x509_crq_get_dn_by_oid(r->crq, GNUTLS_OID_X520_COMMON_NAME, 0, 0, name,
                                      &n) < 0 ||
        !uuid_parse(&id, (struct str){ name, n }))
        return ERR_NOT_FOUND;
    *out = id;
    return ERR_OK;
}

enum err ca_csr_new(struct str key, const char *name, const struct uuid *device,
                    struct ca_pem *out, struct err_info *info)
{
    char id[UUID_TEXT] = "", uri[UUID_TEXT + 16];
    gnutls_x509_privkey_t own = NULL;
    gnutls_x509_crq_t crq = NULL;
    gnutls_datum_t d = { 0 };
    enum err e = ca_key_import(key, &own, info);

    if (e != ERR_OK)
        return e;
    if (device)
        uuid_format(id, device);
    const char *cn = device ? id : name;
    const size_t cn_bytes = strlen(cn) > 64 ? 64 : strlen(cn); /* ub-common-name */
    int n = gnutls_x509_crq_init(&crq);
    if (n >= 0)
        n = gnutls_x509_crq_set_version(crq, 1);
    if (n >= 0 && cn[0])
        n = gnutls_x509_crq_set_dn_by_oid(crq, GNUTLS_OID_X520_COMMON_NAME, 0, cn,
                                          (unsigned)cn_bytes);
    if (n >= 0)
        n = gnutls_x509_crq_set_key(crq, own);
    if (n >= 0 && device) {
        (void)snprintf(uri, sizeof(uri), "urn:uuid:%s", id);
        n = gnutls_x509_crq_set_subject_alt_name(crq, GNUTLS_SAN_URI, uri,
                                                 (unsigned)strlen(uri), GNUTLS_FSAN_SET);
    }
    if (n >= 0)
        n = gnutls_x509_crq_sign2(crq, own, GNUTLS_DIG_SHA256, 0);
    if (n >= 0)
        n = gnutls_x509_crq_export2(crq, GNUTLS_X509_FMT_PEM, &d);
    e = ca_take_pem(n, &d, out, info);
    if (crq)
        gnutls_x509_crq_deinit(crq);
    gnutls_x509_privkey_deinit(own);
    return e;
}
