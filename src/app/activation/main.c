/* redoubt-activation: the Activation Proxy of a Redoubt node. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "app/activation/activation.h"
#include "sys/log/log.h"

enum { SWEEP_MS = 500, CONNECT_MS = 2000, EXIT_CONFIG = 78 };

static const char usage[] =
    "Usage: redoubt-activation [OPTION]...\n"
    "\n"
    "The Activation Proxy of a Redoubt node: gives devices signed leases of the licence\n"
    "and counts the seats in PostgreSQL.  The node daemon starts it in standby and "
    "tells\n"
    "it when the node is active; see docs/protocol/activation.md.\n"
    "\n"
    "  -c, --config FILE  the configuration (default: $REDOUBT_CONF, or\n"
    "                     " CONF_DEFAULT_PATH ")\n"
    "  -n, --check        check configuration, certificates and licence, and exit\n"
    "  -h, --help         print this text\n"
    "  -V, --version      print the version\n"
    "\n"
    "Exit codes: 0 ended as told, 1 failure, 64 wrong usage, 78 configuration.\n";

bool activation_may_answer(const struct activation *a)
{
    uint64_t epoch = 0;

    return a->active && redoubt_service_lease_held(a->service, &epoch) &&
           epoch == a->epoch;
}

/* --- the licence file ----------------------------------------------------------------- */

static enum err read_small(const char *path, char *buf, size_t size, size_t *n,
                           struct stat *st, struct err_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    enum err e = ERR_OK;

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno, "%s",
                       path);
    ssize_t got = fstat(fd, st) == 0 && S_ISREG(st->st_mode) ? read(fd, buf, size) : -1;
    if (got < 0)
        e = err_set(info, ERR_IO, errno, "read %s", path);
    else
        *n = (size_t)got;
    close(fd);
    return e;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static enum err load_keys(struct activation *a, struct err_info *info)
{
    const char *path = a->conf.activation.anchor;
    char hex[2 * LICENCE_KEY_BYTES + 2];
    struct mac_key seed;
    struct stat st;
    size_t n = 0;
    enum err e = read_small(path, hex, sizeof(hex), &n, &st, info);

    if (e != ERR_OK)
        return e;
    if (n == sizeof(hex) - 1 && hex[n - 1] == '\n')
        n--;
    if (!hex_decode(a->anchor, sizeof(a->anchor), (struct str){ hex, n }))
        return err_set(info, ERR_CONFIG, 0, "%s is not a public key (64 hex digits)",
                       path);
    e = conf_load_key(a->conf.activation.key, &seed, info);
    if (e != ERR_OK)
        return e;
    memcpy(a->seed, seed.bytes, sizeof(a->seed));
    a->keys_loaded = true;
    return ERR_OK;
}

void licence_refresh(struct activation *a)
{
    static char buf[LICENCE_BYTES_MAX + 1];
    const char *path = a->conf.activation.licence;
    struct err_info info = { .what = "" };
    struct stat st = { 0 };
    size_t n = 0;

    if (a->licence_state == REFUSED_NOT && stat(path, &st) == 0 &&
        same_file(&st, &a->licence_file))
        return;
    enum refusal before = a->licence_state;
    enum err e = a->keys_loaded ? ERR_OK : load_keys(a, &info);
    if (e == ERR_OK)
        e = read_small(path, buf, sizeof(buf), &n, &a->licence_file, &info);
    if (e != ERR_OK) {
        a->licence_state = e == ERR_NOT_FOUND ? REFUSED_NO_LICENCE : REFUSED_BAD_LICENCE;
    } else {
        e = licence_open(&a->licence, (struct str){ buf, n }, a->anchor, &info);
        a->licence_state = e == ERR_OK ? REFUSED_NOT : REFUSED_BAD_LICENCE;
    }
    (void)snprintf(a->licence_why, sizeof(a->licence_why), "%s", info.what);
    if (a->licence_state == REFUSED_NOT)
        log_event(LOG_LEVEL_INFO, "licence_read",
                  log_str("customer", a->licence.customer),
                  log_u64("seats", a->licence.seats));
    else if (before != a->licence_state)
        log_event(LOG_LEVEL_WARNING, "licence_unusable", log_str("path", path),
                  log_str("why", a->licence_why));
}

/* --- the role -------------------------------------------------------------------------- */

