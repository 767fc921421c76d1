#include "app/server/answer.h"

#include <inttypes.h>

#include "app/server/policies.h"
#include "app/server/push.h"
#include "sys/log/log.h"
#include "wire/json.h"
#include "wire/report.h"

enum {
    LETTER_MAX = 60 * 1024,
    ENDPOINT_MAX = 320,
    PINGS_PER_S = 1000, /* of all devices of a worker together */
    SPREAD_FREE = 100   /* so few devices need no spread */
};

static const struct {
    enum conn_custom bit;
    const char *name;
} customs[] = {
    { CUSTOM_REPORT, REPORT_CAPABILITY },   { CUSTOM_EVENTS, EVENTS_CAPABILITY },
    { CUSTOM_TASKS, TASKS_CAPABILITY },     { CUSTOM_SESSION, SESSION_CAPABILITY },
    { CUSTOM_LICENCE, LICENCE_CAPABILITY },
};

static const char *custom_name(enum conn_custom bit)
{
    for (size_t i = 0; i < LEN(customs); i++)
        if (customs[i].bit == bit)
            return customs[i].name;
    CHECK(false);
    return "";
}

uint8_t answer_customs(const struct opamp_caps *caps)
{
    uint8_t bits = 0;

    for (uint32_t i = 0; i < caps->count; i++)
        for (size_t k = 0; k < LEN(customs); k++)
            if (str_is(caps->at[i], customs[k].name))
                bits |= (uint8_t)customs[k].bit;
    return bits;
}

void answer_letter(struct conn *c, enum conn_custom custom, const char *type,
                   struct str data)
{
    if (!(c->custom & custom) || c->state >= CONN_GOODBYE)
        return;
    struct letter *l =
        c->letter_count < CONN_LETTERS_MAX ? malloc(sizeof(*l) + data.n) : NULL;

    if (!l) {
        conn_close(c, "too much waits for the device");
        return;
    }
    l->capability = custom_name(custom);
    l->type = type;
    l->n = data.n;
    memcpy(l->data, data.p, data.n);
    STAILQ_INSERT_TAIL(&c->letters, l, next);
    c->letter_count++;
}

void answer_letter_list(struct conn *c, enum conn_custom custom, const char *type,
                        const char *member, struct str array)
{
    static char buf[LETTER_MAX];
    struct json_member all, m;
    struct json_walk w;
    struct text t;
    uint32_t items = 0;

    if (json_value(&all, array) != ERR_OK || all.kind != JSON_ARRAY)
        return;
    json_walk(&w, &all);
    text_init(&t, buf, sizeof(buf));
    while (json_next(&w, &m)) {
        bool quoted = m.kind == JSON_STRING;

        if (items > 0 && m.raw.n + 8 > sizeof(buf) - t.n) {
            text_add(&t, "]}");
            answer_letter(c, custom, type, (struct str){ t.p, t.n });
            text_init(&t, buf, sizeof(buf));
            items = 0;
        }
        if (items++ == 0)
            text_add(&t, "{\"%s\":[", member);
        else
            text_add(&t, ",");
        text_add(&t, "%s", quoted ? "\"" : "");
        text_bytes(&t, m.raw);
        text_add(&t, "%s", quoted ? "\"" : "");
    }
    if (items == 0)
        return;
    text_add(&t, "]}");
    if (t.cut) {
        log_event(LOG_LEVEL_ERROR, "letter_too_long", log_str("type", type));
        return;
    }
    answer_letter(c, custom, type, (struct str){ t.p, t.n });
}

/* The next letter becomes the custom message of this answer; the caller frees it. */
static struct letter *letter_take(struct conn *c, struct opamp_server *a)
{
    struct letter *l = STAILQ_FIRST(&c->letters);

    if (!l || a->has_custom)
        return NULL;
    STAILQ_REMOVE_HEAD(&c->letters, next);
    c->letter_count--;
    a->has_custom = true;
    a->custom = (struct opamp_custom){ str_of(l->capability),
                                       str_of(l->type),
                                       { l->data, l->n } };
    return l;
}

static void greet(struct conn *c, struct opamp_server *a)
{
    if (c->greeted)
        return;
    c->greeted = true;
    a->capabilities = OPAMP_ACCEPTS_STATUS | OPAMP_OFFERS_CONFIG | OPAMP_OFFERS_PACKAGES |
                      OPAMP_ACCEPTS_PACKAGES_STATUS | OPAMP_OFFERS_SETTINGS |
                      OPAMP_ACCEPTS_REQUESTS;
    a->has_caps = true;
    a->caps.count = LEN(customs);
    for (uint32_t i = 0; i < LEN(customs); i++)
        a->caps.at[i] = str_of(customs[i].name);
}

