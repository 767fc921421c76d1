#include "app/activation/devices.h"

#include <sodium.h>
#include <stdlib.h>

enum { TOKEN = 1000, MINUTE_MS = 60000 };

struct devices {
    uint32_t per_minute;
    uint32_t round; /* never 0 */
    uint8_t hash_key[crypto_shorthash_KEYBYTES];
    struct device_record at[DEVICES_SETS][DEVICES_WAYS];
};

static_assert((DEVICES_SETS & (DEVICES_SETS - 1)) == 0, "a power of two");

struct devices *devices_new(uint32_t per_minute)
{
    struct devices *d =
        calloc(1, sizeof(*d)); /* pages that nobody touches cost nothing */

    if (!d)
        return NULL;
    d->per_minute = per_minute;
    d->round = 1;
    randombytes_buf(d->hash_key, sizeof(d->hash_key));
    return d;
}

void devices_free(struct devices *d)
{
    free(d);
}

struct device_record *devices_get(struct devices *d, const struct uuid *id,
                                  uint64_t now_ms)
{
    uint8_t hash[crypto_shorthash_BYTES];
    uint32_t n;

    (void)crypto_shorthash(hash, id->bytes, sizeof(id->bytes),
                           d->hash_key); /* cannot fail */
    memcpy(&n, hash, sizeof(n));
    struct device_record *set = d->at[n & (DEVICES_SETS - 1)], *oldest = &set[0];
    for (size_t i = 0; i < DEVICES_WAYS; i++) {
        if (set[i].used && uuid_eq(&set[i].id, id))
            return &set[i];
        if (!set[i].used || (oldest->used && set[i].heard_ms < oldest->heard_ms))
            oldest = &set[i];
    }
    *oldest = (struct device_record){ .id = *id,
                                      .used = true,
                                      .heard_ms = now_ms,
                                      .filled_ms = now_ms,
                                      .tokens = 2ull * TOKEN * d->per_minute };
    return oldest;
}

enum devices_may devices_ask(struct devices *d, struct device_record *r, uint64_t now_ms,
                             uint32_t *wait_s)
{
    const uint64_t most = 2ull * TOKEN * d->per_minute;
    uint64_t since = now_ms > r->filled_ms ? now_ms - r->filled_ms : 0;

    if (since > 10ull * MINUTE_MS)
        since = 10ull * MINUTE_MS; /* full anyway, and nothing overflows */
    const uint64_t more = since * TOKEN * d->per_minute / MINUTE_MS;
    if (more > 0) { /* else what passed counts the next time */
        r->tokens += more;
        r->filled_ms = now_ms;
    }
    if (r->tokens >= most) {
        r->tokens = most;
        r->flooding = false;
    }
    r->heard_ms = now_ms;
    *wait_s = 0;
    if (r->tokens >= TOKEN) {
        r->tokens -= TOKEN;
        return DEVICES_MAY;
    }
    uint64_t ms = (TOKEN - r->tokens) * MINUTE_MS / ((uint64_t)TOKEN * d->per_minute);
    *wait_s = (uint32_t)(ms / 1000u) + 1;
    if (r->flooding)
        return DEVICES_TOO_OFTEN;
    r->flooding = true;
    return DEVICES_FLOOD_BEGINS;
}

void devices_forget(struct devices *d)
{
    d->round++;
    if (d->round == 0)
        d->round = 1;
}

bool devices_has_lease(const struct devices *d, const struct device_record *r)
{
    return r->lease_round == d->round;
}

void devices_lease(const struct devices *d, struct device_record *r)
{
    r->lease_round = d->round;
}
