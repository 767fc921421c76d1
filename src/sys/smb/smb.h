/*
 * smb: one connection to a share, through libsmbclient.
 *
 * Purpose   The few operations that the lease protocol and `redoubt check` need, with exact
 *           errors.  All calls block, for as long as the file server likes: the node daemon
 *           calls them in a disposable child only (sys/keeper).
 * Shape     Names are paths below the share: components of [a-z0-9.-], none beginning with
 *           a dot, separated by '/': a name can never climb.
 * Safety    No answer comes from a cache: every call asks the server.  No oplock, lease or
 *           durable handle is requested, and files are opened for sharing (read and write).
 *           The machine's smb.conf and the user's ~/.smb are not read.  Packets are signed.
 * Errors    ERR_NOT_FOUND, ERR_EXISTS, ERR_DENIED and ERR_FULL are the server's own word;
 *           ERR_LIMIT a file is larger than the buffer; ERR_INVALID a bad name;
 *           ERR_TIMEOUT and ERR_IO: smb_is_lost() tells whether the connection must be
 *           thrown away, and then a write may or may not have happened (rule L8).
 * Owns      Options are copied.  One connection is one TCP connection; several may exist.
 * Threads   one thread for all connections of a process (libsmbclient has global state)
 * Source    MS-SMB2 2.2.13 (FILE_CREATE, FILE_OPEN); libsmbclient 4.17
 * Tests     tests/contract/test_smb.c
 */
#ifndef SMB_H
#define SMB_H

#include <stdint.h>

#include "sys/smb/smb_cred.h"
#include "sys/smb/smb_dialect.h"

enum { SMB_SHARE_BYTES = 512, SMB_NAME_BYTES = 128 };

struct smb_options {
    const char *share; /* "//host/share" or "//host/share/folder" */
    const struct smb_cred *cred;
    enum smb_dialect min, max; /* both set; min at least 2.0.2 */
    bool encrypt;              /* refuse a server that cannot (SMB 3 only) */
    uint16_t port;
    uint32_t timeout_ms; /* of one exchange with the server; no finer than 1000 */
};

struct smb; /* a connection */

/*
 * smb_connect - log on and look at the share's folder.
 *
 * ERR_DENIED refused user or password; ERR_NOT_FOUND no such share or folder; ERR_VERSION no
 * common dialect (SMB 1 is always refused); ERR_UNSUPPORTED encryption is wanted and the
 * server has none; ERR_CONFIG the share is not written //host/share; ERR_IO otherwise.
 */
MUST_USE enum err smb_connect(struct smb **out, const struct smb_options *o,
                              struct err_info *info);
/* Another connection with the options of that one; for a process of its own, too, which was
 * forked from the one that has made it. */
MUST_USE enum err smb_connect_like(struct smb **out, const struct smb *like,
                                   struct err_info *info);
void smb_free(struct smb *s);

/* Has a call seen the connection fail?  Then free it and connect again. */
bool smb_is_lost(const struct smb *s);
/* Another connection to the same server was: this one is thought to be, too. */
void smb_mark_lost(struct smb *s);
/* While pinned nothing goes over a connection that the library makes anew: it fails as lost. */
void smb_pin(struct smb *s, bool on);
/* Connections made so far: libsmbclient may replace a dead one within a call, which then
 * succeeds.  The server may have crashed in between. */
uint32_t smb_connections(const struct smb *s);
const char *smb_host(const struct smb *s);

/* May name be given to the calls below? */
bool smb_name_ok(const char *name);

/* The whole file, at most size bytes; ERR_LIMIT (with size bytes in buf) if it has more. */
MUST_USE enum err smb_read(struct smb *s, const char *name, void *buf, size_t size,
                           size_t *out_n, struct err_info *info);
/* Its first bytes only, at most size: one exchange less. */
MUST_USE enum err smb_read_head(struct smb *s, const char *name, void *buf, size_t size,
                                size_t *out_n, struct err_info *info);
MUST_USE enum err smb_exists(struct smb *s, const char *name, bool *out,
                             struct err_info *info);
