#include "app/server/policies.h"

#include "sys/log/log.h"
#include "wire/json.h"
#include "wire/opamp.h"

enum { BUCKETS = 1024, DOCUMENT_MAX = OPAMP_MESSAGE_MAX - 16384, SECONDS_MAX = 86400 };

LIST_HEAD(entries, policy_entry);

struct policies {
    struct entries bucket[BUCKETS];
    uint32_t count;
};

struct policies *policies_new(void)
{
    return calloc(1, sizeof(struct policies));
}

static void entry_free(struct policies *p, struct policy_entry *e)
{
    LIST_REMOVE(e, next);
    p->count--;
    free(e->document);
    free(e);
}

void policies_free(struct policies *p)
{
    struct policy_entry *e;

    for (size_t i = 0; p && i < BUCKETS; i++)
        while ((e = LIST_FIRST(&p->bucket[i])))
            entry_free(p, e);
    free(p);
}

static uint32_t bucket_of(const struct uuid *group)
{
    uint32_t h;

    memcpy(&h, group->bytes + UUID_BYTES - sizeof(h), sizeof(h));
    return h % BUCKETS;
}

static struct policy_entry *find(const struct policies *p, const struct uuid *group)
{
    struct policy_entry *e;

    LIST_FOREACH(e, &p->bucket[bucket_of(group)], next)
    if (uuid_eq(&e->group, group))
        return e;
    return NULL;
}

const struct policy_entry *policies_find(const struct policies *p,
                                         const struct uuid *group)
{
    return find(p, group);
}

uint32_t policies_count(const struct policies *p)
{
    return p->count;
}

/* {group: hash} of what is here, so that only what changed is sent. */
void policies_read(struct server *s)
{
    static char value[STORE_VALUE_MAX];
    const struct policies *p = s->policies;
    struct policy_entry *e;
    struct text t;
    bool first = true;

    text_init(&t, value, sizeof(value));
    text_add(&t, "{");
    for (size_t i = 0; i < BUCKETS; i++) {
        LIST_FOREACH(e, &p->bucket[i], next)
        {
            char group[UUID_TEXT], hash[2 * POLICY_HASH + 1];

            uuid_format(group, &e->group);
            hex_encode(hash, e->hash, POLICY_HASH);
            text_add(&t, "%s\"%s\":\"%s\"", first ? "" : ",", group, hash);
            first = false;
        }
    }
    text_add(&t, "}");
    s->policies_due = s->policies_reading; /* what changes meanwhile is read after it */
    if (s->policies_reading)
        return;
    s->policies_reading =
        store_read(s->store, STORE_READ_POLICIES, t.cut ? "{}" : value) == ERR_OK;
    s->policies_due = !s->policies_reading;
}

/* What the server itself needs of a policy. */
static void settings_read(struct policy_entry *e)
{
    struct json_member all, m;
    struct json_walk w;
    uint64_t v;

    e->heartbeat_s = POLICY_HEARTBEAT_S;
    e->spread_s = 0;
    if (json_value(&all, (struct str){ e->document, e->n }) != ERR_OK ||
        all.kind != JSON_OBJECT)
        return;
    json_walk(&w, &all);
    while (json_next(&w, &m)) {
        if (m.kind != JSON_NUMBER || !str_u64(m.raw, SECONDS_MAX, &v))
            continue;
        if (str_is(m.key, "agent.heartbeat_s") && v > 0)
            e->heartbeat_s = (uint32_t)v;
        else if (str_is(m.key, "agent.reconnect_spread_s"))
            e->spread_s = (uint32_t)v;
    }
}

static void row_take(struct policies *p, const struct uuid *group, const uint8_t *hash,
                     struct str document)
{
    struct policy_entry *e = find(p, group);

    if (e)
        e->seen = true;
    if (!document.p || document.n > DOCUMENT_MAX)
        return; /* known, or too long for a message */
    char *copy = malloc(document.n + 1);
    if (!copy || (!e && !(e = calloc(1, sizeof(*e))))) {
        free(copy);
        return; /* it is missing: the next time */
    }
    if (!e->document) {
        e->group = *group;
        LIST_INSERT_HEAD(&p->bucket[bucket_of(group)], e, next);
        p->count++;
    }
    memcpy(copy, document.p, document.n);
    copy[document.n] = '\0';
    free(e->document);
    e->document = copy;
    e->n = document.n;
    e->seen = true;
    memcpy(e->hash, hash, POLICY_HASH);
    settings_read(e);
}

void policies_take(struct policies *p, const struct store_rows *rows)
{
    struct policy_entry *e, *next;

    for (uint32_t i = 0; i < store_rows_count(rows); i++) {
        struct uuid group;
        uint8_t hash[POLICY_HASH];
        struct str document = store_rows_get(rows, i, 2);

        if (!uuid_parse(&group, store_rows_get(rows, i, 0)) ||
            !hex_decode(hash, POLICY_HASH, store_rows_get(rows, i, 1)))
            continue;
        if (document.n > DOCUMENT_MAX)
            log_event(LOG_LEVEL_ERROR, "policy_too_long", log_u64("bytes", document.n));
        row_take(p, &group, hash, document);
    }
    for (size_t i = 0; i < BUCKETS; i++) {
        for (e = LIST_FIRST(&p->bucket[i]); e; e = next) {
            next = LIST_NEXT(e, next);
            if (!e->seen)
                entry_free(p, e);
            else
                e->seen = false;
        }
    }
}
