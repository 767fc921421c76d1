#include "app/server/push.h"

#include <errno.h>

#include "app/server/answer.h"
#include "app/server/policies.h"
#include "sys/log/log.h"
#include "wire/json.h"

enum {
    PUMP_MS = 50,
    PUMP_ACCURACY_US = 1000,
    PUMP_AT_ONCE = PUSH_PER_S * PUMP_MS / 1000,
    NOTES_MS = 1000,
    NOTES_AT_ONCE = 1024,
    NOTES_MAX = 100000,
    SEEN_MS = 30000 /* the DBMS is not told more often that a device is there */
};

/* What the DBMS is to learn of a device: that it was heard, or that it has gone. */
struct note {
    TAILQ_ENTRY(note) next; /* of server.notes, or of notes_sent until it is stored */
    struct uuid device;
    char since[sizeof(((struct conn *)0)->since)]; /* gone: the connection; else "" */
};

static void note_add(struct server *s, const struct uuid *device, const char *since)
{
    struct note *n;

    if (s->note_count == NOTES_MAX || !(n = calloc(1, sizeof(*n))))
        return;
    n->device = *device;
    (void)snprintf(n->since, sizeof(n->since), "%s", since);
    TAILQ_INSERT_TAIL(&s->notes, n, next);
    s->note_count++;
}

static void notes_drop(struct server *s, struct note_list *list)
{
    struct note *n;

    while ((n = TAILQ_FIRST(list))) {
        TAILQ_REMOVE(list, n, next);
        s->note_count--;
        free(n);
    }
}

/* Requests are aligned: an odd ticket is a note's. */
static uint64_t note_ticket(const struct note *n)
{
    return (uint64_t)(uintptr_t)n | 1u;
}

bool push_done(struct server *s, uint64_t ticket, enum store_outcome outcome)
{
    struct note *n = (struct note *)(uintptr_t)(ticket & ~(uint64_t)1);

    if (!(ticket & 1u))
        return false;
    TAILQ_REMOVE(&s->notes_sent, n, next);
    if (outcome == STORE_UNKNOWN) { /* nobody else will ever tell that it has gone */
        TAILQ_INSERT_TAIL(&s->notes, n, next);
        return true;
    }
    s->note_count--;
    free(n);
    return true;
}

static void notes_send(struct server *s)
{
    struct note *n;

    for (int i = 0;
         i < NOTES_AT_ONCE && !store_busy(s->store) && (n = TAILQ_FIRST(&s->notes));
         i++) {
        char id[UUID_TEXT], item[160];
        struct text t;

        uuid_format(id, &n->device);
        text_init(&t, item, sizeof(item));
        if (n->since[0])
            text_add(&t, "{\"device\":\"%s\",\"gone\":\"%s\"}", id, n->since);
        else
            text_add(&t, "{\"device\":\"%s\",\"seen\":true}", id);
        if (store_add(s->store, note_ticket(n), (struct str){ t.p, t.n }) != ERR_OK)
            return; /* later */
        TAILQ_REMOVE(&s->notes, n, next);
        TAILQ_INSERT_TAIL(&s->notes_sent, n, next);
    }
}

void push_gone(struct conn *c)
{
    if (c->waiting)
        TAILQ_REMOVE(&c->server->todo, c, turn);
    c->waiting = false;
    if (c->since[0] && c->server->active)
        note_add(c->server, &c->device_id, c->since);
}

void push_gone_before(struct server *s, const struct uuid *device, const char *since)
{
    const struct conn *c;

    /* Another one of its connections that was stored with it: its end is not this one. */
    LIST_FOREACH(c, conn_bucket(s, device), device)
    if (uuid_eq(&c->device_id, device) &&
        (c->trust == CONN_ASKED || strcmp(c->since, since) == 0))
        return;
    note_add(s, device, since);
}

void push_seen(struct conn *c)
{
    if (c->trust != CONN_ADMITTED ||
        (c->seen_ms != 0 && c->server->now_ms - c->seen_ms < SEEN_MS))
        return;
    c->seen_ms = c->server->now_ms;
    note_add(c->server, &c->device_id, "");
}

