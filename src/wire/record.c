#include "wire/record.h"

#include "wire/json.h"

bool record_name_ok(struct str name)
{
    if (name.n == 0 || name.n >= RECORD_NAME_BYTES || name.p[0] < 'a' || name.p[0] > 'z')
        return false;
    for (size_t i = 0; i < name.n; i++) {
        char c = name.p[i];

        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'))
            return false;
    }
    return true;
}

void record_epoch_name(char *name, size_t size, uint64_t epoch)
{
    struct text t;

    text_init(&t, name, size);
    text_add(&t, "epoch/%llu", (unsigned long long)epoch);
}

enum err record_seal(char *buf, size_t size, size_t *out_n, const struct mac_key *key,
                     struct str name, struct str body)
{
    struct mac mac;

    if (size < RECORD_TRAILER_BYTES || body.n > size - RECORD_TRAILER_BYTES)
        return ERR_LIMIT;
    mac_of(&mac, key, name, body);
    if (buf != body.p)
        memcpy(buf, body.p, body.n);
    char hex[2 * MAC_BYTES + 1];

    hex_encode(hex, mac.bytes, MAC_BYTES);
    buf[body.n] = '\n';
    memcpy(buf + body.n + 1, hex, 2 * MAC_BYTES);
    buf[body.n + 1 + 2 * MAC_BYTES] = '\n';
    *out_n = body.n + RECORD_TRAILER_BYTES;
    return ERR_OK;
}

/* The verified body of bytes; not yet looked into. */
static enum err verified(struct str *out, struct str bytes, const struct mac_key *key,
                         struct str name)
{
    struct mac mac;

    if (bytes.n < RECORD_TRAILER_BYTES)
        return ERR_CORRUPT;
    struct str body = { bytes.p, bytes.n - RECORD_TRAILER_BYTES };
    const char *tail = bytes.p + body.n;

    if (tail[0] != '\n' || tail[RECORD_TRAILER_BYTES - 1] != '\n' ||
        !hex_decode(mac.bytes, MAC_BYTES,
                    (struct str){ tail + 1, 2 * (size_t)MAC_BYTES }) ||
        !mac_verifies(&mac, key, name, body))
        return ERR_CORRUPT;
    *out = body;
    return ERR_OK;
}

static enum err open_object(struct json_object *out, struct str bytes,
                            const struct mac_key *key, struct str name)
{
    struct str body;
    enum err e = verified(&body, bytes, key, name);

    return e == ERR_OK ? json_load(out, body) : e;
}

enum err record_open(struct str bytes, const struct mac_key *key, struct str name,
                     struct str *out_body)
{
    struct json_object all;
    struct str body;
    enum err e = verified(&body, bytes, key, name);

    if (e == ERR_OK)
        e = json_load(&all, body);
    if (e == ERR_OK)
        *out_body = body;
    return e;
}

enum err lease_encode(char buf[RECORD_LEASE_BYTES], const struct mac_key *key,
                      const struct lease_rec *r)
{
    enum { BODY = RECORD_LEASE_BYTES - RECORD_TRAILER_BYTES };
    char body[BODY + 1], name[RECORD_NAME_BYTES];
    struct text t;
    size_t n;

    text_init(&t, body, sizeof(body));
    text_add(&t,
             "{\"v\":%d,\"cluster\":\"%s\",\"epoch\":%llu,\"owner\":\"%s\","
             "\"incarnation\":%llu,\"seq\":%llu,\"state\":\"%s\",\"hold_ms\":%u,"
             "\"to\":\"%s\",\"why\":\"%s\",\"down_ms\":%u,\"moves\":%u}",
             RECORD_FORMAT, r->cluster, (unsigned long long)r->epoch, r->owner,
             (unsigned long long)r->incarnation, (unsigned long long)r->seq,
             r->released ? "released" : "held", r->hold_ms, r->to, r->why, r->down_ms,
             r->moves);
    if (t.cut)
        return ERR_LIMIT;
    memset(body + t.n, ' ', BODY - t.n);
    record_epoch_name(name, sizeof(name), r->epoch);
    return record_seal(buf, RECORD_LEASE_BYTES, &n, key, str_of(name),
                       (struct str){ body, BODY });
}

/* Format and cluster, which every record begins with. */
static enum err check_head(const struct json_object *body, const char *cluster)
{
    uint64_t version;
    char found[RECORD_CLUSTER_BYTES];

    if (!json_get_u64(body, "v", UINT32_MAX, &version))
        return ERR_CORRUPT;
    if (version != RECORD_FORMAT)
        return ERR_VERSION;
    if (!json_get_text(body, "cluster", found, sizeof(found)))
        return ERR_CORRUPT;
    return strcmp(found, cluster) == 0 ? ERR_OK : ERR_FOREIGN;
}

