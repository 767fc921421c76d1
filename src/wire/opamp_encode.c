#include "wire/opamp_in.h"

void opamp_attr_encode(struct pb_out *w, uint32_t number, const struct opamp_attr *a)
{
    uint64_t bits;
    size_t kv = pb_open(w, number);

    pb_put_bytes(w, 1, a->key);
    size_t value = pb_open(w, 2);
    switch (a->kind) {
    case OPAMP_STRING: pb_put_bytes(w, 1, a->text); break;
    case OPAMP_BOOL: pb_put_varint(w, 2, a->integer != 0); break;
    case OPAMP_INT: pb_put_varint(w, 3, (uint64_t)a->integer); break;
    case OPAMP_DOUBLE:
        memcpy(&bits, &a->real, sizeof(bits));
        pb_put_fixed64(w, 4, bits);
        break;
    case OPAMP_OTHER: break;
    }
    pb_close(w, value);
    pb_close(w, kv);
}

static void attrs_put(struct pb_out *w, uint32_t number, const struct opamp_attrs *a)
{
    for (uint32_t i = 0; i < a->count; i++)
        opamp_attr_encode(w, number, &a->at[i]);
}

static void optional_text(struct pb_out *w, uint32_t number, struct str s)
{
    if (s.n > 0)
        pb_put_bytes(w, number, s);
}

static void optional_number(struct pb_out *w, uint32_t number, uint64_t v)
{
    if (v != 0)
        pb_put_varint(w, number, v);
}

static void health_put(struct pb_out *w, const struct opamp_health *h)
{
    size_t health = pb_open(w, 5);

    optional_number(w, 1, h->healthy);
    if (h->start_ns != 0)
        pb_put_fixed64(w, 2, h->start_ns);
    optional_text(w, 3, h->last_error);
    optional_text(w, 4, h->status);
    if (h->status_ns != 0)
        pb_put_fixed64(w, 5, h->status_ns);
    for (uint32_t i = 0; i < h->count; i++) {
        const struct opamp_component *c = &h->at[i];
        size_t entry = pb_open(w, 6);

        pb_put_bytes(w, 1, c->name);
        size_t inner = pb_open(w, 2);
        optional_number(w, 1, c->healthy);
        optional_text(w, 3, c->last_error);
        optional_text(w, 4, c->status);
        pb_close(w, inner);
        pb_close(w, entry);
    }
    pb_close(w, health);
}

static void caps_put(struct pb_out *w, uint32_t number, const struct opamp_caps *c)
{
    size_t mark = pb_open(w, number);

    for (uint32_t i = 0; i < c->count; i++)
        pb_put_bytes(w, 1, c->at[i]);
    pb_close(w, mark);
}

static void custom_put(struct pb_out *w, uint32_t number, const struct opamp_custom *c)
{
    size_t mark = pb_open(w, number);

    pb_put_bytes(w, 1, c->capability);
    pb_put_bytes(w, 2, c->type);
    pb_put_bytes(w, 3, c->data);
    pb_close(w, mark);
}

static void verdict_put(struct pb_out *w, uint32_t number, const struct opamp_verdict *v)
{
    size_t mark = pb_open(w, number);

    optional_text(w, 1, v->hash);
    optional_number(w, 2, (uint64_t)v->status);
    optional_text(w, 3, v->error);
    pb_close(w, mark);
}

static void csr_put(struct pb_out *w, struct str csr)
{
    size_t request = pb_open(w, 11), opamp = pb_open(w, 1), wish = pb_open(w, 1);

    pb_put_bytes(w, 1, csr);
    pb_close(w, wish);
    pb_close(w, opamp);
    pb_close(w, request);
}

static void config_put(struct pb_out *w, const struct opamp_config *c)
{
    size_t config = pb_open(w, 3), map = pb_open(w, 1);

    for (uint32_t i = 0; i < c->count; i++) {
        size_t entry = pb_open(w, 1);

        pb_put_bytes(w, 1, c->at[i].name);
        size_t file = pb_open(w, 2);
        optional_text(w, 1, c->at[i].body);
        optional_text(w, 2, c->at[i].type);
        pb_close(w, file);
        pb_close(w, entry);
    }
    pb_close(w, map);
    optional_text(w, 2, c->hash);
    pb_close(w, config);
}

