#include "sys/smb/smb.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "sys/smb/smb_context.h"

/*
 * Errors that are the server's considered answer to a request.  Anything else (there are
 * many, and libsmbclient maps the unknown to EINVAL) may mean that the connection is gone.
 */
static const struct {
    int sys;
    enum err err;
} answers[] = {
    { ENOENT, ERR_NOT_FOUND },
    { EEXIST, ERR_EXISTS },
    { EACCES, ERR_DENIED },
    { EPERM, ERR_DENIED },
    { EROFS, ERR_DENIED },
    { ENOSPC, ERR_FULL },
    { EDQUOT, ERR_FULL },
    { EFBIG, ERR_FULL },
    { ENOTDIR, ERR_IO },
    { EISDIR, ERR_IO },
    { EBUSY, ERR_IO },
    { ENOTEMPTY, ERR_IO },
    { ENAMETOOLONG, ERR_INVALID },
};

enum err smb_failed(struct smb *s, int sys, const char *verb, const char *name,
                    struct err_info *info)
{
    enum err e = sys == ETIMEDOUT ? ERR_TIMEOUT : ERR_IO;
    bool answered = false;

    for (size_t i = 0; i < LEN(answers); i++)
        if (answers[i].sys == sys) {
            e = answers[i].err;
            answered = true;
        }
    /* libsmbclient found the connection dead and could not make another: ENOENT is then
     * about the share, and EPERM about anything.  EACCES is a refused password. */
    if (s->lost && sys != EACCES)
        e = sys == ETIMEDOUT ? ERR_TIMEOUT : ERR_IO;
    s->lost = s->lost || !answered;
    return err_set(info, e, sys, "%s //%s/%s%s%s/%s", verb, s->url.host, s->url.share,
                   s->url.folder[0] ? "/" : "", s->url.folder, name);
}

bool smb_is_lost(const struct smb *s)
{
    return s->lost;
}

void smb_mark_lost(struct smb *s)
{
    s->lost = true;
}

void smb_pin(struct smb *s, bool on)
{
    s->pinned = on;
}

uint32_t smb_connections(const struct smb *s)
{
    return 1 + s->deaths;
}

const char *smb_host(const struct smb *s)
{
    return s->url.host;
}

bool smb_name_ok(const char *name)
{
    bool begin = true;
    size_t n = 0;

    for (const char *p = name; *p; p++, n++) {
        if (*p == '/' ? begin
                      : !((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') ||
                          *p == '-' || (*p == '.' && !begin)))
            return false;
        begin = *p == '/';
    }
    return !begin && n < SMB_NAME_BYTES;
}

bool smb_begin(struct smb *s, struct smb_path *p, const char *name)
{
    s->lost = false;
    if (name[0] == '\0') {
        (void)snprintf(p->url, sizeof(p->url), "%s", s->url.base);
        return true;
    }
    if (!smb_name_ok(name))
        return false;
    (void)snprintf(p->url, sizeof(p->url), "%s/%s", s->url.base, name);
    return true;
}

enum err smb_bad_name(struct err_info *info)
{
    return err_set(info, ERR_INVALID, 0, "not a name for a file on the share");
}

SMBCFILE *smb_open(struct smb *s, const char *name, int flags, struct err_info *info,
                   enum err *ret_e)
{
    struct smb_path p;

    if (name[0] == '\0' || !smb_begin(s, &p, name)) {
        *ret_e = smb_bad_name(info);
        return NULL;
    }
    SMBCFILE *f = smbc_getFunctionOpen(s->ctx)(s->ctx, p.url, flags, 0600);
    if (!f)
        *ret_e = smb_failed(s, errno, flags & O_CREAT ? "create" : "open", name, info);
    return f;
}

/* Closes f; a failure matters only if all went well so far. */
enum err smb_close(struct smb *s, SMBCFILE *f, const char *name, enum err e,
                   struct err_info *info)
{
    if (smbc_getFunctionClose(s->ctx)(s->ctx, f) < 0 && e == ERR_OK)
        return smb_failed(s, errno, "close", name, info);
    return e;
}

enum err smb_write(struct smb *s, SMBCFILE *f, const char *name, struct str body,
                   struct err_info *info)
{
    ssize_t n = smbc_getFunctionWrite(s->ctx)(s->ctx, f, body.p, body.n);

    if (n < 0)
        return smb_failed(s, errno, "write", name, info);
    if ((size_t)n != body.n)
        return smb_failed(s, ENOSPC, "write all of", name, info);
    return ERR_OK;
}

enum err smb_read_head(struct smb *s, const char *name, void *buf, size_t size,
                       size_t *out_n, struct err_info *info)
{
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_RDONLY, info, &e);

    if (!f)
        return e;
    ssize_t n = smbc_getFunctionRead(s->ctx)(s->ctx, f, buf, size);
    if (n < 0)
        e = smb_failed(s, errno, "read", name, info);
    else
        *out_n = (size_t)n;
    return smb_close(s, f, name, e, info);
}

