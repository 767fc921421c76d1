#include "base/mac.h"

#include <sodium.h>

static_assert(MAC_BYTES <= crypto_generichash_BYTES_MAX, "libsodium can make it");

enum err mac_start(void)
{
    return sodium_init() < 0 ? ERR_UNSUPPORTED : ERR_OK;
}

void mac_of(struct mac *out, const struct mac_key *key, struct str name, struct str body)
{
    static const uint8_t zero = 0;
    crypto_generichash_state st;

    (void)crypto_generichash_init(&st, key->bytes, sizeof(key->bytes), MAC_BYTES);
    (void)crypto_generichash_update(&st, (const uint8_t *)name.p, name.n);
    (void)crypto_generichash_update(&st, &zero, 1); /* names hold no NUL: no ambiguity */
    (void)crypto_generichash_update(&st, (const uint8_t *)body.p, body.n);
    (void)crypto_generichash_final(&st, out->bytes, MAC_BYTES);
}

bool mac_verifies(const struct mac *mac, const struct mac_key *key, struct str name,
                  struct str body)
{
    struct mac want;

    mac_of(&want, key, name, body);
    return sodium_memcmp(want.bytes, mac->bytes, MAC_BYTES) == 0;
}
