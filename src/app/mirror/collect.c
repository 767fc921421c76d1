/*
 * collect: blobs that nothing refers to leave the DBMS, and a while later the data share.
 *
 * First the rows (redoubt.blobs_forget), then the files that have no row: those of this run,
 * those of one that was killed in between, and those whose upload was never finished.
 */
#include "app/mirror/active.h"
#include "sys/log/log.h"

enum {
    GRACE_S = 86400, /* somebody may be about to refer to it */
    AT_ONCE = 256,   /* a run; the rest comes with the next */
};

static enum err is_known(void *arg, const struct blob_id *id, bool *out,
                         struct err_info *info)
{
    struct active *a = arg;
    const char *const values[] = { id->hex };
    PGresult *r = NULL;
    const enum err e = active_ask(a, "SELECT 1 FROM redoubt.blob WHERE sha256 = $1", 1,
                                  values, &r, info);

    if (e != ERR_OK)
        return e;
    *out = PQntuples(r) > 0;
    PQclear(r);
    return ERR_OK;
}

static enum err forget(struct active *a, struct err_info *info)
{
    PGresult *r = NULL;
    const enum err e = active_ask(
        a, "SELECT count(*), coalesce(sum(size), 0) FROM redoubt.blobs_forget()", 0, NULL,
        &r, info);

    if (e != ERR_OK)
        return e;
    if (strcmp(PQgetvalue(r, 0, 0), "0") != 0)
        log_event(LOG_LEVEL_INFO, "blobs_forgotten",
                  log_str("count", PQgetvalue(r, 0, 0)),
                  log_str("bytes", PQgetvalue(r, 0, 1)));
    PQclear(r);
    return ERR_OK;
}

struct orphans {
    const PGresult *known; /* digests, sorted */
    struct blob_id id[AT_ONCE];
    uint32_t count;
};

static bool has_row(const PGresult *r, const char *hex)
{
    int lo = 0, hi = PQntuples(r);

    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        const int c = strcmp(PQgetvalue(r, mid, 0), hex);

        if (c == 0)
            return true;
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

static bool note_orphan(void *arg, const struct blob *b, uint64_t age_s)
{
    struct orphans *o = arg;

    if (age_s >= GRACE_S && !has_row(o->known, b->id.hex))
        o->id[o->count++] = b->id;
    return o->count < AT_ONCE;
}

static enum err find_orphans(struct active *a, struct orphans *o, struct err_info *info)
{
    PGresult *known = NULL;
    enum err e =
        active_ask(a, "SELECT sha256 FROM redoubt.blob ORDER BY sha256 COLLATE \"C\"", 0,
                   NULL, &known, info);

    if (e != ERR_OK)
        return e;
    o->known = known;
    o->count = 0;
    e = blob_share_list(a->smb, note_orphan, o, info);
    PQclear(known);
    o->known = NULL;
    return e;
}

enum err collect_run(struct active *a, struct err_info *info)
{
    static struct orphans o;
    struct blob_left left;
    enum err e = forget(a, info);

    if (e == ERR_OK)
        e = find_orphans(a, &o, info);
    for (uint32_t i = 0; e == ERR_OK && i < o.count; i++) {
        bool removed = false;

        if (!mirror_goes_on(a->m))
            return ERR_STATE;
        e = blob_share_remove(a->smb, &o.id[i], is_known, a, &removed, info);
        if (e == ERR_OK && removed)
            log_event(LOG_LEVEL_INFO, "blob_collected", log_str("blob", o.id[i].hex));
    }
    if (e == ERR_OK)
        e = blob_share_clean(a->smb, GRACE_S, is_known, a, &left, info);
    return e;
}
