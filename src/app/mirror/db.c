/*
 * db: the DBMS, which knows what is published; read in either role.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "app/mirror/active.h"
#include "sys/fence/dbc.h"
#include "sys/log/log.h"

enum {
    ANSWER_MS = 15000,
    READ_MS = 30000, /* also without a notification: one may be lost */
    BACKOFF_MIN_MS = 500,
    BACKOFF_MAX_MS = 10000,
};

#define CHANNEL                                                                          \
    "redoubt_mirror" /* from mirror to mirror: "damaged <digest>"; healed, lost, verify */

PGconn *db_connect(struct mirror *m, const char *application, struct err_info *info)
{
    struct dsn *dsn = NULL;

    if (dsn_new(&dsn, m->conf.database.conninfo, application, info) != ERR_OK)
        return NULL;
    PGconn *c = PQconnectdbParams(dsn_keys(dsn), dsn_values(dsn), 0);

    dsn_free(dsn);
    if (PQstatus(c) == CONNECTION_OK)
        return c;
    (void)err_set(info, ERR_CLOSED, 0, "%.200s", PQerrorMessage(c));
    PQfinish(c);
    return NULL;
}

/* The answer is there; false: not within ANSWER_MS, or the connection is gone. */
static bool wait_answer(PGconn *c)
{
    const struct mono limit = mono_after(mirror_now(), ANSWER_MS);

    while (PQisBusy(c)) {
        struct pollfd p = { .fd = PQsocket(c), .events = POLLIN };
        const uint32_t left = mono_since_ms(limit, mirror_now());

        if (left == 0 || (poll(&p, 1, (int)left) < 0 && errno != EINTR))
            return false;
        if (PQconsumeInput(c) == 0)
            return false;
    }
    return true;
}

enum err db_ask_state(PGconn *c, const char *sql, size_t count,
                      const char *const values[], PGresult **out,
                      char state[DBC_SQLSTATE], struct err_info *info)
{
    PGresult *r = NULL, *more;

    state[0] = '\0';
    if (!PQsendQueryParams(c, sql, (int)count, NULL, values, NULL, NULL, 0))
        return err_set(info, ERR_CLOSED, 0, "%.200s", PQerrorMessage(c));
    do {
        if (!wait_answer(c)) {
            PQclear(r);
            return err_set(info, ERR_TIMEOUT, 0, "the DBMS does not answer");
        }
        more = PQgetResult(c);
        if (more) {
            PQclear(r);
            r = more;
        }
    } while (more);
    const ExecStatusType st = PQresultStatus(r);

    if (st != PGRES_TUPLES_OK && st != PGRES_COMMAND_OK) {
        const enum err e = dbc_error(r, state, info);

        PQclear(r);
        return e;
    }
    *out = r;
    return ERR_OK;
}

enum err db_ask(PGconn *c, const char *sql, size_t count, const char *const values[],
                PGresult **out, struct err_info *info)
{
    char state[DBC_SQLSTATE];

    return db_ask_state(c, sql, count, values, out, state, info);
}

enum err db_do(PGconn *c, const char *sql, size_t count, const char *const values[],
               struct err_info *info)
{
    PGresult *r = NULL;
    const enum err e = db_ask(c, sql, count, values, &r, info);

    PQclear(r); /* NULL is fine */
    return e;
}

void db_close(struct mirror *m)
{
    PQfinish(m->db.conn); /* NULL is fine */
    m->db.conn = NULL;
}

int db_socket(const struct mirror *m)
{
    return m->db.conn ? PQsocket(m->db.conn) : -1;
}

static void failed(struct mirror *m, const struct err_info *why)
{
    log_event(LOG_LEVEL_WARNING, "database", log_str("why", why->what));
    db_close(m);
    m->db.backoff_ms = m->db.backoff_ms == 0 ? BACKOFF_MIN_MS : m->db.backoff_ms * 2;
    if (m->db.backoff_ms > BACKOFF_MAX_MS)
        m->db.backoff_ms = BACKOFF_MAX_MS;
    m->db.retry = mono_after(mirror_now(), m->db.backoff_ms);
}

static void connect_now(struct mirror *m)
{
    char name[CONF_NAME + 32];
    struct err_info why;

    (void)snprintf(name, sizeof(name), "redoubt-mirror/%s", m->conf.cluster.node);
    m->db.conn = db_connect(m, name, &why);
    if (!m->db.conn || db_do(m->db.conn, "LISTEN redoubt", 0, NULL, &why) != ERR_OK ||
        db_do(m->db.conn, "LISTEN " CHANNEL, 0, NULL, &why) != ERR_OK) {
        failed(m, &why);
        return;
    }
    m->db.read = (struct mono){ 0 };
}

static void suspect(struct mirror *m, struct str digest)
{
    struct blob_id id;

    if (!blob_id_parse(&id, digest) || m->suspect_count >= MIRROR_SUSPECTS)
        return;
    for (uint32_t i = 0; i < m->suspect_count; i++)
        if (strcmp(m->suspects[i].hex, id.hex) == 0)
            return;
    m->suspects[m->suspect_count++] = id;
}

