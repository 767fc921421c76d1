/* redoubt-server: the Administration Server of a Redoubt node. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "app/server/master.h"
#include "app/server/push.h"
#include "sys/log/log.h"

enum { SWEEP_MS = 500, FILES_RESERVED = 64, EXIT_CONFIG = 78 };

static const char usage[] =
    "Usage: redoubt-server [OPTION]...\n"
    "\n"
    "The Administration Server of a Redoubt node: manages devices over mutual TLS "
    "(OpAMP\n"
    "over WebSocket or HTTP) with what PostgreSQL keeps.  The node daemon starts it in\n"
    "standby and tells it when the node is active; see docs/services.md.  It starts its\n"
    "workers, which the devices connect to, and redoubt-manager.\n"
    "\n"
    "  -c, --config FILE  the configuration (default: $REDOUBT_CONF, or\n"
    "                     " CONF_DEFAULT_PATH ")\n"
    "      --worker       be one worker, without a master\n"
    "  -n, --check        check configuration and certificates, and exit\n"
    "  -h, --help         print this text\n"
    "  -V, --version      print the version\n"
    "\n"
    "Exit codes: 0 ended as told, 1 failure, 64 wrong usage, 78 configuration.\n";

bool server_may_answer(const struct server *s)
{
    uint64_t epoch = 0;

    return s->active && store_state(s->store) != STORE_STALE &&
           redoubt_service_lease_held(s->service, &epoch) && epoch == s->epoch;
}

static void status_tell(struct server *s)
{
    const struct store_counts *n = store_counts(s->store);

    if (!s->active) {
        (void)redoubt_service_status(s->service, "standby, database %s%s%s",
                                     store_state_name(store_state(s->store)),
                                     s->store_why[0] ? ": " : "", s->store_why);
        return;
    }
    (void)redoubt_service_status(
        s->service,
        "active epoch=%" PRIu64 " database=%s connections=%u stored=%" PRIu64
        " refused=%" PRIu64 " unavailable=%" PRIu64 " bad=%" PRIu64,
        s->epoch, store_state_name(store_state(s->store)), s->conn_count, n->items,
        s->counts.refused_reports, s->counts.unavailable,
        s->counts.bad_messages + s->counts.bad_http);
}

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* Closes connections for at most ms, with a word to the devices; true: none is left. */
static bool drop_some(struct server *s, uint32_t ms)
{
    uint64_t end = boot_ms() + ms;
    struct conn *c;

    while ((c = LIST_FIRST(&s->conns))) {
        if (boot_ms() >= end)
            return false;
        if (c->state == CONN_WS)
            conn_goodbye(c, WS_CLOSE_AWAY, "this node is not active any more");
        conn_close(c, "standby");
    }
    return true;
}

/*
 * Everybody goes.  A step-down must not wait for thousands of connections: what is left
 * after DROP_MS is closed in the next turns of the loop, and gets no answer until then.
 */
static void drop_devices(struct server *s)
{
    s->listener = sd_event_source_disable_unref(s->listener);
    if (!drop_some(s, DROP_MS))
        (void)sd_event_source_set_enabled(s->dropper, SD_EVENT_ON);
}

static int on_drop(sd_event_source *source, void *arg)
{
    if (!drop_some(arg, DROP_MS))
        return 0;
    return sd_event_source_set_enabled(source, SD_EVENT_OFF);
}

void server_standby(struct server *s)
{
    bool was_active = s->active;
    uint64_t epoch = s->epoch;

    store_standby(s->store);
    device_forget_all(s);
    push_standby(s);
    drop_devices(s);
    s->active = false;
    s->epoch = 0;
    conn_bury(s);
    if (was_active)
        log_event(LOG_LEVEL_INFO, "standby", log_u64("epoch", epoch),
                  log_u64("answered", s->counts.answered));
}

void server_active(struct server *s, uint64_t epoch)
{
    struct err_info info = { 0 };

    if (s->active && epoch == s->epoch)
        return;
    if (s->active)
        server_standby(s);
    while (!drop_some(s, DROP_MS)) /* those of the last time are not of this epoch */
        ;
    s->active = true;
    s->epoch = epoch;
    store_active(s->store, epoch);
    if (listener_open(s, &info) != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "listen_failed", log_str("why", info.what));
        (void)sd_event_exit(s->event, 1); /* a service that cannot serve must fail */
        return;
    }
    log_event(LOG_LEVEL_INFO, "active", log_u64("epoch", epoch),
              log_str("listen", s->conf.server.listen),
              log_str("database", store_state_name(store_state(s->store))));
}

