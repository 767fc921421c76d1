#include "sys/ca/ca_sign.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "sys/ca/ca_gnutls.h"

enum { ED25519_BYTES = 64 };

static_assert(CA_SIGNATURE_MIN == ED25519_BYTES + 1, "a signature and a certificate");

static gnutls_datum_t digest_datum(const uint8_t sha256[CA_HASH_BYTES])
{
    return (gnutls_datum_t){ (unsigned char *)(uintptr_t)sha256, CA_HASH_BYTES };
}

/* May what holds this certificate sign for the authority? */
static enum err check_certificate(gnutls_x509_crt_t crt, struct str authority,
                                  struct err_info *info)
{
    gnutls_x509_crt_t ca = NULL;
    unsigned status = 0;
    enum err e = ca_crt_import(authority, &ca, info);

    if (e != ERR_OK)
        return e;
    int n = gnutls_x509_crt_verify(crt, &ca, 1, 0, &status);
    gnutls_x509_crt_deinit(ca);
    if (n < 0)
        return ca_failed(info, ERR_DENIED, n, "the certificate of the signer");
    if (status & (GNUTLS_CERT_EXPIRED | GNUTLS_CERT_NOT_ACTIVATED))
        return err_set(info, ERR_DENIED, 0,
                       "the certificate of the signer is not valid now");
    if (status != 0)
        return err_set(info, ERR_DENIED, 0,
                       "the signer is not one of this cluster's authority");
    if (gnutls_x509_crt_check_key_purpose(crt, GNUTLS_KP_CODE_SIGNING,
                                          GNUTLS_KP_FLAG_DISALLOW_ANY) == 0 ||
        gnutls_x509_crt_get_pk_algorithm(crt, NULL) != GNUTLS_PK_EDDSA_ED25519)
        return err_set(info, ERR_DENIED, 0,
                       "the certificate is not one for signing packages");
    return ERR_OK;
}

static enum err import_signer(struct str signer, gnutls_x509_privkey_t *key,
                              gnutls_x509_crt_t *crt, struct err_info *info)
{
    enum err e = ca_crt_import(signer, crt, info);

    if (e == ERR_OK)
        e = ca_key_import(signer, key, info);
    if (e == ERR_OK && !ca_same_key(*crt, *key))
        e = err_set(info, ERR_DENIED, 0,
                    "the signing key is not that of its certificate");
    return e;
}

static void drop_signer(gnutls_x509_privkey_t key, gnutls_x509_crt_t crt)
{
    if (key)
        gnutls_x509_privkey_deinit(key);
    if (crt)
        gnutls_x509_crt_deinit(crt);
}

enum err ca_check_signer(struct str signer, struct str authority, struct err_info *info)
{
    gnutls_x509_privkey_t key = NULL;
    gnutls_x509_crt_t crt = NULL;
    enum err e = import_signer(signer, &key, &crt, info);

    if (e == ERR_OK)
        e = check_certificate(crt, authority, info);
    drop_signer(key, crt);
    return e;
}

static enum err put_together(const gnutls_datum_t *signature, gnutls_x509_crt_t crt,
                             struct ca_signature *out, struct err_info *info)
{
    size_t room = sizeof(out->bytes) - ED25519_BYTES;

    if (signature->size != ED25519_BYTES)
        return err_set(info, ERR_DENIED, 0, "the signing key is not an Ed25519 key");
    memcpy(out->bytes, signature->data, ED25519_BYTES);
    int n = gnutls_x509_crt_export(crt, GNUTLS_X509_FMT_DER, out->bytes + ED25519_BYTES,
                                   &room);
    if (n < 0)
        return ca_failed(info, ERR_LIMIT, n, "the certificate of the signer");
    out->n = ED25519_BYTES + room;
    return ERR_OK;
}

enum err ca_sign_digest(struct str signer, const uint8_t sha256[CA_HASH_BYTES],
                        struct ca_signature *out, struct err_info *info)
{
    const gnutls_datum_t digest = digest_datum(sha256);
    gnutls_datum_t signature = { 0 };
    gnutls_x509_privkey_t key = NULL;
    gnutls_x509_crt_t crt = NULL;
    gnutls_privkey_t hand = NULL;
    enum err e = import_signer(signer, &key, &crt, info);

    if (e == ERR_OK) {
        int n = gnutls_privkey_init(&hand);

        if (n >= 0)
            n = gnutls_privkey_import_x509(hand, key, 0);
        if (n >= 0)
            n = gnutls_privkey_sign_data2(hand, GNUTLS_SIGN_EDDSA_ED25519, 0, &digest,
                                          &signature);
        e = n < 0 ? ca_failed(info, ERR_DENIED, n, "sign")
                  : put_together(&signature, crt, out, info);
    }
    gnutls_free(signature.data);
    if (hand)
        gnutls_privkey_deinit(hand);
    drop_signer(key, crt);
    return e;
}

static enum err check_signature(gnutls_x509_crt_t crt,
                                const uint8_t sha256[CA_HASH_BYTES], struct str signature,
                                struct err_info *info)
{
    const gnutls_datum_t digest = digest_datum(sha256);
    const gnutls_datum_t bytes = ca_datum((struct str){ signature.p, ED25519_BYTES });
    gnutls_pubkey_t key = NULL;
    int n = gnutls_pubkey_init(&key);

    if (n >= 0)
        n = gnutls_pubkey_import_x509(key, crt, 0);
    if (n >= 0)
        n = gnutls_pubkey_verify_data2(key, GNUTLS_SIGN_EDDSA_ED25519, 0, &digest,
                                       &bytes);
    if (key)
        gnutls_pubkey_deinit(key);
    return n >= 0
               ? ERR_OK
               : err_set(info, ERR_DENIED, 0, "the signature is not one of these bytes");
}

enum err ca_verify_digest(struct str authority, const uint8_t sha256[CA_HASH_BYTES],
                          struct str signature, struct err_info *info)
{
    gnutls_x509_crt_t crt = NULL;

    if (signature.n < CA_SIGNATURE_MIN || signature.n > CA_SIGNATURE_MAX)
        return err_set(info, ERR_CORRUPT, 0,
                       "a signature has 64 bytes and a certificate, not %zu bytes",
                       signature.n);
    const gnutls_datum_t der = ca_datum(
        (struct str){ signature.p + ED25519_BYTES, signature.n - ED25519_BYTES });
    if (gnutls_x509_crt_init(&crt) < 0)
        return err_set(info, ERR_MEMORY, ENOMEM, "certificate");
    int n = gnutls_x509_crt_import(crt, &der, GNUTLS_X509_FMT_DER);
    enum err e = n < 0 ? ca_failed(info, ERR_CORRUPT, n,
                                   "behind the signature there is no certificate")
                       : check_certificate(crt, authority, info);
    if (e == ERR_OK)
        e = check_signature(crt, sha256, signature, info);
    gnutls_x509_crt_deinit(crt);
    return e;
}
