#include "app/manager/package.h"

#include <sodium.h>
#include <string.h>

#include "app/manager/api.h"
#include "app/manager/enrol.h"
#include "sys/ca/ca_sign.h"

static bool refuse(struct asked *a, const char *why)
{
    api_refuse(a, 422,
               &(struct http_error){
                   "signature_wrong", "The signature is not good", why,
                   "It must be made for these bytes by the key of this cluster; redoubt "
                   "package publish does so by itself." });
    return false;
}

bool package_check(struct asked *a)
{
    const char *sha256 = json_string_value(json_object_get(a->body, "sha256"));
    const char *text = json_string_value(json_object_get(a->body, "signature"));
    const struct str authority = enrol_authority(a->m);
    uint8_t bytes[CA_SIGNATURE_MAX], hash[CA_HASH_BYTES];
    struct err_info why = { .what = "" };
    size_t n = 0;

    if (!sha256 || !text || !hex_decode(hash, sizeof(hash), str_of(sha256)))
        return true; /* the DBMS says what is missing or wrong */
    if (authority.n == 0)
        return refuse(a, "This node has no certificate authority: redoubt secret fetch.");
    if (sodium_base642bin(bytes, sizeof(bytes), text, strlen(text), NULL, &n, NULL,
                          sodium_base64_VARIANT_ORIGINAL) != 0)
        return refuse(a, "It is no base64, or too long.");
    if (ca_verify_digest(authority, hash, (struct str){ (const char *)bytes, n }, &why) !=
        ERR_OK)
        return refuse(a, why.what);
    return true;
}
