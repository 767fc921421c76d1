#include "sys/licence/lease.h"

#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>

static_assert(LEASE_SECRET_BYTES == crypto_sign_SECRETKEYBYTES, "libsodium's secret key");
static_assert(LICENCE_KEY_BYTES == crypto_sign_PUBLICKEYBYTES, "libsodium's public key");

void lease_signer_init(struct lease_signer *s, const uint8_t seed[LICENCE_KEY_BYTES])
{
    uint8_t public[crypto_sign_PUBLICKEYBYTES];

    (void)crypto_sign_seed_keypair(public, s->secret, seed); /* cannot fail */
    hex_encode(s->public_hex, public, sizeof(public));
}

int64_t lease_renew_after(int64_t issued, int64_t expires)
{
    int64_t half = (expires - issued) / 2;

    return issued + (half < LEASE_RENEW_MAX_S ? half : LEASE_RENEW_MAX_S);
}

static json_t *lease_document(const struct licence *l, const struct lease_terms *t)
{
    char licence[UUID_TEXT], device[UUID_TEXT], issued[32], expires[32], renew[32];
    json_t *features = json_array();

    for (uint32_t i = 0; features && i < l->feature_count; i++)
        if (json_array_append_new(features, json_string(l->features[i])) != 0) {
            json_decref(features);
            features = NULL;
        }
    if (!features)
        return NULL;
    uuid_format(licence, &l->id);
    uuid_format(device, &t->device);
    licence_time_format(issued, t->issued);
    licence_time_format(expires, t->expires);
    licence_time_format(renew, lease_renew_after(t->issued, t->expires));
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:i}",
                     "format", 1, "licence", licence, "product", l->product, "customer",
                     l->customer, "cluster", t->cluster, "device", device, "device_key",
                     t->device_key, "issued", issued, "renew_after", renew, "expires",
                     expires, "features", features, "seats", (int)l->seats);
}

char *lease_sign(const struct licence *l, const struct lease_terms *terms,
                 const struct lease_signer *signer)
{
    uint8_t signature[crypto_sign_BYTES];
    char hex[2 * crypto_sign_BYTES + 1];
    json_t *o = lease_document(l, terms);
    char *document = o ? json_dumps(o, JSON_COMPACT) : NULL, *text = NULL;

    json_decref(o);
    if (!document)
        return NULL;
    (void)crypto_sign_detached(signature, NULL, (const uint8_t *)document,
                               strlen(document), signer->secret); /* cannot fail */
    hex_encode(hex, signature, sizeof(signature));
    o = json_pack("{s:s, s:s, s:s}", "document", document, "signature", hex, "key",
                  signer->public_hex);
    if (o)
        text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    free(document);
    return text;
}

/* --- the device's side ---------------------------------------------------------------- */

static bool time_of(const json_t *o, const char *key, int64_t *out)
{
    const char *text = json_string_value(json_object_get(o, key));

    return text && licence_time_parse(text, out);
}

static bool read_lease(const json_t *o, struct lease *l)
{
    const char *device = json_string_value(json_object_get(o, "device"));
    const char *key = json_string_value(json_object_get(o, "device_key"));

    return json_integer_value(json_object_get(o, "format")) == 1 && device &&
           uuid_parse(&l->device, str_of(device)) && key &&
           str_copy(l->device_key, sizeof(l->device_key), str_of(key)) &&
           time_of(o, "issued", &l->issued) &&
           time_of(o, "renew_after", &l->renew_after) &&
           time_of(o, "expires", &l->expires);
}

enum err lease_open(struct lease *out, struct str envelope, struct err_info *info)
{
    uint8_t signature[crypto_sign_BYTES], public[crypto_sign_PUBLICKEYBYTES];
    const char *document = NULL, *hex = NULL, *key = NULL;
    struct lease l = { 0 };
    json_t *inner = NULL;
    size_t n = 0;
    enum err e = ERR_OK;
    json_t *outer =
        envelope.n > LEASE_BYTES_MAX
            ? NULL
            : json_loadb(envelope.p, envelope.n, JSON_REJECT_DUPLICATES, NULL);

    if (!outer || json_unpack(outer, "{s:s%, s:s, s:s}", "document", &document, &n,
                              "signature", &hex, "key", &key) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "it is no lease");
    else if (!hex_decode(signature, sizeof(signature), str_of(hex)) ||
             !hex_decode(public, sizeof(public), str_of(key)) ||
             crypto_sign_verify_detached(signature, (const uint8_t *)document, n,
                                         public) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "its signature is not that of its key");
    else if (!(inner = json_loadb(document, n, JSON_REJECT_DUPLICATES, NULL)) ||
             !read_lease(inner, &l) || !str_copy(l.key, sizeof(l.key), str_of(key)))
        e = err_set(info, ERR_CORRUPT, 0, "its document is not understood");
    json_decref(inner);
    json_decref(outer);
    if (e == ERR_OK)
        *out = l;
    return e;
}
