/*
 * tree: the folders and links that the Web Server serves.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/mirror/mirror.h"

enum {
    KEEP_S = 3600, /* a replaced tree, for downloads that go on */
    KEEP_MAX = 4,
    LOOK_EACH = 256, /* links */
    DEPTH_MAX = PUBLICATION_NAMES_MAX + 2,
};

static int open_folder(int at, const char *name)
{
    return openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
}

static int open_trees(const char *store)
{
    char path[MIRROR_PATH];

    if (snprintf(path, sizeof(path), "%s/tree", store) >= (int)sizeof(path))
        return -1;
    return open_folder(AT_FDCWD, path);
}

/* The name of the tree that current leads to; false: none. */
static bool current_name(const char *store, char out[MIRROR_TREE_NAME])
{
    char path[MIRROR_PATH], link[MIRROR_TREE_NAME + 8];

    if (snprintf(path, sizeof(path), "%s/current", store) >= (int)sizeof(path))
        return false;
    const ssize_t n = readlink(path, link, sizeof(link) - 1);

    if (n < 0 || n >= (ssize_t)sizeof(link) - 1)
        return false;
    link[n] = '\0';
    return strncmp(link, "tree/", 5) == 0 && !strchr(link + 5, '/') &&
           str_copy(out, MIRROR_TREE_NAME, str_of(link + 5));
}

static bool link_is(int at, const char *path, const char *want)
{
    char is[PUBLICATION_LINK_BYTES + 1];
    const ssize_t n = readlinkat(at, path, is, sizeof(is));

    return n == (ssize_t)strlen(want) && memcmp(is, want, (size_t)n) == 0;
}

static void entry_text(const struct publication_entry *e,
                       char path[PUBLICATION_PATH_BYTES],
                       char link[PUBLICATION_LINK_BYTES])
{
    const bool fits = str_copy(path, PUBLICATION_PATH_BYTES, e->path);

    CHECK(fits); /* publication_path_ok() saw to it */
    publication_link(link, e);
}

bool tree_is_laid(const char *store, const struct list *l)
{
    char now[MIRROR_TREE_NAME], path[PUBLICATION_PATH_BYTES],
        link[PUBLICATION_LINK_BYTES];
    bool whole = true;

    if (!current_name(store, now) || strcmp(now, l->name) != 0)
        return false;
    const int trees = open_trees(store), at = trees < 0 ? -1 : open_folder(trees, now);

    for (uint32_t i = 0; at >= 0 && whole && i < l->head.count; i++) {
        entry_text(&l->entries[i], path, link);
        whole = link_is(at, path, link);
    }
    whole = whole && at >= 0;
    if (at >= 0)
        (void)close(at);
    if (trees >= 0)
        (void)close(trees);
    return whole;
}

static enum err make_folders(int at, char *path, struct err_info *info)
{
    for (char *p = path; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        const int rc = mkdirat(at, path, 0755), sys = errno;

        if (rc < 0 && sys != EEXIST)
            return err_set(info, sys == ENOSPC ? ERR_FULL : ERR_IO, sys, "make %s", path);
        *p = '/';
    }
    return ERR_OK;
}

static enum err make_link(int at, const struct publication_entry *e,
                          struct err_info *info)
{
    char path[PUBLICATION_PATH_BYTES], link[PUBLICATION_LINK_BYTES];

    entry_text(e, path, link);
    if (link_is(at, path, link))
        return ERR_OK;
    const enum err made = make_folders(at, path, info);

    if (made != ERR_OK)
        return made;
    (void)unlinkat(at, path, 0); /* left over, and not what it should be */
    if (symlinkat(link, at, path) < 0)
        return err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "link %s", path);
    return ERR_OK;
}

/* From now on it is the one that was replaced at this time: see tree_prune(). */
static void date(const char *store, int trees)
{
    char now[MIRROR_TREE_NAME];

    if (current_name(store, now))
        (void)utimensat(trees, now, NULL, 0); /* or it goes sooner */
}

