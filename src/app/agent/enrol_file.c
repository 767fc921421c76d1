#include "app/agent/enrol_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

enum { FILE_MAX = 32 * 1024 };

void enrol_file_release(struct enrol_file *f)
{
    free(f->ca);
    explicit_bzero(f, sizeof(*f));
}

static enum err take(const json_t *j, struct enrol_file *out)
{
    const char *server = json_string_value(json_object_get(j, "server"));
    const char *token = json_string_value(json_object_get(j, "token"));
    const char *ca = json_string_value(json_object_get(j, "ca"));

    if (!server || !token || !ca ||
        !str_copy(out->server, sizeof(out->server), str_of(server)) ||
        !str_copy(out->token, sizeof(out->token), str_of(token)))
        return ERR_CORRUPT;
    out->ca = strdup(ca);
    return out->ca ? ERR_OK : ERR_MEMORY;
}

static enum err read_whole(const char *path, char *buf, size_t *n, struct err_info *info)
{
    struct stat st = { 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s",
                       path);
    ssize_t got = fstat(fd, &st) == 0 ? read(fd, buf, FILE_MAX) : -1;
    int number = errno;
    (void)close(fd); /* read only */
    if (got < 0)
        return err_set(info, ERR_IO, number, "read %s", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(info, ERR_DENIED, 0, "others may read %s, which holds a token",
                       path);
    if (got == FILE_MAX)
        return err_set(info, ERR_LIMIT, 0, "%s is too long", path);
    *n = (size_t)got;
    return ERR_OK;
}

enum err enrol_file_read(const char *path, struct enrol_file *out, struct err_info *info)
{
    static char buf[FILE_MAX];
    struct enrol_file f = { .ca = NULL };
    size_t n = 0;
    enum err e = read_whole(path, buf, &n, info);

    if (e != ERR_OK)
        return e;
    json_t *j = json_loadb(buf, n, JSON_REJECT_DUPLICATES, NULL);
    explicit_bzero(buf, n);
    e = take(j, &f);
    json_decref(j);
    if (e != ERR_OK) {
        enrol_file_release(&f);
        return err_set(info, e, 0, "%s must hold server, token and ca, as texts", path);
    }
    *out = f;
    return ERR_OK;
}
