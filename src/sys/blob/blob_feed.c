#include "sys/blob/blob_feed.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    RING_BYTES = BLOB_FEED * BLOB_PIECE,
    SLICE =
        256 * 1024 /* what was just read is still in a cache of this CPU for the digest */
};

struct blob_feed {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int fd;
    uint64_t at;
    size_t piece;
    struct blob_hash hash; /* the thread's until it has ended */

    /* Under the lock. */
    uint64_t filled, done; /* pieces since the start */
    bool stop, ended;
    enum err err;
    struct err_info why;

    uint64_t taken; /* by the caller */
    size_t n[BLOB_FEED];
    char *ring;
};

/* Waits for a free piece; false: stop. */
static bool may_fill(struct blob_feed *f)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    while (!f->stop && f->filled - f->done == BLOB_FEED)
        CHECK(pthread_cond_wait(&f->changed, &f->lock) == 0);
    bool go_on = !f->stop;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return go_on;
}

static void tell(struct blob_feed *f, size_t n, enum err e)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (n > 0)
        f->filled++;
    f->err = e;
    f->ended = e != ERR_OK || n < f->piece;
    CHECK(pthread_cond_broadcast(&f->changed) == 0);
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

/* A piece of the file, and the digest over it. */
static enum err fill(struct blob_feed *f, char *piece, size_t *out_n)
{
    size_t n = SLICE;
    enum err e = ERR_OK;

    for (*out_n = 0; e == ERR_OK && n == SLICE && *out_n < f->piece; *out_n += n) {
        size_t want = f->piece - *out_n < SLICE ? f->piece - *out_n : SLICE;

        n = 0;
        e = blob_read_at(f->fd, piece + *out_n, want, f->at, &n, &f->why);
        blob_hash_add(&f->hash, piece + *out_n, n);
        f->at += n;
    }
    return e;
}

static void *run(void *arg)
{
    struct blob_feed *f = arg;
    size_t n = f->piece;
    enum err e = ERR_OK;

    for (uint64_t i = 0; e == ERR_OK && n == f->piece && may_fill(f); i++) {
        e = fill(f, f->ring + (i % BLOB_FEED) * f->piece, &n);
        f->n[i % BLOB_FEED] = n;
        tell(f, n, e);
    }
    return NULL;
}

/* Signals are for the caller's thread. */
static int start_thread(struct blob_feed *f)
{
    sigset_t all, before;

    CHECK(sigfillset(&all) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    int failed = pthread_create(&f->thread, NULL, run, f);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    return failed;
}

char *blob_feed_ring(struct err_info *info)
{
    void *p =
        mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        (void)err_set(info, ERR_MEMORY, errno, "pieces of %d bytes", BLOB_PIECE);
        return NULL;
    }
    return p;
}

void blob_feed_ring_free(char *ring)
{
    if (ring)
        (void)munmap(ring, RING_BYTES);
}

enum err blob_feed_start(struct blob_feed **out, const struct blob_feed_from *from,
                         struct blob_hash *hash, struct err_info *info)
{
    struct blob_feed *f = calloc(1, sizeof(*f));

    CHECK(from->piece <= BLOB_PIECE);
    if (!f)
        return err_set(info, ERR_MEMORY, 0, "read ahead");
    f->fd = from->fd;
    f->at = from->at;
    f->piece = from->piece;
    f->ring = from->ring;
    f->hash = *hash;
    CHECK(pthread_mutex_init(&f->lock, NULL) == 0);
    CHECK(pthread_cond_init(&f->changed, NULL) == 0);
    int failed = start_thread(f);
    if (failed) {
        free(f);
        return err_set(info, ERR_MEMORY, failed, "start a thread");
    }
    hash->state = NULL;
    *out = f;
    return ERR_OK;
}

enum err blob_feed_next(struct blob_feed *f, struct str *out, struct err_info *info)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    while (!f->ended && f->filled == f->taken)
        CHECK(pthread_cond_wait(&f->changed, &f->lock) == 0);
    bool more = f->filled > f->taken;
    enum err e = more ? ERR_OK : f->err;
    size_t i = f->taken % BLOB_FEED;

    *out = (struct str){ f->ring + i * f->piece, more ? f->n[i] : 0 };
    f->taken += more;
    if (e && info)
        *info = f->why;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return e;
}

void blob_feed_done(struct blob_feed *f, uint64_t count)
{
    CHECK(count <= f->taken);
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (count > f->done) {
        f->done = count;
        CHECK(pthread_cond_broadcast(&f->changed) == 0);
    }
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

void blob_feed_digest(struct blob_feed *f, struct blob_id *out)
{
    CHECK(f->ended && f->hash.state);
    blob_hash_end(&f->hash, out);
}

void blob_feed_free(struct blob_feed *f)
{
    if (!f)
        return;
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    f->stop = true;
    CHECK(pthread_cond_broadcast(&f->changed) == 0);
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    CHECK(pthread_join(f->thread, NULL) == 0);
    blob_hash_drop(&f->hash);
    CHECK(pthread_cond_destroy(&f->changed) == 0);
    CHECK(pthread_mutex_destroy(&f->lock) == 0);
    free(f);
}
