/*
 * device: one message of a device on its way: taken, exchanged with the DBMS, answered
 * once that is committed.
 */
#include "app/server/answer.h"
#include "app/server/item.h"
#include "app/server/policies.h"
#include "app/server/push.h"
#include "sys/log/log.h"
#include "wire/json.h"
#include "wire/report.h"

enum {
    RETRY_SOON_MS = 500,      /* the DBMS session is on its way */
    RETRY_BUSY_MS = 2000,     /* too much waits */
    RETRY_PENDING_MS = 60000, /* an administrator has to look at it */
    RETRY_FLOOD_MS = 5000,
    FLOOD_TOLD_MS = 60000,
    TOKEN_BYTES = 4096, /* of a message cost one token more */
    REPLY_MAX = 8192,
    REFRESH_MAX = 640
};

static_assert(REPORT_BATCH_MAX * 64 + 1024 <= REPLY_MAX, "receipts without reasons fit");
static_assert(6 * sizeof(((struct conn *)0)->instance) + TLS_SERIAL + UUID_TEXT + 64 <=
                  REFRESH_MAX,
              "a question that does not fit would keep all those behind it");

/* An AgentToServer, or a question about a device, that waits for its commit. */
struct request {
    LIST_ENTRY(request) all, mine; /* mine: of its connection */
    struct conn *conn;             /* NULL: the device has gone */
    struct uuid uid;               /* as the message has it */
    uint64_t flags;
    bool has_receipts, has_events;
    bool hello;   /* it asks who the device is */
    bool refresh; /* unasked: there is nothing to answer */
    char refused[96];
    struct receipts receipts;
};

/* Big, and used by one message at a time: the loop has one thread. */
static struct opamp_agent message;
static struct item item;
static char item_buf[STORE_ITEM_MAX + 1];

void device_bad(struct conn *c, const char *why)
{
    c->server->counts.bad_messages++;
    log_event(LOG_LEVEL_WARNING, "device_bad_message", log_str("peer", c->peer),
              log_str("why", why));
    answer_error(c, &c->device_id, OPAMP_ERR_BAD_REQUEST, why, 0, false);
    if (++c->bad >= CONN_BAD_MAX)
        conn_goodbye(c, WS_CLOSE_POLICY, "too many bad messages");
}

/* --- how much a device may say ---------------------------------------------------------- */

/* Once a minute the event of a device that is held back. */
static void flood_tell(struct conn *c)
{
    struct server *s = c->server;
    char id[UUID_TEXT], text[160];
    struct text t;

    if (c->flood_told_ms != 0 && s->now_ms - c->flood_told_ms < FLOOD_TOLD_MS)
        return;
    c->flood_told_ms = s->now_ms;
    log_event(LOG_LEVEL_WARNING, "device_flood", log_str("peer", c->peer),
              log_u64("refused", c->flooded));
    uuid_format(id, &c->device_id);
    text_init(&t, text, sizeof(text));
    text_add(&t, "{\"device\":\"%s\",\"flood\":%u}", id, c->flooded);
    if (c->trust != CONN_ADMITTED ||
        store_add(s->store, 0, (struct str){ t.p, t.n }) != ERR_OK)
        c->flood_told_ms = 0; /* the next time */
}

/* False: it has said too much; told and counted. */
static bool flood_allows(struct conn *c, size_t bytes)
{
    struct server *s = c->server;
    uint32_t cost = 1 + (uint32_t)(bytes / TOKEN_BYTES);
    uint64_t more = (s->now_ms - c->tokens_ms) * FLOOD_PER_S / 1000u;

    if (more > 0) {
        c->tokens =
            c->tokens + more > FLOOD_BURST ? FLOOD_BURST : c->tokens + (uint32_t)more;
        c->tokens_ms = s->now_ms;
    }
    if (c->tokens >= cost) {
        c->tokens -= cost;
        if (c->tokens == FLOOD_BURST - cost)
            c->flooded = 0;
        return true;
    }
    s->counts.floods++;
    c->flooded++;
    flood_tell(c);
    if (c->flooded >= FLOOD_CLOSE)
        conn_goodbye(c, WS_CLOSE_POLICY, "the device floods");
    else
        answer_error(c, &c->device_id, OPAMP_ERR_UNAVAILABLE,
                     "too many messages: the device is held back", RETRY_FLOOD_MS, true);
    return false;
}

/*
 * When a device that could not be served is to come again: one after the other, not all at
 * once, however many there are.
 */
