/*
 * blob_feed: reads and hashes a local file ahead, in a thread of its own.
 *
 * Purpose   The digest is computed while the pieces before are on their way: hashing and
 *           sending a GiB take about as long, and one after the other would halve the speed.
 * Shape     a ring of BLOB_FEED pieces
 * Threads   the feed's thread touches the file, the ring and the digest, nothing else; the
 *           caller is one thread
 */
#ifndef SYS_BLOB_FEED_H
#define SYS_BLOB_FEED_H

#include "sys/blob/blob_private.h"

enum { BLOB_FEED = 4 };

struct blob_feed;

/* From byte `at` on, in pieces of `piece` bytes.  hash: of what is before, taken over. */
MUST_USE enum err blob_feed_start(struct blob_feed **out, int fd, uint64_t at,
                                  size_t piece, struct blob_hash *hash,
                                  struct err_info *info);
/* The next piece, good until the next call; n is 0 at the end of the file. */
MUST_USE enum err blob_feed_next(struct blob_feed *f, struct str *out,
                                 struct err_info *info);
/* After the end: the digest of the whole file. */
void blob_feed_digest(struct blob_feed *f, struct blob_id *out);
/* At any time. */
void blob_feed_free(struct blob_feed *f);

#endif
