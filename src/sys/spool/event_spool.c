#include "sys/spool/event_spool.h"

#include <sys/random.h>

#include "sys/spool/spool_db.h"

const char event_schema[] =
    "CREATE TABLE IF NOT EXISTS stream ("
    "  name INTEGER PRIMARY KEY, id BLOB NOT NULL, last_seq INTEGER NOT NULL,"
    "  through INTEGER NOT NULL);"
    "CREATE TABLE IF NOT EXISTS event ("
    "  stream INTEGER NOT NULL, seq INTEGER NOT NULL, severity INTEGER NOT NULL,"
    "  body BLOB NOT NULL, run BLOB, PRIMARY KEY (stream, seq)) WITHOUT ROWID;"
    /* who goes first: the lowest severity, of that the oldest */
    "CREATE INDEX IF NOT EXISTS event_victim ON event (severity, stream DESC, seq);"
    "INSERT OR IGNORE INTO counter VALUES ('events_dropped', 0), ('untold_0', 0),"
    "  ('untold_1', 0), ('untold_2', 0), ('untold_3', 0);";

enum {
    NEW_STREAM,
    STREAMS,
    NUMBERED,
    ADD,
    VICTIM,
    FORGET_RUN,
    DELETE,
    WALK,
    ACK,
    THROUGH,
    COUNT
};

static const char *const sql[EVENT_SQL] = {
    [NEW_STREAM] = "INSERT OR IGNORE INTO stream VALUES (?1, ?2, 0, 0)",
    [STREAMS] = "SELECT id, last_seq, through FROM stream ORDER BY name",
    [NUMBERED] = "UPDATE stream SET last_seq = ?2 WHERE name = ?1",
    [ADD] = "INSERT INTO event (stream, seq, severity, body, run)"
            " VALUES (?1, ?2, ?3, ?4, ?5)",
    [VICTIM] = "SELECT stream, seq, severity, length(body) FROM event"
               " ORDER BY severity, stream DESC, seq LIMIT 1",
    [FORGET_RUN] = "UPDATE run SET told = 0 WHERE id ="
                   " (SELECT run FROM event WHERE stream = ?1 AND seq = ?2)",
    [DELETE] = "DELETE FROM event WHERE stream = ?1 AND seq = ?2",
    [WALK] = "SELECT seq, body FROM event WHERE stream = ?2 AND seq > ?1 ORDER BY seq",
    [ACK] = "DELETE FROM event WHERE stream = ?1 AND seq <= ?2",
    [THROUGH] = "UPDATE stream SET through = max(through, ?2) WHERE name = ?1",
    [COUNT] = "SELECT (SELECT count(*) FROM event WHERE stream = 0),"
              " (SELECT count(*) FROM event WHERE stream = 1),"
              " (SELECT coalesce(sum(length(body)), 0) FROM event),"
              " (SELECT value FROM counter WHERE name = 'events_dropped'),"
              " (SELECT value FROM counter WHERE name = 'untold_0'),"
              " (SELECT value FROM counter WHERE name = 'untold_1'),"
              " (SELECT value FROM counter WHERE name = 'untold_2'),"
              " (SELECT value FROM counter WHERE name = 'untold_3')",
};

static void new_id(struct uuid *out)
{
    struct timespec t;
    uint8_t random[10];

    (void)clock_gettime(CLOCK_REALTIME, &t);
    CHECK(getrandom(random, sizeof(random), 0) == (ssize_t)sizeof(random));
    uuid_make(out, (uint64_t)t.tv_sec * 1000u, random);
}

static int load_counts(struct spool *s)
{
    sqlite3_stmt *st = s->event[COUNT];
    struct event_counts *c = &s->events;
    int n = sqlite3_step(st);

    if (n == SQLITE_ROW) {
        for (int i = 0; i < EVENT_STREAMS; i++)
            c->pending[i] = (uint64_t)sqlite3_column_int64(st, i);
        c->bytes = (uint64_t)sqlite3_column_int64(st, 2);
        c->dropped = (uint64_t)sqlite3_column_int64(st, 3);
        for (int i = 0; i < EVENT_SEVERITIES; i++)
            c->untold[i] = (uint64_t)sqlite3_column_int64(st, 4 + i);
    }
    int end = sqlite3_reset(st);
    return n == SQLITE_ROW ? SQLITE_OK : end != SQLITE_OK ? end : n;
}

