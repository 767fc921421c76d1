/*
 * onaccess: looks at files the moment they are written, run or opened.
 *
 * Two processes.  The listener answers the kernel; the watchman, its parent, only waits for
 * its heartbeat and kills it when that stops: when the listener is gone, the kernel lets
 * everybody through.  Neither opens a file once files are watched, and neither survives the
 * agent, so no death and no hang of ours stops a program for longer than WATCH_MS.
 *
 * Modes: "notify" looks at what was written or is run, and never delays anybody.  "block"
 * has the kernel ask before a file is opened; an answer that is not there in time is yes.
 */
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <poll.h>
#include <signal.h>
#include <sys/fanotify.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/protect.h"
#include "app/agent/worker.h"
#include "core/scan/exclude.h"
#include "sys/clamav/session.h"

enum {
    WATCH_MS = 3000, /* a listener silent for so long is killed */
    BEAT_MS = 300,
    SLOTS_MAX = 64,
    TRIES_MAX = 3,
    ANSWER_MS = 60000, /* a verdict that comes later is not waited for */
    RETRY_MS = 1000,   /* for a clamd that is away */
    MARK_MS = 15000,   /* mounts may come */
    TELL_MS = 60000,
    CACHE_SIZE = 8192,
    IGNORED_MAX = 32,
};

struct known {
    dev_t dev;
    ino_t ino;
    off_t size;
    struct timespec changed, status_changed;
    bool set, infected;
};

struct slot {
    bool used, waiting; /* waiting: the kernel wants an answer */
    int fd;
    uint32_t number; /* of the question; 0: to be asked when there is an engine */
    unsigned tries;
    uint64_t asked_us;
    struct stat st;
    char threat[CLAMD_NAME_MAX]; /* found, and to be told; else "" */
};

struct watch {
    json_t *job;
    bool block;
    int fan, beat;
    uint64_t timeout_us, max_bytes;
    struct quarantine *quarantine; /* only to ask what is allowed */
    struct clamav_session *session;
    uint64_t retry_us, mark_us, tell_us, beat_us;
    struct slot slots[SLOTS_MAX];
    struct known cache[CACHE_SIZE];
    pid_t ignored[IGNORED_MAX], self;
    unsigned ignored_count;
    uint64_t late, busy, lost,
        untold; /* passed without a verdict, since the last event */
    bool ended;
};

/* ---- what is known already ---- */

static struct known *cell(struct watch *w, const struct stat *st)
{
    uint64_t h = (uint64_t)st->st_ino * 0x9e3779b97f4a7c15u ^ (uint64_t)st->st_dev;

    return &w->cache[(h >> 20) % CACHE_SIZE];
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static const struct known *look_up(struct watch *w, const struct stat *st)
{
    const struct known *k = cell(w, st);

    return k->set && k->dev == st->st_dev && k->ino == st->st_ino &&
                   k->size == st->st_size && same_time(k->changed, st->st_mtim) &&
                   same_time(k->status_changed, st->st_ctim)
               ? k
               : NULL;
}

static void remember(struct watch *w, const struct stat *st, bool infected)
{
    *cell(w, st) = (struct known){ .dev = st->st_dev,
                                   .ino = st->st_ino,
                                   .size = st->st_size,
                                   .changed = st->st_mtim,
                                   .status_changed = st->st_ctim,
                                   .set = true,
                                   .infected = infected };
}

/* ---- answers ---- */

static void answer(const struct watch *w, int fd, bool allow)
{
    struct fanotify_response r = { .fd = fd, .response = allow ? FAN_ALLOW : FAN_DENY };

    (void)!write(w->fan, &r, sizeof(r)); /* fails only if nobody waits any more */
}

static void release(const struct watch *w, struct slot *s, bool allow)
{
    if (s->waiting)
        answer(w, s->fd, allow);
    s->waiting = false;
    (void)close(s->fd);
    s->used = false;
}

/* Everybody who waits may go on: there is no engine to ask.  It is asked later. */
static void lose_session(struct watch *w)
{
    clamav_session_close(w->session);
    w->session = NULL;
    w->retry_us = worker_now_us() + RETRY_MS * 1000u;
    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        struct slot *s = &w->slots[i];

        if (!s->used || s->threat[0])
            continue;
        if (s->waiting)
            answer(w, s->fd, true);
        w->lost += s->waiting;
        s->waiting = false;
        const bool asked = s->number != 0;

        s->number = 0;
        if (asked && ++s->tries == TRIES_MAX) /* it may be what ends the engine */
            release(w, s, true);
    }
}