static void status_tell(struct activation *a)
{
    const char *licence =
        a->licence_state == REFUSED_NOT ? "ok" : refusal_words(a->licence_state)->id;

    if (!a->active)
        (void)redoubt_service_status(a->service, "standby, licence %s, database %s",
                                     licence,
                                     dbc_connected(a->dbc) ? "connected" : "unreachable");
    else
        (void)redoubt_service_status(
            a->service,
            "active epoch=%" PRIu64 " licence=%s seats=%" PRIu64 "/%u granted=%" PRIu64
            " refused=%" PRIu64 " database=%s",
            a->epoch, licence, a->used,
            a->licence_state == REFUSED_NOT ? a->licence.seats : 0, a->granted,
            a->refused, dbc_connected(a->dbc) ? "connected" : "unreachable");
}

static void standby(struct activation *a)
{
    uint64_t epoch = a->epoch;
    bool was_active = a->active;

    a->active = a->announced = false;
    if (a->front) {
        jobs_sweep(a, true, REFUSED_NOT_ACTIVE);
        front_close(a->front);
        a->front = NULL;
    }
    a->epoch = 0;
    if (was_active)
        log_event(LOG_LEVEL_INFO, "standby", log_u64("epoch", epoch),
                  log_u64("granted", a->granted));
}

static enum err open_front(struct activation *a, struct front **out,
                           struct err_info *info)
{
    const struct conf_activation *c = &a->conf.activation;
    char host[CONF_PATH];
    struct front_options o = { .loop = a->event,
                               .host = host,
                               .certificate = c->certificate,
                               .key = c->tls_key,
                               .ca = c->ca,
                               .handle = jobs_request,
                               .arg = a };
    enum err e = conf_listen_split(c->listen, host, sizeof(host), &o.port);

    return e != ERR_OK
               ? err_set(info, ERR_CONFIG, 0, "[activation] listen = %s", c->listen)
               : front_open(out, &o, info);
}

static void activate(struct activation *a, uint64_t epoch)
{
    struct err_info info = { .what = "" };

    if (a->active && epoch == a->epoch)
        return;
    standby(a);
    a->active = true;
    a->epoch = epoch;
    if (open_front(a, &a->front, &info) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "listen_failed", log_str("why", info.what));
        (void)sd_event_exit(a->event, 1); /* a service that cannot serve must fail */
        return;
    }
    licence_refresh(a);
    jobs_pump(a);
    log_event(LOG_LEVEL_INFO, "active", log_u64("epoch", epoch),
              log_str("listen", a->conf.activation.listen));
}

static int on_role(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct activation *a = arg;
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(a->service, &epoch);

    (void)source, (void)fd, (void)revents;
    switch (role) {
    case REDOUBT_ROLE_NONE: return 0;
    case REDOUBT_ROLE_GONE:
        log_event(LOG_LEVEL_WARNING, "daemon_gone");
        standby(a);
        return sd_event_exit(a->event, 1);
    case REDOUBT_ROLE_STANDBY: standby(a); break;
    case REDOUBT_ROLE_ACTIVE:
        if (epoch == 0)
            return 0; /* no lease has this number */
        activate(a, epoch);
        break;
    }
    (void)redoubt_service_ack(a->service, role, epoch);
    status_tell(a);
    return 0;
}

/* --- the loop -------------------------------------------------------------------------- */

