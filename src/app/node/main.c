/*
 * redoubt-node: the node daemon.  Sets up, runs the loop, ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

static const char help[] =
    "usage: redoubt-node [--config FILE] [--check]\n"
    "The node daemon of a Redoubt cluster: keeps or takes the lease, and runs the "
    "services.\n"
    "\n"
    "  -c, --config FILE  the configuration (default " CONF_DEFAULT_PATH ")\n"
    "  -n, --check        check the configuration and end\n"
    "      --version      print the version and end\n"
    "  -h, --help         print this and end\n"
    "\n"
    "SIGTERM and SIGINT hand the lease over and end it; SIGHUP reads the configuration "
    "again.\n"
    "Exit codes: 0 ended on request, 1 failed, 2 usage or configuration.\n";

static struct daemon the_daemon; /* 300 KiB: not on the stack, and there is one */

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *user)
{
    struct daemon *d = user;

    (void)s;
    if (si->ssi_signo == SIGHUP) {
        json_t *answer = json_object();
        enum err e;

        setup_reload(d, answer, &e);
        log_event(e == ERR_OK ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, "reload",
                  log_str("result", err_name(e)));
        json_decref(answer);
        return 0;
    }
    log_event(LOG_LEVEL_INFO, "stop", log_u64("signal", si->ssi_signo));
    (void)sd_notify(0, "STOPPING=1");
    if (d->running)
        world_event(d, &(struct node_event){ .kind = NODE_EV_STOP });
    else
        (void)sd_event_exit(d->loop, 0);
    return 0;
}

static enum err open_loop(struct daemon *d, struct err_info *info)
{
    static const int signals[] = { SIGTERM, SIGINT, SIGHUP };
    sigset_t set;

    (void)sigemptyset(&set);
    for (size_t i = 0; i < LEN(signals); i++)
        (void)sigaddset(&set, signals[i]);
    (void)sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    int r = sd_event_new(&d->loop);

    for (size_t i = 0; r >= 0 && i < LEN(signals); i++)
        r = sd_event_add_signal(d->loop, NULL, signals[i], on_signal, d);
    if (r >= 0)
        r = sd_event_set_watchdog(d->loop, 1);
    return r < 0 ? err_set(info, ERR_IO, -r, "event loop") : ERR_OK;
}

static enum err make_dir(const char *path, mode_t mode, struct err_info *info)
{
    char part[CONF_PATH];

    /* The parents too, as `mkdir -p` does. */
    for (const char *p = path + 1; (p = strchr(p, '/')) != NULL; p++) {
        (void)snprintf(part, sizeof(part), "%.*s", (int)(p - path), path);
        if (mkdir(part, 0755) < 0 && errno != EEXIST)
            return err_set(info, ERR_IO, errno, "make %s", part);
    }
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", path);
    return ERR_OK;
}

/*
 * The services, of group redoubt, put sockets of their own there (manager.sock).  Sticky:
 * nobody removes or replaces what is another's.  Without the group it stays the owner's.
 */
static void open_to_services(const char *path)
{
    const struct group *g = getgrnam("redoubt");

    if (g && chown(path, (uid_t)-1, g->gr_gid) == 0)
        (void)chmod(path, 01775);
}

/* One daemon on a machine, for one run_dir. */
static enum err lock(struct daemon *d, struct err_info *info)
{
    char path[CONF_PATH + 32];
    enum err e = make_dir(d->conf.cluster.run_dir, 0755, info);

    if (e == ERR_OK)
        e = make_dir(d->conf.cluster.state_dir, 0750, info);
    if (e != ERR_OK)
        return e;
    open_to_services(d->conf.cluster.run_dir);
    (void)snprintf(path, sizeof(path), "%s/node.lock", d->conf.cluster.run_dir);
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (d->lock_fd < 0)
        return err_set(info, ERR_IO, errno, "open %s", path);
    if (flock(d->lock_fd, LOCK_EX | LOCK_NB) < 0)
        return err_set(info, ERR_EXISTS, 0, "another redoubt-node runs with run_dir = %s",
                       d->conf.cluster.run_dir);
    return ERR_OK;
}

