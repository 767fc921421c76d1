/*
 * redoubt-mirror: keeps a verified copy of what is published on this node.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sodium.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "app/mirror/active.h"
#include "app/mirror/mirror.h"
#include "sys/log/log.h"

enum {
    NICE = 10,
    IOPRIO_IDLE = 3 << 13, /* linux/ioprio.h, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0) */
    IOPRIO_WHO_PROCESS = 1,
    LOCKED_MS = 100,
    TURN_MS = 1000, /* without news */
    BUSY_MS = 200,  /* while there is something to do */
    LOOK_MS = 20,   /* how often a transfer looks around */
};

static const char help[] =
    "usage: redoubt-mirror [--config FILE] [--daemon-fd N] [--lease-fd N]\n"
    "Keeps a verified copy of what is published on this node. redoubt-node starts it.\n"
    "\n"
    "  -c, --config FILE    the configuration (default " CONF_DEFAULT_PATH ")\n"
    "      --daemon-fd N    the socket of redoubt-node\n"
    "      --lease-fd N     the page that says whether this node is active\n"
    "      --version        print the version and end\n"
    "  -h, --help           print this and end\n"
    "\n"
    "Exit codes: 0 the daemon is gone, 1 failed, 2 usage or configuration.\n";

struct mono mirror_now(void)
{
    struct timespec t = { .tv_sec = 0 };

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail for this clock */
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

uint64_t mirror_wall_s(void)
{
    struct timespec t = { .tv_sec = 0 };

    (void)clock_gettime(CLOCK_REALTIME, &t); /* nor for this one */
    return t.tv_sec > 0 ? (uint64_t)t.tv_sec : 0;
}

bool mirror_is_active(const struct mirror *m, uint64_t *epoch)
{
    return redoubt_lease_held(m->lease, epoch);
}

/* ---- the daemon ---- */

static void hear(struct mirror *m)
{
    char packet[64];
    const ssize_t n = recv(m->daemon_fd, packet, sizeof(packet), MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        m->end = true;
    else if (n > 0 && str_is((struct str){ packet, (size_t)n }, "verify"))
        db_tell(m, "verify", NULL); /* on both nodes; without the DBMS see below */
    if (n > 0 && !m->db.conn)
        scrub_start(m);
}

bool mirror_goes_on(struct mirror *m)
{
    struct pollfd p = { .fd = m->daemon_fd, .events = POLLIN };

    if (m->daemon_fd >= 0 && poll(&p, 1, 0) > 0)
        hear(m);
    db_listen(m);
    tell_state(m);
    return !m->end && !m->news;
}

static bool on_progress(void *arg, uint64_t done, uint64_t total)
{
    static struct mono looked;
    struct mirror *m = arg;

    (void)total;
    m->moving = done;
    if (!mono_reached(mirror_now(), mono_after(looked, LOOK_MS)))
        return true;
    looked = mirror_now();
    return mirror_goes_on(m);
}

struct blob_watch mirror_watch(struct mirror *m)
{
    return (struct blob_watch){ .progress = on_progress,
                                .arg = m,
                                .bytes_per_s = m->conf.web.mirror_kib_s * 1024ull };
}

/* ---- the loop ---- */

static void wait_for_news(struct mirror *m)
{
    struct pollfd p[] = { { .fd = m->daemon_fd, .events = POLLIN },
                          { .fd = db_socket(m), .events = POLLIN } };
    const bool busy = m->scrub.on || m->untold || (m->list && !m->content.complete);

    if (m->scrub.on && m->content.complete)
        return; /* it has paused enough while it read */
    (void)poll(p, LEN(p), busy ? BUSY_MS : TURN_MS);
}

static void loop(struct mirror *m)
{
    while (!m->end) {
        m->news = false;
        db_turn(m);
        content_turn(m);
        (void)mirror_goes_on(m);
        if (m->news || m->end)
            continue;
        share_turn(m);
        scrub_turn(m);
        active_turn(m);
        if (mirror_goes_on(m))
            wait_for_news(m);
    }
}

/* ---- the start ---- */

/* Whatever the daemon may have of the computer, this one comes last. */
static void be_modest(void)
{
    (void)setpriority(PRIO_PROCESS, 0, NICE);
    (void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE);
    FILE *f = fopen("/proc/self/oom_score_adj", "we");

    if (f) {
        (void)fputs("500", f);
        (void)fclose(f);
    }
}

/* One that a daemon before ours started may still be at work, for a moment. */
static bool wait_for_lock(struct mirror *m)
{
    char path[MIRROR_PATH];
    int fd = -1;

    if (snprintf(path, sizeof(path), "%s/lock", m->conf.web.store) < (int)sizeof(path))
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        struct pollfd p = { .fd = m->daemon_fd, .events = POLLIN };

        if (poll(&p, 1, LOCKED_MS) > 0)
            hear(m);
        if (m->end)
            return false;
    }
    return true; /* held until the process ends */
}

static enum err start(struct mirror *m, int lease_fd, struct err_info *info)
{
    struct err_info why;

    if (lease_fd >= 0) {
        m->lease = redoubt_lease_map(lease_fd);
        if (!m->lease)
            return err_set(info, ERR_CONFIG, errno, "the lease page");
    }
    if (m->conf.share.data[0] == '\0')
        return err_set(info, ERR_CONFIG, 0, "[share] data is empty: there is no store");
    const enum err e = tree_prepare(&m->conf, info);

    if (e != ERR_OK)
        return e;
    if (!wait_for_lock(m))
        return err_set(info, ERR_CLOSED, 0, "the daemon is gone");
    /* What was known when it was here last. */
    const enum err known = list_load(m->conf.web.store, "list", &m->list, &why);

    if (known != ERR_OK && known != ERR_NOT_FOUND)
        log_event(LOG_LEVEL_WARNING, "list_lost", log_str("why", why.what));
    return ERR_OK;
}

static bool descriptor(const char *text, int *out)
{
    uint64_t n;

    if (!str_u64(str_of(text), 1023, &n))
        return false;
    *out = (int)n;
    return true;
}

static int run(struct mirror *m, int lease_fd)
{
    struct err_info why;

    log_start("redoubt-mirror", (enum log_level)m->conf.log.level,
              (enum log_target)m->conf.log.target);
    be_modest();
    if (start(m, lease_fd, &why) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "not_started", log_str("why", why.what));
        return 1;
    }
    loop(m);
    db_close(m);
    share_close(m);
    list_free(m->list);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "config", required_argument, NULL, 'c' },
        { "daemon-fd", required_argument, NULL, 'd' },
        { "lease-fd", required_argument, NULL, 'l' },
        { "version", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    static struct mirror m;
    const char *conf = CONF_DEFAULT_PATH;
    int o, lease_fd = -1;

    m.daemon_fd = -1;
    while ((o = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        bool ok = true;

        switch (o) {
        case 'c': conf = optarg; break;
        case 'd': ok = descriptor(optarg, &m.daemon_fd); break;
        case 'l': ok = descriptor(optarg, &lease_fd); break;
        case 'v': printf("redoubt-mirror %s\n", REDOUBT_VERSION); return 0;
        case 'h': fputs(help, stdout); return 0;
        default: ok = false;
        }
        if (!ok) {
            fputs(help, stderr);
            return 2;
        }
    }
    if (optind < argc) {
        fputs(help, stderr);
        return 2;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* whatever it hangs in */
    (void)prctl(PR_SET_DUMPABLE, 0); /* our memory holds the password of the share */
    if (sodium_init() < 0)
        return 1;
    if (!conf_load_told(conf, &m.conf))
        return 2;
    return run(&m, lease_fd);
}
