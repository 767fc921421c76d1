/*
 * runs: what the server orders, stored before it is done, answered when it comes again.
 *
 * Each run that is not finished is in the store and in the table here.  The table says what
 * was given to protect, and what of it the server has to hear next.
 */
#include <inttypes.h>

#include "app/agent/agent.h"
#include "app/agent/protect.h"
#include "sys/log/log.h"
#include "sys/spool/run_store.h"

enum { ATTEMPTS_MAX = 3, REFUSED_WHY = 200 };

struct live {
    struct uuid id;
    char type[RUN_TYPE_MAX];
    json_t *params, *counts; /* owned */
    int64_t not_before, not_after;
    uint32_t priority, percent, attempts;
    enum run_state state;
    bool given, held, tell; /* held: paused before it began */
    char outcome[16];       /* its end could not be stored yet */
    char *end;              /* owned: the event of the end */
};

struct runs {
    struct live at[RUNS_OPEN_MAX];
    uint32_t count;
};

static struct live *find(struct runs *r, const struct uuid *id)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (uuid_eq(&r->at[i].id, id))
            return &r->at[i];
    return NULL;
}

static void take_out(struct runs *r, struct live *l)
{
    json_decref(l->params);
    json_decref(l->counts);
    free(l->end);
    memmove(l, l + 1, (size_t)(&r->at[r->count] - (l + 1)) * sizeof(*l));
    r->count--;
}

/* ---- the end of a run ---- */

static json_t *data_of(const struct uuid *run)
{
    char id[UUID_TEXT];

    uuid_format(id, run);
    return json_pack("{s:s}", "run", id);
}

/* Stores the end; a full disk is asked again with the next tick. */
static void settle(struct agent *a, struct live *l)
{
    struct err_info info = { 0 };
    struct event_add event = { .stream = EVENT_NORMAL,
                               .severity =
                                   EVENT_SEV_ERROR, /* not the first to be dropped */
                               .body = str_of(l->end) };
    enum err e = run_store_finish(a->spool, &l->id, l->outcome,
                                  (int64_t)(agent_unix_us() / 1000000u), &event, &info);

    if (e != ERR_OK && e != ERR_NOT_FOUND) {
        agent_trouble(a, info.what);
        log_event(LOG_LEVEL_ERROR, "run_not_stored", log_str("why", info.what));
        return;
    }
    log_event(LOG_LEVEL_INFO, "run_finished", log_str("type", l->type),
              log_str("outcome", l->outcome));
    take_out(a->runs, l);
}

/* result (stolen, may be NULL) has "counts" and "error". */
static void finish(struct agent *a, struct live *l, const char *outcome, json_t *result)
{
    bool failed = strcmp(outcome, "failed") == 0 || strcmp(outcome, "expired") == 0;
    json_t *data = data_of(&l->id);

    if (l->end) {
        json_decref(result);
        json_decref(data);
        return;
    }
    (void)json_object_set_new(data, "outcome", json_string(outcome));
    (void)json_object_set_new(data, "type", json_string(l->type));
    if (result)
        (void)json_object_update(data, result);
    json_decref(result);
    (void)snprintf(l->outcome, sizeof(l->outcome), "%s", outcome);
    l->end = event_text("run_finished", failed ? "warning" : "info", data);
    if (l->end)
        settle(a, l);
}

/* ---- carrying out ---- */

static bool is_scan(const struct live *l)
{
    return strcmp(l->type, "scan") == 0;
}

static bool scan_is_given(const struct runs *r)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (r->at[i].given && is_scan(&r->at[i]) && !r->at[i].end)
            return true;
    return false;
}

static void give(struct agent *a, struct live *l)
{
    struct err_info info = { 0 };

    /* On the disk first: if we end in the middle, the attempt counts. */
    enum err e = run_store_state(a->spool, &l->id, RUN_RUNNING, 0, &info);
    if (e != ERR_OK) {
        agent_trouble(a, info.what);
        return;
    }
    l->attempts++;
    l->state = RUN_RUNNING;
    l->given = l->tell = true;
    log_event(LOG_LEVEL_INFO, "run_starts", log_str("type", l->type),
              log_u64("attempt", l->attempts));
    protect_run(a->protect, &l->id, l->type, l->params);
}