static void send_away(struct conn *c, const struct uuid *uid, const char *why,
                      uint32_t soonest_ms)
{
    struct server *s = c->server;

    if (c->retry_ms < s->now_ms + soonest_ms) {
        if (s->retry_ms < s->now_ms + soonest_ms)
            s->retry_ms = s->now_ms + soonest_ms;
        c->retry_ms = s->retry_ms;
        if (s->retry_ms < s->now_ms + RETRY_MAX_MS)
            s->retry_ms += 1000 / RETRY_PER_S;
    }
    answer_error(c, uid, OPAMP_ERR_UNAVAILABLE, why, (uint32_t)(c->retry_ms - s->now_ms),
                 false);
}

/* --- requests --------------------------------------------------------------------------- */

static struct request *request_new(struct conn *c)
{
    struct request *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->conn = c;
    r->uid = c->device_id;
    c->requests++;
    LIST_INSERT_HEAD(&c->own, r, mine);
    LIST_INSERT_HEAD(&c->server->requests, r, all);
    return r;
}

static void request_free(struct request *r)
{
    LIST_REMOVE(r, all);
    if (r->conn) {
        LIST_REMOVE(r, mine);
        r->conn->requests--;
    }
    free(r);
}

/* ack: the JSON of com.redoubt.events/v1, or empty. */
static void request_answer(struct request *r, struct str ack)
{
    struct opamp_server a = { .uid = r->uid, .flags = r->flags };
    uint8_t buf[REPLY_MAX];
    size_t n;

    if (r->has_receipts) {
        r->receipts.epoch = r->conn->server->epoch;
        if (receipts_encode(&r->receipts, buf, sizeof(buf), &n) != ERR_OK) {
            conn_close(r->conn, "receipts do not fit");
            return;
        }
        a.has_custom = true;
        a.custom = (struct opamp_custom){ STR(REPORT_CAPABILITY),
                                          STR(RECEIPT_TYPE),
                                          { (char *)buf, n } };
    } else if (ack.n > 0) {
        a.has_custom = true;
        a.custom = (struct opamp_custom){ STR(EVENTS_CAPABILITY), STR("ack"), ack };
    }
    answer_send(r->conn, &a);
}

/* --- what the DBMS answers -------------------------------------------------------------- */

/* JSON text of a PEM: its only escapes are line ends. */
static char *pem_of(const struct json_member *m)
{
    char *out = m->kind == JSON_STRING ? malloc(m->raw.n + 1) : NULL;
    size_t n = 0;

    for (size_t i = 0; out && i < m->raw.n; i++) {
        bool line_end = m->raw.p[i] == '\\' && i + 1 < m->raw.n && m->raw.p[i + 1] == 'n';

        out[n++] = line_end ? '\n' : m->raw.p[i];
        i += line_end;
    }
    if (out)
        out[n] = '\0';
    return out;
}

static void certificate_take(struct conn *c, const struct json_object *o)
{
    const struct json_member *m = json_find(o, "certificate");

    free(c->renewed);
    c->renewed = m ? pem_of(m) : NULL;
}

/* What the device is to have; told with the next answer if it is something else. */
static void package_take(struct conn *c, const struct json_object *o)
{
    const struct json_member *m = json_find(o, "package");

    if (!m)
        return;
    free(c->package);
    c->package = m->kind == JSON_OBJECT ? strndup(m->raw.p, m->raw.n) : NULL;
}

/* How far each stream of events is stored: the device may forget what is before. */
static void streams_tell(struct conn *c, const struct json_member *streams)
{
    struct json_member m;
    struct json_walk w;

    if (!streams || streams->kind != JSON_OBJECT)
        return;
    json_walk(&w, streams);
    while (json_next(&w, &m)) {
        char text[128];
        struct text t;

        text_init(&t, text, sizeof(text));
        text_add(&t, "{\"stream\":\"%.*s\",\"through\":%.*s}", (int)m.key.n, m.key.p,
                 (int)m.raw.n, m.raw.p);
        if (!t.cut && m.kind == JSON_NUMBER)
            answer_letter(c, CUSTOM_EVENTS, "ack", (struct str){ t.p, t.n });
    }
}

