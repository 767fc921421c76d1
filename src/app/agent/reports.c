/*
 * reports: what the agent tells the server, and how it knows that the server has it.
 */
#include "app/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "sys/log/log.h"

enum { ANSWER_MS = 15000, BAD_REQUEST_HOLD_MS = 30000, UNSENT_MAX = 128 * 1024 };

/* One message at a time is built or read: the loop has one thread. */
static struct opamp_agent out_message;
static struct opamp_server in_message;
static struct receipts receipts;
static struct report new_report;
static uint8_t encoded[OPAMP_MESSAGE_MAX], batch_buf[OPAMP_MESSAGE_MAX];

static uint64_t unix_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void trouble(struct agent *a, const char *what)
{
    (void)snprintf(a->trouble, sizeof(a->trouble), "%s", what);
}

/* ---- making reports ---- */

static void add_engine(struct opamp_attrs *to, const struct clamav_state *s)
{
    opamp_add_text(to, STR("engine.state"), s->up ? STR("running") : STR("down"));
    if (!s->up) {
        opamp_add_text(to, STR("engine.error"), str_of(s->why));
        return;
    }
    opamp_add_text(to, STR("engine.version"), str_of(s->version.engine));
    opamp_add_int(to, STR("signatures.version"), s->version.database);
    opamp_add_text(to, STR("signatures.built"), str_of(s->version.built));
    opamp_add_text(to, STR("engine.pool"), str_of(s->stats.state));
    opamp_add_int(to, STR("engine.threads"), s->stats.threads_live);
    opamp_add_int(to, STR("engine.queue"), s->stats.queue);
}

static void report_make(struct agent *a, const char *reason)
{
    struct err_info info = { 0 };
    const struct spool_counts *spool = spool_counts(a->spool);
    uint8_t random[10];
    uint64_t now = unix_us();

    tls_random(random, sizeof(random));
    /* A device without a clock believes in 1970: better a wrong time than no report. */
    now = now < REPORT_AT_MIN ? REPORT_AT_MIN : now > REPORT_AT_MAX ? REPORT_AT_MAX : now;
    new_report = (struct report){ .at_us = now };
    uuid_make(&new_report.id, now / 1000u, random);
    opamp_add_text(&new_report.attrs, STR("reason"), str_of(reason));
    opamp_add_text(&new_report.attrs, STR("agent.version"), STR(REDOUBT_VERSION));
    add_engine(&new_report.attrs, &a->engine);
    opamp_add_int(&new_report.attrs, STR("spool.pending"), (int64_t)spool->pending);
    opamp_add_int(&new_report.attrs, STR("spool.dropped"), (int64_t)spool->dropped);
    enum err e = spool_add(a->spool, &new_report, &info);
    if (e != ERR_OK) {
        a->counts.lost++;
        trouble(a, info.what);
        log_event(LOG_LEVEL_ERROR, "report_lost", log_str("why", info.what));
        return;
    }
    a->counts.made++;
    log_event(LOG_LEVEL_DEBUG, "report_made", log_str("reason", reason),
              log_u64("seq", new_report.seq));
}

static bool engine_same(const struct clamav_state *a, const struct clamav_state *b)
{
    return a->up == b->up && strcmp(a->version.engine, b->version.engine) == 0 &&
           a->version.database == b->version.database &&
           strcmp(a->version.built, b->version.built) == 0 &&
           strcmp(a->stats.state, b->stats.state) == 0;
}

void agent_engine(void *agent, const struct clamav_state *state)
{
    struct agent *a = agent;
    bool change = !a->has_told || !engine_same(state, &a->told);

    a->engine = *state;
    a->has_engine = true;
    if (!change && a->now_ms < a->report_due_ms)
        return;
    if (change)
        log_event(
            LOG_LEVEL_INFO, "engine", log_str("state", state->up ? "running" : "down"),
            log_str("version", state->version.engine),
            log_u64("signatures", state->version.database), log_str("why", state->why));
    report_make(a, !a->has_told ? "start" : change ? "change" : "periodic");
    a->told = *state;
    a->has_told = true;
    a->full_state = a->full_state || change;
    /* Kept on its grid: a late probe does not move the ones after it. */
    a->report_due_ms += a->conf.agent.report_ms;
    if (a->report_due_ms <= a->now_ms)
        a->report_due_ms = a->now_ms + a->conf.agent.report_ms;
    agent_send(a);
}

