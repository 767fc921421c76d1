/*
 * devices: what is remembered of devices that asked: the lease they have, and how often they ask.
 *
 * Purpose   A lease that is fresh is told again from memory, and one device that asks all the
 *           time is held back.
 * Shape     DEVICES_SETS sets of DEVICES_WAYS records; a full set forgets who was longest not
 *           heard of.  Which set is decided by a keyed hash: devices cannot aim at one.
 * Safety    A record is a copy: forgetting it costs one question to the DBMS.
 * Threads   loop thread only
 * Tests     tests/unit/test_licence_devices.c
 */
#ifndef APP_ACTIVATION_DEVICES_H
#define APP_ACTIVATION_DEVICES_H

#include "sys/licence/lease.h"

enum { DEVICES_SETS = 32768, DEVICES_WAYS = 4 };

struct device_record {
    struct uuid id;
    bool used;
    uint64_t heard_ms;

    uint32_t lease_round; /* of devices_forget; another one: no lease */
    char key[LEASE_KEY_HEX];
    struct uuid licence;
    int64_t issued, expires;

    uint64_t tokens; /* thousandths */
    uint64_t filled_ms;
    bool flooding; /* it was told */
};

struct devices;

/* per_minute: so often one device may ask, and twice as many at once.  NULL: out of memory */
struct devices *devices_new(uint32_t per_minute);
void devices_free(struct devices *d);

/* Valid until the next call. */
struct device_record *devices_get(struct devices *d, const struct uuid *id,
                                  uint64_t now_ms);

enum devices_may { DEVICES_MAY, DEVICES_TOO_OFTEN, DEVICES_FLOOD_BEGINS };
/* Takes one token.  *wait_s: after which there is one again. */
enum devices_may devices_ask(struct devices *d, struct device_record *r, uint64_t now_ms,
                             uint32_t *wait_s);

/* No lease is remembered any more. */
void devices_forget(struct devices *d);
bool devices_has_lease(const struct devices *d, const struct device_record *r);
void devices_lease(const struct devices *d, struct device_record *r);

#endif
