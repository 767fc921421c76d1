#include "app/agent/files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

enum err file_load(const char *path, char *buf, size_t size, size_t *n,
                   struct err_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t at = 0;
    ssize_t got = 1;

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "%s", path);
    while (at < size && got > 0) {
        got = read(fd, buf + at, size - at);
        at += got > 0 ? (size_t)got : 0;
    }
    int error = errno;
    (void)close(fd);
    if (got < 0)
        return err_set(info, ERR_IO, error, "%s", path);
    if (at == size)
        return err_set(info, ERR_LIMIT, 0, "%s is too long", path);
    buf[at] = '\0';
    *n = at;
    return ERR_OK;
}

static bool write_all(int fd, struct str text)
{
    while (text.n > 0) {
        ssize_t n = write(fd, text.p, text.n);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        text = (struct str){ text.p + n, text.n - (size_t)n };
    }
    return true;
}

enum err file_store(const char *path, struct str text, const struct stat *like,
                    struct err_info *info)
{
    char fresh[PATH_MAX];

    if ((size_t)snprintf(fresh, sizeof(fresh), "%s.redoubt-new", path) >= sizeof(fresh))
        return err_set(info, ERR_LIMIT, ENAMETOOLONG, "%s", path);
    (void)unlink(fresh);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool ok = fd >= 0 && write_all(fd, text) &&
              (!like || (fchown(fd, like->st_uid, like->st_gid) == 0 &&
                         fchmod(fd, like->st_mode & 07777) == 0)) &&
              fsync(fd) == 0 && rename(fresh, path) == 0;
    int error = errno;
    if (fd >= 0)
        (void)close(fd);
    if (ok)
        return ERR_OK;
    (void)unlink(fresh);
    return err_set(info, error == ENOSPC ? ERR_FULL : ERR_IO, error, "write %s", path);
}
