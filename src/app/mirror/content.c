/*
 * content: what is missing here of what is published, and getting it.
 */
#include "app/mirror/mirror.h"
#include "sys/log/log.h"

enum {
    SURVEY_MS = 60000, /* somebody may remove what is here */
    SWEEP_MS = 600000,
    BACKOFF_MIN_MS = 1000,
    BACKOFF_MAX_MS = 60000,
    PATIENCE_MS = 500, /* a set that is here so soon is no reason to be unprepared */
    PART_S = 7 * 86400,
};

bool content_is_prepared(const struct mirror *m)
{
    return m->list &&
           (m->content.complete ||
            (m->content.laid != 0 &&
             mono_since_ms(mirror_now(), m->content.lacking_since) < PATIENCE_MS));
}

static void lack(struct mirror *m)
{
    if (m->content.complete)
        m->content.lacking_since = mirror_now();
    m->content.complete = false;
}

static void say_why(struct mirror *m, const char *why)
{
    if (strcmp(m->content.why, why) == 0)
        return;
    (void)snprintf(m->content.why, sizeof(m->content.why), "%.190s", why);
    if (why[0])
        log_event(LOG_LEVEL_WARNING, "content", log_str("why", why));
}

void content_lost(struct mirror *m, const struct blob *b)
{
    struct err_info why;

    if (blob_local_remove(m->conf.web.store, &b->id, &why) != ERR_OK)
        say_why(m, why.what);
    lack(m);
    m->content.survey = m->content.retry = (struct mono){ 0 };
}

/* What is here by name and size; the rest is missing. */
static void survey(struct mirror *m)
{
    const struct list *l = m->list;
    struct err_info why;

    m->content.missing = 0;
    m->content.missing_bytes = 0;
    for (uint32_t i = 0; i < l->blob_count; i++) {
        const enum err e = blob_local_check(m->conf.web.store, &l->blobs[i], &why);

        if (e == ERR_OK)
            continue;
        if (e == ERR_CORRUPT) { /* not of its size */
            tell_damage(m, false, &l->blobs[i].id);
            if (blob_local_remove(m->conf.web.store, &l->blobs[i].id, &why) != ERR_OK)
                say_why(m, why.what);
        }
        m->content.missing++;
        m->content.missing_bytes += l->blobs[i].size;
    }
    m->content.survey = mono_after(mirror_now(), SURVEY_MS);
}

static void try_later(struct mirror *m)
{
    m->content.backoff_ms =
        m->content.backoff_ms == 0 ? BACKOFF_MIN_MS : m->content.backoff_ms * 2;
    if (m->content.backoff_ms > BACKOFF_MAX_MS)
        m->content.backoff_ms = BACKOFF_MAX_MS;
    m->content.retry = mono_after(mirror_now(), m->content.backoff_ms);
}

static enum err fetch_one(struct mirror *m, const struct blob *b, struct err_info *why)
{
    const struct blob_watch watch = mirror_watch(m);
    struct smb *s = share_get(m, why);

    if (!s)
        return ERR_IO;
    m->moving = 0;
    const enum err e = blob_fetch(s, m->conf.web.store, b, &watch, why);

    m->moving = 0;
    share_used(m, e, why);
    m->content.full = e == ERR_FULL;
    if (e == ERR_OK) {
        m->fetched_bytes += b->size;
        m->content.missing--;
        m->content.missing_bytes -= b->size;
        tell_healed(m, &b->id);
        return e;
    }
    if (e == ERR_CORRUPT || e == ERR_NOT_FOUND) { /* of the share: see suspects */
        tell_damage(m, true, &b->id);
        db_tell(m, "damaged", &b->id);
    }
    return e;
}

/* ERR_STATE: something else comes first. */
static enum err fetch(struct mirror *m, struct err_info *why)
{
    const struct list *l = m->list;
    enum err worst = ERR_OK;
    struct err_info ignored;

    for (uint32_t i = 0; i < l->blob_count && m->content.missing > 0; i++) {
        struct err_info this;

        if (!mirror_goes_on(m) || db_is_due(m))
            return ERR_STATE;
        if (blob_local_check(m->conf.web.store, &l->blobs[i], &ignored) == ERR_OK)
            continue;
        const enum err e = fetch_one(m, &l->blobs[i], &this);

        if (e == ERR_OK)
            continue;
        worst = e;
        *why = this;
        /* One that is damaged keeps none of the others away. */
        if (e != ERR_CORRUPT && e != ERR_NOT_FOUND)
            return e;
    }
    return worst;
}

static enum err complete(struct mirror *m, struct err_info *why)
{
    const struct list *l = m->list;
    const bool laid = tree_is_laid(m->conf.web.store, l);
    const enum err e = laid ? ERR_OK : tree_lay(m->conf.web.store, l, why);

    if (e != ERR_OK)
        return e;
    if (!laid || !m->content.complete)
        log_event(LOG_LEVEL_INFO, "content_complete", log_u64("serial", l->head.serial),
                  log_u64("files", l->head.count));
    if (!laid) /* what the new list does not name goes when the old tree does */
        m->content.sweep = (struct mono){ 0 };
    tell_complete(m);
    m->content.complete = true;
    m->content.laid = l->head.serial;
    m->content.backoff_ms = 0;
    m->content.full = false;
    say_why(m, "");
    return ERR_OK;
}

static bool sweep_one(void *arg, const struct blob *b, uint64_t age_s)
{
    struct mirror *m = arg;
    struct err_info why;

    (void)age_s;
    if (!list_has(m->list, &b->id) && !tree_needs(m->conf.web.store, &b->id) &&
        blob_local_remove(m->conf.web.store, &b->id, &why) == ERR_OK)
        log_event(LOG_LEVEL_INFO, "blob_removed", log_str("blob", b->id.hex));
    return true;
}

/* Old trees, and the blobs that only they needed. */
static void sweep(struct mirror *m)
{
    struct err_info why;

    m->content.sweep = mono_after(mirror_now(), SWEEP_MS);
    tree_prune(m->conf.web.store, mirror_wall_s());
    enum err e = blob_local_list(m->conf.web.store, sweep_one, m, &why);

    if (e == ERR_OK)
        e = blob_local_clean(m->conf.web.store, PART_S, &why);
    if (e != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "sweep", log_str("why", why.what));
}

void content_turn(struct mirror *m)
{
    const struct mono now = mirror_now();
    struct err_info why = { .what = "" };
    enum err e = ERR_OK;

    if (!m->list) {
        if (m->content.why[0] == '\0')
            say_why(m, "the list of what is published has not been read yet");
        return;
    }
    if (mono_reached(now, m->content.survey) ||
        (!m->content.complete && mono_reached(now, m->content.retry))) {
        survey(m);
        if (m->content.missing > 0 || !tree_is_laid(m->conf.web.store, m->list))
            lack(m);
    }
    if (m->content.complete) {
        if (mono_reached(now, m->content.sweep))
            sweep(m);
        return;
    }
    if (!mono_reached(now, m->content.retry))
        return;
    if (m->content.missing > 0)
        e = fetch(m, &why);
    if (e == ERR_OK)
        e = complete(m, &why);
    if (e == ERR_OK || e == ERR_STATE)
        return;
    say_why(m, why.what);
    try_later(m);
}