static bool path_of(int fd, char *out, size_t size)
{
    char link[40];

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, size - 1);
    if (n <= 0 || out[0] != '/')
        return false;
    out[n] = '\0';
    return true;
}

static bool is_allowed(const struct watch *w, int fd)
{
    char sha256[QUARANTINE_HASH];

    return w->quarantine && quarantine_hash(fd, sha256, NULL) == ERR_OK &&
           quarantine_is_allowed(w->quarantine, sha256);
}

/* The descriptor says where: a path may be no UTF-8.  The agent may be busy: later then. */
static void tell(const struct watch *w, struct slot *s)
{
    json_t *m = json_pack("{s:s,s:s}", "t", "found", "threat", s->threat);

    if (channel_send(CHANNEL_FD, m, s->fd, false) != ERR_TIMEOUT)
        release(w, s, false);
}

static void take_verdict(struct watch *w, struct slot *s, const struct clamd_verdict *v)
{
    bool bad = v->found == CLAMD_FOUND && !is_allowed(w, s->fd);

    if (v->found == CLAMD_CLEAN || v->found == CLAMD_FOUND)
        remember(w, &s->st, bad);
    if (!bad) {
        release(w, s, true);
        return;
    }
    if (s->waiting)
        answer(w, s->fd, false);
    s->waiting = false;
    (void)snprintf(s->threat, sizeof(s->threat), "%s", v->text);
    tell(w, s);
}

static void take_answers(struct watch *w)
{
    struct clamd_verdict v;
    uint32_t number = 1;

    while (w->session && number != 0) {
        if (clamav_session_answer(w->session, &number, &v, NULL) != ERR_OK) {
            lose_session(w);
            return;
        }
        for (unsigned i = 0; number != 0 && i < SLOTS_MAX; i++)
            if (w->slots[i].used && !w->slots[i].threat[0] &&
                w->slots[i].number == number)
                take_verdict(w, &w->slots[i], &v);
    }
}

/* While there is no engine: what is deleted need not be looked at, and takes up space. */
static void let_go(struct watch *w)
{
    struct stat st;

    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        struct slot *s = &w->slots[i];

        if (s->used && !s->waiting && !s->threat[0] && fstat(s->fd, &st) == 0 &&
            st.st_nlink == 0)
            release(w, s, true);
    }
}

/* Who waited long enough goes on; the verdict is still awaited, to be known and told. */
static void check_deadlines(struct watch *w)
{
    uint64_t now = worker_now_us();

    if (!w->session)
        let_go(w);
    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        struct slot *s = &w->slots[i];

        if (s->used && s->waiting && now - s->asked_us >= w->timeout_us) {
            answer(w, s->fd, true);
            s->waiting = false;
            w->late++;
        }
        if (s->used && s->number != 0 && !s->threat[0] &&
            now - s->asked_us > ANSWER_MS * 1000u) {
            lose_session(w);
            return;
        }
    }
}

/* ---- questions ---- */

static bool is_below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    while (n > 1 && folder[n - 1] == '/')
        n--;
    return n == 1 ||
           (strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == '\0'));
}

static bool in_list(const json_t *list, const char *path, bool pattern)
{
    const json_t *one;
    size_t i;

    json_array_foreach(list, i, one)
    {
        const char *s = json_string_value(one);

        if (s && (pattern ? exclude_match(str_of(s), str_of(path)) : is_below(path, s)))
            return true;
    }
    return false;
}

static bool is_watched(const struct watch *w, const char *path)
{
    return in_list(json_object_get(w->job, "paths"), path, false) &&
           !in_list(json_object_get(w->job, "exclude"), path, true);
}