/* Exclusively (FILE_CREATE): of all who try, on any node, exactly one succeeds; then one
 * write.  A file whose write was refused is removed again. */
MUST_USE enum err smb_create(struct smb *s, const char *name, struct str body,
                             struct err_info *info);
/* One write over the beginning of a file that exists (FILE_OPEN); its length stays. */
MUST_USE enum err smb_rewrite(struct smb *s, const char *name, struct str body,
                              struct err_info *info);
/*
 * smb_rewrite_own - smb_rewrite(), but only of a file whose first 512 bytes contain mark.
 *
 * Reads and writes through one handle: what is looked at is what is written.
 * sent    true once the write may have reached the server
 *
 * ERR_STALE if mark is not there.
 */
MUST_USE enum err smb_rewrite_own(struct smb *s, const char *name, struct str mark,
                                  struct str body, bool *sent, struct err_info *info);
/* One write, then cut to length; made if missing.  Not atomic: body must carry its seal. */
MUST_USE enum err smb_put(struct smb *s, const char *name, struct str body,
                          struct err_info *info);
MUST_USE enum err smb_remove(struct smb *s, const char *name, struct err_info *info);
MUST_USE enum err smb_rename(struct smb *s, const char *from, const char *to,
                             struct err_info *info);
/* ERR_EXISTS if there is one already. */
MUST_USE enum err smb_make_folder(struct smb *s, const char *name, struct err_info *info);
MUST_USE enum err smb_remove_folder(struct smb *s, const char *name,
                                    struct err_info *info);

/* each: called for every entry but "." and "..", in the server's order; false stops. */
typedef bool smb_each(void *arg, const char *entry, bool is_folder);
/* folder: "" is the share's own. */
MUST_USE enum err smb_list(struct smb *s, const char *folder, smb_each *each, void *arg,
                           struct err_info *info);

/* Large files, piece by piece. */
struct smb_file {
    struct smb *smb; /* borrowed: must outlive the file */
    void *handle;
    char name[SMB_NAME_BYTES];
};

/* write: made if missing, emptied if there.  Else it must exist. */
MUST_USE enum err smb_file_open(struct smb_file *out, struct smb *s, const char *name,
                                bool write, struct err_info *info);
/* To write from this byte on; what is there stays, a missing file is made. */
MUST_USE enum err smb_file_resume(struct smb_file *out, struct smb *s, const char *name,
                                  uint64_t at, struct err_info *info);
/* To read from this byte on. */
MUST_USE enum err smb_file_open_at(struct smb_file *out, struct smb *s, const char *name,
                                   uint64_t at, struct err_info *info);
MUST_USE enum err smb_file_write(struct smb_file *f, struct str bytes,
                                 struct err_info *info);
/* The next write or read is there. */
MUST_USE enum err smb_file_seek(struct smb_file *f, uint64_t at, struct err_info *info);
/* *out_n is 0 at the end. */
MUST_USE enum err smb_file_read(struct smb_file *f, void *buf, size_t size, size_t *out_n,
                                struct err_info *info);
MUST_USE enum err smb_file_close(struct smb_file *f, struct err_info *info);

struct smb_entry {
    const char *name; /* without its folder; during the call */
    bool is_folder;
    uint64_t size;
    int64_t mtime; /* Unix seconds, by the server's clock */
};
typedef bool smb_each_entry(void *arg, const struct smb_entry *e);
/* As smb_list(), with what the server says about each entry. */
MUST_USE enum err smb_list_entries(struct smb *s, const char *folder,
                                   smb_each_entry *each, void *arg,
                                   struct err_info *info);
/* The same of one file; out->name is name. */
MUST_USE enum err smb_stat(struct smb *s, const char *name, struct smb_entry *out,
                           struct err_info *info);

/* What the server of o->share says before any log on: dialect, encryption. */
MUST_USE enum err smb_ask(const struct smb_options *o, struct smb_negotiated *out,
                          struct err_info *info);

struct smb_space {
    uint64_t total_bytes, free_bytes;
};
MUST_USE enum err smb_space(struct smb *s, struct smb_space *out, struct err_info *info);

#endif
