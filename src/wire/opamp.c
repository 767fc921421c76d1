#include "wire/opamp_in.h"

enum err opamp_verdict_of(const struct pb *r, struct err_info *info, const char *what)
{
    if (r->over)
        return err_set(info, ERR_LIMIT, 0, "%s: too many fields", what);
    if (r->bad)
        return err_set(info, ERR_CORRUPT, 0, "%s: malformed", what);
    return ERR_OK;
}

enum err opamp_text_check(struct str s, size_t max, struct err_info *info,
                          const char *what)
{
    if (s.n > max)
        return err_set(info, ERR_LIMIT, 0, "%s: longer than %zu bytes", what, max);
    if (!text_is_utf8(s))
        return err_set(info, ERR_CORRUPT, 0, "%s: not UTF-8 text", what);
    return ERR_OK;
}

/* AnyValue: 1 string, 2 bool, 3 int, 4 double; 5 array, 6 list, 7 bytes are OTHER. */
static enum err value_decode(struct str bytes, struct opamp_attr *a,
                             struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    uint64_t bits;

    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        switch (f.number) {
        case 1:
            a->kind = OPAMP_STRING;
            a->text = pb_bytes(&r, &f);
            break;
        case 2:
            a->kind = OPAMP_BOOL;
            a->integer = pb_varint(&r, &f) != 0;
            break;
        case 3:
            a->kind = OPAMP_INT;
            a->integer = (int64_t)pb_varint(&r, &f);
            break;
        case 4:
            a->kind = OPAMP_DOUBLE;
            bits = pb_fixed64(&r, &f);
            memcpy(&a->real, &bits, sizeof(bits));
            break;
        default: a->kind = OPAMP_OTHER;
        }
    }
    enum err e = opamp_verdict_of(&r, info, "attribute value");
    if (e == ERR_OK && a->kind == OPAMP_STRING)
        e = opamp_text_check(a->text, OPAMP_TEXT_MAX, info, "attribute value");
    return e;
}

enum err opamp_attr_decode(struct str bytes, struct opamp_attrs *to,
                           struct err_info *info)
{
    struct opamp_attr a = { .kind = OPAMP_OTHER };
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    if (to->count == OPAMP_ATTRS_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d attributes", OPAMP_ATTRS_MAX);
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            a.key = pb_bytes(&r, &f);
        else if (f.number == 2)
            e = value_decode(pb_bytes(&r, &f), &a, info);
    }
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "attribute");
    if (e == ERR_OK)
        e = opamp_text_check(a.key, OPAMP_KEY_MAX, info, "attribute key");
    if (e == ERR_OK)
        to->at[to->count++] = a;
    return e;
}

static enum err description_decode(struct str bytes, struct opamp_agent *m,
                                   struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    m->has_description = true;
    m->identifying.count = m->other.count = 0;
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            e = opamp_attr_decode(pb_bytes(&r, &f), &m->identifying, info);
        else if (f.number == 2)
            e = opamp_attr_decode(pb_bytes(&r, &f), &m->other, info);
    }
    return e == ERR_OK ? opamp_verdict_of(&r, info, "agent_description") : e;
}

/* ComponentHealth without its own components. */
static enum err component_decode(struct str bytes, struct opamp_component *c,
                                 struct err_info *info)
{
    struct pb r;
    struct pb_field f;

    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            c->healthy = pb_varint(&r, &f) != 0;
        else if (f.number == 3)
            c->last_error = pb_bytes(&r, &f);
        else if (f.number == 4)
            c->status = pb_bytes(&r, &f);
    }
    enum err e = opamp_verdict_of(&r, info, "component health");
    if (e == ERR_OK)
        e = opamp_text_check(c->status, OPAMP_TEXT_MAX, info, "health status");
    if (e == ERR_OK)
        e = opamp_text_check(c->last_error, OPAMP_TEXT_MAX, info, "health last_error");
    return e;
}

/* One entry of component_health_map: 1 name, 2 ComponentHealth. */
static enum err component_entry(struct str bytes, struct opamp_health *h,
                                struct err_info *info)
{
    struct opamp_component c = { 0 };
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    if (h->count == OPAMP_COMPONENTS_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d health components",
                       OPAMP_COMPONENTS_MAX);
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            c.name = pb_bytes(&r, &f);
        else if (f.number == 2)
            e = component_decode(pb_bytes(&r, &f), &c, info);
    }
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "health component");
    if (e == ERR_OK)
        e = opamp_text_check(c.name, OPAMP_KEY_MAX, info, "health component name");
    if (e == ERR_OK)
        h->at[h->count++] = c;
    return e;
}

static enum err health_decode(struct str bytes, struct opamp_health *h,
                              struct err_info *info)
{
    struct opamp_component top = { 0 };
    struct pb r;
    struct pb_field f;
    enum err e = component_decode(bytes, &top, info);

