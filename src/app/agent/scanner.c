/*
 * scanner: walks trees and has clamd look at what it finds.
 *
 * Files are opened here and passed as descriptors, so clamd needs no rights of its own, and
 * what was scanned is what is quarantined.  No link is followed, nothing but regular files
 * is opened, and a file that changes or vanishes is nothing special.  First the files are
 * counted, for the percent; then they are scanned.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/worker.h"
#include "core/scan/exclude.h"
#include "core/scan/pace.h"
#include "sys/clamav/session.h"

enum {
    DEPTH_MAX = 100,
    SLOTS_MAX = 16,
    TRIES_MAX = 3, /* a file that makes clamd end so often is left alone */
    ANSWER_S = 600,
    ENGINE_WAIT_S = 600, /* for a clamd that is away: it may load its database */
    COUNT_S = 20,
    TELL_MS = 500,
    PACE_WINDOW_US = 2000000,
};

struct slot {
    bool used;
    uint32_t number; /* of the question; 0: to be asked (again) */
    unsigned tries;
    int fd;
    struct stat st;
    uint64_t asked_us;
    char path[QUARANTINE_PATH_MAX];
};

struct scan {
    struct worker *w;
    const json_t *job;
    struct clamav_session *session;
    struct slot slots[SLOTS_MAX];
    unsigned slot_count;
    uint64_t total, scanned, bytes, found, cured, skipped, errors;
    uint64_t told_us, mark_us, mark_cpu_us;
    uint64_t max_bytes;
    uint32_t cpu_percent;
    bool one_filesystem, told_paused;
    enum err failed; /* why the scan cannot go on */
    struct err_info why;
};

/* ---- telling ---- */

static json_t *counts(const struct scan *s)
{
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "scanned", (json_int_t)s->scanned,
                     "found", (json_int_t)s->found, "cured", (json_int_t)s->cured,
                     "skipped", (json_int_t)s->skipped, "errors", (json_int_t)s->errors,
                     "bytes", (json_int_t)s->bytes, "total", (json_int_t)s->total);
}

static void tell(struct scan *s)
{
    uint64_t now = worker_now_us();

    if (now - s->told_us < TELL_MS * 1000u && s->told_paused == s->w->paused)
        return;
    s->told_us = now;
    s->told_paused = s->w->paused;
    worker_tell(
        json_pack("{s:s,s:s,s:I,s:o}", "t", "progress", "state",
                  s->w->paused ? "paused" : "running", "percent",
                  (json_int_t)pace_percent(s->scanned + s->skipped + s->errors, s->total),
                  "counts", counts(s)));
}

static bool over(const struct scan *s)
{
    return s->w->cancelled || s->failed != ERR_OK;
}

/* ---- processor time ---- */

static uint64_t own_cpu_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* What clamd has used, others included; 0 if it cannot be told. */
static uint64_t engine_cpu_us(const struct scan *s)
{
    char path[64], buf[1024];
    unsigned long long user = 0, kernel = 0;

    if (!s->session || clamav_session_pid(s->session) <= 0)
        return 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/stat",
                   (int)clamav_session_pid(s->session));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
    if (fd >= 0)
        (void)close(fd);
    if (n <= 0)
        return 0;
    buf[n] = '\0';
    const char *at = strrchr(buf, ')'); /* the name may hold anything */
    if (!at || sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu",
                      &user, &kernel) != 2)
        return 0;
    return (user + kernel) * 1000000u / (unsigned long long)sysconf(_SC_CLK_TCK);
}

static void mark(struct scan *s)
{
    s->mark_us = worker_now_us();
    s->mark_cpu_us = own_cpu_us() + engine_cpu_us(s);
}

/* Rests so long that the scan and clamd keep to their share of a processor. */
static void rest(struct scan *s)
{
    uint64_t now = worker_now_us(), cpu = own_cpu_us() + engine_cpu_us(s);
    uint64_t used = cpu > s->mark_cpu_us ? cpu - s->mark_cpu_us : 0;
    uint32_t ms = pace_rest_ms(now - s->mark_us, used, s->cpu_percent);

    if (ms >= 20) {
        worker_listen(s->w, ms);
        tell(s);
    }
    if (worker_now_us() - s->mark_us > PACE_WINDOW_US)
        mark(s);
}

