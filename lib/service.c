#include "redoubt/service.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/public.h"

enum {
    STATUS_BYTES = 200,
    METRICS_BYTES = 1017, /* 1000 and the name */
    MESSAGE_BYTES = 256,
    LINE_BYTES = 64,
    SEND_WAIT_MS = 200
};

struct redoubt_service {
    int notify_fd, role_fd; /* -1: not given */
    const struct redoubt_lease_page *lease;
    bool standalone;
    uint32_t watchdog_ms;
    char *name, *node, *conf; /* owned; NULL: not given */
    char line[LINE_BYTES];    /* what has come of the next line */
    size_t line_used;
    bool line_too_long;
};

/* Decimal, whole, at most max. */
static bool number(const char *text, size_t n, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;

    if (n == 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        unsigned digit = (unsigned)(unsigned char)text[i] - '0';

        if (digit > 9 || v > (max - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

static char *taken_env(const char *name)
{
    const char *v = getenv(name);
    char *copy = v ? strdup(v) : NULL;

    (void)unsetenv(name);
    return copy;
}

/* An inherited descriptor's number; -1 and errno 0 if it is not given. */
static int taken_fd(const char *name)
{
    char *text = taken_env(name);
    uint64_t v = 0;
    bool ok;

    errno = 0;
    if (!text)
        return -1;
    ok = number(text, strlen(text), 1u << 20, &v);
    free(text);
    if (!ok) {
        errno = EINVAL;
        return -1;
    }
    return fcntl((int)v, F_SETFD, FD_CLOEXEC) == 0 ? (int)v : -1;
}

static int notify_connect(const char *path)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    size_t n = strlen(path);
    int fd;

    if (n < 2 || n >= sizeof(to.sun_path) || (path[0] != '/' && path[0] != '@')) {
        errno = EINVAL;
        return -1;
    }
    memcpy(to.sun_path, path, n);
    if (path[0] == '@')
        to.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (struct sockaddr *)&to,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) != 0) {
        int e = errno;

        (void)close(fd);
        errno = e;
        return -1;
    }
    return fd;
}

static bool take_notify(struct redoubt_service *s)
{
    char *path = taken_env("NOTIFY_SOCKET");

    if (!path)
        return true;
    s->notify_fd = notify_connect(path);
    free(path);
    return s->notify_fd >= 0;
}

static bool take_role(struct redoubt_service *s)
{
    int flags;

    s->role_fd = taken_fd("REDOUBT_ROLE_FD");
    if (s->role_fd < 0)
        return errno == 0;
    flags = fcntl(s->role_fd, F_GETFL);
    return flags >= 0 && fcntl(s->role_fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

static bool take_lease(struct redoubt_service *s)
{
    int fd = taken_fd("REDOUBT_LEASE_FD");

    if (fd < 0)
        return errno == 0;
    s->lease = redoubt_lease_map(fd);
    int e = errno;
    (void)close(fd);
    errno = e;
    return s->lease != NULL;
}

/* WATCHDOG_USEC counts only if WATCHDOG_PID is this process, as sd_watchdog_enabled(3).
 */
static void take_watchdog(struct redoubt_service *s)
{
    char *us = taken_env("WATCHDOG_USEC"), *pid = taken_env("WATCHDOG_PID");
    uint64_t v = 0, p = 0;

    if (us && number(us, strlen(us), UINT64_MAX, &v) &&
        (!pid || (number(pid, strlen(pid), INT32_MAX, &p) && (pid_t)p == getpid())))
        s->watchdog_ms = v / 1000u > UINT32_MAX ? UINT32_MAX : (uint32_t)(v / 1000u);
    free(us);
    free(pid);
}

PUBLIC struct redoubt_service *redoubt_service_start(unsigned flags)
{
    struct redoubt_service *s = calloc(1, sizeof(*s));
    bool ok;

    if (!s)
        return NULL;
    s->notify_fd = s->role_fd = -1;
    s->standalone = (flags & REDOUBT_STANDALONE) != 0;
    s->name = taken_env("REDOUBT_SERVICE");
    s->node = taken_env("REDOUBT_NODE");
    s->conf = taken_env("REDOUBT_CONF");
    take_watchdog(s);
    ok = take_notify(s) && take_role(s) && take_lease(s);
    if (!ok) {
        int e = errno;

        redoubt_service_stop(s);
        errno = e;
        return NULL;
    }
    return s;
}

PUBLIC void redoubt_service_stop(struct redoubt_service *s)
{
    if (!s)
        return;
    if (s->notify_fd >= 0)
        (void)close(s->notify_fd);
    if (s->role_fd >= 0)
        (void)close(s->role_fd);
    redoubt_lease_unmap(s->lease);
    free(s->name);
    free(s->node);
    free(s->conf);
    free(s);
}

PUBLIC const char *redoubt_service_name(const struct redoubt_service *s)
{
    return s->name ? s->name : "";
}

PUBLIC const char *redoubt_service_node(const struct redoubt_service *s)
{
    return s->node ? s->node : "";
}

PUBLIC const char *redoubt_service_conf(const struct redoubt_service *s)
{
    return s->conf ? s->conf : "";
}

/* The daemon's queue can be full for a moment; wait for it only where the message must
 * not be lost. */
static int notify(struct redoubt_service *s, const char *text, int wait_ms)
{
    struct pollfd p = { .fd = s->notify_fd, .events = POLLOUT };

    if (s->notify_fd < 0)
        return 0;
    for (;;) {
        if (send(s->notify_fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
            return 0;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || wait_ms == 0)
            return -errno;
        if (poll(&p, 1, wait_ms) < 0 && errno != EINTR)
            return -errno;
        wait_ms = 0;
    }
}

PUBLIC int redoubt_service_ready(struct redoubt_service *s)
{
    return notify(s, "READY=1", SEND_WAIT_MS);
}

PUBLIC int redoubt_service_status(struct redoubt_service *s, const char *fmt, ...)
{
    char text[STATUS_BYTES] = "STATUS=";
    size_t used = strlen(text);
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text + used, sizeof(text) - used, fmt, ap);
    va_end(ap);
    if (n < 0)
        return -EINVAL;
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = ' '; /* a newline would begin another assignment */
    return notify(s, text, 0);
}

PUBLIC int redoubt_service_metrics(struct redoubt_service *s, const char *numbers)
{
    char text[METRICS_BYTES];
    int n = snprintf(text, sizeof(text), "REDOUBT_METRICS=%s", numbers);

    if (n < 0 || (size_t)n >= sizeof(text) || strchr(text, '\n'))
        return -EINVAL;
    return notify(s, text, 0);
}

PUBLIC int redoubt_service_watchdog(struct redoubt_service *s)
{
    return notify(s, "WATCHDOG=1", 0);
}

PUBLIC uint32_t redoubt_service_watchdog_period_ms(const struct redoubt_service *s)
{
    uint32_t third = s->watchdog_ms / 3;

    return s->watchdog_ms != 0 && third == 0 ? 1 : third;
}

PUBLIC int redoubt_service_role_fd(const struct redoubt_service *s)
{
    return s->role_fd;
}

/* One whole line.  Lines that we do not know are for a later version: skipped. */
static void role_line(struct redoubt_service *s, enum redoubt_role *role, uint64_t *epoch)
{
    static const char active[] = "active ";
    size_t n = sizeof(active) - 1;
    uint64_t e;

    if (s->line_too_long)
        return;
    if (s->line_used == 7 && memcmp(s->line, "standby", 7) == 0) {
        *role = REDOUBT_ROLE_STANDBY;
    } else if (s->line_used > n && memcmp(s->line, active, n) == 0 &&
               number(s->line + n, s->line_used - n, UINT64_MAX, &e)) {
        *role = REDOUBT_ROLE_ACTIVE;
        *epoch = e;
    }
}

static void role_bytes(struct redoubt_service *s, const char *p, size_t n,
                       enum redoubt_role *role, uint64_t *epoch)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '\n') {
            role_line(s, role, epoch);
            s->line_used = 0;
            s->line_too_long = false;
        } else if (s->line_used < sizeof(s->line)) {
            s->line[s->line_used++] = p[i];
        } else {
            s->line_too_long = true;
        }
    }
}

