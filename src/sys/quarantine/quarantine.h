/*
 * quarantine: takes a file out of the way, encrypted, and gives it back.
 *
 * Purpose   Take: what the descriptor holds is encrypted into the folder and on disk before
 *           the file is removed.  Restore: where it was, with owner, mode and times, never
 *           over another file.  Delete, list, and the bounds in age and size.
 * Shape     <folder>/key (32 bytes, 0600), <folder>/<uuid> (sys/quarantine/item.h),
 *           <folder>/<uuid>.new while it is written, <folder>/<uuid>.taking until the
 *           original is gone, <folder>/allowed/<sha256>, <folder>/lock.
 * Safety    The file that is removed is the one that was encrypted: it is first renamed to
 *           a name of ours in its folder, compared with the descriptor, and only then
 *           removed (or renamed back).  No symbolic link is followed anywhere in the path.
 * Owns      open/close.  Several processes may use one folder: the lock orders them.
 * Errors    ERR_STATE: it is not the file that was scanned; ERR_EXISTS: something stands
 *           where it should be restored to; ERR_FULL; ERR_LIMIT: bigger than the
 *           quarantine may be; ERR_NOT_FOUND; ERR_CORRUPT: the item does not decrypt.
 * Threads   one thread; calls block on the disk
 * Tests     tests/unit/test_quarantine.c
 */
#ifndef SYS_QUARANTINE_H
#define SYS_QUARANTINE_H

#include <sys/stat.h>

#include "base/err.h"
#include "wire/uuid.h"

enum { QUARANTINE_PATH_MAX = 4096, QUARANTINE_THREAT_MAX = 200, QUARANTINE_HASH = 65 };

struct quarantine_item {
    struct uuid id;
    char path[QUARANTINE_PATH_MAX]; /* bytes as the file system has them */
    char threat[QUARANTINE_THREAT_MAX];
    char sha256[QUARANTINE_HASH]; /* hex */
    uint64_t size, inode, links;
    uint32_t mode, uid, gid;
    int64_t mtime_s, mtime_ns, at_us; /* at_us: when it was taken, since 1970 */
};

struct quarantine;
typedef void quarantine_each(void *arg, const struct quarantine_item *item);

MUST_USE enum err quarantine_open(const char *folder, struct quarantine **out,
                                  struct err_info *info);
void quarantine_close(struct quarantine *q);

/*
 * quarantine_take - encrypt what fd holds, then remove the file at path.
 *
 * scanned  what fstat() said before the scan: a file that changed since is not taken
 * out      filled on ERR_OK: the item; out->links > 1 says that other names remain
 */
MUST_USE enum err quarantine_take(struct quarantine *q, const char *path, int fd,
                                  const struct stat *scanned, const char *threat,
                                  struct quarantine_item *out, struct err_info *info);
/* Also remembers its SHA-256 as allowed; the item is removed when the file is there. */
MUST_USE enum err quarantine_restore(struct quarantine *q, const struct uuid *id,
                                     struct quarantine_item *out, struct err_info *info);
MUST_USE enum err quarantine_delete(struct quarantine *q, const struct uuid *id,
                                    struct quarantine_item *out, struct err_info *info);
/* Items that do not decrypt are left out. */
MUST_USE enum err quarantine_list(struct quarantine *q, quarantine_each *each, void *arg,
                                  struct err_info *info);

/*
 * quarantine_recover - finish what a crash interrupted; each: items that are complete now
 * and of which nobody may have heard.  It is asked again until quarantine_told() says so.
 */
MUST_USE enum err quarantine_recover(struct quarantine *q, quarantine_each *each,
                                     void *arg, struct err_info *info);

/* What is told of this item is kept elsewhere now.  Needs no struct quarantine. */
void quarantine_told(const char *folder, const struct uuid *id);

/*
 * quarantine_trim - delete what was taken before `before_us`, then the oldest until `need`
 * more bytes fit into max_bytes; each: what was deleted.  ERR_LIMIT if need > max_bytes.
 */
struct quarantine_bounds {
    int64_t before_us;
    uint64_t max_bytes, need;
};
MUST_USE enum err quarantine_trim(struct quarantine *q, const struct quarantine_bounds *b,
                                  quarantine_each *each, void *arg,
                                  struct err_info *info);

/* SHA-256 of everything fd holds, as hex; moves no file offset. */
MUST_USE enum err quarantine_hash(int fd, char out[QUARANTINE_HASH],
                                  struct err_info *info);
/* Was a file with this content restored on purpose?  Opens no file. */
bool quarantine_is_allowed(const struct quarantine *q, const char *sha256);

/* For tests: called at each step of a take or a restore with its name. */
void quarantine_set_hook(struct quarantine *q, void (*hook)(const char *step));

#endif