/* ---- clamd ---- */

static void slot_free(struct slot *slot)
{
    (void)close(slot->fd);
    slot->used = false;
}

static void lost_session(struct scan *s)
{
    clamav_session_close(s->session);
    s->session = NULL;
    for (unsigned i = 0; i < s->slot_count; i++) {
        struct slot *slot = &s->slots[i];

        if (!slot->used || slot->number == 0)
            continue;
        slot->number = 0;
        if (++slot->tries >= TRIES_MAX) {
            s->errors++;
            slot_free(slot);
        }
    }
}

/* Waits for clamd, which may be restarting. */
static bool have_session(struct scan *s)
{
    uint64_t end = worker_now_us() + ENGINE_WAIT_S * 1000000ull;

    while (!s->session && !over(s)) {
        if (clamav_session_open(job_text(s->job, "clamd"), &s->session, &s->why) ==
            ERR_OK) {
            mark(s);
            return true;
        }
        if (worker_now_us() > end)
            s->failed = ERR_IO;
        worker_listen(s->w, 300);
        tell(s);
    }
    return s->session != NULL;
}

static void ask(struct scan *s, struct slot *slot)
{
    enum err e = clamav_session_ask(s->session, slot->fd, &slot->number, NULL);

    if (e == ERR_OK)
        slot->asked_us = worker_now_us();
    else if (e != ERR_TIMEOUT)
        lost_session(s);
}

static void take_verdict(struct scan *s, struct slot *slot, const struct clamd_verdict *v)
{
    switch (v->found) {
    case CLAMD_CLEAN:
        s->scanned++;
        s->bytes += (uint64_t)slot->st.st_size;
        break;
    case CLAMD_ERROR: s->errors++; break;
    case CLAMD_FOUND:
    case CLAMD_LIMITED: {
        enum cure c = cure_found(s->w, slot->path, slot->fd, &slot->st, v->text, "scan");

        s->scanned++;
        s->found += c != CURE_ALLOWED;
        s->cured += c == CURE_DONE;
        break;
    }
    }
    slot_free(slot);
}

static void take_answers(struct scan *s)
{
    struct clamd_verdict v;
    uint32_t number = 1;

    while (s->session && number != 0) {
        if (clamav_session_answer(s->session, &number, &v, NULL) != ERR_OK) {
            lost_session(s);
            return;
        }
        for (unsigned i = 0; number != 0 && i < s->slot_count; i++)
            if (s->slots[i].used && s->slots[i].number == number)
                take_verdict(s, &s->slots[i], &v);
    }
}

static bool any_overdue(const struct scan *s)
{
    uint64_t now = worker_now_us();

    for (unsigned i = 0; i < s->slot_count; i++)
        if (s->slots[i].used && s->slots[i].number != 0 &&
            now - s->slots[i].asked_us > ANSWER_S * 1000000ull)
            return true;
    return false;
}

/* Asks what is to be asked and takes what is answered, waiting at most ms. */
static void pump(struct scan *s, int ms)
{
    if (!have_session(s))
        return;
    for (unsigned i = 0; i < s->slot_count && s->session; i++)
        if (s->slots[i].used && s->slots[i].number == 0)
            ask(s, &s->slots[i]);
    if (!s->session)
        return;
    struct pollfd p[2] = { { .fd = clamav_session_fd(s->session), .events = POLLIN },
                           { .fd = CHANNEL_FD, .events = POLLIN } };
    if (poll(p, 2, ms) > 0 && p[1].revents)
        worker_listen(s->w, 0);
    take_answers(s);
    if (any_overdue(s))
        lost_session(s);
    tell(s);
}

static unsigned in_flight(const struct scan *s)
{
    unsigned n = 0;

    for (unsigned i = 0; i < s->slot_count; i++)
        n += s->slots[i].used;
    return n;
}

static void wait_all(struct scan *s)
{
    while (!over(s) && in_flight(s) > 0)
        pump(s, 200);
}

/* While the administrator wants it to pause. */
static void pause_here(struct scan *s)
{
    if (!s->w->paused)
        return;
    wait_all(s);
    s->told_us = 0; /* now it stands still: say so at once */
    while (s->w->paused && !over(s)) {
        tell(s);
        worker_listen(s->w, 1000);
    }
    mark(s);
}

