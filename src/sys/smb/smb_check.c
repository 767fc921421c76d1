#include "sys/smb/smb_check.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };

struct name {
    char s[SMB_NAME_BYTES];
};

/* "check-<random>": two checks at once do not meet. */
static struct name new_name(void)
{
    struct name n = { "check-" };
    uint8_t random[8] = { 0 };

    CHECK(getrandom(random, sizeof(random), 0) == sizeof(random)); /* so small: never */
    hex_encode(n.s + strlen(n.s), random, sizeof(random));
    return n;
}

static struct name with_number(const struct name *base, uint32_t i)
{
    struct name n;

    (void)snprintf(n.s, sizeof(n.s), "%.64s.%u", base->s, i);
    return n;
}

/* Removes a file that may never have been made. */
static void sweep(struct smb *s, const char *name)
{
    enum err e = smb_remove(s, name, NULL);

    (void)e;
}

static uint64_t now_us(void)
{
    struct timespec t = { .tv_sec = 0 };

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail for this clock */
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* Notes one step: false if it failed, and then why, once. */
static bool step(struct smb_rights *r, enum err e, const struct err_info *info)
{
    if (e && r->why.what[0] == '\0')
        r->why = *info;
    return e == ERR_OK;
}

enum err smb_check_rights(struct smb *s, struct smb_rights *out, struct err_info *info)
{
    const struct name a = new_name(), b = with_number(&a, 1);
    struct smb_rights r = { .create = false };
    struct err_info why = { .sys_errno = 0 };
    char buf[16];
    size_t n = 0;

    r.create = step(&r, smb_create(s, a.s, STR("one"), &why), &why);
    r.write = r.create && step(&r, smb_rewrite(s, a.s, STR("two"), &why), &why);
    r.read = r.create && step(&r, smb_read(s, a.s, buf, sizeof(buf), &n, &why), &why);
    if (r.read && r.write && !str_is((struct str){ buf, n }, "two"))
        r.read = step(
            &r, err_set(&why, ERR_CORRUPT, 0, "a file reads other than written"), &why);
    r.rename = r.create && step(&r, smb_rename(s, a.s, b.s, &why), &why);
    r.remove = r.create && step(&r, smb_remove(s, r.rename ? b.s : a.s, &why), &why);
    if (smb_is_lost(s))
        return err_set(info, ERR_IO, 0, "%s", r.why.what);
    *out = r;
    return ERR_OK;
}

/* One side's try: 1 won, 0 lost, 2 could not try. */
static char try_create(struct smb *s, const struct name *n, struct err_info *info)
{
    enum err e = smb_create(s, n->s, STR("x"), info);

    return e == ERR_OK ? 1 : e == ERR_EXISTS ? 0 : 2;
}

/* The other process: says 'r' when connected, then one result for every byte it gets. */
static void other_side(const struct smb_options *o, const struct name *base, int fd)
{
    struct smb *s = NULL;
    char byte = 'r';
    uint32_t i = 0;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (smb_connect(&s, o, NULL) || write(fd, &byte, 1) != 1)
        _exit(1);
    while (read(fd, &byte, 1) == 1) {
        const struct name n = with_number(base, i++);

        byte = try_create(s, &n, NULL);
        if (write(fd, &byte, 1) != 1)
            break;
    }
    smb_free(s);
    _exit(0);
}

enum { DELAY_STEP_US = 10, DELAY_MAX_US = 50000 };

/* We start a little after the other side, the later the more often we were first: either
 * may win, on any machine. */
static enum err one_round(struct smb *s, const struct name *n, int fd, uint32_t *delay_us,
                          struct smb_exclusive *x, struct err_info *info)
{
    const struct timespec delay = { .tv_nsec = (long)*delay_us * 1000 };
    char go = 'g', theirs = 2;

    if (write(fd, &go, 1) != 1)
        return err_set(info, ERR_IO, errno, "the second connection has ended");
    (void)nanosleep(&delay, NULL);
    char ours = try_create(s, n, info);
    if (read(fd, &theirs, 1) != 1)
        return err_set(info, ERR_IO, errno, "the second connection has ended");
    if (ours == 2)
        return ERR_IO; /* info is filled */
    if (theirs == 2)
        return err_set(info, ERR_IO, 0, "the second connection cannot create %s", n->s);
    x->rounds++;
    x->both += ours && theirs;
    x->none += !ours && !theirs;
    x->ours += ours && !theirs;
    *delay_us = !ours                      ? *delay_us / 2
                : *delay_us < DELAY_MAX_US ? *delay_us * 2 + DELAY_STEP_US
                                           : *delay_us;
    return ours || theirs ? smb_remove(s, n->s, info) : ERR_OK;
}

enum err smb_check_exclusive(const struct smb_options *o, uint32_t rounds,
                             struct smb_exclusive *out, struct err_info *info)
{
    const struct name base = new_name();
    struct smb_exclusive x = { .rounds = 0 };
    struct smb *s = NULL;
    uint32_t delay_us = 0;
    int pair[2];
    char ready = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_set(info, ERR_IO, errno, "socketpair");
    (void)fflush(NULL); /* or the other process would print our buffers again */
    pid_t pid = fork();
    if (pid == 0) {
        (void)close(pair[0]);
        other_side(o, &base, pair[1]);
    }
    enum err e = pid < 0 ? err_set(info, ERR_IO, errno, "fork") : ERR_OK;
    (void)close(pair[1]);
    if (e == ERR_OK)
        e = smb_connect(&s, o, info);
    if (e == ERR_OK && read(pair[0], &ready, 1) != 1)
        e = err_set(info, ERR_IO, 0, "a second connection to %s fails", o->share);
    for (uint32_t i = 0; i < rounds && e == ERR_OK; i++) {
        const struct name n = with_number(&base, i);

        e = one_round(s, &n, pair[0], &delay_us, &x, info);
    }
    (void)close(pair[0]);
    smb_free(s);
    if (pid > 0)
        (void)waitpid(pid, NULL, 0); /* it has seen the end of its socket */
    if (e == ERR_OK)
        *out = x;
    return e;
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static struct smb_times summary(uint32_t *us, uint32_t n)
{
    qsort(us, n, sizeof(us[0]), by_value);
    return (struct smb_times){
        .min_us = us[0],
        .p50_us = us[n / 2],
        .p95_us = us[(uint64_t)n * 95 / 100],
        .p99_us = us[(uint64_t)n * 99 / 100],
        .max_us = us[n - 1],
    };
}

enum measure { MEASURE_CREATE, MEASURE_RENEW, MEASURE_POLL };

static enum err measure_one(struct smb *s, enum measure what, const struct name *base,
                            uint32_t i, struct err_info *info)
{
    char buf[512];
    const struct str body = { buf, sizeof(buf) };
    const struct name one = with_number(base, what == MEASURE_CREATE ? i : 0);
    const struct name next = with_number(base, UINT32_MAX);
    enum err e = ERR_OK;
    size_t n;
    bool there;

    memset(buf, 'x', sizeof(buf));
    switch (what) {
    case MEASURE_CREATE: return smb_create(s, one.s, body, info);
    case MEASURE_RENEW: e = smb_rewrite(s, one.s, body, info); break;
    case MEASURE_POLL: e = smb_read_head(s, one.s, buf, sizeof(buf), &n, info); break;
    }
    return e ? e : smb_exists(s, next.s, &there, info);
}

static enum err measure(struct smb *s, enum measure what, const struct name *base,
                        uint32_t rounds, struct smb_times *out, struct err_info *info)
{
    uint32_t us[SMB_CHECK_ROUNDS_MAX] = { 0 };
    enum err e = ERR_OK;

    for (uint32_t i = 0; i < rounds && e == ERR_OK; i++) {
        uint64_t began = now_us();

        e = measure_one(s, what, base, i, info);
        us[i] = (uint32_t)(now_us() - began);
    }
    if (e == ERR_OK)
        *out = summary(us, rounds);
    return e;
}

enum err smb_check_latency(struct smb *s, uint32_t rounds, struct smb_latency *out,
                           struct err_info *info)
{
    const struct name base = new_name();
    struct smb_latency l;

    CHECK(rounds > 0 && rounds <= SMB_CHECK_ROUNDS_MAX);
    enum err e = measure(s, MEASURE_CREATE, &base, rounds, &l.create, info);
    if (e == ERR_OK)
        e = measure(s, MEASURE_RENEW, &base, rounds, &l.renew, info);
    if (e == ERR_OK)
        e = measure(s, MEASURE_POLL, &base, rounds, &l.poll, info);
    for (uint32_t i = 0; i < rounds && !smb_is_lost(s); i++) {
        const struct name n = with_number(&base, i);

        sweep(s, n.s);
    }
    if (e == ERR_OK)
        *out = l;
    return e;
}

struct transfer {
    struct smb_file file;
    char *piece; /* PIECE bytes */
    uint64_t done, total;
    smb_check_progress *progress;
    void *arg;
};

static enum err transfer(struct transfer *t, bool writing, uint64_t *out_bytes_s,
                         struct err_info *info)
{
    uint64_t began = now_us(), bytes = t->total / 2;
    enum err e = ERR_OK;
    size_t n = PIECE;

    for (uint64_t at = 0; at < bytes && e == ERR_OK; at += n) {
        if (writing)
            e = smb_file_write(&t->file, (struct str){ t->piece, PIECE }, info);
        else
            e = smb_file_read(&t->file, t->piece, PIECE, &n, info);
        if (e == ERR_OK && n == 0)
            e = err_set(info, ERR_CORRUPT, 0, "%s is shorter than written", t->file.name);
        t->done += n;
        if (e == ERR_OK && t->progress &&
            !t->progress(t->arg, writing, t->done, t->total))
            e = err_set(info, ERR_STATE, 0, "stopped");
    }
    uint64_t us = now_us() - began;
    *out_bytes_s = bytes * 1000000u / (us ? us : 1);
    return e;
}

enum err smb_check_bandwidth(struct smb *s, uint32_t mib, smb_check_progress *progress,
                             void *arg, struct smb_bandwidth *out, struct err_info *info)
{
    const struct name name = new_name();
    struct transfer t = { .piece = malloc(PIECE),
                          .total = (uint64_t)mib * PIECE * 2,
                          .progress = progress,
                          .arg = arg };
    struct smb_bandwidth b = { 0, 0 };
    enum err e = ERR_OK;

    if (!t.piece)
        return err_set(info, ERR_MEMORY, 0, "bandwidth");
    for (size_t at = 0; at < PIECE; at += 256) /* nothing that compresses well */
        CHECK(getrandom(t.piece + at, 256, 0) == 256);
    for (int pass = 0; pass < 2 && e == ERR_OK; pass++) {
        bool writing = pass == 0;

        e = smb_file_open(&t.file, s, name.s, writing, info);
        if (e)
            break;
        e = transfer(&t, writing, writing ? &b.write_bytes_s : &b.read_bytes_s, info);
        enum err closed = smb_file_close(&t.file, e ? NULL : info);
        e = e ? e : closed;
    }
    free(t.piece);
    if (!smb_is_lost(s))
        sweep(s, name.s);
    if (e == ERR_OK)
        *out = b;
    return e;
}
