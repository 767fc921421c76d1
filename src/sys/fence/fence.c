#include "sys/fence/fence.h"

#include "base/mono.h"
#include "base/str.h"
#include "sys/fence/dbc.h"

enum {
    PROBE_LIMIT_MS = 2000, /* a probe or a connection takes at most this long */
    RAISE_TRIES = 3,       /* a raise gets this many connections within its time */
    RAISE_ROUND_MS = 150,  /* for the way there and back, and the last round there */
};

struct raise {
    uint32_t request;      /* 0: none */
    uint64_t epoch, asked; /* asked: by the try that was sent last */
    bool sent;
    struct mono deadline;
    enum err last; /* why the last try failed */
    struct err_info why;
};

struct fence_pg {
    sd_event *loop;
    struct fence_events events;
    char node[64];
    uint32_t probe_ms, fence_timeout_ms;
    struct dbc *dbc;
    sd_event_source *probe_timer, *raise_timer, *later;
    struct mono asked; /* when the probe in flight was sent */
    struct raise raise;
    /* A raise that a newer one replaced: answered from the loop. */
    uint32_t overtaken;
};

const char *fence_state_name(enum fence_state s)
{
    static const char *const names[FENCE_STATE_COUNT] = {
#define X(code, name) [code] = name,
        FENCE_STATES(X)
#undef X
    };

    return (unsigned)s < FENCE_STATE_COUNT ? names[s] : "unknown";
}

static struct mono now_of(void)
{
    struct timespec ts;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &ts) == 0);
    return (struct mono){ (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u };
}

