/* What must happen each second on the active node: redoubt.tick(0), tick(1), ... in the DBMS. */
#include "app/manager/enrol.h"
#include "app/manager/manager.h"
#include "sys/log/log.h"

static void next_step(struct manager *m);

/* A step that fails does not keep the others; NULL: it was the last. */
static void on_step(void *ctx, enum err e, const PGresult *r, const struct err_info *why)
{
    struct manager *m = ctx;

    if (e == ERR_STALE || e == ERR_TIMEOUT || (e != ERR_OK && !r)) {
        m->ticking = false; /* the DBMS is gone, or the role is: again in a second */
        return;
    }
    if (e != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "tick_failed", log_u64("step", (uint64_t)m->step),
                  log_str("why", why->what));
    if (e == ERR_OK && PQgetisnull(r, 0, 0)) {
        m->ticking = false;
        return;
    }
    m->step++;
    next_step(m);
}

static void next_step(struct manager *m)
{
    char step[16];
    const char *values[] = { step };
    struct err_info info = { .what = "" };

    (void)snprintf(step, sizeof(step), "%d", m->step);
    if (!m->active || pool_query(m->pool, "SELECT redoubt.tick($1::integer)", LEN(values),
                                 values, on_step, m, &info) != ERR_OK)
        m->ticking = false;
}

void tick(struct manager *m)
{
    if (!m->active || m->ticking)
        return;
    m->ticking = true;
    m->step = 0;
    next_step(m);
    enrol_poke(m);
}