/* ---- sending ---- */

static void add_description(struct agent *a, struct opamp_agent *m)
{
    static char id[UUID_TEXT];

    uuid_format(id, &a->device_id);
    m->has_description = true;
    opamp_add_text(&m->identifying, STR("service.name"), STR("redoubt-agent"));
    opamp_add_text(&m->identifying, STR("service.version"), STR(REDOUBT_VERSION));
    opamp_add_text(&m->identifying, STR("service.instance.id"), str_of(id));
    opamp_add_text(&m->other, STR("host.name"), str_of(a->host));
    opamp_add_text(&m->other, STR("os.type"), STR("linux"));
    opamp_add_text(&m->other, STR("os.description"), str_of(a->os));
    m->has_health = true;
    m->health = (struct opamp_health){ .healthy = a->engine.up,
                                       .start_ns = a->start_unix_us * 1000u,
                                       .status_ns = unix_us() * 1000u,
                                       .count = 1 };
    m->health.status = !a->has_engine ? STR("starting")
                       : a->engine.up ? STR("protected")
                                      : STR("engine down");
    m->health.last_error = str_of(a->has_engine ? a->engine.why : "");
    m->health.at[0] = (struct opamp_component){ .name = STR("engine"),
                                                .healthy = a->engine.up,
                                                .status = m->health.status,
                                                .last_error = m->health.last_error };
    m->has_caps = true;
    m->caps.count = 1;
    m->caps.at[0] = STR(REPORT_CAPABILITY);
}

/* Completes out_message and sends it; reports: how many are in it. */
static void message_send(struct agent *a, uint32_t reports)
{
    size_t n;

    out_message.uid = a->device_id;
    out_message.sequence = ++a->sequence;
    out_message.capabilities = OPAMP_REPORTS_STATUS | OPAMP_REPORTS_HEALTH;
    if (a->full_state)
        add_description(a, &out_message);
    if (opamp_agent_encode(&out_message, encoded, sizeof(encoded), &n) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "message_too_big");
        return;
    }
    a->full_state = false;
    a->outstanding += reports;
    a->answer_due_ms = a->now_ms + ANSWER_MS;
    link_send(a->link, encoded, n);
}

struct gather {
    struct report_batch batch;
    size_t used; /* of batch_buf */
    uint64_t last_seq;
    uint32_t max;
};

/* Leaves room for the description, which may come along. */
enum { GATHER_MAX = OPAMP_MESSAGE_MAX - 8192 };
static_assert(REPORT_BYTES_MAX + 16 < GATHER_MAX, "one report always fits");

static bool gather(void *arg, uint64_t seq, struct str bytes)
{
    static uint8_t kept[GATHER_MAX];
    struct gather *g = arg;

    if (g->batch.count == g->max || g->used + bytes.n + 16 > sizeof(kept))
        return false;
    memcpy(kept + g->used, bytes.p, bytes.n);
    g->batch.at[g->batch.count++] = (struct str){ (char *)kept + g->used, bytes.n };
    g->used += bytes.n + 16; /* 16: what the encoding adds */
    g->last_seq = seq;
    return true;
}