/* The engine and our own processes must never wait for themselves. */
static bool is_ours(const struct watch *w, pid_t pid)
{
    char path[32];
    struct stat st;

    if (pid == w->self)
        return true;
    for (unsigned i = 0; i < w->ignored_count; i++)
        if (w->ignored[i] == pid)
            return true;
    if (!w->session)
        return false;
    if (pid == clamav_session_pid(w->session))
        return true;
    uid_t engine = clamav_session_uid(w->session);
    (void)snprintf(path, sizeof(path), "/proc/%d", (int)pid);
    return engine != 0 && stat(path, &st) == 0 && st.st_uid == engine;
}

static struct slot *free_slot(struct watch *w)
{
    for (unsigned i = 0; i < SLOTS_MAX; i++)
        if (!w->slots[i].used)
            return &w->slots[i];
    return NULL;
}

static size_t free_slots(const struct watch *w)
{
    size_t n = 0;

    for (unsigned i = 0; i < SLOTS_MAX; i++)
        n += !w->slots[i].used;
    return n;
}

enum choice { LET_PASS, REFUSE, ASK };

static enum choice judge(struct watch *w, const struct fanotify_event_metadata *e,
                         struct stat *st)
{
    char path[QUARANTINE_PATH_MAX];

    if (is_ours(w, e->pid) || fstat(e->fd, st) != 0 || !S_ISREG(st->st_mode) ||
        st->st_size == 0 || (uint64_t)st->st_size > w->max_bytes ||
        !path_of(e->fd, path, sizeof(path)) || !is_watched(w, path))
        return LET_PASS;
    const struct known *k = look_up(w, st);
    return !k ? ASK : k->infected ? REFUSE : LET_PASS;
}

static void put_question(struct watch *w, struct slot *s)
{
    enum err e = clamav_session_ask(w->session, s->fd, &s->number, NULL);

    s->asked_us = worker_now_us();
    if (e != ERR_OK && s->waiting) { /* full, or gone: nobody waits for that */
        answer(w, s->fd, true);
        s->waiting = false;
        w->busy += e == ERR_TIMEOUT;
        w->lost += e != ERR_TIMEOUT;
    }
    if (e != ERR_OK && e != ERR_TIMEOUT)
        lose_session(w);
}

/* What could not be asked or told yet. */
static void put_questions(struct watch *w)
{
    for (unsigned i = 0; i < SLOTS_MAX; i++) {
        struct slot *s = &w->slots[i];

        if (s->used && s->threat[0])
            tell(w, s);
        else if (s->used && s->number == 0 && w->session)
            put_question(w, s);
    }
}

/* False: there is no room, and the descriptor is still the caller's. */
static bool ask(struct watch *w, int fd, const struct stat *st, bool waiting)
{
    struct slot *s = free_slot(w);

    if (!s) {
        w->busy++;
        return false;
    }
    *s = (struct slot){ .used = true, .waiting = waiting, .fd = fd, .st = *st };
    if (w->session) {
        put_question(w, s);
    } else if (waiting) {
        answer(w, fd, true);
        s->waiting = false;
        w->lost++;
    }
    return true;
}

static void take_event(struct watch *w, const struct fanotify_event_metadata *e)
{
    bool waiting = e->mask & (FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM);
    struct stat st;

    if (e->mask & FAN_Q_OVERFLOW)
        w->lost++;
    if (e->fd < 0)
        return;
    enum choice c = judge(w, e, &st);
    if (c == ASK && ask(w, e->fd, &st, waiting))
        return;
    if (waiting)
        answer(w, e->fd, c != REFUSE);
    (void)close(e->fd);
}

static void take_events(struct watch *w)
{
    static _Alignas(struct fanotify_event_metadata) char buf[32 * 1024];
    /* Notifications for which there is no room stay with the kernel. */
    size_t room = w->block ? sizeof(buf) : free_slots(w) * FAN_EVENT_METADATA_LEN;
    ssize_t n = read(w->fan, buf, room);
    const struct fanotify_event_metadata *e = (const void *)buf;

    for (; n > 0 && FAN_EVENT_OK(e, n); e = FAN_EVENT_NEXT(e, n))
        if (e->vers == FANOTIFY_METADATA_VERSION)
            take_event(w, e);
}

