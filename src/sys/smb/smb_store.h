/*
 * smb_store: the requests of port/share.h, carried out on a share, blocking.
 *
 * Purpose   What redoubt-keeper does with each request.
 * Shape     One connection, made when it is needed.  A request that finds it dead makes
 *           another one and begins again, once; but a CLAIM does so only before its create
 *           was sent, for its answer would not tell who created the file.
 * Safety    A write whose fate is unknown (the connection broke in it and repeating it did
 *           not settle it) is ERR_TIMEOUT.  Other errors of a write say that it had no
 *           effect, but for ERR_STALE where n+1 exists: the record was rewritten.
 * Errors    As in port/share.h.  Where the connection cannot be made: ERR_DENIED,
 *           ERR_VERSION, ERR_UNSUPPORTED, ERR_CONFIG as smb_connect() says, else ERR_IO.
 * Owns      Options are copied.  What an answer points to lives until the next call.
 * Tests     tests/contract/test_share_smb.c
 */
#ifndef SMB_STORE_H
#define SMB_STORE_H

#include "port/share.h"
#include "sys/smb/smb.h"

enum { SMB_STORE_PRUNE_MAX = 16 /* records removed by one PRUNE */ };

struct smb_store;

MUST_USE enum err smb_store_new(struct smb_store **out, const struct smb_options *o,
                                struct err_info *info);
void smb_store_free(struct smb_store *st);

/* Connects if there is no connection; every request does so by itself. */
MUST_USE enum err smb_store_connect(struct smb_store *st, struct err_info *info);
void smb_store_serve(struct smb_store *st, const struct share_request *rq,
                     struct share_answer *out);

/*
 * smb_store_bequeath - write will over epoch/<epoch>, if that still holds exactly `last` and
 *                      epoch+1 does not exist.
 *
 * ERR_STALE if either is not so.
 */
MUST_USE enum err smb_store_bequeath(struct smb_store *st, uint64_t epoch,
                                     struct str last, struct str will,
                                     struct err_info *info);

struct smb_store_stats {
    enum smb_dialect dialect; /* NONE before the first connection */
    uint32_t connections;     /* made so far: one more than there were reconnects */
};
struct smb_store_stats smb_store_stats(const struct smb_store *st);

#endif