/* The next reports of the spool as one message; false if there are none to send. */
static bool send_batch(struct agent *a)
{
    struct err_info info = { 0 };
    struct gather g = { .max = a->batch };
    size_t n;

    if (g.max > AGENT_WINDOW - a->outstanding)
        g.max = AGENT_WINDOW - a->outstanding;
    if (g.max == 0 || spool_walk(a->spool, a->sent_seq, gather, &g, &info) != ERR_OK)
        return false;
    if (g.batch.count == 0 ||
        report_batch_encode(&g.batch, batch_buf, sizeof(batch_buf), &n) != ERR_OK)
        return false;
    out_message = (struct opamp_agent){ .has_custom = true };
    out_message.custom = (struct opamp_custom){ STR(REPORT_CAPABILITY),
                                                STR(REPORT_TYPE),
                                                { (char *)batch_buf, n } };
    a->sent_seq = g.last_seq;
    message_send(a, g.batch.count);
    return true;
}

void agent_send(struct agent *a)
{
    /* After a refusal one report at a time, to find the one that is refused. */
    uint32_t window = a->batch == 1 ? 1 : AGENT_WINDOW;

    if (a->holding)
        return;
    if (a->full_state && link_state(a->link) == LINK_OPEN) {
        out_message = (struct opamp_agent){ 0 };
        message_send(a, 0);
    }
    while (link_state(a->link) == LINK_OPEN && a->outstanding < window &&
           link_unsent(a->link) < UNSENT_MAX && send_batch(a))
        ;
}

/* From the oldest report on, as if nothing had been sent. */
static void rewind_spool(struct agent *a)
{
    a->sent_seq = 0;
    a->outstanding = 0;
    a->answer_due_ms = 0;
}

void agent_hello(struct agent *a)
{
    a->counts.connects++;
    a->trouble[0] = '\0';
    a->full_state = true;
    a->holding = false;
    (void)sd_event_source_set_enabled(a->hold_timer, SD_EVENT_OFF);
    rewind_spool(a);
    agent_send(a);
}

void agent_lost(struct agent *a)
{
    rewind_spool(a);
}

void agent_goodbye(struct agent *a)
{
    if (link_state(a->link) != LINK_OPEN)
        return;
    out_message = (struct opamp_agent){ .disconnect = true };
    a->full_state = false;
    message_send(a, 0);
}

static void hold(struct agent *a, uint64_t ms)
{
    a->holding = true;
    rewind_spool(a);
    (void)sd_event_source_set_time_relative(a->hold_timer, ms * 1000u);
    (void)sd_event_source_set_enabled(a->hold_timer, SD_EVENT_ONESHOT);
}

void agent_hold_over(struct agent *a)
{
    a->holding = false;
    agent_send(a);
}

bool agent_overdue(const struct agent *a)
{
    return a->answer_due_ms != 0 && a->now_ms > a->answer_due_ms;
}

/* ---- receiving ---- */

/* One line a report that the server has, for whoever compares: written last of all. */
static void ack_log(struct agent *a)
{
    char device[UUID_TEXT], id[UUID_TEXT], buf[REPORT_BATCH_MAX * 96];
    struct text t;

    if (!a->ack_log)
        return;
    text_init(&t, buf, sizeof(buf));
    uuid_format(device, &a->device_id);
    for (uint32_t i = 0; i < receipts.count; i++) {
        if (receipts.at[i].refused.n > 0)
            continue;
        uuid_format(id, &receipts.at[i].id);
        text_add(&t, "%s %s %" PRIu64 "\n", device, id, receipts.at[i].seq);
    }
    int fd = open(a->ack_log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, buf, t.n) != (ssize_t)t.n)
        log_event(LOG_LEVEL_ERROR, "ack_log_failed", log_str("file", a->ack_log),
                  log_str("why", strerrordesc_np(errno)));
    if (fd >= 0)
        (void)close(fd);
}

