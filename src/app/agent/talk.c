/*
 * talk: the conversation with the server: what is said when, and who hears the answers.
 */
#include <inttypes.h>

#include "app/agent/agent.h"
#include "app/agent/payload.h"
#include "app/agent/protect.h"
#include "app/agent/upgrade.h"
#include "sys/log/log.h"

enum {
    LOOK_MS = 3000,
    ANSWER_MS = 15000,
    BAD_REQUEST_HOLD_MS = 30000,
    UNSENT_MAX = 128 * 1024
};

#define CAPABILITIES                                                                     \
    (OPAMP_REPORTS_STATUS | OPAMP_REPORTS_HEALTH | OPAMP_REPORTS_HEARTBEAT |             \
     OPAMP_ACCEPTS_CONFIG | OPAMP_REPORTS_CONFIG | OPAMP_ACCEPTS_SETTINGS |              \
     OPAMP_REPORTS_SETTINGS)

/* One message at a time is built or read: the loop has one thread. */
static struct opamp_agent out_message;
static struct opamp_server in_message;
static uint8_t encoded[OPAMP_MESSAGE_MAX];

/* A device without a clock believes in 1970: better a wrong time than no event. */
uint64_t agent_unix_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (t.tv_sec < (time_t)(REPORT_AT_MIN / 1000000u))
        return REPORT_AT_MIN;
    uint64_t us = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
    return us > REPORT_AT_MAX ? REPORT_AT_MAX : us;
}

void agent_trouble(struct agent *a, const char *what)
{
    (void)snprintf(a->trouble, sizeof(a->trouble), "%s", what);
}

int64_t agent_server_s(const struct agent *a)
{
    return a->server_start_s != 0 ? a->server_start_s + (int64_t)(a->now_ms / 1000u)
                                  : (int64_t)(agent_unix_us() / 1000000u);
}

void agent_pace(struct agent *a)
{
    a->heartbeat_s = a->offered_heartbeat_s  ? a->offered_heartbeat_s
                     : a->policy.heartbeat_s ? a->policy.heartbeat_s
                                             : AGENT_HEARTBEAT_S;
    if (a->beat_due_ms > a->now_ms + (uint64_t)a->heartbeat_s * 1000u)
        a->beat_due_ms = a->now_ms + (uint64_t)a->heartbeat_s * 1000u;
    link_pace(a->link, a->policy.spread_ms ? a->policy.spread_ms : a->spread_ms,
              a->backoff_max_ms);
}

static bool awaited(const struct agent *a)
{
    return a->outstanding > 0 || a->ev.waiting[EVENT_CRITICAL] ||
           a->ev.waiting[EVENT_NORMAL];
}

/* Who has just begun has not looked at the engine yet, and would be judged by that. */
static bool has_looked(const struct agent *a)
{
    return a->has_engine || a->now_ms - a->start_ms > LOOK_MS;
}

bool talk_open(const struct agent *a)
{
    return !a->holding && has_looked(a) && link_state(a->link) == LINK_OPEN &&
           link_unsent(a->link) < UNSENT_MAX && !(a->careful > 0 && awaited(a));
}

void talk_send(struct agent *a, const struct opamp_custom *custom)
{
    size_t n;

    out_message = (struct opamp_agent){ .uid = a->device_id,
                                        .sequence = ++a->sequence,
                                        .has_custom = custom != NULL };
    out_message.capabilities = CAPABILITIES | upgrade_capabilities(a);
    if (custom)
        out_message.custom = *custom;
    if (a->full_state)
        hello_add(a, &out_message);
    if (a->full_state || a->policy.tell)
        config_add(a, &out_message);
    if (a->full_state || a->offer.tell)
        offers_add(a, &out_message);
    if (a->full_state || upgrade_tells(a))
        upgrade_add(a, &out_message);
    out_message.has_csr = a->csr != NULL;
    out_message.csr = str_of(a->csr ? a->csr : "");
    if (opamp_agent_encode(&out_message, encoded, sizeof(encoded), &n) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "message_too_big");
        return;
    }
    a->full_state = false;
    free(a->csr);
    a->csr = NULL;
    a->answer_due_ms = a->now_ms + ANSWER_MS;
    a->beat_due_ms = a->now_ms + (uint64_t)a->heartbeat_s * 1000u;
    link_send(a->link, encoded, n);
}