static struct slot *free_slot(struct scan *s)
{
    while (!over(s)) {
        for (unsigned i = 0; i < s->slot_count; i++)
            if (!s->slots[i].used)
                return &s->slots[i];
        pump(s, 200);
    }
    return NULL;
}

/* ---- files ---- */

static int open_file(int folder, const char *name)
{
    int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    int fd = openat(folder, name, flags | O_NOATIME);

    return fd < 0 && errno == EPERM ? openat(folder, name, flags) : fd;
}

static void scan_file(struct scan *s, int folder, const char *name, const char *path)
{
    struct slot *slot = free_slot(s);
    struct stat st;

    if (!slot)
        return;
    int fd = open_file(folder, name);
    if (fd < 0) {
        s->errors += errno != ENOENT && errno != ELOOP; /* vanished, or a link now */
        return;
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        (void)close(fd);
        return;
    }
    if (st.st_size == 0 || (uint64_t)st.st_size > s->max_bytes) {
        s->scanned += st.st_size == 0;
        s->skipped += st.st_size != 0;
        (void)close(fd);
        return;
    }
    *slot = (struct slot){ .used = true, .fd = fd, .st = st };
    (void)snprintf(slot->path, sizeof(slot->path), "%s", path);
    pump(s, 0);
    rest(s);
    pause_here(s);
}

static void count_file(struct scan *s, int folder, const char *name, const char *path)
{
    (void)folder, (void)name, (void)path;
    s->total++;
}

/* ---- the walk ---- */

typedef void on_file(struct scan *s, int folder, const char *name, const char *path);

struct walk {
    struct scan *s;
    on_file *visit;
    uint64_t end_us; /* 0: no limit */
    dev_t root;
    unsigned depth;
    struct {
        DIR *dir;
        size_t length; /* of its path */
        dev_t dev;
    } at[DEPTH_MAX];
    size_t n;
    char path[QUARANTINE_PATH_MAX];
};

static bool is_excluded(const struct scan *s, const char *path)
{
    const json_t *list = json_object_get(s->job, "exclude"), *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const char *pattern = json_string_value(one);

        if (pattern && exclude_match(str_of(pattern), str_of(path)))
            return true;
    }
    return false;
}

/* File systems that hold no files of anybody. */
static bool is_pseudo(int fd)
{
    static const long kinds[] = {
        PROC_SUPER_MAGIC,
        SYSFS_MAGIC,
        DEVPTS_SUPER_MAGIC,
        CGROUP_SUPER_MAGIC,
        CGROUP2_SUPER_MAGIC,
        DEBUGFS_MAGIC,
        TRACEFS_MAGIC,
        SECURITYFS_MAGIC,
        BPF_FS_MAGIC,
        EFIVARFS_MAGIC,
        PSTOREFS_MAGIC,
        NSFS_MAGIC,
        SELINUX_MAGIC,
        0x19800202 /* mqueue */,
        0x65735543 /* fusectl */,
        0x62656570 /* configfs */,
        BINFMTFS_MAGIC,
        HUGETLBFS_MAGIC,
    };
    struct statfs fs;

    if (fstatfs(fd, &fs) != 0)
        return true;
    for (size_t i = 0; i < LEN(kinds); i++)
        if (fs.f_type == kinds[i])
            return true;
    return false;
}

/* fd becomes the walk's, in any case. */
static void enter(struct walk *w, int fd)
{
    struct stat st;
    DIR *dir = NULL;
    bool first = w->depth == 0;

    if (fd >= 0 && w->depth < DEPTH_MAX && fstat(fd, &st) == 0) {
        bool other = first || st.st_dev != w->at[w->depth - 1].dev;
        bool stay = first || !w->s->one_filesystem || st.st_dev == w->root;

        if (stay && !(other && is_pseudo(fd)))
            dir = fdopendir(fd);
    }
    if (!dir) {
        if (fd >= 0)
            (void)close(fd);
        return;
    }
    w->root = first ? st.st_dev : w->root;
    w->at[w->depth].dir = dir;
    w->at[w->depth].length = w->n;
    w->at[w->depth].dev = st.st_dev;
    w->depth++;
}

