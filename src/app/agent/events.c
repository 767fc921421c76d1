/*
 * events: stored first, then sent in order, forgotten when acknowledged.
 */
#include <inttypes.h>

#include "app/agent/agent.h"
#include "sys/log/log.h"

enum { BATCH_BYTES = 48 * 1024 };

static const char *const severities[EVENT_SEVERITIES] = { "info", "warning", "error",
                                                          "critical" };

static enum event_severity severity_of(const char *name)
{
    for (int i = 0; i < EVENT_SEVERITIES; i++)
        if (strcmp(severities[i], name) == 0)
            return (enum event_severity)i;
    return EVENT_SEV_INFO;
}

char *event_text(const char *kind, const char *severity, json_t *data)
{
    json_t *event = json_pack("{s:I, s:s, s:s}", "at", (json_int_t)agent_unix_us(),
                              "kind", kind, "severity", severity);

    if (!event) {
        json_decref(data);
        return NULL;
    }
    (void)json_object_set_new(event, "data", data ? data : json_object());
    char *text = json_dumps(event, JSON_COMPACT);
    if (text &&
        strlen(text) > EVENT_BYTES_MAX) { /* better without words than not at all */
        free(text);
        (void)json_object_set_new(event, "data", json_pack("{s:b}", "cut", 1));
        text = json_dumps(event, JSON_COMPACT);
    }
    json_decref(event);
    return text;
}

static enum err store(struct agent *a, enum event_stream stream,
                      enum event_severity severity, const char *body,
                      struct err_info *info)
{
    struct event_add add = { .stream = stream,
                             .severity = severity,
                             .body = str_of(body) };

    return event_spool_add(a->spool, &add, NULL, info);
}

/* The disk does not take it: memory does, as long as there is room. */
static void keep(struct agent *a, enum event_stream stream, enum event_severity severity,
                 char *body)
{
    struct agent_events *ev = &a->ev;

    if (ev->backlog_count == AGENT_BACKLOG) {
        uint32_t least = 0;

        for (uint32_t i = 1; i < AGENT_BACKLOG; i++)
            if (ev->backlog[i].severity < ev->backlog[least].severity)
                least = i;
        event_spool_lost(a->spool, ev->backlog[least].severity);
        free(ev->backlog[least].body);
        memmove(&ev->backlog[least], &ev->backlog[least + 1],
                (AGENT_BACKLOG - 1 - least) * sizeof(ev->backlog[0]));
        ev->backlog_count--;
    }
    ev->backlog[ev->backlog_count++] = (struct backlog){ stream, severity, body };
}

void agent_event(struct agent *a, const char *kind, const char *severity, json_t *data)
{
    struct err_info info = { 0 };
    enum event_severity rank = severity_of(severity);
    enum event_stream stream = rank == EVENT_SEV_CRITICAL ? EVENT_CRITICAL : EVENT_NORMAL;
    char *body = event_text(kind, severity, data);

    if (!body) {
        event_spool_lost(a->spool, rank);
        return;
    }
    a->ev.made++;
    log_event(LOG_LEVEL_DEBUG, "event", log_str("kind", kind));
    /* Those that wait go first: the order is the order in which it happened. */
    enum err e = a->ev.backlog_count > 0 ? ERR_FULL : store(a, stream, rank, body, &info);
    if (e == ERR_OK) {
        free(body);
        agent_send(a);
        return;
    }
    if (info.what[0]) {
        agent_trouble(a, info.what);
        log_event(LOG_LEVEL_ERROR, "event_waits", log_str("kind", kind),
                  log_str("why", info.what));
    }
    keep(a, stream, rank, body);
}

/* Takes what is acknowledged out of the spool; a full disk may say no, and is asked again. */
static enum err forget(struct agent *a, enum event_stream stream, struct err_info *info)
{
    uint64_t before = event_spool_counts(a->spool)->pending[stream];
    enum err e = event_spool_ack(a->spool, stream, a->ev.acked[stream], info);

    a->ev.must_forget[stream] = e != ERR_OK;
    if (e == ERR_OK)
        a->ev.acknowledged += before - event_spool_counts(a->spool)->pending[stream];
    return e;
}

void events_tick(struct agent *a)
{
    struct agent_events *ev = &a->ev;
    struct err_info info = { 0 };
    uint32_t done = 0;

    for (int i = 0; i < EVENT_STREAMS; i++)
        if (ev->must_forget[i])
            (void)forget(a, (enum event_stream)i, &info); /* again in a second */
    while (done < ev->backlog_count &&
           store(a, ev->backlog[done].stream, ev->backlog[done].severity,
                 ev->backlog[done].body, &info) == ERR_OK)
        free(ev->backlog[done++].body);
    if (done == 0)
        return;
    ev->backlog_count -= done;
    memmove(ev->backlog, ev->backlog + done, ev->backlog_count * sizeof(ev->backlog[0]));
    agent_send(a);
}

void events_release(struct agent *a)
{
    while (a->ev.backlog_count > 0)
        free(a->ev.backlog[--a->ev.backlog_count].body);
}

/* ---- sending ---- */

struct gather {
    struct text text;
    uint64_t first, last;
    uint32_t count, max;
};

static bool gather(void *arg, uint64_t seq, struct str body)
{
    struct gather *g = arg;

    if (g->count == g->max || (g->count > 0 && seq != g->last + 1) ||
        g->text.n + body.n + 8 > g->text.size)
        return false;
    if (g->count == 0) {
        g->first = seq;
        text_add(&g->text, "%" PRIu64 ",\"events\":[", seq);
    }
    text_add(&g->text, g->count > 0 ? "," : "");
    text_bytes(&g->text, body);
    g->count++;
    g->last = seq;
    return true;
}