static void store_changed(void *arg, enum store_state state, const char *why)
{
    struct server *s = arg;

    (void)snprintf(s->store_why, sizeof(s->store_why), "%s", why);
    log_event(state == STORE_DOWN || state == STORE_STALE ? LOG_LEVEL_WARNING
                                                          : LOG_LEVEL_INFO,
              "database", log_str("state", store_state_name(state)), log_str("why", why));
    if (state == STORE_STALE)
        drop_devices(s); /* another node is active: say nothing more */
    if (s->was_down && (state == STORE_WARM || state == STORE_READY))
        push_catch_up(s);
    s->was_down = state == STORE_DOWN;
    status_tell(s);
}

static int on_role(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct server *s = arg;
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(s->service, &epoch);

    (void)source, (void)fd, (void)revents;
    switch (role) {
    case REDOUBT_ROLE_NONE: return 0;
    case REDOUBT_ROLE_GONE:
        log_event(LOG_LEVEL_WARNING, "daemon_gone");
        server_standby(s);
        return sd_event_exit(s->event, 1);
    case REDOUBT_ROLE_STANDBY: server_standby(s); break;
    case REDOUBT_ROLE_ACTIVE:
        if (epoch == 0)
            return 0; /* no lease has this number */
        server_active(s, epoch);
        break;
    }
    (void)redoubt_service_ack(s->service, role, epoch);
    status_tell(s);
    return 0;
}

