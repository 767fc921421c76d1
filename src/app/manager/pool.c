#include "app/manager/pool.h"

#include <inttypes.h>
#include <sys/queue.h>

#include "base/str.h"
#include "sys/log/log.h"

enum { CONNECT_MS = 2000, ANNOUNCE_MS = 3000 };

struct job {
    TAILQ_ENTRY(job) next;
    const char *sql;
    size_t count;
    char *values[POOL_VALUES_MAX]; /* NULL: SQL NULL */
    dbc_done *done;
    void *ctx;
    uint64_t asked_ms;
};
TAILQ_HEAD(jobs, job);

struct session {
    struct pool *pool;
    struct dbc *dbc;
    uint64_t announced; /* epoch; 0: none */
    uint64_t announcing;
    bool listening;
    struct job *job; /* under way; NULL: none, or nobody waits for it any more */
};

struct pool {
    sd_event *loop;
    const char *node;
    void *arg;
    void (*notified)(void *arg, const char *payload);
    struct session session[POOL_SESSIONS];
    struct jobs waiting;
    uint32_t waiting_count;
    uint64_t epoch; /* 0: standby */
    char why[240];
};

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail */
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void job_free(struct job *j)
{
    for (size_t i = 0; i < j->count; i++)
        free(j->values[i]);
    free(j);
}

static void answer(struct job *j, enum err e, const PGresult *r,
                   const struct err_info *why)
{
    j->done(j->ctx, e, r, why);
    job_free(j);
}

static struct job *next_job(struct pool *p)
{
    struct job *j = TAILQ_FIRST(&p->waiting);

    if (j) {
        TAILQ_REMOVE(&p->waiting, j, next);
        p->waiting_count--;
    }
    return j;
}

static void pump(struct session *s);

static void on_answer(void *ctx, enum err e, const PGresult *r,
                      const struct err_info *why)
{
    struct session *s = ctx;
    struct job *j = s->job;

    s->job = NULL;
    if (j)
        answer(j, e, r, why);
    pump(s);
}

static void on_announced(void *ctx, enum err e, const PGresult *r,
                         const struct err_info *why)
{
    struct session *s = ctx;

    (void)r;
    if (e !=
        ERR_OK) { /* pool_sweep tries again, not this: the DBMS may refuse for long */
        (void)snprintf(s->pool->why, sizeof(s->pool->why), "%s", why->what);
        log_event(LOG_LEVEL_WARNING, "announce_failed", log_str("why", why->what));
        return;
    }
    s->announced = s->announcing;
    pump(s);
}

static void on_listening(void *ctx, enum err e, const PGresult *r,
                         const struct err_info *why)
{
    struct session *s = ctx;

    (void)r, (void)why;
    s->listening = e == ERR_OK;
    if (e != ERR_OK)
        return;
    s->pool->notified(s->pool->arg, "");
    pump(s);
}

static void announce(struct session *s)
{
    char epoch[24];
    const char *values[] = { epoch, s->pool->node };

    s->announcing = s->pool->epoch;
    (void)snprintf(epoch, sizeof(epoch), "%" PRIu64, s->pool->epoch);
    /* A query that nobody waits for any more must not go on for ever. */
    dbc_query(s->dbc, ANNOUNCE_MS,
              "SELECT redoubt.announce($1::bigint, 'manager', $2),"
              " set_config('statement_timeout', '9000', false)",
              LEN(values), values, on_announced, s);
}

static void pump(struct session *s)
{
    struct pool *p = s->pool;

    if (p->epoch == 0 || !dbc_idle(s->dbc))
        return;
    if (s->announced != p->epoch) {
        announce(s);
    } else if (s == &p->session[0] && !s->listening) {
        dbc_query(s->dbc, ANNOUNCE_MS, "LISTEN redoubt", 0, NULL, on_listening, s);
    } else if ((s->job = next_job(p))) {
        struct job *j = s->job;
        dbc_query(s->dbc, POOL_QUERY_MS, j->sql, j->count, (const char *const *)j->values,
                  on_answer, s);
    }
}

static void on_up(void *ctx)
{
    struct session *s = ctx;

    s->announced = 0;
    s->listening = false;
    s->pool->why[0] = '\0';
    pump(s);
}

static void on_down(void *ctx, enum err e, const struct err_info *why)
{
    struct session *s = ctx;
    struct pool *p = s->pool;

    (void)e;
    if (p->why[0] == '\0')
        log_event(LOG_LEVEL_WARNING, "database", log_str("state", "lost"),
                  log_str("why", why->what));
    (void)snprintf(p->why, sizeof(p->why), "%s", why->what);
    s->announced = 0;
    s->listening = false;
}

