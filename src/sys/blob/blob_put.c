#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sys/blob/blob_feed.h"
#include "sys/blob/blob_hands.h"

enum {
    RENAME_TRIES = 150,
    RENAME_NAP_MS = 200,
    PUT_TRIES = 3,
    HANDS_WORTH = 16 * 1024 * 1024 /* less is sent before they are connected */
};

/* One upload. */
struct put {
    struct smb *smb;
    int fd;
    const struct blob_watch *watch;
    struct stat st;
    struct blob_name part;
    uint64_t size;
    char *piece;
};

/*
 * The name of the part is known before the digest of the file: of this very file, of this
 * version of it, on this machine.  Another machine's part is never touched; two processes
 * that put the same file write the same bytes.
 */
static enum err name_part(struct put *p, struct err_info *info)
{
    char host[256] = "", text[512];
    struct blob_hash h;
    struct blob_id word;

    (void)gethostname(host, sizeof(host) - 1); /* without one the rest must do */
    int n = snprintf(text, sizeof(text), "redoubt upload %s %llu %llu %llu %lld.%09ld",
                     host, (unsigned long long)p->st.st_dev,
                     (unsigned long long)p->st.st_ino, (unsigned long long)p->size,
                     (long long)p->st.st_mtim.tv_sec, p->st.st_mtim.tv_nsec);
    enum err e = blob_hash_start(&h, info);
    if (e)
        return e;
    blob_hash_add(&h, text, (size_t)n);
    blob_hash_end(&h, &word);
    p->part = blob_upload_name(&word, ".part");
    return ERR_OK;
}

struct same_size {
    uint64_t size;
    bool found;
};

static bool note_size(void *arg, const struct smb_entry *e)
{
    struct same_size *s = arg;

    s->found = s->found || (!e->is_folder && e->size == s->size);
    return !s->found;
}

enum err blob_digest(int fd, const struct blob_watch *w, struct blob_id *out,
                     struct err_info *info)
{
    struct blob_hash h;
    struct blob_move m;
    struct stat st;
    char *piece;
    size_t n = 1;

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return err_set(info, ERR_INVALID, 0, "this is no plain file");
    piece = blob_buffer(info);
    if (!piece)
        return ERR_MEMORY;
    blob_move_start(&m, w, 0, (uint64_t)st.st_size);
    enum err e = blob_hash_start(&h, info);
    while (e == ERR_OK && n > 0) {
        e = blob_read_at(fd, piece, BLOB_PIECE, m.done, &n, info);
        if (e == ERR_OK)
            blob_hash_add(&h, piece, n);
        if (e == ERR_OK)
            e = blob_move_add(&m, n, info);
    }
    free(piece);
    if (e)
        blob_hash_drop(&h);
    else
        blob_hash_end(&h, out);
    return e;
}

/* Is the blob on the share?  The file is read only if one of its size is, and that one is
 * read too: who publishes a file again heals a damaged copy. */
static enum err look(struct put *p, struct blob_put *out, struct err_info *info)
{
    struct same_size same = { .size = p->size };
    enum err e = smb_list_entries(p->smb, "blob", note_size, &same, info);

    if (e || !same.found)
        return e;
    e = blob_digest(p->fd, NULL, &out->blob.id, info);
    if (e)
        return e;
    e = blob_share_verify(p->smb, &out->blob, p->watch, info);
    out->was_there = e == ERR_OK;
    if (e == ERR_CORRUPT)
        e = blob_share_set_aside(p->smb, &out->blob.id, info);
    return e == ERR_NOT_FOUND ? ERR_OK : e;
}

/*
 * How many bytes of the part are those of the file, from the first one on: they are read back,
 * for a connection or a server may have ended in the middle of a write, and of two writers
 * one may have been ahead.  hash then covers them.
 */