enum err smb_read(struct smb *s, const char *name, void *buf, size_t size, size_t *out_n,
                  struct err_info *info)
{
    enum err e = ERR_OK;
    char more;
    SMBCFILE *f = smb_open(s, name, O_RDONLY, info, &e);

    if (!f)
        return e;
    ssize_t n = smbc_getFunctionRead(s->ctx)(s->ctx, f, buf, size), rest = 0;
    if (n >= 0 && (size_t)n == size)
        rest = smbc_getFunctionRead(s->ctx)(s->ctx, f, &more, 1);
    if (n < 0 || rest < 0)
        e = smb_failed(s, errno, "read", name, info);
    else if (rest > 0)
        e = err_set(info, ERR_LIMIT, 0, "%s is longer than %zu bytes", name, size);
    else
        *out_n = (size_t)n;
    return smb_close(s, f, name, e, info);
}

enum err smb_exists(struct smb *s, const char *name, bool *out, struct err_info *info)
{
    struct err_info why;
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_RDONLY, &why, &e);

    if (f)
        e = smb_close(s, f, name, ERR_OK, &why);
    bool folder = e != ERR_OK && !s->lost && why.sys_errno == EISDIR;
    if (e != ERR_OK && e != ERR_NOT_FOUND && !folder) {
        if (info)
            *info = why;
        return e;
    }
    *out = f != NULL || folder;
    return ERR_OK;
}

static enum err unlink_file(struct smb *s, const char *name, struct err_info *info)
{
    struct smb_path p;

    if (name[0] == '\0' || !smb_begin(s, &p, name))
        return smb_bad_name(info);
    if (smbc_getFunctionUnlink(s->ctx)(s->ctx, p.url) < 0)
        return smb_failed(s, errno, "remove", name, info);
    return ERR_OK;
}

enum err smb_create(struct smb *s, const char *name, struct str body,
                    struct err_info *info)
{
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_WRONLY | O_CREAT | O_EXCL, info, &e);

    if (!f)
        return e;
    e = smb_write(s, f, name, body, info);
    e = smb_close(s, f, name, e, info);
    /* We alone made this file and hold nothing through it: leave no empty one behind, or a
     * full share would fill up with epochs nobody owns. */
    if (e != ERR_OK && !s->lost)
        (void)unlink_file(s, name, NULL);
    return e;
}

enum err smb_rewrite(struct smb *s, const char *name, struct str body,
                     struct err_info *info)
{
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_WRONLY, info, &e);

    if (!f)
        return e;
    e = smb_write(s, f, name, body, info);
    return smb_close(s, f, name, e, info);
}

enum err smb_rewrite_own(struct smb *s, const char *name, struct str mark,
                         struct str body, bool *sent, struct err_info *info)
{
    char head[512];
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_RDWR, info, &e);

    if (!f)
        return e;
    ssize_t n = smbc_getFunctionRead(s->ctx)(s->ctx, f, head, sizeof(head));
    if (n < 0)
        e = smb_failed(s, errno, "read", name, info);
    else if (!memmem(head, (size_t)n, mark.p, mark.n))
        e = err_set(info, ERR_STALE, 0, "%s is another's", name);
    else if (smbc_getFunctionLseek(s->ctx)(s->ctx, f, 0, SEEK_SET) != 0)
        e = smb_failed(s, errno, "seek in", name, info);
    if (e == ERR_OK) {
        *sent = true;
        e = smb_write(s, f, name, body, info);
    }
    return smb_close(s, f, name, e, info);
}

