#include "app/manager/package.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "app/manager/api.h"
#include "app/manager/enrol.h"
#include "sys/ca/ca_sign.h"

/* What came in: base64 of a signature. */
struct given {
    const char *maker; /* whoever asks should have used this */
    uint8_t bytes[CA_SIGNATURE_MAX];
    size_t n;
};

static bool refuse(struct asked *a, const struct given *g, const char *why)
{
    char advice[200];

    (void)snprintf(
        advice, sizeof(advice),
        "It must be made for these bytes by the key of this cluster; %s does so "
        "by itself.",
        g->maker);
    api_refuse(a, 422,
               &(struct http_error){ "signature_wrong", "The signature is not good", why,
                                     advice });
    return false;
}

static bool check(struct asked *a, struct given *g, const char *text,
                  const uint8_t hash[CA_HASH_BYTES])
{
    const struct str authority = enrol_authority(a->m);
    struct err_info why = { .what = "" };

    if (authority.n == 0)
        return refuse(a, g,
                      "This node has no certificate authority: redoubt secret fetch.");
    if (sodium_base642bin(g->bytes, sizeof(g->bytes), text, strlen(text), NULL, &g->n,
                          NULL, sodium_base64_VARIANT_ORIGINAL) != 0)
        return refuse(a, g, "It is no base64, or too long.");
    if (ca_verify_digest(authority, hash, (struct str){ (const char *)g->bytes, g->n },
                         &why) != ERR_OK)
        return refuse(a, g, why.what);
    return true;
}

/* The digest of a body or of a part of one; false: there is none. */
static bool digest_of(const json_t *o, uint8_t hash[CA_HASH_BYTES])
{
    const char *sha256 = json_string_value(json_object_get(o, "sha256"));

    return sha256 && hex_decode(hash, CA_HASH_BYTES, str_of(sha256));
}

bool package_check(struct asked *a)
{
    const char *text = json_string_value(json_object_get(a->body, "signature"));
    struct given g = { .maker = "redoubt package publish" };
    uint8_t hash[CA_HASH_BYTES];

    if (!text || !digest_of(a->body, hash))
        return true; /* the DBMS says what is missing or wrong */
    return check(a, &g, text, hash);
}

bool package_check_manifest(struct asked *a)
{
    const json_t *signature = json_object_get(a->body, "signature");
    const char *text = json_string_value(json_object_get(signature, "bytes"));
    struct given g = { .maker = "redoubt signature custom publish" };
    uint8_t hash[CA_HASH_BYTES], named[CA_HASH_BYTES], is[CA_HASH_BYTES];

    if (!digest_of(json_object_get(a->body, "manifest"), hash) ||
        !digest_of(signature, named))
        return true; /* as above */
    if (!text)
        return refuse(a, &g, "Its bytes are missing.");
    if (!check(a, &g, text, hash))
        return false;
    (void)crypto_hash_sha256(is, g.bytes, g.n); /* cannot fail */
    if (memcmp(is, named, sizeof(is)) != 0 ||
        json_integer_value(json_object_get(signature, "size")) != (json_int_t)g.n)
        return refuse(a, &g, "The file with the signature has other bytes.");
    return true;
}
