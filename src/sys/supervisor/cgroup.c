#include "sys/supervisor/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOUNTS_BYTES = 256 * 1024, SMALL_BYTES = 8192 };

static ssize_t read_file(int dir, const char *name, char *buf, size_t size)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    size_t used = 0;

    if (fd < 0)
        return -1;
    while (used < size - 1) {
        ssize_t n = read(fd, buf + used, size - 1 - used);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    (void)close(fd);
    buf[used] = '\0';
    return (ssize_t)used;
}

/* Cuts the text up to `end` off s; the rest of s follows it. */
static struct str cut(struct str *s, char end)
{
    const char *at = s->n ? memchr(s->p, end, s->n) : NULL;
    struct str head = { s->p, at ? (size_t)(at - s->p) : s->n };

    s->p += at ? head.n + 1 : head.n;
    s->n -= at ? head.n + 1 : head.n;
    return head;
}

struct str cgroup_member(struct str text)
{
    while (text.n > 0) {
        struct str line = cut(&text, '\n');

        if (str_starts(line, STR("0::/")))
            return (struct str){ line.p + 3, line.n - 3 };
    }
    return (struct str){ NULL, 0 };
}

/* proc(5): 36 35 98:0 /root /mount/point options [optional fields] - type source options
 */
static bool mount_line(struct str line, struct str *root, struct str *point)
{
    struct str field = { NULL, 0 };

    for (int i = 0; i < 5; i++) {
        field = cut(&line, ' ');
        if (i == 3)
            *root = field;
    }
    *point = field;
    while (line.n > 0)
        if (str_is(cut(&line, ' '), "-"))
            return str_is(cut(&line, ' '), "cgroup2");
    return false;
}

bool cgroup_of_mounts(struct str mountinfo, struct str member, char *path, size_t size)
{
    while (mountinfo.n > 0) {
        struct str root, point, rest = member;
        struct text t;

        if (!mount_line(cut(&mountinfo, '\n'), &root, &point))
            continue;
        if (!str_is(root, "/")) {
            if (!str_starts(member, root) ||
                (member.n > root.n && member.p[root.n] != '/'))
                continue;
            rest = (struct str){ member.p + root.n, member.n - root.n };
        }
        text_init(&t, path, size);
        text_bytes(&t, point);
        if (!str_is(rest, "/"))
            text_bytes(&t, rest);
        return !t.cut;
    }
    return false;
}

static enum err open_at(struct cgroup *out, int at, const char *name,
                        struct err_info *info)
{
    int dir = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (dir < 0)
        return err_set(info, ERR_IO, errno, "open the cgroup %s", out->path);
    out->dir = dir;
    out->events = openat(dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
    return ERR_OK;
}

enum err cgroup_own(struct cgroup *out, struct err_info *info)
{
    struct cgroup g = { .dir = -1, .events = -1 };
    char self[SMALL_BYTES];
    char *mounts = malloc(MOUNTS_BYTES);
    struct str member;
    enum err e = ERR_UNSUPPORTED;

    if (!mounts)
        return err_set(info, ERR_MEMORY, 0, "no memory to read the mounts");
    if (read_file(AT_FDCWD, "/proc/self/cgroup", self, sizeof(self)) < 0 ||
        read_file(AT_FDCWD, "/proc/self/mountinfo", mounts, MOUNTS_BYTES) < 0) {
        e = err_set(info, ERR_IO, errno, "read /proc/self: is /proc mounted?");
        goto out;
    }
    member = cgroup_member(str_of(self));
    if (!member.p || !str_copy(g.member, sizeof(g.member), member) ||
        !cgroup_of_mounts(str_of(mounts), member, g.path, sizeof(g.path))) {
        e = err_set(info, e, 0,
                    "no cgroup v2 is mounted that shows this process: "
                    "mount -t cgroup2 none /sys/fs/cgroup");
        goto out;
    }
    e = open_at(&g, AT_FDCWD, g.path, info);
    if (!e)
        *out = g;
out:
    free(mounts);
    return e;
}

enum err cgroup_open(struct cgroup *out, const struct cgroup *parent, const char *name,
                     struct err_info *info)
{
    struct cgroup g = { .dir = -1, .events = -1 };
    struct text path, member;