    if (e != ERR_OK)
        return e;
    *h = (struct opamp_health){ .healthy = top.healthy,
                                .status = top.status,
                                .last_error = top.last_error };
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 2)
            h->start_ns = pb_fixed64(&r, &f);
        else if (f.number == 5)
            h->status_ns = pb_fixed64(&r, &f);
        else if (f.number == 6)
            e = component_entry(pb_bytes(&r, &f), h, info);
    }
    return e == ERR_OK ? opamp_verdict_of(&r, info, "health") : e;
}

static enum err caps_decode(struct str bytes, struct opamp_caps *c, struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    c->count = 0;
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number != 1)
            continue;
        if (c->count == OPAMP_CAPS_MAX)
            return err_set(info, ERR_LIMIT, 0, "more than %d custom capabilities",
                           OPAMP_CAPS_MAX);
        c->at[c->count] = pb_bytes(&r, &f);
        e = opamp_text_check(c->at[c->count++], OPAMP_KEY_MAX, info, "custom capability");
    }
    return e == ERR_OK ? opamp_verdict_of(&r, info, "custom_capabilities") : e;
}

static enum err custom_decode(struct str bytes, struct opamp_custom *c,
                              struct err_info *info)
{
    struct pb r;
    struct pb_field f;

    *c = (struct opamp_custom){ 0 };
    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            c->capability = pb_bytes(&r, &f);
        else if (f.number == 2)
            c->type = pb_bytes(&r, &f);
        else if (f.number == 3)
            c->data = pb_bytes(&r, &f);
    }
    enum err e = opamp_verdict_of(&r, info, "custom_message");
    if (e == ERR_OK)
        e = opamp_text_check(c->capability, OPAMP_KEY_MAX, info, "custom capability");
    if (e == ERR_OK)
        e = opamp_text_check(c->type, OPAMP_KEY_MAX, info, "custom message type");
    return e;
}

static enum err uid_decode(struct str bytes, struct uuid *out, struct err_info *info)
{
    if (bytes.n != UUID_BYTES)
        return err_set(info, ERR_CORRUPT, 0, "instance_uid: not 16 bytes");
    memcpy(out->bytes, bytes.p, UUID_BYTES);
    return ERR_OK;
}

/* Takes the header varint off; anything but 0 is malformed. */
static enum err header_take(struct str *bytes, struct err_info *info)
{
    uint64_t header = 0;
    size_t n = pb_varint_at(*bytes, &header);

    if (bytes->n > OPAMP_MESSAGE_MAX)
        return err_set(info, ERR_LIMIT, 0, "message longer than %d bytes",
                       OPAMP_MESSAGE_MAX);
    if (n == 0 || header != 0)
        return err_set(info, ERR_CORRUPT, 0, "message header is not 0");
    *bytes = (struct str){ bytes->p + n, bytes->n - n };
    return ERR_OK;
}

static enum err verdict_decode(struct str bytes, struct opamp_verdict *v,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    uint64_t status = 0;

    *v = (struct opamp_verdict){ 0 };
    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            v->hash = pb_bytes(&r, &f);
        else if (f.number == 2)
            status = pb_varint(&r, &f);
        else if (f.number == 3)
            v->error = pb_bytes(&r, &f);
    }
    v->status = status <= OPAMP_FAILED ? (enum opamp_status)status : OPAMP_UNSET;
    enum err e = opamp_verdict_of(&r, info, "status");
    if (e == ERR_OK && v->hash.n > OPAMP_HASH_MAX)
        e = err_set(info, ERR_LIMIT, 0, "hash: longer than %d bytes", OPAMP_HASH_MAX);
    return e == ERR_OK ? opamp_text_check(v->error, OPAMP_TEXT_MAX, info, "error_message")
                       : e;
}

enum err opamp_inner(struct str bytes, uint32_t number, struct str *out,
                     struct err_info *info, const char *what)
{
    struct pb r;
    struct pb_field f;

    *out = (struct str){ 0 };
    pb_init(&r, bytes);
    while (pb_next(&r, &f))
        if (f.number == number)
            *out = pb_bytes(&r, &f);
    return opamp_verdict_of(&r, info, what);
}

/* ConnectionSettingsRequest { 1: opamp { 1: certificate_request { 1: csr } } } */
static enum err request_decode(struct str bytes, struct opamp_agent *m,
                               struct err_info *info)
{
    struct str at = bytes;
    enum err e = ERR_OK;

    for (int level = 0; level < 3 && e == ERR_OK; level++)
        e = opamp_inner(at, 1, &at, info, "connection_settings_request");
    m->csr = at;
    m->has_csr = at.n > 0;
    return e;
}

