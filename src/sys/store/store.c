#include "sys/store/store.h"

#include <errno.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <sys/epoll.h>

#include "sys/store/batch.h"

/*
 * Connecting and answering must be over in this time, or the session is dropped.  A DBMS
 * computer that lost its power is noticed by TCP (session_options); one that is only slow
 * gets more time for a batch: given up, the batch would go on there, and come again.
 */
enum {
    CONNECT_MS = 3000,
    ANSWER_MS = 4000,
    BATCH_MS = 10000,
    BACKOFF_MS = 100,
    BACKOFF_MAX_MS = 2000
};

/* The DBMS works on one batch at a time: only one that is worth it goes ahead of answers. */
enum { BATCH_WORTH = 64, BUSY_BATCHES = 2 };

/* What the operator writes in conninfo wins: it is expanded after these. */
static const char *const session_options[][2] = {
    { "tcp_user_timeout", "3000" }, { "keepalives", "1" },
    { "keepalives_idle", "2" },     { "keepalives_interval", "1" },
    { "keepalives_count", "2" },
};

/* The fence comes along: after a new session we know at once whether we are stale. */
static const char announce_sql[] =
    "SELECT f.epoch, redoubt.announce(split_part($1::text, '/', 1)::bigint, 'server',"
    " split_part($1::text, '/', 2)) FROM redoubt.fence f";
static const char exchange_sql[] = "SELECT n, answer FROM redoubt.device_exchange($1)";

static const char *const store_queries[] = {
    [STORE_READ_POLICIES] =
        "SELECT group_id, hash,"
        " CASE WHEN $1::jsonb ->> group_id::text = hash THEN NULL ELSE document END"
        " FROM redoubt.effective LIMIT 10000",
    [STORE_READ_DEVICES] =
        "SELECT device_id FROM redoubt.run WHERE occurrence_id = $1::uuid"
        " UNION SELECT device_id FROM redoubt.rollout_device"
        " WHERE rollout_id = $1::uuid"
        " AND state IN ('offered', 'returning') LIMIT 1000000",
};

enum op_kind { OP_PREPARE, OP_LISTEN, OP_ANNOUNCE, OP_BATCH, OP_FENCE, OP_READ };

/* A read that waits for its turn. */
struct wanted {
    enum store_query query;
    char *value;
};

/* One segment of the pipeline: a query and its sync, answered in order. */
struct op {
    enum op_kind kind;
    struct batch *batch;    /* OP_BATCH: owned */
    enum store_query query; /* OP_READ */
    bool failed;
    PGresult *rows; /* owned; the transaction may still fail to commit */
    char sqlstate[6];
    char why[160];
};

struct store {
    sd_event *event;         /* owned reference */
    sd_event_source *io;     /* of the session's socket */
    sd_event_source *timer;  /* the deadline of what is awaited, or the next attempt */
    sd_event_source *sender; /* sends what was added in this turn of the loop */
    char *conninfo;
    char node[64];
    struct store_hooks hooks;
    PGconn *pg;
    int fd; /* that io watches */
    bool connecting, prepared, announced, stale, down_told;
    uint64_t epoch; /* 0: standby */
    uint32_t backoff_ms;
    struct op op[STORE_IN_FLIGHT_MAX]; /* ring, oldest first */
    uint32_t op_first, op_count;
    struct batch_list waiting;
    struct wanted wanted[STORE_READS_MAX]; /* ring, oldest first */
    uint32_t wanted_first, wanted_count;
    struct store_counts counts;
};

struct store_rows {
    const PGresult *r;
};

static void connect_start(struct store *s);
static void send_waiting(struct store *s);

static void timer_set(struct store *s, uint32_t ms)
{
    (void)sd_event_source_set_time_relative(s->timer, (uint64_t)ms * 1000u);
    (void)sd_event_source_set_enabled(s->timer, SD_EVENT_ONESHOT);
}

static void timer_off(struct store *s)
{
    (void)sd_event_source_set_enabled(s->timer, SD_EVENT_OFF);
}

static void changed(struct store *s, const char *why)
{
    s->hooks.changed(s->hooks.arg, store_state(s), why);
}