static int load_streams(struct spool *s)
{
    sqlite3_stmt *st = s->event[STREAMS];
    int n = SQLITE_ROW, at = 0;

    while ((n = sqlite3_step(st)) == SQLITE_ROW && at < EVENT_STREAMS) {
        struct spool_stream *to = &s->stream[at++];

        if (sqlite3_column_bytes(st, 0) != UUID_BYTES)
            break;
        memcpy(to->id.bytes, sqlite3_column_blob(st, 0), UUID_BYTES);
        to->last_seq = (uint64_t)sqlite3_column_int64(st, 1);
        to->through = (uint64_t)sqlite3_column_int64(st, 2);
    }
    (void)sqlite3_reset(st);
    return n == SQLITE_DONE && at == EVENT_STREAMS ? SQLITE_OK
           : n == SQLITE_ROW || n == SQLITE_DONE   ? SQLITE_CORRUPT
                                                   : n;
}

int event_spool_start(struct spool *s)
{
    int n = spool_prepare(s, sql, LEN(sql), s->event);

    for (int64_t i = 0; i < EVENT_STREAMS && n == SQLITE_OK; i++) {
        struct uuid id;

        new_id(&id);
        n = spool_run(s->event[NEW_STREAM], "ib", i, id.bytes, (size_t)UUID_BYTES);
    }
    if (n == SQLITE_OK)
        n = load_streams(s);
    return n == SQLITE_OK ? load_counts(s) : n;
}

void event_spool_limit(struct spool *s, uint32_t count, uint64_t bytes)
{
    CHECK(count > 0 && bytes >= EVENT_BYTES_MAX);
    s->events_max = count;
    s->events_bytes_max = bytes;
}

static int untold_add(struct spool *s, const uint64_t more[EVENT_SEVERITIES], bool minus)
{
    char text[120];
    int n = SQLITE_OK;

    for (int i = 0; i < EVENT_SEVERITIES && n == SQLITE_OK; i++) {
        if (more[i] == 0)
            continue;
        (void)snprintf(text, sizeof(text),
                       "UPDATE counter SET value = value %c %llu WHERE name = "
                       "'untold_%d'",
                       minus ? '-' : '+', (unsigned long long)more[i], i);
        n = spool_text(s, text);
        if (n != SQLITE_OK || minus)
            continue;
        (void)snprintf(text, sizeof(text),
                       "UPDATE counter SET value = value + %llu WHERE name = "
                       "'events_dropped'",
                       (unsigned long long)more[i]);
        n = spool_text(s, text);
    }
    return n;
}

/* Takes the oldest of the lowest severity out; severity and size say which it was. */
static int drop_one(struct spool *s, int *severity, uint64_t *size)
{
    sqlite3_stmt *st = s->event[VICTIM];
    int64_t stream = 0, seq = 0;
    int n = sqlite3_step(st);

    if (n == SQLITE_ROW) {
        stream = sqlite3_column_int64(st, 0);
        seq = sqlite3_column_int64(st, 1);
        *severity = sqlite3_column_int(st, 2);
        *size = (uint64_t)sqlite3_column_int64(st, 3);
    }
    int end = sqlite3_reset(st);
    if (n != SQLITE_ROW)
        return end != SQLITE_OK ? end
                                : SQLITE_CORRUPT; /* the counts say that it is there */
    if (*severity < 0 || *severity >= EVENT_SEVERITIES)
        return SQLITE_CORRUPT;
    n = spool_run(s->event[FORGET_RUN], "ii", stream, seq);
    return n == SQLITE_OK ? spool_run(s->event[DELETE], "ii", stream, seq) : n;
}

static int make_room(struct spool *s, size_t size)
{
    uint64_t have = s->events.pending[EVENT_CRITICAL] + s->events.pending[EVENT_NORMAL];
    uint64_t bytes = s->events.bytes, gone[EVENT_SEVERITIES] = { 0 };
    int n = SQLITE_OK;

    while (n == SQLITE_OK &&
           (have >= s->events_max || bytes + size > s->events_bytes_max)) {
        int severity = 0;
        uint64_t freed = 0;

        n = drop_one(s, &severity, &freed);
        if (n == SQLITE_OK)
            gone[severity]++;
        have--;
        bytes -= freed;
    }
    return n == SQLITE_OK ? untold_add(s, gone, false) : n;
}

int event_spool_put(struct spool *s, const struct event_add *e, uint64_t *seq)
{
    uint64_t next = s->stream[e->stream].last_seq + 1;
    int n = untold_add(s, s->lost, false);

    if (n == SQLITE_OK)
        n = make_room(s, e->body.n);
    if (n == SQLITE_OK)
        n = spool_run(s->event[ADD], e->run ? "iiibb" : "iiib", (int64_t)e->stream,
                      (int64_t)next, (int64_t)e->severity, e->body.p, e->body.n,
                      e->run ? e->run->bytes : NULL, (size_t)UUID_BYTES);
    if (n == SQLITE_OK)
        n = spool_run(s->event[NUMBERED], "ii", (int64_t)e->stream, (int64_t)next);
    *seq = next;
    return n;
}

