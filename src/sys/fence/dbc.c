#include "sys/fence/dbc.h"

#include "base/str.h"
#include "sys/fence/lookup.h"

enum {
    DBC_BACKOFF_MS = 100,
    DBC_BACKOFF_MAX_MS = 2000,
    DBC_LOOKUP_MS = 2000,
};

enum dbc_state { DBC_WAITING, DBC_LOOKUP, DBC_CONNECTING, DBC_IDLE, DBC_BUSY };

struct dbc {
    sd_event *loop;
    struct dsn *dsn;
    uint32_t connect_timeout_ms, backoff_ms;
    struct dbc_events events;
    enum dbc_state state;
    bool names_fresh; /* the addresses are worth a try without asking again */
    struct lookup lookup;
    PGconn *conn;
    int fd; /* what `io` watches; -1: none */
    sd_event_source *io, *limit, *retry;
    PGresult *result; /* of the query in flight: its first */
    dbc_done *done;
    void *done_ctx;
};

/* --- errors -------------------------------------------------------------------- */

static const struct {
    const char *prefix; /* of SQLSTATE, the longest first */
    enum err err;
} sqlstates[] = {
    { "RD001", ERR_STALE },     { "42501", ERR_DENIED },    { "28", ERR_DENIED },
    { "3F000", ERR_NOT_FOUND }, { "3D000", ERR_NOT_FOUND }, { "42P01", ERR_NOT_FOUND },
    { "42883", ERR_NOT_FOUND }, { "25006", ERR_STATE },     { "53100", ERR_FULL },
    { "53", ERR_LIMIT },        { "57P", ERR_CLOSED },      { "08", ERR_CLOSED },
};

/* libpq's messages have several lines; the first says what, often "ERROR:  " before. */
static enum err from_message(struct err_info *info, enum err e, const char *what,
                             const char *message)
{
    size_t line = strcspn(message, "\n");

    return err_set(info, e, 0, "%s: %.*s", what, (int)line, message);
}

enum err dbc_error(const PGresult *result, char state[DBC_SQLSTATE],
                   struct err_info *info)
{
    const char *field = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *code = field ? field : "";
    const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    enum err e = ERR_IO;

    if (state && !str_copy(state, DBC_SQLSTATE, str_of(code)))
        state[0] = '\0';
    for (size_t i = 0; i < LEN(sqlstates); i++)
        if (strncmp(code, sqlstates[i].prefix, strlen(sqlstates[i].prefix)) == 0) {
            e = sqlstates[i].err;
            break;
        }
    return from_message(info, e, "DBMS", text ? text : PQresultErrorMessage(result));
}

/* --- timers -------------------------------------------------------------------- */

static void arm(sd_event_source *timer, uint32_t ms)
{
    (void)sd_event_source_set_time_relative(timer, (uint64_t)ms * 1000u);
    (void)sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

static void disarm(sd_event_source *timer)
{
    (void)sd_event_source_set_enabled(timer, SD_EVENT_OFF);
}

/* --- losing it ------------------------------------------------------------------ */

static void drop(struct dbc *d)
{
    lookup_stop(&d->lookup);
    disarm(d->limit);
    d->io = sd_event_source_disable_unref(d->io);
    d->fd = -1;
    if (d->conn)
        PQfinish(d->conn);
    d->conn = NULL;
    PQclear(d->result);
    d->result = NULL;
    d->state = DBC_WAITING;
}

static void fail(struct dbc *d, enum err e, const struct err_info *why)
{
    dbc_done *done = d->state == DBC_BUSY ? d->done : NULL;

    if (d->state == DBC_CONNECTING)
        d->names_fresh = false;
    drop(d);
    arm(d->retry, d->backoff_ms);
    d->backoff_ms =
        d->backoff_ms * 2 > DBC_BACKOFF_MAX_MS ? DBC_BACKOFF_MAX_MS : d->backoff_ms * 2;
    if (done)
        done(d->done_ctx, e, NULL, why);
    d->events.down(d->events.ctx, e, why);
}

static void fail_by_libpq(struct dbc *d, const char *what)
{
    struct err_info info;
    enum err e = PQconnectionNeedsPassword(d->conn) ? ERR_DENIED : ERR_CLOSED;

    from_message(&info, e, what, PQerrorMessage(d->conn));
    fail(d, e, &info);
}

static int on_limit(sd_event_source *s, uint64_t usec, void *ctx)
{
    struct dbc *d = ctx;
    struct err_info info;

    (void)s, (void)usec;
    err_set(&info, ERR_TIMEOUT, 0,
            d->state == DBC_BUSY ? "the DBMS does not answer"
                                 : "the DBMS does not accept a connection in time");
    fail(d, ERR_TIMEOUT, &info);
    return 0;
}

/* --- connecting ------------------------------------------------------------------- */

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *ctx);

