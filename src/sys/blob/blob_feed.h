/*
 * blob_feed: reads and hashes a local file ahead, in a thread of its own.
 *
 * Purpose   The digest is computed while the pieces before are on their way: hashing and
 *           sending a GiB take about as long, and one after the other would halve the speed.
 * Shape     a ring of BLOB_FEED pieces, in memory that processes made from here on share
 * Threads   the feed's thread touches the file, the ring and the digest, nothing else; the
 *           caller is one thread
 */
#ifndef SYS_BLOB_FEED_H
#define SYS_BLOB_FEED_H

#include "sys/blob/blob_private.h"

/* Work for a CPU that would wait while all hands wait for the server.  3 were slower, 16 no faster,
 * and so was the file mapped instead of read: ./dev bench web --only publish. */
enum { BLOB_FEED = 12 };

struct blob_feed;

struct blob_feed_from {
    int fd;
    uint64_t at;  /* from this byte on */
    size_t piece; /* how much at once */
    char *ring;   /* borrowed until the feed is gone: blob_feed_ring() */
};

/* BLOB_FEED pieces of BLOB_PIECE bytes, before other processes are made; NULL without memory. */
char *blob_feed_ring(struct err_info *info);
void blob_feed_ring_free(char *ring);

/* hash: of what is before, taken over. */
MUST_USE enum err blob_feed_start(struct blob_feed **out,
                                  const struct blob_feed_from *from,
                                  struct blob_hash *hash, struct err_info *info);
/* The next piece, good until blob_feed_done() counts it; n is 0 at the end of the file. */
MUST_USE enum err blob_feed_next(struct blob_feed *f, struct str *out,
                                 struct err_info *info);
/* So many pieces, from the first, are not needed any more. */
void blob_feed_done(struct blob_feed *f, uint64_t count);
/* After the end: the digest of the whole file. */
void blob_feed_digest(struct blob_feed *f, struct blob_id *out);
/* At any time. */
void blob_feed_free(struct blob_feed *f);

#endif
