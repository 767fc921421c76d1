#include "sys/quarantine/quarantine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <sys/file.h>
#include <unistd.h>

#include "sys/quarantine/item.h"
#include "sys/quarantine/place.h"

enum { NAME_BYTES = 64 };

struct quarantine {
    int folder, allowed, lock;
    uint8_t key[ITEM_KEY_BYTES];
    void (*hook)(const char *step);
};

static void step(const struct quarantine *q, const char *name)
{
    if (q->hook)
        q->hook(name);
}

void quarantine_set_hook(struct quarantine *q, void (*hook)(const char *step))
{
    q->hook = hook;
}

/* ---- opening ---- */

/* Written whole under another name and then linked: there is never half a key. */
static enum err make_key(struct quarantine *q, struct err_info *info)
{
    uint8_t key[ITEM_KEY_BYTES];
    char name[NAME_BYTES];

    (void)snprintf(name, sizeof(name), "key.%d", (int)getpid());
    randombytes_buf(key, sizeof(key));
    int fd = openat(q->folder, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, key, sizeof(key)) == (ssize_t)sizeof(key) &&
              fsync(fd) == 0 &&
              (linkat(q->folder, name, q->folder, "key", 0) == 0 || errno == EEXIST);
    int error = errno;

    if (fd >= 0)
        (void)close(fd);
    (void)unlinkat(q->folder, name, 0);
    (void)fsync(q->folder);
    sodium_memzero(key, sizeof(key));
    return ok ? ERR_OK : err_set(info, ERR_IO, error, "make the key of the quarantine");
}