/* Tells every item of the batch its outcome, and frees the batch. */
static void batch_end(struct store *s, struct batch *b, enum store_outcome outcome,
                      const char *why)
{
    struct store_done done = { .outcome = outcome, .why = why };

    if (outcome == STORE_REFUSED)
        s->counts.refused += b->count;
    for (uint32_t i = 0; i < b->count; i++)
        s->hooks.done(s->hooks.arg, b->item[i].ticket, &done);
    batch_free(b);
}

static struct str field(const PGresult *r, int row, int column)
{
    if (PQgetisnull(r, row, column))
        return (struct str){ NULL, 0 };
    return (struct str){ PQgetvalue(r, row, column),
                         (size_t)PQgetlength(r, row, column) };
}

/* The batch was committed: hands each item its answer, and frees the batch. */
static void batch_committed(struct store *s, struct batch *b, const PGresult *r)
{
    struct str answer[STORE_BATCH_MAX] = { 0 };
    uint64_t n;

    for (int row = 0; row < PQntuples(r); row++)
        if (str_u64(field(r, row, 0), b->count, &n) && n > 0)
            answer[n - 1] = field(r, row, 1);
    s->counts.items += b->count;
    for (uint32_t i = 0; i < b->count; i++) {
        struct store_done done = { .outcome = STORE_COMMITTED,
                                   .why = "",
                                   .answer = answer[i] };

        s->hooks.done(s->hooks.arg, b->item[i].ticket, &done);
    }
    batch_free(b);
}

static struct wanted wanted_pop(struct store *s)
{
    struct wanted w = s->wanted[s->wanted_first];

    s->wanted_first = (s->wanted_first + 1) % STORE_READS_MAX;
    s->wanted_count--;
    return w;
}

uint32_t store_rows_count(const struct store_rows *r)
{
    return (uint32_t)PQntuples(r->r);
}

struct str store_rows_get(const struct store_rows *r, uint32_t row, uint32_t column)
{
    return field(r->r, (int)row, (int)column);
}

/* Ends the session; what was on its way or waits is told, unless the caller is leaving. */
static void session_end(struct store *s, bool tell, const char *why)
{
    struct batch_list orphans = { 0 };
    struct batch *b;
    bool reads[LEN(store_queries)] = { false };

    s->io = sd_event_source_disable_unref(s->io);
    PQfinish(s->pg);
    s->pg = NULL;
    s->fd = -1;
    s->connecting = s->prepared = s->announced = false;
    for (; s->op_count > 0; s->op_count--) {
        struct op *o = &s->op[s->op_first];

        if (o->batch)
            batch_push(&orphans, o->batch);
        if (o->kind == OP_READ)
            reads[o->query] = true;
        PQclear(o->rows);
        *o = (struct op){ 0 };
        s->op_first = (s->op_first + 1) % STORE_IN_FLIGHT_MAX;
    }
    while ((b = batch_pop(&s->waiting)))
        batch_push(&orphans, b);
    while (s->wanted_count > 0) {
        struct wanted w = wanted_pop(s);

        reads[w.query] = true;
        free(w.value);
    }
    while ((b = batch_pop(&orphans))) {
        if (tell)
            batch_end(s, b, STORE_UNKNOWN, why);
        else
            batch_free(b);
    }
    for (size_t i = 0; tell && i < LEN(reads); i++)
        if (reads[i])
            s->hooks.read(s->hooks.arg, (enum store_query)i, NULL);
}

/* The session failed: say so, and try again a little later. */
static void session_lost(struct store *s, const char *why)
{
    char words[200];

    (void)snprintf(words, sizeof(words), "%s", why);
    words[strcspn(words, "\n")] = '\0';
    session_end(s, true, words);
    s->counts.reconnects++;
    timer_set(s, s->backoff_ms);
    s->backoff_ms =
        s->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : s->backoff_ms * 2;
    if (!s->down_told) {
        s->down_told = true;
        changed(s, words);
    }
}

/* The time of the oldest operation begins. */
static void op_clock(struct store *s)
{
    enum op_kind kind = s->op[s->op_first].kind;

    timer_set(s, kind == OP_BATCH || kind == OP_READ ? BATCH_MS : ANSWER_MS);
}

