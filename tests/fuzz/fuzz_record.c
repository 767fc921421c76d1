/*
 * Records of the share: raw bytes never verify; a body that was sealed with the key opens
 * exactly if it is well-formed; what decodes encodes to a record that decodes to the same;
 * and no bit of a sealed record may change.
 */
#include "fuzz.h"
#include "wire/json.h"
#include "wire/record.h"

#define CLUSTER "00112233445566778899aabbccddeeff"

enum { EPOCH = 12, INPUT_MAX = 4096 };

static const struct mac_key key = { .bytes = { 1, 2, 3 } };

static void check_raw(struct str in)
{
    struct lease_rec lease;
    struct node_rec node;
    struct str body;

    CHECK(lease_decode(&lease, &key, CLUSTER, EPOCH, in) == ERR_CORRUPT);
    CHECK(node_rec_decode(&node, &key, CLUSTER, "node-a", in) == ERR_CORRUPT);
    CHECK(record_open(in, &key, STR("epoch/12"), &body) == ERR_CORRUPT);
}

static void check_seal(struct str in)
{
    static char sealed[INPUT_MAX + RECORD_TRAILER_BYTES];
    static struct json_object object;
    struct str body;
    size_t n;

    CHECK(record_seal(sealed, sizeof(sealed), &n, &key, STR("request/x"), in) == ERR_OK);
    CHECK(n == in.n + RECORD_TRAILER_BYTES);
    enum err e = record_open((struct str){ sealed, n }, &key, STR("request/x"), &body);

    CHECK(e == json_load(&object, in));
    CHECK(e != ERR_OK || str_eq(body, in));
    CHECK(record_open((struct str){ sealed, n }, &key, STR("request/y"), &body) ==
          ERR_CORRUPT);
    size_t at = in.n > 1 ? ((uint8_t)in.p[0] * 256u + (uint8_t)in.p[1]) % n : 0;

    sealed[at] = (char)(sealed[at] ^ 1 << (n % 7));
    e = record_open((struct str){ sealed, n }, &key, STR("request/x"), &body);
    /* The MAC is hex: a letter of it may stand in either case. */
    CHECK(e == ERR_CORRUPT || (at > in.n && n % 7 == 5));
}

static void check_lease(struct str in)
{
    enum { BODY = RECORD_LEASE_BYTES - RECORD_TRAILER_BYTES };
    char bytes[RECORD_LEASE_BYTES], again[RECORD_LEASE_BYTES], padded[BODY];
    struct lease_rec first, second;
    size_t n;

    if (in.n > BODY)
        return;
    memset(padded, ' ', sizeof(padded));
    memcpy(padded, in.p, in.n);
    CHECK(record_seal(bytes, sizeof(bytes), &n, &key, STR("epoch/12"),
                      (struct str){ padded, BODY }) == ERR_OK);
    CHECK(n == RECORD_LEASE_BYTES);
    if (lease_decode(&first, &key, CLUSTER, EPOCH, (struct str){ bytes, n }) != ERR_OK)
        return;
    CHECK(first.epoch == EPOCH && first.hold_ms > 0 &&
          first.hold_ms <= RECORD_HOLD_MAX_MS);
    CHECK(lease_encode(bytes, &key, &first) == ERR_OK);
    CHECK(lease_decode(&second, &key, CLUSTER, EPOCH, (struct str){ bytes, n }) ==
          ERR_OK);
    CHECK(lease_encode(again, &key, &second) == ERR_OK);
    CHECK(memcmp(bytes, again, sizeof(bytes)) == 0);
}

static void check_node(struct str in)
{
    static char bytes[2 * INPUT_MAX], again[2 * INPUT_MAX];
    struct node_rec first, second;
    size_t n, m;

    CHECK(record_seal(bytes, sizeof(bytes), &n, &key, STR("node/node-a"), in) == ERR_OK);
    if (node_rec_decode(&first, &key, CLUSTER, "node-a", (struct str){ bytes, n }) !=
        ERR_OK)
        return;
    CHECK(node_rec_encode(bytes, sizeof(bytes), &n, &key, &first, STR("")) == ERR_OK);
    CHECK(node_rec_decode(&second, &key, CLUSTER, "node-a", (struct str){ bytes, n }) ==
          ERR_OK);
    CHECK(node_rec_encode(again, sizeof(again), &m, &key, &second, STR("")) == ERR_OK);
    CHECK(n == m && memcmp(bytes, again, n) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool started;
    struct str in = { (const char *)data, size };

    if (!started)
        CHECK(mac_start() == ERR_OK);
    started = true;
    if (size > INPUT_MAX)
        return 0;
    check_raw(in);
    check_seal(in);
    check_lease(in);
    check_node(in);
    return 0;
}