/* libpq may go on with another socket when it tries the next address. */
static bool watch(struct dbc *d, uint32_t what)
{
    int fd = PQsocket(d->conn);

    if (fd == d->fd && d->io)
        return sd_event_source_set_io_events(d->io, what) >= 0;
    d->io = sd_event_source_disable_unref(d->io);
    d->fd = fd;
    return fd >= 0 && sd_event_add_io(d->loop, &d->io, fd, what, on_io, d) >= 0;
}

static void poll_connection(struct dbc *d)
{
    /* The old socket may be closed inside: it must not be watched any more then. */
    d->io = sd_event_source_disable_unref(d->io);
    PostgresPollingStatusType st = PQconnectPoll(d->conn);

    if (st == PGRES_POLLING_READING || st == PGRES_POLLING_WRITING) {
        if (!watch(d, st == PGRES_POLLING_READING ? EPOLLIN : EPOLLOUT))
            fail_by_libpq(d, "connect to the DBMS");
        return;
    }
    if (st != PGRES_POLLING_OK || !watch(d, EPOLLIN) ||
        PQsetnonblocking(d->conn, 1) != 0) {
        fail_by_libpq(d, "connect to the DBMS");
        return;
    }
    disarm(d->limit);
    d->state = DBC_IDLE;
    d->backoff_ms = DBC_BACKOFF_MS;
    d->names_fresh = true;
    d->events.up(d->events.ctx);
}

static void connect_now(struct dbc *d)
{
    d->state = DBC_CONNECTING;
    arm(d->limit, d->connect_timeout_ms);
    d->conn = PQconnectStartParams(dsn_keys(d->dsn), dsn_values(d->dsn), 0);
    if (!d->conn || PQstatus(d->conn) == CONNECTION_BAD ||
        !watch(d, EPOLLOUT)) /* the first step is always "wait until writable" */
        fail_by_libpq(d, "connect to the DBMS");
}

static void on_lookup(void *ctx, const char addresses[][DSN_ADDRESS_BYTES])
{
    struct dbc *d = ctx;
    const char *names[DSN_HOSTS_MAX];
    struct err_info info;

    disarm(d->limit);
    if (dsn_resolved(d->dsn, addresses) == ERR_OK || dsn_ready(d->dsn)) {
        connect_now(d); /* maybe with the addresses of before */
        return;
    }
    (void)dsn_names(d->dsn, names);
    err_set(&info, ERR_NOT_FOUND, 0, "the name of the DBMS, %s, is not found", names[0]);
    fail(d, ERR_NOT_FOUND, &info);
}

static void attempt(struct dbc *d)
{
    const char *names[DSN_HOSTS_MAX];
    size_t count = dsn_names(d->dsn, names);
    struct err_info info;

    disarm(d->retry);
    if (count == 0 || (d->names_fresh && dsn_ready(d->dsn))) {
        connect_now(d);
        return;
    }
    d->state = DBC_LOOKUP;
    enum err e = lookup_start(&d->lookup, count, names, DBC_LOOKUP_MS, &info);
    if (e != ERR_OK)
        fail(d, e, &info);
}

static int on_retry(sd_event_source *s, uint64_t usec, void *ctx)
{
    (void)s, (void)usec;
    attempt(ctx);
    return 0;
}

/* --- a query ------------------------------------------------------------------------ */

static void flush(struct dbc *d)
{
    int r = PQflush(d->conn);

    if (r < 0 || !watch(d, r > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN))
        arm(d->limit, 0); /* the answer must not come from within the call */
}

void dbc_query(struct dbc *d, uint32_t timeout_ms, const char *sql, size_t count,
               const char *const values[], dbc_done *done, void *ctx)
{
    CHECK(d->state == DBC_IDLE);
    d->state = DBC_BUSY;
    d->done = done;
    d->done_ctx = ctx;
    arm(d->limit, timeout_ms);
    if (PQsendQueryParams(d->conn, sql, (int)count, NULL, values, NULL, NULL, 0) != 1)
        arm(d->limit, 0);
    else
        flush(d);
}

static void answer(struct dbc *d)
{
    PGresult *result = d->result;
    ExecStatusType st = PQresultStatus(result);
    struct err_info info;
    enum err e = ERR_OK;

    if (st != PGRES_TUPLES_OK && st != PGRES_COMMAND_OK)
        e = dbc_error(result, NULL, &info);
    d->result = NULL;
    d->state = DBC_IDLE;
    disarm(d->limit);
    d->done(d->done_ctx, e, result, e == ERR_OK ? NULL : &info);
    PQclear(result);
}

