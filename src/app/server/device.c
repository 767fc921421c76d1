/*
 * device: what a device says, made into an item of the DBMS session, and the answer that
 * goes out once that is committed.
 */
#include "app/server/conn.h"

#include "sys/log/log.h"
#include "wire/report.h"

enum {
    RETRY_SOON_MS = 500,  /* the DBMS session is on its way */
    RETRY_BUSY_MS = 2000, /* too much waits */
    REPLY_MAX = 8192
};

static_assert(REPORT_BATCH_MAX * 64 + 1024 <= REPLY_MAX, "receipts without reasons fit");

/* An AgentToServer that waits for its commit, with the answer that it will get. */
struct request {
    LIST_ENTRY(request) all, mine; /* mine: of its connection */
    struct conn *conn;             /* NULL: the device has gone */
    struct receipts receipts;
    char refused[96]; /* why a report was refused; receipts point here */
    bool has_receipts;
    struct opamp_server answer; /* custom.data is filled when it is sent */
};

/* Big, and used by one message at a time: the loop has one thread. */
static struct opamp_agent message;
static struct report one_report;
static char item_buf[STORE_ITEM_MAX + 1];

static void send_answer(struct conn *c, const struct opamp_server *answer)
{
    uint8_t buf[2 * REPLY_MAX];
    size_t n;

    if (opamp_server_encode(answer, buf, sizeof(buf), &n) != ERR_OK) {
        conn_close(c, "an answer does not fit");
        return;
    }
    c->server->counts.answered++;
    conn_send(c, buf, n);
}

static void send_error(struct conn *c, const struct uuid *uid, enum opamp_error error,
                       const char *why, uint32_t retry_ms)
{
    struct opamp_server answer = { .uid = *uid,
                                   .has_error = true,
                                   .error = error,
                                   .error_text = str_of(why),
                                   .retry_ns = (uint64_t)retry_ms * 1000000u };

    if (error == OPAMP_ERR_UNAVAILABLE)
        c->server->counts.unavailable++;
    send_answer(c, &answer);
}

/* A message that cannot be taken: told, counted, and not for ever. */
static void bad_message(struct conn *c, const char *why)
{
    c->server->counts.bad_messages++;
    log_event(LOG_LEVEL_WARNING, "device_bad_message", log_str("peer", c->peer),
              log_str("why", why));
    send_error(c, &c->device_id, OPAMP_ERR_BAD_REQUEST, why, 0);
    if (++c->bad >= CONN_BAD_MAX)
        conn_goodbye(c, WS_CLOSE_POLICY, "too many bad messages");
}

