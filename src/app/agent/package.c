#include "app/agent/package.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/files.h"

enum { TOOL_S = 120, OUTPUT = 64 * 1024, CONTROL = 16 * 1024, TREE_DEPTH = 16 };

bool package_version_ok(const char *version)
{
    static const char allowed[] = "0123456789abcdefghijklmnopqrstuvwxyz"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ.+~:_-";
    size_t n = strlen(version);

    return n > 0 && n < PACKAGE_VERSION && strspn(version, allowed) == n &&
           version[0] != '.' && version[0] != '-';
}

void package_file(const char *folder, const char *version, char out[PACKAGE_PATH])
{
    (void)snprintf(out, PACKAGE_PATH, "%s/%s.deb", folder, version);
}

/* Runs a tool of dpkg; its output in out. */
static enum err tool(struct worker *w, char *const argv[], char *out, size_t size,
                     struct err_info *info)
{
    struct command c = { argv, TOOL_S, out, size, true };
    int code = 0;
    enum err e = command_run(w, &c, &code, info);

    if (e == ERR_OK && code != 0)
        e = err_set(info, ERR_IO, 0, "%s ends with %d: %.120s", argv[0], code, out);
    return e;
}

static bool is_deb(const char *file)
{
    char magic[8] = "";
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, magic, sizeof(magic));

    if (fd >= 0)
        (void)close(fd);
    return n == sizeof(magic) && memcmp(magic, "!<arch>\n", sizeof(magic)) == 0;
}

/* A field of what `dpkg-deb --field` printed: "Name: value" lines. */
static void field_of(const char *text, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);

    out[0] = '\0';
    for (const char *at = text; at && *at; at = strchr(at, '\n'), at = at ? at + 1 : NULL)
        if (strncmp(at, name, n) == 0 && at[n] == ':') {
            at += n + 1;
            at += strspn(at, " ");
            (void)snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
            return;
        }
}

static enum err check_platform(struct worker *w, const char *platform,
                               struct err_info *info)
{
    char ours[128];
    char *argv[] = { (char[]){ "dpkg" }, (char[]){ "--print-architecture" }, NULL };

    if (strcmp(platform, "all") == 0)
        return ERR_OK;
    enum err e = tool(w, argv, ours, sizeof(ours), info);
    ours[strcspn(ours, "\n")] = '\0';
    if (e == ERR_OK && strcmp(platform, ours) != 0)
        e = err_set(info, ERR_INVALID, 0,
                    "the package is for the platform %.60s, and this device is %.60s",
                    platform, ours);
    return e;
}

enum err package_inspect(struct worker *w, const char *file, const char *name,
                         const char *version, struct err_info *info)
{
    static char fields[CONTROL];
    char path[PACKAGE_PATH], has[128], its_version[128], platform[128];
    char *argv[] = { (char[]){ "dpkg-deb" }, (char[]){ "--field" }, path, NULL };

    if (!is_deb(file))
        return ERR_OK; /* the upgrade command knows what it is */
    (void)snprintf(path, sizeof(path), "%s", file);
    enum err e = tool(w, argv, fields, sizeof(fields), info);
    if (e != ERR_OK)
        return e;
    field_of(fields, "Package", has, sizeof(has));
    field_of(fields, "Version", its_version, sizeof(its_version));
    field_of(fields, "Architecture", platform, sizeof(platform));
    if (strcmp(has, name) != 0 || strcmp(its_version, version) != 0)
        return err_set(info, ERR_INVALID, 0,
                       "the file is the package %.60s %.60s, not %.60s %.60s", has,
                       its_version, name, version);
    return check_platform(w, platform, info);
}

/* --- the way back ------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    (void)remove(path);
    return 0;
}

static void remove_tree(const char *path)
{
    (void)nftw(path, remove_one, TREE_DEPTH, FTW_DEPTH | FTW_PHYS);
}

/* Copies PATH below the tree, with its folders, as it is. */
static enum err copy_in(struct worker *w, const char *tree, const char *path,
                        struct err_info *info)
{
    char from[PACKAGE_PATH], to[PACKAGE_PATH], out[512];
    char *argv[] = { (char[]){ "cp" },
                     (char[]){ "--archive" },
                     (char[]){ "--parents" },
                     (char[]){ "--target-directory" },
                     to,
                     from,
                     NULL };

