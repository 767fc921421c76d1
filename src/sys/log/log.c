#include "sys/log/log.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/str.h"

/* One event's share of the output. */
struct quota {
    char event[32];
    uint64_t window_began_ms;
    uint32_t printed, suppressed;
};
enum { QUOTAS = 64 };

/* The one log of the process. */
static struct {
    const char *program;
    enum log_level level;
    int journal; /* -1: stderr */
    uint32_t lost;
    struct quota quota[QUOTAS];
    char ring[LOG_RING_LINES][LOG_LINE_BYTES];
    uint32_t ring_next;
    bool ring_full;
} the_log = { .program = "redoubt", .level = LOG_LEVEL_INFO, .journal = -1 };

static const char *const level_names[] = { "error", "warning", "info", "debug" };

const char *log_level_name(enum log_level level)
{
    return (unsigned)level < LEN(level_names) ? level_names[level] : "unknown";
}

static uint64_t boot_ms(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Wall time, for people only. */
static void add_time(struct text *t)
{
    struct timespec now;
    struct tm tm;

    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
    if (!gmtime_r(&now.tv_sec, &tm))
        return;
    text_add(t, "%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ", tm.tm_year + 1900, tm.tm_mon + 1,
             tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, now.tv_nsec / 1000000);
}

/* Text on one line: control characters become blanks. */
static void add_clean(struct text *t, const char *value)
{
    for (; *value; value++) {
        char c = (unsigned char)*value < ' ' || *value == 127 ? ' ' : *value;

        text_bytes(t, (struct str){ &c, 1 });
    }
}

/* A value with blanks, quotes or nothing in it is quoted, so that a line can be taken
 * apart again. */
static void add_value(struct text *t, const struct log_field *f)
{
    const char *s = f->kind == LOG_KIND_STR && f->str ? f->str : "";

    switch (f->kind) {
    case LOG_KIND_U64: text_add(t, "%llu", (unsigned long long)f->u64); return;
    case LOG_KIND_I64: text_add(t, "%lld", (long long)f->i64); return;
    case LOG_KIND_BOOL: text_add(t, "%s", f->u64 ? "yes" : "no"); return;
    case LOG_KIND_STR: break;
    }
    if (*s && !strpbrk(s, " \t\n\r\"=\\")) {
        add_clean(t, s);
        return;
    }
    text_add(t, "\"");
    for (; *s; s++) {
        char one[2] = { *s, '\0' };

        if (*s == '"' || *s == '\\')
            text_add(t, "\\");
        add_clean(t, one);
    }
    text_add(t, "\"");
}

static void add_fields(struct text *t, const char *event, const struct log_field *fields)
{
    text_add(t, "%s", event);
    for (; fields->key; fields++) {
        text_add(t, " %s=", fields->key);
        add_value(t, fields);
    }
}

static void into_ring(const char *line)
{
    char *slot = the_log.ring[the_log.ring_next];

    (void)snprintf(slot, LOG_LINE_BYTES, "%s", line);
    the_log.ring_next = (the_log.ring_next + 1) % LOG_RING_LINES;
    the_log.ring_full |= the_log.ring_next == 0;
}

/* May this event be printed now?  *ret_suppressed: how many were not, since it last was. */
static bool within_quota(const char *event, uint32_t *ret_suppressed)
{
    uint64_t now = boot_ms();
    struct quota *q = NULL, *oldest = &the_log.quota[0];

    for (uint32_t i = 0; i < QUOTAS && !q; i++) {
        struct quota *at = &the_log.quota[i];

        if (strcmp(at->event, event) == 0)
            q = at;
        else if (at->window_began_ms < oldest->window_began_ms)
            oldest = at;
    }
    if (!q) {
        q = oldest;
        *q = (struct quota){ .window_began_ms = now };
        (void)snprintf(q->event, sizeof(q->event), "%s", event);
    }
    if (now - q->window_began_ms >= LOG_WINDOW_MS) {
        q->window_began_ms = now;
        q->printed = 0;
    }
    if (q->printed >= LOG_BURST) {
        q->suppressed++;
        return false;
    }
    q->printed++;
    *ret_suppressed = q->suppressed;
    q->suppressed = 0;
    return true;
}

/* A pipe that polls writable takes PIPE_BUF bytes without blocking; lines are shorter. */
static bool write_stderr(const char *line, size_t n)
{
    struct pollfd p = { .fd = STDERR_FILENO, .events = POLLOUT };

    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))
        return false;
    return write(STDERR_FILENO, line, n) == (ssize_t)n;
}