static enum err agent_field(struct pb *r, const struct pb_field *f, struct opamp_agent *m,
                            bool *has_uid, struct err_info *info)
{
    switch (f->number) {
    case 1: *has_uid = true; return uid_decode(pb_bytes(r, f), &m->uid, info);
    case 2: m->sequence = pb_varint(r, f); return ERR_OK;
    case 3: return description_decode(pb_bytes(r, f), m, info);
    case 4: m->capabilities = pb_varint(r, f); return ERR_OK;
    case 5: m->has_health = true; return health_decode(pb_bytes(r, f), &m->health, info);
    case 7:
        m->has_config_status = true;
        return verdict_decode(pb_bytes(r, f), &m->config_status, info);
    case 8:
        m->has_packages = true;
        return opamp_statuses_decode(pb_bytes(r, f), &m->packages, info);
    case 9:
        (void)pb_bytes(r, f);
        m->disconnect = true;
        return ERR_OK;
    case 10: m->flags = pb_varint(r, f); return ERR_OK;
    case 11: return request_decode(pb_bytes(r, f), m, info);
    case 12: m->has_caps = true; return caps_decode(pb_bytes(r, f), &m->caps, info);
    case 13: m->has_custom = true; return custom_decode(pb_bytes(r, f), &m->custom, info);
    case 15:
        m->has_settings_status = true;
        return verdict_decode(pb_bytes(r, f), &m->settings_status, info);
    default: return ERR_OK;
    }
}

enum err opamp_agent_decode(struct str bytes, struct opamp_agent *out,
                            struct err_info *info)
{
    enum err e = header_take(&bytes, info);

    return e == ERR_OK ? opamp_agent_body_decode(bytes, out, info) : e;
}

enum err opamp_agent_body_decode(struct str bytes, struct opamp_agent *out,
                                 struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    bool has_uid = false;
    enum err e = ERR_OK;

    if (bytes.n > OPAMP_MESSAGE_MAX)
        return err_set(info, ERR_LIMIT, 0, "message longer than %d bytes",
                       OPAMP_MESSAGE_MAX);
    *out = (struct opamp_agent){ 0 };
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f))
        e = agent_field(&r, &f, out, &has_uid, info);
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "AgentToServer");
    if (e == ERR_OK && !has_uid)
        e = err_set(info, ERR_CORRUPT, 0, "instance_uid: missing");
    return e;
}

/* ServerErrorResponse: 1 type, 2 text, 3 RetryInfo { 1 nanoseconds }. */
static enum err error_decode(struct str bytes, struct opamp_server *m,
                             struct err_info *info)
{
    struct pb r, inner;
    struct pb_field f, g;

    m->has_error = true;
    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1) {
            uint64_t type = pb_varint(&r, &f);
            m->error = type <= OPAMP_ERR_UNAVAILABLE ? (enum opamp_error)type
                                                     : OPAMP_ERR_UNKNOWN;
        } else if (f.number == 2) {
            m->error_text = pb_bytes(&r, &f);
        } else if (f.number == 3) {
            pb_init(&inner, pb_bytes(&r, &f));
            while (pb_next(&inner, &g))
                if (g.number == 1)
                    m->retry_ns = pb_varint(&inner, &g);
            r.bad = r.bad || inner.bad;
        }
    }
    enum err e = opamp_verdict_of(&r, info, "error_response");
    return e == ERR_OK
               ? opamp_text_check(m->error_text, OPAMP_TEXT_MAX, info, "error_message")
               : e;
}

/* One entry of config_map: 1 name, 2 AgentConfigFile { 1 body, 2 content_type }. */
static enum err file_decode(struct str bytes, struct opamp_config *c,
                            struct err_info *info)
{
    struct opamp_file file = { 0 };
    struct str content = { 0 };
    enum err e = opamp_inner(bytes, 1, &file.name, info, "config file");

    if (c->count == OPAMP_FILES_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d config files", OPAMP_FILES_MAX);
    if (e == ERR_OK)
        e = opamp_inner(bytes, 2, &content, info, "config file");
    if (e == ERR_OK)
        e = opamp_inner(content, 1, &file.body, info, "config file");
    if (e == ERR_OK)
        e = opamp_inner(content, 2, &file.type, info, "config file");
    if (e == ERR_OK)
        e = opamp_text_check(file.name, OPAMP_KEY_MAX, info, "config file name");
    if (e == ERR_OK)
        e = opamp_text_check(file.type, OPAMP_KEY_MAX, info, "config content_type");
    if (e == ERR_OK)
        c->at[c->count++] = file;
    return e;
}

/* AgentRemoteConfig { 1: AgentConfigMap { 1: repeated entry }, 2: config_hash } */
static enum err config_decode(struct str bytes, struct opamp_config *c,
                              struct err_info *info)
{
    struct str map = { 0 };
    struct pb r;
    struct pb_field f;

