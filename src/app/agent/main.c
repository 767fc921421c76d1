/* redoubt-agent: the Network Agent of a device. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "app/agent/agent.h"
#include "app/agent/enrol.h"
#include "app/agent/protect.h"
#include "app/agent/supervise.h"
#include "app/agent/upgrade.h"
#include "base/mac.h"
#include "sys/log/log.h"

enum { EXIT_USAGE = 64, EXIT_CONFIG = 78, CLOCK_SLACK_S = 86400 };

static const char usage[] =
    "Usage: redoubt-agent [OPTION]...\n"
    "       redoubt-agent [OPTION]... status [--json]\n"
    "       redoubt-agent enrol --server HOST --token TOKEN [OPTION]...\n"
    "\n"
    "The Network Agent: reports the protection of this device to the Administration\n"
    "Server.  Reports wait in a spool on disk until the server has stored them.\n"
    "\n"
    "  -c, --config FILE   the configuration (default: " CONF_AGENT_DEFAULT_PATH ")\n"
    "      --ack-log FILE  append a line `device report seq` for each stored report\n"
    "  -n, --check         check configuration and certificates, and exit\n"
    "  -j, --json          status: as JSON\n"
    "  -h, --help          print this text\n"
    "  -V, --version       print the version\n"
    "\n"
    "Exit codes: 0 ended as told, 1 failure, 64 wrong usage, 78 configuration.\n";

struct options {
    const char *config, *ack_log;
    bool check, status, json;
    char **argv;
};

static uint64_t boot_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void status_tell(struct agent *a)
{
    const struct spool_counts *s = spool_counts(a->spool);

    (void)redoubt_service_status(
        a->service, "%s, engine %s, %llu waiting%s%s",
        link_state_name(link_state(a->link)), a->engine.up ? "running" : "down",
        (unsigned long long)s->pending, a->trouble[0] ? ": " : "", a->trouble);
}

static void link_opened(void *arg)
{
    struct agent *a = arg;

    log_event(LOG_LEVEL_INFO, "connected", log_str("server", a->server),
              log_u64("pending", spool_counts(a->spool)->pending));
    agent_hello(a);
    status_tell(a);
}

static void link_lost(void *arg, bool was_open, const char *why)
{
    struct agent *a = arg;

    (void)snprintf(a->trouble, sizeof(a->trouble), "%s", why);
    bool refused = !a->greeted && link_reached(a->link);

    log_event(was_open ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG,
              was_open ? "disconnected" : "connect_failed", log_str("why", why));
    agent_lost(a);
    identity_lost(a->identity, refused, agent_server_s(a));
    status_tell(a);
}

static void link_message(void *arg, struct str bytes)
{
    agent_message(arg, bytes);
}

static int on_probe(sd_event_source *source, uint64_t us, void *arg)
{
    struct agent *a = arg;
    uint32_t ms = a->conf.agent.report_ms < AGENT_PROBE_MS ? a->conf.agent.report_ms
                                                           : AGENT_PROBE_MS;

    (void)us;
    clamav_probe(a->clamav);
    if (agent_overdue(a))
        link_break(a->link, "the server owes an answer for too long");
    status_tell(a);
    (void)sd_event_source_set_time_relative(source, ms * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/*
 * Our certificate was made for us and is renewed long before it ends.  A clock that is outside
 * of its dates is wrong, then, and must not keep us from the server: the dates of the server's
 * certificate are not looked at until the clock is right.
 */
static void doubt_clock(struct agent *a)
{
    struct identity_status s;
    int64_t now = (int64_t)(agent_unix_us() / 1000000u);

    identity_status(a->identity, &s);
    int64_t begin = s.not_after - 3 * (s.not_after - s.renew_at);
    bool wrong = now < begin - CLOCK_SLACK_S || now > s.not_after;
    if (wrong != a->clock_wrong)
        log_event(
            wrong ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "clock",
            log_str("state", wrong ? "outside the dates of our certificate" : "right"));
    a->clock_wrong = wrong;
    tls_creds_undated(a->creds, wrong);
}

