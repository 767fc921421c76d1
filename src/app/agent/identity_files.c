#include "app/agent/identity_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum err identity_read(const char *path, struct ca_pem *out, struct err_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t n = 0;
    ssize_t got = 0;
    enum err e = ERR_OK;

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s",
                       path);
    while (n < sizeof(out->text) &&
           (got = read(fd, out->text + n, sizeof(out->text) - n)) > 0)
        n += (size_t)got;
    if (got < 0)
        e = err_set(info, ERR_IO, errno, "read %s", path);
    else if (n == sizeof(out->text))
        e = err_set(info, ERR_LIMIT, 0, "%s is longer than %zu bytes", path,
                    sizeof(out->text) - 1);
    (void)close(fd); /* read only */
    if (e != ERR_OK)
        return e;
    out->text[n] = '\0';
    out->n = n;
    return ERR_OK;
}

/* What root makes in a folder belongs to whom the folder belongs: the agent of a node runs as
 * another user.  fd: of the file, -1: path is a folder. */
static enum err own_as_folder(const char *path, int fd, struct err_info *info)
{
    char parent[CONF_PATH + 16];
    struct stat st;

    (void)snprintf(parent, sizeof(parent), "%s", path);
    char *slash = strrchr(parent, '/');
    if (geteuid() != 0 || !slash || slash == parent)
        return ERR_OK;
    *slash = '\0';
    if (stat(parent, &st) != 0 || (fd < 0 ? chown(path, st.st_uid, st.st_gid)
                                          : fchown(fd, st.st_uid, st.st_gid)) != 0)
        return err_set(info, ERR_IO, errno, "set the owner of %s", path);
    return ERR_OK;
}

/* Makes a folder and those above it that are missing. */
static enum err make_folder(char *folder, struct err_info *info)
{
    for (char *p = folder + 1;; p++) {
        char was = *p;

        if (was != '/' && was != '\0')
            continue;
        *p = '\0';
        if (mkdir(folder, 0700) == 0) {
            enum err e = own_as_folder(folder, -1, info);

            if (e != ERR_OK)
                return e;
        } else if (errno != EEXIST) {
            return err_set(info, ERR_IO, errno, "make %s", folder);
        }
        *p = was;
        if (was == '\0')
            return ERR_OK;
    }
}

/* Makes the folder of path; or, if it is there, `sync`s it. */
static enum err folder_of(const char *path, bool sync, struct err_info *info)
{
    char folder[CONF_PATH + 8];
    enum err e = ERR_OK;

    (void)snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder)
        return ERR_OK;
    *slash = '\0';
    if (!sync)
        return make_folder(folder, info);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        e = err_set(info, ERR_IO, errno, "sync %s", folder);
    if (fd >= 0)
        (void)close(fd); /* nothing was written by it */
    return e;
}

static enum err write_all(int fd, struct str bytes)
{
    while (bytes.n > 0) {
        ssize_t put = write(fd, bytes.p, bytes.n);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return ERR_IO;
        bytes.p += put;
        bytes.n -= (size_t)put;
    }
    return ERR_OK;
}

enum err identity_write(const char *path, struct str bytes, mode_t mode,
                        struct err_info *info)
{
    char beside[CONF_PATH + 16];
    enum err e = folder_of(path, false, info);

    if (e != ERR_OK)
        return e;
    (void)snprintf(beside, sizeof(beside), "%s.tmp", path);
    (void)unlink(beside); /* of a write that was broken off */
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "create %s", beside);
    if (write_all(fd, bytes) != ERR_OK || fsync(fd) != 0)
        e = err_set(info, ERR_IO, errno, "write %s", beside);
    if (e == ERR_OK)
        e = own_as_folder(beside, fd, info);
    if (close(fd) != 0 && e == ERR_OK)
        e = err_set(info, ERR_IO, errno, "write %s", beside);
    if (e == ERR_OK && rename(beside, path) != 0)
        e = err_set(info, ERR_IO, errno, "rename %s", beside);
    if (e != ERR_OK)
        (void)unlink(beside); /* best effort */
    return e == ERR_OK ? folder_of(path, true, info) : e;
}

