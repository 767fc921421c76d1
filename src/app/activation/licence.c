#include "app/activation/licence.h"

#include <inttypes.h>
#include <jansson.h>
#include <sodium.h>

const struct refusal_words *refusal_words(enum refusal r)
{
    static const struct refusal_words words[] = {
#define X(code, name, http, head, hint)                                                  \
    [code] = { .id = name, .title = head, .suggestion = hint, .status = http },
        REFUSALS(X)
#undef X
    };

    CHECK(r != REFUSED_NOT && (size_t)r < LEN(words));
    return &words[r];
}

/* --- time -------------------------------------------------------------------------- */

/* sscanf() alone would take signs and blanks. */
static bool looks_like_time(const char *text)
{
    static const char shape[] = "0000-00-00T00:00:00Z";

    for (size_t i = 0; i < sizeof(shape); i++)
        if (shape[i] == '0' ? text[i] < '0' || text[i] > '9' : text[i] != shape[i])
            return false;
    return true;
}

bool licence_time_parse(const char *text, int64_t *out)
{
    struct tm tm = { 0 };
    int used = 0;

    if (!looks_like_time(text) ||
        sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2dZ%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
               &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &used) != 6 ||
        used != 20 || tm.tm_year < 2000)
        return false;
    struct tm given = tm;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    int64_t t = timegm(&tm); /* puts right what is not a date: compare */
    if (tm.tm_mon + 1 != given.tm_mon || tm.tm_mday != given.tm_mday ||
        tm.tm_hour != given.tm_hour || tm.tm_min != given.tm_min ||
        tm.tm_sec != given.tm_sec)
        return false;
    *out = t;
    return true;
}

