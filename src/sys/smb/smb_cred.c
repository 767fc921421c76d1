#include "sys/smb/smb_cred.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Takes the next line off text, without its end. */
static struct str next_line(struct str *text)
{
    struct str line = { text->p, 0 };

    while (line.n < text->n && text->p[line.n] != '\n')
        line.n++;
    size_t used = line.n < text->n ? line.n + 1 : line.n;
    text->p += used;
    text->n -= used;
    if (line.n > 0 && line.p[line.n - 1] == '\r')
        line.n--;
    return line;
}

enum err smb_cred_parse(struct smb_cred *out, struct str text, const char *path,
                        struct err_info *info)
{
    struct smb_cred c = { .user = "" };
    const struct {
        struct str key;
        char *value;
    } keys[] = {
        { STR("username="), c.user },
        { STR("password="), c.password },
        { STR("domain="), c.domain },
    };

    for (unsigned number = 1; text.n > 0; number++) {
        struct str line = next_line(&text);
        size_t k = 0;

        if (line.n == 0 || line.p[0] == '#')
            continue;
        while (k < LEN(keys) && !str_starts(line, keys[k].key))
            k++;
        if (k == LEN(keys)) /* the line may hold a secret: do not repeat it */
            return err_set(info, ERR_CONFIG, 0,
                           "%s:%u: expected username=, password= or domain=", path,
                           number);
        struct str value = { line.p + keys[k].key.n, line.n - keys[k].key.n };
        if (!str_copy(keys[k].value, SMB_CRED_BYTES, value))
            return err_set(info, ERR_CONFIG, 0, "%s:%u: longer than %d bytes", path,
                           number, SMB_CRED_BYTES - 1);
    }
    if (c.user[0] == '\0')
        return err_set(info, ERR_CONFIG, 0, "%s: username= is missing", path);
    *out = c;
    return ERR_OK;
}

enum err smb_cred_load(struct smb_cred *out, const char *path, struct err_info *info)
{
    char buf[SMB_CRED_FILE_MAX + 1];
    struct stat st;
    enum err e;

    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno,
                       "credentials %s", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        e = err_set(info, ERR_DENIED, 0, "credentials %s: not a regular file", path);
    } else if (st.st_uid != geteuid() || (st.st_mode & 077) != 0) {
        e = err_set(info, ERR_DENIED, 0,
                    "credentials %s: others may read it; make it mode 0600 and owned by "
                    "the user that runs this program",
                    path);
    } else {
        ssize_t n = read(fd, buf, sizeof(buf));

        if (n < 0)
            e = err_set(info, ERR_IO, errno, "read %s", path);
        else if ((size_t)n == sizeof(buf))
            e = err_set(info, ERR_CONFIG, 0, "credentials %s: longer than %d bytes", path,
                        SMB_CRED_FILE_MAX);
        else
            e = smb_cred_parse(out, (struct str){ buf, (size_t)n }, path, info);
        explicit_bzero(buf, sizeof(buf));
    }
    (void)close(fd);
    return e;
}