enum err identity_check(struct str certificate, struct str key, const char *ca_path,
                        struct err_info *info)
{
    struct ca_pem ca;
    enum err e = identity_read(ca_path, &ca, info);

    return e == ERR_OK ? ca_certificate_check(certificate, key, ca_pem_str(&ca), info)
                       : e;
}

static void new_path(char *out, size_t size, const char *path)
{
    (void)snprintf(out, size, "%s.new", path);
}

/* The certificate that belongs to this key: in its place, or still beside it. */
static enum err matching(const struct conf_agent *conf, const struct ca_pem *key,
                         struct ca_pem *certificate, struct err_info *info)
{
    struct err_info other = { .what = "" };
    char path[CONF_PATH + 8];
    struct ca_pem new;
    enum err e = identity_read(conf->certificate, certificate, info);

    if (e == ERR_OK)
        e = ca_certificate_check(ca_pem_str(certificate), ca_pem_str(key),
                                 (struct str){ 0 }, info);
    if (e == ERR_OK)
        return e;
    new_path(path, sizeof(path), conf->certificate);
    if (identity_read(path, &new, &other) != ERR_OK ||
        identity_check(ca_pem_str(&new), ca_pem_str(key), conf->ca, &other) != ERR_OK)
        return e;
    *certificate = new;
    return rename(path, conf->certificate) == 0
               ? ERR_OK
               : err_set(info, ERR_IO, errno, "rename %s", path);
}

/* The words in info with the name of the file before them. */
static enum err not_whole(const struct conf_agent *conf, struct err_info *info)
{
    struct err_info why = { .what = "" };

    if (info)
        why = *info;
    return err_set(info, ERR_CONFIG, 0, "%.80s: %.150s", conf->certificate, why.what);
}

enum err identity_load(const struct conf_agent *conf, struct ca_certificate *out,
                       struct err_info *info)
{
    struct ca_pem key, certificate;
    struct ca_certificate c;
    enum err e = identity_read(conf->key, &key, info);

    if (e == ERR_OK)
        e = matching(conf, &key, &certificate, info);
    ca_pem_wipe(&key);
    if (e == ERR_NOT_FOUND)
        return err_set(info, ERR_CONFIG, 0,
                       "%s or %s is missing: enrol this device with redoubt-agent enrol",
                       conf->certificate, conf->key);
    if (e == ERR_OK)
        e = ca_certificate_read(ca_pem_str(&certificate), &c, info);
    if (e != ERR_OK)
        return not_whole(conf, info);
    if (!c.has_device)
        return err_set(info, ERR_CONFIG, 0,
                       "%s holds no subjectAltName urn:uuid:<device id>",
                       conf->certificate);
    *out = c;
    return ERR_OK;
}

enum err identity_write_new(const struct conf_agent *conf, struct str certificate,
                            struct str key, struct err_info *info)
{
    char path[CONF_PATH + 8];

    new_path(path, sizeof(path), conf->key);
    enum err e = identity_write(path, key, 0600, info);
    new_path(path, sizeof(path), conf->certificate);
    return e == ERR_OK ? identity_write(path, certificate, 0644, info) : e;
}

enum err identity_commit(const struct conf_agent *conf, struct ca_certificate *out,
                         struct err_info *info)
{
    char path[CONF_PATH + 8];

    new_path(path, sizeof(path), conf->key);
    if (rename(path, conf->key) != 0)
        return err_set(info, ERR_IO, errno, "rename %s", path);
    new_path(path, sizeof(path), conf->certificate);
    if (rename(path, conf->certificate) != 0)
        return err_set(info, ERR_IO, errno, "rename %s", path);
    enum err e = folder_of(conf->key, true, info);
    if (e == ERR_OK)
        e = folder_of(conf->certificate, true, info);
    return e == ERR_OK ? identity_load(conf, out, info) : e;
}