void push_forget(struct conn *c)
{
    struct letter *l;

    while ((l = STAILQ_FIRST(&c->letters))) {
        STAILQ_REMOVE_HEAD(&c->letters, next);
        free(l);
    }
}

uint32_t push_idle_ms(const struct conn *c)
{
    const struct policy_entry *e = policies_find(c->server->policies, &c->group);

    return CONN_IDLE_MS + 2000u * (e ? e->heartbeat_s : POLICY_HEARTBEAT_S);
}

void push_todo(struct conn *c, enum conn_todo what)
{
    struct server *s = c->server;

    if (c->state >= CONN_GOODBYE)
        return;
    c->todo |= (uint8_t)what;
    if (c->waiting)
        return;
    c->waiting = true;
    TAILQ_INSERT_TAIL(&s->todo, c, turn);
    if (!s->pump)
        return;
    int on = SD_EVENT_OFF;
    if (sd_event_source_get_enabled(s->pump, &on) >= 0 && on == SD_EVENT_OFF) {
        (void)sd_event_source_set_time_relative(s->pump, 0);
        (void)sd_event_source_set_enabled(s->pump, SD_EVENT_ONESHOT);
    }
}

/* False: not now; it stays at the head of the queue. */
static bool serve(struct conn *c)
{
    if ((c->todo & TODO_REFRESH) && c->trust >= CONN_ADMITTED && !device_refresh(c))
        return false;
    c->todo &= (uint8_t)~TODO_REFRESH;
    if ((c->todo & TODO_FULL) && c->state == CONN_WS)
        answer_full_state(c);
    if (c->state < CONN_GOODBYE && (c->todo & TODO_OFFERS) && c->state == CONN_WS)
        answer_offers(c);
    c->todo = 0;
    return true;
}