static enum err read_key(struct quarantine *q, struct err_info *info)
{
    int fd = openat(q->folder, "key", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;

    if (fd < 0 && errno == ENOENT) {
        enum err e = make_key(q, info);

        if (e != ERR_OK)
            return e;
        fd = openat(q->folder, "key", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    }
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "the key of the quarantine");
    bool ok = fstat(fd, &st) == 0 && (st.st_mode & 077) == 0 &&
              read(fd, q->key, sizeof(q->key)) == (ssize_t)sizeof(q->key);
    (void)close(fd);
    return ok ? ERR_OK
              : err_set(info, ERR_CORRUPT, 0,
                        "the key of the quarantine is damaged or not private");
}

static int open_below(int at, const char *path)
{
    if (mkdirat(at, path, 0700) != 0 && errno != EEXIST)
        return -1;
    return openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

enum err quarantine_open(const char *folder, struct quarantine **out,
                         struct err_info *info)
{
    struct quarantine *q = calloc(1, sizeof(*q));

    if (!q || sodium_init() < 0) {
        free(q);
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    }
    q->lock = q->allowed = -1;
    q->folder = open_below(AT_FDCWD, folder);
    if (q->folder >= 0) {
        q->allowed = open_below(q->folder, "allowed");
        q->lock = openat(q->folder, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    }
    enum err e = q->lock < 0 || q->allowed < 0
                     ? err_set(info, ERR_IO, errno, "%s", folder)
                     : read_key(q, info);
    if (e != ERR_OK) {
        quarantine_close(q);
        return e;
    }
    *out = q;
    return ERR_OK;
}

void quarantine_close(struct quarantine *q)
{
    if (!q)
        return;
    if (q->lock >= 0)
        (void)close(q->lock);
    if (q->allowed >= 0)
        (void)close(q->allowed);
    if (q->folder >= 0)
        (void)close(q->folder);
    sodium_memzero(q, sizeof(*q));
    free(q);
}

static void lock(const struct quarantine *q)
{
    while (flock(q->lock, LOCK_EX) != 0 && errno == EINTR)
        ;
}

static void unlock(const struct quarantine *q)
{
    (void)flock(q->lock, LOCK_UN);
}

/* ---- items in the folder ---- */

static void item_name(char out[NAME_BYTES], const struct uuid *id, const char *end)
{
    char text[UUID_TEXT];

    uuid_format(text, id);
    (void)snprintf(out, NAME_BYTES, "%s%s", text, end);
}

static enum err load(const struct quarantine *q, const char *name,
                     struct quarantine_item *out, struct err_info *info)
{
    int fd = openat(q->folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno,
                       "quarantined file %s", name);
    enum err e = item_describe(fd, q->key, out, info);
    (void)close(fd);
    return e;
}

/* Calls visit for each name that is a UUID and then `end`; stops when it says so. */
static enum err walk(const struct quarantine *q, const char *end,
                     enum err (*visit)(void *arg, const char *name), void *arg,
                     struct err_info *info)
{
    int fd = openat(q->folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    enum err e = ERR_OK;
    const struct dirent *d;
    struct uuid id;

    if (!dir) {
        int error = errno;

        if (fd >= 0)
            (void)close(fd);
        return err_set(info, ERR_IO, error, "the quarantine");
    }
    while (e == ERR_OK && (d = readdir(dir)) != NULL)
        if (strlen(d->d_name) >= UUID_TEXT - 1 &&
            uuid_parse(&id, (struct str){ d->d_name, UUID_TEXT - 1 }) &&
            strcmp(d->d_name + UUID_TEXT - 1, end) == 0)
            e = visit(arg, d->d_name);
    (void)closedir(dir);
    return e;
}

/* ---- hashing and what is allowed ---- */

enum err quarantine_hash(int fd, char out[QUARANTINE_HASH], struct err_info *info)
{
    static uint8_t buf[65536];
    crypto_hash_sha256_state state;
    uint8_t digest[crypto_hash_sha256_BYTES];
    off_t at = 0;
    ssize_t n;

    (void)crypto_hash_sha256_init(&state);
    while ((n = pread(fd, buf, sizeof(buf), at)) > 0) {
        (void)crypto_hash_sha256_update(&state, buf, (size_t)n);
        at += n;
    }
    if (n < 0)
        return err_set(info, ERR_IO, errno, "read the file");
    (void)crypto_hash_sha256_final(&state, digest);
    hex_encode(out, digest, sizeof(digest));
    return ERR_OK;
}

bool quarantine_is_allowed(const struct quarantine *q, const char *sha256)
{
    return sha256[0] != '\0' && faccessat(q->allowed, sha256, F_OK, 0) == 0;
}

static void allow(const struct quarantine *q, const char *sha256)
{
    int fd = openat(q->allowed, sha256, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    if (fd >= 0)
        (void)close(fd);
    (void)fsync(q->allowed);
}

/* ---- taking ---- */

static int64_t unix_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static bool unchanged(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static enum err describe(const char *path, int fd, const struct stat *scanned,
                         const char *threat, struct quarantine_item *out,
                         struct err_info *info)
{
    struct stat st;
    uint8_t random[10];

    if (fstat(fd, &st) != 0)
        return err_set(info, ERR_IO, errno, "the file");
    if (!S_ISREG(st.st_mode) || (scanned && !unchanged(&st, scanned)))
        return err_set(info, ERR_STATE, 0, "the file changed after it was scanned");
    *out = (struct quarantine_item){ .size = (uint64_t)st.st_size,
                                     .inode = st.st_ino,
                                     .links = st.st_nlink,
                                     .mode = st.st_mode & 07777,
                                     .uid = st.st_uid,
                                     .gid = st.st_gid,
                                     .mtime_s = st.st_mtim.tv_sec,
                                     .mtime_ns = st.st_mtim.tv_nsec,
                                     .at_us = unix_us() };
    randombytes_buf(random, sizeof(random));
    uuid_make(&out->id, (uint64_t)out->at_us / 1000u, random);
    (void)snprintf(out->threat, sizeof(out->threat), "%s", threat);
    if (!str_copy(out->path, sizeof(out->path), str_of(path)))
        return err_set(info, ERR_LIMIT, 0, "the path is too long");
    return quarantine_hash(fd, out->sha256, info);
}

static enum err store(const struct quarantine *q, int fd,
                      const struct quarantine_item *item, struct err_info *info)
{
    char name[NAME_BYTES], next[NAME_BYTES];

    item_name(name, &item->id, ".new");
    item_name(next, &item->id, ".taking");
    int to = openat(q->folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno,
                       "the quarantine");
    enum err e = item_write(to, fd, item, q->key, info);
    step(q, "written");
    if (e == ERR_OK && fsync(to) != 0)
        e = err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "the quarantine");
    (void)close(to);
    if (e == ERR_OK && renameat(q->folder, name, q->folder, next) != 0)
        e = err_set(info, ERR_IO, errno, "the quarantine");
    if (e != ERR_OK)
        (void)unlinkat(q->folder, name, 0);
    else
        (void)fsync(q->folder);
    return e;
}

/* Without it, for lack of room, the item is as good, but nobody is told after a crash. */
static void mark_untold(const struct quarantine *q, const struct uuid *id)
{
    char name[NAME_BYTES];

    item_name(name, id, ".untold");
    int fd = openat(q->folder, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        (void)close(fd);
}

void quarantine_told(const char *folder, const struct uuid *id)
{
    char path[PATH_MAX], name[NAME_BYTES];

    item_name(name, id, ".untold");
    if (snprintf(path, sizeof(path), "%s/%s", folder, name) < (int)sizeof(path))
        (void)unlink(path); /* there or not */
}

/* The encrypted copy is on disk: remove the original, then drop the mark. */
static enum err finish(const struct quarantine *q, const struct quarantine_item *item,
                       int fd, struct err_info *info)
{
    struct place place = { .folder = -1 };
    char name[NAME_BYTES], final[NAME_BYTES];
    bool gone = false;
    enum err e = place_open(item, &place, info);

    if (e == ERR_OK) {
        e = place_remove(&place, item, fd, &gone, info);
        place_close(&place);
    }
    step(q, "removed");
    if (fd < 0 && e == ERR_NOT_FOUND)
        e = ERR_OK; /* recovery: the folder went, and the file with it */
    if (e == ERR_OK && gone && fd >= 0)
        e = err_set(info, ERR_STATE, 0, "another file stands in its place");
    item_name(name, &item->id, ".taking");
    item_name(final, &item->id, "");
    if (e == ERR_OK)
        mark_untold(q, &item->id);
    if (e != ERR_OK && fd >= 0)
        (void)unlinkat(q->folder, name, 0); /* the original is untouched */
    else if (e == ERR_OK && renameat(q->folder, name, q->folder, final) != 0)
        e = err_set(info, ERR_IO, errno, "the quarantine");
    (void)fsync(q->folder);
    return e;
}

enum err quarantine_take(struct quarantine *q, const char *path, int fd,
                         const struct stat *scanned, const char *threat,
                         struct quarantine_item *out, struct err_info *info)
{
    struct quarantine_item *item = calloc(1, sizeof(*item));

    if (!item)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    lock(q);
    enum err e = describe(path, fd, scanned, threat, item, info);
    if (e == ERR_OK)
        e = store(q, fd, item, info);
    step(q, "stored");
    if (e == ERR_OK)
        e = finish(q, item, fd, info);
    unlock(q);
    if (e == ERR_OK)
        *out = *item;
    free(item);
    return e;
}

/* ---- recovering ---- */

struct recovery {
    struct quarantine *q;
    quarantine_each *each;
    void *arg;
    struct quarantine_item item;
};

static enum err drop_new(void *arg, const char *name)
{
    const struct recovery *r = arg;

    (void)unlinkat(r->q->folder, name, 0); /* its original is still where it was */
    return ERR_OK;
}

static enum err finish_taking(void *arg, const char *name)
{
    struct recovery *r = arg;

    /* What cannot be finished now (a file system that is away) is tried the next time. */
    if (load(r->q, name, &r->item, NULL) == ERR_OK &&
        finish(r->q, &r->item, -1, NULL) == ERR_OK)
        r->each(r->arg, &r->item);
    return ERR_OK;
}

/* The mark stays until somebody says that it was told; without the item it says nothing. */
static enum err tell_untold(void *arg, const char *name)
{
    struct recovery *r = arg;
    char item[UUID_TEXT];

    (void)snprintf(item, sizeof(item), "%s", name);
    enum err e = load(r->q, item, &r->item, NULL);
    if (e == ERR_OK)
        r->each(r->arg, &r->item);
    else if (e == ERR_NOT_FOUND)
        (void)unlinkat(r->q->folder, name, 0);
    return ERR_OK;
}

enum err quarantine_recover(struct quarantine *q, quarantine_each *each, void *arg,
                            struct err_info *info)
{
    struct recovery *r = calloc(1, sizeof(*r));

    if (!r)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    *r = (struct recovery){ .q = q, .each = each, .arg = arg };
    lock(q);
    enum err e = walk(q, ".new", drop_new, r, info);
    if (e == ERR_OK)
        e = walk(q, ".untold", tell_untold, r, info);
    if (e == ERR_OK)
        e = walk(q, ".taking", finish_taking, r, info);
    unlock(q);
    free(r);
    return e;
}

/* ---- giving back, deleting ---- */

/* The whole file under a name of ours in its folder, with everything it had. */
static enum err put_back(const struct quarantine *q, int from, const struct place *place,
                         const struct quarantine_item *item, struct err_info *info)
{
    struct quarantine_item *again = calloc(1, sizeof(*again));
    struct timespec times[2] = { { .tv_nsec = UTIME_NOW },
                                 { item->mtime_s, item->mtime_ns } };
    char hash[QUARANTINE_HASH];

    if (!again)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    (void)unlinkat(place->folder, place->ours, 0); /* of a restore that broke off */
    int to = openat(place->folder, place->ours,
                    O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    enum err e = to < 0 ? err_set(info, ERR_IO, errno, "restore")
                        : item_read(from, to, q->key, again, info);
    if (e == ERR_OK)
        e = quarantine_hash(to, hash, info);
    if (e == ERR_OK && strcmp(hash, item->sha256) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "the quarantined file is damaged");
    if (e == ERR_OK &&
        (fchown(to, item->uid, item->gid) != 0 || fchmod(to, item->mode) != 0 ||
         futimens(to, times) != 0 || fsync(to) != 0))
        e = err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "restore");
    step(q, "restored");
    if (e == ERR_OK && renameat2(place->folder, place->ours, place->folder, place->name,
                                 RENAME_NOREPLACE) != 0)
        e = err_set(info, errno == EEXIST ? ERR_EXISTS : ERR_IO, errno,
                    "restore to %.100s", item->path);
    if (e != ERR_OK && to >= 0)
        (void)unlinkat(place->folder, place->ours, 0);
    if (to >= 0)
        (void)close(to);
    free(again);
    return e;
}

/* A restore that was cut off between its last two steps: the file is there already. */
static bool is_back(const struct place *place, const struct quarantine_item *item)
{
    char hash[QUARANTINE_HASH] = "";
    int fd = openat(place->folder, place->name,
                    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    bool same = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
                (uint64_t)st.st_size == item->size &&
                quarantine_hash(fd, hash, NULL) == ERR_OK &&
                strcmp(hash, item->sha256) == 0;

    if (fd >= 0)
        (void)close(fd);
    return same;
}

static enum err restore(const struct quarantine *q, const char *name,
                        struct quarantine_item *item, struct err_info *info)
{
    struct place place = { .folder = -1 };
    enum err e = load(q, name, item, info);

    if (e != ERR_OK)
        return e;
    int from = openat(q->folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (from < 0)
        return err_set(info, ERR_IO, errno, "quarantined file");
    e = place_open(item, &place, info);
    if (e == ERR_OK) {
        allow(q, item->sha256); /* before it is there, or on-access takes it again */
        e = put_back(q, from, &place, item, info);
        if (e == ERR_EXISTS && is_back(&place, item))
            e = ERR_OK;
        if (e == ERR_OK)
            (void)fsync(place.folder);
        step(q, "back");
        place_close(&place);
    }
    (void)close(from);
    if (e == ERR_OK && unlinkat(q->folder, name, 0) != 0)
        e = err_set(info, ERR_IO, errno, "remove the quarantined file");
    if (e == ERR_OK)
        (void)fsync(q->folder);
    return e;
}

static enum err drop(const struct quarantine *q, const char *name,
                     struct quarantine_item *item, struct err_info *info)
{
    enum err e = load(q, name, item, info);

    if (e != ERR_OK && e != ERR_CORRUPT)
        return e;
    if (unlinkat(q->folder, name, 0) != 0)
        return err_set(info, ERR_IO, errno, "remove the quarantined file");
    (void)fsync(q->folder);
    return ERR_OK;
}

typedef enum err act(const struct quarantine *q, const char *name,
                     struct quarantine_item *item, struct err_info *info);

static enum err on_item(struct quarantine *q, const struct uuid *id, act *what,
                        struct quarantine_item *out, struct err_info *info)
{
    struct quarantine_item *item = calloc(1, sizeof(*item));
    char name[NAME_BYTES];

    if (!item)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    item->id = *id;
    item_name(name, id, "");
    lock(q);
    enum err e = what(q, name, item, info);
    unlock(q);
    if (e == ERR_OK)
        *out = *item;
    free(item);
    return e;
}

enum err quarantine_restore(struct quarantine *q, const struct uuid *id,
                            struct quarantine_item *out, struct err_info *info)
{
    return on_item(q, id, restore, out, info);
}

enum err quarantine_delete(struct quarantine *q, const struct uuid *id,
                           struct quarantine_item *out, struct err_info *info)
{
    return on_item(q, id, drop, out, info);
}

struct listing {
    const struct quarantine *q;
    quarantine_each *each;
    void *arg;
    struct quarantine_item item;
};

static enum err list_one(void *arg, const char *name)
{
    struct listing *l = arg;

    if (load(l->q, name, &l->item, NULL) == ERR_OK)
        l->each(l->arg, &l->item);
    return ERR_OK;
}

enum err quarantine_list(struct quarantine *q, quarantine_each *each, void *arg,
                         struct err_info *info)
{
    struct listing *l = calloc(1, sizeof(*l));

    if (!l)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    *l = (struct listing){ .q = q, .each = each, .arg = arg };
    enum err e = walk(q, "", list_one, l, info);
    free(l);
    return e;
}

/* ---- bounds ---- */

struct survey {
    uint64_t bytes;
    int64_t oldest_us;
    struct uuid oldest;
    bool any;
};

/* Sizes are those of the files before encryption: what an administrator sees. */
static void survey_one(void *arg, const struct quarantine_item *item)
{
    struct survey *s = arg;

    s->bytes += item->size;
    if (!s->any || item->at_us < s->oldest_us) {
        s->any = true;
        s->oldest_us = item->at_us;
        s->oldest = item->id;
    }
}

enum err quarantine_trim(struct quarantine *q, const struct quarantine_bounds *b,
                         quarantine_each *each, void *arg, struct err_info *info)
{
    struct quarantine_item *item;
    enum err e = ERR_OK;

    if (b->need > b->max_bytes)
        return err_set(info, ERR_LIMIT, 0, "bigger than the quarantine may be");
    item = calloc(1, sizeof(*item));
    if (!item)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    for (;;) {
        struct survey s = { 0 };

        e = quarantine_list(q, survey_one, &s, info);
        if (e != ERR_OK || !s.any ||
            (s.oldest_us >= b->before_us && s.bytes + b->need <= b->max_bytes))
            break;
        e = quarantine_delete(q, &s.oldest, item, info);
        if (e == ERR_NOT_FOUND)
            continue; /* another process was faster */
        if (e != ERR_OK)
            break;
        each(arg, item);
    }
    free(item);
    return e;
}