void licence_time_format(char out[32], int64_t t)
{
    struct tm tm;
    time_t at = t;

    out[0] = '\0';
    if (gmtime_r(&at, &tm))
        (void)strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

/* --- reading ----------------------------------------------------------------------- */

/* The document of an envelope once its signature was verified; NULL with info set. */
static json_t *verified(struct str file, const uint8_t *anchor, struct err_info *info)
{
    uint8_t signature[crypto_sign_BYTES];
    const char *document = NULL, *hex = NULL;
    size_t n = 0;
    json_t *inner = NULL;
    json_t *outer = file.n > LICENCE_BYTES_MAX
                        ? NULL
                        : json_loadb(file.p, file.n, JSON_REJECT_DUPLICATES, NULL);

    if (!outer ||
        json_unpack(outer, "{s:s%, s:s}", "document", &document, &n, "signature", &hex) !=
            0 ||
        !hex_decode(signature, sizeof(signature), str_of(hex)))
        err_set(info, ERR_CORRUPT, 0, "it is not {\"document\", \"signature\"}");
    else if (crypto_sign_verify_detached(signature, (const uint8_t *)document, n,
                                         anchor) != 0)
        err_set(info, ERR_CORRUPT, 0, "its signature is not the vendor's");
    else if (!(inner = json_loadb(document, n, JSON_REJECT_DUPLICATES, NULL)))
        err_set(info, ERR_CORRUPT, 0, "its document is not JSON");
    json_decref(outer);
    return inner;
}

static bool text_of(const json_t *o, const char *key, char out[LICENCE_TEXT])
{
    const char *text = json_string_value(json_object_get(o, key));

    return text && str_copy(out, LICENCE_TEXT, str_of(text));
}

static bool time_of(const json_t *o, const char *key, int64_t *out)
{
    const char *text = json_string_value(json_object_get(o, key));

    return text && licence_time_parse(text, out);
}

static bool features_of(const json_t *o, struct licence *l)
{
    const json_t *list = json_object_get(o, "features"), *f;
    size_t i;

    if (!json_is_array(list) || json_array_size(list) > LICENCE_FEATURES_MAX)
        return false;
    json_array_foreach(list, i, f)
    {
        const char *text = json_string_value(f);
        if (!text || !str_copy(l->features[i], LICENCE_TEXT, str_of(text)))
            return false;
    }
    l->feature_count = (uint32_t)json_array_size(list);
    return true;
}

/* The first field that is missing or wrong; NULL: all well. */
static const char *read_document(const json_t *o, struct licence *l)
{
    const char *id = json_string_value(json_object_get(o, "licence"));
    json_int_t seats = json_integer_value(json_object_get(o, "seats"));

    if (json_integer_value(json_object_get(o, "format")) != 1)
        return "format";
    if (!id || !uuid_parse(&l->id, str_of(id)))
        return "licence";
    if (!text_of(o, "customer", l->customer))
        return "customer";
    if (!text_of(o, "product", l->product))
        return "product";
    if (!text_of(o, "cluster", l->cluster) || l->cluster[0] == '\0')
        return "cluster";
    if (seats < 1 || seats > INT32_MAX)
        return "seats";
    l->seats = (uint32_t)seats;
    if (!time_of(o, "not_before", &l->not_before))
        return "not_before";
    if (!time_of(o, "expires", &l->expires) || l->expires <= l->not_before)
        return "expires";
    return features_of(o, l) ? NULL : "features";
}

enum err licence_open(struct licence *out, struct str file,
                      const uint8_t anchor[LICENCE_KEY_BYTES], struct err_info *info)
{
    struct licence l = { 0 };
    json_t *o = verified(file, anchor, info);

    if (!o)
        return ERR_CORRUPT;
    const char *wrong = read_document(o, &l);
    json_decref(o);
    if (wrong)
        return err_set(info, ERR_CORRUPT, 0, "its \"%s\" is missing or not understood",
                       wrong);
    *out = l;
    return ERR_OK;
}

enum refusal licence_refuses(const struct licence *l, const char *cluster, int64_t now)
{
    if (strcmp(l->cluster, "*") != 0 && strcmp(l->cluster, cluster) != 0)
        return REFUSED_OTHER_CLUSTER;
    if (now < l->not_before)
        return REFUSED_NOT_YET_VALID;
    return now >= l->expires ? REFUSED_EXPIRED : REFUSED_NOT;
}

/* --- leases ------------------------------------------------------------------------ */

static json_t *lease_document(const struct licence *l, const struct lease_terms *t)
{
    char licence[UUID_TEXT], device[UUID_TEXT], issued[32], expires[32], renew[32];
    int64_t renew_after = t->issued + LEASE_RENEW_S;
    json_t *features = json_array();

    for (uint32_t i = 0; features && i < l->feature_count; i++)
        if (json_array_append_new(features, json_string(l->features[i])) != 0) {
            json_decref(features);
            features = NULL;
        }
    if (!features)
        return NULL;
    if (renew_after > t->expires)
        renew_after = t->expires;
    uuid_format(licence, &l->id);
    uuid_format(device, &t->device);
    licence_time_format(issued, t->issued);
    licence_time_format(expires, t->expires);
    licence_time_format(renew, renew_after);
    return json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:i}", "format",
                     1, "licence", licence, "product", l->product, "customer",
                     l->customer, "cluster", t->cluster, "device", device, "issued",
                     issued, "renew_after", renew, "expires", expires, "features",
                     features, "seats", (int)l->seats);
}

char *licence_lease(const struct licence *l, const struct lease_terms *terms,
                    const uint8_t seed[LICENCE_KEY_BYTES])
{
    uint8_t public[crypto_sign_PUBLICKEYBYTES], secret[crypto_sign_SECRETKEYBYTES];
    uint8_t signature[crypto_sign_BYTES];
    char hex[2 * crypto_sign_BYTES + 1];
    json_t *o = lease_document(l, terms);
    char *document = o ? json_dumps(o, JSON_COMPACT) : NULL, *text = NULL;

    json_decref(o);
    if (!document)
        return NULL;
    (void)crypto_sign_seed_keypair(public, secret, seed); /* cannot fail */
    (void)crypto_sign_detached(signature, NULL, (const uint8_t *)document,
                               strlen(document), secret); /* cannot fail */
    sodium_memzero(secret, sizeof(secret));
    hex_encode(hex, signature, sizeof(signature));
    o = json_pack("{s:s, s:s}", "document", document, "signature", hex);
    if (o)
        text = json_dumps(o, JSON_COMPACT);
    json_decref(o);
    free(document);
    return text;
}