/* What is due and may begin; the highest priority first, then the oldest. */
static struct live *next_due(struct agent *a, int64_t now)
{
    struct runs *r = a->runs;
    bool busy = scan_is_given(r);
    struct live *best = NULL;

    for (uint32_t i = 0; i < r->count; i++) {
        struct live *l = &r->at[i];

        if (l->given || l->held || l->end || l->not_before > now || (busy && is_scan(l)))
            continue;
        if (!best || l->priority > best->priority)
            best = l;
    }
    return best;
}

static bool expired(const struct live *l, int64_t now)
{
    return !l->given && !l->end && l->not_after != 0 && l->not_after < now;
}

static void runs_step(struct agent *a)
{
    int64_t now = agent_server_s(a);
    struct runs *r = a->runs;

    for (uint32_t i = r->count; i-- > 0;) {
        struct live *l = &r->at[i];

        if (l->end)
            settle(a, l);
        else if (expired(l, now))
            finish(a, l, "expired", NULL);
        else if (!l->given && l->attempts >= ATTEMPTS_MAX)
            finish(a, l, "failed",
                   json_pack("{s:s}", "error",
                             "the agent ended in the middle of it, again and again"));
    }
    for (struct live *l = next_due(a, now); l; l = next_due(a, now)) {
        give(a, l);
        if (!l->given)
            return; /* the disk says no: later */
    }
}

/* ---- orders ---- */

static bool known_type(const char *type)
{
    static const char *const types[] = { "scan",
                                         "update",
                                         "inventory",
                                         "restart_engine",
                                         "quarantine_restore",
                                         "quarantine_delete" };

    for (size_t i = 0; i < LEN(types); i++)
        if (type && strcmp(type, types[i]) == 0)
            return true;
    return false;
}

/* A number of the order, or `without` if there is none; false if it is out of bounds. */
static bool number_of(const json_t *order, const char *key, int64_t max, int64_t without,
                      int64_t *out)
{
    const json_t *v = json_object_get(order, key);

    *out = !v || json_is_null(v) ? without : json_integer_value(v);
    return !v || json_is_null(v) ||
           (json_is_integer(v) && json_integer_value(v) >= 0 && *out <= max);
}

/* Why the order cannot be carried out; NULL: it can, and *l is filled. */
static const char *understand(const json_t *order, struct live *l)
{
    const char *type = json_string_value(json_object_get(order, "type"));
    const json_t *params = json_object_get(order, "params");
    int64_t priority;

    if (!known_type(type))
        return "this agent does not know that type of task";
    (void)snprintf(l->type, sizeof(l->type), "%s", type);
    if (params && !json_is_object(params) && !json_is_null(params))
        return "params is no object";
    if (!number_of(order, "priority", 9, 5, &priority) ||
        !number_of(order, "not_before", INT32_MAX * 4ll, 0, &l->not_before) ||
        !number_of(order, "not_after", INT32_MAX * 4ll, 0, &l->not_after))
        return "priority, not_before or not_after is out of bounds";
    l->priority = (uint32_t)priority;
    l->params = json_is_object(params) ? json_deep_copy(params) : json_object();
    return l->params ? NULL : "no memory";
}

/* Stores the order and what is said to it: run_accepted, or run_refused and why. */
static enum err keep(struct agent *a, const struct live *l, const char *why,
                     struct err_info *info)
{
    struct run_row row = { .id = l->id,
                           .priority = l->priority,
                           .not_before = l->not_before,
                           .not_after = l->not_after,
                           .state = why ? RUN_FINISHED : RUN_ACCEPTED };
    json_t *data = data_of(&l->id);
    char *params = l->params ? json_dumps(l->params, JSON_COMPACT) : NULL;

    (void)json_object_set_new(data, "type", json_string(l->type));
    if (why)
        (void)json_object_set_new(data, "why", json_string(why));
    char *body =
        event_text(why ? "run_refused" : "run_accepted", why ? "warning" : "info", data);
    (void)snprintf(row.type, sizeof(row.type), "%s", l->type);
    (void)snprintf(row.outcome, sizeof(row.outcome), "%s", why ? "refused" : "");
    row.params = params && !why ? str_of(params) : STR("{}");
    struct event_add event = { .stream = EVENT_NORMAL,
                               .severity = EVENT_SEV_ERROR,
                               .body = str_of(body ? body : "") };
    enum err e =
        body ? run_store_accept(a->spool, &row, (int64_t)(agent_unix_us() / 1000000u),
                                &event, info)
             : err_set(info, ERR_MEMORY, 0, "a run");
    free(params);
    free(body);
    return e;
}

