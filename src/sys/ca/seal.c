#include "sys/ca/seal.h"

#include <sodium.h>
#include <string.h>

static const char magic[] = "RDSEAL1\n";

enum { MAGIC = sizeof(magic) - 1 };

static_assert(SEAL_EXTRA ==
                  MAGIC + crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES,
              "what a seal adds");
static_assert(MAC_BYTES == crypto_secretbox_KEYBYTES, "a MAC is a key");

static void derive(struct mac *out, const struct mac_key *key, struct str name)
{
    mac_of(out, key, STR("redoubt secret"), name);
}

enum err seal_close(const struct mac_key *key, struct str name, struct str body,
                    void *out, size_t size, size_t *ret_n)
{
    unsigned char *p = out;
    struct mac own;

    if (size < SEAL_EXTRA || body.n > size - SEAL_EXTRA)
        return ERR_LIMIT;
    derive(&own, key, name);
    memcpy(p, magic, MAGIC);
    randombytes_buf(p + MAGIC, crypto_secretbox_NONCEBYTES);
    (void)crypto_secretbox_easy(p + MAGIC + crypto_secretbox_NONCEBYTES,
                                (const unsigned char *)body.p, body.n, p + MAGIC,
                                own.bytes);
    sodium_memzero(&own, sizeof(own));
    *ret_n = body.n + SEAL_EXTRA;
    return ERR_OK;
}

enum err seal_open(const struct mac_key *key, struct str name, struct str sealed,
                   void *out, size_t size, size_t *ret_n)
{
    const unsigned char *p = (const unsigned char *)sealed.p;
    struct mac own;

    if (sealed.n < SEAL_EXTRA || memcmp(p, magic, MAGIC) != 0)
        return ERR_CORRUPT;
    if (sealed.n - SEAL_EXTRA > size)
        return ERR_LIMIT;
    derive(&own, key, name);
    int bad = crypto_secretbox_open_easy(out, p + MAGIC + crypto_secretbox_NONCEBYTES,
                                         sealed.n - MAGIC - crypto_secretbox_NONCEBYTES,
                                         p + MAGIC, own.bytes);
    sodium_memzero(&own, sizeof(own));
    if (bad)
        return ERR_CORRUPT;
    *ret_n = sealed.n - SEAL_EXTRA;
    return ERR_OK;
}
