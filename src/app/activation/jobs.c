/* Requests of devices, from the HTTP front through the DBMS and back. */
#include "app/activation/activation.h"

#include <inttypes.h>
#include <jansson.h>

#include "sys/log/log.h"

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail */
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* --- answers ------------------------------------------------------------------------ */

static void refuse(struct activation *a, void *call, const struct uuid *device,
                   enum refusal why, const char *text)
{
    const struct refusal_words *w = refusal_words(why);
    char id[UUID_TEXT] = "";
    json_t *o =
        json_pack("{s:{s:s, s:s, s:s, s:s}}", "error", "id", w->id, "title", w->title,
                  "text", text[0] ? text : w->title, "suggestion", w->suggestion);
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    a->refused++;
    if (device)
        uuid_format(id, device);
    log_event(LOG_LEVEL_INFO, "lease_refused", log_str("device", id),
              log_str("why", w->id), log_str("text", text));
    front_answer(a->front, call, w->status, body);
}

static void drop_job(struct activation *a, struct job *j)
{
    TAILQ_REMOVE(&a->jobs, j, next);
    a->job_count--;
    free(j);
}

static void refuse_job(struct activation *a, struct job *j, enum refusal why,
                       const char *text)
{
    if (a->asking == j)
        a->asking = NULL; /* its query goes on; nobody waits for it any more */
    refuse(a, j->call, &j->device, why, text);
    drop_job(a, j);
}

void jobs_sweep(struct activation *a, bool all, enum refusal why)
{
    uint64_t now = boot_ms();
    struct job *j, *next;

    for (j = TAILQ_FIRST(&a->jobs); j; j = next) {
        next = TAILQ_NEXT(j, next);
        if (all || now - j->asked_ms > JOB_WAIT_MS)
            refuse_job(a, j, why, "");
    }
}

/* --- through the DBMS ----------------------------------------------------------------- */

static int64_t cell(const PGresult *r, int column)
{
    uint64_t n;

    return str_u64(str_of(PQgetvalue(r, 0, column)), INT64_MAX, &n) ? (int64_t)n : 0;
}

static void grant(struct activation *a, struct job *j, const PGresult *r)
{
    struct lease_terms terms = { .device = j->device,
                                 .cluster = a->conf.cluster.name,
                                 .issued = cell(r, 2),
                                 .expires = cell(r, 3) };
    char id[UUID_TEXT], *lease = licence_lease(&j->licence, &terms, a->seed);

    if (!lease) {
        refuse_job(a, j, REFUSED_BUSY, "out of memory");
        return;
    }
    a->granted++;
    uuid_format(id, &j->device);
    log_event(LOG_LEVEL_INFO, "lease_granted", log_str("device", id),
              log_u64("seats_used", a->used), log_u64("epoch", a->epoch));
    front_answer(a->front, j->call, 200, lease);
    drop_job(a, j);
}

/* Columns: granted, used, issued, expires. */
static void on_seat(void *ctx, enum err err, const PGresult *r,
                    const struct err_info *why)
{
    struct activation *a = ctx;
    struct job *j = a->asking;

    a->asking = NULL;
    if (err == ERR_OK)
        a->used = (uint64_t)cell(r, 1);
    if (!j) {
        ; /* it was refused meanwhile */
    } else if (err == ERR_STALE || !activation_may_answer(a)) {
        refuse_job(a, j, REFUSED_NOT_ACTIVE, why ? why->what : "");
    } else if (err != ERR_OK) {
        refuse_job(a, j, REFUSED_DATABASE, why->what);
    } else if (strcmp(PQgetvalue(r, 0, 0), "t") != 0) {
        char text[96];
        (void)snprintf(text, sizeof(text), "%" PRIu64 " of %u seats are taken", a->used,
                       j->licence.seats);
        refuse_job(a, j, REFUSED_SEATS_FULL, text);
    } else {
        grant(a, j, r);
    }
    jobs_pump(a);
}

static void ask_seat(struct activation *a, struct job *j)
{
    char licence[UUID_TEXT], device[UUID_TEXT], seats[16], hold[16], until[32];
    const char *values[] = { licence, device, seats, hold, until };

    uuid_format(licence, &j->licence.id);
    uuid_format(device, &j->device);
    (void)snprintf(seats, sizeof(seats), "%u", j->licence.seats);
    (void)snprintf(hold, sizeof(hold), "%d", LEASE_HOLD_S);
    licence_time_format(until, j->licence.expires);
    a->asking = j;
    dbc_query(a->dbc, JOB_QUERY_MS,
              "SELECT granted, used, issued, expires FROM redoubt.take_seat($1::uuid,"
              " $2::uuid, $3::bigint, $4::bigint, $5::timestamptz)",
              LEN(values), values, on_seat, a);
}