/* The policy of its group, if the device has another one. */
static void offer_config(struct conn *c, struct opamp_server *a)
{
    const struct policy_entry *e = policies_find(c->server->policies, &c->group);

    if (c->trust != CONN_ADMITTED || !e || !(c->capabilities & OPAMP_ACCEPTS_CONFIG) ||
        (!c->config_known && !c->described) ||
        (c->config_known && memcmp(c->config_hash, e->hash, POLICY_HASH) == 0))
        return;
    a->has_config = true;
    a->config.count = 1;
    a->config.at[0] = (struct opamp_file){ STR("policy.json"),
                                           { e->document, e->n },
                                           STR("application/json") };
    a->config.hash = (struct str){ (const char *)e->hash, POLICY_HASH };
    memcpy(c->config_hash, e->hash, POLICY_HASH);
    c->config_known = true;
}

/* Where the device finds the cluster; "" if only a load balancer knows and it said nothing. */
static void endpoint(const struct conn *c, char *out, size_t size)
{
    const struct conf *conf = &c->server->conf;
    const char *ipv4 = conf->address.ipv4, *ipv6 = conf->address.ipv6;
    char host[CONF_PATH];
    uint16_t port = 0;

    out[0] = '\0';
    if (conf->address.mode != CONF_ADDRESS_VIRTUAL_IP) {
        if (c->host)
            (void)snprintf(out, size, "wss://%s/v1/opamp", c->host);
        return;
    }
    if (conf_listen_split(conf->server.listen, host, sizeof(host), &port) != ERR_OK)
        return;
    if (ipv4[0])
        (void)snprintf(out, size, "wss://%.*s:%u/v1/opamp", (int)strcspn(ipv4, "/"), ipv4,
                       port);
    else if (ipv6[0])
        (void)snprintf(out, size, "wss://[%.*s]:%u/v1/opamp", (int)strcspn(ipv6, "/"),
                       ipv6, port);
}

/*
 * How to connect, always complete: an agent may drop what an offer does not name.  The
 * hash stands for all of it, and is the same from both nodes.
 */
static void offer_settings(struct conn *c, struct opamp_server *a, char *where,
                           uint8_t hash[TLS_DIGEST])
{
    static char all[ENDPOINT_MAX + 64 + 16384];
    const struct policy_entry *e = policies_find(c->server->policies, &c->group);
    uint32_t heartbeat_s = e ? e->heartbeat_s : POLICY_HEARTBEAT_S;
    struct text t;

    endpoint(c, where, ENDPOINT_MAX);
    if (c->trust < CONN_ADMITTED || !(c->capabilities & OPAMP_ACCEPTS_SETTINGS) ||
        where[0] == '\0')
        return;
    text_init(&t, all, sizeof(all));
    text_add(&t, "%s\n%u\n%s", where, heartbeat_s, c->renewed ? c->renewed : "");
    tls_digest(hash, (struct str){ t.p, t.n });
    if (t.cut || (c->settings_known && memcmp(c->settings_hash, hash, POLICY_HASH) == 0))
        return;
    a->has_settings = true;
    a->settings =
        (struct opamp_settings){ .hash = { (const char *)hash, TLS_DIGEST },
                                 .has_opamp = true,
                                 .has_certificate = c->renewed != NULL,
                                 .endpoint = str_of(where),
                                 .heartbeat_s = heartbeat_s,
                                 .certificate = str_of(c->renewed ? c->renewed : "") };
    memcpy(c->settings_hash, hash, POLICY_HASH);
    c->settings_known = true;
}

/* http://HOST:PORT/PATH on the Web Server of this cluster; false: nobody knows where that is. */
static bool package_url(const struct conn *c, const char *path, char *out, size_t size)
{
    const struct conf_web *web = &c->server->conf.web;
    const char *listen = web->http[0] ? web->http : web->https;
    char where[ENDPOINT_MAX], host[CONF_PATH];
    uint16_t port = 0;

    endpoint(c, where, sizeof(where));
    if (where[0] == '\0' ||
        conf_listen_split(listen, host, sizeof(host), &port) != ERR_OK)
        return false;
    char *at = where + strlen("wss://"), *end = strchr(at, '/');
    if (end)
        *end = '\0';
    end = strrchr(at, ':');
    if (end && !strchr(end, ']'))
        *end = '\0';
    return snprintf(out, size, "http%s://%s:%u/%s", web->http[0] ? "" : "s", at, port,
                    path) < (int)size;
}

/* What an offer is made of; what is not as db/0014 makes it is not offered. */
struct offer {
    char name[OPAMP_KEY_MAX], version[OPAMP_KEY_MAX], path[512], url[1024];
    uint8_t hash[POLICY_HASH], content[TLS_DIGEST], all[TLS_DIGEST];
    uint8_t signature[OPAMP_SIGNATURE_MAX];
    size_t signature_n;
    bool back;
};