static enum err compare(struct put *p, uint64_t have, struct blob_hash *hash,
                        uint64_t *out_same, struct err_info *info)
{
    char *own = blob_buffer(info);
    struct smb_file f;
    uint64_t at = 0;
    size_t n = 0, m = 0;
    bool same = true;

    if (!own)
        return ERR_MEMORY;
    enum err e = smb_file_open(&f, p->smb, p->part.s, false, info);
    if (e) {
        free(own);
        return e;
    }
    while (e == ERR_OK && same && at < have) {
        size_t want = have - at < BLOB_PIECE ? (size_t)(have - at) : BLOB_PIECE;

        e = smb_file_read(&f, p->piece, want, &n, info);
        if (e == ERR_OK)
            e = blob_read_at(p->fd, own, n, at, &m, info);
        same = e == ERR_OK && n > 0 && m == n && memcmp(own, p->piece, n) == 0;
        if (same) {
            blob_hash_add(hash, own, n);
            at += n;
        }
    }
    enum err closed = smb_file_close(&f, e ? NULL : info);
    free(own);
    *out_same = at;
    return e ? e : closed;
}

/* Where to go on.  What is behind that place is written over. */
static enum err resume(struct put *p, struct blob_hash *hash, uint64_t *out_at,
                       struct err_info *info)
{
    struct smb_entry there;
    enum err e = smb_stat(p->smb, p->part.s, &there, info);

    *out_at = 0;
    if (e == ERR_NOT_FOUND || (e == ERR_OK && there.size == 0))
        return ERR_OK;
    if (e == ERR_OK && there.size > p->size) /* none of ours */
        return smb_remove(p->smb, p->part.s, info);
    return e ? e : compare(p, there.size, hash, out_at, info);
}

/* What pieces go to: this connection, or hands with connections of their own. */
struct sink {
    struct smb_file file;
    struct blob_hands *hands; /* NULL: file */
};

static enum err open_sink(struct put *p, uint64_t at, struct sink *out,
                          struct err_info *info)
{
    bool slow = p->watch && p->watch->bytes_per_s > 0;

    *out = (struct sink){ .hands = NULL };
    if (!slow && p->size - at >= HANDS_WORTH)
        return blob_hands_start(&out->hands, p->smb, p->part.s, info);
    return smb_file_resume(&out->file, p->smb, p->part.s, at, info);
}

static enum err close_sink(struct sink *s, const struct blob_move *m, enum err e,
                           struct err_info *info)
{
    enum err closed = ERR_OK;

    if (!s->hands)
        closed = smb_file_close(&s->file, e ? NULL : info);
    else if (e == ERR_OK)
        closed = blob_hands_end(s->hands, m, info);
    blob_hands_free(s->hands);
    return e ? e : closed;
}

static enum err send_pieces(struct blob_move *m, struct blob_feed *feed,
                            struct sink *sink, struct err_info *info)
{
    uint64_t sent = 0, freed = 0;
    struct str piece = { NULL, 0 };
    enum err e = ERR_OK;

    do {
        e = blob_feed_next(feed, &piece, info);
        if (e == ERR_OK && piece.n > 0) {
            sent++;
            e = sink->hands
                    ? blob_hands_write(sink->hands, piece, m->done, m, &freed, info)
                    : smb_file_write(&sink->file, piece, info);
            blob_feed_done(feed, sink->hands ? freed : sent);
        }
        if (e == ERR_OK)
            e = blob_move_add(m, piece.n, info);
    } while (e == ERR_OK && piece.n > 0);
    return e;
}

/* The rest of the file, and the digest of the whole. */
static enum err send_rest(struct put *p, uint64_t at, struct blob_hash *hash,
                          struct blob_id *out, struct err_info *info)
{
    struct blob_move move;
    struct blob_feed *feed = NULL;
    struct sink sink;
    char *ring = blob_feed_ring(info);
    /* The hands first: they are processes, and what reads ahead is a thread. */
    enum err e = ring ? open_sink(p, at, &sink, info) : ERR_MEMORY;

    if (e) {
        blob_feed_ring_free(ring);
        return e;
    }
    blob_move_start(&move, p->watch, at, p->size);
    e = blob_feed_start(
        &feed, &(struct blob_feed_from){ p->fd, at, blob_move_piece(&move), ring }, hash,
        info);
    if (e == ERR_OK)
        e = send_pieces(&move, feed, &sink, info);
    e = close_sink(&sink, &move, e, info);
    if (e == ERR_OK)
        blob_feed_digest(feed, out);
    blob_feed_free(feed);
    blob_feed_ring_free(ring);
    return e;
}

/* Is what is on the share the file that was opened? */
static enum err check_whole(struct put *p, struct err_info *info)
{
    struct smb_entry there;
    struct stat now;