static unsigned char kind_of(int folder, const struct dirent *d)
{
    struct stat st;

    if (d->d_type != DT_UNKNOWN)
        return d->d_type;
    if (fstatat(folder, d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return DT_UNKNOWN;
    return S_ISDIR(st.st_mode) ? DT_DIR : S_ISREG(st.st_mode) ? DT_REG : DT_UNKNOWN;
}

static void visit_entry(struct walk *w, int folder, const struct dirent *d)
{
    unsigned char kind = kind_of(folder, d);
    size_t n = strlen(d->d_name), base = w->at[w->depth - 1].length;

    if ((kind != DT_DIR && kind != DT_REG) || strcmp(d->d_name, ".") == 0 ||
        strcmp(d->d_name, "..") == 0)
        return;
    if (base + 1 + n >= sizeof(w->path)) {
        w->s->errors += w->visit == scan_file;
        return;
    }
    w->path[base] = '/';
    memcpy(w->path + base + 1, d->d_name, n + 1);
    w->n = base + 1 + n;
    if (is_excluded(w->s, w->path))
        return;
    if (kind == DT_REG)
        w->visit(w->s, folder, d->d_name, w->path);
    else
        enter(w,
              openat(folder, d->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

static bool may_go_on(const struct walk *w)
{
    return !over(w->s) && (w->end_us == 0 || worker_now_us() < w->end_us);
}

static void walk_below(struct walk *w)
{
    while (w->depth > 0) {
        DIR *dir = w->at[w->depth - 1].dir;
        const struct dirent *d = may_go_on(w) ? readdir(dir) : NULL;

        if (d) {
            visit_entry(w, dirfd(dir), d);
            continue;
        }
        (void)closedir(dir);
        w->depth--;
    }
}

/* A root is where the administrator's path leads: links in it are followed, once. */
static void walk_root(struct walk *w, const char *root)
{
    char *real = realpath(root, NULL);
    struct stat st;

    if (!real || strlen(real) >= sizeof(w->path) || lstat(real, &st) != 0 ||
        is_excluded(w->s, real)) {
        free(real);
        return;
    }
    w->n = strcmp(real, "/") == 0 ? 0 : strlen(real);
    memcpy(w->path, real, w->n + 1);
    if (S_ISDIR(st.st_mode)) {
        enter(w, open(real, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        walk_below(w);
    } else if (S_ISREG(st.st_mode)) {
        w->visit(w->s, AT_FDCWD, real, real);
    }
    free(real);
}

static void walk_all(struct scan *s, on_file *visit, uint64_t end_us)
{
    struct walk *w = calloc(1, sizeof(*w));
    const json_t *one;
    size_t i;

    if (!w) {
        s->failed = err_set(&s->why, ERR_MEMORY, ENOMEM, "scan");
        return;
    }
    json_array_foreach(json_object_get(s->job, "roots"), i, one)
    {
        *w = (struct walk){ .s = s, .visit = visit, .end_us = end_us };
        if (may_go_on(w))
            walk_root(w, json_string_value(one));
    }
    free(w);
}

enum err scan_job(struct worker *w, const json_t *job, json_t *out, struct err_info *info)
{
    struct scan *s = calloc(1, sizeof(*s));

    if (!s)
        return err_set(info, ERR_MEMORY, ENOMEM, "scan");
    s->w = w;
    s->job = job;
    s->slot_count = (unsigned)job_number(job, "in_flight");
    s->slot_count = s->slot_count < 1           ? 1
                    : s->slot_count > SLOTS_MAX ? SLOTS_MAX
                                                : s->slot_count;
    s->max_bytes = (uint64_t)job_number(job, "max_file_mib") << 20;
    s->cpu_percent = (uint32_t)job_number(job, "cpu_percent");
    s->one_filesystem = json_is_true(json_object_get(job, "one_filesystem"));
    walk_all(s, count_file, worker_now_us() + COUNT_S * 1000000ull);
    tell(s);
    walk_all(s, scan_file, 0);
    wait_all(s);
    for (unsigned i = 0; i < s->slot_count; i++)
        if (s->slots[i].used)
            slot_free(&s->slots[i]);
    clamav_session_close(s->session);
    (void)json_object_set_new(out, "counts", counts(s));
    enum err e = s->failed;
    if (e != ERR_OK && info)
        *info = s->why;
    free(s);
    return e;
}