    (void)snprintf(from, sizeof(from), "%s", path);
    (void)snprintf(to, sizeof(to), "%s", tree);
    return tool(w, argv, out, sizeof(out), info);
}

/* What the package has installed: files and links; its configuration stays as it is. */
static enum err copy_files(struct worker *w, const char *tree, char *list,
                           struct err_info *info)
{
    enum err e = ERR_OK;
    char *save = NULL;

    for (char *path = strtok_r(list, "\n", &save); path && e == ERR_OK;
         path = strtok_r(NULL, "\n", &save)) {
        struct stat st;

        if (path[0] == '/' && strncmp(path, "/etc/", 5) != 0 && lstat(path, &st) == 0 &&
            !S_ISDIR(st.st_mode))
            e = copy_in(w, tree, path, info);
    }
    return e;
}

/* The control file, from what dpkg knows of the package. */
static enum err write_control(const char *tree, const char *status, struct err_info *info)
{
    static char text[CONTROL];
    char path[PACKAGE_PATH + 32];
    bool keep = true;
    struct text t;

    text_init(&t, text, sizeof(text));
    for (const char *at = status; *at;) {
        size_t n = strcspn(at, "\n");

        if (*at != ' ')
            keep = strncmp(at, "Status:", 7) != 0 && strncmp(at, "Conffiles:", 10) != 0;
        if (keep && n > 0) {
            text_bytes(&t, (struct str){ at, n });
            text_add(&t, "\n");
        }
        at += n + (at[n] == '\n');
    }
    (void)snprintf(path, sizeof(path), "%s/DEBIAN", tree);
    if (mkdir(path, 0755) != 0)
        return err_set(info, ERR_IO, errno, "%s", path);
    (void)snprintf(path, sizeof(path), "%s/DEBIAN/control", tree);
    enum err e = t.cut ? err_set(info, ERR_LIMIT, 0, "the control file is too long")
                       : file_store(path, (struct str){ t.p, t.n }, NULL, info);
    if (e == ERR_OK && chmod(path, 0644) != 0)
        e = err_set(info, ERR_IO, errno, "%s", path);
    return e;
}

/* postinst and its kind, which dpkg keeps. */
static enum err copy_scripts(struct worker *w, const char *tree, const char *name,
                             struct err_info *info)
{
    static const char *const kinds[] = { "preinst", "postinst", "prerm", "postrm" };
    char from[PACKAGE_PATH], to[PACKAGE_PATH + 32], out[512];
    char *argv[] = { (char[]){ "cp" }, (char[]){ "--preserve=mode" }, from, to, NULL };
    enum err e = ERR_OK;

    for (size_t i = 0; i < LEN(kinds) && e == ERR_OK; i++) {
        (void)snprintf(from, sizeof(from), "/var/lib/dpkg/info/%s.%s", name, kinds[i]);
        (void)snprintf(to, sizeof(to), "%s/DEBIAN/%s", tree, kinds[i]);
        if (access(from, F_OK) == 0)
            e = tool(w, argv, out, sizeof(out), info);
    }
    return e;
}

