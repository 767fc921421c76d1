/*
 * active: the tasks of the active node.
 */
#include "app/mirror/active.h"

#include "sys/log/log.h"

enum { AGAIN_S = 60 };

static const struct active_task tasks[] = {
    { "collect", 3600, NULL, collect_run },
    { "upstream", 1, upstream_wanted, upstream_run },
};

/* When each is due, in this epoch. */
static struct {
    uint64_t epoch;
    struct mono due[LEN(tasks)];
} times;

enum err active_ask(struct active *a, const char *sql, size_t count,
                    const char *const values[], PGresult **out, struct err_info *info)
{
    if (!mirror_is_active(a->m, NULL))
        return err_set(info, ERR_STALE, 0, "this node is active no more");
    const enum err e = db_ask_state(a->db, sql, count, values, out, a->sqlstate, info);

    /* ERR_STATE has a meaning of its own here: called off. */
    return e == ERR_STATE ? ERR_IO : e;
}

/* A session of the epoch, and the share; what is open then is the caller's to close. */
static enum err begin(struct active *a, struct err_info *info)
{
    char epoch[24], name[CONF_NAME + 32];
    const char *const values[] = { epoch, a->m->conf.cluster.node };

    (void)snprintf(name, sizeof(name), "redoubt-mirror/%s/active",
                   a->m->conf.cluster.node);
    (void)snprintf(epoch, sizeof(epoch), "%llu", (unsigned long long)a->epoch);
    a->smb = share_get(a->m, info);
    if (!a->smb)
        return ERR_IO;
    a->db = db_connect(a->m, name, info);
    if (!a->db)
        return ERR_CLOSED;
    enum err e = db_do(a->db, "SELECT redoubt.announce($1::bigint, 'mirror', $2)", 2,
                       values, info);

    if (e == ERR_OK)
        e = blob_share_prepare(a->smb, info);
    return e;
}

static void run_one(struct mirror *m, size_t i, uint64_t epoch)
{
    struct active a = { .m = m, .epoch = epoch };
    struct err_info why = { .what = "" };
    enum err e = begin(&a, &why);

    if (e == ERR_OK)
        e = tasks[i].run(&a, &why);
    PQfinish(a.db); /* NULL is fine */
    share_used(m, e, &why);
    if (e == ERR_STATE)
        return; /* in the next turn */
    if (e != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "task_failed", log_str("task", tasks[i].name),
                  log_str("error", err_name(e)), log_str("why", why.what));
    times.due[i] =
        mono_after(mirror_now(), (e == ERR_OK ? tasks[i].every_s : AGAIN_S) * 1000u);
}

void active_turn(struct mirror *m)
{
    uint64_t epoch = 0;

    for (size_t i = 0; i < LEN(tasks); i++) {
        if (!mirror_is_active(m, &epoch) || !mirror_goes_on(m))
            return;
        if (times.epoch != epoch) {
            times.epoch = epoch;
            upstream_news();
            memset(times.due, 0, sizeof(times.due));
        }
        if (mono_reached(mirror_now(), times.due[i]) &&
            (!tasks[i].wanted || tasks[i].wanted(m)))
            run_one(m, i, epoch);
    }
}