static struct op *op_push(struct store *s, enum op_kind kind, struct batch *b)
{
    CHECK(s->op_count < STORE_IN_FLIGHT_MAX);
    struct op *o = &s->op[(s->op_first + s->op_count++) % STORE_IN_FLIGHT_MAX];

    *o = (struct op){ .kind = kind, .batch = b };
    if (s->op_count == 1)
        op_clock(s);
    return o;
}

static void io_watch(struct store *s)
{
    int left = PQflush(s->pg);

    if (s->io)
        (void)sd_event_source_set_io_events(s->io,
                                            left > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

/* Sends one query with at most one parameter as a segment of its own. */
static bool op_send_query(struct store *s, enum op_kind kind, struct batch *b,
                          const char *value, enum store_query query)
{
    int ok = 0;

    struct op *o = op_push(s, kind, b);

    o->query = query;
    switch (kind) {
    case OP_PREPARE: ok = PQsendPrepare(s->pg, "exchange", exchange_sql, 0, NULL); break;
    case OP_LISTEN:
        ok = PQsendQueryParams(s->pg, "LISTEN redoubt", 0, NULL, NULL, NULL, NULL, 0);
        break;
    case OP_ANNOUNCE:
        ok = PQsendQueryParams(s->pg, announce_sql, 1, NULL, &value, NULL, NULL, 0);
        break;
    case OP_BATCH:
        ok = PQsendQueryPrepared(s->pg, "exchange", 1, &value, NULL, NULL, 0);
        break;
    case OP_FENCE:
        ok = PQsendQueryParams(s->pg, "SELECT epoch FROM redoubt.fence", 0, NULL, NULL,
                               NULL, NULL, 0);
        break;
    case OP_READ:
        ok = PQsendQueryParams(s->pg, store_queries[query], 1, NULL, &value, NULL, NULL,
                               0);
        break;
    }
    if (ok && PQpipelineSync(s->pg)) {
        io_watch(s);
        return true;
    }
    session_lost(s, PQerrorMessage(s->pg));
    return false;
}

static bool op_send(struct store *s, enum op_kind kind, struct batch *b,
                    const char *value)
{
    return op_send_query(s, kind, b, value, STORE_READ_POLICIES);
}

static void announce(struct store *s)
{
    char who[96]; /* "<epoch>/<node>" */

    if (!s->prepared || s->announced || s->epoch == 0 || s->stale ||
        s->op_count == STORE_IN_FLIGHT_MAX)
        return;
    s->announced = true;
    (void)snprintf(who, sizeof(who), "%" PRIu64 "/%s", s->epoch, s->node);
    (void)op_send(s, OP_ANNOUNCE, NULL, who);
}

/* What waits fills up while the DBMS works: fewer batches, and less work in all. */
static bool batch_due(const struct store *s)
{
    return s->waiting.first && (s->op_count == 0 || s->waiting.count > 1 ||
                                s->waiting.first->count >= BATCH_WORTH);
}

/* One read, then batches while there is room: neither starves the other. */
static void send_waiting(struct store *s)
{
    struct batch *b;

    if (s->prepared && s->wanted_count > 0 && s->op_count < STORE_IN_FLIGHT_MAX) {
        struct wanted w = wanted_pop(s);
        bool ok = op_send_query(s, OP_READ, NULL, w.value, w.query);

        free(w.value);
        if (!ok)
            return;
    }
    while (store_state(s) == STORE_READY && s->op_count < STORE_IN_FLIGHT_MAX &&
           batch_due(s) && (b = batch_pop(&s->waiting))) {
        s->counts.batches++;
        if (!op_send(s, OP_BATCH, b, batch_text(b)))
            return;
    }
}

/* The fence refused us: is it ahead of us (we are stale), or not there yet? */
static void fence_known(struct store *s, const PGresult *r)
{
    uint64_t fence = 0;
    bool ok = PQntuples(r) == 1 && !PQgetisnull(r, 0, 0) &&
              str_u64(str_of(PQgetvalue(r, 0, 0)), UINT64_MAX, &fence);

    if (ok && s->epoch != 0 && fence > s->epoch && !s->stale) {
        char why[96];

        s->stale = true;
        (void)snprintf(why, sizeof(why),
                       "the fence is at epoch %" PRIu64 ", this is %" PRIu64, fence,
                       s->epoch);
        changed(s, why);
    }
}

/*
 * A segment may have two results: the rows, then an error of the commit at its sync
 * (a deferred constraint).  One error is enough, whatever came before it.  True: the
 * operation keeps the result.
 */
static bool op_result(struct store *s, struct op *o, PGresult *r)
{
    ExecStatusType status = PQresultStatus(r);

    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
        const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
        const char *text = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);

        o->failed = true;
        (void)snprintf(o->sqlstate, sizeof(o->sqlstate), "%s", state ? state : "?");
        (void)snprintf(o->why, sizeof(o->why), "%s", text ? text : "no answer");
        return false;
    }
    if (o->kind == OP_FENCE || o->kind == OP_ANNOUNCE) {
        fence_known(s, r);
    } else if ((o->kind == OP_BATCH || o->kind == OP_READ) && !o->rows) {
        o->rows = r;
        return true;
    }
    return false;
}