void agent_send(struct agent *a)
{
    bool told = !a->full_state && !a->policy.tell && !a->offer.tell &&
                !upgrade_tells(a) && !a->csr;

    if (!told && talk_open(a)) {
        a->sole = SOLE_NONE;
        talk_send(a, NULL);
    }
    if (a->runs_due && a->greeted && a->takes_tasks && talk_open(a))
        runs_hello(a);
    events_send(a);
    reports_send(a);
}

static void rewind_all(struct agent *a)
{
    reports_rewind(a);
    events_rewind(a);
    a->answer_due_ms = 0;
}

void agent_hello(struct agent *a)
{
    uint32_t phase;

    a->counts.connects++;
    a->trouble[0] = '\0';
    a->full_state = true;
    a->holding = a->greeted = a->takes_events = a->takes_tasks = false;
    (void)sd_event_source_set_enabled(a->hold_timer, SD_EVENT_OFF);
    rewind_all(a);
    agent_send(a);
    /* A random phase: devices that came together do not beat together. */
    tls_random(&phase, sizeof(phase));
    a->beat_due_ms = a->now_ms + phase % ((uint64_t)a->heartbeat_s * 1000u + 1u);
}

void agent_lost(struct agent *a)
{
    rewind_all(a);
    a->greeted = false;
}

void agent_goodbye(struct agent *a)
{
    size_t n;

    if (link_state(a->link) != LINK_OPEN)
        return;
    out_message = (struct opamp_agent){ .uid = a->device_id,
                                        .sequence = ++a->sequence,
                                        .disconnect = true };
    if (opamp_agent_encode(&out_message, encoded, sizeof(encoded), &n) == ERR_OK)
        link_send(a->link, encoded, n);
}

void agent_tick(struct agent *a)
{
    events_tick(a);
    config_tick(a);
    runs_tick(a);
    offers_tick(a);
    upgrade_tick(a);
    identity_tick(a->identity, agent_server_s(a));
    a->full_state = a->full_state || a->facts_changed;
    if (link_state(a->link) == LINK_OPEN)
        a->heard_ms = a->now_ms;
    if (a->heartbeat_s > 0 && a->now_ms >= a->beat_due_ms && talk_open(a)) {
        a->sole = SOLE_NONE;
        talk_send(a, NULL);
    }
    agent_send(a);
}