static void on_notify(void *ctx, const char *channel, const char *payload)
{
    struct session *s = ctx;

    (void)channel; /* there is only the one */
    s->pool->notified(s->pool->arg, payload);
}

enum err pool_query(struct pool *p, const char *sql, size_t count,
                    const char *const values[], dbc_done *done, void *ctx,
                    struct err_info *info)
{
    CHECK(count <= POOL_VALUES_MAX);
    if (p->epoch == 0)
        return err_set(info, ERR_STALE, 0, "this node is not active");
    if (p->waiting_count >= POOL_QUEUE_MAX)
        return err_set(info, ERR_LIMIT, 0, "%u requests wait for the DBMS",
                       p->waiting_count);
    struct job *j = calloc(1, sizeof(*j));

    if (!j)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    *j = (struct job){
        .sql = sql, .count = count, .done = done, .ctx = ctx, .asked_ms = boot_ms()
    };
    for (size_t i = 0; i < count; i++) {
        if (!values[i] || (j->values[i] = strdup(values[i])))
            continue;
        job_free(j);
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    }
    TAILQ_INSERT_TAIL(&p->waiting, j, next);
    p->waiting_count++;
    for (size_t i = 0; i < POOL_SESSIONS && !TAILQ_EMPTY(&p->waiting); i++)
        pump(&p->session[i]);
    return ERR_OK;
}

void pool_active(struct pool *p, uint64_t epoch)
{
    p->epoch = epoch;
    for (size_t i = 0; i < POOL_SESSIONS; i++) {
        dbc_retry_now(p->session[i].dbc);
        pump(&p->session[i]);
    }
}

static void answer_all(struct pool *p, enum err e, const char *words)
{
    struct err_info why = { .what = "" };
    struct job *j;

    (void)err_set(&why, e, 0, "%s", words);
    for (size_t i = 0; i < POOL_SESSIONS; i++) {
        j = p->session[i].job;
        p->session[i].job = NULL;
        if (j)
            answer(j, e, NULL, &why);
    }
    while ((j = next_job(p)))
        answer(j, e, NULL, &why);
}

void pool_standby(struct pool *p)
{
    p->epoch = 0;
    answer_all(p, ERR_STALE, "this node is not active any more");
}

void pool_sweep(struct pool *p)
{
    uint64_t now = boot_ms();
    struct err_info why = { .what = "" };
    struct job *j;

    (void)err_set(&why, ERR_CLOSED, 0, "no session of the DBMS became free: %s",
                  p->why[0] ? p->why : "all are busy");
    while ((j = TAILQ_FIRST(&p->waiting)) && now - j->asked_ms > POOL_WAIT_MS)
        answer(next_job(p), ERR_CLOSED, NULL, &why);
    for (size_t i = 0; i < POOL_SESSIONS; i++)
        pump(&p->session[i]);
}

bool pool_connected(const struct pool *p)
{
    return dbc_connected(p->session[0].dbc);
}

const char *pool_why(const struct pool *p)
{
    return p->why;
}

enum err pool_open(struct pool **out, const struct pool_options *o, struct err_info *info)
{
    struct pool *p = calloc(1, sizeof(*p));
    enum err e = ERR_OK;

    if (!p)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    TAILQ_INIT(&p->waiting);
    p->loop = o->loop;
    p->node = o->node;
    p->arg = o->arg;
    p->notified = o->notified;
    for (size_t i = 0; e == ERR_OK && i < POOL_SESSIONS; i++) {
        struct session *s = &p->session[i];
        struct dbc_events events = {
            .up = on_up, .down = on_down, .notify = on_notify, .ctx = s
        };
        struct dsn *dsn = NULL;

        s->pool = p;
        e = dsn_new(&dsn, o->conninfo, "redoubt-manager", info);
        if (e == ERR_OK)
            e = dbc_open(&s->dbc, o->loop, dsn, CONNECT_MS, &events, info);
    }
    if (e == ERR_OK)
        *out = p;
    else
        pool_close(p);
    return e;
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    p->epoch = 0;
    answer_all(p, ERR_CLOSED, "the program ends");
    for (size_t i = 0; i < POOL_SESSIONS; i++)
        dbc_close(p->session[i].dbc);
    free(p);
}