static void request_send(struct request *r)
{
    uint8_t buf[REPLY_MAX];
    size_t n;

    if (r->has_receipts) {
        r->receipts.epoch = r->conn->server->epoch;
        if (receipts_encode(&r->receipts, buf, sizeof(buf), &n) != ERR_OK) {
            conn_close(r->conn, "receipts do not fit");
            return;
        }
        r->answer.has_custom = true;
        r->answer.custom = (struct opamp_custom){ STR(REPORT_CAPABILITY),
                                                  STR(RECEIPT_TYPE),
                                                  { (char *)buf, n } };
    }
    send_answer(r->conn, &r->answer);
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

/* The host.name that the device gives itself, or nothing. */
static struct str name_of(const struct opamp_agent *m)
{
    for (uint32_t i = 0; i < m->other.count; i++)
        if (str_is(m->other.at[i].key, "host.name") &&
            m->other.at[i].kind == OPAMP_STRING)
            return m->other.at[i].text;
    return STR("");
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
static enum err add_reports(struct text *t, struct request *r, struct str data,
                            uint32_t *stored, struct err_info *info)
{
    static const struct uuid none;
    struct report_batch batch;
    enum err e = report_batch_decode(data, &batch, info);

    if (e != ERR_OK)
        return e;
    text_add(t, ",\"reports\":[");
    for (uint32_t i = 0; i < batch.count; i++) {
        struct receipt *to = &r->receipts.at[r->receipts.count];

        *to = (struct receipt){ 0 };
        e = report_decode(batch.at[i], &one_report, info);
        if (e != ERR_OK && uuid_eq(&one_report.id, &none))
            return e;
        to->id = one_report.id;
        to->seq = one_report.seq;
        if (e != ERR_OK) {
            (void)snprintf(r->refused, sizeof(r->refused), "%.90s",
                           info ? info->what : "");
            to->refused = str_of(r->refused);
        } else {
            add_report(t, (*stored)++ == 0, &one_report);
        }
        r->receipts.count++;
    }
    text_add(t, "]");
    return ERR_OK;
}

/* The item for redoubt.device_exchange; *worth: is there anything to store? */
static enum err make_item(struct text *t, struct request *r, bool *worth,
                          struct err_info *info)
{
    const struct opamp_agent *m = &message;
    char id[UUID_TEXT];
    uint32_t reports = 0;
    enum err e = ERR_OK;

    uuid_format(id, &r->conn->device_id);
    text_add(t, "{\"device\":\"%s\"", id);
    if (m->has_description) {
        text_add(t, ",\"name\":");
        quoted_json(t, name_of(m));
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
    if (m->has_custom && str_is(m->custom.capability, REPORT_CAPABILITY)) {
        if (!str_is(m->custom.type, REPORT_TYPE))
            return err_set(info, ERR_INVALID, 0, "custom message of an unknown type");
        r->has_receipts = true;
        e = add_reports(t, r, m->custom.data, &reports, info);
    }
    text_add(t, "}");
    if (e == ERR_OK && t->cut)
        e = err_set(info, ERR_LIMIT, 0, "the message is too big to store");
    *worth = m->has_description || m->has_health || reports > 0;
    return e;
}

/* Capabilities are told in the first answer of a connection. */
static void greet(struct conn *c, struct opamp_server *answer)
{
    const struct opamp_agent *m = &message;
    bool gap = c->sequence_known ? m->sequence != c->sequence + 1 : !m->has_description;

    answer->uid = c->device_id;
    if (gap)
        answer->flags = OPAMP_REPORT_FULL_STATE;
    if (!c->greeted) {
        answer->capabilities = OPAMP_ACCEPTS_STATUS;
        answer->has_caps = true;
        answer->caps.count = 1;
        answer->caps.at[0] = STR(REPORT_CAPABILITY);
    }
    c->greeted = c->sequence_known = true;
    c->sequence = m->sequence;
}

static void submit(struct conn *c, struct request *r)
{
    struct err_info info = { 0 };
    struct text t;
    bool worth = false;
    char why[sizeof(info.what)];

    text_init(&t, item_buf, sizeof(item_buf));
    enum err e = make_item(&t, r, &worth, &info);
    if (e != ERR_OK) {
        (void)snprintf(why, sizeof(why), "%s", info.what);
        request_free(r);
        bad_message(c, why);
        return;
    }
    for (uint32_t i = 0; i < r->receipts.count; i++)
        c->server->counts.refused_reports += r->receipts.at[i].refused.n > 0;
    if (!worth) {
        request_send(r);
        request_free(r);
        return;
    }
    e = store_add(c->server->store, (uint64_t)(uintptr_t)r, (struct str){ t.p, t.n });
    if (e == ERR_OK)
        return;
    request_free(r);
    send_error(c, &c->device_id, OPAMP_ERR_UNAVAILABLE,
               e == ERR_STATE ? "the database is away" : "too many reports wait",
               e == ERR_STATE ? RETRY_SOON_MS : RETRY_BUSY_MS);
}

void device_message(struct conn *c, struct str bytes)
{
    struct err_info info = { 0 };
    struct request *r;

    if (opamp_agent_decode(bytes, &message, &info) != ERR_OK) {
        bad_message(c, info.what);
        return;
    }
    if (!uuid_eq(&message.uid, &c->device_id)) {
        bad_message(c, "instance_uid is not the device id of the certificate");
        return;
    }
    if (!(r = calloc(1, sizeof(*r)))) {
        send_error(c, &c->device_id, OPAMP_ERR_UNAVAILABLE, "out of memory",
                   RETRY_BUSY_MS);
        return;
    }
    r->conn = c;
    c->requests++;
    LIST_INSERT_HEAD(&c->own, r, mine);
    LIST_INSERT_HEAD(&c->server->requests, r, all);
    greet(c, &r->answer);
    submit(c, r);
}

void device_done(void *server, uint64_t ticket, const struct store_done *done)
{
    enum store_outcome outcome = done->outcome;
    const char *why = done->why;
    struct request *r = (struct request *)(uintptr_t)ticket;
    struct conn *c = r->conn;

    (void)server;
    if (c && outcome == STORE_COMMITTED) {
        request_send(r);
    } else if (c && outcome == STORE_REFUSED && r->has_receipts) {
        /* The DBMS takes none of it, now or later: the device must not send it again. */
        c->server->counts.refused_reports += r->receipts.count;
        (void)snprintf(r->refused, sizeof(r->refused), "%.90s", why);
        for (uint32_t i = 0; i < r->receipts.count; i++)
            r->receipts.at[i].refused = str_of(r->refused);
        request_send(r);
    } else if (c) {
        send_error(c, &c->device_id,
                   outcome == STORE_REFUSED ? OPAMP_ERR_BAD_REQUEST
                                            : OPAMP_ERR_UNAVAILABLE,
                   why, outcome == STORE_REFUSED ? 0 : RETRY_SOON_MS);
    }
    request_free(r);
    if (c)
        conn_resume(c);
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