static int on_sweep(sd_event_source *source, uint64_t us, void *arg)
{
    struct activation *a = arg;

    (void)us;
    jobs_sweep(a, false, REFUSED_DATABASE);
    jobs_pump(a);
    status_tell(a);
    (void)sd_event_source_set_time_relative(source, SWEEP_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_watchdog(sd_event_source *source, uint64_t us, void *arg)
{
    struct activation *a = arg;
    uint64_t period = redoubt_service_watchdog_period_ms(a->service);

    (void)us;
    (void)redoubt_service_watchdog(a->service);
    (void)sd_event_source_set_time_relative(source, period * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si,
                     void *arg)
{
    (void)si;
    standby(arg);
    return sd_event_exit(sd_event_source_get_event(source), 0);
}

static void on_up(void *ctx)
{
    struct activation *a = ctx;

    a->announced = false;
    log_event(LOG_LEVEL_INFO, "database", log_str("state", "connected"));
    jobs_pump(a);
}

static void on_down(void *ctx, enum err err, const struct err_info *why)
{
    struct activation *a = ctx;

    (void)err;
    a->announced = false;
    log_event(LOG_LEVEL_WARNING, "database", log_str("state", "lost"),
              log_str("why", why->what));
}

static int add_sources(struct activation *a)
{
    static const int signals[] = { SIGTERM, SIGINT };
    int role_fd = redoubt_service_role_fd(a->service), n = 0;

    if (role_fd >= 0)
        n = sd_event_add_io(a->event, NULL, role_fd, EPOLLIN, on_role, a);
    for (size_t i = 0; n >= 0 && i < LEN(signals); i++)
        n = sd_event_add_signal(a->event, NULL, signals[i] | SD_EVENT_SIGNAL_PROCMASK,
                                on_signal, a);
    if (n >= 0)
        n = sd_event_add_time_relative(a->event, NULL, CLOCK_BOOTTIME, SWEEP_MS * 1000u,
                                       0, on_sweep, a);
    if (n >= 0 && redoubt_service_watchdog_period_ms(a->service) > 0)
        n = sd_event_add_time_relative(a->event, NULL, CLOCK_BOOTTIME, 0, 0, on_watchdog,
                                       a);
    return n;
}

/* --- life ------------------------------------------------------------------------------ */

static enum err start(struct activation *a, struct err_info *info)
{
    struct dbc_events events = { .up = on_up, .down = on_down, .ctx = a };
    struct front *probe = NULL;
    struct dsn *dsn;
    enum err e = mac_start();

    if (e != ERR_OK)
        return err_set(info, e, 0, "libsodium does not work on this machine");
    int n = sd_event_new(&a->event);
    if (n < 0)
        return err_set(info, ERR_MEMORY, -n, "event loop");
    /* Certificate, key and port must do before they are needed.  A licence need not: the
     * cluster works without, and says so to whoever asks for a lease. */
    e = open_front(a, &probe, info);
    front_close(probe);
    if (e == ERR_OK)
        e = dsn_new(&dsn, a->conf.database.conninfo, "redoubt-activation", info);
    if (e == ERR_OK)
        e = dbc_open(&a->dbc, a->event, dsn, CONNECT_MS, &events, info);
    if (e == ERR_OK && (n = add_sources(a)) < 0)
        e = err_set(info, ERR_MEMORY, -n, "event loop");
    if (e == ERR_OK)
        licence_refresh(a);
    return e;
}

static bool load(struct activation *a, const char *path)
{
    const char *given = redoubt_service_conf(a->service);

    if (!path)
        path = given[0] ? given : CONF_DEFAULT_PATH;
    return conf_load_told(path, &a->conf);
}

static int serve(struct activation *a, const char *path, bool check)
{
    struct err_info info = { .what = "" };

    if (!load(a, path))
        return EXIT_CONFIG;
    log_start("redoubt-activation", (enum log_level)a->conf.log.level,
              (enum log_target)a->conf.log.target);
    enum err e = start(a, &info);
    if (e != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "start_failed", log_str("why", info.what));
        return e == ERR_CONFIG ? EXIT_CONFIG : 1;
    }
    if (check)
        return a->licence_state == REFUSED_NOT ? 0 : EXIT_CONFIG;
    (void)redoubt_service_ready(a->service);
    status_tell(a);
    int code = sd_event_loop(a->event);
    return code < 0 ? 1 : code;
}

static void stop(struct activation *a)
{
    standby(a);
    dbc_close(a->dbc);
    sd_event_unref(a->event);
    redoubt_service_stop(a->service);
    explicit_bzero(a->seed, sizeof(a->seed));
    free(a);
}

int main(int argc, char **argv)
{
    static const struct option options[] = { { "config", required_argument, NULL, 'c' },
                                             { "check", no_argument, NULL, 'n' },
                                             { "help", no_argument, NULL, 'h' },
                                             { "version", no_argument, NULL, 'V' },
                                             { 0 } };
    const char *path = NULL;
    bool check = false;
    int opt;

    while ((opt = getopt_long(argc, argv, "c:nhV", options, NULL)) != -1) {
        switch (opt) {
        case 'c': path = optarg; break;
        case 'n': check = true; break;
        case 'h': return fputs(usage, stdout) < 0;
        case 'V': return printf("redoubt-activation %s\n", REDOUBT_VERSION) < 0;
        default: return 64;
        }
    }
    if (optind != argc) {
        fprintf(stderr, "redoubt-activation: unexpected argument %s\n", argv[optind]);
        return 64;
    }
    struct activation *a = calloc(1, sizeof(*a));
    if (!a || !(a->service = redoubt_service_start(0))) {
        fprintf(stderr, "redoubt-activation: not usable as a service: %s\n",
                strerror(errno));
        free(a);
        return 1;
    }
    TAILQ_INIT(&a->jobs);
    a->licence_state = REFUSED_NO_LICENCE;
    int code = serve(a, path, check);
    stop(a);
    return code;
}