/* It is in the store: say again what became of it. */
static void again(struct agent *a, const struct run_row *row)
{
    struct err_info info = { 0 };
    struct live *l = find(a->runs, &row->id);

    if (l)
        l->tell = true;
    else if (run_store_retell(a->spool, &row->id, &info) != ERR_OK)
        agent_trouble(a, info.what);
}

static void assign(struct agent *a, const json_t *order)
{
    struct runs *r = a->runs;
    struct live l = { 0 };
    struct run_row row;
    struct err_info info = { 0 };
    const char *id = json_string_value(json_object_get(order, "run"));

    if (!id || !uuid_parse(&l.id, str_of(id))) {
        log_event(LOG_LEVEL_WARNING, "order_without_run");
        return;
    }
    enum err e = run_store_get(a->spool, &l.id, &row, &info);
    if (e == ERR_OK) {
        again(a, &row);
        return;
    }
    const char *why = understand(order, &l);
    if (!why && r->count == RUNS_OPEN_MAX)
        why = "too many tasks wait on this device";
    if (e == ERR_NOT_FOUND)
        e = keep(a, &l, why, &info);
    if (e == ERR_LIMIT && !why)
        e = keep(a, &l, why = "the order is too big", &info);
    log_event(e == ERR_OK ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, "run_ordered",
              log_str("run", id), log_str("type", l.type),
              log_str("refused", why ? why : ""),
              log_str("trouble", e == ERR_OK ? "" : info.what));
    if (e == ERR_OK && !why) {
        r->at[r->count++] = l;
        return;
    }
    if (e != ERR_OK) /* not stored: not done, and not answered; the server asks again */
        agent_trouble(a, info.what);
    json_decref(l.params);
}

static void cancel(struct agent *a, struct live *l)
{
    if (l->given)
        protect_run_cancel(a->protect, &l->id);
    else
        finish(a, l, "cancelled", NULL);
}

/* After a restart it is held again, or not. */
static void note(struct agent *a, const struct live *l, enum run_state state)
{
    struct err_info info = { 0 };

    if (run_store_state(a->spool, &l->id, state, l->percent, &info) != ERR_OK)
        agent_trouble(a, info.what);
}

static void pause_run(struct agent *a, struct live *l)
{
    l->held = !l->given;
    l->tell = true;
    note(a, l, RUN_PAUSED);
    if (l->given)
        protect_run_pause(a->protect, &l->id);
}

static void resume_run(struct agent *a, struct live *l)
{
    l->held = false;
    l->tell = true;
    note(a, l, l->given ? RUN_RUNNING : RUN_ACCEPTED);
    if (l->given)
        protect_run_resume(a->protect, &l->id);
}

enum err runs_message(struct agent *a, struct str type, const json_t *m,
                      struct err_info *info)
{
    static const struct {
        const char *type;
        void (*act)(struct agent *a, struct live *l);
    } words[] = { { "cancel", cancel },
                  { "pause", pause_run },
                  { "resume", resume_run } };
    const json_t *list = json_object_get(m, "runs");
    size_t i;
    json_t *one;

    if (!json_is_array(list))
        return err_set(info, ERR_CORRUPT, 0, "tasks without runs");
    if (str_is(type, "assign"))
        json_array_foreach(list, i, one) assign(a, one);
    for (size_t w = 0; w < LEN(words); w++) {
        if (!str_is(type, words[w].type))
            continue;
        json_array_foreach(list, i, one)
        {
            struct uuid id;
            struct live *l =
                json_is_string(one) && uuid_parse(&id, str_of(json_string_value(one)))
                    ? find(a->runs, &id)
                    : NULL;

            if (l)
                words[w].act(a, l);
        }
    }
    runs_step(a);
    return ERR_OK;
}

/* ---- what protect tells ---- */

void runs_heard(void *arg, const struct uuid *run, const char *state, unsigned percent,
                json_t *counts)
{
    struct agent *a = arg;
    struct live *l = find(a->runs, run);

    if (!l || l->end) {
        json_decref(counts);
        return;
    }
    l->state = strcmp(state, "paused") == 0 ? RUN_PAUSED : RUN_RUNNING;
    l->percent = percent > 100 ? 100 : percent;
    if (counts) {
        json_decref(l->counts);
        l->counts = counts;
    }
    l->tell = true;
}

