#include "sys/cvd/cvd_look.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum err look_init(struct look *l, const char *folder, uint32_t keep,
                   const struct fetch_options *o, struct err_info *info)
{
    *l = (struct look){ .folder = folder, .keep = keep };
    if (strlen(folder) + CVD_FILE_MAX + 32 > LOOK_PATH)
        return err_set(info, ERR_CONFIG, 0, "the name of the folder is too long");
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", folder);
    l->files = calloc(LOOK_FILES_MAX, sizeof(*l->files));
    if (!l->files)
        return err_set(info, ERR_MEMORY, ENOMEM, "look");
    enum err e = fetch_init(&l->fetch, o, info);
    if (e != ERR_OK)
        look_release(l);
    return e;
}

void look_release(struct look *l)
{
    fetch_release(&l->fetch);
    free(l->files);
    l->files = NULL;
}

static enum err check(struct look_file *f, struct err_info *info)
{
    struct err_info why = { .what = "" };
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s",
                       f->path);
    enum err e = cvd_check(fd, &f->name, &f->checked, &why);
    (void)close(fd); /* it was only read */
    return e == ERR_OK ? e : err_set(info, e, 0, "%s: %s", f->file, why.what);
}

/*
 * Fetches f, whose name is filled, as `remote`, and verifies it; the file stays only if it is
 * good.  A part of something else is found out so, and is fetched anew, once.
 */
static enum err get(struct look *l, struct look_file *f, const char *remote,
                    enum fetched *what, struct err_info *info)
{
    *what = FETCHED;
    enum err e = check(f, info);

    for (int tries = 0; e != ERR_OK && tries < 2; tries++) {
        (void)unlink(f->path);
        e = fetch_file(&l->fetch, remote, f->path, cvd_bytes_max(f->name.kind), what,
                       info);
        if (e != ERR_OK || *what != FETCHED)
            return e;
        e = check(f, info);
        if (e != ERR_CORRUPT)
            break;
    }
    if (e != ERR_OK)
        (void)unlink(f->path);
    return e;
}

/* A place for one more file, named; NULL: too many. */
static struct look_file *place(struct look *l, const struct cvd_file *name)
{
    struct look_file *f = l->count < LOOK_FILES_MAX ? &l->files[l->count] : NULL;

    if (!f)
        return NULL;
    *f = (struct look_file){ .name = *name };
    CHECK(cvd_file_print(name, f->file, sizeof(f->file)));
    (void)snprintf(f->path, sizeof(f->path), "%s/%s", l->folder, f->file);
    return f;
}

/* One that may be missing; *there says whether it is there and good. */
static enum err get_optional(struct look *l, const struct cvd_file *name, bool *there,
                             struct err_info *info)
{
    struct look_file *f = place(l, name);
    enum fetched what = FETCH_ABSENT;

    *there = false;
    if (!f)
        return ERR_OK;
    enum err e = get(l, f, f->file, &what, info);
    if (e == ERR_CORRUPT || e == ERR_LIMIT)
        return ERR_OK; /* clients would refuse it, and take the whole database */
    if (e == ERR_OK && what == FETCHED) {
        *there = true;
        l->count++;
    }
    return e;
}

/* The increments from `version` back, as far as they are there. */
static enum err get_chain(struct look *l, const char *name, uint32_t version,
                          uint32_t have, bool with_sign, struct err_info *info)
{
    struct cvd_file diff = { .kind = CVD_DIFF }, sign = { .kind = CVD_DIFF_SIGN };
    uint32_t most = have > 0 ? version - have : LOOK_CHAIN_FIRST;
    bool there = true, signed_ = false;
    enum err e = ERR_OK;

    (void)snprintf(diff.name, sizeof(diff.name), "%s", name);
    (void)snprintf(sign.name, sizeof(sign.name), "%s", name);
    if (most > l->keep)
        most = l->keep;
    for (uint32_t i = 0; e == ERR_OK && there && i < most && i + 1 < version; i++) {
        diff.version = sign.version = version - i;
        e = get_optional(l, &diff, &there, info);
        if (e == ERR_OK && there && with_sign)
            e = get_optional(l, &sign, &signed_, info);
    }
    return e;
}

/* The database itself.  Its file has its version in the name: a part of another one is not
 * gone on with. */
static enum err get_database(struct look *l, const char *name, uint32_t version,
                             struct err_info *info)
{
    struct cvd_file n = { .kind = CVD_DATABASE };
    enum fetched what = FETCHED;

    (void)snprintf(n.name, sizeof(n.name), "%s", name);
    struct look_file *f = place(l, &n);
    if (!f)
        return err_set(info, ERR_LIMIT, 0, "too many files");
    (void)snprintf(f->path, sizeof(f->path), "%s/%s-%u.cvd", l->folder, name, version);
    enum err e = get(l, f, f->file, &what, info);
    if (e != ERR_OK)
        return e;
    if (what != FETCHED || f->checked.head.version != version) {
        (void)unlink(f->path);
        return err_set(info, ERR_IO, 0, "%s changed while it was fetched", f->file);
    }
    l->count++;
    return ERR_OK;
}

enum err look_database(struct look *l, const char *name, uint32_t version, uint64_t built,
                       struct err_info *info)
{
    struct cvd_file sign = { .kind = CVD_DATABASE_SIGN };
    char file[CVD_FILE_MAX], bytes[CVD_HEADER];
    enum fetched what = FETCHED;
    struct cvd head;
    bool there = false;

    (void)snprintf(file, sizeof(file), "%s.cvd", name);
    (void)snprintf(sign.name, sizeof(sign.name), "%s", name);
    enum err e = fetch_head(&l->fetch, file, version > 0 ? built : 0, bytes, &what, info);
    if (e != ERR_OK || what == FETCH_SAME)
        return e;
    if (what == FETCH_ABSENT)
        return err_set(info, ERR_NOT_FOUND, 0, "the source has no %s", file);
    if (cvd_header((struct str){ bytes, sizeof(bytes) }, &head) != ERR_OK)
        return err_set(info, ERR_CORRUPT, 0,
                       "%s: what the source gives is no signature database", file);
    if (head.version <= version)
        return ERR_OK; /* a source that is behind is seen by the age */
    e = get_database(l, name, head.version, info);
    sign.version = head.version;
    if (e == ERR_OK)
        e = get_optional(l, &sign, &there, info);
    if (e == ERR_OK)
        e = get_chain(l, name, head.version, version, there, info);
    return e;
}

void look_clean(const char *folder, uint64_t older_s)
{
    DIR *dir = opendir(folder);
    const struct dirent *d;
    time_t now = time(NULL);
    struct stat st;

    while (dir && (d = readdir(dir)) != NULL) {
        if (d->d_name[0] == '.' ||
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(st.st_mode) || (older_s > 0 && now - st.st_mtime < (time_t)older_s))
            continue;
        (void)unlinkat(dirfd(dir), d->d_name, 0); /* next time, then */
    }
    if (dir)
        (void)closedir(dir);
}