static bool offer_read(const struct conn *c, struct offer *o)
{
    static char signature[2 * OPAMP_SIGNATURE_MAX + 1];
    char hash[65], content[65];
    struct json_object all;

    if (!c->package || json_load(&all, str_of(c->package)) != ERR_OK ||
        !json_get_text(&all, "name", o->name, sizeof(o->name)) ||
        !json_get_text(&all, "version", o->version, sizeof(o->version)) ||
        !json_get_text(&all, "path", o->path, sizeof(o->path)) ||
        !json_get_text(&all, "hash", hash, sizeof(hash)) ||
        !json_get_text(&all, "sha256", content, sizeof(content)) ||
        !json_get_text(&all, "signature", signature, sizeof(signature)))
        return false;
    const struct json_member *back = json_find(&all, "back");
    o->back = back && str_is(back->raw, "true");
    o->signature_n = strlen(signature) / 2;
    return hex_decode(o->hash, sizeof(o->hash), str_of(hash)) &&
           hex_decode(o->content, sizeof(o->content), str_of(content)) &&
           hex_decode(o->signature, o->signature_n, str_of(signature)) &&
           package_url(c, o->path, o->url, sizeof(o->url));
}

void answer_package_told(struct conn *c, const struct opamp_package_status *p)
{
    /* What was offered in the middle of an installation is taken up at its end: to offer it
     * again with each word until then would have the two talk without a pause. */
    if (p->offered_hash.n == POLICY_HASH &&
        !(c->package_offered && p->status == OPAMP_INSTALLING))
        memcpy(c->package_hash, p->offered_hash.p, POLICY_HASH);
}

/* The complete set, which is one package, if the device takes packages and has another. */
static void offer_packages(struct conn *c, struct opamp_server *a)
{
    static struct offer o;

    if (c->trust != CONN_ADMITTED || !(c->capabilities & OPAMP_ACCEPTS_PACKAGES) ||
        !offer_read(c, &o) || memcmp(c->package_hash, o.hash, POLICY_HASH) == 0)
        return;
    tls_digest(o.all, (struct str){ (const char *)o.hash, sizeof(o.hash) });
    a->has_packages = true;
    a->packages.hash = (struct str){ (const char *)o.all, sizeof(o.all) };
    a->packages.count = 1;
    a->packages.at[0] = (struct opamp_package){
        .name = str_of(o.name),
        .version = str_of(o.version),
        .hash = { (const char *)o.hash, sizeof(o.hash) },
        .url = str_of(o.url),
        .content_hash = { (const char *)o.content, sizeof(o.content) },
        .signature = { (const char *)o.signature, o.signature_n },
        .header_count = o.back ? 1 : 0,
        .header = { { STR(OPAMP_ORDER_HEADER), STR(OPAMP_ORDER_BACK) } },
    };
    memcpy(c->package_hash, o.hash, POLICY_HASH);
    c->package_offered = true;
}

static void send_encoded(struct conn *c, const struct opamp_server *a)
{
    static uint8_t buf[OPAMP_MESSAGE_MAX];
    size_t n;

    if (opamp_server_encode(a, buf, sizeof(buf), &n) != ERR_OK) {
        conn_close(c, "an answer does not fit");
        return;
    }
    c->server->counts.answered++;
    if (c->state == CONN_WS)
        conn_send(c, buf, n);
    else if (c->state == CONN_HTTP)
        http_reply(c, buf + OPAMP_HEADER_BYTES, n - OPAMP_HEADER_BYTES);
}

void answer_send(struct conn *c, struct opamp_server *a)
{
    char where[ENDPOINT_MAX];
    uint8_t hash[TLS_DIGEST];

    greet(c, a);
    offer_config(c, a);
    if (!a->has_config) { /* all at once may be too long for a message */
        offer_settings(c, a, where, hash);
        offer_packages(c, a);
    } else {
        push_todo(c, TODO_OFFERS);
    }
    if (c->trust == CONN_CLONE && !uuid_eq(&a->uid, &c->new_id)) {
        a->has_new_uid = true;
        a->new_uid = c->new_id;
    }
    struct letter *l = a->has_config || a->has_packages ? NULL : letter_take(c, a);

    send_encoded(c, a);
    free(l);
    if (c->state == CONN_WS)
        answer_letters(c);
}

void answer_letters(struct conn *c)
{
    while (c->state == CONN_WS && !STAILQ_EMPTY(&c->letters)) {
        struct opamp_server a = { .uid = c->device_id };
        struct letter *l = letter_take(c, &a);

        send_encoded(c, &a);
        free(l);
    }
}