static void heard(struct mirror *m, const PGnotify *n)
{
    const struct str text = str_of(n->extra);

    if (strcmp(n->relname, CHANNEL) != 0) {
        if (strstr(n->extra, "\"upstream\""))
            upstream_news();
        if (strstr(n->extra, "published"))
            m->db.read = (struct mono){ 0 };
        m->news = m->news || m->db.read.us == 0;
    } else if (str_starts(text, STR("damaged "))) {
        if (mirror_is_active(m, NULL))
            suspect(m, (struct str){ text.p + 8, text.n - 8 });
    } else if (str_starts(text, STR("healed "))) {
        struct blob_id id;

        if (blob_id_parse(&id, (struct str){ text.p + 7, text.n - 7 }))
            tell_healed(m, &id);
        m->content.retry = (struct mono){ 0 };
    } else if (str_starts(text, STR("lost "))) {
        struct blob_id id;

        if (blob_id_parse(&id, (struct str){ text.p + 5, text.n - 5 }))
            content_is_lost(m, &id);
        if (!mirror_is_active(m, NULL)) /* it may be here */
            suspect(m, (struct str){ text.p + 5, text.n - 5 });
    } else if (str_is(text, "verify")) {
        scrub_start(m);
    }
}

void db_listen(struct mirror *m)
{
    PGnotify *n;

    if (!m->db.conn)
        return;
    if (PQconsumeInput(m->db.conn) == 0) {
        const struct err_info why = { .what = "the connection was lost" };

        failed(m, &why);
        m->db.retry = mirror_now(); /* once at once */
        return;
    }
    while ((n = PQnotifies(m->db.conn)) != NULL) {
        heard(m, n);
        PQfreemem(n);
    }
}

void db_tell(struct mirror *m, const char *word, const struct blob_id *id)
{
    char text[24 + BLOB_HEX];
    const char *const values[] = { CHANNEL, text };
    struct err_info why;

    if (!m->db.conn)
        return;
    (void)snprintf(text, sizeof(text), "%s%s%s", word, id ? " " : "", id ? id->hex : "");
    if (db_do(m->db.conn, "SELECT pg_notify($1, $2)", 2, values, &why) != ERR_OK)
        failed(m, &why);
}

/* The rows as the text of wire/publication.h; NULL: no memory. */
static char *text_of(const PGresult *r, size_t *out_n)
{
    const uint32_t rows = (uint32_t)PQntuples(r);
    const uint32_t count = PQgetisnull(r, 0, 1) ? 0 : rows;
    const size_t size = 64 + (size_t)count * PUBLICATION_LINE_MAX;
    char *text = malloc(size);
    struct text t;

    if (!text)
        return NULL;
    text_init(&t, text, size);
    publication_add_head(
        &t, &(struct publication_head){ .serial = strtoull(PQgetvalue(r, 0, 0), NULL, 10),
                                        .count = count });
    for (uint32_t i = 0; i < count; i++)
        text_add(&t, "%s %s %s %s %s\n", PQgetvalue(r, (int)i, 2),
                 PQgetvalue(r, (int)i, 3), PQgetvalue(r, (int)i, 4),
                 PQgetvalue(r, (int)i, 5), PQgetvalue(r, (int)i, 1));
    *out_n = t.n; /* cut: then it does not parse, and says so */
    return text;
}

static void take_list(struct mirror *m, struct list *l)
{
    struct err_info why;

    if (m->list && m->list->text_n == l->text_n &&
        memcmp(m->list->text, l->text, l->text_n) == 0) {
        list_free(l);
        return;
    }
    log_event(LOG_LEVEL_INFO, "published", log_u64("serial", l->head.serial),
              log_u64("files", l->head.count), log_u64("bytes", l->bytes));
    /* Not kept: it is read again after a restart. */
    if (list_keep(m->conf.web.store, "list", l, &why) != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "list_not_kept", log_str("why", why.what));
    content_take(m, l);
}

static void read_list(struct mirror *m)
{
    static const char sql[] =
        "SELECT s.serial, p.path, p.blob, b.size, extract(epoch FROM b.mtime)::bigint, "
        "p.owner "
        "FROM redoubt.publication_serial s LEFT JOIN redoubt.publication p ON true "
        "LEFT JOIN redoubt.blob b ON b.sha256 = p.blob "
        "ORDER BY p.path COLLATE \"C\" LIMIT 20001";
    struct err_info why;
    struct list *l = NULL;
    size_t n = 0;

    static_assert(PUBLICATION_MAX == 20000, "the statement asks for one more");
    PGresult *r = NULL;

    if (db_ask(m->db.conn, sql, 0, NULL, &r, &why) != ERR_OK) {
        failed(m, &why);
        return;
    }
    m->db.read = mirror_now();
    m->db.backoff_ms = 0;
    char *text = PQntuples(r) > 0 ? text_of(r, &n) : NULL;

    PQclear(r);
    if (list_new(&l, text, n, &why) == ERR_OK) {
        m->db.refused[0] = '\0';
        take_list(m, l);
    } else {
        /* What was known stays. */
        (void)snprintf(m->db.refused, sizeof(m->db.refused), "%.190s", why.what);
        log_event(LOG_LEVEL_ERROR, "list_refused", log_str("why", why.what));
    }
}

bool db_is_due(const struct mirror *m)
{
    return !m->db.conn && mono_reached(mirror_now(), m->db.retry);
}

void db_turn(struct mirror *m)
{
    const struct mono now = mirror_now();

    if (db_is_due(m))
        connect_now(m);
    db_listen(m);
    if (m->db.conn &&
        (!mono_is_set(m->db.read) || mono_reached(now, mono_after(m->db.read, READ_MS))))
        read_list(m);
}