    c->count = 0;
    enum err e = opamp_inner(bytes, 2, &c->hash, info, "remote_config");
    if (e == ERR_OK && c->hash.n > OPAMP_HASH_MAX)
        e = err_set(info, ERR_LIMIT, 0, "hash: longer than %d bytes", OPAMP_HASH_MAX);
    if (e == ERR_OK)
        e = opamp_inner(bytes, 1, &map, info, "remote_config");
    pb_init(&r, map);
    while (e == ERR_OK && pb_next(&r, &f))
        if (f.number == 1)
            e = file_decode(pb_bytes(&r, &f), c, info);
    return e == ERR_OK ? opamp_verdict_of(&r, info, "remote_config") : e;
}

/* OpAMPConnectionSettings: 1 endpoint, 3 certificate { 1 cert, 2 key, 3 CA }, 4 seconds */
static enum err opamp_settings_decode(struct str bytes, struct opamp_settings *to,
                                      struct err_info *info)
{
    struct str pem = { 0 };
    struct pb r;
    struct pb_field f;

    to->has_opamp = true;
    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1) {
            to->endpoint = pb_bytes(&r, &f);
        } else if (f.number == 3) {
            to->has_certificate = true;
            pem = pb_bytes(&r, &f);
        } else if (f.number == 4) {
            to->heartbeat_s = pb_varint(&r, &f);
        }
    }
    enum err e = opamp_verdict_of(&r, info, "connection_settings");
    if (e == ERR_OK)
        e = opamp_text_check(to->endpoint, OPAMP_TEXT_MAX, info, "destination_endpoint");
    if (e == ERR_OK)
        e = opamp_inner(pem, 1, &to->certificate, info, "certificate");
    if (e == ERR_OK)
        e = opamp_inner(pem, 2, &to->key, info, "certificate");
    return e == ERR_OK ? opamp_inner(pem, 3, &to->ca, info, "certificate") : e;
}

static enum err settings_decode(struct str bytes, struct opamp_settings *to,
                                struct err_info *info)
{
    struct str opamp = { 0 };

    *to = (struct opamp_settings){ 0 };
    enum err e = opamp_inner(bytes, 1, &to->hash, info, "connection_settings");
    if (e == ERR_OK && to->hash.n > OPAMP_HASH_MAX)
        e = err_set(info, ERR_LIMIT, 0, "hash: longer than %d bytes", OPAMP_HASH_MAX);
    if (e == ERR_OK)
        e = opamp_inner(bytes, 2, &opamp, info, "connection_settings");
    return e == ERR_OK && opamp.p ? opamp_settings_decode(opamp, to, info) : e;
}

/* AgentIdentification { 1: new_instance_uid }; empty: nothing new. */
static enum err new_uid_decode(struct str bytes, struct opamp_server *m,
                               struct err_info *info)
{
    struct str uid;
    enum err e = opamp_inner(bytes, 1, &uid, info, "agent_identification");

    if (e != ERR_OK || uid.n == 0)
        return e;
    m->has_new_uid = true;
    return uid_decode(uid, &m->new_uid, info);
}

static enum err server_field(struct pb *r, const struct pb_field *f,
                             struct opamp_server *m, struct err_info *info)
{
    switch (f->number) {
    case 1: return uid_decode(pb_bytes(r, f), &m->uid, info);
    case 2: return error_decode(pb_bytes(r, f), m, info);
    case 3: m->has_config = true; return config_decode(pb_bytes(r, f), &m->config, info);
    case 4:
        m->has_settings = true;
        return settings_decode(pb_bytes(r, f), &m->settings, info);
    case 5:
        m->has_packages = true;
        return opamp_packages_decode(pb_bytes(r, f), &m->packages, info);
    case 6: m->flags = pb_varint(r, f); return ERR_OK;
    case 7: m->capabilities = pb_varint(r, f); return ERR_OK;
    case 8: return new_uid_decode(pb_bytes(r, f), m, info);
    case 9:
        (void)pb_bytes(r, f);
        m->restart = true;
        return ERR_OK;
    case 10: m->has_caps = true; return caps_decode(pb_bytes(r, f), &m->caps, info);
    case 11: m->has_custom = true; return custom_decode(pb_bytes(r, f), &m->custom, info);
    default: return ERR_OK;
    }
}

enum err opamp_server_decode(struct str bytes, struct opamp_server *out,
                             struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = header_take(&bytes, info);

    if (e != ERR_OK)
        return e;
    *out = (struct opamp_server){ 0 };
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f))
        e = server_field(&r, &f, out, info);
    return e == ERR_OK ? opamp_verdict_of(&r, info, "ServerToAgent") : e;
}
