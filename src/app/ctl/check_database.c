#include "app/ctl/report.h"
#include "sys/fence/fence.h"

enum { PROBES = 10, PROBE_MS = 100, DATABASE_MS_MAX = 8000 };

/* What the daemon's own adapter says of the DBMS. */
struct probing {
    sd_event *loop;
    uint32_t good, bad;
    uint32_t latency_us; /* the smallest: the rest is this machine's noise */
    struct fence_health last;
    struct err_info why;
};

static void on_health(void *ctx, const struct fence_health *h)
{
    struct probing *p = ctx;

    p->last = *h;
    p->last.why = NULL; /* it is borrowed */
    p->why = h->why ? *h->why : (struct err_info){ .what = "" };
    if (h->ok && (p->good++ == 0 || h->latency_us < p->latency_us))
        p->latency_us = h->latency_us;
    p->bad += !h->ok;
    if (p->good >= PROBES || p->bad >= 3 || (p->bad > 0 && h->state != FENCE_UNREACHABLE))
        (void)sd_event_exit(p->loop, 0);
}

static void on_answer(void *ctx, uint32_t request, enum err err, uint64_t found,
                      const struct err_info *why)
{
    (void)ctx; /* nothing is asked */
    (void)request;
    (void)err;
    (void)found;
    (void)why;
}

static int on_time_up(sd_event_source *src, uint64_t us, void *arg)
{
    (void)src;
    (void)us;
    return sd_event_exit(arg, 0);
}

static const char *advice_of(enum fence_state s)
{
    switch (s) {
    case FENCE_UNKNOWN:
    case FENCE_UNREACHABLE:
        return "Is PostgreSQL running, does it listen on the network (listen_addresses), "
               "and does the network let its port through?";
    case FENCE_DENIED:
        return "Check user, password file and database in [database] conninfo, and "
               "pg_hba.conf on the DBMS.";
    case FENCE_READ_ONLY:
        return "This is a read-only copy: point [database] conninfo to the primary.";
    case FENCE_SERVER_TOO_OLD: return alarm_info(ALARM_DATABASE_VERSION)->suggestion;
    case FENCE_SCHEMA_MISSING: return "Run redoubt init, or redoubt database migrate.";
    case FENCE_SCHEMA_TOO_OLD: return "Run redoubt database migrate.";
    case FENCE_SCHEMA_TOO_NEW: return "Install the newer Redoubt on this node.";
    case FENCE_BROKEN: return "See the log of PostgreSQL.";
    case FENCE_GOOD:
    case FENCE_STATE_COUNT: break;
    }
    return NULL;
}

static enum err probe(struct probing *p, const struct conf *conf, struct err_info *info)
{
    struct fence_options o = { .conninfo = conf->database.conninfo,
                               .node = conf->cluster.node,
                               .probe_ms = PROBE_MS,
                               .fence_timeout_ms = conf->database.fence_timeout_ms };
    struct fence_events events = { .answer = on_answer, .health = on_health, .ctx = p };
    struct fence_pg *f = NULL;
    enum err e;

    if (sd_event_new(&p->loop) < 0 ||
        sd_event_add_time_relative(p->loop, NULL, CLOCK_BOOTTIME,
                                   (uint64_t)DATABASE_MS_MAX * 1000, 0, on_time_up,
                                   p->loop) < 0)
        e = err_set(info, ERR_MEMORY, 0, "make an event loop");
    else
        e = fence_open(&f, p->loop, &o, &events, info);
    if (e == ERR_OK && sd_event_loop(p->loop) < 0)
        e = err_set(info, ERR_IO, 0, "run the event loop");
    if (f)
        fence_close(f);
    sd_event_unref(p->loop);
    return e;
}

void check_database(struct report *r)
{
    struct probing p = { .last = { .state = FENCE_UNREACHABLE } };
    struct err_info info = { .what = "" };
    enum err e = probe(&p, &r->c->conf, &info);

    if (e != ERR_OK) {
        report_add(r, REPORT_FAIL, "database", "Correct [database] conninfo.", "%s",
                   info.what);
        return;
    }
    if (p.good == 0) {
        bool fresh = r->before_init && p.last.state == FENCE_SCHEMA_MISSING;

        report_add(r, fresh ? REPORT_WARN : REPORT_FAIL, "database",
                   advice_of(p.last.state), "%s: %s", fence_state_name(p.last.state),
                   p.why.what[0] ? p.why.what : "no answer");
        return;
    }
    report_add(
        r, REPORT_OK, "database", NULL,
        "PostgreSQL %d.%d answers in %.1f ms; schema %d, the fence is at epoch %llu",
        p.last.server_version / 10000, p.last.server_version % 10000, p.latency_us / 1e3,
        p.last.schema, (unsigned long long)p.last.epoch);
}