static void arm(sd_event_source *timer, uint32_t ms)
{
    (void)sd_event_source_set_time_relative(timer, (uint64_t)ms * 1000u);
    (void)sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

/* --- health ---------------------------------------------------------------------- */

static void tell_bad(struct fence_pg *f, enum fence_state state,
                     const struct err_info *why)
{
    struct fence_health h = { .state = state,
                              .why = why,
                              .server_version = dbc_server_version(f->dbc) };

    f->events.health(f->events.ctx, &h);
}

static enum fence_state state_of(enum err e)
{
    if (e == ERR_DENIED)
        return FENCE_DENIED;
    if (e == ERR_STATE)
        return FENCE_READ_ONLY;
    if (e == ERR_TIMEOUT || e == ERR_CLOSED)
        return FENCE_UNREACHABLE;
    return FENCE_BROKEN;
}

static uint64_t cell(const PGresult *r, int column)
{
    const char *text = PQgetvalue(r, 0, column);
    uint64_t value;

    return str_u64(str_of(text), INT64_MAX, &value) ? value : 0;
}

/* Columns: epoch, newest version, the version its programs must know at least, standby. */
static void judge(struct fence_pg *f, const PGresult *r, uint32_t latency_us)
{
    struct fence_health h = { .latency_us = latency_us,
                              .server_version = dbc_server_version(f->dbc) };
    struct err_info why;

    h.schema = (int)cell(r, 1);
    if (cell(r, 3) != 0) {
        h.state = FENCE_READ_ONLY;
        err_set(&why, ERR_STATE, 0, "this PostgreSQL is a standby, it takes no writes");
    } else if (h.schema < FENCE_SCHEMA_VERSION) {
        h.state = FENCE_SCHEMA_TOO_OLD;
        err_set(
            &why, ERR_VERSION, 0,
            "the schema is at version %d, this program needs %d; run `redoubt database "
            "migrate`",
            h.schema, FENCE_SCHEMA_VERSION);
    } else if (cell(r, 2) > FENCE_SCHEMA_VERSION) {
        h.state = FENCE_SCHEMA_TOO_NEW;
        err_set(&why, ERR_VERSION, 0,
                "the schema is at version %d, which this program (%d) is too old for; "
                "install the newer Redoubt here",
                h.schema, FENCE_SCHEMA_VERSION);
    }
    h.ok = h.state == FENCE_GOOD;
    h.why = h.ok ? NULL : &why;
    h.epoch = h.ok ? cell(r, 0) : 0;
    f->events.health(f->events.ctx, &h);
}

static void send_raise(struct fence_pg *f);

static void on_probe(void *ctx, enum err err, const PGresult *r,
                     const struct err_info *why)
{
    struct fence_pg *f = ctx;
    struct err_info info;

    if (err == ERR_OK && PQntuples(r) == 1 && PQnfields(r) == 4) {
        judge(f, r, (uint32_t)(now_of().us - f->asked.us));
    } else if (err == ERR_OK || err == ERR_NOT_FOUND) {
        err_set(&info, ERR_NOT_FOUND, 0,
                "the schema is not in this database; run `redoubt init`");
        tell_bad(f, FENCE_SCHEMA_MISSING, &info);
    } else if (r) { /* without a result the connection is gone, and on_down() tells */
        tell_bad(f, state_of(err), why);
    }
    send_raise(f);
}

static void send_probe(struct fence_pg *f)
{
    static const char sql[] =
        "SELECT f.epoch, v.version, v.works_since, pg_is_in_recovery()::int"
        " FROM redoubt.fence f,"
        " LATERAL (SELECT s.version, s.works_since FROM redoubt.schema_version s"
        " ORDER BY s.version DESC LIMIT 1) v";
    int version = dbc_server_version(f->dbc);
    struct err_info info;

    if (version < FENCE_SERVER_MIN) {
        err_set(&info, ERR_VERSION, 0, "PostgreSQL %d is too old, at least %d is needed",
                version / 10000, FENCE_SERVER_MIN / 10000);
        tell_bad(f, FENCE_SERVER_TOO_OLD, &info);
        return;
    }
    f->asked = now_of();
    dbc_query(f->dbc, PROBE_LIMIT_MS, sql, 0, NULL, on_probe, f);
}

static int on_probe_timer(sd_event_source *s, uint64_t usec, void *ctx)
{
    struct fence_pg *f = ctx;

    (void)s, (void)usec;
    if (dbc_idle(f->dbc))
        send_probe(f);
    arm(f->probe_timer, f->probe_ms);
    return 0;
}

/* --- raising ----------------------------------------------------------------------- */

static uint32_t try_ms(const struct fence_pg *f)
{
    return f->fence_timeout_ms / RAISE_TRIES;
}

static void end_raise(struct fence_pg *f, enum err e, uint64_t found,
                      const struct err_info *why)
{
    uint32_t request = f->raise.request;

    f->raise.request = 0;
    (void)sd_event_source_set_enabled(f->raise_timer, SD_EVENT_OFF);
    if (request != 0)
        f->events.answer(f->events.ctx, request, e, found, e == ERR_OK ? NULL : why);
}

static void try_failed(struct fence_pg *f, enum err e, const struct err_info *why)
{
    f->raise.last = e;
    f->raise.why = *why;
}

/* Columns: ok, epoch, node, ended, why. */
static void raised(struct fence_pg *f, const PGresult *r)
{
    bool ok = PQntuples(r) == 1 && strcmp(PQgetvalue(r, 0, 0), "t") == 0;
    bool stale = !ok && strcmp(PQgetvalue(r, 0, 4), "stale") == 0;
    uint64_t found = cell(r, 1);
    struct err_info info;

    if (ok) {
        end_raise(f, ERR_OK, found, NULL);
    } else if (stale) {
        err_set(&info, ERR_STALE, 0, "the fence is at epoch %llu of %.60s",
                (unsigned long long)found, PQgetvalue(r, 0, 2));
        end_raise(f, ERR_STALE, found, &info);
    } else {
        err_set(&info, ERR_STATE, 0, "the fence is held: %.150s", PQgetvalue(r, 0, 4));
        try_failed(f, ERR_STATE, &info);
        send_raise(f);
    }
}

static void on_raise(void *ctx, enum err err, const PGresult *r,
                     const struct err_info *why)
{
    struct fence_pg *f = ctx;

    f->raise.sent = false;
    if (f->raise.request == 0)
        return; /* it was answered by its time limit */
    if (f->raise.asked != f->raise.epoch) {
        /* The answer to one that was overtaken says nothing about the present one. */
        dbc_retry_now(f->dbc);
        send_raise(f);
    } else if (err == ERR_OK) {
        raised(f, r);
    } else if (r && !err_may_retry(err)) {
        end_raise(f, err, 0, why);
    } else {
        try_failed(f, err, why);
        dbc_retry_now(f->dbc); /* nothing, if it is still connected */
        send_raise(f);
    }
}

/*
 * As soon as the connection is free; the callbacks of dbc come back here.  A try that could
 * not end in time is not begun, so that the answer is what the last one found.
 */
static void send_raise(struct fence_pg *f)
{
    char epoch[24], wait[16];
    const char *values[] = { epoch, f->node, wait };
    uint32_t left = mono_since_ms(f->raise.deadline, now_of());
    uint32_t wait_ms = try_ms(f) / 4 * 3, round_ms = f->fence_timeout_ms / 4;

    if (round_ms > RAISE_ROUND_MS)
        round_ms = RAISE_ROUND_MS;
    if (f->raise.request == 0 || !dbc_idle(f->dbc) || left <= round_ms)
        return;
    if (wait_ms > left - round_ms)
        wait_ms = left - round_ms;
    (void)snprintf(epoch, sizeof(epoch), "%llu", (unsigned long long)f->raise.epoch);
    (void)snprintf(wait, sizeof(wait), "%u", wait_ms);
    f->raise.sent = true;
    f->raise.asked = f->raise.epoch;
    dbc_query(f->dbc, try_ms(f),
              "SELECT ok, epoch, node, ended, why"
              " FROM redoubt.raise_fence($1::bigint, $2, $3::int)",
              LEN(values), values, on_raise, f);
}

static int on_raise_timer(sd_event_source *s, uint64_t usec, void *ctx)
{
    struct fence_pg *f = ctx;
    struct err_info late = { .what = "the DBMS did not answer in time" };

    (void)s, (void)usec;
    if (f->raise.sent) /* on its way: whatever failed before, this one is unknown */
        end_raise(f, ERR_TIMEOUT, 0, &late);
    else
        end_raise(f, f->raise.last, 0, &f->raise.why);
    return 0;
}

static int on_later(sd_event_source *s, void *ctx)
{
    struct fence_pg *f = ctx;
    struct err_info info = { .what = "a newer epoch is being raised" };
    uint32_t overtaken = f->overtaken;

    (void)s;
    f->overtaken = 0;
    if (overtaken != 0)
        f->events.answer(f->events.ctx, overtaken, ERR_STATE, 0, &info);
    send_raise(f);
    return 0;
}

static void raise_epoch(void *impl, uint32_t request, uint64_t epoch)
{
    struct fence_pg *f = impl;

    CHECK(request != 0 && f->overtaken == 0);
    f->overtaken = f->raise.request;
    f->raise.request = request;
    f->raise.epoch = epoch;
    f->raise.last = ERR_TIMEOUT;
    (void)err_set(&f->raise.why, ERR_TIMEOUT, 0, "there is no connection to the DBMS");
    f->raise.deadline = mono_after(now_of(), f->fence_timeout_ms);
    arm(f->raise_timer, f->fence_timeout_ms);
    dbc_hurry(f->dbc, try_ms(f)); /* a probe that hangs must not eat the time */
    dbc_retry_now(f->dbc);
    (void)sd_event_source_set_enabled(f->later, SD_EVENT_ONESHOT);
}

/* --- the connection ------------------------------------------------------------------ */

static void on_up(void *ctx)
{
    struct fence_pg *f = ctx;

    if (f->raise.request != 0)
        send_raise(f);
    else
        send_probe(f);
}

static void on_down(void *ctx, enum err err, const struct err_info *why)
{
    struct fence_pg *f = ctx;

    if (f->raise.request != 0) {
        try_failed(f, err, why);
        dbc_retry_now(f->dbc);
    }
    tell_bad(f, state_of(err == ERR_NOT_FOUND ? ERR_CLOSED : err), why);
}

/* --- life ------------------------------------------------------------------------------ */

static enum err add_timers(struct fence_pg *f, struct err_info *info)
{
    const clockid_t clock = CLOCK_BOOTTIME;
    int r = sd_event_add_time_relative(f->loop, &f->probe_timer, clock,
                                       (uint64_t)f->probe_ms * 1000u, 1000,
                                       on_probe_timer, f);

    if (r >= 0)
        r = sd_event_add_time_relative(f->loop, &f->raise_timer, clock, 0, 1000,
                                       on_raise_timer, f);
    if (r >= 0)
        r = sd_event_source_set_enabled(f->raise_timer, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_defer(f->loop, &f->later, on_later, f);
    if (r >= 0)
        r = sd_event_source_set_enabled(f->later, SD_EVENT_OFF);
    return r < 0 ? err_set(info, ERR_MEMORY, -r, "add a timer") : ERR_OK;
}

static enum err connect_it(struct fence_pg *f, const char *conninfo,
                           struct err_info *info)
{
    struct dbc_events events = { .up = on_up, .down = on_down, .ctx = f };
    char name[64];
    struct dsn *dsn;

    (void)snprintf(name, sizeof(name), "redoubt-fence/%.40s", f->node);
    enum err e = dsn_new(&dsn, conninfo, name, info);
    return e != ERR_OK ? e
                       : dbc_open(&f->dbc, f->loop, dsn, PROBE_LIMIT_MS, &events, info);
}

enum err fence_open(struct fence_pg **out, sd_event *loop, const struct fence_options *o,
                    const struct fence_events *events, struct err_info *info)
{
    struct fence_pg *f = calloc(1, sizeof(*f));

    if (!f)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    f->loop = sd_event_ref(loop);
    f->events = *events;
    f->probe_ms = o->probe_ms;
    f->fence_timeout_ms = o->fence_timeout_ms;
    enum err e = str_copy(f->node, sizeof(f->node), str_of(o->node))
                     ? add_timers(f, info)
                     : err_set(info, ERR_CONFIG, 0, "the node's name is too long");
    if (e == ERR_OK)
        e = connect_it(f, o->conninfo, info);
    if (e != ERR_OK) {
        fence_close(f);
        return e;
    }
    *out = f;
    return ERR_OK;
}

void fence_close(struct fence_pg *f)
{
    if (!f)
        return;
    dbc_close(f->dbc);
    f->probe_timer = sd_event_source_disable_unref(f->probe_timer);
    f->raise_timer = sd_event_source_disable_unref(f->raise_timer);
    f->later = sd_event_source_disable_unref(f->later);
    sd_event_unref(f->loop);
    free(f);
}

struct fence fence_port(struct fence_pg *f)
{
    static const struct fence_ops ops = { .raise = raise_epoch };

    return (struct fence){ .ops = &ops, .impl = f };
}