static enum err find_libexec(struct daemon *d, struct err_info *info)
{
    ssize_t n = readlink("/proc/self/exe", d->libexec, sizeof(d->libexec) - 1);

    if (n <= 0)
        return err_set(info, ERR_IO, errno, "read /proc/self/exe");
    d->libexec[n] = '\0';
    *strrchr(d->libexec, '/') = '\0';
    return ERR_OK;
}

/* It cannot start its work: say so to whoever asks, and end, to be started again. */
static int give_up(sd_event_source *s, uint64_t when, void *user)
{
    struct daemon *d = user;

    (void)s;
    (void)when;
    return sd_event_exit(d->loop, 1);
}

static void serve_trouble(struct daemon *d, enum err e, const struct err_info *info)
{
    (void)snprintf(d->trouble, sizeof(d->trouble), "%s", info->what);
    log_event(LOG_LEVEL_ERROR, "not_started", log_str("error", err_name(e)),
              log_str("what", d->trouble),
              log_str("suggestion", alarm_info(d->trouble_id)->suggestion));
    d->alarm_since[d->trouble_id] = now_wall_us();
    (void)snprintf(d->alarm_detail[d->trouble_id], sizeof(d->alarm_detail[0]), "%.199s",
                   d->trouble);
    (void)sd_event_add_time_relative(d->loop, NULL, CLOCK_BOOTTIME, 5000000, 100000,
                                     give_up, d);
}

static int run(struct daemon *d)
{
    struct err_info info = { .sys_errno = 0 };
    enum err e = find_libexec(d, &info);

    if (e == ERR_OK)
        e = lock(d, &info);
    if (e == ERR_OK)
        e = open_loop(d, &info);
    if (e == ERR_OK)
        e = api_open(d, &info);
    if (e != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "not_started", log_str("error", err_name(e)),
                  log_str("what", info.what));
        return 1;
    }
    d->trouble_id = ALARM_SERVICE_MISSING;
    e = setup_load(d, &info);
    if (e == ERR_OK)
        e = world_open(d, &info);
    if (e != ERR_OK)
        serve_trouble(d, e, &info);
    log_event(LOG_LEVEL_INFO, "started", log_str("node", d->conf.cluster.node),
              log_str("cluster", d->conf.cluster.name),
              log_str("version", REDOUBT_VERSION));
    (void)sd_notify(0, "READY=1");
    int r = sd_event_loop(d->loop);

    api_close(d);
    world_close(d);
    sd_event_unref(d->loop);
    json_decref(d->history);
    json_decref(d->switches);
    return r < 0 ? 1 : r;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "config", required_argument, NULL, 'c' },
        { "check", no_argument, NULL, 'n' },
        { "version", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    static struct conf_errors errors;
    struct daemon *d = &the_daemon;
    bool check_only = false;
    int o;

    d->conf_path = CONF_DEFAULT_PATH;
    d->lock_fd = d->gone[0] = d->gone[1] = -1;
    d->page.fd = -1;
    while ((o = getopt_long(argc, argv, "c:nh", options, NULL)) != -1) {
        switch (o) {
        case 'c': d->conf_path = optarg; break;
        case 'n': check_only = true; break;
        case 'v': printf("redoubt-node %s\n", REDOUBT_VERSION); return 0;
        case 'h': fputs(help, stdout); return 0;
        default: fputs(help, stderr); return 2;
        }
    }
    if (optind < argc) {
        fputs(help, stderr);
        return 2;
    }
    if (mac_start() != ERR_OK) {
        fprintf(stderr, "redoubt-node: libsodium does not work on this machine\n");
        return 1;
    }
    if (conf_load(d->conf_path, &d->conf, &errors) != ERR_OK) {
        conf_errors_print(&errors, d->conf_path, stderr);
        return 2;
    }
    if (check_only)
        return 0;
    log_start("redoubt-node", (enum log_level)d->conf.log.level,
              (enum log_target)d->conf.log.target);
    /* A page fault to a slow disk must not cost the lease; without the right, go on. */
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        log_event(LOG_LEVEL_WARNING, "not_locked_in_memory",
                  log_str("error", strerror(errno)));
    return run(d);
}
