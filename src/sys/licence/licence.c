#include "sys/licence/licence.h"

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
    if (json_object_get(o, "issued") && !time_of(o, "issued", &l->issued))
        return "issued";
    const json_t *serial = json_object_get(o, "serial");
    if (serial && (!json_is_integer(serial) || json_integer_value(serial) < 0))
        return "serial";
    l->serial = (uint64_t)json_integer_value(serial);
    return features_of(o, l) ? NULL : "features";
}

static enum err not_understood(const char *wrong, struct err_info *info)
{
    return err_set(info, ERR_CORRUPT, 0, "its \"%s\" is missing or not understood",
                   wrong);
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
        return not_understood(wrong, info);
    *out = l;
    return ERR_OK;
}

/* --- the vendor's answer ------------------------------------------------------------- */

/* The first field that is missing or wrong; NULL: all well.  The licence comes apart. */
static const char *read_answer(const json_t *o, struct licence_answer *a)
{
    const char *kind = json_string_value(json_object_get(o, "kind"));
    const char *state = json_string_value(json_object_get(o, "state"));
    const json_t *grace = json_object_get(o, "grace_s");

    if (json_integer_value(json_object_get(o, "format")) != 1)
        return "format";
    if (!kind || strcmp(kind, "answer") != 0)
        return "kind";
    if (!text_of(o, "code", a->code) || a->code[0] == '\0')
        return "code";
    if (!text_of(o, "nonce", a->nonce) || a->nonce[0] == '\0')
        return "nonce";
    if (!time_of(o, "at", &a->at))
        return "at";
    if (state && strcmp(state, "refused") == 0) {
        a->refused = true;
        return text_of(o, "reason", a->reason) && a->reason[0] ? NULL : "reason";
    }
    if (!state || strcmp(state, "ok") != 0)
        return "state";
    if (!time_of(o, "valid_until", &a->valid_until) || a->valid_until < a->at)
        return "valid_until";
    if (!json_is_integer(grace) || json_integer_value(grace) < 0 ||
        json_integer_value(grace) > LICENCE_GRACE_MAX_S)
        return "grace_s";
    a->stale_until = a->valid_until + json_integer_value(grace);
    return NULL;
}

enum err licence_answer_open(struct licence_answer *out, struct str file,
                             const uint8_t anchor[LICENCE_KEY_BYTES],
                             struct err_info *info)
{
    struct licence_answer a = { 0 };
    struct err_info why = { .what = "" };
    json_t *o = verified(file, anchor, info);

    if (!o)
        return ERR_CORRUPT;
    const char *wrong = read_answer(o, &a);
    enum err e = wrong ? not_understood(wrong, info) : ERR_OK;
    if (e == ERR_OK && !a.refused) {
        const json_t *inner = json_object_get(o, "licence");
        struct str text = { json_string_value(inner), json_string_length(inner) };
        e = text.p ? licence_open(&a.licence, text, anchor, &why)
                   : err_set(&why, ERR_CORRUPT, 0, "there is none");
        if (e != ERR_OK)
            (void)err_set(info, e, 0, "its licence: %s", why.what);
    }
    json_decref(o);
    if (e == ERR_OK)
        *out = a;
    return e;
}

bool licence_is_answer(struct str file)
{
    json_t *outer = json_loadb(file.p, file.n, 0, NULL);
    const char *text = json_string_value(json_object_get(outer, "document"));
    json_t *inner = text ? json_loads(text, 0, NULL) : NULL;
    bool is = json_object_get(inner, "kind") != NULL;

    json_decref(inner);
    json_decref(outer);
    return is;
}

enum refusal licence_refuses(const struct licence *l, const char *cluster, int64_t now)
{
    if (strcmp(l->cluster, "*") != 0 && strcmp(l->cluster, cluster) != 0)
        return REFUSED_OTHER_CLUSTER;
    if (now < l->not_before)
        return REFUSED_NOT_YET_VALID;
    return now >= l->expires ? REFUSED_EXPIRED : REFUSED_NOT;
}