void answer_offers(struct conn *c)
{
    struct opamp_server a = { .uid = c->device_id };
    char where[ENDPOINT_MAX];
    uint8_t hash[TLS_DIGEST];

    if (!c->greeted)
        return; /* with the first answer */
    offer_config(c, &a);
    if (a.has_config)
        send_encoded(c, &a);
    a = (struct opamp_server){ .uid = c->device_id };
    offer_settings(c, &a, where, hash);
    if (a.has_settings && c->state == CONN_WS)
        send_encoded(c, &a);
    a = (struct opamp_server){ .uid = c->device_id };
    offer_packages(c, &a);
    if (a.has_packages && c->state == CONN_WS)
        send_encoded(c, &a);
}

void answer_full_state(struct conn *c)
{
    struct opamp_server a = { .uid = c->device_id, .flags = OPAMP_REPORT_FULL_STATE };

    send_encoded(c, &a);
}

/* How long a device should wait before it comes again, at most. */
void answer_session(struct conn *c)
{
    const struct server *s = c->server;
    const struct policy_entry *e = policies_find(s->policies, &c->group);
    uint32_t spread_ms = e ? e->spread_s * 1000u : 0;
    struct timespec now;
    /* Three pings in that time from each must not keep this server busy. */
    uint32_t dead_after_ms = s->conn_count * (3 * 1000u / PINGS_PER_S);
    char text[192];
    struct text t;

    (void)clock_gettime(CLOCK_REALTIME,
                        &now); /* tasks have times; devices have wrong clocks */
    /* Not set: as long as this server needs to take so many. */
    if (spread_ms == 0 && s->conn_count > SPREAD_FREE)
        spread_ms = s->conn_count * 1000u / ACCEPT_PER_S;
    text_init(&t, text, sizeof(text));
    text_add(
        &t,
        "{\"spread_ms\":%u,\"backoff_max_ms\":%u,\"dead_after_ms\":%u,\"epoch\":%" PRIu64
        ",\"now\":%" PRId64 "}",
        spread_ms, spread_ms > 30000 ? spread_ms : 30000, dead_after_ms, s->epoch,
        (int64_t)now.tv_sec);
    answer_letter(c, CUSTOM_SESSION, "session", (struct str){ t.p, t.n });
}

/* Where licences are leased: at the same address, if this cluster has an Activation Proxy. */
void answer_licence(struct conn *c)
{
    const struct conf *conf = &c->server->conf;
    char where[ENDPOINT_MAX], host[CONF_PATH], text[ENDPOINT_MAX + 64];
    uint16_t port = 0;
    bool has = false;
    struct text t;

    for (uint32_t i = 0; i < conf->service_count; i++)
        has |= strcmp(conf->service[i].name, "activation") == 0;
    endpoint(c, where, sizeof(where));
    if (!has || where[0] == '\0' ||
        conf_listen_split(conf->activation.listen, host, sizeof(host), &port) != ERR_OK)
        return;
    char *at = where + strlen("wss://"), *end = strchr(at, '/');
    if (end)
        *end = '\0';
    end = strrchr(at, ':');
    if (end && !strchr(end, ']'))
        *end = '\0';
    text_init(&t, text, sizeof(text));
    text_add(&t, "{\"server\":\"%s:%u\"}", at, port);
    answer_letter(c, CUSTOM_LICENCE, "where", (struct str){ t.p, t.n });
}

void answer_error(struct conn *c, const struct uuid *uid, enum opamp_error error,
                  const char *why, uint32_t retry_ms, bool flood)
{
    struct opamp_server a = { .uid = *uid,
                              .has_error = true,
                              .error = error,
                              .error_text = str_of(why),
                              .retry_ns = (uint64_t)retry_ms * 1000000u };
    uint8_t buf[OPAMP_TEXT_MAX + 256];
    size_t n;

    if (error == OPAMP_ERR_UNAVAILABLE)
        c->server->counts.unavailable++;
    if (opamp_server_encode(&a, buf, sizeof(buf), &n) != ERR_OK) {
        conn_close(c, "an answer does not fit");
        return;
    }
    c->server->counts.answered++;
    if (c->state == CONN_WS)
        conn_send(c, buf, n);
    else if (c->state == CONN_HTTP)
        http_refuse(c,
                    error == OPAMP_ERR_BAD_REQUEST ? "400 Bad Request"
                    : flood                        ? "429 Too Many Requests"
                                                   : "503 Service Unavailable",
                    (retry_ms + 999) / 1000, buf + OPAMP_HEADER_BYTES,
                    n - OPAMP_HEADER_BYTES);
}
