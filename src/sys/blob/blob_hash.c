#include <errno.h>
#include <gnutls/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sys/blob/blob_private.h"

bool blob_id_parse(struct blob_id *out, struct str text)
{
    if (text.n != BLOB_HEX - 1)
        return false;
    for (size_t i = 0; i < text.n; i++)
        if (!((text.p[i] >= '0' && text.p[i] <= '9') ||
              (text.p[i] >= 'a' && text.p[i] <= 'f')))
            return false;
    return str_copy(out->hex, sizeof(out->hex), text);
}

void blob_id_of(struct blob_id *out, const uint8_t hash[BLOB_HASH_BYTES])
{
    hex_encode(out->hex, hash, BLOB_HASH_BYTES);
}

void blob_id_hash(const struct blob_id *id, uint8_t out[BLOB_HASH_BYTES])
{
    CHECK(hex_decode(out, BLOB_HASH_BYTES, str_of(id->hex)));
}

enum err blob_hash_start(struct blob_hash *h, struct err_info *info)
{
    gnutls_hash_hd_t state;

    if (gnutls_hash_init(&state, GNUTLS_DIG_SHA256) < 0)
        return err_set(info, ERR_MEMORY, 0, "start a digest");
    h->state = state;
    return ERR_OK;
}

void blob_hash_add(struct blob_hash *h, const void *bytes, size_t n)
{
    CHECK(gnutls_hash(h->state, bytes, n) == 0);
}

void blob_hash_end(struct blob_hash *h, struct blob_id *out)
{
    uint8_t digest[BLOB_HASH_BYTES];

    gnutls_hash_deinit(h->state, digest);
    h->state = NULL;
    blob_id_of(out, digest);
}

void blob_hash_drop(struct blob_hash *h)
{
    if (h->state)
        gnutls_hash_deinit(h->state, NULL);
    h->state = NULL;
}

static uint64_t now_ns(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t pace(const struct blob_move *m)
{
    return m->watch ? m->watch->bytes_per_s : 0;
}

void blob_move_start(struct blob_move *m, const struct blob_watch *w, uint64_t done,
                     uint64_t total)
{
    *m = (struct blob_move){
        .watch = w, .done = done, .total = total, .began_ns = now_ns(), .began_at = done
    };
}

size_t blob_move_piece(const struct blob_move *m)
{
    uint64_t quarter = pace(m) / 4;

    if (quarter == 0 || quarter > BLOB_PIECE)
        return BLOB_PIECE;
    return quarter < BLOB_PIECE_MIN ? BLOB_PIECE_MIN : (size_t)quarter;
}

/* How long until so many bytes may have moved. */
static uint64_t due_in_ns(const struct blob_move *m)
{
    double need = (double)(m->done - m->began_at) / (double)pace(m) * 1e9;
    uint64_t spent = now_ns() - m->began_ns;

    return need > (double)spent ? (uint64_t)need - spent : 0;
}

bool blob_move_told(const struct blob_move *m)
{
    const struct blob_watch *w = m->watch;

    return !w || !w->progress || w->progress(w->arg, m->done, m->total);
}

enum err blob_move_add(struct blob_move *m, size_t n, struct err_info *info)
{
    static const uint64_t step_ns = 200 * 1000000;

    m->done += n;
    bool go_on = blob_move_told(m);
    while (go_on && pace(m) > 0) {
        uint64_t left = due_in_ns(m);
        uint64_t nap = left < step_ns ? left : step_ns;

        if (left == 0)
            break;
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, /* a signal only shortens it */
                              &(struct timespec){ .tv_nsec = (long)nap }, NULL);
        go_on = blob_move_told(m);
    }
    return go_on ? ERR_OK : err_set(info, ERR_STATE, 0, "it was stopped");
}

void *blob_buffer(struct err_info *info)
{
    void *p = malloc(BLOB_PIECE);

    if (!p)
        (void)err_set(info, ERR_MEMORY, 0, "a piece of %d bytes", BLOB_PIECE);
    return p;
}

enum err blob_read_at(int fd, void *buf, size_t size, uint64_t at, size_t *out_n,
                      struct err_info *info)
{
    size_t n = 0;

    while (n < size) {
        ssize_t got = pread(fd, (char *)buf + n, size - n, (off_t)(at + n));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set(info, ERR_IO, errno, "read a local file");
        if (got == 0)
            break;
        n += (size_t)got;
    }
    *out_n = n;
    return ERR_OK;
}

uint64_t blob_reserve(const struct smb_space *space)
{
    uint64_t part = space->total_bytes / 16;

    return part < BLOB_RESERVE ? part : BLOB_RESERVE;
}

enum err blob_check_space(const char *where, const struct smb_space *space, uint64_t need,
                          struct err_info *info)
{
    uint64_t reserve = blob_reserve(space), free_bytes = space->free_bytes;

    if (free_bytes >= reserve && free_bytes - reserve >= need)
        return ERR_OK;
    return err_set(info, ERR_FULL, 0,
                   "%s has %llu KiB free; %llu KiB are needed, and %llu KiB stay free",
                   where, (unsigned long long)(free_bytes >> 10),
                   (unsigned long long)((need + 1023) >> 10),
                   (unsigned long long)(reserve >> 10));
}

struct blob_name blob_share_name(const struct blob_id *id)
{
    struct blob_name n;

    (void)snprintf(n.s, sizeof(n.s), "blob/%s", id->hex);
    return n;
}

struct blob_name blob_upload_name(const struct blob_id *id, const char *ending)
{
    struct blob_name n;

    (void)snprintf(n.s, sizeof(n.s), "upload/%s%s", id->hex, ending);
    return n;
}
