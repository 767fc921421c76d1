#include "app/server/item.h"

#include <inttypes.h>

#include "app/server/answer.h"
#include "wire/json.h"

enum { CSR_MAX = 8192, RUNS_MAX = 256 };

static struct report one_report; /* big; the loop has one thread */

/* The text attribute of that key, or nothing. */
static struct str text_of(const struct opamp_attrs *a, const char *key)
{
    for (uint32_t i = 0; i < a->count; i++)
        if (str_is(a->at[i].key, key) && a->at[i].kind == OPAMP_STRING)
            return a->at[i].text;
    return STR("");
}

static void add_hello(struct conn *c, struct text *t)
{
    char address[sizeof(c->peer)];
    char *colon;

    (void)snprintf(address, sizeof(address), "%s", c->peer);
    colon = strrchr(address, ':');
    if (colon)
        *colon = '\0';
    text_add(t, ",\"hello\":{\"serial\":\"%s\",\"not_after\":%" PRId64 ",\"address\":",
             c->certificate.serial, c->certificate.not_after);
    quoted_json(t, str_of(address));
    text_add(t, ",\"transport\":\"%s\",\"node\":", c->state == CONN_WS ? "ws" : "http");
    quoted_json(t, str_of(redoubt_service_node(c->server->service)));
    if (c->instance[0]) {
        text_add(t, ",\"instance\":");
        quoted_json(t, str_of(c->instance));
    }
    text_add(t, "}");
}

static void add_state(const struct opamp_agent *m, struct text *t)
{
    if (m->has_description) {
        text_add(t, ",\"name\":");
        quoted_json(t, text_of(&m->other, "host.name"));
        text_add(t, ",\"description\":{\"identifying\":");
        attrs_json(t, &m->identifying);
        text_add(t, ",\"non_identifying\":");
        attrs_json(t, &m->other);
        text_add(t, "}");
    }
    if (m->has_health) {
        text_add(t, ",\"health\":");
        health_json(t, &m->health);
    }
}

/* What became of its policy.  Nothing to tell of a configuration that it never got. */
static bool add_policy(const struct opamp_agent *m, struct text *t)
{
    static const char *const states[] = { [OPAMP_UNSET] = NULL,
                                          [OPAMP_APPLIED] = "applied",
                                          [OPAMP_APPLYING] = "applying",
                                          [OPAMP_FAILED] = "failed" };
    const struct opamp_verdict *v = &m->config_status;
    char hash[2 * OPAMP_HASH_MAX + 1];

    if (!m->has_config_status || v->hash.n != POLICY_HASH || !states[v->status])
        return false;
    hex_encode(hash, (const uint8_t *)v->hash.p, v->hash.n);
    text_add(t, ",\"policy\":{\"hash\":\"%s\",\"state\":\"%s\",\"error\":", hash,
             states[v->status]);
    quoted_json(t, v->error);
    text_add(t, "}");
    return true;
}

/* What became of the packages that it was offered; a version that nobody has is not told. */
static bool add_packages(const struct conn *c, const struct opamp_agent *m,
                         struct text *t)
{
    static const char *const states[] = {
        [OPAMP_INSTALLED] = "installed",     [OPAMP_INSTALL_PENDING] = "pending",
        [OPAMP_INSTALLING] = "installing",   [OPAMP_INSTALL_FAILED] = "failed",
        [OPAMP_DOWNLOADING] = "downloading", [OPAMP_INSTALL_UNKNOWN] = "unknown",
    };
    char hash[2 * OPAMP_HASH_MAX + 1];