static void refuse_device(struct conn *c, const struct uuid *uid, const char *why)
{
    log_event(LOG_LEVEL_WARNING, "device_refused", log_str("peer", c->peer),
              log_str("why", why));
    c->server->counts.refused_devices++;
    if (c->state == CONN_HTTP && c->answering) {
        struct opamp_server a = { .uid = *uid,
                                  .has_error = true,
                                  .error = OPAMP_ERR_BAD_REQUEST,
                                  .error_text = str_of(why) };
        uint8_t buf[512];
        size_t n;

        c->keep = false;
        if (opamp_server_encode(&a, buf, sizeof(buf), &n) == ERR_OK)
            http_refuse(c, "403 Forbidden", 0, buf + OPAMP_HEADER_BYTES,
                        n - OPAMP_HEADER_BYTES);
    }
    if (c->state < CONN_GOODBYE)
        conn_goodbye(c, WS_CLOSE_POLICY, why);
}

static void admitted(struct conn *c, const struct json_object *o, bool first)
{
    const struct json_member *runs = json_find(o, "runs");
    char text[UUID_TEXT];
    struct uuid group = { 0 };

    c->trust = CONN_ADMITTED;
    if (json_get_text(o, "group", text, sizeof(text)) && uuid_parse(&group, str_of(text)))
        c->group = group;
    if (json_get_text(o, "policy_hash", (char[65]){ 0 }, 65) &&
        !policies_find(c->server->policies, &c->group))
        policies_read(c->server); /* newer than what is in memory */
    certificate_take(c, o);
    if (first) {
        if (!json_get_text(o, "at", c->since, sizeof(c->since)))
            c->since[0] = '\0';
        answer_session(c);
        answer_licence(c);
        streams_tell(c, json_find(o, "streams"));
    }
    if (runs && runs->kind == JSON_ARRAY)
        answer_letter_list(c, CUSTOM_TASKS, "assign", "runs", runs->raw);
}

/* The answer of x_hello.  False: the request has been answered with a refusal. */
static bool hello_take(struct conn *c, const struct request *r, struct str raw)
{
    struct json_object o;
    char state[16] = "", text[UUID_TEXT];

    if (json_load(&o, raw) != ERR_OK || !json_get_text(&o, "state", state, sizeof(state)))
        state[0] = '\0';
    if (strcmp(state, "ok") == 0) {
        admitted(c, &o, r->hello);
    } else if (strcmp(state, "clone") == 0 &&
               json_get_text(&o, "new_id", text, sizeof(text)) &&
               uuid_parse(&c->new_id, str_of(text))) {
        c->trust = CONN_CLONE;
        certificate_take(c, &o);
    } else if (strcmp(state, "revoked") == 0) {
        refuse_device(c, &r->uid, "the device or its certificate is revoked");
        return false;
    } else {
        c->trust = CONN_UNKNOWN;
        if (!r->refresh)
            answer_error(c, &r->uid, OPAMP_ERR_UNAVAILABLE,
                         "the device waits for approval", RETRY_PENDING_MS, false);
        return false;
    }
    return true;
}

/* What x_tasks wants the device to do. */
static void tasks_take(struct conn *c, const struct json_object *o)
{
    static const char *const orders[][2] = {
        { "runs", "assign" },
        { "cancel", "cancel" },
        { "pause", "pause" },
        { "resume", "resume" },
    };

    for (size_t i = 0; i < LEN(orders); i++) {
        const struct json_member *m = json_find(o, orders[i][0]);

        if (m && m->kind == JSON_ARRAY)
            answer_letter_list(c, CUSTOM_TASKS, orders[i][1], "runs", m->raw);
    }
}

/* x_csr and x_events may refuse the message itself; NULL: they did not. */
static const char *refusal_of(const struct json_object *o)
{
    static const char *const parts[][2] = { { "csr", "refused" }, { "events", "error" } };
    static char why[160];
    struct json_object part;

    for (size_t i = 0; i < LEN(parts); i++) {
        const struct json_member *m = json_find(o, parts[i][0]);

        if (m && m->kind == JSON_OBJECT && json_load(&part, m->raw) == ERR_OK &&
            json_find(&part, parts[i][1])) {
            if (!json_get_text(&part, parts[i][1], why, sizeof(why)))
                (void)snprintf(why, sizeof(why), "%s refused", parts[i][0]);
            return why;
        }
    }
    return NULL;
}