static void add_journal_key(struct text *t, const char *key)
{
    text_add(t, "REDOUBT_");
    for (; *key; key++) {
        char c = *key >= 'a' && *key <= 'z' ? (char)(*key - 'a' + 'A') : *key;

        text_bytes(t, (struct str){ &c, 1 });
    }
    text_add(t, "=");
}

/*
 * The journal's own datagram (systemd.io/JOURNAL_NATIVE_PROTOCOL).  Not sd_journal_send:
 * that waits for a journal that is stopped, and a daemon with a lease must not.
 */
static bool write_journal(enum log_level level, const char *message, const char *event,
                          const struct log_field *fields)
{
    static const int priorities[] = { 3, 4, 6, 7 };
    char buf[2 * LOG_LINE_BYTES + 512];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    text_add(&t, "PRIORITY=%d\nSYSLOG_IDENTIFIER=%s\nMESSAGE=", priorities[level],
             the_log.program);
    add_clean(&t, message);
    text_add(&t, "\nREDOUBT_EVENT=%s\n", event);
    for (; fields->key; fields++) {
        size_t before = t.n;

        add_journal_key(&t, fields->key);
        if (fields->kind == LOG_KIND_STR)
            add_clean(&t, fields->str ? fields->str : "");
        else
            add_value(&t, fields);
        text_add(&t, "\n");
        if (t.cut) { /* a half field would be a lie: the message has the rest */
            t.n = before;
            break;
        }
    }
    return send(the_log.journal, buf, t.n, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)t.n;
}

void log_fields(enum log_level level, const char *event, const struct log_field *fields)
{
    char line[LOG_LINE_BYTES];
    uint32_t suppressed = 0;
    struct text t;

    text_init(&t, line, sizeof(line) - 1); /* room for the newline */
    add_time(&t);
    text_add(&t, " %s %s: ", log_level_name(level), the_log.program);
    size_t message = t.n;

    add_fields(&t, event, fields);
    into_ring(line);
    if (level > the_log.level || !within_quota(event, &suppressed))
        return;
    if (suppressed)
        text_add(&t, " suppressed=%u", suppressed);
    if (the_log.lost)
        text_add(&t, " lost=%u", the_log.lost);
    bool done;

    if (the_log.journal >= 0) {
        done = write_journal(level, line + message, event, fields);
    } else {
        line[t.n] = '\n';
        done = write_stderr(line, t.n + 1);
    }
    the_log.lost = done ? 0 : the_log.lost + 1;
}

/* Is our stderr the stream that systemd connected to the journal? */
static bool started_by_systemd(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char mine[64];
    struct stat st;

    if (!stream || fstat(STDERR_FILENO, &st) != 0)
        return false;
    (void)snprintf(mine, sizeof(mine), "%llu:%llu", (unsigned long long)st.st_dev,
                   (unsigned long long)st.st_ino);
    return strcmp(stream, mine) == 0;
}

static int open_journal(void)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX,
                              .sun_path = "/run/systemd/journal/socket" };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)&to, sizeof(to)) != 0) {
        (void)close(fd); /* unused so far */
        fd = -1;
    }
    return fd;
}

/* A bug: the last lines go to stderr, even if it takes a moment. */
static void dump_on_bug(const char *expr, const char *file, int line)
{
    static bool again;

    if (again)
        return;
    again = true;
    fprintf(stderr, "BUG: %s:%d: %s does not hold; the last lines were:\n", file, line,
            expr);
    log_ring_dump(stderr);
    fflush(stderr);
}

void log_start(const char *program, enum log_level level, enum log_target target)
{
    the_log.program = program;
    the_log.level = level;
    check_hook = dump_on_bug;
    if (the_log.journal >= 0)
        (void)close(the_log.journal); /* nothing buffered */
    the_log.journal = -1;
    if (target == LOG_TARGET_JOURNAL ||
        (target == LOG_TARGET_AUTO && started_by_systemd()))
        the_log.journal = open_journal();
}

void log_set_level(enum log_level level)
{
    the_log.level = level;
}

void log_ring_each(void (*each)(void *arg, const char *line), void *arg)
{
    uint32_t count = the_log.ring_full ? LOG_RING_LINES : the_log.ring_next;
    uint32_t first = the_log.ring_full ? the_log.ring_next : 0;

    for (uint32_t i = 0; i < count; i++)
        each(arg, the_log.ring[(first + i) % LOG_RING_LINES]);
}

static void dump_line(void *arg, const char *line)
{
    fprintf(arg, "%s\n", line);
}

void log_ring_dump(FILE *to)
{
    log_ring_each(dump_line, to);
}