static void settings_put(struct pb_out *w, const struct opamp_settings *s)
{
    size_t offers = pb_open(w, 4);

    optional_text(w, 1, s->hash);
    if (s->has_opamp) {
        size_t opamp = pb_open(w, 2);

        optional_text(w, 1, s->endpoint);
        if (s->has_certificate) {
            size_t certificate = pb_open(w, 3);

            optional_text(w, 1, s->certificate);
            optional_text(w, 2, s->key);
            optional_text(w, 3, s->ca);
            pb_close(w, certificate);
        }
        optional_number(w, 4, s->heartbeat_s);
        pb_close(w, opamp);
    }
    pb_close(w, offers);
}

static struct str uid_of(const struct uuid *u)
{
    return (struct str){ (const char *)u->bytes, UUID_BYTES };
}

/* The header varint 0 goes first. */
static bool start(struct pb_out *w, uint8_t *buf, size_t size)
{
    pb_out_init(w, buf, size);
    if (size == 0)
        return false;
    buf[0] = 0;
    w->n = 1;
    return true;
}

static enum err finish(const struct pb_out *w, size_t *out)
{
    if (w->full || w->n > OPAMP_MESSAGE_MAX)
        return ERR_LIMIT;
    *out = w->n;
    return ERR_OK;
}

enum err opamp_agent_encode(const struct opamp_agent *m, uint8_t *buf, size_t size,
                            size_t *out)
{
    struct pb_out w;

    if (!start(&w, buf, size))
        return ERR_LIMIT;
    pb_put_bytes(&w, 1, uid_of(&m->uid));
    optional_number(&w, 2, m->sequence);
    if (m->has_description) {
        size_t mark = pb_open(&w, 3);
        attrs_put(&w, 1, &m->identifying);
        attrs_put(&w, 2, &m->other);
        pb_close(&w, mark);
    }
    optional_number(&w, 4, m->capabilities);
    if (m->has_health)
        health_put(&w, &m->health);
    if (m->has_config_status)
        verdict_put(&w, 7, &m->config_status);
    if (m->has_packages)
        opamp_statuses_put(&w, 8, &m->packages);
    if (m->disconnect)
        pb_put_bytes(&w, 9, STR(""));
    optional_number(&w, 10, m->flags);
    if (m->has_csr)
        csr_put(&w, m->csr);
    if (m->has_caps)
        caps_put(&w, 12, &m->caps);
    if (m->has_custom)
        custom_put(&w, 13, &m->custom);
    if (m->has_settings_status)
        verdict_put(&w, 15, &m->settings_status);
    return finish(&w, out);
}

enum err opamp_server_encode(const struct opamp_server *m, uint8_t *buf, size_t size,
                             size_t *out)
{
    struct pb_out w;

    if (!start(&w, buf, size))
        return ERR_LIMIT;
    pb_put_bytes(&w, 1, uid_of(&m->uid));
    if (m->has_error) { /* every other field must be unset then */
        size_t mark = pb_open(&w, 2);
        optional_number(&w, 1, (uint64_t)m->error);
        optional_text(&w, 2, m->error_text);
        if (m->retry_ns != 0) {
            size_t retry = pb_open(&w, 3);
            pb_put_varint(&w, 1, m->retry_ns);
            pb_close(&w, retry);
        }
        pb_close(&w, mark);
        return finish(&w, out);
    }
    if (m->has_config)
        config_put(&w, &m->config);
    if (m->has_settings)
        settings_put(&w, &m->settings);
    if (m->has_packages)
        opamp_packages_put(&w, 5, &m->packages);
    optional_number(&w, 6, m->flags);
    optional_number(&w, 7, m->capabilities);
    if (m->has_new_uid) {
        size_t mark = pb_open(&w, 8);
        pb_put_bytes(&w, 1, uid_of(&m->new_uid));
        pb_close(&w, mark);
    }
    if (m->restart)
        pb_put_bytes(&w, 9, STR(""));
    if (m->has_caps)
        caps_put(&w, 10, &m->caps);
    if (m->has_custom)
        custom_put(&w, 11, &m->custom);
    return finish(&w, out);
}

static void add(struct opamp_attrs *to, struct opamp_attr a)
{
    if (to->count < OPAMP_ATTRS_MAX)
        to->at[to->count++] = a;
}

void opamp_add_text(struct opamp_attrs *to, struct str key, struct str text)
{
    add(to, (struct opamp_attr){ .key = key, .kind = OPAMP_STRING, .text = text });
}

void opamp_add_int(struct opamp_attrs *to, struct str key, int64_t v)
{
    add(to, (struct opamp_attr){ .key = key, .kind = OPAMP_INT, .integer = v });
}

void opamp_add_bool(struct opamp_attrs *to, struct str key, bool v)
{
    add(to, (struct opamp_attr){ .key = key, .kind = OPAMP_BOOL, .integer = v });
}
