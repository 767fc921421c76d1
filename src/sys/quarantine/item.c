#include "sys/quarantine/item.h"

#include <errno.h>
#include <sodium.h>
#include <unistd.h>

#define STREAM_(name) crypto_secretstream_xchacha20poly1305_##name

enum {
    CHUNK = 65536,
    CIPHER_MAX = CHUNK + (int)STREAM_(ABYTES),
    NUMBERS = 7 * 8 + 3 * 4,
    TEXTS = 3,
};
static_assert(ITEM_KEY_BYTES == STREAM_(KEYBYTES), "the key fits the cipher");
static_assert(CHUNK > QUARANTINE_PATH_MAX + QUARANTINE_THREAT_MAX + QUARANTINE_HASH + 256,
              "a description fits one chunk");

static const uint8_t magic[8] = "RDTQ\1\0\0";

struct stream {
    int fd;
    STREAM_(state) state;
    uint8_t plain[CHUNK], cipher[CIPHER_MAX];
};

static enum err put(int fd, const void *bytes, size_t n, struct err_info *info)
{
    const uint8_t *p = bytes;

    while (n > 0) {
        ssize_t w = write(fd, p, n);

        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return err_set(info, errno == ENOSPC || errno == EDQUOT ? ERR_FULL : ERR_IO,
                           errno, "write");
        p += w;
        n -= (size_t)w;
    }
    return ERR_OK;
}

/* Exactly n bytes. */
static enum err get(int fd, void *bytes, size_t n, struct err_info *info)
{
    uint8_t *p = bytes;

    while (n > 0) {
        ssize_t r = read(fd, p, n);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return err_set(info, ERR_IO, errno, "read");
        if (r == 0)
            return err_set(info, ERR_CORRUPT, 0, "the quarantined file is cut short");
        p += r;
        n -= (size_t)r;
    }
    return ERR_OK;
}

/* ---- the description as bytes ---- */

static void put_number(uint8_t **to, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        *(*to)++ = (uint8_t)(v >> (8 * i));
}

static uint64_t get_number(const uint8_t **from, size_t n)
{
    uint64_t v = 0;

    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)(*(*from)++) << (8 * i);
    return v;
}

static size_t describe(const struct quarantine_item *i, uint8_t *out)
{
    const char *texts[TEXTS] = { i->path, i->threat, i->sha256 };
    uint8_t *p = out;

    memcpy(p, i->id.bytes, UUID_BYTES);
    p += UUID_BYTES;
    put_number(&p, i->size, 8);
    put_number(&p, i->inode, 8);
    put_number(&p, i->links, 8);
    put_number(&p, (uint64_t)i->mtime_s, 8);
    put_number(&p, (uint64_t)i->mtime_ns, 8);
    put_number(&p, (uint64_t)i->at_us, 8);
    put_number(&p, 0, 8); /* reserved */
    put_number(&p, i->mode, 4);
    put_number(&p, i->uid, 4);
    put_number(&p, i->gid, 4);
    for (size_t t = 0; t < TEXTS; t++) {
        size_t n = strlen(texts[t]);

        put_number(&p, n, 2);
        memcpy(p, texts[t], n);
        p += n;
    }
    return (size_t)(p - out);
}

static bool understand(const uint8_t *p, size_t n, struct quarantine_item *out)
{
    struct quarantine_item i = { 0 };
    char *texts[TEXTS] = { i.path, i.threat, i.sha256 };
    size_t sizes[TEXTS] = { sizeof(i.path), sizeof(i.threat), sizeof(i.sha256) };
    const uint8_t *end = p + n;

    if (n < UUID_BYTES + NUMBERS)
        return false;
    memcpy(i.id.bytes, p, UUID_BYTES);
    p += UUID_BYTES;
    i.size = get_number(&p, 8);
    i.inode = get_number(&p, 8);
    i.links = get_number(&p, 8);
    i.mtime_s = (int64_t)get_number(&p, 8);
    i.mtime_ns = (int64_t)get_number(&p, 8);
    i.at_us = (int64_t)get_number(&p, 8);
    (void)get_number(&p, 8);
    i.mode = (uint32_t)get_number(&p, 4);
    i.uid = (uint32_t)get_number(&p, 4);
    i.gid = (uint32_t)get_number(&p, 4);
    for (size_t t = 0; t < TEXTS; t++) {
        if (end - p < 2)
            return false;
        size_t len = (size_t)get_number(&p, 2);
        if ((size_t)(end - p) < len ||
            !str_copy(texts[t], sizes[t], (struct str){ (const char *)p, len }))
            return false;
        p += len;
    }
    *out = i;
    return p == end && i.path[0] == '/';
}

/* ---- writing ---- */

static enum err push(struct stream *s, size_t n, uint8_t tag, struct err_info *info)
{
    unsigned long long len = 0;
    uint8_t head[4], *p = head;

    (void)STREAM_(push)(&s->state, s->cipher, &len, s->plain, n, NULL, 0, tag);
    put_number(&p, len, 4);
    enum err e = put(s->fd, head, sizeof(head), info);
    return e == ERR_OK ? put(s->fd, s->cipher, (size_t)len, info) : e;
}

