#include "fault/sandbox.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/supervisor/cgroup.h"

static struct cgroup outside = { .dir = -1, .events = -1 };

bool sandbox_enter(struct sandbox *b)
{
    struct err_info info = { 0 };
    struct cgroup own;
    char name[64];
    enum err e = ERR_OK;

    if (getuid() != 0) {
        (void)printf("1..0 # SKIP needs root, for control groups\n");
        return false;
    }
    (void)snprintf(name, sizeof(name), "redoubt-test-%d", (int)getpid());
    (void)snprintf(b->run, sizeof(b->run), "/tmp/%s", name);
    e = cgroup_own(&outside, &info);
    if (!e)
        e = cgroup_open(&own, &outside, name, &info);
    if (e) {
        (void)printf("1..0 # SKIP no cgroup v2 to write to: %s\n", info.what);
        return false;
    }
    (void)snprintf(b->group, sizeof(b->group), "%.250s", own.path);
    e = cgroup_write(&own, "cgroup.procs", "0", &info);
    cgroup_release(&own);
    if (e || mkdir(b->run, 0755) != 0) {
        (void)printf("1..0 # SKIP %s\n", e ? info.what : strerror(errno));
        (void)rmdir(b->group);
        return false;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    return true;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

void sandbox_leave(struct sandbox *b)
{
    char path[SANDBOX_BYTES + 16];

    (void)!cgroup_write(&outside, "cgroup.procs", "0", NULL);
    cgroup_remove(&outside, strrchr(b->group, '/') + 1);
    cgroup_release(&outside);
    (void)snprintf(path, sizeof(path), "%s", b->run);
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void sandbox_sibling(char *out, size_t size, const char *name)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    CHECK(n > 0);
    self[n] = '\0';
    *strrchr(self, '/') = '\0';
    CHECK(snprintf(out, size, "%s/%s", self, name) < (int)size);
}