static enum err show(const char *store, const struct list *l, struct err_info *info)
{
    char fresh[MIRROR_PATH], path[MIRROR_PATH], target[MIRROR_TREE_NAME + 8];

    (void)snprintf(target, sizeof(target), "tree/%s", l->name);
    if (snprintf(fresh, sizeof(fresh), "%s/current.new", store) >= (int)sizeof(fresh) ||
        snprintf(path, sizeof(path), "%s/current", store) >= (int)sizeof(path))
        return err_set(info, ERR_LIMIT, 0, "%.100s: the path is too long", store);
    (void)unlink(fresh);
    if (symlink(target, fresh) < 0 || rename(fresh, path) < 0)
        return err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "%s", path);
    return ERR_OK;
}

enum err tree_lay(const char *store, const struct list *l, struct err_info *info)
{
    const int trees = open_trees(store);
    enum err e = ERR_OK;

    if (trees < 0)
        return err_set(info, ERR_IO, errno, "%.100s/tree", store);
    if (mkdirat(trees, l->name, 0755) < 0 && errno != EEXIST)
        e = err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "make tree/%s",
                    l->name);
    const int at = e == ERR_OK ? open_folder(trees, l->name) : -1;

    if (e == ERR_OK && at < 0)
        e = err_set(info, ERR_IO, errno, "tree/%s", l->name);
    for (uint32_t i = 0; e == ERR_OK && i < l->head.count; i++)
        e = make_link(at, &l->entries[i], info);
    if (e == ERR_OK && syncfs(trees) < 0) /* all of it before anybody is led there */
        e = err_set(info, ERR_IO, errno, "write %.100s to the disk", store);
    if (e == ERR_OK)
        date(store, trees);
    if (e == ERR_OK)
        e = show(store, l, info);
    if (at >= 0)
        (void)close(at);
    (void)close(trees);
    return e;
}

/* ---- what was shown before ---- */

typedef bool each_link(void *arg, int at, const char *name); /* true: enough */

