/*
 * list: what is published, in memory and on the disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/mirror/mirror.h"

enum { LIST_BYTES_MAX = 64 + PUBLICATION_MAX * PUBLICATION_LINE_MAX };

static int by_digest(const void *a, const void *b)
{
    const struct blob *x = a, *y = b;

    return strcmp(x->id.hex, y->id.hex);
}

/* The different blobs; one that the list gives two sizes or times is refused. */
static enum err gather(struct list *l, struct err_info *info)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < l->head.count; i++) {
        const struct publication_entry *e = &l->entries[i];

        l->blobs[i] = (struct blob){ .size = e->size, .mtime = (int64_t)e->mtime };
        if (!blob_id_parse(&l->blobs[i].id, e->blob))
            return err_set(info, ERR_CORRUPT, 0, "a digest of the list is wrong");
    }
    qsort(l->blobs, l->head.count, sizeof(*l->blobs), by_digest);
    for (uint32_t i = 0; i < l->head.count; i++) {
        const struct blob *b = &l->blobs[i], *last = n > 0 ? &l->blobs[n - 1] : NULL;

        if (last && by_digest(last, b) == 0) {
            if (last->size != b->size || last->mtime != b->mtime)
                return err_set(info, ERR_CORRUPT, 0, "the list has two sizes of %s",
                               b->id.hex);
            continue;
        }
        l->bytes += b->size;
        l->blobs[n++] = *b;
    }
    l->blob_count = n;
    return ERR_OK;
}

static void name_tree(struct list *l)
{
    uint8_t hash[crypto_hash_sha256_BYTES];
    char hex[2 * 6 + 1];

    (void)crypto_hash_sha256(hash, (const unsigned char *)l->text, l->text_n);
    hex_encode(hex, hash, 6);
    /* A DBMS that was restored may give a serial twice: the digest tells the lists apart. */
    (void)snprintf(l->name, sizeof(l->name), "%llu-%s",
                   (unsigned long long)l->head.serial, hex);
}

enum err list_new(struct list **out, char *text, size_t n, struct err_info *info)
{
    struct list *l = calloc(1, sizeof(*l));
    enum err e = ERR_OK;

    if (!l || !text) {
        free(l);
        free(text);
        return err_set(info, ERR_MEMORY, 0, "no memory for the list");
    }
    l->text = text;
    l->text_n = n;
    l->entries = calloc(PUBLICATION_MAX, sizeof(*l->entries));
    if (!l->entries)
        e = err_set(info, ERR_MEMORY, 0, "no memory for the list");
    if (e == ERR_OK)
        e = publication_parse((struct str){ text, n }, &l->head, l->entries,
                              PUBLICATION_MAX, info);
    if (e == ERR_OK && (!(l->blobs = calloc(l->head.count + 1u, sizeof(*l->blobs))) ||
                        !(l->wants = calloc(l->head.count + 1u, sizeof(*l->wants)))))
        e = err_set(info, ERR_MEMORY, 0, "no memory for the list");
    if (e == ERR_OK)
        e = gather(l, info);
    if (e != ERR_OK) {
        list_free(l);
        return e;
    }
    name_tree(l);
    *out = l;
    return ERR_OK;
}

void list_free(struct list *l)
{
    if (!l)
        return;
    free(l->text);
    free(l->entries);
    free(l->blobs);
    free(l->wants);
    free(l);
}

struct want *list_want(const struct list *l, const struct blob_id *id)
{
    const struct blob key = { .id = *id };
    const struct blob *b = bsearch(&key, l->blobs, l->blob_count, sizeof(key), by_digest);

    return b ? &l->wants[b - l->blobs] : NULL;
}

bool list_has(const struct list *l, const struct blob_id *id)
{
    return list_want(l, id) != NULL;
}

static bool path_of(char out[MIRROR_PATH], const char *store, const char *name)
{
    return snprintf(out, MIRROR_PATH, "%s/%s", store, name) < MIRROR_PATH;
}

enum err list_load(const char *store, const char *name, struct list **out,
                   struct err_info *info)
{
    char path[MIRROR_PATH], *text = NULL;
    struct stat st;

    if (!path_of(path, store, name))
        return err_set(info, ERR_LIMIT, 0, "%.100s: the path is too long", store);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "%s", path);
    if (fstat(fd, &st) < 0 || st.st_size > LIST_BYTES_MAX ||
        !(text = malloc((size_t)st.st_size + 1)) ||
        read(fd, text, (size_t)st.st_size) != st.st_size) {
        (void)close(fd);
        free(text);
        return err_set(info, ERR_CORRUPT, 0, "%s cannot be read", path);
    }
    (void)close(fd);
    return list_new(out, text, (size_t)st.st_size, info);
}

static bool write_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        const ssize_t k = write(fd, p, n);

        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

enum err list_keep(const char *store, const char *name, const struct list *l,
                   struct err_info *info)
{
    char path[MIRROR_PATH], fresh[MIRROR_PATH];

    if (!path_of(path, store, name) || !path_of(fresh, store, "list.new"))
        return err_set(info, ERR_LIMIT, 0, "%.100s: the path is too long", store);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);

    if (fd < 0)
        return err_set(info, ERR_IO, errno, "%s", fresh);
    bool ok = write_all(fd, l->text, l->text_n) && fsync(fd) == 0;
    int sys = errno;

    ok = close(fd) == 0 && ok;
    if (!ok || rename(fresh, path) < 0)
        return err_set(info, sys == ENOSPC ? ERR_FULL : ERR_IO, ok ? errno : sys, "%s",
                       path);
    return ERR_OK;
}