static int on_tick(sd_event_source *source, uint64_t us, void *arg)
{
    (void)us;
    doubt_clock(arg);
    agent_tick(arg);
    (void)sd_event_source_set_time_relative(source, AGENT_TICK_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_hold_over(sd_event_source *source, uint64_t us, void *arg)
{
    (void)source, (void)us;
    agent_hold_over(arg);
    return 0;
}

static int on_watchdog(sd_event_source *source, uint64_t us, void *arg)
{
    struct agent *a = arg;
    uint64_t period = redoubt_service_watchdog_period_ms(a->service);

    (void)us;
    (void)redoubt_service_watchdog(a->service);
    (void)sd_event_source_set_time_relative(source, period * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* The agent does the same in either role: it only says that it has heard. */
static int on_role(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct agent *a = arg;
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(a->service, &epoch);

    (void)fd, (void)revents;
    if (role == REDOUBT_ROLE_GONE)
        return sd_event_exit(sd_event_source_get_event(source), 1);
    if (role != REDOUBT_ROLE_NONE)
        (void)redoubt_service_ack(a->service, role, epoch);
    return 0;
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si,
                     void *arg)
{
    struct agent *a = arg;

    (void)si;
    agent_goodbye(a);
    link_shut(a->link);
    return sd_event_exit(sd_event_source_get_event(source), 0);
}

static int add_sources(struct agent *a)
{
    static const int stop[] = { SIGTERM, SIGINT };
    int role_fd = redoubt_service_role_fd(a->service);
    int n = sd_event_add_time_relative(a->event, &a->probe_timer, CLOCK_BOOTTIME, 0, 0,
                                       on_probe, a);

    if (n >= 0)
        n = sd_event_add_time_relative(a->event, &a->hold_timer, CLOCK_BOOTTIME, 0, 0,
                                       on_hold_over, a);
    if (n >= 0)
        n = sd_event_source_set_enabled(a->hold_timer, SD_EVENT_OFF);
    if (n >= 0)
        n = sd_event_add_time_relative(a->event, &a->tick_timer, CLOCK_BOOTTIME,
                                       AGENT_TICK_MS * 1000u, 0, on_tick, a);
    if (n >= 0 && role_fd >= 0)
        n = sd_event_add_io(a->event, NULL, role_fd, EPOLLIN, on_role, a);
    for (size_t i = 0; n >= 0 && i < LEN(stop); i++)
        n = sd_event_add_signal(a->event, NULL, stop[i] | SD_EVENT_SIGNAL_PROCMASK,
                                on_signal, a);
    if (n >= 0 && redoubt_service_watchdog_period_ms(a->service) > 0)
        n = sd_event_add_time_relative(a->event, NULL, CLOCK_BOOTTIME, 0, 0, on_watchdog,
                                       a);
    return n;
}

/* A certificate to be sent for, with the next message. */
static void identity_request(void *arg, struct str csr)
{
    struct agent *a = arg;

    free(a->csr);
    a->csr = strndup(csr.p, csr.n);
    agent_send(a);
}

/* Another certificate is used, or tried: from the next connection on, which is now. */
static void identity_changed(void *arg)
{
    struct agent *a = arg;
    struct err_info info = { 0 };
    struct tls_files files = identity_files(a->identity);
    struct tls_creds *old = a->creds, *fresh = NULL;

    if (tls_creds_new(TLS_CLIENT, &files, &fresh, &info) != ERR_OK) {
        agent_trouble(a, info.what);
        log_event(LOG_LEVEL_ERROR, "identity_not_usable", log_str("why", info.what));
        return;
    }
    a->creds = fresh;
    doubt_clock(a);
    a->device_id = *identity_device(a->identity);
    offers_release(a); /* a trial would go on with the old ones */
    link_recred(a->link, fresh);
    tls_creds_free(old);
}

/* Who we are: the certificate says it, and the configuration may only agree. */
static enum err identify(struct agent *a, struct err_info *info)
{
    const struct conf_agent *conf = &a->conf.agent;
    struct identity_hooks hooks = { a, identity_request, identity_changed };
    struct uuid wanted;
    enum err e = tls_file_device(conf->certificate, &a->device_id, info);

    if (e == ERR_OK && conf->device_id[0] &&
        (!uuid_parse(&wanted, str_of(conf->device_id)) ||
         !uuid_eq(&wanted, &a->device_id)))
        return err_set(info, ERR_CONFIG, 0,
                       "[agent] device_id is not the one in %s: leave it out",
                       conf->certificate);
    return e == ERR_OK ? identity_new(conf, &hooks, &a->identity, info) : e;
}

static void protect_event(void *arg, const char *kind, const char *severity, json_t *data)
{
    agent_event(arg, kind, severity, data);
}

/* Told with the next tick: facts may change many times a second. */
static void protect_changed(void *arg)
{
    struct agent *a = arg;

    a->facts_changed = true;
}

/* What works on this device, and what it was told to do. */
static enum err start_work(struct agent *a, struct err_info *info)
{
    struct protect_hooks hooks = { .arg = a,
                                   .event = protect_event,
                                   .facts_changed = protect_changed,
                                   .policy_done = config_done,
                                   .run_progress = runs_heard,
                                   .run_done = runs_ended };
    enum err e = runs_start(a, info);

    if (e == ERR_OK)
        e = protect_new(a->event, &a->conf, &hooks, &a->protect, info);
    if (e == ERR_OK)
        config_start(a);
    return e;
}

static enum err open_spool(struct agent *a, struct err_info *info)
{
    enum err e =
        spool_open(a->conf.agent.spool, a->conf.agent.spool_max, &a->spool, info);

    if (e == ERR_STATE)
        return err_set(info, e, 0, "%s is in use: does another agent run?",
                       a->conf.agent.spool);
    if (e != ERR_OK)
        return e;
    event_spool_limit(a->spool, a->conf.agent.events_max,
                      (uint64_t)a->conf.agent.events_max_kib * 1024u);
    return ERR_OK;
}

static enum err start_link(struct agent *a, struct err_info *info)
{
    struct conf_agent conf = a->conf.agent;

    a->hooks = (struct link_hooks){
        .arg = a, .opened = link_opened, .lost = link_lost, .message = link_message
    };
    offers_start(a);
    (void)snprintf(conf.server, sizeof(conf.server), "%s", a->server);
    return link_new(a->event, &conf, a->creds, &a->hooks, &a->link, info);
}

static enum err start(struct agent *a, char **argv, struct err_info *info)
{
    const struct conf_agent *conf = &a->conf.agent;
    struct err_info control = { 0 };
    enum err e = identify(a, info);

    hello_start(a);
    a->batch = REPORT_BATCH_MAX;
    a->ev.batch = AGENT_EVENT_BATCH;
    a->heartbeat_s = AGENT_HEARTBEAT_S;
    a->now_ms = a->start_ms = a->heard_ms = a->report_due_ms = boot_ms();
    if (e == ERR_OK) {
        struct tls_files files = identity_files(a->identity);

        e = tls_creds_new(TLS_CLIENT, &files, &a->creds, info);
        if (e == ERR_OK)
            doubt_clock(a);
    }
    if (e == ERR_OK)
        e = open_spool(a, info);
    if (e == ERR_OK)
        e = upgrade_start(a, argv, info);
    if (e == ERR_OK && sd_event_new(&a->event) < 0)
        e = err_set(info, ERR_MEMORY, ENOMEM, "event loop");
    if (e == ERR_OK)
        e = clamav_new(a->event, conf->clamd, agent_engine, a, &a->clamav);
    if (e == ERR_OK)
        e = start_link(a, info);
    if (e == ERR_OK)
        e = start_work(a, info);
    if (e == ERR_OK && add_sources(a) < 0)
        e = err_set(info, ERR_MEMORY, ENOMEM, "event loop");
    if (e == ERR_OK && spool_counts(a->spool)->damaged) {
        log_event(LOG_LEVEL_ERROR, "spool_damaged",
                  log_str("kept", "beside it, with the name .damaged"));
        agent_event(a, "spool_damaged", "error", NULL);
    }
    if (e == ERR_OK && control_open(a, &control) != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "no_status_socket", log_str("why", control.what));
    return e;
}

static int run(struct agent *a)
{
    int code = 0;

    while (sd_event_get_state(a->event) != SD_EVENT_FINISHED) {
        int n = sd_event_prepare(a->event);

        if (n == 0)
            n = sd_event_wait(a->event, UINT64_MAX);
        a->now_ms = boot_ms();
        if (n > 0)
            n = sd_event_dispatch(a->event);
        if (n < 0)
            return 1;
    }
    return sd_event_get_exit_code(a->event, &code) < 0 ? 1 : code;
}

static void stop(struct agent *a)
{
    if (a->control)
        (void)unlink(a->control_path);
    a->control = sd_event_source_disable_unref(a->control);
    a->probe_timer = sd_event_source_disable_unref(a->probe_timer);
    a->hold_timer = sd_event_source_disable_unref(a->hold_timer);
    a->tick_timer = sd_event_source_disable_unref(a->tick_timer);
    protect_free(a->protect);
    upgrade_release(a);
    offers_release(a);
    link_free(a->link);
    clamav_free(a->clamav);
    runs_release(a);
    events_release(a);
    config_release(a);
    identity_free(a->identity);
    free(a->csr);
    spool_close(a->spool);
    sd_event_unref(a->event);
    tls_creds_free(a->creds);
    redoubt_service_stop(a->service);
    free(a);
}

static int work(struct agent *a, const struct options *o)
{
    struct err_info info = { 0 };

    log_start("redoubt-agent", (enum log_level)a->conf.log.level,
              (enum log_target)a->conf.log.target);
    a->ack_log = o->ack_log;
    enum err e = start(a, o->argv, &info);
    if (e != ERR_OK) {
        log_event(LOG_LEVEL_ERROR, "start_failed", log_str("why", info.what));
        return e == ERR_CONFIG || e == ERR_NOT_FOUND ? EXIT_CONFIG : 1;
    }
    if (o->check)
        return 0;
    (void)redoubt_service_ready(a->service);
    return run(a);
}

static bool load(struct agent *a, const char *path)
{
    struct conf_errors *errors = calloc(1, sizeof(*errors));
    enum err e = errors ? agent_conf_load(path, &a->conf, errors) : ERR_MEMORY;

    if (errors && e != ERR_OK)
        conf_errors_print(errors, path, stderr);
    free(errors);
    return e == ERR_OK;
}

static int parse(int argc, char **argv, struct options *o)
{
    enum { OPT_ACK_LOG = 256 };
    static const struct option all[] = { { "config", required_argument, NULL, 'c' },
                                         { "ack-log", required_argument, NULL,
                                           OPT_ACK_LOG },
                                         { "check", no_argument, NULL, 'n' },
                                         { "json", no_argument, NULL, 'j' },
                                         { "help", no_argument, NULL, 'h' },
                                         { "version", no_argument, NULL, 'V' },
                                         { 0 } };
    int opt;

    *o = (struct options){ .config = CONF_AGENT_DEFAULT_PATH, .argv = argv };
    while ((opt = getopt_long(argc, argv, "c:njhV", all, NULL)) != -1) {
        switch (opt) {
        case 'c': o->config = optarg; break;
        case OPT_ACK_LOG: o->ack_log = optarg; break;
        case 'n': o->check = true; break;
        case 'j': o->json = true; break;
        case 'h': return fputs(usage, stdout) < 0;
        case 'V': return printf("redoubt-agent %s\n", agent_version()) < 0;
        default: return EXIT_USAGE;
        }
    }
    if (optind < argc && strcmp(argv[optind], "status") == 0) {
        o->status = true;
        optind++;
    }
    if (optind < argc || (o->json && !o->status)) {
        fprintf(stderr, "redoubt-agent: unexpected argument %s\n",
                optind < argc ? argv[optind] : "--json");
        return EXIT_USAGE;
    }
    return -1;
}

/* The processes that the agent starts for itself. */
static int child_main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--scanner") == 0)
        return scanner_main();
    if (argc == 2 && strcmp(argv[1], "--on-access") == 0)
        return onaccess_main();
    if (argc == 3 && strcmp(argv[1], "--supervise") == 0)
        return supervise_main(argv[2]);
    return -1;
}

int main(int argc, char **argv)
{
    struct options o;

    if (mac_start() != ERR_OK) {
        fputs("redoubt-agent: libsodium does not work on this machine\n", stderr);
        return 1;
    }
    int child = child_main(argc, argv);
    if (child >= 0)
        return child;
    if (argc > 1 && strcmp(argv[1], "enrol") == 0)
        return enrol_command(argc - 1, argv + 1);
    int code = parse(argc, argv, &o);
    struct agent *a = NULL;

    if (code >= 0)
        return code;
    upgrade_remember();
    a = calloc(1, sizeof(*a));
    if (!a || !(a->service = redoubt_service_start(0))) {
        fprintf(stderr, "redoubt-agent: not usable as a service: %s\n", strerror(errno));
        free(a);
        return 1;
    }
    if (!load(a, o.config))
        code = EXIT_CONFIG;
    else
        code = o.status ? control_status(&a->conf, o.json) : work(a, &o);
    stop(a);
    upgrade_become();
    return code;
}