    if (!m->has_packages || !(c->capabilities & OPAMP_REPORTS_PACKAGES))
        return false;
    text_add(t, ",\"packages\":{\"takes\":%s,\"list\":[",
             c->capabilities & OPAMP_ACCEPTS_PACKAGES ? "true" : "false");
    for (uint32_t i = 0; i < m->packages.count; i++) {
        const struct opamp_package_status *p = &m->packages.at[i];

        hex_encode(hash, (const uint8_t *)p->offered_hash.p, p->offered_hash.n);
        text_add(t, "%s{\"name\":", i > 0 ? "," : "");
        quoted_json(t, p->name);
        text_add(t, ",\"has\":");
        quoted_json(t, p->has_version);
        text_add(t, ",\"hash\":\"%s\",\"state\":\"%s\",\"percent\":%u,\"error\":", hash,
                 states[p->status], (unsigned)p->percent);
        quoted_json(t, p->error);
        text_add(t, "}");
    }
    text_add(t, "]}");
    return true;
}

static void add_report(struct text *t, bool first, const struct report *r)
{
    char id[UUID_TEXT];

    uuid_format(id, &r->id);
    text_add(t, "%s{\"id\":\"%s\",\"seq\":%llu,\"at\":%llu,\"body\":", first ? "" : ",",
             id, (unsigned long long)r->seq, (unsigned long long)r->at_us);
    attrs_json(t, &r->attrs);
    text_add(t, "}");
}

/*
 * Writes "reports" and notes a receipt for each.  A report that is wrong gets a receipt
 * that says so, or the device would send it for ever; without an id it is a bad message.
 */
static enum err add_reports(struct str data, struct item *out, struct err_info *info)
{
    static const struct uuid none;
    struct report_batch batch;
    uint32_t stored = 0;
    enum err e = report_batch_decode(data, &batch, info);

    if (e != ERR_OK)
        return e;
    out->has_receipts = true;
    text_add(&out->text, ",\"reports\":[");
    for (uint32_t i = 0; i < batch.count; i++) {
        struct receipt *to = &out->receipts.at[out->receipts.count];

        *to = (struct receipt){ 0 };
        e = report_decode(batch.at[i], &one_report, info);
        if (e != ERR_OK && uuid_eq(&one_report.id, &none))
            return e;
        to->id = one_report.id;
        to->seq = one_report.seq;
        if (e != ERR_OK) {
            (void)snprintf(out->refused, sizeof(out->refused), "%.90s",
                           info ? info->what : "");
            to->refused = str_of(out->refused);
        } else {
            add_report(&out->text, stored++ == 0, &one_report);
        }
        out->receipts.count++;
    }
    text_add(&out->text, "]");
    out->worth = out->worth || stored > 0;
    return ERR_OK;
}

/* Is it an array of at most max items?  PostgreSQL looks at the items themselves. */
static bool is_list(const struct json_member *m, uint32_t max)
{
    struct json_member one;
    struct json_walk w;
    uint32_t n = 0;

    if (!m || m->kind != JSON_ARRAY)
        return false;
    json_walk(&w, m);
    while (n <= max && json_next(&w, &one))
        n++;
    return n <= max;
}

static enum err add_events(struct str data, struct item *out, struct err_info *info)
{
    enum { EVENTS_MAX = 100 };
    struct json_object o;
    struct uuid stream;
    char text[UUID_TEXT];
    uint64_t first = 0;

    if (json_load(&o, data) != ERR_OK ||
        !json_get_text(&o, "stream", text, sizeof(text)) ||
        !uuid_parse(&stream, str_of(text)) ||
        !json_get_u64(&o, "first", INT64_MAX / 2, &first) || first == 0)
        return err_set(info, ERR_CORRUPT, 0, "batch: stream or first is wrong");
    const struct json_member *events = json_find(&o, "events");
    if (!is_list(events, EVENTS_MAX))
        return err_set(info, ERR_LIMIT, 0, "batch: events is no list of at most %d",
                       EVENTS_MAX);
    text_add(&out->text,
             ",\"events\":{\"stream\":\"%s\",\"first\":%" PRIu64 ",\"list\":", text,
             first);
    text_bytes(&out->text, events->raw);
    text_add(&out->text, "}");
    out->has_events = out->worth = true;
    return ERR_OK;
}