    text_init(&path, g.path, sizeof(g.path));
    text_add(&path, "%s/%s", parent->path, name);
    text_init(&member, g.member, sizeof(g.member));
    text_add(&member, "%s/%s", strcmp(parent->member, "/") == 0 ? "" : parent->member,
             name);
    if (path.cut || member.cut)
        return err_set(info, ERR_LIMIT, 0, "the cgroup path %s is too long", g.path);
    if (mkdirat(parent->dir, name, 0755) != 0 && errno != EEXIST)
        return err_set(info, errno == EACCES || errno == EPERM ? ERR_DENIED : ERR_IO,
                       errno, "make the cgroup %s", g.path);
    enum err e = open_at(&g, parent->dir, name, info);
    if (e)
        return e;
    if (g.events < 0 || faccessat(g.dir, "cgroup.kill", W_OK, 0) != 0) {
        e = err_set(info, ERR_UNSUPPORTED, errno,
                    "%s has no cgroup.kill: Linux 5.14 or later is needed", g.path);
        cgroup_release(&g);
        return e;
    }
    *out = g;
    return ERR_OK;
}

void cgroup_release(struct cgroup *g)
{
    if (g->events >= 0)
        (void)close(g->events);
    if (g->dir >= 0)
        (void)close(g->dir);
    g->dir = g->events = -1;
}

enum err cgroup_write(const struct cgroup *g, const char *name, const char *text,
                      struct err_info *info)
{
    int fd = openat(g->dir, name, O_WRONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));
    int e = errno;

    if (fd >= 0)
        (void)close(fd);
    if (n < 0)
        return err_set(info, ERR_IO, e, "write \"%s\" to %s/%s", text, g->path, name);
    return ERR_OK;
}

enum err cgroup_kill(const struct cgroup *g, struct err_info *info)
{
    return cgroup_write(g, "cgroup.kill", "1", info);
}

bool cgroup_populated(const struct cgroup *g)
{
    char buf[256];
    ssize_t n = pread(g->events, buf, sizeof(buf) - 1, 0);

    if (n < 0)
        return true;
    buf[n] = '\0';
    return strstr(buf, "populated 0") == NULL;
}

enum err cgroup_empty(const struct cgroup *g, uint32_t limit_ms, struct err_info *info)
{
    enum err e = cgroup_kill(g, info);

    if (e)
        return e;
    for (uint32_t waited = 0; cgroup_populated(g); waited++) {
        struct pollfd p = { .fd = g->events, .events = POLLPRI };

        if (waited >= limit_ms)
            return err_set(info, ERR_TIMEOUT, 0,
                           "processes in %s do not end although killed "
                           "(waiting for a disk or a file server?)",
                           g->path);
        (void)poll(&p, 1, 1);
        if (p.revents)
            (void)usleep(1000); /* the event stays until it is read: do not spin */
    }
    return ERR_OK;
}

void cgroup_remove(const struct cgroup *parent, const char *name)
{
    int fd = openat(parent->dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;

    if (!dir) {
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    while ((entry = readdir(dir)))
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            (void)unlinkat(fd, entry->d_name, AT_REMOVEDIR);
    (void)closedir(dir);
    (void)unlinkat(parent->dir, name, AT_REMOVEDIR);
}

bool cgroup_has(const struct cgroup *g, pid_t pid)
{
    char path[64], buf[SMALL_BYTES];
    struct str member;
    size_t n = strlen(g->member);

    (void)snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
    if (read_file(AT_FDCWD, path, buf, sizeof(buf)) < 0)
        return false;
    member = cgroup_member(str_of(buf));
    return member.p && str_starts(member, str_of(g->member)) &&
           (member.n == n || member.p[n] == '/');
}

size_t cgroup_pids(const struct cgroup *g, pid_t *pids, size_t max)
{
    char buf[SMALL_BYTES];
    size_t count = 0;
    uint64_t pid;

    if (read_file(g->dir, "cgroup.procs", buf, sizeof(buf)) < 0)
        return 0;
    /* Whole lines only: the last one may have been cut by the buffer's end. */
    const char *end = strrchr(buf, '\n');
    struct str text = { buf, end ? (size_t)(end - buf) : 0 };
    while (text.n > 0 && count < max)
        if (str_u64(cut(&text, '\n'), INT32_MAX, &pid) && pid > 0)
            pids[count++] = (pid_t)pid;
    return count;
}