/* After a failure the sweep tries again, not this: the DBMS may refuse for long. */
static void on_announced(void *ctx, enum err err, const PGresult *r,
                         const struct err_info *why)
{
    struct activation *a = ctx;

    if (err != ERR_OK) {
        log_event(LOG_LEVEL_WARNING, "announce_failed", log_str("why", why->what));
        return;
    }
    a->announced = a->active && (uint64_t)cell(r, 0) == a->epoch;
    jobs_pump(a);
}

static void announce(struct activation *a)
{
    char epoch[24];
    const char *values[] = { epoch, a->conf.cluster.node };

    (void)snprintf(epoch, sizeof(epoch), "%" PRIu64, a->epoch);
    dbc_query(a->dbc, JOB_QUERY_MS,
              "SELECT redoubt.announce($1::bigint, 'activation', $2)", LEN(values),
              values, on_announced, a);
}

void jobs_pump(struct activation *a)
{
    struct job *first = TAILQ_FIRST(&a->jobs);

    if (!a->active || !dbc_idle(a->dbc))
        return;
    if (!a->announced)
        announce(a);
    else if (first)
        ask_seat(a, first);
}

/* --- requests -------------------------------------------------------------------------- */

static void health(struct activation *a, const struct front_request *rq)
{
    bool active = activation_may_answer(a);
    json_t *o = json_pack("{s:s, s:I}", "node", redoubt_service_node(a->service), "epoch",
                          (json_int_t)(active ? a->epoch : 0));
    char *body = o ? json_dumps(o, JSON_COMPACT) : NULL;

    json_decref(o);
    front_answer(a->front, rq->call, active ? 200 : 503, body);
}

/* {"device": "<uuid>"}: what the certificate says, or nothing at all. */
static enum refusal read_request(const struct front_request *rq)
{
    struct uuid device;
    enum refusal r = REFUSED_NOT;

    if (rq->too_long)
        return REFUSED_BAD_REQUEST;
    json_t *o = json_loadb(rq->body.p, rq->body.n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *given = json_object_get(o, "device");
    if (!json_is_object(o) || (given && !json_is_string(given)))
        r = REFUSED_BAD_REQUEST;
    else if (given && (!uuid_parse(&device, str_of(json_string_value(given))) ||
                       !uuid_eq(&device, &rq->device)))
        r = REFUSED_OTHER_DEVICE;
    json_decref(o);
    return r;
}

static enum refusal may_have_lease(struct activation *a, const struct front_request *rq)
{
    if (!activation_may_answer(a))
        return REFUSED_NOT_ACTIVE;
    if (!rq->has_device)
        return REFUSED_STRANGER;
    enum refusal r = read_request(rq);
    if (r != REFUSED_NOT)
        return r;
    licence_refresh(a);
    if (a->licence_state != REFUSED_NOT)
        return a->licence_state;
    r = licence_refuses(&a->licence, a->conf.cluster.name, (int64_t)time(NULL));
    return r == REFUSED_NOT && a->job_count >= JOBS_MAX ? REFUSED_BUSY : r;
}

static void activate(struct activation *a, const struct front_request *rq)
{
    enum refusal r = may_have_lease(a, rq);
    struct job *j = r == REFUSED_NOT ? calloc(1, sizeof(*j)) : NULL;

    if (r == REFUSED_NOT && !j)
        r = REFUSED_BUSY;
    if (r != REFUSED_NOT) {
        bool about_file = r == REFUSED_BAD_LICENCE || r == REFUSED_NO_LICENCE;
        refuse(a, rq->call, rq->has_device ? &rq->device : NULL, r,
               about_file ? a->licence_why : "");
        return;
    }
    j->call = rq->call;
    j->device = rq->device;
    j->licence = a->licence;
    j->asked_ms = boot_ms();
    TAILQ_INSERT_TAIL(&a->jobs, j, next);
    a->job_count++;
    if (!a->asking)
        jobs_pump(a);
}

void jobs_request(void *arg, const struct front_request *rq)
{
    struct activation *a = arg;

    if (strcmp(rq->path, "/v1/health") == 0 && strcmp(rq->method, "GET") == 0)
        health(a, rq);
    else if (strcmp(rq->path, "/v1/activate") == 0 && strcmp(rq->method, "POST") == 0)
        activate(a, rq);
    else
        refuse(a, rq->call, NULL, REFUSED_BAD_REQUEST,
               "POST /v1/activate or GET /v1/health");
}