static enum err add_runs(const char *key, struct str data, struct item *out,
                         struct err_info *info)
{
    struct json_object o;

    if (json_load(&o, data) != ERR_OK || !is_list(json_find(&o, "runs"), RUNS_MAX))
        return err_set(info, ERR_CORRUPT, 0, "%s: runs is no list of at most %d", key,
                       RUNS_MAX);
    text_add(&out->text, ",\"%s\":", key);
    text_bytes(&out->text, json_find(&o, "runs")->raw);
    out->worth = true;
    return ERR_OK;
}

static enum err add_custom(const struct opamp_custom *m, struct item *out,
                           struct err_info *info)
{
    bool events = str_is(m->capability, EVENTS_CAPABILITY);
    bool tasks = str_is(m->capability, TASKS_CAPABILITY);

    if (str_is(m->capability, REPORT_CAPABILITY) && str_is(m->type, REPORT_TYPE))
        return add_reports(m->data, out, info);
    if ((events || tasks) && !json_storable(m->data))
        return err_set(info, ERR_CORRUPT, 0, "custom message: not JSON that can be kept");
    if (events && str_is(m->type, "batch"))
        return add_events(m->data, out, info);
    if (tasks && str_is(m->type, "progress"))
        return add_runs("progress", m->data, out, info);
    if (tasks && str_is(m->type, "running"))
        return add_runs("running", m->data, out, info);
    return err_set(info, ERR_INVALID, 0, "custom message of an unknown kind");
}

static enum err add_csr(struct conn *c, struct str csr, struct item *out,
                        struct err_info *info)
{
    if (csr.n == 0 || csr.n > CSR_MAX || !text_is_utf8(csr))
        return err_set(info, ERR_LIMIT, 0, "the signing request is no PEM of at most %d",
                       CSR_MAX);
    text_add(&out->text, ",\"csr\":{\"pem\":");
    quoted_json(&out->text, csr);
    text_add(&out->text, ",\"instance\":");
    quoted_json(&out->text, str_of(c->instance));
    text_add(&out->text, "}");
    out->worth = true;
    return ERR_OK;
}

enum err item_make(struct conn *c, const struct opamp_agent *m, struct item *out,
                   struct err_info *info)
{
    char id[UUID_TEXT];
    struct str instance = text_of(&m->identifying, "redoubt.instance");
    enum err e = ERR_OK;

    if (m->has_description && !str_copy(c->instance, sizeof(c->instance), instance))
        return err_set(info, ERR_LIMIT, 0, "redoubt.instance is too long");
    uuid_format(id, &c->device_id);
    text_add(&out->text, "{\"device\":\"%s\"", id);
    if (c->trust == CONN_UNKNOWN) {
        add_hello(c, &out->text);
        out->worth = true;
    }
    if (c->trust != CONN_CLONE) {
        add_state(m, &out->text);
        bool policy = add_policy(m, &out->text);
        bool packages = add_packages(c, m, &out->text);
        out->worth =
            out->worth || policy || packages || m->has_description || m->has_health;
        if (m->has_custom)
            e = add_custom(&m->custom, out, info);
    }
    if (e == ERR_OK && m->has_csr)
        e = add_csr(c, m->csr, out, info);
    text_add(&out->text, "}");
    if (e == ERR_OK && out->text.cut)
        e = err_set(info, ERR_LIMIT, 0, "the message is too big to store");
    return e;
}

void item_refresh(const struct conn *c, struct text *t)
{
    char id[UUID_TEXT];

    uuid_format(id, &c->device_id);
    text_add(t, "{\"device\":\"%s\",\"refresh\":{\"serial\":\"%s\",\"instance\":", id,
             c->certificate.serial);
    quoted_json(t, str_of(c->instance));
    text_add(t, "}}");
}