static void committed(struct request *r, struct str answer)
{
    struct conn *c = r->conn;
    struct json_object o = { 0 }, part;
    const struct json_member *m;
    const char *why;

    if (answer.n > 0 && json_load(&o, answer) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "exchange_answer_wrong", log_u64("bytes", answer.n));
        o.count = 0;
    }
    m = json_find(&o, "hello");
    if ((r->hello || r->refresh) && !hello_take(c, r, m ? m->raw : STR("")))
        return;
    if ((m = json_find(&o, "csr")) && json_load(&part, m->raw) == ERR_OK &&
        json_find(&part, "certificate"))
        certificate_take(c, &part);
    package_take(c, &o);
    tasks_take(c, &o);
    if ((why = refusal_of(&o))) {
        device_bad(c, why);
        return;
    }
    m = json_find(&o, "events");
    if (!r->refresh)
        request_answer(r, m && r->has_events ? m->raw : STR(""));
    else if (c->state == CONN_WS) {
        answer_letters(c);
        if (c->state == CONN_WS)
            answer_offers(c);
    }
}

/* The DBMS takes none of it, now or later: the device must not send it again. */
static void refused(struct request *r, const char *why)
{
    struct conn *c = r->conn;

    if (!r->has_receipts || c->trust != CONN_ADMITTED) {
        device_bad(c, why);
        return;
    }
    c->server->counts.refused_reports += r->receipts.count;
    (void)snprintf(r->refused, sizeof(r->refused), "%.90s", why);
    for (uint32_t i = 0; i < r->receipts.count; i++)
        r->receipts.at[i].refused = str_of(r->refused);
    request_answer(r, STR(""));
}

/* It has gone before it was told that it is connected. */
static void gone_before(struct server *s, const struct request *r, struct str answer)
{
    struct json_object o, hello;
    const struct json_member *m;
    char state[16], at[sizeof(((struct conn *)0)->since)];

    if (json_load(&o, answer) == ERR_OK && (m = json_find(&o, "hello")) &&
        json_load(&hello, m->raw) == ERR_OK &&
        json_get_text(&hello, "state", state, sizeof(state)) &&
        strcmp(state, "ok") == 0 && json_get_text(&hello, "at", at, sizeof(at)))
        push_gone_before(s, &r->uid, at);
}

void device_done(void *server, uint64_t ticket, const struct store_done *done)
{
    struct request *r = (struct request *)(uintptr_t)ticket;

    if (ticket == 0 || push_done(server, ticket, done->outcome))
        return;
    struct conn *c = r->conn;
    if (c && r->hello && c->trust == CONN_ASKED)
        c->trust = CONN_UNKNOWN; /* until the answer says more */
    if (c && c->state < CONN_GOODBYE) {
        if (done->outcome == STORE_COMMITTED)
            committed(r, done->answer);
        else if (r->refresh)
            push_todo(c, TODO_REFRESH);
        else if (done->outcome == STORE_REFUSED)
            refused(r, done->why);
        else
            send_away(c, &r->uid, done->why, RETRY_SOON_MS);
    }
    if (!c && r->hello && done->outcome == STORE_COMMITTED)
        gone_before(server, r, done->answer);
    request_free(r);
    if (c)
        conn_resume(c);
}

/* --- a message -------------------------------------------------------------------------- */

/* What the message tells of the device itself. */
static void note_told(struct conn *c, const struct opamp_agent *m)
{
    const struct opamp_verdict *config = &m->config_status,
                               *settings = &m->settings_status;

    if (m->capabilities != 0)
        c->capabilities = m->capabilities;
    c->described = c->described || m->has_description;
    if (m->has_caps) {
        uint8_t custom = answer_customs(&m->caps);

        if (c->trust == CONN_ADMITTED && (custom & ~c->custom))
            push_todo(c, TODO_REFRESH); /* what it could not be told before */
        c->custom = custom;
    }
    if (m->has_config_status) {
        c->config_known = true;
        memset(c->config_hash, 0, POLICY_HASH);
        if (config->hash.n == POLICY_HASH)
            memcpy(c->config_hash, config->hash.p, POLICY_HASH);
    }
    for (uint32_t i = 0; m->has_packages && i < m->packages.count; i++)
        answer_package_told(c, &m->packages.at[i]);
    if (m->has_settings_status && settings->hash.n == POLICY_HASH) {
        c->settings_known = true;
        memcpy(c->settings_hash, settings->hash.p, POLICY_HASH);
    }
}

/*
 * Is the full state wanted?  At a pace: after a switch everybody's would be.  What finds no
 * token is asked for a little later.
 */
