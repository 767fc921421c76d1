#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/blob/blob_local.h"

enum { UNWRITTEN_MAX = 16 * 1024 * 1024 };

struct fetch {
    struct smb *smb;
    const char *store;
    const struct blob *blob;
    const struct blob_watch *watch;
    char part[BLOB_PATH], path[BLOB_PATH];
    char *piece;
    int fd;
    struct blob_hash hash;
};

/* What an earlier call has fetched counts into the digest. */
static enum err take_part(struct fetch *f, uint64_t *out_at, struct err_info *info)
{
    struct stat st;
    uint64_t at = 0;
    size_t n = 0;
    enum err e = ERR_OK;

    if (fstat(f->fd, &st) != 0)
        return err_set(info, ERR_IO, errno, "look at %s", f->part);
    if ((uint64_t)st.st_size > f->blob->size) {
        if (ftruncate(f->fd, 0) != 0)
            return err_set(info, ERR_IO, errno, "empty %s", f->part);
        st.st_size = 0;
    }
    while (e == ERR_OK && at < (uint64_t)st.st_size) {
        e = blob_read_at(f->fd, f->piece, BLOB_PIECE, at, &n, info);
        if (e == ERR_OK && n == 0)
            e = err_set(info, ERR_IO, 0, "%s became shorter", f->part);
        if (e == ERR_OK)
            blob_hash_add(&f->hash, f->piece, n);
        at += n;
    }
    *out_at = at;
    return e;
}

static enum err write_at(struct fetch *f, size_t n, uint64_t at, struct err_info *info)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = pwrite(f->fd, f->piece + done, n - done, (off_t)(at + done));

        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return err_set(info, errno == ENOSPC || errno == EDQUOT ? ERR_FULL : ERR_IO,
                           errno, "write %s", f->part);
        done += (size_t)k;
    }
    return ERR_OK;
}

/*
 * To the disk as it comes, at most UNWRITTEN_MAX behind: a heap of unwritten pages would make
 * every other writer of this computer wait, the node daemon among them.  Where the file
 * system does not know the call, fsync() at the end does it all.
 */
static void write_out(const struct fetch *f, uint64_t at, size_t n)
{
    const uint64_t end = at + n;

    (void)sync_file_range(f->fd, (off_t)at, (off_t)n, SYNC_FILE_RANGE_WRITE);
    if (end > UNWRITTEN_MAX)
        (void)sync_file_range(f->fd, 0, (off_t)(end - UNWRITTEN_MAX),
                              SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                  SYNC_FILE_RANGE_WAIT_AFTER);
}

static enum err receive(struct fetch *f, struct smb_file *from, uint64_t at,
                        struct err_info *info)
{
    struct blob_move m;
    size_t n = 1;
    enum err e = ERR_OK;

    blob_move_start(&m, f->watch, at, f->blob->size);
    while (e == ERR_OK && n > 0) {
        e = smb_file_read(from, f->piece, blob_move_piece(&m), &n, info);
        if (e == ERR_OK && n > f->blob->size - m.done)
            e = err_set(info, ERR_CORRUPT, 0, "%s is longer than it should be",
                        from->name);
        if (e == ERR_OK)
            e = write_at(f, n, m.done, info);
        if (e == ERR_OK && n > 0)
            write_out(f, m.done, n);
        if (e == ERR_OK)
            blob_hash_add(&f->hash, f->piece, n);
        if (e == ERR_OK)
            e = blob_move_add(&m, n, info);
    }
    return e;
}

/* Whole, right, on the disk, with its name: in this order. */
static enum err finish(struct fetch *f, struct err_info *info)
{
    const struct timespec times[2] = { { .tv_nsec = UTIME_NOW },
                                       { .tv_sec = f->blob->mtime } };
    struct blob_id found;
    struct stat st;
    char folder[BLOB_PATH];
    enum err e = blob_local_file(f->store, "blob", NULL, folder, info);