void runs_ended(void *arg, const struct uuid *run, const char *outcome, json_t *result)
{
    struct agent *a = arg;
    struct live *l = find(a->runs, run);

    if (!l) {
        json_decref(result);
        return;
    }
    finish(a, l, outcome, result);
    runs_step(a);
    agent_send(a);
}

/* ---- what the server is told ---- */

static void send_json(struct agent *a, const char *type, json_t *list)
{
    json_t *m = json_pack("{s:o}", "runs", list);
    char *text = m ? json_dumps(m, JSON_COMPACT) : NULL;

    if (text) {
        a->sole = SOLE_NONE;
        talk_send(a, &(struct opamp_custom){ STR(TASKS_CAPABILITY), str_of(type),
                                             str_of(text) });
    }
    free(text);
    json_decref(m);
}

void runs_hello(struct agent *a)
{
    json_t *list = json_array();
    char id[UUID_TEXT];

    a->runs_due = false;
    for (uint32_t i = 0; i < a->runs->count; i++) {
        uuid_format(id, &a->runs->at[i].id);
        (void)json_array_append_new(list, json_string(id));
        a->runs->at[i].tell = true;
    }
    send_json(a, "running", list);
}

static void tell(struct agent *a)
{
    static const char *const names[] = { "accepted", "running", "paused", "running" };
    json_t *list = json_array();

    for (uint32_t i = 0; i < a->runs->count; i++) {
        struct live *l = &a->runs->at[i];
        json_t *one;

        if (!l->tell)
            continue;
        l->tell = false;
        one = data_of(&l->id);
        (void)json_object_set_new(one, "state",
                                  json_string(names[l->held ? RUN_PAUSED : l->state]));
        (void)json_object_set_new(one, "percent", json_integer(l->percent));
        (void)json_object_set_new(one, "counts",
                                  l->counts ? json_incref(l->counts) : json_object());
        (void)json_array_append_new(list, one);
    }
    if (json_array_size(list) > 0)
        send_json(a, "progress", list);
    else
        json_decref(list);
}

void runs_tick(struct agent *a)
{
    runs_step(a);
    if (a->greeted && a->takes_tasks && talk_open(a))
        tell(a);
}

/* ---- start and end ---- */

static bool load(void *arg, const struct run_row *row)
{
    struct runs *r = arg;

    if (r->count == RUNS_OPEN_MAX)
        return false;
    struct live *l = &r->at[r->count++];
    *l = (struct live){ .id = row->id,
                        .priority = row->priority,
                        .attempts = row->attempts,
                        .held = row->state == RUN_PAUSED,
                        .not_before = row->not_before,
                        .not_after = row->not_after,
                        .params = json_loadb(row->params.p, row->params.n, 0, NULL) };
    (void)snprintf(l->type, sizeof(l->type), "%s", row->type);
    return true;
}

enum err runs_start(struct agent *a, struct err_info *info)
{
    a->runs = calloc(1, sizeof(*a->runs));
    if (!a->runs)
        return err_set(info, ERR_MEMORY, 0, "runs");
    enum err e = run_store_rewind(a->spool, info);
    return e == ERR_OK ? run_store_walk(a->spool, load, a->runs, info) : e;
}

void runs_release(struct agent *a)
{
    while (a->runs && a->runs->count > 0)
        take_out(a->runs, &a->runs->at[a->runs->count - 1]);
    free(a->runs);
}

void runs_json(const struct agent *a, struct text *t)
{
    static const char *const names[] = { "accepted", "running", "paused", "finished" };
    struct run_counts c = run_store_counts(a->spool);
    char id[UUID_TEXT];

    text_add(t, "\"runs\":{\"open\":%u,\"finished\":%u,\"list\":[", c.open, c.finished);
    for (uint32_t i = 0; i < a->runs->count; i++) {
        const struct live *l = &a->runs->at[i];

        uuid_format(id, &l->id);
        text_add(t, "%s{\"run\":\"%s\",\"type\":\"%s\",\"state\":\"%s\",\"percent\":%u}",
                 i > 0 ? "," : "", id, l->type, names[l->held ? RUN_PAUSED : l->state],
                 l->percent);
    }
    text_add(t, "]},");
}
