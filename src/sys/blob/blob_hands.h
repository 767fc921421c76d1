/*
 * blob_hands: several connections that write one file of the share at once.
 *
 * Purpose   libsmbclient sends a piece and waits for the answer; while it waits nothing moves.
 *           Two processes with a connection each keep the line and the server busy.
 * Shape     pieces lie in memory that is shared with the hands; piece i is written by hand
 *           i mod BLOB_HANDS, and answers are taken in the same order
 * Safety    A hand touches nothing but its connection and the pieces.  It ends with its
 *           parent, and on blob_hands_free() at the latest.
 * Errors    as smb_file_write(); the caller's connection is told to be lost if a hand's was
 * Threads   start before there are others: it forks
 */
#ifndef SYS_BLOB_HANDS_H
#define SYS_BLOB_HANDS_H

#include "sys/blob/blob_private.h"

enum { BLOB_HANDS = 2 };

struct blob_hands;

/* name: of a file that is made if missing; what is there stays. */
MUST_USE enum err blob_hands_start(struct blob_hands **out, struct smb *like,
                                   const char *name, struct err_info *info);
/* The next piece is for the hand whose turn it is; waits until that one is free.  *freed: of
 * how many pieces, counted from the first, the memory may be used again. */
MUST_USE enum err blob_hands_write(struct blob_hands *h, struct str piece, uint64_t at,
                                   const struct blob_move *m, uint64_t *freed,
                                   struct err_info *info);
/* Waits for all, and closes the file. */
MUST_USE enum err blob_hands_end(struct blob_hands *h, const struct blob_move *m,
                                 struct err_info *info);
/* At any time. */
void blob_hands_free(struct blob_hands *h);

#endif