static uint64_t full_state_flag(struct conn *c, const struct opamp_agent *m)
{
    struct server *s = c->server;
    bool gap = c->sequence_known ? m->sequence != c->sequence + 1 : !m->has_description;

    c->sequence_known = true;
    c->sequence = m->sequence;
    if (!gap)
        return 0;
    if (s->now_ms - s->full_ms >= 1000) {
        s->full_ms = s->now_ms;
        s->full_count = 0;
    }
    if (s->full_count < FULL_PER_S || c->state == CONN_HTTP) {
        s->full_count++;
        return OPAMP_REPORT_FULL_STATE;
    }
    push_todo(c, TODO_FULL);
    return 0;
}

static void submit(struct conn *c, struct request *r)
{
    struct err_info info = { 0 };
    char why[sizeof(info.what)];

    memset(&item, 0, sizeof(item));
    text_init(&item.text, item_buf, sizeof(item_buf));
    enum err e = item_make(c, &message, &item, &info);
    if (e != ERR_OK) {
        (void)snprintf(why, sizeof(why), "%s", info.what);
        request_free(r);
        device_bad(c, why);
        return;
    }
    r->hello = c->trust == CONN_UNKNOWN;
    r->has_events = item.has_events;
    if ((r->has_receipts = item.has_receipts)) {
        r->receipts = item.receipts;
        memcpy(r->refused, item.refused, sizeof(r->refused));
        for (uint32_t i = 0; i < r->receipts.count; i++)
            if (r->receipts.at[i].refused.n > 0) {
                r->receipts.at[i].refused = str_of(r->refused);
                c->server->counts.refused_reports++;
            }
    }
    if (!item.worth) {
        push_seen(c);
        request_answer(r, STR(""));
        request_free(r);
        return;
    }
    e = store_add(c->server->store, (uint64_t)(uintptr_t)r,
                  (struct str){ item.text.p, item.text.n });
    if (e == ERR_OK) {
        if (r->hello)
            c->trust = CONN_ASKED;
        return;
    }
    request_free(r);
    if (e == ERR_STATE)
        send_away(c, &message.uid, "the database is away", RETRY_SOON_MS);
    else
        send_away(c, &message.uid, "too many reports wait", RETRY_BUSY_MS);
}

/* May the message come under this uid?  False: answered. */
static bool uid_fits(struct conn *c, const struct opamp_agent *m)
{
    struct opamp_server a = { .uid = m->uid,
                              .has_new_uid = true,
                              .new_uid = c->device_id };

    if (uuid_eq(&m->uid, &c->device_id) ||
        (c->trust == CONN_CLONE && uuid_eq(&m->uid, &c->new_id)))
        return true;
    if (!(m->flags & OPAMP_REQUEST_INSTANCE_UID)) {
        device_bad(c, "instance_uid is not the device id of the certificate");
        return false;
    }
    answer_send(c, &a); /* it has none yet: it is the certificate's */
    return false;
}

void device_message(struct conn *c, struct str bytes)
{
    struct err_info info = { 0 };
    struct request *r;

    if (!flood_allows(c, bytes.n))
        return;
    if (opamp_agent_body_decode(bytes, &message, &info) != ERR_OK) {
        device_bad(c, info.what);
        return;
    }
    if (!uid_fits(c, &message))
        return;
    if (!(r = request_new(c))) {
        send_away(c, &message.uid, "out of memory", RETRY_BUSY_MS);
        return;
    }
    r->uid = message.uid;
    note_told(c, &message);
    r->flags = full_state_flag(c, &message);
    submit(c, r);
}

bool device_refresh(struct conn *c)
{
    struct request *r = store_busy(c->server->store) ? NULL : request_new(c);
    char text[REFRESH_MAX];
    struct text t;

    if (!r)
        return false;
    r->refresh = true;
    text_init(&t, text, sizeof(text));
    item_refresh(c, &t);
    if (!t.cut && store_add(c->server->store, (uint64_t)(uintptr_t)r,
                            (struct str){ t.p, t.n }) == ERR_OK)
        return true;
    request_free(r);
    return false;
}

void device_gone(struct conn *c)
{
    struct request *r;

    while ((r = LIST_FIRST(&c->own))) {
        LIST_REMOVE(r, mine);
        r->conn = NULL;
    }
    c->requests = 0;
}

void device_forget_all(struct server *s)
{
    struct request *r;

    while ((r = LIST_FIRST(&s->requests)))
        request_free(r);
}