/* The first result counts, unless an error follows: the commit may fail after the rows. */
static void keep_result(struct dbc *d, PGresult *r)
{
    bool failed = d->result && PQresultStatus(d->result) == PGRES_FATAL_ERROR;

    if (failed || (d->result && PQresultStatus(r) != PGRES_FATAL_ERROR)) {
        PQclear(r);
        return;
    }
    PQclear(d->result);
    d->result = r;
}

static void take_results(struct dbc *d)
{
    while (d->state == DBC_BUSY && !PQisBusy(d->conn)) {
        PGresult *r = PQgetResult(d->conn);
        if (r) {
            keep_result(d, r);
        } else if (d->result) {
            answer(d);
        } else {
            fail_by_libpq(d, "DBMS");
            return;
        }
        /* The last words of a connection are a result, too, and then it is gone. */
        if (!r && d->conn && PQstatus(d->conn) == CONNECTION_BAD) {
            fail_by_libpq(d, "DBMS");
            return;
        }
    }
}

static void take_notifications(struct dbc *d)
{
    PGnotify *n;

    while (d->conn && (n = PQnotifies(d->conn))) {
        if (d->events.notify)
            d->events.notify(d->events.ctx, n->relname, n->extra);
        PQfreemem(n);
    }
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *ctx)
{
    struct dbc *d = ctx;

    (void)s, (void)fd, (void)revents;
    if (d->state == DBC_CONNECTING) {
        poll_connection(d);
        return 0;
    }
    bool ok = PQconsumeInput(d->conn) == 1;
    take_results(d);
    take_notifications(d);
    if (!d->conn)
        return 0;
    if (!ok || PQstatus(d->conn) == CONNECTION_BAD)
        fail_by_libpq(d, "DBMS");
    else
        flush(d);
    return 0;
}

/* --- life --------------------------------------------------------------------------- */

enum err dbc_open(struct dbc **out, sd_event *loop, struct dsn *dsn,
                  uint32_t connect_timeout_ms, const struct dbc_events *events,
                  struct err_info *info)
{
    struct dbc *d = calloc(1, sizeof(*d));

    if (!d) {
        dsn_free(dsn);
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    }
    d->loop = sd_event_ref(loop);
    d->dsn = dsn;
    d->fd = -1;
    d->connect_timeout_ms = connect_timeout_ms;
    d->backoff_ms = DBC_BACKOFF_MS;
    d->events = *events;
    lookup_init(&d->lookup, loop, on_lookup, d);
    int r =
        sd_event_add_time_relative(loop, &d->limit, CLOCK_BOOTTIME, 0, 1000, on_limit, d);
    if (r >= 0)
        r = sd_event_add_time_relative(loop, &d->retry, CLOCK_BOOTTIME, 0, 1000, on_retry,
                                       d);
    if (r < 0) {
        dbc_close(d);
        return err_set(info, ERR_MEMORY, -r, "add a timer");
    }
    disarm(d->limit);
    *out = d; /* the first attempt comes with the retry timer, at once */
    return ERR_OK;
}

void dbc_close(struct dbc *d)
{
    if (!d)
        return;
    drop(d);
    lookup_close(&d->lookup);
    d->limit = sd_event_source_disable_unref(d->limit);
    d->retry = sd_event_source_disable_unref(d->retry);
    dsn_free(d->dsn);
    sd_event_unref(d->loop);
    free(d);
}

bool dbc_idle(const struct dbc *d)
{
    return d->state == DBC_IDLE;
}

bool dbc_connected(const struct dbc *d)
{
    return d->state == DBC_IDLE || d->state == DBC_BUSY;
}

int dbc_server_version(const struct dbc *d)
{
    return d->conn ? PQserverVersion(d->conn) : 0;
}

void dbc_hurry(struct dbc *d, uint32_t timeout_ms)
{
    uint64_t now, then;

    if (d->state != DBC_BUSY && d->state != DBC_CONNECTING)
        return;
    if (sd_event_now(d->loop, CLOCK_BOOTTIME, &now) < 0 ||
        sd_event_source_get_time(d->limit, &then) < 0 ||
        then > now + (uint64_t)timeout_ms * 1000u)
        arm(d->limit, timeout_ms);
}

void dbc_retry_now(struct dbc *d)
{
    if (d->state != DBC_WAITING)
        return;
    d->backoff_ms = DBC_BACKOFF_MS;
    arm(d->retry, 0);
}
