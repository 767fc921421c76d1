/*
 * scrub: every blob is read again now and then; what is damaged is healed from the good copy.
 *
 * A damaged blob of the disk is removed and fetched again (content.c).  One of the share is
 * written anew by the active node, from its own copy, which it verifies while it reads; if it
 * has none it says so ("lost"), and the other node does it if that has one.
 */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/mirror/mirror.h"
#include "sys/log/log.h"

/* The time of the file `scrubbed` is the end of the last one. */
static bool mark_path(const struct mirror *m, char out[MIRROR_PATH])
{
    return snprintf(out, MIRROR_PATH, "%s/scrubbed", m->conf.web.store) < MIRROR_PATH;
}

static uint64_t last_end_s(const struct mirror *m)
{
    char path[MIRROR_PATH];
    struct stat st;

    if (!mark_path(m, path) || stat(path, &st) < 0 || st.st_mtim.tv_sec < 0)
        return 0;
    return (uint64_t)st.st_mtim.tv_sec;
}

static void mark_end(struct mirror *m)
{
    char path[MIRROR_PATH];
    const int fd = mark_path(m, path)
                       ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640)
                       : -1;

    if (fd >= 0) {
        (void)futimens(fd, NULL); /* or it is read again sooner */
        (void)close(fd);
    }
    m->scrub.last_s = mirror_wall_s();
}

void scrub_start(struct mirror *m)
{
    if (!m->scrub.on)
        log_event(LOG_LEVEL_INFO, "scrub", log_str("state", "begins"));
    m->scrub.on = true;
    m->scrub.last.hex[0] = '\0';
}

static bool is_due(struct mirror *m)
{
    const uint64_t now = mirror_wall_s(), every = m->conf.web.scrub_hours * 3600ull;

    if (m->scrub.last_s == 0)
        m->scrub.last_s = last_end_s(m);
    if (m->scrub.last_s == 0)
        mark_end(m);           /* what is here was verified when it came */
    if (m->scrub.last_s > now) /* the clock was set back */
        m->scrub.last_s = now;
    return now - m->scrub.last_s >= every;
}

/* ERR_STATE: something else comes first. */
static enum err look_at_disk(struct mirror *m, const struct blob *b)
{
    const struct blob_watch watch = mirror_watch(m);
    struct err_info why;
    const enum err e = blob_local_verify(m->conf.web.store, b, &watch, &why);

    if (e == ERR_CORRUPT || e == ERR_IO) { /* ERR_IO: a sector that cannot be read */
        tell_damage(m, false, &b->id);
        content_lost(m, b);
    } else if (e == ERR_NOT_FOUND && m->content.complete) {
        content_lost(m, b);
    }
    return e;
}

static enum err heal_share(struct mirror *m, struct smb *s, const struct blob *b,
                           bool damaged, struct err_info *why)
{
    const struct blob_watch watch = mirror_watch(m);
    /* The good copy first: a damaged one is better than none. */
    enum err e = blob_local_verify(m->conf.web.store, b, &watch, why);

    /* To both: nobody waits for it, and who has it brings it. */
    if ((e == ERR_CORRUPT || e == ERR_NOT_FOUND || e == ERR_IO) &&
        mirror_is_active(m, NULL))
        db_tell(m, "lost", &b->id);
    if (e == ERR_OK && damaged)
        e = blob_share_set_aside(s, &b->id, why);
    if (e == ERR_OK)
        e = blob_heal_share(s, m->conf.web.store, b, &watch, why);
    return e;
}

/* One that can never be read, although the share is there, is damaged. */
static enum err verify_share(struct mirror *m, const struct blob *b, struct err_info *why)
{
    const struct blob_watch watch = mirror_watch(m);
    uint32_t tries = 0;

    for (;;) {
        struct smb *s = share_get(m, why);

        if (!s)
            return ERR_IO;
        const enum err e = blob_share_verify(s, b, &watch, why);

        if (e != ERR_IO)
            return e;
        share_used(m, e, why);
        if (!share_again(m))
            return e;
        if (++tries == MIRROR_READ_TRIES)
            return ERR_CORRUPT;
    }
}

static enum err look_at_share(struct mirror *m, const struct blob *b)
{
    struct err_info why;
    enum err e = verify_share(m, b, &why);
    struct smb *s = share_get(m, &why);
    const bool damaged = e == ERR_CORRUPT;

    if (!s)
        return ERR_IO;

    if (damaged || e == ERR_NOT_FOUND) {
        tell_damage(m, true, &b->id);
        e = heal_share(m, s, b, damaged, &why);
        if (e == ERR_OK) {
            tell_healed(m, &b->id);
            db_tell(m, "healed", &b->id);
        }
    } else if (e == ERR_OK) {
        tell_healed(m, &b->id);
    }
    if (e != ERR_OK && e != ERR_STATE && e != ERR_STALE)
        log_event(LOG_LEVEL_WARNING, "share_not_healed", log_str("blob", b->id.hex),
                  log_str("why", why.what));
    share_used(m, e, &why);
    return e;
}

static const struct blob *find(const struct list *l, const struct blob_id *id)
{
    for (uint32_t i = 0; l && i < l->blob_count; i++)
        if (strcmp(l->blobs[i].id.hex, id->hex) == 0)
            return &l->blobs[i];
    return NULL;
}

static bool may_heal(const struct mirror *m, const struct blob *b)
{
    struct err_info ignored;

    return mirror_is_active(m, NULL) ||
           blob_local_check(m->conf.web.store, b, &ignored) == ERR_OK;
}

/* What could not be fetched: the active node hears "damaged", the other one "lost". */
static void look_at_suspects(struct mirror *m)
{
    while (m->suspect_count > 0) {
        const struct blob *b = find(m->list, &m->suspects[m->suspect_count - 1]);

        if (b && may_heal(m, b) && look_at_share(m, b) == ERR_STATE)
            return; /* again in the next turn */
        m->suspect_count--;
    }
}

/* The first one behind that which was looked at last; NULL: that was the end. */
static const struct blob *next(const struct mirror *m)
{
    const struct list *l = m->list;
    uint32_t lo = 0, hi = l->blob_count;

    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;

        if (strcmp(l->blobs[mid].id.hex, m->scrub.last.hex) <= 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->blob_count ? &l->blobs[lo] : NULL;
}

static void step(struct mirror *m)
{
    const struct blob *b = next(m);

    if (!b) {
        m->scrub.on = false;
        mark_end(m);
        log_event(LOG_LEVEL_INFO, "scrub", log_str("state", "done"),
                  log_u64("files", m->list->blob_count));
        return;
    }
    if (look_at_disk(m, b) == ERR_STATE ||
        (mirror_is_active(m, NULL) && look_at_share(m, b) == ERR_STATE))
        return;
    m->scrub.last = b->id;
}

void scrub_turn(struct mirror *m)
{
    look_at_suspects(m);
    if (!m->list || !content_is_shown(m))
        return;
    if (!m->scrub.on && is_due(m))
        scrub_start(m);
    if (m->scrub.on && mirror_goes_on(m))
        step(m);
}