/* SQLSTATE classes that blame the data: the same item would fail again. */
static bool is_data_error(const char *sqlstate)
{
    return sqlstate[0] == '2' && sqlstate[1] >= '1' && sqlstate[1] <= '3';
}

static void batch_answered(struct store *s, struct op *o)
{
    struct batch *b = o->batch;

    o->batch = NULL;
    if (o->rows && !o->failed)
        batch_committed(s, b, o->rows);
    else if (!is_data_error(o->sqlstate))
        batch_end(s, b, STORE_UNKNOWN, o->why);
    else if (b->count > 1 && batch_split(&s->waiting, b))
        batch_free(b);
    else
        batch_end(s, b, STORE_REFUSED, o->why);
}

static void read_answered(struct store *s, const struct op *o)
{
    struct store_rows rows = { o->rows };

    s->hooks.read(s->hooks.arg, o->query, o->rows && !o->failed ? &rows : NULL);
}

/* A segment is over: its transaction, if it had one, has ended.  False: session ended. */
static bool op_end(struct store *s)
{
    struct op o = s->op[s->op_first];

    s->op[s->op_first] = (struct op){ 0 };
    s->op_first = (s->op_first + 1) % STORE_IN_FLIGHT_MAX;
    s->op_count--;
    if (s->op_count > 0)
        op_clock(s);
    else
        timer_off(s);
    if (o.kind == OP_BATCH)
        batch_answered(s, &o);
    else if (o.kind == OP_READ)
        read_answered(s, &o);
    PQclear(o.rows);
    if (o.kind == OP_LISTEN && !o.failed) {
        s->prepared = true;
        s->down_told = false;
        s->backoff_ms = BACKOFF_MS;
        changed(s, "");
    } else if (o.kind == OP_ANNOUNCE && !o.failed) {
        changed(s, "");
    }
    /* The hooks may have ended the session. */
    if (s->pg && o.kind == OP_FENCE && !s->announced && s->op_count == 0)
        timer_set(s, BACKOFF_MS); /* the fence is behind us: announce again */
    if (!s->pg || !o.failed)
        return s->pg != NULL;
    if (strcmp(o.sqlstate, "RD001") == 0) {
        if (o.kind == OP_ANNOUNCE)
            s->announced = false;
        return s->stale || s->op_count == STORE_IN_FLIGHT_MAX ||
               op_send(s, OP_FENCE, NULL, NULL);
    }
    if (o.kind == OP_BATCH || o.kind == OP_READ)
        return true;
    session_lost(s, o.why);
    return false;
}

/*
 * Takes every result that is there without waiting.  False: session ended.  A NULL ends
 * the results of one query; two in a row say that nothing more comes (a dead session
 * gives NULL for ever).
 */
