#include "sys/ca/ca_link.h"

#include <gnutls/crypto.h>
#include <inttypes.h>
#include <sodium.h>

#include "sys/ca/ca_gnutls.h"

enum { MD5_BYTES = 16 };

enum err ca_link_key(struct str secret, char out[CA_LINK_KEY], struct err_info *info)
{
    unsigned char hash[crypto_hash_sha256_BYTES];

    static_assert(CA_LINK_KEY == 2 * sizeof(hash) + 1, "hex of it");
    if (secret.n < CA_LINK_SECRET_MIN)
        return err_set(info, ERR_CORRUPT, 0, "the key of the links is too short");
    (void)crypto_hash_sha256(hash, (const unsigned char *)secret.p,
                             secret.n); /* cannot fail */
    (void)sodium_bin2hex(out, CA_LINK_KEY, hash, sizeof(hash));
    return ERR_OK;
}

enum err ca_link_make(const char key[CA_LINK_KEY], const char *path, int64_t expires,
                      char out[CA_LINK_MAX], struct err_info *info)
{
    char text[CA_LINK_MAX + 2 * CA_LINK_KEY], md5[CA_LINK_KEY];
    unsigned char hash[MD5_BYTES];
    struct text t;

    text_init(&t, text, sizeof(text));
    text_add(&t, "%s%" PRId64 " %s %s", key, expires, path, key);
    if (t.cut)
        return err_set(info, ERR_LIMIT, 0, "the path is too long");
    int code = gnutls_hash_fast(GNUTLS_DIG_MD5, t.p, t.n, hash);
    explicit_bzero(text, sizeof(text));
    if (code < 0)
        return err_set(info, ERR_IO, 0, "MD5: %s", gnutls_strerror(code));
    (void)sodium_bin2base64(md5, sizeof(md5), hash, sizeof(hash),
                            sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    text_init(&t, out, CA_LINK_MAX);
    text_add(&t, "%s?md5=%s&expires=%" PRId64, path, md5, expires);
    return t.cut ? err_set(info, ERR_LIMIT, 0, "the path is too long") : ERR_OK;
}

enum err ca_pin(struct str certificate, char out[CA_PIN], struct err_info *info)
{
    char text[sodium_base64_ENCODED_LEN(crypto_hash_sha256_BYTES,
                                        sodium_base64_VARIANT_ORIGINAL)];
    unsigned char hash[crypto_hash_sha256_BYTES];
    size_t n = sizeof(hash);
    gnutls_x509_crt_t crt = NULL;
    enum err e = ca_crt_import(certificate, &crt, info);

    if (e != ERR_OK)
        return e;
    int code = gnutls_x509_crt_get_key_id(crt, GNUTLS_KEYID_USE_SHA256, hash, &n);
    gnutls_x509_crt_deinit(crt);
    if (code < 0 || n != sizeof(hash))
        return ca_failed(info, ERR_CORRUPT, code, "digest of the public key");
    (void)sodium_bin2base64(text, sizeof(text), hash, sizeof(hash),
                            sodium_base64_VARIANT_ORIGINAL);
    (void)snprintf(out, CA_PIN, "sha256//%s", text);
    return ERR_OK;
}
