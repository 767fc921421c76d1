/*
 * content: what is missing here of what is published, and getting it.
 */
#include <stdlib.h>

#include "app/mirror/mirror.h"
#include "sys/log/log.h"

enum {
    SURVEY_MS = 60000, /* somebody may remove what is here */
    SWEEP_MS = 600000,
    BACKOFF_MIN_MS = 1000,
    BACKOFF_MAX_MS = 60000,
    PATIENCE_MS = 500, /* a set that is here so soon is no reason to be unprepared */
    PART_S = 7 * 86400,
    WAITS_MS = 240000, /* after the next look at everything was due */
};

/* Everything is shown that any node could show: to wait for the rest would be in vain. */
static bool is_all_there_is(const struct mirror *m)
{
    return m->content.complete ||
           (m->content.partial && m->content.lost == m->content.missing);
}

bool content_is_prepared(const struct mirror *m)
{
    return m->list &&
           (is_all_there_is(m) ||
            (m->content.laid != 0 &&
             mono_since_ms(mirror_now(), m->content.lacking_since) < PATIENCE_MS));
}

bool content_is_shown(const struct mirror *m)
{
    return m->content.complete || m->content.partial;
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

bool content_waits(const struct mirror *m)
{
    return db_is_due(m) || m->suspect_count > 0 ||
           (m->list &&
            mono_reached(mirror_now(), mono_after(m->content.survey, WAITS_MS)));
}

void content_take(struct mirror *m, struct list *l)
{
    const bool was = m->list && !m->content.complete && is_all_there_is(m);

    for (uint32_t i = 0; m->list && i < m->list->blob_count; i++) {
        struct want *w =
            m->list->wants[i].lost ? list_want(l, &m->list->blobs[i].id) : NULL;

        if (w)
            w->lost = true;
    }
    list_free(m->list);
    m->list = l;
    m->content.partial = false;
    if (was)
        m->content.lacking_since = mirror_now();
    m->content.survey = m->content.retry = (struct mono){ 0 };
}

void content_is_lost(struct mirror *m, const struct blob_id *id)
{
    struct want *w = m->list ? list_want(m->list, id) : NULL;

    if (!w || !w->absent || w->lost)
        return;
    w->lost = true;
    m->content.lost++;
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

    m->content.missing = m->content.lost = 0;
    m->content.missing_bytes = 0;
    for (uint32_t i = 0; i < l->blob_count; i++) {
        const enum err e = blob_local_check(m->conf.web.store, &l->blobs[i], &why);

        if (e == ERR_OK) {
            l->wants[i] = (struct want){ 0 };
            continue;
        }
        if (e == ERR_CORRUPT) { /* not of its size */
            tell_damage(m, false, &l->blobs[i].id);
            if (blob_local_remove(m->conf.web.store, &l->blobs[i].id, &why) != ERR_OK)
                say_why(m, why.what);
        }
        m->content.missing++;
        m->content.lost += l->wants[i].lost;
        m->content.missing_bytes += l->blobs[i].size;
    }
    m->content.survey = mono_after(mirror_now(), SURVEY_MS);
}

static void try_later(struct mirror *m)
{
    if (!mono_is_set(m->content.retry)) /* something was mended meanwhile: at once */
        return;
    m->content.backoff_ms =
        m->content.backoff_ms == 0 ? BACKOFF_MIN_MS : m->content.backoff_ms * 2;
    if (m->content.backoff_ms > BACKOFF_MAX_MS)
        m->content.backoff_ms = BACKOFF_MAX_MS;
    m->content.retry = mono_after(mirror_now(), m->content.backoff_ms);
}

/* Is it this blob?  Then it is absent; and if it is the share's, the active node is told. */
static void not_fetched(struct mirror *m, uint32_t i, enum err e, bool broke)
{
    const struct blob_id *id = &m->list->blobs[i].id;
    struct want *w = &m->list->wants[i];

    if (e == ERR_IO)
        w->absent = !broke || share_again(m);
    else
        w->absent = e == ERR_CORRUPT || e == ERR_NOT_FOUND;
    if (!w->absent || (e == ERR_IO && !broke)) /* this disk */
        return;
    if (e == ERR_IO && w->unread + 1 < MIRROR_READ_TRIES) {
        w->unread++;
        return;
    }
    tell_damage(m, true, id);
    db_tell(m, "damaged", id); /* see suspects */
}

static enum err fetch_one(struct mirror *m, uint32_t i, struct err_info *why)
{
    const struct blob *b = &m->list->blobs[i];
    struct want *w = &m->list->wants[i];
    const struct blob_watch watch = mirror_watch(m);
    struct smb *s = share_get(m, why);

    if (!s)
        return ERR_IO;
    m->moving = 0;
    const enum err e = blob_fetch(s, m->conf.web.store, b, &watch, why);
    const bool broke = e == ERR_IO && smb_is_lost(s);

    m->moving = 0;
    share_used(m, e, why);
    m->content.full = e == ERR_FULL;
    if (e == ERR_OK) {
        m->fetched_bytes += b->size;
        m->content.missing--;
        m->content.missing_bytes -= b->size;
        m->content.lost -= w->lost;
        *w = (struct want){ 0 };
        tell_healed(m, &b->id);
        return e;
    }
    not_fetched(m, i, e, broke);
    return e;
}

/*
 * ERR_OK: each was tried; *absent of them cannot be had now, and why.  ERR_STATE: something
 * else comes first.
 */
static enum err fetch(struct mirror *m, uint32_t *absent, struct err_info *why)
{
    const struct list *l = m->list;
    struct err_info ignored;

    for (uint32_t i = 0; i < l->blob_count && m->content.missing > 0; i++) {

        if (!mirror_goes_on(m) || db_is_due(m))
            return ERR_STATE;
        if (blob_local_check(m->conf.web.store, &l->blobs[i], &ignored) == ERR_OK)
            continue;
        l->wants[i].absent = false; /* until it is known */
        const enum err e = fetch_one(m, i, why);

        /* One that is damaged, or cannot be read, keeps none of the others away. */
        if (l->wants[i].absent)
            ++*absent;
        else if (e != ERR_OK)
            return e;
    }
    return ERR_OK;
}

/* What is shown from now on, for list_rest().  Not kept: a set may go that could stay. */
static void keep_shown(struct mirror *m, const struct list *l)
{
    struct err_info why;

    if (list_keep(m->conf.web.store, "shown", l, &why) != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "list_not_kept", log_str("why", why.what));
}

static enum err complete(struct mirror *m, struct err_info *why)
{
    const struct list *l = m->list;
    const bool laid = tree_is_laid(m->conf.web.store, l);

    if (!laid)
        keep_shown(m, l);
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
    m->content.partial = false;
    m->content.laid = l->head.serial;
    m->content.backoff_ms = 0;
    m->content.full = false;
    say_why(m, "");
    return ERR_OK;
}

/* Some of it cannot be had: nobody else's files wait for that.  why: of one of the former. */
static enum err show_rest(struct mirror *m, struct err_info *why)
{
    struct list *before = NULL, *rest = NULL;
    char whose[MIRROR_WHY] = "";
    struct err_info ignored;

    if (list_load(m->conf.web.store, "shown", &before, &ignored) != ERR_OK)
        before = NULL;
    enum err e = list_rest(m->conf.web.store, m->list, before, &rest, whose, &ignored);

    if (e == ERR_OK && (before || rest->head.count > 0) &&
        !tree_is_laid(m->conf.web.store, rest)) {
        keep_shown(m, rest);
        e = tree_lay(m->conf.web.store, rest, &ignored);
        m->content.sweep = (struct mono){ 0 };
        log_event(LOG_LEVEL_WARNING, "content_partial",
                  log_u64("serial", rest->head.serial),
                  log_u64("files", rest->head.count), log_u64("of", m->list->head.count),
                  log_str("why", whose));
    }
    if (e == ERR_OK) {
        m->content.partial = true;
        if (before || rest->head.count > 0)
            m->content.laid = m->list->head.serial;
        ignored = *why;
        (void)err_set(why, ERR_NOT_FOUND, 0, "%s: %.100s", whose, ignored.what);
    } else {
        *why = ignored;
    }
    list_free(before);
    list_free(rest);
    return e;
}

struct sweep {
    struct mirror *m;
    struct tree_needs needs;
};

static void say_alive(void *arg)
{
    tell_state(arg);
}

static bool sweep_one(void *arg, const struct blob *b, uint64_t age_s)
{
    struct sweep *s = arg;
    struct err_info why;

    (void)age_s;
    if (list_has(s->m->list, &b->id) || tree_needs_it(&s->needs, &b->id))
        return true;
    if (blob_local_remove(s->m->conf.web.store, &b->id, &why) == ERR_OK)
        log_event(LOG_LEVEL_INFO, "blob_removed", log_str("blob", b->id.hex));
    say_alive(s->m);
    return true;
}

/* Old trees, and the blobs that only they needed. */
static void sweep(struct mirror *m)
{
    struct sweep s = { .m = m, .needs = { .meanwhile = say_alive, .arg = m } };
    struct err_info why = { .what = "what is shown cannot be looked through" };
    enum err e = ERR_IO;

    m->content.sweep = mono_after(mirror_now(), SWEEP_MS);
    tree_prune(m->conf.web.store, mirror_wall_s());
    if (tree_needs_all(m->conf.web.store, &s.needs))
        e = blob_local_list(m->conf.web.store, sweep_one, &s, &why);
    free(s.needs.id);
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
    uint32_t absent = 0;

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
    if (content_is_shown(m) && mono_reached(now, m->content.sweep))
        sweep(m);
    if (m->content.complete || !mono_reached(now, m->content.retry))
        return;
    m->content.retry = now;
    if (m->content.missing > 0)
        e = fetch(m, &absent, &why);
    if (e == ERR_OK)
        e = absent == 0 ? complete(m, &why) : show_rest(m, &why);
    if (e == ERR_STATE || (e == ERR_OK && absent == 0))
        return;
    say_why(m, why.what);
    try_later(m);
}