static int on_sweep(sd_event_source *source, uint64_t us, void *arg)
{
    struct server *s = arg;

    (void)us;
    conn_sweep(s);
    if (s->listener) /* it may have been paused for want of descriptors */
        listener_pace(s);
    status_tell(s);
    (void)sd_event_source_set_time_relative(source, SWEEP_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_watchdog(sd_event_source *source, uint64_t us, void *arg)
{
    struct server *s = arg;
    uint64_t period = redoubt_service_watchdog_period_ms(s->service);

    (void)us;
    (void)redoubt_service_watchdog(s->service);
    (void)sd_event_source_set_time_relative(source, period * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si,
                     void *arg)
{
    struct server *s = arg;

    (void)si;
    server_standby(s);
    return sd_event_exit(sd_event_source_get_event(source), 0);
}

static uint32_t files_limit(void)
{
    struct rlimit r = { 0 };

    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return 1024;
    r.rlim_cur = r.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &r);
    return r.rlim_cur > 1u << 20 ? 1u << 20 : (uint32_t)r.rlim_cur;
}

static int add_sources(struct server *s)
{
    static const int stop[] = { SIGTERM, SIGINT };
    int role_fd = redoubt_service_role_fd(s->service);
    int n = sd_event_add_defer(s->event, &s->dropper, on_drop, s);

    if (n >= 0)
        n = sd_event_source_set_enabled(s->dropper, SD_EVENT_OFF);
    if (n >= 0 && role_fd >= 0)
        n = sd_event_add_io(s->event, NULL, role_fd, EPOLLIN, on_role, s);
    for (size_t i = 0; n >= 0 && i < LEN(stop); i++)
        n = sd_event_add_signal(s->event, NULL, stop[i] | SD_EVENT_SIGNAL_PROCMASK,
                                on_signal, s);
    if (n >= 0)
        n = sd_event_add_time_relative(s->event, NULL, CLOCK_BOOTTIME, SWEEP_MS * 1000u,
                                       0, on_sweep, s);
    if (n >= 0 && redoubt_service_watchdog_period_ms(s->service) > 0)
        n = sd_event_add_time_relative(s->event, NULL, CLOCK_BOOTTIME, 0, 0, on_watchdog,
                                       s);
    return n;
}

static enum err start(struct server *s, struct err_info *info)
{
    struct store_hooks hooks = { .arg = s,
                                 .done = device_done,
                                 .read = push_rows,
                                 .notified = push_notified,
                                 .changed = store_changed };
    struct tls_files files = { s->conf.server.certificate, s->conf.server.key,
                               s->conf.server.ca };
    uint32_t limit = files_limit();
    enum err e = tls_creds_new(TLS_SERVER, &files, &s->creds, info);

    s->conn_max = limit > 2 * FILES_RESERVED ? limit - FILES_RESERVED : FILES_RESERVED;
    s->now_ms = boot_ms();
    if (e == ERR_OK)
        e = listener_probe(s, info);
    uint8_t key[TLS_TICKET_KEY];
    if (e == ERR_OK && master_ticket_key(key))
        e = tls_creds_ticket_key(s->creds, key, info);
    int n = e == ERR_OK ? sd_event_new(&s->event) : 0;
    if (n < 0)
        return err_set(info, ERR_MEMORY, -n, "event loop");
    if (e == ERR_OK)
        e = push_start(s, info);
    if (e == ERR_OK)
        e = store_new(s->event, s->conf.database.conninfo, s->conf.cluster.node, &hooks,
                      &s->store, info);
    if (e == ERR_OK && (n = add_sources(s)) < 0)
        e = err_set(info, ERR_MEMORY, -n, "event loop");
    return e;
}

static int run(struct server *s)
{
    int code = 0;

    while (sd_event_get_state(s->event) != SD_EVENT_FINISHED) {
        int n = sd_event_prepare(s->event);

        if (n == 0)
            n = sd_event_wait(s->event, UINT64_MAX);
        s->now_ms = boot_ms(); /* as it is when the handler runs */
        if (n > 0)
            n = sd_event_dispatch(s->event);
        if (n < 0)
            return 1;
        conn_release(s);
        conn_bury(s);
    }
    return sd_event_get_exit_code(s->event, &code) < 0 ? 1 : code;
}

static void stop(struct server *s)
{
    if (s->store)
        server_standby(s);
    while (!drop_some(s, DROP_MS))
        ;
    conn_bury(s);
    store_free(s->store);
    push_stop(s);
    s->pacer = sd_event_source_disable_unref(s->pacer);
    s->dropper = sd_event_source_disable_unref(s->dropper);
    sd_event_unref(s->event);
    tls_creds_free(s->creds);
    redoubt_service_stop(s->service);
    free(s);
}

/* What the command line and the environment ask for. */
struct wanted {
    const char *path;
    bool worker, check;
    struct master_env env;
};

static const char *path_of(const struct server *s, const char *path)
{
    const char *given = redoubt_service_conf(s->service);

    if (path)
        return path;
    return given[0] ? given : CONF_DEFAULT_PATH;
}

static bool load(struct server *s, const char *path)
{
    return conf_load_told(path_of(s, path), &s->conf);
}

static int serve(struct server *s, const struct wanted *w)
{
    struct err_info info = { 0 };

    if (!load(s, w->path))
        return EXIT_CONFIG;
    log_start("redoubt-server", (enum log_level)s->conf.log.level,
              (enum log_target)s->conf.log.target);
    if (!w->worker && !w->check)
        return master_run(s->service, &w->env, &s->conf, path_of(s, w->path));
    enum err e = start(s, &info);
    if (e != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "start_failed", log_str("why", info.what));
        return e == ERR_CONFIG ? EXIT_CONFIG : 1;
    }
    if (w->check)
        return 0;
    (void)redoubt_service_ready(s->service);
    status_tell(s);
    return run(s);
}

/* False: wrong usage, or what was asked for is done; *code is the exit status. */
static bool arguments(struct wanted *w, int argc, char **argv, int *code)
{
    static const struct option options[] = {
        { "config", required_argument, NULL, 'c' }, { "check", no_argument, NULL, 'n' },
        { "worker", no_argument, NULL, 'w' },       { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },      { 0 }
    };
    int opt;

    *code = 64;
    while ((opt = getopt_long(argc, argv, "c:nhV", options, NULL)) != -1) {
        switch (opt) {
        case 'c': w->path = optarg; break;
        case 'n': w->check = true; break;
        case 'w': w->worker = true; break;
        case 'h': *code = fputs(usage, stdout) < 0; return false;
        case 'V':
            *code = printf("redoubt-server %s\n", REDOUBT_VERSION) < 0;
            return false;
        default: return false;
        }
    }
    if (optind != argc) {
        fprintf(stderr, "redoubt-server: unexpected argument %s\n", argv[optind]);
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct wanted w = { 0 };
    int code;

    if (!arguments(&w, argc, argv, &code))
        return code;
    master_env_take(&w.env);
    struct server *s = calloc(1, sizeof(*s));
    if (!s || !(s->service = redoubt_service_start(0))) {
        fprintf(stderr, "redoubt-server: not usable as a service: %s\n", strerror(errno));
        free(s);
        return 1;
    }
    code = serve(s, &w);
    stop(s);
    return code;
}