static bool send_batch(struct agent *a, enum event_stream stream)
{
    static char buf[BATCH_BYTES];
    struct err_info info = { 0 };
    struct gather g = { .max = a->ev.batch };
    char id[UUID_TEXT];

    uuid_format(id, event_spool_id(a->spool, stream));
    text_init(&g.text, buf, sizeof(buf));
    text_add(&g.text, "{\"stream\":\"%s\",\"first\":", id);
    if (event_spool_walk(a->spool, stream, a->ev.acked[stream], gather, &g, &info) !=
        ERR_OK) {
        agent_trouble(a, info.what);
        return false;
    }
    if (g.count == 0)
        return false;
    text_add(&g.text, "]}");
    CHECK(!g.text.cut);
    a->ev.waiting[stream] = true;
    a->ev.sent[stream] = g.last;
    if (g.count == 1) {
        a->sole = SOLE_EVENT;
        a->sole_stream = stream;
    }
    talk_send(a, &(struct opamp_custom){
                     STR(EVENTS_CAPABILITY), STR("batch"), { g.text.p, g.text.n } });
    return true;
}

/* What was dropped is told as an event of its own, before anything else. */
static void tell_dropped(struct agent *a)
{
    const struct event_counts *c = event_spool_counts(a->spool);
    uint64_t told[EVENT_SEVERITIES], sum = 0;
    struct err_info info = { 0 };
    json_t *data = json_object();

    for (int i = 0; i < EVENT_SEVERITIES; i++) {
        told[i] = c->untold[i];
        sum += told[i];
        (void)json_object_set_new(data, severities[i], json_integer((json_int_t)told[i]));
    }
    (void)json_object_set_new(data, "count", json_integer((json_int_t)sum));
    char *body =
        sum > 0 ? event_text("events_dropped", "error", json_incref(data)) : NULL;
    json_decref(data);
    if (!body)
        return;
    struct event_add add = { .stream = EVENT_CRITICAL,
                             .severity = EVENT_SEV_CRITICAL,
                             .body = str_of(body) };
    if (event_spool_tell(a->spool, &add, told, &info) != ERR_OK)
        agent_trouble(a, info.what);
    free(body);
}

void events_send(struct agent *a)
{
    if (!a->greeted || !a->takes_events || !talk_open(a))
        return;
    tell_dropped(a);
    for (int i = 0; i < EVENT_STREAMS; i++)
        if (!a->ev.waiting[i] && talk_open(a))
            (void)send_batch(a, (enum event_stream)i);
}

void events_rewind(struct agent *a)
{
    a->ev.waiting[EVENT_CRITICAL] = a->ev.waiting[EVENT_NORMAL] = false;
}

/* ---- receiving ---- */

static void log_refused(struct agent *a, const json_t *refused)
{
    size_t i;
    json_t *one;

    json_array_foreach(refused, i, one)
    {
        const char *why = json_string_value(json_object_get(one, "why"));
        json_int_t seq = json_integer_value(json_object_get(one, "seq"));

        if (i == AGENT_EVENT_BATCH)
            break;
        a->ev.refused++;
        agent_trouble(a, why ? why : "an event was refused");
        log_event(LOG_LEVEL_WARNING, "event_refused", log_u64("seq", (uint64_t)seq),
                  log_str("why", why ? why : "?"));
    }
}

enum err events_ack(struct agent *a, const json_t *ack, struct err_info *info)
{
    const char *id = json_string_value(json_object_get(ack, "stream"));
    json_int_t through = json_integer_value(json_object_get(ack, "through"));
    struct uuid stream;
    int at = 0;

    if (!id || !uuid_parse(&stream, str_of(id)) || through < 0)
        return err_set(info, ERR_CORRUPT, 0, "an ack without stream or number");
    while (at < EVENT_STREAMS &&
           !uuid_eq(&stream, event_spool_id(a->spool, (enum event_stream)at)))
        at++;
    if (at == EVENT_STREAMS)
        return ERR_OK; /* of a spool that is gone */
    enum event_stream which = (enum event_stream)at;
    if ((uint64_t)through > event_spool_last(a->spool, which)) {
        log_event(LOG_LEVEL_WARNING, "stream_renewed",
                  log_str("why", "the server knows more of it: this is an old copy"));
        a->ev.waiting[at] = false;
        a->ev.acked[at] = 0;
        return event_spool_renew(a->spool, which, info);
    }
    log_refused(a, json_object_get(ack, "refused"));
    if ((uint64_t)through > a->ev.acked[at])
        a->ev.acked[at] = (uint64_t)through;
    if (a->ev.waiting[at] && (uint64_t)through >= a->ev.sent[at]) {
        a->ev.waiting[at] = false;
        if (a->careful > 0)
            a->careful--;
        else if (a->ev.batch < AGENT_EVENT_BATCH / 2)
            a->ev.batch *= 2;
        else
            a->ev.batch = AGENT_EVENT_BATCH;
    }
    return forget(a, which, info);
}

/* The server will never take the one that was sent alone. */
void events_give_up(struct agent *a)
{
    struct err_info info = { 0 };
    enum event_stream stream = a->sole_stream;

    a->ev.refused++;
    a->ev.acked[stream] = a->ev.sent[stream];
    log_event(LOG_LEVEL_ERROR, "event_given_up", log_u64("seq", a->ev.sent[stream]));
    (void)forget(a, stream, &info);
}
