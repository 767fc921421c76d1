#include <stdlib.h>
#include <string.h>

#include "sys/blob/blob_private.h"

/* Its age is what others' ages are measured by. */
static const char clock_name[] = "upload/clock";

enum { LEFT_MAX = 4096 };

enum err blob_share_prepare(struct smb *s, struct err_info *info)
{
    static const char *const folders[] = { "blob", "upload" };

    for (size_t i = 0; i < LEN(folders); i++) {
        enum err e = smb_make_folder(s, folders[i], info);

        if (e && e != ERR_EXISTS)
            return e;
    }
    return ERR_OK;
}

enum err blob_share_size(struct smb *s, const struct blob_id *id, uint64_t *out,
                         struct err_info *info)
{
    struct smb_entry there;
    enum err e = smb_stat(s, blob_share_name(id).s, &there, info);

    if (e == ERR_OK && there.is_folder)
        return err_set(info, ERR_CORRUPT, 0, "%s is a folder", there.name);
    if (e == ERR_OK)
        *out = there.size;
    return e;
}

static enum err read_all(struct smb_file *f, const struct blob *b, struct blob_move *m,
                         struct blob_id *out, struct err_info *info)
{
    char *piece = blob_buffer(info);
    struct blob_hash h;
    size_t n = 1;

    if (!piece)
        return ERR_MEMORY;
    enum err e = blob_hash_start(&h, info);
    while (e == ERR_OK && n > 0) {
        e = smb_file_read(f, piece, blob_move_piece(m), &n, info);
        if (e == ERR_OK && n > b->size - m->done)
            e = err_set(info, ERR_CORRUPT, 0, "%s grows while it is read", f->name);
        if (e == ERR_OK)
            blob_hash_add(&h, piece, n);
        if (e == ERR_OK)
            e = blob_move_add(m, n, info);
    }
    free(piece);
    if (e)
        blob_hash_drop(&h);
    else
        blob_hash_end(&h, out);
    return e;
}

enum err blob_share_verify(struct smb *s, const struct blob *b,
                           const struct blob_watch *w, struct err_info *info)
{
    struct blob_id found;
    struct blob_move m;
    struct smb_file f;
    uint64_t size = 0;
    enum err e = blob_share_size(s, &b->id, &size, info);

    if (e)
        return e;
    if (size != b->size)
        return err_set(info, ERR_CORRUPT, 0,
                       "blob %s on the share has %llu bytes, not %llu", b->id.hex,
                       (unsigned long long)size, (unsigned long long)b->size);
    e = smb_file_open(&f, s, blob_share_name(&b->id).s, false, info);
    if (e)
        return e;
    blob_move_start(&m, w, 0, b->size);
    e = read_all(&f, b, &m, &found, info);
    enum err closed = smb_file_close(&f, e ? NULL : info);
    if (e || closed)
        return e ? e : closed;
    if (strcmp(found.hex, b->id.hex) != 0)
        return err_set(info, ERR_CORRUPT, 0, "blob %s on the share has other bytes",
                       b->id.hex);
    return ERR_OK;
}

enum err blob_share_set_aside(struct smb *s, const struct blob_id *id,
                              struct err_info *info)
{
    enum err e =
        smb_rename(s, blob_share_name(id).s, blob_upload_name(id, ".bad").s, info);

    return e == ERR_NOT_FOUND ? ERR_OK : e;
}

/* What was taken out of its place comes back, unless another one has taken it. */
static enum err put_back(struct smb *s, const struct blob_id *id, struct err_info *info)
{
    const struct blob_name old = blob_upload_name(id, ".old");
    uint64_t size;
    enum err e = blob_share_size(s, id, &size, NULL);

    if (e == ERR_NOT_FOUND)
        return smb_rename(s, old.s, blob_share_name(id).s, info);
    return smb_remove(s, old.s, info);
}

/* It is under upload/<sha256>.old: is it still unknown? */
static enum err settle(struct smb *s, const struct blob_id *id, blob_is_known *known,
                       void *arg, bool *removed, struct err_info *info)
{
    bool is_known = true;
    enum err e = known(arg, id, &is_known, info);

    if (e == ERR_OK && !is_known) {
        *removed = true;
        return smb_remove(s, blob_upload_name(id, ".old").s, info);
    }
    *removed = false;
    enum err back = put_back(s, id, e ? NULL : info);
    return e ? e : back;
}

enum err blob_share_remove(struct smb *s, const struct blob_id *id, blob_is_known *known,
                           void *arg, bool *removed, struct err_info *info)
{
    enum err e =
        smb_rename(s, blob_share_name(id).s, blob_upload_name(id, ".old").s, info);

    return e ? e : settle(s, id, known, arg, removed, info);
}