static enum err push_file(struct stream *s, int from, const struct quarantine_item *item,
                          struct err_info *info)
{
    crypto_hash_sha256_state hash;
    uint8_t digest[crypto_hash_sha256_BYTES];
    char hex[QUARANTINE_HASH];
    uint64_t done = 0;
    enum err e = ERR_OK;

    (void)crypto_hash_sha256_init(&hash);
    do {
        uint64_t left = item->size - done;
        size_t want = left < CHUNK ? (size_t)left : CHUNK;
        ssize_t n = want == 0 ? 0 : pread(from, s->plain, want, (off_t)done);

        if (n < 0)
            return err_set(info, ERR_IO, errno, "read the file");
        if (n == 0 && want > 0)
            return err_set(info, ERR_STATE, 0, "the file shrank while it was read");
        (void)crypto_hash_sha256_update(&hash, s->plain, (size_t)n);
        done += (uint64_t)n;
        e = push(s, (size_t)n, done == item->size ? STREAM_(TAG_FINAL) : 0, info);
    } while (e == ERR_OK && done < item->size);
    (void)crypto_hash_sha256_final(&hash, digest);
    hex_encode(hex, digest, sizeof(digest));
    if (e == ERR_OK && strcmp(hex, item->sha256) != 0)
        return err_set(info, ERR_STATE, 0, "the file changed while it was read");
    return e;
}

enum err item_write(int to, int from, const struct quarantine_item *item,
                    const uint8_t key[ITEM_KEY_BYTES], struct err_info *info)
{
    struct stream *s = calloc(1, sizeof(*s));
    uint8_t header[STREAM_(HEADERBYTES)];

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    s->fd = to;
    (void)STREAM_(init_push)(&s->state, header, key);
    enum err e = put(to, magic, sizeof(magic), info);
    if (e == ERR_OK)
        e = put(to, header, sizeof(header), info);
    if (e == ERR_OK)
        e = push(s, describe(item, s->plain), 0, info);
    if (e == ERR_OK)
        e = push_file(s, from, item, info);
    sodium_memzero(s, sizeof(*s));
    free(s);
    return e;
}

/* ---- reading ---- */

static enum err pull(struct stream *s, size_t *n, uint8_t *tag, struct err_info *info)
{
    unsigned long long len = 0;
    uint8_t head[4];
    const uint8_t *p = head;
    enum err e = get(s->fd, head, sizeof(head), info);

    if (e != ERR_OK)
        return e;
    uint64_t size = get_number(&p, 4);
    if (size < STREAM_(ABYTES) || size > CIPHER_MAX)
        return err_set(info, ERR_CORRUPT, 0, "the quarantined file is damaged");
    e = get(s->fd, s->cipher, (size_t)size, info);
    if (e != ERR_OK)
        return e;
    if (STREAM_(pull)(&s->state, s->plain, &len, tag, s->cipher, size, NULL, 0) != 0)
        return err_set(info, ERR_CORRUPT, 0, "the quarantined file does not decrypt");
    *n = (size_t)len;
    return ERR_OK;
}

static enum err begin(struct stream *s, const uint8_t *key, struct quarantine_item *out,
                      struct err_info *info)
{
    uint8_t head[sizeof(magic)], header[STREAM_(HEADERBYTES)], tag;
    size_t n;
    enum err e = get(s->fd, head, sizeof(head), info);

    if (e == ERR_OK && memcmp(head, magic, sizeof(magic)) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "not a quarantined file");
    if (e == ERR_OK)
        e = get(s->fd, header, sizeof(header), info);
    if (e == ERR_OK && STREAM_(init_pull)(&s->state, header, key) != 0)
        e = err_set(info, ERR_CORRUPT, 0, "the quarantined file is damaged");
    if (e == ERR_OK)
        e = pull(s, &n, &tag, info);
    if (e == ERR_OK && !understand(s->plain, n, out))
        e = err_set(info, ERR_CORRUPT, 0, "the description cannot be read");
    return e;
}

enum err item_describe(int from, const uint8_t key[ITEM_KEY_BYTES],
                       struct quarantine_item *out, struct err_info *info)
{
    struct stream *s = calloc(1, sizeof(*s));

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    s->fd = from;
    enum err e = begin(s, key, out, info);
    free(s);
    return e;
}

enum err item_read(int from, int to, const uint8_t key[ITEM_KEY_BYTES],
                   struct quarantine_item *out, struct err_info *info)
{
    struct stream *s = calloc(1, sizeof(*s));
    uint8_t tag = 0;
    uint64_t done = 0;
    size_t n;

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "quarantine");
    s->fd = from;
    enum err e = begin(s, key, out, info);
    while (e == ERR_OK && tag != STREAM_(TAG_FINAL)) {
        e = pull(s, &n, &tag, info);
        if (e == ERR_OK)
            e = put(to, s->plain, n, info);
        done += e == ERR_OK ? n : 0;
    }
    if (e == ERR_OK && done != out->size)
        e = err_set(info, ERR_CORRUPT, 0, "the quarantined file has a wrong size");
    sodium_memzero(s, sizeof(*s));
    free(s);
    return e;
}
