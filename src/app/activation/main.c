/* redoubt-activation: the Activation Proxy of a Redoubt node. */
#include <errno.h>
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

/* --- the DBMS session ------------------------------------------------------------------ */

uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail */
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* After a failure the sweep tries again, not this: the DBMS may refuse for long. */
static void on_announced(void *ctx, enum err err, const PGresult *r,
                         const struct err_info *why)
{
    struct activation *a = ctx;

    if (err != ERR_OK) {
        log_event(LOG_LEVEL_WARNING, "announce_failed", log_str("why", why->what));
        return;
    }
    a->announced = a->active && (uint64_t)cell(r, 0, 0) == a->epoch;
    pump(a);
}

static void announce(struct activation *a)
{
    char epoch[24];
    const char *values[] = { epoch, a->conf.cluster.node };

    (void)snprintf(epoch, sizeof(epoch), "%" PRIu64, a->epoch);
    dbc_query(a->dbc, QUERY_MS, "SELECT redoubt.announce($1::bigint, 'activation', $2)",
              LEN(values), values, on_announced, a);
}

static void on_listening(void *ctx, enum err err, const PGresult *r,
                         const struct err_info *why)
{
    struct activation *a = ctx;

    (void)r;
    if (err != ERR_OK) {
        log_event(LOG_LEVEL_WARNING, "listen_failed", log_str("why", why->what));
        return;
    }
    a->listening = a->sync_due = true;
    pump(a);
}

static void on_told(void *ctx, enum err err, const PGresult *r,
                    const struct err_info *why)
{
    (void)r;
    if (err != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "flood_untold", log_str("why", why->what));
    pump(ctx);
}

static void tell_flood(struct activation *a)
{
    char device[UUID_TEXT], rate[16];
    const char *values[] = { device, rate };

    uuid_format(device, &a->flooder);
    (void)snprintf(rate, sizeof(rate), "%u", a->conf.activation.requests_per_minute);
    a->has_flooder = false;
    dbc_query(a->dbc, QUERY_MS, "SELECT redoubt.licence_flood($1::uuid, $2::integer)",
              LEN(values), values, on_told, a);
}

void pump(struct activation *a)
{
    if (!a->active || !dbc_idle(a->dbc))
        return;
    if (!a->announced)
        announce(a);
    else if (!a->listening)
        dbc_query(a->dbc, QUERY_MS, "LISTEN redoubt_licence", 0, NULL, on_listening, a);
    else if (a->sync_due)
        licences_sync(a);
    else if (!vendor_ask(a) && a->has_flooder)
        tell_flood(a);
    else if (dbc_idle(a->dbc))
        (void)jobs_ask(a); /* false: nothing waits */
}

/* --- the role -------------------------------------------------------------------------- */

static void metrics_tell(struct activation *a)
{
    char text[1000];
    struct text t;

    text_init(&t, text, sizeof(text));
    if (a->active)
        licences_metrics(a, &t);
    (void)redoubt_service_metrics(a->service, t.cut ? "" : text);
}

static void status_tell(struct activation *a)
{
    const char *database = dbc_connected(a->dbc) ? "connected" : "unreachable";
    const char *licence = licences_word(a);
    uint64_t used, all;

    licences_seats(a, &used, &all);
    metrics_tell(a);
    if (!a->active)
        (void)redoubt_service_status(a->service, "standby, licence file %s, database %s",
                                     licence, database);
    else
        (void)redoubt_service_status(a->service,
                                     "active epoch=%" PRIu64 " licence=%s seats=%" PRIu64
                                     "/%" PRIu64
                                     " vendor=%s clock=%s database=%s granted=%" PRIu64
                                     " cached=%" PRIu64 " refused=%" PRIu64,
                                     a->epoch, licence, used, all, vendor_word(a),
                                     a->clock_suspect ? "suspect" : "ok", database,
                                     a->granted, a->cached, a->refused);
}

static void standby(struct activation *a)
{
    uint64_t epoch = a->epoch;
    bool was_active = a->active;

    a->active = a->announced = a->synced = a->has_flooder = false;
    a->held_count = 0;
    vendor_standby(a);
    devices_forget(a->devices);
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
    licences_file(a);
    a->sync_due = true;
    dbc_retry_now(a->dbc); /* no time to lose with a backoff */
    pump(a);
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
    if (boot_ms() - a->synced_ms >= SYNC_MS) {
        licences_file(a);
        a->synced_ms = boot_ms();
        a->sync_due = true;
    }
    pump(a);
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

    a->announced = a->listening = false;
    devices_forget(a->devices); /* what changed while nobody listened is not known */
    log_event(LOG_LEVEL_INFO, "database", log_str("state", "connected"));
    pump(a);
}

/* Licences have changed, or the seat of a device was taken away. */
static void on_notify(void *ctx, const char *channel, const char *payload)
{
    struct activation *a = ctx;

    (void)channel, (void)payload; /* there is one */
    devices_forget(a->devices);
    vendor_look(a);
    a->sync_due = true;
    pump(a);
}

static void on_down(void *ctx, enum err err, const struct err_info *why)
{
    struct activation *a = ctx;

    (void)err;
    a->announced = a->listening = false;
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
    struct dbc_events events = {
        .up = on_up, .down = on_down, .notify = on_notify, .ctx = a
    };
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
        e = vendor_start(a, info);
    a->devices = devices_new(a->conf.activation.requests_per_minute);
    if (e == ERR_OK && !a->devices)
        e = err_set(info, ERR_MEMORY, 0, "out of memory");
    if (e == ERR_OK)
        licences_file(a);
    return e;
}

static bool load(struct activation *a, const char *path)
{
    const char *given = redoubt_service_conf(a->service);

    if (!path)
        path = given[0] ? given : CONF_DEFAULT_PATH;
    return conf_load_told(path, &a->conf);
}

/* A licence file need not be there: licences may come by codes. */
static int check_result(const struct activation *a)
{
    bool good = a->file_state == REFUSED_NOT ||
                (a->file_state == REFUSED_NO_LICENCE && a->keys_loaded);

    if (!good)
        fprintf(stderr, "redoubt-activation: %s\n", a->file_why);
    return good ? 0 : EXIT_CONFIG;
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
        return check_result(a);
    (void)redoubt_service_ready(a->service);
    status_tell(a);
    int code = sd_event_loop(a->event);
    return code < 0 ? 1 : code;
}

static void stop(struct activation *a)
{
    if (a->devices)
        standby(a);
    vendor_stop(a);
    dbc_close(a->dbc);
    devices_free(a->devices);
    free(a->file_text);
    sd_event_unref(a->event);
    redoubt_service_stop(a->service);
    explicit_bzero(&a->signer, sizeof(a->signer));
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
    a->file_state = REFUSED_NO_LICENCE;
    int code = serve(a, path, check);
    stop(a);
    return code;
}