/* The present time by the server's clock.  The file stays: another one may be at it, too. */
static enum err server_now(struct smb *s, int64_t *out, struct err_info *info)
{
    struct smb_entry clock;
    enum err e =
        smb_put(s, clock_name, STR("Its time is the time of the server.\n"), info);

    if (e == ERR_OK)
        e = smb_stat(s, clock_name, &clock, info);
    if (e == ERR_OK)
        *out = clock.mtime;
    return e;
}

static uint64_t age_at(int64_t now, int64_t mtime)
{
    return now > mtime ? (uint64_t)(now - mtime) : 0;
}

struct listing {
    blob_each *each;
    void *arg;
    int64_t now;
};

static bool on_blob(void *arg, const struct smb_entry *e)
{
    const struct listing *l = arg;
    struct blob b = { .size = e->size, .mtime = e->mtime };

    if (e->is_folder || !blob_id_parse(&b.id, str_of(e->name)))
        return true; /* not one of ours */
    return l->each(l->arg, &b, age_at(l->now, e->mtime));
}

enum err blob_share_list(struct smb *s, blob_each *each, void *arg, struct err_info *info)
{
    struct listing l = { .each = each, .arg = arg };
    enum err e = blob_share_prepare(s, info);

    if (e == ERR_OK)
        e = server_now(s, &l.now, info);
    return e ? e : smb_list_entries(s, "blob", on_blob, &l, info);
}

/* --- what was left behind --- */

enum left_kind { LEFT_PART, LEFT_BAD, LEFT_OLD };

struct left {
    struct blob_id id;
    enum left_kind kind;
    uint64_t size;
};

struct leavings {
    int64_t now;
    uint64_t older_s;
    struct blob_left *out;
    struct left *at; /* LEFT_MAX: what is to be removed */
    size_t count;
};

static const char *const endings[] = {
    [LEFT_PART] = ".part", [LEFT_BAD] = ".bad", [LEFT_OLD] = ".old"
};

static bool parse_left(const char *name, struct left *out)
{
    struct str s = str_of(name);

    if (s.n < BLOB_HEX || !blob_id_parse(&out->id, (struct str){ s.p, BLOB_HEX - 1 }))
        return false;
    for (size_t i = 0; i < LEN(endings); i++)
        if (strcmp(name + BLOB_HEX - 1, endings[i]) == 0) {
            out->kind = (enum left_kind)i;
            return true;
        }
    return false;
}

static bool on_left(void *arg, const struct smb_entry *e)
{
    struct leavings *l = arg;
    struct left left = { .size = e->size };

    if (e->is_folder || !parse_left(e->name, &left))
        return true;
    l->out->bytes += e->size;
    l->out->parts += left.kind == LEFT_PART;
    l->out->bad += left.kind == LEFT_BAD;
    l->out->old += left.kind == LEFT_OLD;
    if (age_at(l->now, e->mtime) >= l->older_s && l->count < LEFT_MAX)
        l->at[l->count++] = left;
    return true;
}

static enum err remove_left(struct smb *s, const struct left *l, blob_is_known *known,
                            void *arg, bool *removed, struct err_info *info)
{
    *removed = false;
    if (l->kind == LEFT_OLD)
        return known ? settle(s, &l->id, known, arg, removed, info) : ERR_OK;
    enum err e = smb_remove(s, blob_upload_name(&l->id, endings[l->kind]).s, info);
    *removed = e == ERR_OK;
    if (e == ERR_NOT_FOUND || (e && !smb_is_lost(s)))
        return ERR_OK; /* gone, or somebody is at it just now: another time */
    return e;
}

enum err blob_share_clean(struct smb *s, uint64_t older_s, blob_is_known *known,
                          void *arg, struct blob_left *out, struct err_info *info)
{
    struct leavings l = { .older_s = older_s, .out = out };
    enum err e = blob_share_prepare(s, info);

    *out = (struct blob_left){ 0 };
    l.at = calloc(LEFT_MAX, sizeof(l.at[0]));
    if (!l.at)
        return err_set(info, ERR_MEMORY, 0, "a list");
    if (e == ERR_OK)
        e = server_now(s, &l.now, info);
    if (e == ERR_OK)
        e = smb_list_entries(s, "upload", on_left, &l, info);
    for (size_t i = 0; i < l.count && e == ERR_OK; i++) {
        bool removed = false;

        e = remove_left(s, &l.at[i], known, arg, &removed, info);
        out->removed += removed;
        out->removed_bytes += removed ? l.at[i].size : 0;
    }
    free(l.at);
    return e;
}
