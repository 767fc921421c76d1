/*
 * blob_private: what the files of this folder share; nobody else includes it.
 *
 * Units     bytes
 * Threads   any; an object belongs to one at a time
 */
#ifndef SYS_BLOB_PRIVATE_H
#define SYS_BLOB_PRIVATE_H

#include "sys/blob/blob.h"

enum {
    /* One write to the server.  Larger ones fall out of the caches of the CPUs on their way
     * from the file to the digest, the socket, the server and its file; smaller ones wait for
     * more answers.  Measured: ./dev bench web --only publish. */
    BLOB_PIECE = 2 * 1024 * 1024,
    BLOB_PIECE_MIN = 64 * 1024
};

/* SHA-256 in pieces (GnuTLS: it uses the instructions of the CPU, libsodium does not). */
struct blob_hash {
    void *state;
};
MUST_USE enum err blob_hash_start(struct blob_hash *h, struct err_info *info);
void blob_hash_add(struct blob_hash *h, const void *bytes, size_t n);
/* Also frees it. */
void blob_hash_end(struct blob_hash *h, struct blob_id *out);
/* Without an answer; harmless after blob_hash_end(). */
void blob_hash_drop(struct blob_hash *h);

/* A transfer that is watched. */
struct blob_move {
    const struct blob_watch *watch;
    uint64_t done, total;
    uint64_t began_ns, began_at; /* the pace is kept since then */
};
void blob_move_start(struct blob_move *m, const struct blob_watch *w, uint64_t done,
                     uint64_t total);
/* Tells the watcher where it stands; false: it shall stop. */
bool blob_move_told(const struct blob_move *m);
/* How much to move at once. */
size_t blob_move_piece(const struct blob_move *m);
/* n more bytes: tells the watcher, waits for the pace.  ERR_STATE: it shall stop. */
MUST_USE enum err blob_move_add(struct blob_move *m, size_t n, struct err_info *info);

/* A piece; NULL without memory. */
void *blob_buffer(struct err_info *info);

/* Reads up to size bytes of a local file at an offset; fewer at its end only. */
MUST_USE enum err blob_read_at(int fd, void *buf, size_t size, uint64_t at, size_t *out_n,
                               struct err_info *info);

/* ERR_FULL unless `need` bytes fit and the reserve stays free. */
MUST_USE enum err blob_check_space(const char *where, const struct smb_space *space,
                                   uint64_t need, struct err_info *info);

struct blob_name {
    char s[SMB_NAME_BYTES];
};
struct blob_name blob_share_name(const struct blob_id *id);
/* upload/<sha256><ending> */
struct blob_name blob_upload_name(const struct blob_id *id, const char *ending);

#endif
