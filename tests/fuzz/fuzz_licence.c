/*
 * Licences, answers of the vendor, leases.  The first byte says what the rest is: 'D' a document,
 * which is signed here (or nothing would get behind the signature), else an envelope as it came.
 */
#include <jansson.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "sys/licence/lease.h"

static uint8_t public[crypto_sign_PUBLICKEYBYTES], secret[crypto_sign_SECRETKEYBYTES];

static void make_keys(void)
{
    static const uint8_t seed[crypto_sign_SEEDBYTES] = { 1 };
    static bool made;

    if (!made)
        CHECK(sodium_init() >= 0 && crypto_sign_seed_keypair(public, secret, seed) == 0);
    made = true;
}

static char *signed_text(const char *document, size_t n)
{
    uint8_t signature[crypto_sign_BYTES];
    char hex[2 * crypto_sign_BYTES + 1], key[2 * crypto_sign_PUBLICKEYBYTES + 1];
    json_t *text = json_stringn(document, n); /* NULL: no UTF-8 */

    if (!text)
        return NULL;
    (void)crypto_sign_detached(signature, NULL, (const uint8_t *)document, n, secret);
    hex_encode(hex, signature, sizeof(signature));
    hex_encode(key, public, sizeof(public));
    json_t *o =
        json_pack("{s:o, s:s, s:s}", "document", text, "signature", hex, "key", key);
    char *all = json_dumps(o, 0);
    json_decref(o);
    return all;
}

static void look(struct str text)
{
    struct err_info why = { .what = "" };
    struct licence_answer answer;
    struct licence licence;
    struct lease lease;

    if (licence_open(&licence, text, public, &why) == ERR_OK) {
        CHECK(licence.seats > 0 && licence.not_before < licence.expires);
        CHECK(licence.feature_count <= LICENCE_FEATURES_MAX && licence.cluster[0]);
    } else {
        CHECK(why.what[0]);
    }
    if (licence_answer_open(&answer, text, public, &why) == ERR_OK) {
        CHECK(answer.nonce[0] && answer.code[0]);
        CHECK(answer.refused
                  ? answer.reason[0] != '\0'
                  : answer.stale_until >= answer.valid_until && answer.licence.seats > 0);
        CHECK(licence_is_answer(text));
    }
    if (lease_open(&lease, text, &why) == ERR_OK)
        CHECK(strlen(lease.key) == LEASE_KEY_HEX - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    make_keys();
    if (size == 0)
        return 0;
    if (data[0] != 'D') {
        look((struct str){ (const char *)data, size });
        return 0;
    }
    char *text = signed_text((const char *)data + 1, size - 1);
    if (text)
        look(str_of(text));
    free(text);
    return 0;
}