/* Every link below the folder `name` of at, in no order; the depth is bounded. */
static bool walk(int at, const char *name, int depth, each_link *each, void *arg)
{
    const int fd = depth > 0 ? open_folder(at, name) : -1;
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *e;
    bool enough = false;

    if (!d) {
        if (fd >= 0)
            (void)close(fd);
        return false;
    }
    while (!enough && (e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        struct stat st;

        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        enough = S_ISDIR(st.st_mode) ? walk(fd, e->d_name, depth - 1, each, arg)
                                     : each(arg, fd, e->d_name);
    }
    (void)closedir(d);
    return enough;
}

static int by_digest(const void *a, const void *b)
{
    return strcmp(((const struct blob_id *)a)->hex, ((const struct blob_id *)b)->hex);
}

/* true, which ends the walk: no memory. */
static bool note_digest(void *arg, int at, const char *name)
{
    struct tree_needs *t = arg;
    char link[PUBLICATION_LINK_BYTES + 1];
    const ssize_t n = readlinkat(at, name, link, sizeof(link) - 1);
    struct blob_id id;

    if (t->looked++ % LOOK_EACH == 0)
        t->meanwhile(t->arg);
    if (n < PUBLICATION_DIGEST ||
        !blob_id_parse(&id,
                       (struct str){ link + n - PUBLICATION_DIGEST, PUBLICATION_DIGEST }))
        return false;
    if (t->count == t->room) {
        const size_t room = t->room ? t->room * 2 : 1024;
        struct blob_id *more = reallocarray(t->id, room, sizeof(*more));

        if (!more)
            return true;
        t->id = more;
        t->room = room;
    }
    t->id[t->count++] = id;
    return false;
}

bool tree_needs_all(const char *store, struct tree_needs *t)
{
    const int trees = open_trees(store);
    const bool known = trees >= 0 && !walk(trees, ".", DEPTH_MAX, note_digest, t);

    if (trees >= 0)
        (void)close(trees);
    if (known && t->count > 0)
        qsort(t->id, t->count, sizeof(*t->id), by_digest);
    return known;
}

bool tree_needs_it(const struct tree_needs *t, const struct blob_id *id)
{
    return t->count > 0 && bsearch(id, t->id, t->count, sizeof(*t->id), by_digest);
}

static bool remove_link(void *arg, int at, const char *name)
{
    (void)arg;
    (void)unlinkat(at, name, 0);
    return false;
}

/* The folders of a tree whose links are gone, from below. */
static void remove_folders(int at, const char *name, int depth)
{
    const int fd = depth > 0 ? open_folder(at, name) : -1;
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *e;

    if (!d) {
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    while ((e = readdir(d)) != NULL)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            remove_folders(fd, e->d_name, depth - 1);
    (void)closedir(d);
    (void)unlinkat(at, name, AT_REMOVEDIR);
}

struct tree {
    char name[MIRROR_TREE_NAME];
    uint64_t replaced_s;
};

static int newest_first(const void *a, const void *b)
{
    const struct tree *x = a, *y = b;

    return (x->replaced_s < y->replaced_s) - (x->replaced_s > y->replaced_s);
}

/* Up to max trees that are not shown. */
static size_t others(int trees, const char *shown, struct tree *out, size_t max)
{
    DIR *d = fdopendir(dup(trees));
    const struct dirent *e;
    size_t n = 0;

    if (!d)
        return 0;
    rewinddir(d);
    while (n < max && (e = readdir(d)) != NULL) {
        struct stat st;

        if (e->d_name[0] == '.' || strcmp(e->d_name, shown) == 0 ||
            !str_copy(out[n].name, sizeof(out[n].name), str_of(e->d_name)) ||
            fstatat(trees, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        out[n++].replaced_s = st.st_mtim.tv_sec > 0 ? (uint64_t)st.st_mtim.tv_sec : 0;
    }
    (void)closedir(d);
    return n;
}

void tree_prune(const char *store, uint64_t now_s)
{
    struct tree list[64];
    char shown[MIRROR_TREE_NAME];
    const int trees = current_name(store, shown) ? open_trees(store) : -1;

    if (trees < 0)
        return;
    const size_t n = others(trees, shown, list, LEN(list));

    qsort(list, n, sizeof(list[0]), newest_first);
    for (size_t i = 0; i < n; i++) {
        /* A clock that was set back does not keep them for ever. */
        const bool fresh =
            list[i].replaced_s <= now_s && now_s - list[i].replaced_s < KEEP_S;

        if (i < KEEP_MAX && fresh)
            continue;
        (void)walk(trees, list[i].name, DEPTH_MAX, remove_link, NULL);
        remove_folders(trees, list[i].name, DEPTH_MAX);
    }
    (void)close(trees);
}

/* ---- the store itself ---- */

/* The group of the program that serves the files. */
static bool web_group(const struct conf *conf, gid_t *out)
{
    const char *user = conf_web_user(conf);
    const struct passwd *pw = user ? getpwnam(user) : NULL;

    if (pw)
        *out = pw->pw_gid;
    return pw != NULL;
}

enum err tree_prepare(const struct conf *conf, struct err_info *info)
{
    const char *store = conf->web.store;
    char path[MIRROR_PATH];
    gid_t group;

    if (mkdir(store, 0750) < 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", store);
    /* What is private is not for every user of this computer. */
    if (web_group(conf, &group) && chown(store, (uid_t)-1, group) == 0)
        (void)chmod(store, 0750);
    const enum err e = blob_local_prepare(store, info);

    if (e != ERR_OK)
        return e;
    if (snprintf(path, sizeof(path), "%s/tree", store) >= (int)sizeof(path))
        return err_set(info, ERR_LIMIT, 0, "%.100s: the path is too long", store);
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", path);
    return ERR_OK;
}
