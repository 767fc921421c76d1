/*
 * blob: files named by their SHA-256, on the data share and on this node's disk.
 *
 * Purpose   Puts them on the share, fetches and verifies them, finds and removes what is
 *           damaged or left over.  Knows nothing of what refers to them: that is in the DBMS.
 * Shape     share   blob/<sha256>        complete, never changed
 *                   upload/<word>.part   on its way
 *                   upload/<sha256>.bad  was a blob, has other bytes
 *                   upload/<sha256>.old  was a blob, is being removed
 *           local   blob/<sha256>        complete, mode 0644
 *                   part/<sha256>        on its way
 *           docs/protocol/data.md
 * Units     bytes; mtime in Unix seconds
 * Safety    What has a blob's name was written whole, and is verified whenever it is read.
 *           Names are made of digests here: nobody's text becomes a path.  Two who put the
 *           same blob, or a dead one's half and a living one's, do not harm each other.
 * Errors    ERR_CORRUPT the bytes are not those of the name; ERR_FULL there would be too
 *           little room left, and nothing was begun; ERR_STATE the watcher stopped it: the
 *           part stays, and the next call goes on from there; ERR_IO and ERR_TIMEOUT: look
 *           at smb_is_lost(), connect again and call again.
 * Threads   as struct smb: one thread
 * Tests     tests/contract/test_blob.c
 */
#ifndef SYS_BLOB_H
#define SYS_BLOB_H

#include <stdint.h>

#include "sys/smb/smb.h"

enum {
    BLOB_HASH_BYTES = 32,
    BLOB_HEX = 2 * BLOB_HASH_BYTES + 1,
    BLOB_PATH = 512 + 80, /* of a local file */
    BLOB_RESERVE = 64 * 1024 * 1024
};

struct blob_id {
    char hex[BLOB_HEX]; /* lower case, NUL-terminated */
};

/* 64 lower-case hex digits and nothing else. */
MUST_USE bool blob_id_parse(struct blob_id *out, struct str text);
void blob_id_of(struct blob_id *out, const uint8_t hash[BLOB_HASH_BYTES]);
void blob_id_hash(const struct blob_id *id, uint8_t out[BLOB_HASH_BYTES]);

/* A blob as the DBMS knows it. */
struct blob {
    struct blob_id id;
    uint64_t size;
    int64_t
        mtime; /* of the local file, so that both nodes show the same; 0: not needed */
};

/* Looks on while bytes move; every function below takes NULL for nobody. */
struct blob_watch {
    /* Several times a second; false: stop.  NULL: nobody is told. */
    bool (*progress)(void *arg, uint64_t done, uint64_t total);
    void *arg;
    uint64_t bytes_per_s; /* at most; 0: as fast as it goes */
};

/* What stays free of a share or disk: 64 MiB, or a sixteenth of a small one. */
uint64_t blob_reserve(const struct smb_space *space);

/* --- on the share --- */

/* Makes the folders, if they are missing. */
MUST_USE enum err blob_share_prepare(struct smb *s, struct err_info *info);

struct blob_put {
    struct blob blob; /* id and size */
    uint64_t resumed; /* bytes that were there already */
    bool was_there;   /* the whole blob was */
};

/*
 * blob_put - the file of fd becomes a blob of the share.
 *
 * Goes on where an earlier call for the same file stopped.  Reads the file once, unless the
 * share has a blob of its size; a blob that is there is verified, and replaced if damaged.  ERR_INVALID: no plain file, or it changed meanwhile.
 */
MUST_USE enum err blob_put(struct smb *s, int fd, const struct blob_watch *w,
                           struct blob_put *out, struct err_info *info);

/* The id of a file that is not put (yet).  ERR_INVALID: no plain file. */
MUST_USE enum err blob_digest(int fd, const struct blob_watch *w, struct blob_id *out,
                              struct err_info *info);

/* Is it there?  By name only.  ERR_NOT_FOUND. */
MUST_USE enum err blob_share_size(struct smb *s, const struct blob_id *id, uint64_t *out,
                                  struct err_info *info);