/* ---- what is watched ---- */

/* Whole file systems if the kernel can, so that containers are seen, too. */
static bool mark(const struct watch *w, const char *path)
{
    uint64_t mask = w->block ? FAN_OPEN_PERM | FAN_OPEN_EXEC_PERM | FAN_CLOSE_WRITE
                             : FAN_CLOSE_WRITE | FAN_OPEN_EXEC;

    return fanotify_mark(w->fan, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask, AT_FDCWD,
                         path) == 0 ||
           fanotify_mark(w->fan, FAN_MARK_ADD | FAN_MARK_MOUNT, mask, AT_FDCWD, path) ==
               0;
}

/* The folders themselves and what is mounted below them.  Opens nothing but /proc. */
static unsigned mark_all(struct watch *w, int *error)
{
    const json_t *paths = json_object_get(w->job, "paths"), *one;
    FILE *f = setmntent("/proc/self/mounts", "re");
    unsigned count = 0;
    struct mntent m;
    char buf[8192];
    size_t i;

    json_array_foreach(paths, i, one)
    {
        bool ok = mark(w, json_string_value(one));

        *error = ok ? *error : errno;
        count += ok;
    }
    while (f && getmntent_r(f, &m, buf, sizeof(buf)))
        if (strcmp(m.mnt_type, "proc") != 0 && strcmp(m.mnt_type, "sysfs") != 0 &&
            in_list(paths, m.mnt_dir, false) &&
            (strcmp(m.mnt_dir, "/") == 0 || !in_list(paths, "/", false)))
            (void)mark(w, m.mnt_dir);
    if (f)
        (void)endmntent(f);
    w->mark_us = worker_now_us() + MARK_MS * 1000u;
    return count;
}

static void state(bool ok, const char *why)
{
    json_t *m = json_pack("{s:s,s:b,s:s}", "t", "state", "ok", ok, "why", why);

    if (channel_send(CHANNEL_FD, m, -1, true) != ERR_OK)
        _exit(1); /* the agent is gone */
}

/* Tells how much passed unseen, at most once a minute. */
static void tell_missed(struct watch *w)
{
    if (w->late + w->busy + w->lost == 0)
        return;
    json_t *data = json_pack("{s:I,s:I,s:I}", "late", (json_int_t)w->late, "busy",
                             (json_int_t)w->busy, "unavailable", (json_int_t)w->lost);
    if (channel_send(CHANNEL_FD,
                     json_pack("{s:s,s:s,s:s,s:o}", "t", "event", "kind",
                               "onaccess_missed", "severity", "warning", "data", data),
                     -1, false) == ERR_OK)
        w->late = w->busy = w->lost = 0;
}

static void listen_channel(struct watch *w)
{
    json_t *m;
    int fd;
    enum err e = channel_receive(CHANNEL_FD, &m, &fd, false);

    w->ended = w->ended || e == ERR_CLOSED;
    if (e != ERR_OK)
        return;
    if (strcmp(job_text(m, "do"), "flush") == 0)
        memset(w->cache, 0, sizeof(w->cache));
    if (strcmp(job_text(m, "do"), "ignore") == 0) {
        w->ignored[w->ignored_count % IGNORED_MAX] = (pid_t)job_number(m, "pid");
        w->ignored_count += w->ignored_count < IGNORED_MAX;
    }
    if (fd >= 0)
        (void)close(fd);
    json_decref(m);
}

static void upkeep(struct watch *w)
{
    uint64_t now = worker_now_us();
    int error;

    if (now - w->beat_us >= BEAT_MS * 1000u) {
        w->beat_us = now;
        if (write(w->beat, "", 1) != 1)
            w->ended = true; /* the watchman is gone */
    }
    if (!w->session && now >= w->retry_us &&
        clamav_session_open(job_text(w->job, "clamd"), &w->session, NULL) != ERR_OK)
        w->retry_us = now + RETRY_MS * 1000u;
    put_questions(w);
    check_deadlines(w);
    if (now >= w->mark_us)
        (void)mark_all(w, &error);
    if (now >= w->tell_us) {
        tell_missed(w);
        w->tell_us = now + TELL_MS * 1000u;
    }
}

