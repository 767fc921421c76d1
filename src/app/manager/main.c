/* redoubt-manager: the API, enrolment and the clock of the Administration Server. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <sodium.h>
#include <sys/epoll.h>

#include "app/manager/api.h"
#include "app/manager/enrol.h"
#include "sys/log/log.h"

enum {
    SWEEP_MS = 250,
    EXIT_CONFIG = 78,
    NETWORK_CONNECTIONS = 256,
    NETWORK_PER_IP = 64,
    NETWORK_IDLE_S = 15,
};

static const char usage[] =
    "Usage: redoubt-manager [OPTION]...\n"
    "\n"
    "The part of the Administration Server that people and programs talk to: the API on "
    "a\n"
    "Unix socket and over TLS, enrolment of devices, and what must happen each second.\n"
    "redoubt-server starts it and tells it its role; see docs/api.md.\n"
    "\n"
    "  -c, --config FILE  the configuration (default: $REDOUBT_CONF, or\n"
    "                     " CONF_DEFAULT_PATH ")\n"
    "  -n, --check        check configuration and certificates, and exit\n"
    "  -r, --routes       list the API: method, address, least role, query; and exit\n"
    "  -h, --help         print this text\n"
    "  -V, --version      print the version\n"
    "\n"
    "Exit codes: 0 ended as told, 1 failure, 64 wrong usage, 78 configuration.\n";

bool manager_may_answer(const struct manager *m)
{
    uint64_t epoch = 0;

    return m->active && redoubt_service_lease_held(m->service, &epoch) &&
           epoch == m->epoch;
}

static void status_tell(struct manager *m)
{
    const char *database = pool_connected(m->pool) ? "connected" : "unreachable";

    if (!m->active)
        (void)redoubt_service_status(m->service, "standby, database %s", database);
    else
        (void)redoubt_service_status(m->service,
                                     "active epoch=%" PRIu64
                                     " database=%s answered=%" PRIu64 " refused=%" PRIu64,
                                     m->epoch, database, m->answered, m->refused);
}

/* --- the role ------------------------------------------------------------------------------ */

static void standby(struct manager *m)
{
    bool was_active = m->active;
    uint64_t epoch = m->epoch;

    m->active = false;
    if (m->pool)
        pool_standby(m->pool);
    api_standby(m);
    if (was_active) {
        enrol_standby(m);
        log_event(LOG_LEVEL_INFO, "standby", log_u64("epoch", epoch),
                  log_u64("answered", m->answered));
    }
    m->epoch = 0;
    m->ticking = false;
}

static void activate(struct manager *m, uint64_t epoch)
{
    if (m->active && epoch == m->epoch)
        return;
    standby(m);
    m->active = true;
    m->epoch = epoch;
    pool_active(m->pool, epoch);
    enrol_active(m);
    tick(m);
    log_event(LOG_LEVEL_INFO, "active", log_u64("epoch", epoch),
              log_str("listen", m->conf.server.api_listen));
}

static int on_role(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct manager *m = arg;
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(m->service, &epoch);

    (void)source, (void)fd, (void)revents;
    switch (role) {
    case REDOUBT_ROLE_NONE: return 0;
    case REDOUBT_ROLE_GONE:
        log_event(LOG_LEVEL_WARNING, "master_gone");
        standby(m);
        return sd_event_exit(m->event, 1);
    case REDOUBT_ROLE_STANDBY: standby(m); break;
    case REDOUBT_ROLE_ACTIVE:
        if (epoch == 0)
            return 0; /* no lease has this number */
        activate(m, epoch);
        break;
    }
    (void)redoubt_service_ack(m->service, role, epoch);
    status_tell(m);
    return 0;
}

/* --- the loop ------------------------------------------------------------------------------ */

/* What the DBMS says after a commit: {"t":"events"}, ...  "": some may have been missed. */
static void on_notified(void *arg, const char *payload)
{
    struct manager *m = arg;

    if (!*payload || strstr(payload, "\"events\""))
        api_events(m);
    if (m->active && (!*payload || strstr(payload, "\"sign\"")))
        enrol_poke(m);
}

