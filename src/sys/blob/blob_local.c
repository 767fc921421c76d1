#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "sys/blob/blob_local.h"

enum err blob_local_file(const char *store, const char *folder, const struct blob_id *id,
                         char out[BLOB_PATH], struct err_info *info)
{
    int n = snprintf(out, BLOB_PATH, "%s/%s/%s", store, folder, id ? id->hex : "");

    return n < BLOB_PATH ? ERR_OK
                         : err_set(info, ERR_CONFIG, 0, "[web] store is too long");
}

bool blob_local_path(const char *store, const struct blob_id *id, char out[BLOB_PATH])
{
    return blob_local_file(store, "blob", id, out, NULL) == ERR_OK;
}

enum err blob_local_prepare(const char *store, struct err_info *info)
{
    static const struct {
        const char *name;
        mode_t mode;
    } folders[] = { { "blob", 0755 }, { "part", 0700 } };
    char path[BLOB_PATH];

    if (mkdir(store, 0755) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", store);
    for (size_t i = 0; i < LEN(folders); i++) {
        enum err e = blob_local_file(store, folders[i].name, NULL, path, info);

        if (e)
            return e;
        if (mkdir(path, folders[i].mode) != 0 && errno != EEXIST)
            return err_set(info, ERR_IO, errno, "make %s", path);
        if (chmod(path, folders[i].mode) != 0)
            return err_set(info, ERR_IO, errno, "set the rights of %s", path);
    }
    return ERR_OK;
}

/* Opens it, if it is a plain file of that size. */
static enum err open_blob(const char *store, const struct blob *b, int *out,
                          struct err_info *info)
{
    char path[BLOB_PATH];
    struct stat st;
    enum err e = blob_local_file(store, "blob", &b->id, path, info);

    if (e)
        return e;
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_set(info,
                       errno == ENOENT  ? ERR_NOT_FOUND
                       : errno == ELOOP ? ERR_CORRUPT
                                        : ERR_IO,
                       errno, "open %s", path);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != b->size) {
        (void)close(fd); /* read only */
        return err_set(info, ERR_CORRUPT, 0, "%s does not have %llu bytes", path,
                       (unsigned long long)b->size);
    }
    if (b->mtime != 0 && st.st_mtim.tv_sec != b->mtime &&
        futimens(fd, (struct timespec[2]){ { .tv_nsec = UTIME_OMIT },
                                           { .tv_sec = b->mtime } }) != 0) {
        e = err_set(info, ERR_IO, errno, "set the time of %s", path);
        (void)close(fd);
        return e;
    }
    *out = fd;
    return ERR_OK;
}

enum err blob_local_check(const char *store, const struct blob *b, struct err_info *info)
{
    int fd = -1;
    enum err e = open_blob(store, b, &fd, info);

    if (e == ERR_OK)
        (void)close(fd); /* read only */
    return e;
}

enum err blob_local_open(const char *store, const struct blob *b,
                         const struct blob_watch *w, int *out, struct err_info *info)
{
    struct blob_hash h = { NULL };
    struct blob_move m;
    struct blob_id found;
    size_t n = 0;
    int fd = -1;
    enum err e = open_blob(store, b, &fd, info);
    char *piece = e ? NULL : blob_buffer(info);

    if (e == ERR_OK)
        e = piece ? blob_hash_start(&h, info) : ERR_MEMORY;
    blob_move_start(&m, w, 0, b->size);
    while (e == ERR_OK && m.done < b->size) {
        e = blob_read_at(fd, piece, blob_move_piece(&m), m.done, &n, info);
        if (e == ERR_OK && (n == 0 || n > b->size - m.done))
            e = err_set(info, ERR_CORRUPT, 0, "blob %s changes while it is read",
                        b->id.hex);
        if (e == ERR_OK)
            blob_hash_add(&h, piece, n);
        if (e == ERR_OK)
            e = blob_move_add(&m, n, info);
    }
    free(piece);
    if (e == ERR_OK) {
        blob_hash_end(&h, &found);
        if (strcmp(found.hex, b->id.hex) != 0)
            e = err_set(info, ERR_CORRUPT, 0, "blob %s on this node has other bytes",
                        b->id.hex);
    }
    blob_hash_drop(&h);
    if (e == ERR_OK)
        *out = fd;
    else if (fd >= 0)
        (void)close(fd); /* read only */
    return e;
}

enum err blob_local_verify(const char *store, const struct blob *b,
                           const struct blob_watch *w, struct err_info *info)
{
    int fd = -1;
    enum err e = blob_local_open(store, b, w, &fd, info);

    if (e == ERR_OK)
        (void)close(fd); /* read only */
    return e;
}

enum err blob_local_remove(const char *store, const struct blob_id *id,
                           struct err_info *info)
{
    char path[BLOB_PATH];
    enum err e = blob_local_file(store, "blob", id, path, info);

    if (e == ERR_OK && unlink(path) != 0 && errno != ENOENT)
        e = err_set(info, ERR_IO, errno, "remove %s", path);
    return e;
}

/* Calls each for all files of a folder whose names are digests. */
static enum err walk(const char *store, const char *folder, blob_each *each, void *arg,
                     struct err_info *info)
{
    char path[BLOB_PATH];
    struct timespec now;
    const struct dirent *d;
    struct stat st;
    enum err e = blob_local_file(store, folder, NULL, path, info);

    if (e)
        return e;
    DIR *dir = opendir(path);
    if (!dir)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "list %s",
                       path);
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
    while ((d = readdir(dir)) != NULL) {
        struct blob b;

        if (!blob_id_parse(&b.id, str_of(d->d_name)) ||
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        b.size = (uint64_t)st.st_size;
        b.mtime = st.st_mtim.tv_sec;
        int64_t age = now.tv_sec - st.st_ctim.tv_sec;
        if (!each(arg, &b, age > 0 ? (uint64_t)age : 0))
            break;
    }
    (void)closedir(dir); /* it was only read */
    return ERR_OK;
}

enum err blob_local_list(const char *store, blob_each *each, void *arg,
                         struct err_info *info)
{
    return walk(store, "blob", each, arg, info);
}

struct old_parts {
    const char *store;
    uint64_t older_s;
};

static bool drop_part(void *arg, const struct blob *b, uint64_t age_s)
{
    const struct old_parts *o = arg;
    char path[BLOB_PATH];

    if (age_s >= o->older_s &&
        blob_local_file(o->store, "part", &b->id, path, NULL) == ERR_OK)
        (void)unlink(path); /* if not now, the next time */
    return true;
}

enum err blob_local_clean(const char *store, uint64_t older_s, struct err_info *info)
{
    struct old_parts o = { store, older_s };

    return walk(store, "part", drop_part, &o, info);
}

enum err blob_local_space(const char *store, struct smb_space *out, struct err_info *info)
{
    struct statvfs v;

    if (statvfs(store, &v) != 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno,
                       "free space of %s", store);
    *out = (struct smb_space){ .total_bytes = (uint64_t)v.f_blocks * v.f_frsize,
                               .free_bytes = (uint64_t)v.f_bavail * v.f_frsize };
    return ERR_OK;
}