static bool results_take(struct store *s)
{
    bool was_null = false;

    while (s->op_count > 0 && !PQisBusy(s->pg)) {
        PGresult *r = PQgetResult(s->pg);
        bool sync = r && PQresultStatus(r) == PGRES_PIPELINE_SYNC;

        if (!r && was_null)
            break;
        was_null = !r;
        bool kept = r && !sync && op_result(s, &s->op[s->op_first], r);
        if (!kept)
            PQclear(r);
        if (sync && !op_end(s))
            return false;
    }
    return true;
}

/* False: session ended. */
static bool notifications_take(struct store *s)
{
    PGnotify *n;

    while (s->pg && (n = PQnotifies(s->pg))) {
        s->counts.notified++;
        s->hooks.notified(s->hooks.arg, str_of(n->extra));
        PQfreemem(n);
    }
    return s->pg != NULL;
}

static void session_io(struct store *s)
{
    if (!PQconsumeInput(s->pg)) {
        /* Results that came before the end count. */
        if (results_take(s))
            session_lost(s, PQerrorMessage(s->pg));
        return;
    }
    if (!results_take(s) || !notifications_take(s))
        return;
    if (PQstatus(s->pg) != CONNECTION_OK) {
        session_lost(s, PQerrorMessage(s->pg));
        return;
    }
    io_watch(s);
    announce(s);
    if (s->pg)
        send_waiting(s);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg);

/* The socket of a session may change while it connects: watch the present one. */
static bool io_follow(struct store *s, uint32_t events)
{
    int fd = PQsocket(s->pg);

    if (s->io && fd == s->fd)
        return sd_event_source_set_io_events(s->io, events) >= 0;
    s->io = sd_event_source_disable_unref(s->io);
    s->fd = fd;
    return fd >= 0 && sd_event_add_io(s->event, &s->io, fd, events, on_io, s) >= 0;
}

static void connect_step(struct store *s)
{
    PostgresPollingStatusType p = PQconnectPoll(s->pg);

    if (p == PGRES_POLLING_READING || p == PGRES_POLLING_WRITING) {
        if (!io_follow(s, p == PGRES_POLLING_READING ? EPOLLIN : EPOLLOUT))
            session_lost(s, "cannot watch the DBMS session");
        return;
    }
    if (p != PGRES_POLLING_OK || PQsetnonblocking(s->pg, 1) != 0 ||
        !PQenterPipelineMode(s->pg) || !io_follow(s, EPOLLIN)) {
        session_lost(s, PQerrorMessage(s->pg));
        return;
    }
    s->connecting = false;
    timer_off(s);
    if (op_send(s, OP_PREPARE, NULL, NULL))
        (void)op_send(s, OP_LISTEN, NULL, NULL);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct store *s = arg;

    (void)source, (void)fd, (void)revents;
    if (s->connecting)
        connect_step(s);
    else
        session_io(s);
    return 0;
}

static void notice(void *arg, const PGresult *r)
{
    (void)arg, (void)r; /* notices are for people at psql */
}

static PGconn *session_start(const struct store *s)
{
    const char *keys[LEN(session_options) + 2] = { 0 };
    const char *values[LEN(session_options) + 2] = { 0 };
    size_t n = 0;

    for (; n < LEN(session_options); n++) {
        keys[n] = session_options[n][0];
        values[n] = session_options[n][1];
    }
    keys[n] = "dbname"; /* a whole conninfo */
    values[n] = s->conninfo;
    return PQconnectStartParams(keys, values, 1);
}

static void connect_start(struct store *s)
{
    s->pg = session_start(s);
    if (!s->pg || PQstatus(s->pg) == CONNECTION_BAD) {
        session_lost(s, s->pg ? PQerrorMessage(s->pg) : "out of memory");
        return;
    }
    (void)PQsetNoticeReceiver(s->pg, notice, NULL);
    s->connecting = true;
    timer_set(s, CONNECT_MS);
    if (!io_follow(s, EPOLLOUT))
        session_lost(s, "cannot watch the DBMS session");
}

static int on_timer(sd_event_source *source, uint64_t us, void *arg)
{
    struct store *s = arg;

    (void)source, (void)us;
    if (!s->pg)
        connect_start(s);
    else if (!s->connecting && s->op_count == 0)
        announce(s);
    else
        session_lost(s, s->connecting ? "the DBMS did not take the connection in time"
                                      : "the DBMS did not answer in time");
    return 0;
}