/* On the disk, or not there: after a power cut nobody has time to find out. */
static enum err sync_path(const char *path, int flags, struct err_info *info)
{
    int fd = open(path, flags | O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool ok = fd >= 0 && fsync(fd) == 0;
    enum err e = ok                ? ERR_OK
                 : errno == ENOSPC ? err_set(info, ERR_FULL, errno, "%s", path)
                                   : err_set(info, ERR_IO, errno, "%s", path);

    if (fd >= 0)
        (void)close(fd);
    return e;
}

static enum err build(struct worker *w, const char *folder, const char *tree,
                      const char *file, struct err_info *info)
{
    char fresh[PACKAGE_PATH + 32], from[PACKAGE_PATH], out[512];
    char *argv[] = { (char[]){ "dpkg-deb" },
                     (char[]){ "--root-owner-group" },
                     (char[]){ "-Zgzip" },
                     (char[]){ "--build" },
                     from,
                     fresh,
                     NULL };

    (void)snprintf(from, sizeof(from), "%s", tree);
    (void)snprintf(fresh, sizeof(fresh), "%s.new", tree);
    enum err e = tool(w, argv, out, sizeof(out), info);
    if (e == ERR_OK)
        e = sync_path(fresh, 0, info);
    if (e == ERR_OK && rename(fresh, file) != 0)
        e = err_set(info, ERR_IO, errno, "%s", file);
    return e == ERR_OK ? sync_path(folder, O_DIRECTORY, info) : e;
}

static enum err repack(struct worker *w, const char *folder, const char *name,
                       const char *version, const char *file, struct err_info *info)
{
    static char list[OUTPUT], status[CONTROL];
    char package[80], has[128], state[128], tree[PACKAGE_PATH];
    char *say_list[] = { (char[]){ "dpkg-query" }, (char[]){ "--listfiles" }, package,
                         NULL };
    char *say_status[] = { (char[]){ "dpkg-query" }, (char[]){ "--status" }, package,
                           NULL };

    (void)snprintf(package, sizeof(package), "%s", name);
    (void)snprintf(tree, sizeof(tree), "%s/tree", folder);
    remove_tree(tree);
    enum err e = tool(w, say_status, status, sizeof(status), info);
    if (e == ERR_OK) {
        field_of(status, "Version", has, sizeof(has));
        field_of(status, "Status", state, sizeof(state));
        if (strcmp(has, version) != 0 || strcmp(state, "install ok installed") != 0)
            e = err_set(info, ERR_STATE, 0, "dpkg has %.60s %.60s (%.60s)", name, has,
                        state);
    }
    if (e == ERR_OK)
        e = tool(w, say_list, list, sizeof(list), info);
    if (e == ERR_OK && mkdir(tree, 0755) != 0)
        e = err_set(info, ERR_IO, errno, "%s", tree);
    if (e == ERR_OK)
        e = copy_files(w, tree, list, info);
    if (e == ERR_OK)
        e = write_control(tree, status, info);
    if (e == ERR_OK)
        e = copy_scripts(w, tree, name, info);
    if (e == ERR_OK)
        e = build(w, folder, tree, file, info);
    remove_tree(tree);
    return e;
}

/* Is it what it says?  Of other kinds of packages than Debian's nobody here knows more than that
 * there is something in it. */
static bool is_sound(struct worker *w, const char *file, const char *name,
                     const char *version, const char *offered)
{
    struct err_info info = { 0 };
    struct stat st;

    if (stat(file, &st) != 0 || st.st_size == 0 || is_deb(file) != is_deb(offered))
        return false;
    return package_inspect(w, file, name, version, &info) == ERR_OK;
}

enum err package_way_back(struct worker *w, const char *folder, const char *name,
                          const char *version, const char *offered, struct err_info *info)
{
    char file[PACKAGE_PATH];
    struct err_info why = { 0 };

    package_file(folder, version, file);
    if (is_sound(w, file, name, version, offered))
        return ERR_OK;
    enum err e = repack(w, folder, name, version, file, &why);
    if (e != ERR_OK)
        return err_set(info, ERR_STATE, 0,
                       "there would be no way back: no package of version %.60s is at "
                       "hand (%.120s)",
                       version, why.what);
    return ERR_OK;
}

void package_keep_only(const char *folder, const char *one, const char *two)
{
    const char *const kept[] = { one, two };
    DIR *dir = opendir(folder);
    const struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        const char *dot = strrchr(d->d_name, '.');
        bool keep = !dot || strcmp(dot, ".deb") != 0;

        for (size_t i = 0; !keep && i < LEN(kept); i++)
            keep = strlen(kept[i]) == (size_t)(dot - d->d_name) &&
                   strncmp(d->d_name, kept[i], strlen(kept[i])) == 0;
        if (!keep)
            (void)unlinkat(dirfd(dir), d->d_name, 0);
    }
    if (dir)
        (void)closedir(dir);
}