/* Reads all of it.  ERR_NOT_FOUND, ERR_CORRUPT (size or bytes). */
MUST_USE enum err blob_share_verify(struct smb *s, const struct blob *b,
                                    const struct blob_watch *w, struct err_info *info);
/* It is damaged: gives its name free, so that a good copy can be put. */
MUST_USE enum err blob_share_set_aside(struct smb *s, const struct blob_id *id,
                                       struct err_info *info);

/* Is the blob in the DBMS?  Asked while its name is gone from the share. */
typedef enum err blob_is_known(void *arg, const struct blob_id *id, bool *out,
                               struct err_info *info);
/*
 * blob_share_remove - a blob that the DBMS forgot.
 *
 * It is renamed, the DBMS asked again, and only then removed; or named as before.  Who adds a
 * blob to the DBMS looks afterwards whether it is still on the share (blob_share_size) and
 * puts it again if not: so whichever comes first, no row is left without its file.
 *
 * removed  false: it is known again, and back in its place
 */
MUST_USE enum err blob_share_remove(struct smb *s, const struct blob_id *id,
                                    blob_is_known *known, void *arg, bool *removed,
                                    struct err_info *info);

/* false stops.  age_s: since it was written, by the server's own clock. */
typedef bool blob_each(void *arg, const struct blob *b, uint64_t age_s);
MUST_USE enum err blob_share_list(struct smb *s, blob_each *each, void *arg,
                                  struct err_info *info);

struct blob_left { /* what lies in upload/ */
    uint32_t parts, bad, old;
    uint64_t bytes, removed_bytes;
    uint32_t removed;
};
/* Counts what is in upload/, and removes what nobody has written to for older_s seconds;
 * UINT64_MAX: removes nothing.  What was being removed as blob is put back first unless the
 * DBMS does not know it (known may be NULL: it stays). */
MUST_USE enum err blob_share_clean(struct smb *s, uint64_t older_s, blob_is_known *known,
                                   void *arg, struct blob_left *out,
                                   struct err_info *info);

/* --- on this node; store: the folder of [web] store --- */

MUST_USE enum err blob_local_prepare(const char *store, struct err_info *info);
/* false: the folder's name is too long. */
MUST_USE bool blob_local_path(const char *store, const struct blob_id *id,
                              char out[BLOB_PATH]);
/* Is it there with that size (and sets its mtime right)?  ERR_NOT_FOUND, ERR_CORRUPT. */
MUST_USE enum err blob_local_check(const char *store, const struct blob *b,
                                   struct err_info *info);
/* Reads all of it.  ERR_NOT_FOUND, ERR_CORRUPT. */
MUST_USE enum err blob_local_verify(const char *store, const struct blob *b,
                                    const struct blob_watch *w, struct err_info *info);
/* ERR_OK if there is none. */
MUST_USE enum err blob_local_remove(const char *store, const struct blob_id *id,
                                    struct err_info *info);
/* What is in blob/; age_s since it was fetched. */
MUST_USE enum err blob_local_list(const char *store, blob_each *each, void *arg,
                                  struct err_info *info);
/* Removes parts that nobody has written to for older_s seconds. */
MUST_USE enum err blob_local_clean(const char *store, uint64_t older_s,
                                   struct err_info *info);
MUST_USE enum err blob_local_space(const char *store, struct smb_space *out,
                                   struct err_info *info);

/* --- between them --- */

/*
 * blob_fetch - from the share to this node: as a part, verified, on the disk, renamed.
 *
 * Goes on where an earlier call stopped.  A part that turns out wrong is thrown away and
 * fetched anew, once.  ERR_NOT_FOUND the share has none; ERR_CORRUPT the share's is damaged.
 */
MUST_USE enum err blob_fetch(struct smb *s, const char *store, const struct blob *b,
                             const struct blob_watch *w, struct err_info *info);
/* The other way, where the share's is missing or damaged (and was set aside).  ERR_NOT_FOUND,
 * ERR_CORRUPT: of this node's copy. */
MUST_USE enum err blob_heal_share(struct smb *s, const char *store, const struct blob *b,
                                  const struct blob_watch *w, struct err_info *info);

#endif