enum err smb_put(struct smb *s, const char *name, struct str body, struct err_info *info)
{
    enum err e = ERR_OK;
    SMBCFILE *f = smb_open(s, name, O_WRONLY | O_CREAT, info, &e);

    if (!f)
        return e;
    e = smb_write(s, f, name, body, info);
    if (e == ERR_OK && smbc_getFunctionFtruncate(s->ctx)(s->ctx, f, (off_t)body.n) < 0)
        e = smb_failed(s, errno, "cut", name, info);
    return smb_close(s, f, name, e, info);
}

enum err smb_remove(struct smb *s, const char *name, struct err_info *info)
{
    return unlink_file(s, name, info);
}

enum err smb_rename(struct smb *s, const char *from, const char *to,
                    struct err_info *info)
{
    struct smb_path a, b;

    if (from[0] == '\0' || to[0] == '\0' || !smb_begin(s, &a, from) ||
        !smb_begin(s, &b, to))
        return smb_bad_name(info);
    if (smbc_getFunctionRename(s->ctx)(s->ctx, a.url, s->ctx, b.url) < 0)
        return smb_failed(s, errno, "rename", from, info);
    return ERR_OK;
}

enum err smb_make_folder(struct smb *s, const char *name, struct err_info *info)
{
    struct smb_path p;

    if (name[0] == '\0' || !smb_begin(s, &p, name))
        return smb_bad_name(info);
    if (smbc_getFunctionMkdir(s->ctx)(s->ctx, p.url, 0700) < 0)
        return smb_failed(s, errno, "make folder", name, info);
    return ERR_OK;
}

enum err smb_remove_folder(struct smb *s, const char *name, struct err_info *info)
{
    struct smb_path p;

    if (name[0] == '\0' || !smb_begin(s, &p, name))
        return smb_bad_name(info);
    if (smbc_getFunctionRmdir(s->ctx)(s->ctx, p.url) < 0)
        return smb_failed(s, errno, "remove folder", name, info);
    return ERR_OK;
}

enum err smb_list(struct smb *s, const char *folder, smb_each *each, void *arg,
                  struct err_info *info)
{
    struct smb_path p;
    struct smbc_dirent *d;

    if (!smb_begin(s, &p, folder))
        return smb_bad_name(info);
    SMBCFILE *f = smbc_getFunctionOpendir(s->ctx)(s->ctx, p.url);
    if (!f)
        return smb_failed(s, errno, "list", folder, info);
    while ((d = smbc_getFunctionReaddir(s->ctx)(s->ctx, f)) != NULL) {
        struct str name = { d->name, d->namelen };

        if (str_is(name, ".") || str_is(name, ".."))
            continue;
        if (!each(arg, d->name, d->smbc_type == SMBC_DIR))
            break;
    }
    (void)smbc_getFunctionClosedir(s->ctx)(s->ctx, f); /* the list is already here */
    return ERR_OK;
}

enum err smb_space(struct smb *s, struct smb_space *out, struct err_info *info)
{
    struct smb_path p;
    struct statvfs v = { .f_bsize = 0 };

    (void)smb_begin(s, &p, "");
    if (smbc_getFunctionStatVFS(s->ctx)(s->ctx, p.url, &v) < 0)
        return smb_failed(s, errno, "free space of", "", info);
    /* libsmbclient: f_bsize is a sector, f_frsize the sectors of one allocation unit. */
    uint64_t unit = (uint64_t)v.f_bsize * (v.f_frsize ? v.f_frsize : 1);
    *out = (struct smb_space){ .total_bytes = v.f_blocks * unit,
                               .free_bytes = v.f_bavail * unit };
    return ERR_OK;
}

static enum err probe(const struct smb_url *url, const struct smb_options *o,
                      struct smb_negotiated *out, struct err_info *info)
{
    const struct smb_probe p = {
        .host = url->host,
        .port = o->port,
        .min = o->min,
        .max = o->max,
        .timeout_ms = o->timeout_ms,
    };
    return smb_probe(out, &p, info);
}