static void take_receipts(struct agent *a)
{
    struct err_info info = { 0 };
    enum err e = receipts_decode(in_message.custom.data, &receipts, &info);

    if (e == ERR_OK)
        e = spool_remove(a->spool, receipts.at, receipts.count, &info);
    if (e != ERR_OK) {
        trouble(a, info.what);
        log_event(LOG_LEVEL_ERROR, "receipts_failed", log_str("why", info.what));
        link_break(a->link, "the receipts cannot be taken");
        return;
    }
    a->server_epoch = receipts.epoch;
    for (uint32_t i = 0; i < receipts.count; i++) {
        char why[160];

        if (receipts.at[i].refused.n == 0) {
            a->counts.acknowledged++;
            continue;
        }
        a->counts.refused++;
        (void)snprintf(why, sizeof(why), "%.*s", (int)receipts.at[i].refused.n,
                       receipts.at[i].refused.p);
        trouble(a, why);
        log_event(LOG_LEVEL_WARNING, "report_refused", log_u64("seq", receipts.at[i].seq),
                  log_str("why", why));
    }
    ack_log(a);
    a->outstanding -= receipts.count < a->outstanding ? receipts.count : a->outstanding;
    a->batch = a->batch < REPORT_BATCH_MAX ? a->batch + 1 : REPORT_BATCH_MAX;
}

static bool first_of(void *arg, uint64_t seq, struct str bytes)
{
    struct receipts *to = arg;

    (void)seq;
    if (report_decode(bytes, &new_report, NULL) == ERR_OK) {
        to->at[0] = (struct receipt){ .id = new_report.id };
        to->count = 1;
    }
    return false;
}

/*
 * The server does not understand a message of ours.  If it held a single report, that one
 * will never be taken: give it up, or it would block all others for ever.
 */
static void bad_request(struct agent *a, const char *why)
{
    struct err_info info = { 0 };
    bool alone = a->batch == 1 && a->outstanding == 1;

    a->counts.bad_requests++;
    log_event(LOG_LEVEL_ERROR, "server_refuses", log_str("why", why));
    if (alone) {
        receipts = (struct receipts){ 0 };
        if (spool_walk(a->spool, 0, first_of, &receipts, &info) == ERR_OK &&
            spool_remove(a->spool, receipts.at, receipts.count, &info) == ERR_OK)
            a->counts.refused += receipts.count;
    }
    a->batch = 1;
    hold(a, alone ? 1000 : BAD_REQUEST_HOLD_MS);
}

static void take_error(struct agent *a)
{
    char why[160];
    uint64_t ms = in_message.retry_ns / 1000000u;
    uint32_t jitter;

    (void)snprintf(why, sizeof(why), "%.*s",
                   (int)(in_message.error_text.n < 150 ? in_message.error_text.n : 150),
                   in_message.error_text.p ? in_message.error_text.p : "");
    trouble(a, why);
    if (in_message.error == OPAMP_ERR_BAD_REQUEST) {
        bad_request(a, why);
        return;
    }
    a->counts.unavailable++;
    log_event(LOG_LEVEL_INFO, "server_unavailable", log_str("why", why),
              log_u64("retry_ms", ms));
    if (a->holding)
        return;           /* answers to what was on its way already */
    a->full_state = true; /* it may have been in what was not stored */
    tls_random(&jitter, sizeof(jitter));
    ms = ms < 100 ? 100 : ms > AGENT_HOLD_MAX_MS ? AGENT_HOLD_MAX_MS : ms;
    hold(a, ms + jitter % (ms / 2));
}

void agent_message(struct agent *a, struct str bytes)
{
    struct err_info info = { 0 };

    if (opamp_server_decode(bytes, &in_message, &info) != ERR_OK) {
        link_break(a->link, info.what);
        return;
    }
    if (!uuid_eq(&in_message.uid, &a->device_id)) {
        log_event(LOG_LEVEL_WARNING, "answer_to_another_device");
        return;
    }
    if (in_message.has_error) {
        take_error(a);
        return;
    }
    a->full_state = a->full_state || (in_message.flags & OPAMP_REPORT_FULL_STATE);
    if (in_message.has_custom &&
        str_is(in_message.custom.capability, REPORT_CAPABILITY) &&
        str_is(in_message.custom.type, RECEIPT_TYPE))
        take_receipts(a);
    a->answer_due_ms = a->outstanding > 0 ? a->now_ms + ANSWER_MS : 0;
    agent_send(a);
}