static void hold(struct agent *a, uint64_t ms)
{
    a->holding = true;
    rewind_all(a);
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

/*
 * The server does not understand a message of ours.  If it held a single report or event,
 * that one will never be taken: give it up, or it would block all others for ever.
 */
static void bad_request(struct agent *a, const char *why)
{
    bool alone = a->careful > 0 && a->sole != SOLE_NONE && awaited(a);

    a->counts.bad_requests++;
    log_event(LOG_LEVEL_ERROR, "server_refuses", log_str("why", why));
    if (alone && a->sole == SOLE_REPORT)
        reports_give_up(a);
    else if (alone)
        events_give_up(a);
    a->careful = AGENT_EVENT_BATCH;
    a->batch = a->ev.batch = 1;
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
    agent_trouble(a, why);
    if (in_message.error == OPAMP_ERR_BAD_REQUEST) {
        bad_request(a, why);
        return;
    }
    a->counts.unavailable++;
    log_event(LOG_LEVEL_INFO, "server_unavailable", log_str("why", why),
              log_u64("retry_ms", ms));
    a->full_state = a->runs_due = true; /* they may have been in what was not stored */
    if (a->holding)
        return; /* answers to what was on its way already */
    tls_random(&jitter, sizeof(jitter));
    ms = ms < 100 ? 100 : ms > AGENT_HOLD_MAX_MS ? AGENT_HOLD_MAX_MS : ms;
    hold(a, ms + jitter % (ms / 2));
}

/* How this connection, and the next, are to behave. */
static enum err take_session(struct agent *a, const json_t *m, struct err_info *info)
{
    json_int_t spread = json_integer_value(json_object_get(m, "spread_ms"));
    json_int_t backoff = json_integer_value(json_object_get(m, "backoff_max_ms"));
    json_int_t dead = json_integer_value(json_object_get(m, "dead_after_ms"));
    json_int_t epoch = json_integer_value(json_object_get(m, "epoch"));
    json_int_t now = json_integer_value(json_object_get(m, "now"));

    if (spread < 0 || spread > 3600000 || backoff < 0 || backoff > 3600000 || epoch < 0 ||
        dead < 0 || dead > 3600000)
        return err_set(info, ERR_CORRUPT, 0, "a session beyond all bounds");
    a->spread_ms = (uint32_t)spread;
    a->backoff_max_ms = (uint32_t)backoff;
    agent_pace(a);
    link_patience(a->link, (uint32_t)dead);
    a->server_epoch = (uint64_t)epoch;
    if (now > 0)
        a->server_start_s = now - (int64_t)(a->now_ms / 1000u);
    return ERR_OK;
}

/* Where leases are given. */
static enum err take_licence(struct agent *a, const json_t *m, struct err_info *info)
{
    const char *server = json_string_value(json_object_get(m, "server"));

    if (!server || strlen(server) >= CONF_PATH ||
        strspn(server, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                       "-._:[]") != strlen(server))
        return err_set(info, ERR_CORRUPT, 0, "an Activation Proxy without an address");
    protect_licence(a->protect, server);
    return ERR_OK;
}

/* One JSON object, bounded in depth and members before it is built. */
static enum err take_json(struct agent *a, struct err_info *info)
{
    const struct opamp_custom *c = &in_message.custom;
    enum err e = payload_check(c->data, info);
    json_t *m = e == ERR_OK
                    ? json_loadb(c->data.p, c->data.n, JSON_REJECT_DUPLICATES, NULL)
                    : NULL;

    if (!json_is_object(m))
        e = err_set(info, ERR_CORRUPT, 0, "a custom message that is no JSON object");
    else if (str_is(c->capability, EVENTS_CAPABILITY) && str_is(c->type, "ack"))
        e = events_ack(a, m, info);
    else if (str_is(c->capability, SESSION_CAPABILITY) && str_is(c->type, "session"))
        e = take_session(a, m, info);
    else if (str_is(c->capability, LICENCE_CAPABILITY) && str_is(c->type, "where"))
        e = take_licence(a, m, info);
    else if (str_is(c->capability, TASKS_CAPABILITY))
        e = runs_message(a, c->type, m, info);
    json_decref(m);
    return e;
}

static void take_custom(struct agent *a)
{
    const struct opamp_custom *c = &in_message.custom;
    struct err_info info = { 0 };
    enum err e = ERR_OK;

    if (str_is(c->capability, REPORT_CAPABILITY) && str_is(c->type, RECEIPT_TYPE))
        e = reports_receipts(a, c->data, &info);
    else if (str_starts(c->capability, STR("com.redoubt.")))
        e = take_json(a, &info);
    if (e == ERR_OK)
        return;
    agent_trouble(a, info.what);
    log_event(LOG_LEVEL_ERROR, "answer_not_taken", log_str("why", info.what));
    /* A full disk is no reason to leave: it is tried again. */
    if (e == ERR_CORRUPT || e == ERR_LIMIT)
        link_break(a->link, info.what);
}

static void take_caps(struct agent *a)
{
    for (uint32_t i = 0; i < in_message.caps.count; i++) {
        a->takes_events |= str_is(in_message.caps.at[i], EVENTS_CAPABILITY);
        a->takes_tasks |= str_is(in_message.caps.at[i], TASKS_CAPABILITY);
    }
}

/* The first answer of a connection: we are known here. */
static void greeted(struct agent *a)
{
    if (a->greeted)
        return;
    a->greeted = true;
    identity_accepted(a->identity, agent_server_s(a));
    a->runs_due = true;
    upgrade_greeted(a);
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
    if (in_message.has_caps)
        take_caps(a);
    greeted(a);
    if (in_message.has_new_uid)
        identity_reassigned(a->identity, &in_message.new_uid, agent_server_s(a));
    if (in_message.has_settings)
        offers_take(a, &in_message.settings);
    if (link_state(a->link) != LINK_OPEN)
        return; /* a new identity is being tried */
    if (in_message.has_config)
        config_offer(a, &in_message.config);
    if (in_message.has_packages)
        upgrade_offer(a, &in_message.packages);
    if (in_message.has_custom)
        take_custom(a);
    if (link_state(a->link) != LINK_OPEN)
        return;
    a->answer_due_ms = awaited(a) ? a->now_ms + ANSWER_MS : 0;
    agent_send(a);
}