static enum err parse_share(struct smb_url *out, const char *share, struct err_info *info)
{
    if (smb_url_parse(out, str_of(share)))
        return ERR_OK;
    return err_set(info, ERR_CONFIG, 0, "share %s: expected //host/share", share);
}

enum err smb_ask(const struct smb_options *o, struct smb_negotiated *out,
                 struct err_info *info)
{
    struct smb_url url;

    enum err e = parse_share(&url, o->share, info);
    return e ? e : probe(&url, o, out, info);
}

/*
 * libsmbclient 4.17 goes on without encryption where it cannot have it, whatever level is
 * asked for; and it turns it on only while it asks about DFS.  So the server is asked first.
 */
static enum err demand_encryption(const struct smb *s, struct smb_options *o,
                                  struct err_info *info)
{
    struct smb_negotiated n;

    if (o->max < SMB_DIALECT_3_00)
        return err_set(info, ERR_UNSUPPORTED, 0,
                       "encryption needs SMB 3; dialect_max is %s",
                       smb_dialect_name(o->max));
    if (o->min < SMB_DIALECT_3_00)
        o->min = SMB_DIALECT_3_00;
    enum err e = probe(&s->url, o, &n, info);
    if (e)
        return e;
    if (!n.encryption || !n.dfs)
        return err_set(info, ERR_UNSUPPORTED, 0,
                       "%s cannot encrypt (SMB %s%s); allow it there, or set encrypt=no",
                       s->url.host, smb_dialect_name(n.dialect),
                       n.encryption ? ", but without DFS, which libsmbclient needs for it"
                                    : "");
    return ERR_OK;
}

static enum err reach(struct smb *s, const struct smb_options *o, struct err_info *info)
{
    struct smb_path p;
    struct stat st;
    struct smb_negotiated n;
    struct err_info why;

    (void)smb_begin(s, &p, "");
    if (smbc_getFunctionStat(s->ctx)(s->ctx, p.url, &st) == 0)
        return ERR_OK;
    enum err e = smb_failed(s, errno, "reach", "", info);
    if (e == ERR_IO && s->lost && probe(&s->url, o, &n, &why) == ERR_VERSION)
        return err_set(info, ERR_VERSION, 0, "%s", why.what);
    return e;
}

enum err smb_connect(struct smb **out, const struct smb_options *options,
                     struct err_info *info)
{
    struct smb_options o = *options;
    struct smb *s = calloc(1, sizeof(*s));

    CHECK(o.min >= SMB_DIALECT_2_02 && o.max >= o.min);
    if (!s)
        return err_set(info, ERR_MEMORY, 0, "connect");
    s->cred = *o.cred;
    s->options = *options;
    s->options.cred = &s->cred;
    s->options.share = s->share;
    enum err e = parse_share(&s->url, o.share, info);
    if (e == ERR_OK && !str_copy(s->share, sizeof(s->share), str_of(o.share)))
        e = err_set(info, ERR_CONFIG, 0, "share: longer than %zu bytes",
                    sizeof(s->share));
    if (e == ERR_OK && o.encrypt)
        e = demand_encryption(s, &o, info);
    if (e == ERR_OK)
        e = smb_context_make(s, &o, info);
    /* This setting is the whole process's: it holds for the connection made next. */
    if (e == ERR_OK && !smbc_setOptionProtocols(s->ctx, smb_dialect_config(o.min),
                                                smb_dialect_config(o.max)))
        e = err_set(info, ERR_CONFIG, 0, "libsmbclient refuses the dialects %s to %s",
                    smb_dialect_name(o.min), smb_dialect_name(o.max));
    if (e == ERR_OK)
        e = reach(s, &o, info);
    if (e) {
        smb_free(s);
        return e;
    }
    s->lost = false;
    *out = s;
    return ERR_OK;
}

enum err smb_connect_like(struct smb **out, const struct smb *like, struct err_info *info)
{
    return smb_connect(out, &like->options, info);
}

void smb_free(struct smb *s)
{
    if (!s)
        return;
    smb_context_release(s->ctx);
    explicit_bzero(&s->cred, sizeof(s->cred));
    free(s);
}