static bool get_u32(const struct json_object *body, const char *key, uint32_t max,
                    uint32_t *out)
{
    uint64_t v;

    if (!json_get_u64(body, key, max, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

enum err lease_decode(struct lease_rec *out, const struct mac_key *key,
                      const char *cluster, uint64_t epoch, struct str bytes)
{
    char name[RECORD_NAME_BYTES], state[16];
    struct lease_rec r = { .epoch = 0 };
    struct json_object body;

    if (bytes.n != RECORD_LEASE_BYTES)
        return ERR_CORRUPT;
    record_epoch_name(name, sizeof(name), epoch);
    enum err e = open_object(&body, bytes, key, str_of(name));

    if (e == ERR_OK)
        e = check_head(&body, cluster);
    if (e != ERR_OK)
        return e;
    if (!json_get_u64(&body, "epoch", UINT64_MAX, &r.epoch) || r.epoch != epoch ||
        !json_get_text(&body, "owner", r.owner, sizeof(r.owner)) ||
        !json_get_u64(&body, "incarnation", UINT64_MAX, &r.incarnation) ||
        !json_get_u64(&body, "seq", UINT64_MAX, &r.seq) ||
        !json_get_text(&body, "state", state, sizeof(state)) ||
        !get_u32(&body, "hold_ms", RECORD_HOLD_MAX_MS, &r.hold_ms) || r.hold_ms == 0 ||
        !json_get_text(&body, "to", r.to, sizeof(r.to)) ||
        !json_get_text(&body, "why", r.why, sizeof(r.why)) ||
        !get_u32(&body, "down_ms", UINT32_MAX, &r.down_ms) ||
        !get_u32(&body, "moves", UINT32_MAX, &r.moves))
        return ERR_CORRUPT;
    r.released = strcmp(state, "released") == 0;
    if (!r.released && strcmp(state, "held") != 0)
        return ERR_CORRUPT;
    memcpy(r.cluster, cluster, strlen(cluster) + 1);
    *out = r;
    return ERR_OK;
}

static void node_path(char *name, size_t size, const char *node)
{
    struct text t;

    text_init(&t, name, size);
    text_add(&t, "node/%s", node);
}

enum err node_rec_encode(char *buf, size_t size, size_t *out_n, const struct mac_key *key,
                         const struct node_rec *r, struct str extra)
{
    char name[RECORD_NAME_BYTES + 8];
    struct text t;

    text_init(&t, buf, size);
    text_add(&t,
             "{\"v\":%d,\"cluster\":\"%s\",\"node\":\"%s\",\"incarnation\":%llu,"
             "\"seq\":%llu,\"known_epoch\":%llu,\"hold_ms\":%u,\"ready\":%s,"
             "\"fit\":%s,\"maintenance\":%s,"
             "\"state\":\"%s\"",
             RECORD_FORMAT, r->cluster, r->node, (unsigned long long)r->incarnation,
             (unsigned long long)r->seq, (unsigned long long)r->known_epoch, r->hold_ms,
             r->ready ? "true" : "false", r->fit ? "true" : "false",
             r->maintenance ? "true" : "false", r->state);
    if (extra.n > 0) {
        text_bytes(&t, STR(","));
        text_bytes(&t, extra);
    }
    text_bytes(&t, STR("}"));
    if (t.cut)
        return ERR_LIMIT;
    node_path(name, sizeof(name), r->node);
    return record_seal(buf, size, out_n, key, str_of(name), (struct str){ buf, t.n });
}

enum err node_rec_decode(struct node_rec *out, const struct mac_key *key,
                         const char *cluster, const char *node, struct str bytes)
{
    char name[RECORD_NAME_BYTES + 8];
    struct node_rec r = { .seq = 0 };
    struct json_object body;

    node_path(name, sizeof(name), node);
    enum err e = open_object(&body, bytes, key, str_of(name));

    if (e == ERR_OK)
        e = check_head(&body, cluster);
    if (e != ERR_OK)
        return e;
    if (!json_get_text(&body, "node", r.node, sizeof(r.node)) ||
        strcmp(r.node, node) != 0 ||
        !json_get_u64(&body, "incarnation", UINT64_MAX, &r.incarnation) ||
        !json_get_u64(&body, "seq", UINT64_MAX, &r.seq) ||
        !json_get_u64(&body, "known_epoch", UINT64_MAX, &r.known_epoch) ||
        !get_u32(&body, "hold_ms", RECORD_HOLD_MAX_MS, &r.hold_ms) || r.hold_ms == 0 ||
        !json_get_bool(&body, "ready", &r.ready) ||
        !json_get_bool(&body, "fit", &r.fit) ||
        !json_get_bool(&body, "maintenance", &r.maintenance) ||
        !json_get_text(&body, "state", r.state, sizeof(r.state)))
        return ERR_CORRUPT;
    memcpy(r.cluster, cluster, strlen(cluster) + 1);
    *out = r;
    return ERR_OK;
}

void record_cluster_id(char out[RECORD_CLUSTER_BYTES], const struct mac_key *key)
{
    struct mac m;

    static_assert(RECORD_CLUSTER_BYTES == MAC_BYTES + 1, "half of the MAC in hex");
    mac_of(&m, key, STR("cluster-id"), STR(""));
    hex_encode(out, m.bytes, MAC_BYTES / 2);
}

enum err cluster_check(struct str bytes, const struct mac_key *key, const char *cluster)
{
    struct json_object body;
    enum err e = open_object(&body, bytes, key, STR("cluster"));

    if (e != ERR_OK)
        return ERR_FOREIGN;
    return check_head(&body, cluster);
}