enum err event_spool_done(struct spool *s, const struct event_add *e, uint64_t seq,
                          struct err_info *info)
{
    s->stream[e->stream].last_seq = seq;
    memset(s->lost, 0, sizeof(s->lost));
    int n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "count the events");
}

static enum err add(struct spool *s, const struct event_add *e, const uint64_t *told,
                    uint64_t *seq, struct err_info *info)
{
    uint64_t number = 0;

    if (e->body.n == 0 || e->body.n > EVENT_BYTES_MAX)
        return err_set(info, ERR_LIMIT, 0, "an event of %zu bytes", e->body.n);
    int n = spool_begin(s);
    if (n == SQLITE_OK)
        n = event_spool_put(s, e, &number);
    if (n == SQLITE_OK && told)
        n = untold_add(s, told, true);
    enum err done = spool_end(s, n, info, "add an event");
    if (done != ERR_OK)
        return done;
    if (seq)
        *seq = number;
    return event_spool_done(s, e, number, info);
}

enum err event_spool_add(struct spool *s, const struct event_add *e, uint64_t *seq,
                         struct err_info *info)
{
    return add(s, e, NULL, seq, info);
}

void event_spool_lost(struct spool *s, enum event_severity severity)
{
    s->lost[severity]++;
    s->events.dropped++;
    s->events.untold[severity]++;
}

enum err event_spool_tell(struct spool *s, const struct event_add *record,
                          const uint64_t told[EVENT_SEVERITIES], struct err_info *info)
{
    return add(s, record, told, NULL, info);
}

enum err event_spool_walk(struct spool *s, enum event_stream stream, uint64_t after,
                          spool_each *each, void *arg, struct err_info *info)
{
    sqlite3_stmt *st = s->event[WALK];
    int n = spool_bind(st, "ii", (int64_t)after, (int64_t)stream);

    return spool_each_row(s, st, n, each, arg, info);
}

enum err event_spool_ack(struct spool *s, enum event_stream stream, uint64_t through,
                         struct err_info *info)
{
    uint64_t known = s->stream[stream].last_seq;
    int64_t upto = (int64_t)(through < known ? through : known);
    int n = spool_begin(s);

    if (n == SQLITE_OK)
        n = spool_run(s->event[ACK], "ii", (int64_t)stream, upto);
    if (n == SQLITE_OK)
        n = spool_run(s->event[THROUGH], "ii", (int64_t)stream, upto);
    enum err e = spool_end(s, n, info, "remove events");
    if (e != ERR_OK)
        return e;
    if ((uint64_t)upto > s->stream[stream].through)
        s->stream[stream].through = (uint64_t)upto;
    n = load_counts(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "count the events");
}

enum err event_spool_renew(struct spool *s, enum event_stream stream,
                           struct err_info *info)
{
    char id_hex[2 * UUID_BYTES + 1], text[400];
    struct uuid id;

    new_id(&id);
    hex_encode(id_hex, id.bytes, UUID_BYTES);
    int n = spool_begin(s);
    /* The numbers that wait are above `through`, so moving them down in order never meets
     * one that is still there. */
    (void)snprintf(text, sizeof(text),
                   "CREATE TEMP TABLE renew AS SELECT seq, row_number() OVER (ORDER BY "
                   "seq) AS n FROM event WHERE stream = %d;"
                   "UPDATE event SET seq = -(SELECT n FROM renew WHERE renew.seq = "
                   "event.seq) WHERE stream = %d;"
                   "UPDATE event SET seq = -seq WHERE stream = %d;",
                   stream, stream, stream);
    if (n == SQLITE_OK)
        n = spool_text(s, text);
    (void)snprintf(
        text, sizeof(text),
        "UPDATE stream SET id = x'%s', through = 0, last_seq = (SELECT count(*)"
        " FROM renew) WHERE name = %d; DROP TABLE renew;",
        id_hex, stream);
    if (n == SQLITE_OK)
        n = spool_text(s, text);
    enum err e = spool_end(s, n, info, "begin a new stream");
    if (e != ERR_OK)
        return e;
    n = load_streams(s);
    return n == SQLITE_OK ? ERR_OK : spool_failed(s, n, info, "read the streams");
}

const struct uuid *event_spool_id(const struct spool *s, enum event_stream stream)
{
    return &s->stream[stream].id;
}

uint64_t event_spool_last(const struct spool *s, enum event_stream stream)
{
    return s->stream[stream].last_seq;
}

const struct event_counts *event_spool_counts(const struct spool *s)
{
    return &s->events;
}