PUBLIC enum redoubt_role redoubt_service_read_role(struct redoubt_service *s,
                                                   uint64_t *epoch)
{
    enum redoubt_role role = REDOUBT_ROLE_NONE;
    uint64_t e = 0;
    char buf[256];

    if (s->role_fd < 0)
        return REDOUBT_ROLE_NONE;
    for (;;) {
        ssize_t n = read(s->role_fd, buf, sizeof(buf));

        if (n > 0)
            role_bytes(s, buf, (size_t)n, &role, &e);
        else if (n < 0 && errno == EAGAIN)
            break;
        else if (n == 0 || errno != EINTR)
            return REDOUBT_ROLE_GONE;
    }
    if (epoch && role == REDOUBT_ROLE_ACTIVE)
        *epoch = e;
    return role;
}

PUBLIC int redoubt_service_ack(struct redoubt_service *s, enum redoubt_role role,
                               uint64_t epoch)
{
    char text[MESSAGE_BYTES];

    if (role == REDOUBT_ROLE_STANDBY)
        return notify(s, "REDOUBT_ROLE=standby", SEND_WAIT_MS);
    if (role != REDOUBT_ROLE_ACTIVE)
        return -EINVAL;
    (void)snprintf(text, sizeof(text), "REDOUBT_ROLE=active %llu",
                   (unsigned long long)epoch);
    return notify(s, text, SEND_WAIT_MS);
}

PUBLIC bool redoubt_service_lease_held(const struct redoubt_service *s, uint64_t *epoch)
{
    if (!s->lease && s->standalone) {
        if (epoch)
            *epoch = 0;
        return true;
    }
    return redoubt_lease_held(s->lease, epoch);
}

PUBLIC const struct redoubt_lease_page *
redoubt_service_lease(const struct redoubt_service *s)
{
    return s->lease;
}