    if (fstat(p->fd, &now) != 0 || (uint64_t)now.st_size != p->size ||
        now.st_mtim.tv_sec != p->st.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != p->st.st_mtim.tv_nsec)
        return err_set(info, ERR_INVALID, 0, "the file changed while it was sent");
    enum err e = smb_stat(p->smb, p->part.s, &there, info);
    if (e == ERR_OK && there.size != p->size)
        return err_set(info, ERR_IO, 0, "%s has %llu bytes, not %llu", p->part.s,
                       (unsigned long long)there.size, (unsigned long long)p->size);
    return e;
}

/* A name that is taken by something of another size is given free. */
static enum err look_in_place(struct put *p, const struct blob_id *id, bool *ret_there,
                              struct err_info *info)
{
    uint64_t size = 0;
    enum err e = blob_share_size(p->smb, id, &size, info);

    *ret_there = e == ERR_OK && size == p->size;
    if (e == ERR_OK && !*ret_there)
        return blob_share_set_aside(p->smb, id, info);
    return e == ERR_NOT_FOUND ? ERR_OK : e;
}

/* If another one is at it just now, it stays: it is removed when it is old. */
static void drop_part(struct put *p)
{
    enum err e = smb_remove(p->smb, p->part.s, NULL);

    (void)e; /* the blob is in its place, which is what was asked for */
}

/*
 * Another process may be at the same part: the server refuses to rename a file that is open
 * elsewhere, so it is tried until that one has ended or has been faster.
 */
static enum err put_in_place(struct put *p, const struct blob_id *id,
                             struct err_info *info)
{
    const struct blob_name name = blob_share_name(id);
    bool there = false;
    enum err e = ERR_OK;

    for (int i = 0; i < RENAME_TRIES; i++) {
        e = look_in_place(p, id, &there, info);
        if (e == ERR_OK && there) {
            drop_part(p);
            return ERR_OK;
        }
        if (e == ERR_OK)
            e = smb_rename(p->smb, p->part.s, name.s, info);
        if (e == ERR_OK || smb_is_lost(p->smb) || e == ERR_DENIED || e == ERR_FULL ||
            (e == ERR_NOT_FOUND && i > 0)) /* the part is gone, and it is not in place */
            return e;
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0,
                              &(struct timespec){ .tv_nsec = RENAME_NAP_MS * 1000000L },
                              NULL);
    }
    return e;
}

static enum err put(struct put *p, struct blob_put *out, struct err_info *info)
{
    struct blob_hash hash = { NULL };
    struct smb_space space;
    enum err e = look(p, out, info);

    if (e || out->was_there)
        return e;
    e = blob_hash_start(&hash, info);
    if (e == ERR_OK)
        e = resume(p, &hash, &out->resumed, info);
    if (e == ERR_OK)
        e = smb_space(p->smb, &space, info);
    if (e == ERR_OK)
        e = blob_check_space("the data share", &space, p->size - out->resumed, info);
    if (e == ERR_OK)
        e = send_rest(p, out->resumed, &hash, &out->blob.id, info);
    blob_hash_drop(&hash);
    if (e == ERR_OK)
        e = check_whole(p, info);
    return e ? e : put_in_place(p, &out->blob.id, info);
}

enum err blob_put(struct smb *s, int fd, const struct blob_watch *w, struct blob_put *out,
                  struct err_info *info)
{
    struct put p = { .smb = s, .fd = fd, .watch = w };
    struct blob_put done = { .resumed = 0 };
    int tries = 0;

    if (fstat(fd, &p.st) != 0 || !S_ISREG(p.st.st_mode))
        return err_set(info, ERR_INVALID, 0, "this is no plain file");
    p.size = (uint64_t)p.st.st_size;
    p.piece = blob_buffer(info);
    if (!p.piece)
        return ERR_MEMORY;
    enum err e = name_part(&p, info);
    if (e == ERR_OK)
        e = blob_share_prepare(s, info);
    if (e == ERR_OK) /* another one may put the part in place at any moment: look anew */
        do {
            done = (struct blob_put){ .blob.size = p.size };
            e = put(&p, &done, info);
        } while (e == ERR_NOT_FOUND && !smb_is_lost(s) && ++tries < PUT_TRIES);
    free(p.piece);
    if (e == ERR_OK)
        *out = done;
    return e;
}