static int on_sender(sd_event_source *source, void *arg)
{
    (void)source;
    send_waiting(arg);
    return 0;
}

enum err store_new(sd_event *event, const char *conninfo, const char *node,
                   const struct store_hooks *hooks, struct store **out,
                   struct err_info *info)
{
    struct store *s = calloc(1, sizeof(*s));

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "DBMS session");
    s->event = sd_event_ref(event);
    s->conninfo = strdup(conninfo);
    (void)snprintf(s->node, sizeof(s->node), "%s", node);
    s->hooks = *hooks;
    s->fd = -1;
    s->backoff_ms = BACKOFF_MS;
    int n =
        sd_event_add_time_relative(event, &s->timer, CLOCK_BOOTTIME, 0, 0, on_timer, s);
    if (n >= 0)
        n = sd_event_add_defer(event, &s->sender, on_sender, s);
    if (n >= 0)
        n = sd_event_source_set_enabled(s->sender, SD_EVENT_OFF);
    if (n < 0 || !s->conninfo) {
        store_free(s);
        return err_set(info, ERR_MEMORY, n < 0 ? -n : ENOMEM, "DBMS session");
    }
    *out = s;
    return ERR_OK;
}

void store_free(struct store *s)
{
    if (!s)
        return;
    session_end(s, false, "");
    s->timer = sd_event_source_disable_unref(s->timer);
    s->sender = sd_event_source_disable_unref(s->sender);
    sd_event_unref(s->event);
    free(s->conninfo);
    free(s);
}

void store_active(struct store *s, uint64_t epoch)
{
    CHECK(epoch != 0);
    if (epoch == s->epoch)
        return;
    if (s->announced)
        store_standby(s);
    s->epoch = epoch;
    s->stale = false;
    if (!s->pg && !s->connecting)
        timer_set(s, 0); /* no time to lose with a backoff */
    if (s->pg)
        announce(s);
}

void store_standby(struct store *s)
{
    bool used = s->announced;

    s->epoch = 0;
    s->stale = false;
    if (!used)
        return; /* the warm session has written nothing */
    session_end(s, false, "");
    timer_set(s, 0); /* a warm one for the next time */
}

enum err store_add(struct store *s, uint64_t ticket, struct str item)
{
    if (store_state(s) != STORE_READY)
        return ERR_STATE;
    CHECK(item.n <= STORE_ITEM_MAX);
    struct batch *b = s->waiting.last;
    if (!b || !batch_has_room(b, item)) {
        if (s->waiting.count >= STORE_QUEUE_MAX || !(b = batch_new()))
            return ERR_LIMIT;
        batch_push(&s->waiting, b);
    }
    batch_add(b, ticket, item);
    if (sd_event_source_set_enabled(s->sender, SD_EVENT_ONESHOT) < 0)
        send_waiting(s);
    return ERR_OK;
}

bool store_busy(const struct store *s)
{
    return s->waiting.count >= BUSY_BATCHES;
}

enum err store_read(struct store *s, enum store_query query, const char *value)
{
    if (!s->prepared)
        return ERR_STATE;
    if (s->wanted_count == STORE_READS_MAX || strlen(value) > STORE_VALUE_MAX)
        return ERR_LIMIT;
    char *copy = strdup(value);
    if (!copy)
        return ERR_LIMIT;
    s->wanted[(s->wanted_first + s->wanted_count++) % STORE_READS_MAX] =
        (struct wanted){ query, copy };
    if (sd_event_source_set_enabled(s->sender, SD_EVENT_ONESHOT) < 0)
        send_waiting(s);
    return ERR_OK;
}

enum store_state store_state(const struct store *s)
{
    if (s->stale)
        return STORE_STALE;
    if (!s->prepared)
        return STORE_DOWN;
    return s->announced ? STORE_READY : STORE_WARM;
}

const char *store_state_name(enum store_state state)
{
    static const char *const names[] = { "down", "warm", "ready", "stale" };

    return names[state];
}

const struct store_counts *store_counts(const struct store *s)
{
    return &s->counts;
}
