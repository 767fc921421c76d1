#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "sys/smb/smb_context.h"

static enum err open_as(struct smb_file *out, struct smb *s, const char *name, int flags,
                        struct err_info *info)
{
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, flags, info, &e);

    if (!f)
        return e;
    *out = (struct smb_file){ .smb = s, .handle = f };
    (void)snprintf(out->name, sizeof(out->name), "%s", name);
    return ERR_OK;
}

static enum err open_at(struct smb_file *out, struct smb *s, const char *name, int flags,
                        uint64_t at, struct err_info *info)
{
    struct smb_file f;

    if (at > INT64_MAX)
        return err_set(info, ERR_INVALID, 0, "%s has no byte %llu", name,
                       (unsigned long long)at);
    enum err e = open_as(&f, s, name, flags, info);
    if (e)
        return e;
    if (smbc_getFunctionLseek(s->ctx)(s->ctx, f.handle, (off_t)at, SEEK_SET) < 0) {
        e = smb_failed(s, errno, "seek in", name, info);
        return smb_close(s, f.handle, name, e, info);
    }
    *out = f;
    return ERR_OK;
}

enum err smb_file_open(struct smb_file *out, struct smb *s, const char *name, bool write,
                       struct err_info *info)
{
    return open_as(out, s, name, write ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, info);
}

enum err smb_file_resume(struct smb_file *out, struct smb *s, const char *name,
                         uint64_t at, struct err_info *info)
{
    return open_at(out, s, name, O_WRONLY | O_CREAT, at, info);
}

enum err smb_file_open_at(struct smb_file *out, struct smb *s, const char *name,
                          uint64_t at, struct err_info *info)
{
    return open_at(out, s, name, O_RDONLY, at, info);
}

enum err smb_file_seek(struct smb_file *f, uint64_t at, struct err_info *info)
{
    struct smb *s = f->smb;

    if (at > INT64_MAX)
        return err_set(info, ERR_INVALID, 0, "%s has no byte %llu", f->name,
                       (unsigned long long)at);
    if (smbc_getFunctionLseek(s->ctx)(s->ctx, f->handle, (off_t)at, SEEK_SET) < 0)
        return smb_failed(s, errno, "seek in", f->name, info);
    return ERR_OK;
}

enum err smb_file_write(struct smb_file *f, struct str bytes, struct err_info *info)
{
    return smb_write(f->smb, f->handle, f->name, bytes, info);
}

enum err smb_file_read(struct smb_file *f, void *buf, size_t size, size_t *out_n,
                       struct err_info *info)
{
    struct smb *s = f->smb;
    ssize_t n = smbc_getFunctionRead(s->ctx)(s->ctx, f->handle, buf, size);

    if (n < 0)
        return smb_failed(s, errno, "read", f->name, info);
    *out_n = (size_t)n;
    return ERR_OK;
}

enum err smb_file_close(struct smb_file *f, struct err_info *info)
{
    return smb_close(f->smb, f->handle, f->name, ERR_OK, info);
}

enum err smb_list_entries(struct smb *s, const char *folder, smb_each_entry *each,
                          void *arg, struct err_info *info)
{
    struct smb_path p;
    const struct libsmb_file_info *i;

    if (!smb_begin(s, &p, folder))
        return smb_bad_name(info);
    SMBCFILE *f = smbc_getFunctionOpendir(s->ctx)(s->ctx, p.url);
    if (!f)
        return smb_failed(s, errno, "list", folder, info);
    while ((i = smbc_getFunctionReaddirPlus(s->ctx)(s->ctx, f)) != NULL) {
        const struct smb_entry e = { .name = i->name,
                                     .is_folder = i->attrs & SMBC_DOS_MODE_DIRECTORY,
                                     .size = i->size,
                                     .mtime = i->mtime_ts.tv_sec };

        if (strcmp(i->name, ".") == 0 || strcmp(i->name, "..") == 0)
            continue;
        if (!each(arg, &e))
            break;
    }
    (void)smbc_getFunctionClosedir(s->ctx)(s->ctx, f); /* the list is already here */
    return ERR_OK;
}

enum err smb_stat(struct smb *s, const char *name, struct smb_entry *out,
                  struct err_info *info)
{
    struct smb_path p;
    struct stat st;

    if (name[0] == '\0' || !smb_begin(s, &p, name))
        return smb_bad_name(info);
    if (smbc_getFunctionStat(s->ctx)(s->ctx, p.url, &st) < 0)
        return smb_failed(s, errno, "look at", name, info);
    *out = (struct smb_entry){ .name = name,
                               .is_folder = S_ISDIR(st.st_mode),
                               .size = (uint64_t)st.st_size,
                               .mtime = st.st_mtim.tv_sec };
    return ERR_OK;
}