static int on_sweep(sd_event_source *source, uint64_t us, void *arg)
{
    struct manager *m = arg;

    (void)us;
    api_sweep(m);
    (void)sd_event_source_set_time_relative(source, SWEEP_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_second(sd_event_source *source, uint64_t us, void *arg)
{
    struct manager *m = arg;

    (void)us;
    pool_sweep(m->pool);
    tick(m);
    status_tell(m);
    (void)sd_event_source_set_time_relative(source, 1000000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_watchdog(sd_event_source *source, uint64_t us, void *arg)
{
    struct manager *m = arg;
    uint64_t period = redoubt_service_watchdog_period_ms(m->service);

    (void)us;
    (void)redoubt_service_watchdog(m->service);
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

static int add_sources(struct manager *m)
{
    static const int signals[] = { SIGTERM, SIGINT };
    int role_fd = redoubt_service_role_fd(m->service), n = 0;

    if (role_fd >= 0)
        n = sd_event_add_io(m->event, NULL, role_fd, EPOLLIN, on_role, m);
    for (size_t i = 0; n >= 0 && i < LEN(signals); i++)
        n = sd_event_add_signal(m->event, NULL, signals[i] | SD_EVENT_SIGNAL_PROCMASK,
                                on_signal, m);
    if (n >= 0)
        n = sd_event_add_time_relative(m->event, NULL, CLOCK_BOOTTIME, SWEEP_MS * 1000u,
                                       0, on_sweep, m);
    if (n >= 0)
        n = sd_event_add_time_relative(m->event, NULL, CLOCK_BOOTTIME, 1000000u, 0,
                                       on_second, m);
    if (n >= 0 && redoubt_service_watchdog_period_ms(m->service) > 0)
        n = sd_event_add_time_relative(m->event, NULL, CLOCK_BOOTTIME, 0, 0, on_watchdog,
                                       m);
    return n;
}

/* --- life ---------------------------------------------------------------------------------- */

static enum err listen_local(struct manager *m, struct err_info *info)
{
    char path[CONF_PATH + 32];
    struct http_server_options o = { .loop = m->event,
                                     .unix_path = path,
                                     .unix_group = "redoubt",
                                     .body_max = api_body_max,
                                     .handle = api_request,
                                     .arg = m };

    (void)snprintf(path, sizeof(path), "%s/manager.sock", m->conf.cluster.run_dir);
    return http_server_new(&o, &m->local, info);
}

static enum err listen_network(struct manager *m, struct err_info *info)
{
    const struct conf_server *c = &m->conf.server;
    char host[CONF_PATH];
    struct http_server_options o = { .loop = m->event,
                                     .tcp_host = host,
                                     .certificate = c->certificate,
                                     .key = c->key,
                                     .connections_max = NETWORK_CONNECTIONS,
                                     .per_ip_max = NETWORK_PER_IP,
                                     .idle_s = NETWORK_IDLE_S,
                                     .body_max = api_body_max,
                                     .handle = api_request,
                                     .arg = m };

    if (!c->api_listen[0])
        return ERR_OK;
    if (conf_listen_split(c->api_listen, host, sizeof(host), &o.tcp_port) != ERR_OK)
        return err_set(info, ERR_CONFIG, 0, "[server] api_listen = %s", c->api_listen);
    return http_server_new(&o, &m->network, info);
}

static enum err start(struct manager *m, struct err_info *info)
{
    struct pool_options pool = { .conninfo = m->conf.database.conninfo,
                                 .node = m->conf.cluster.node,
                                 .arg = m,
                                 .notified = on_notified };
    int n = sodium_init() < 0 ? -EIO : sd_event_new(&m->event);
    enum err e;

    if (n < 0)
        return err_set(info, ERR_MEMORY, -n, "event loop");
    pool.loop = m->event;
    e = pool_open(&m->pool, &pool, info);
    if (e == ERR_OK)
        e = listen_local(m, info);
    if (e == ERR_OK)
        e = listen_network(m, info);
    if (e == ERR_OK)
        e = enrol_start(m, info);
    if (e == ERR_OK && (n = add_sources(m)) < 0)
        e = err_set(info, ERR_MEMORY, -n, "event loop");
    return e;
}

static bool load(struct manager *m, const char *path)
{
    const char *given = redoubt_service_conf(m->service);

    if (!path)
        path = given[0] ? given : CONF_DEFAULT_PATH;
    return conf_load_told(path, &m->conf);
}

static int serve(struct manager *m, const char *path, bool check)
{
    struct err_info info = { .what = "" };

    if (!load(m, path))
        return EXIT_CONFIG;
    log_start("redoubt-manager", (enum log_level)m->conf.log.level,
              (enum log_target)m->conf.log.target);
    enum err e = start(m, &info);
    if (e != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "start_failed", log_str("why", info.what));
        return e == ERR_CONFIG ? EXIT_CONFIG : 1;
    }
    if (check)
        return 0;
    (void)redoubt_service_ready(m->service);
    status_tell(m);
    int code = sd_event_loop(m->event);
    return code < 0 ? 1 : code;
}

static void stop(struct manager *m)
{
    standby(m);
    enrol_stop(m);
    http_server_free(m->local);
    http_server_free(m->network);
    pool_close(m->pool);
    sd_event_unref(m->event);
    redoubt_service_stop(m->service);
    free(m);
}

static int print_routes(void)
{
    const struct route *r;

    for (size_t i = 0; (r = route_at(i)); i++)
        if (printf("%s %s %s %s\n", r->method, r->pattern, r->role ? r->role : "public",
                   r->query) < 0)
            return 1;
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "config", required_argument, NULL, 'c' }, { "check", no_argument, NULL, 'n' },
        { "routes", no_argument, NULL, 'r' },       { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },      { 0 }
    };
    const char *path = NULL;
    bool check = false;
    int opt;

    while ((opt = getopt_long(argc, argv, "c:nrhV", options, NULL)) != -1) {
        switch (opt) {
        case 'c': path = optarg; break;
        case 'n': check = true; break;
        case 'r': return print_routes();
        case 'h': return fputs(usage, stdout) < 0;
        case 'V': return printf("redoubt-manager %s\n", REDOUBT_VERSION) < 0;
        default: return 64;
        }
    }
    if (optind != argc) {
        fprintf(stderr, "redoubt-manager: unexpected argument %s\n", argv[optind]);
        return 64;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    struct manager *m = calloc(1, sizeof(*m));
    if (!m || !(m->service = redoubt_service_start(0))) {
        fprintf(stderr, "redoubt-manager: not usable as a service: %s\n",
                strerror(errno));
        free(m);
        return 1;
    }
    TAILQ_INIT(&m->asked);
    int code = serve(m, path, check);
    stop(m);
    return code;
}