    blob_hash_end(&f->hash, &found);
    if (e)
        return e;
    if (strcmp(found.hex, f->blob->id.hex) != 0)
        return err_set(info, ERR_CORRUPT, 0, "blob %s was fetched with other bytes",
                       f->blob->id.hex);
    if (fstat(f->fd, &st) != 0)
        return err_set(info, ERR_IO, errno, "look at %s", f->part);
    if ((uint64_t)st.st_size !=
        f->blob->size) /* or the next look would remove it again */
        return err_set(info, ERR_CORRUPT, 0, "blob %.16s... has %llu bytes, not %llu",
                       f->blob->id.hex, (unsigned long long)st.st_size,
                       (unsigned long long)f->blob->size);
    if (fchmod(f->fd, 0644) != 0 ||
        (f->blob->mtime != 0 && futimens(f->fd, times) != 0) || fsync(f->fd) != 0)
        return err_set(info, ERR_IO, errno, "write %s", f->part);
    if (rename(f->part, f->path) != 0)
        return err_set(info, ERR_IO, errno, "rename %s", f->part);
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0 || fsync(dir) != 0)
        e = err_set(info, ERR_IO, errno, "write %s", folder);
    if (dir >= 0)
        (void)close(dir); /* read only */
    return e;
}

/* One try; *resumed: something was there already. */
static enum err try_once(struct fetch *f, bool *resumed, struct err_info *info)
{
    struct smb_space space;
    struct smb_file from;
    uint64_t at = 0;
    enum err e = blob_hash_start(&f->hash, info);

    if (e == ERR_OK)
        e = take_part(f, &at, info);
    *resumed = at > 0;
    if (e == ERR_OK)
        e = blob_local_space(f->store, &space, info);
    if (e == ERR_OK)
        e = blob_check_space(f->store, &space, f->blob->size - at, info);
    if (e == ERR_OK)
        e = smb_file_open_at(&from, f->smb, blob_share_name(&f->blob->id).s, at, info);
    if (e == ERR_OK) {
        e = receive(f, &from, at, info);
        enum err closed = smb_file_close(&from, e ? NULL : info);
        e = e ? e : closed;
    }
    if (e == ERR_OK)
        e = finish(f, info);
    blob_hash_drop(&f->hash);
    return e;
}

static enum err open_part(struct fetch *f, struct err_info *info)
{
    enum err e = blob_local_file(f->store, "part", &f->blob->id, f->part, info);

    if (e == ERR_OK)
        e = blob_local_file(f->store, "blob", &f->blob->id, f->path, info);
    if (e)
        return e;
    f->fd = open(f->part, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    return f->fd >= 0 ? ERR_OK : err_set(info, ERR_IO, errno, "create %s", f->part);
}

enum err blob_fetch(struct smb *s, const char *store, const struct blob *b,
                    const struct blob_watch *w, struct err_info *info)
{
    struct fetch f = { .smb = s, .store = store, .blob = b, .watch = w, .fd = -1 };
    bool again = true, resumed = false;
    enum err e = blob_local_prepare(store, info);

    if (e == ERR_OK)
        e = open_part(&f, info);
    f.piece = e ? NULL : blob_buffer(info);
    if (e == ERR_OK && !f.piece)
        e = ERR_MEMORY;
    while (e == ERR_OK && again) {
        e = try_once(&f, &resumed, info);
        again = false;
        if (e == ERR_CORRUPT && ftruncate(f.fd, 0) == 0 && resumed) {
            /* The old part may have been what was wrong. */
            again = true;
            e = ERR_OK;
        }
    }
    if (e == ERR_CORRUPT)
        (void)unlink(f.part); /* it is empty */
    if (f.fd >= 0)
        (void)close(f.fd); /* it was synced */
    free(f.piece);
    return e;
}

enum err blob_heal_share(struct smb *s, const char *store, const struct blob *b,
                         const struct blob_watch *w, struct err_info *info)
{
    struct blob_put put;
    int fd = -1;
    enum err e = blob_local_open(store, b, NULL, &fd, info);

    if (e)
        return e;
    e = blob_put(s, fd, w, &put, info);
    (void)close(fd); /* read only */
    if (e == ERR_OK && strcmp(put.blob.id.hex, b->id.hex) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "blob %s on this node changed meanwhile",
                    b->id.hex);
    return e;
}
