/*
 * reports: what the engine is like, told until the server has it.
 */
#include "app/agent/agent.h"
#include "app/agent/protect.h"
#include "app/agent/upgrade.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "sys/log/log.h"

/* One at a time is built or read: the loop has one thread. */
static struct receipts receipts;
static struct report new_report;
static uint8_t batch_buf[OPAMP_MESSAGE_MAX];

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
    uint64_t now = agent_unix_us();

    tls_random(random, sizeof(random));
    new_report = (struct report){ .at_us = now };
    uuid_make(&new_report.id, now / 1000u, random);
    opamp_add_text(&new_report.attrs, STR("reason"), str_of(reason));
    opamp_add_text(&new_report.attrs, STR("agent.version"), str_of(agent_version()));
    add_engine(&new_report.attrs, &a->engine);
    opamp_add_int(&new_report.attrs, STR("spool.pending"), (int64_t)spool->pending);
    opamp_add_int(&new_report.attrs, STR("spool.dropped"), (int64_t)spool->dropped);
    enum err e = spool_add(a->spool, &new_report, &info);
    if (e != ERR_OK) {
        a->counts.lost++;
        agent_trouble(a, info.what);
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
    protect_engine(a->protect, state);
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
    a->sent_seq = g.last_seq;
    a->outstanding += g.batch.count;
    a->sole = g.batch.count == 1 ? SOLE_REPORT : SOLE_NONE;
    talk_send(a, &(struct opamp_custom){ STR(REPORT_CAPABILITY),
                                         STR(REPORT_TYPE),
                                         { (char *)batch_buf, n } });
    return true;
}

void reports_send(struct agent *a)
{
    while (talk_open(a) && a->outstanding < AGENT_WINDOW && send_batch(a))
        ;
}

void reports_rewind(struct agent *a)
{
    a->sent_seq = 0;
    a->outstanding = 0;
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

enum err reports_receipts(struct agent *a, struct str data, struct err_info *info)
{
    enum err e = receipts_decode(data, &receipts, info);

    if (e == ERR_OK)
        e = spool_remove(a->spool, receipts.at, receipts.count, info);
    if (e != ERR_OK)
        return e;
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
        agent_trouble(a, why);
        log_event(LOG_LEVEL_WARNING, "report_refused", log_u64("seq", receipts.at[i].seq),
                  log_str("why", why));
    }
    ack_log(a);
    a->outstanding -= receipts.count < a->outstanding ? receipts.count : a->outstanding;
    if (a->careful > 0)
        a->careful--;
    else if (a->batch < REPORT_BATCH_MAX)
        a->batch++;
    return ERR_OK;
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

void reports_give_up(struct agent *a)
{
    struct err_info info = { 0 };

    receipts = (struct receipts){ 0 };
    if (spool_walk(a->spool, 0, first_of, &receipts, &info) == ERR_OK &&
        spool_remove(a->spool, receipts.at, receipts.count, &info) == ERR_OK)
        a->counts.refused += receipts.count;
}
