#include "sys/quarantine/place.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

static int open_folder(const char *path)
{
    struct open_how how = { .flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
                            .resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS };

    return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
}

enum err place_open(const struct quarantine_item *item, struct place *out,
                    struct err_info *info)
{
    char folder[QUARANTINE_PATH_MAX], id[UUID_TEXT];
    const char *slash = strrchr(item->path, '/');

    if (!slash || item->path[0] != '/' || slash[1] == '\0')
        return err_set(info, ERR_INVALID, 0, "not the path of a file");
    size_t n = slash == item->path ? 1 : (size_t)(slash - item->path);
    memcpy(folder, item->path, n);
    folder[n] = '\0';
    uuid_format(id, &item->id);
    (void)snprintf(out->ours, sizeof(out->ours), ".redoubt-%s", id);
    out->name = slash + 1;
    out->folder = open_folder(folder);
    if (out->folder < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno,
                       "the folder");
    return ERR_OK;
}

void place_close(struct place *p)
{
    if (p->folder >= 0)
        (void)close(p->folder);
    p->folder = -1;
}

/* Is what stands at `name` the file of the item? */
static bool is_ours(const struct place *p, const char *name,
                    const struct quarantine_item *item, int fd)
{
    struct stat here, open;

    if (fstatat(p->folder, name, &here, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISREG(here.st_mode))
        return false;
    if (fd >= 0)
        return fstat(fd, &open) == 0 && open.st_dev == here.st_dev &&
               open.st_ino == here.st_ino;
    return here.st_ino == item->inode && (uint64_t)here.st_size == item->size &&
           here.st_mtim.tv_sec == item->mtime_s && here.st_mtim.tv_nsec == item->mtime_ns;
}

/* From its name to ours, where nobody exchanges it any more. */
static enum err step_aside(const struct place *p, bool *gone, struct err_info *info)
{
    if (renameat2(p->folder, p->name, p->folder, p->ours, RENAME_NOREPLACE) == 0)
        return ERR_OK;
    if (errno == ENOENT) {
        *gone = true;
        return ERR_OK;
    }
    return err_set(info, errno == EPERM || errno == EACCES ? ERR_DENIED : ERR_IO, errno,
                   "remove the file");
}

enum err place_remove(const struct place *p, const struct quarantine_item *item, int fd,
                      bool *gone, struct err_info *info)
{
    bool missing = false;

    *gone = false;
    if (faccessat(p->folder, p->ours, F_OK, AT_SYMLINK_NOFOLLOW) != 0) {
        if (!is_ours(p, p->name, item, fd)) {
            *gone = true;
            return ERR_OK;
        }
        enum err e = step_aside(p, &missing, info);
        if (e != ERR_OK || missing) {
            *gone = missing;
            return e;
        }
    }
    if (is_ours(p, p->ours, item, fd)) {
        if (unlinkat(p->folder, p->ours, 0) != 0)
            return err_set(info, ERR_IO, errno, "remove the file");
        (void)fsync(p->folder); /* not every file system can */
        return ERR_OK;
    }
    /* Somebody exchanged it in between: what we hold is another's, and goes back. */
    *gone = true;
    if (renameat2(p->folder, p->ours, p->folder, p->name, RENAME_NOREPLACE) != 0)
        return err_set(info, ERR_EXISTS, errno, "another file is left as %s", p->ours);
    return ERR_OK;
}