static int on_pump(sd_event_source *source, uint64_t us, void *arg)
{
    struct server *s = arg;
    struct conn *c;

    (void)us;
    for (int i = 0; i < PUMP_AT_ONCE && (c = TAILQ_FIRST(&s->todo)); i++) {
        if (!serve(c))
            break;
        if (c->waiting)
            TAILQ_REMOVE(&s->todo, c, turn);
        c->waiting = false;
        s->counts.pushed++;
    }
    if (TAILQ_EMPTY(&s->todo))
        return 0;
    (void)sd_event_source_set_time_relative(source, PUMP_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_notes(sd_event_source *source, uint64_t us, void *arg)
{
    struct server *s = arg;

    (void)us;
    notes_send(s);
    if (s->policies_due && store_state(s->store) != STORE_DOWN)
        policies_read(s);
    (void)sd_event_source_set_time_relative(source, NOTES_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

enum err push_start(struct server *s, struct err_info *info)
{
    sd_event_source *notes = NULL;

    TAILQ_INIT(&s->todo);
    TAILQ_INIT(&s->held);
    TAILQ_INIT(&s->notes);
    TAILQ_INIT(&s->notes_sent);
    s->was_down = true;
    s->policies = policies_new();
    int n = sd_event_add_time_relative(s->event, &s->pump, CLOCK_BOOTTIME, 0,
                                       PUMP_ACCURACY_US, on_pump, s);
    if (n >= 0)
        n = sd_event_source_set_enabled(s->pump, SD_EVENT_OFF);
    if (n >= 0)
        n = sd_event_add_time_relative(s->event, &notes, CLOCK_BOOTTIME, NOTES_MS * 1000u,
                                       0, on_notes, s);
    if (n >= 0)
        n = sd_event_source_set_floating(notes, true);
    (void)sd_event_source_unref(notes);
    return n < 0 || !s->policies
               ? err_set(info, ERR_MEMORY, n < 0 ? -n : ENOMEM, "event loop")
               : ERR_OK;
}

void push_standby(struct server *s)
{
    /* The session ends without a word: what it was asked is not answered, and what was told
     * while there is none is not known.  The next one reads all again (store_changed). */
    s->was_down = true;
    s->policies_reading = false;
    notes_drop(s, &s->notes);
    notes_drop(s, &s->notes_sent);
}

void push_stop(struct server *s)
{
    push_standby(s);
    s->pump = sd_event_source_disable_unref(s->pump);
    policies_free(s->policies);
}

static void refresh_device(struct server *s, const struct uuid *id)
{
    struct conn *c;

    LIST_FOREACH(c, conn_bucket(s, id), device)
    if (uuid_eq(&c->device_id, id))
        push_todo(c, TODO_REFRESH);
}

/* The device has connected anew, to whichever worker: this connection is half-open. */
static void close_old(struct server *s, const struct uuid *id, const char *since)
{
    struct conn *c, *next;

    for (c = LIST_FIRST(conn_bucket(s, id)); c; c = next) {
        next = LIST_NEXT(c, device);
        if (uuid_eq(&c->device_id, id) && c->state == CONN_WS &&
            strcmp(c->since, since) == 0)
            conn_close(c, "the device has connected anew");
    }
}

void push_notified(void *server, struct str payload)
{
    struct server *s = server;
    struct json_object o;
    struct uuid id;
    char type[16], text[UUID_TEXT], at[40];

    if (json_load(&o, payload) != ERR_OK || !json_get_text(&o, "t", type, sizeof(type)))
        return; /* somebody else's */
    if (strcmp(type, "policy") == 0)
        policies_read(s);
    else if (!s->active)
        return;
    else if (strcmp(type, "device") == 0 && json_get_text(&o, "d", text, sizeof(text)) &&
             uuid_parse(&id, str_of(text)))
        refresh_device(s, &id);
    else if (strcmp(type, "old") == 0 && json_get_text(&o, "d", text, sizeof(text)) &&
             uuid_parse(&id, str_of(text)) && json_get_text(&o, "at", at, sizeof(at)))
        close_old(s, &id, at);
    else if (strcmp(type, "run") == 0 && json_get_text(&o, "o", text, sizeof(text)) &&
             uuid_parse(&id, str_of(text)) &&
             store_read(s->store, STORE_READ_DEVICES, text) != ERR_OK)
        push_catch_up(s); /* so many at once: look at everybody */
}

/* Devices whose group has another policy now than they were told. */
static void policies_changed(struct server *s)
{
    struct conn *c;

    LIST_FOREACH(c, &s->conns, all)
    {
        const struct policy_entry *e = policies_find(s->policies, &c->group);

        if (c->trust == CONN_ADMITTED && e &&
            (!c->config_known || memcmp(c->config_hash, e->hash, POLICY_HASH) != 0))
            push_todo(c, TODO_OFFERS);
    }
}

static void refresh_all(struct server *s)
{
    struct conn *c;

    LIST_FOREACH(c, &s->conns, all)
    if (c->trust >= CONN_ADMITTED)
        push_todo(c, TODO_REFRESH);
}

/* What changed is not known: the session may live on, and nobody would tell it again. */
static void read_failed(struct server *s, enum store_query query)
{
    switch (query) {
    case STORE_READ_POLICIES: s->policies_due = true; break; /* soon: on_notes */
    case STORE_READ_DEVICES: refresh_all(s); break;
    }
}

void push_rows(void *server, enum store_query query, const struct store_rows *rows)
{
    struct server *s = server;
    struct uuid id;

    if (query == STORE_READ_POLICIES)
        s->policies_reading = false;
    if (!rows) {
        read_failed(s, query);
        return;
    }
    switch (query) {
    case STORE_READ_POLICIES:
        policies_take(s->policies, rows);
        log_event(LOG_LEVEL_DEBUG, "policies",
                  log_u64("groups", policies_count(s->policies)));
        policies_changed(s);
        if (s->policies_due)
            policies_read(s);
        break;
    case STORE_READ_DEVICES:
        for (uint32_t i = 0; i < store_rows_count(rows); i++)
            if (uuid_parse(&id, store_rows_get(rows, i, 0)))
                refresh_device(s, &id);
        break;
    }
}

void push_catch_up(struct server *s)
{
    policies_read(s);
    refresh_all(s);
}