static bool anybody_waits(const struct watch *w)
{
    for (unsigned i = 0; i < SLOTS_MAX; i++)
        if (w->slots[i].used && w->slots[i].waiting)
            return true;
    return false;
}

static void listen_all(struct watch *w)
{
    while (!w->ended) {
        struct pollfd p[3] = { { .fd = w->fan, .events = POLLIN },
                               { .fd = CHANNEL_FD, .events = POLLIN },
                               { .fd = w->session ? clamav_session_fd(w->session) : -1,
                                 .events = POLLIN } };
        int n;

        upkeep(w);
        /* Notifications may wait in the kernel, questions may not. */
        if (!w->block && !free_slot(w))
            p[0].fd = -1;
        p[2].fd = w->session ? clamav_session_fd(w->session) : -1;
        n = poll(p, LEN(p), anybody_waits(w) ? 20 : 200);
        if (n <= 0)
            continue;
        if (p[2].revents)
            take_answers(w);
        if (p[0].revents)
            take_events(w);
        if (p[1].revents)
            listen_channel(w);
    }
}

static int fail(const char *what, int error)
{
    char why[160];

    (void)snprintf(why, sizeof(why), "%s: %s", what, strerrordesc_np(error));
    state(false, why);
    return 1;
}

static int listener(int beat)
{
    struct watch *w = calloc(1, sizeof(*w));
    int fd, error = ENOENT;

    if (!w || channel_receive(CHANNEL_FD, &w->job, &fd, true) != ERR_OK)
        return 1;
    (void)prctl(PR_SET_NAME, "redoubt-access");
    w->beat = beat;
    w->self = getpid();
    w->block = strcmp(job_text(w->job, "mode"), "block") == 0;
    w->timeout_us = (uint64_t)job_number(w->job, "timeout_ms") * 1000u;
    w->max_bytes = (uint64_t)job_number(w->job, "max_file_mib") << 20;
    if (quarantine_open(job_text(w->job, "quarantine"), &w->quarantine, NULL) != ERR_OK)
        w->quarantine = NULL;
    w->fan = fanotify_init((w->block ? FAN_CLASS_CONTENT : FAN_CLASS_NOTIF) |
                               FAN_CLOEXEC | FAN_NONBLOCK,
                           O_RDONLY | O_LARGEFILE | O_CLOEXEC | O_NOATIME);
    if (w->fan < 0)
        return fail("fanotify", errno);
    w->tell_us = worker_now_us() + 5000000u;
    if (mark_all(w, &error) == 0)
        return fail("none of the folders can be watched", error);
    state(true, "");
    listen_all(w);
    return 0; /* the kernel closes everything, and lets everybody through */
}

/* Waits for heartbeats; opens nothing, so the listener's hang cannot be its own. */
static int watchman(int beat, pid_t pid)
{
    char bytes[64];

    for (;;) {
        struct pollfd p = { .fd = beat, .events = POLLIN };
        int n = poll(&p, 1, WATCH_MS);

        if (n < 0 && errno == EINTR)
            continue;
        if (n > 0 && read(beat, bytes, sizeof(bytes)) > 0)
            continue;
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return n == 0 ? 3 : 1; /* 3: it hung */
    }
}

int onaccess_main(void)
{
    struct rlimit files = { 4096, 4096 };
    int ends[2];
    pid_t above = getpid();

    (void)signal(SIGPIPE, SIG_IGN);
    (void)setrlimit(RLIMIT_NOFILE, &files);
    if (pipe2(ends, O_CLOEXEC) != 0)
        return 1;
    pid_t pid = fork();
    if (pid < 0)
        return 1;
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != above)
            _exit(1);
        (void)close(ends[0]);
        _exit(listener(ends[1]));
    }
    (void)prctl(PR_SET_NAME, "redoubt-watch");
    (void)close(ends[1]);
    (void)close(CHANNEL_FD);
    return watchman(ends[0], pid);
}
