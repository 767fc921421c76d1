/*
 * world: this computer as the ports see it: guard, services, address, DBMS, keeper, clock.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

enum { GUARD_SILENCE_MAX_MS = 2000, JUMP_MS = 1000 };

struct mono now_mono(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t); /* cannot fail on Linux */
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

uint64_t now_wall_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

/* ---- the clock ---- */

void world_wake(struct daemon *d)
{
    struct mono t = node_next_wakeup(&d->run.node);

    if (!d->running || t.us == UINT64_MAX) {
        (void)sd_event_source_set_enabled(d->tick, SD_EVENT_OFF);
        return;
    }
    (void)sd_event_source_set_time(d->tick, t.us);
    (void)sd_event_source_set_enabled(d->tick, SD_EVENT_ONESHOT);
}

void world_event(struct daemon *d, struct node_event *ev)
{
    if (!d->running)
        return;
    ev->now = now_mono();
    node_run_event(&d->run, ev);
    world_wake(d);
}

static int on_tick(sd_event_source *s, uint64_t when, void *user)
{
    struct daemon *d = user;

    (void)s;
    (void)when;
    world_event(d, &(struct node_event){ .kind = NODE_EV_TICK });
    return 0;
}

/* ---- hold: the lease page and the kernel's lease on the address ---- */

static void hold_extend(void *impl, uint64_t epoch, struct mono deadline)
{
    struct daemon *d = impl;

    guard_extend(d->guard, epoch, deadline);
    if (d->net)
        net_hold_extend(d->net, deadline);
}

static void hold_revoke(void *impl)
{
    struct daemon *d = impl;

    guard_revoke(d->guard);
    if (d->net)
        net_hold_revoke(d->net);
}

/* ---- address ---- */

static void on_address(void *ctx, uint32_t request, enum err err,
                       const struct err_info *why)
{
    struct daemon *d = ctx;

    d->address_why[0] = '\0';
    if (err != ERR_OK) {
        (void)snprintf(d->address_why, sizeof(d->address_why), "%s",
                       why ? why->what : err_name(err));
        log_event(LOG_LEVEL_ERROR, "address_failed", log_str("why", d->address_why));
    }
    world_event(d, &(struct node_event){
                       .kind = NODE_EV_ADDRESS, .request = request, .err = err });
}

static void on_link(void *ctx, bool up)
{
    struct daemon *d = ctx;

    if (d->link_known)
        log_event(LOG_LEVEL_WARNING, "link", log_bool("up", up));
    d->link_known = true;
    d->link_up = up;
}

static void on_trouble(void *ctx, enum net_trouble trouble, const char *text)
{
    struct daemon *d = ctx;

    log_event(LOG_LEVEL_WARNING,
              trouble == NET_CONFLICT ? "address_conflict" : "address_trouble",
              log_str("what", text));
    if (trouble == NET_CONFLICT)
        d->address_conflict_us = now_wall_us();
}

/* mode = none: there is nothing to do, but the answer must not come from within the call. */
static int none_answer(sd_event_source *s, void *user)
{
    struct daemon *d = user;

    (void)s;
    on_address(d, d->none_request, ERR_OK, NULL);
    return 0;
}

static void none_ask(void *impl, uint32_t request)
{
    struct daemon *d = impl;

    d->none_request = request;
    (void)sd_event_source_set_enabled(d->address_answer, SD_EVENT_ONESHOT);
}

static const struct address_ops none_ops = { none_ask, none_ask };

/* ---- services ---- */

static void on_service(void *user, const struct supervisor_report *r)
{
    struct daemon *d = user;
    struct service_view *v = &d->view[r->service];
    bool news = v->state != r->state;

    if (news) {
        v->since_us = now_wall_us();
        log_event(r->state == SERVICE_FAILED ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO,
                  "service", log_str("name", d->services[r->service].name),
                  log_str("state", status_service_state(r->state)),
                  log_str("why", r->why), log_u64("restarts", r->restarts));
    }
    v->state = r->state;
    v->restarts = r->restarts;
    memcpy(v->why, r->why, sizeof(v->why));
    if (news && r->state == SERVICE_FAILED)
        journal_service(d, r->service);
    if (!d->running)
        return;
    node_run_service(&d->run, now_mono(), r->service, r->state);
    world_wake(d);
}

static void on_line(void *user, uint32_t service, const char *text)
{
    struct daemon *d = user;
    const char *name =
        service < d->conf.service_count ? d->services[service].name : "supervisor";

    log_event(LOG_LEVEL_INFO, "output", log_str("service", name), log_str("text", text));
}

/* ---- DBMS ---- */

static void on_fence(void *ctx, uint32_t request, enum err err, uint64_t found,
                     const struct err_info *why)
{
    struct daemon *d = ctx;

    log_event(err == ERR_OK ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "fence",
              log_str("result", err_name(err)), log_u64("found", found),
              log_str("why", why ? why->what : ""));
    world_event(
        d, &(struct node_event){
               .kind = NODE_EV_FENCE, .request = request, .err = err, .epoch = found });
}

/* Reached, but nothing that this program may work with. */
static bool is_unfit(enum fence_state s)
{
    return s == FENCE_SERVER_TOO_OLD || s == FENCE_SCHEMA_MISSING ||
           s == FENCE_SCHEMA_TOO_OLD || s == FENCE_SCHEMA_TOO_NEW;
}

static void on_health(void *ctx, const struct fence_health *h)
{
    struct daemon *d = ctx;

    if (!d->database.known || d->database.ok != h->ok)
        log_event(h->ok ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, "database",
                  log_bool("ok", h->ok), log_str("state", fence_state_name(h->state)),
                  log_str("why", h->why ? h->why->what : ""));
    d->database.known = true;
    d->database.ok = h->ok;
    d->database.state = h->state;
    d->database.latency_us = h->latency_us;
    (void)snprintf(d->database.why, sizeof(d->database.why), "%s",
                   h->why ? h->why->what : "");
    world_event(d, &(struct node_event){ .kind = NODE_EV_DATABASE,
                                         .err = h->ok                ? ERR_OK
                                                : is_unfit(h->state) ? ERR_VERSION
                                                                     : ERR_IO,
                                         .epoch = h->epoch });
}

/* ---- the share ---- */

static void on_share(void *arg, const struct share_answer *a)
{
    struct daemon *d = arg;

    if (a->err != d->share.err)
        log_event(a->err == ERR_OK || a->err == ERR_NOT_FOUND || a->err == ERR_EXISTS
                      ? LOG_LEVEL_INFO
                      : LOG_LEVEL_WARNING,
                  "share", log_str("result", err_name(a->err)),
                  log_str("why", a->why ? a->why->what : ""));
    d->share.err = a->err;
    (void)snprintf(d->share.why, sizeof(d->share.why), "%s", a->why ? a->why->what : "");
    if (a->err == ERR_DENIED || a->err == ERR_FULL) {
        d->share.refused = a->err;
        d->share.refused_at = now_mono();
        (void)snprintf(d->share.refused_why, sizeof(d->share.refused_why), "%s",
                       d->share.why);
    }
    if (!d->running)
        return;
    node_run_share(&d->run, now_mono(), a);
    world_wake(d);
}

static void on_replaced(void *arg, const char *why)
{
    (void)arg;
    log_event(LOG_LEVEL_WARNING, "keeper_replaced", log_str("why", why));
}

/* ---- guard ---- */

static void guard_lost(struct daemon *d, const char *why)
{
    const bool news = d->running && !d->run.node.stop;

    log_event(LOG_LEVEL_ERROR, "guard_lost", log_str("why", why));
    world_event(d, &(struct node_event){ .kind = NODE_EV_GUARD_LOST }); /* first of all */
    if (news)
        journal_alarm(d, ALARM_GUARD_LOST, why);
}

static int on_guard_end(sd_event_source *s, int fd, uint32_t events, void *user)
{
    (void)fd;
    (void)events;
    (void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
    guard_lost(user, "the process has ended");
    return 0;
}

static void stood_still(struct daemon *d, uint64_t ms)
{
    char why[64];

    d->jumps_total++;
    log_event(LOG_LEVEL_WARNING, "clock_jump", log_u64("stood_still_ms", ms));
    (void)snprintf(why, sizeof(why), "it stood still for %llu ms",
                   (unsigned long long)ms);
    if (d->running)
        journal_alarm(d, ALARM_CLOCK_JUMP, why);
}

static int on_second(sd_event_source *s, uint64_t when, void *user)
{
    struct daemon *d = user;
    uint64_t now = now_mono().us;

    (void)when;
    if (d->last_second_us != 0 && now - d->last_second_us > 1000000u + JUMP_MS * 1000u) {
        stood_still(d, (now - d->last_second_us) / 1000);
    } else if (d->running && guard_silence_ms(d->guard) > GUARD_SILENCE_MAX_MS) {
        /* It is stopped or starved: as good as gone. */
        guard_lost(d, "it has fallen silent");
    }
    d->last_second_us = now;
    alarms_update(d);
    (void)sd_event_source_set_time_relative(s, 1000000);
    (void)sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
    return 0;
}

/* ---- opening, in the order in which each part needs the others ---- */

static enum err open_services(struct daemon *d, struct err_info *info)
{
    const struct supervisor_options o = {
        .event = d->loop,
        .services = d->services,
        .service_count = d->conf.service_count,
        .run_dir = d->conf.cluster.run_dir,
        .node = d->conf.cluster.node,
        .conf = d->conf_path,
        .lease_fd = d->page.fd,
        .report = on_service,
        .line = on_line,
        .user = d,
    };

    return supervisor_new(&d->supervisor, &o, info);
}

static enum err open_net(struct daemon *d, struct err_info *info)
{
    const struct conf_address *a = &d->conf.address;
    const struct net_options o = {
        .interface = a->interface, .ipv4 = a->ipv4, .ipv6 = a->ipv6, .label = ""
    };
    const struct net_events ev = { on_address, on_link, on_trouble, d };

    if (a->mode == CONF_ADDRESS_NONE) {
        int r = sd_event_add_defer(d->loop, &d->address_answer, none_answer, d);

        if (r < 0)
            return err_set(info, ERR_IO, -r, "event loop");
        (void)sd_event_source_set_enabled(d->address_answer, SD_EVENT_OFF);
        return ERR_OK;
    }
    return net_open(&d->net, d->loop, &o, &ev, info);
}

static enum err open_guard(struct daemon *d, struct err_info *info)
{
    char program[CONF_PATH + 32];
    uint8_t goodbye[512];
    size_t n = d->net ? net_death_messages(d->net, goodbye, sizeof(goodbye)) : 0;

    (void)snprintf(program, sizeof(program), "%s/redoubt-guard", d->libexec);
    if (pipe2(d->gone, O_CLOEXEC) < 0)
        return err_set(info, ERR_IO, errno, "pipe");
    const struct guard_options o = { .program = program,
                                     .lease = &d->page,
                                     .cgroup_dir = supervisor_cgroup_fd(d->supervisor),
                                     .gone_fd = d->gone[1],
                                     .goodbye = { (const char *)goodbye, n } };
    enum err e = guard_start(&d->guard, &o, info);

    (void)close(d->gone[1]);
    d->gone[1] = -1;
    if (e != ERR_OK)
        return e;
    if (guard_weakness(d->guard)[0])
        log_event(LOG_LEVEL_WARNING, "guard_weak",
                  log_str("why", guard_weakness(d->guard)));
    int r = sd_event_add_io(d->loop, &d->guard_end, guard_fd(d->guard), EPOLLIN,
                            on_guard_end, d);

    if (r < 0)
        return err_set(info, ERR_IO, -r, "event loop");
    (void)sd_event_source_set_priority(d->guard_end, PRIORITY_LEASE);
    return ERR_OK;
}

static enum err open_keeper(struct daemon *d, struct err_info *info)
{
    const struct conf_cluster *c = &d->conf.cluster;
    const struct conf_share *s = &d->conf.share;

    /* Borrowed by the keeper for each replacement, so it lives as long as the daemon. */
    (void)snprintf(d->keeper_program, sizeof(d->keeper_program), "%s/redoubt-keeper",
                   d->libexec);
    const struct keeper_options o = {
        .program = d->keeper_program,
        .share = s->state,
        .credentials = s->credentials,
        .dialect_min = conf_dialect_name(s->dialect_min),
        .dialect_max = conf_dialect_name(s->dialect_max),
        .encrypt = s->encrypt != 0,
        .port = (uint16_t)s->port,
        .timeout_ms = c->share_timeout_ms,
        .slow_timeout_ms = c->share_timeout_ms,
        .will_wait_ms = c->hold_ms,
        .gone_fd = d->gone[0],
    };
    const struct keeper_callbacks cb = { on_share, on_replaced, d };

    return keeper_new(&d->keeper, d->loop, &o, &cb, info);
}

static enum err open_fence(struct daemon *d, struct err_info *info)
{
    const struct fence_options o = { .conninfo = d->conf.database.conninfo,
                                     .node = d->conf.cluster.node,
                                     .probe_ms = d->conf.database.probe_ms,
                                     .fence_timeout_ms =
                                         d->conf.database.fence_timeout_ms };
    const struct fence_events ev = { on_fence, on_health, d };

    return fence_open(&d->fence, d->loop, &o, &ev, info);
}

static enum err open_timers(struct daemon *d, struct err_info *info)
{
    int r =
        sd_event_add_time(d->loop, &d->tick, CLOCK_BOOTTIME, UINT64_MAX, 500, on_tick, d);

    if (r >= 0)
        r = sd_event_source_set_priority(d->tick, PRIORITY_LEASE);
    if (r >= 0)
        r = sd_event_source_set_enabled(d->tick, SD_EVENT_OFF);
    if (r >= 0)
        r = sd_event_add_time_relative(d->loop, &d->second, CLOCK_BOOTTIME, 1000000,
                                       50000, on_second, d);
    return r < 0 ? err_set(info, ERR_IO, -r, "event loop") : ERR_OK;
}

static void start(struct daemon *d)
{
    static const struct hold_ops hold_ops = { hold_extend, hold_revoke };
    struct node_conf conf;
    uint64_t known;
    bool maintenance;
    const struct node_ports ports = {
        .share = keeper_share(d->keeper),
        .services = supervisor_services(d->supervisor),
        .address = d->net ? net_address(d->net) : (struct address){ &none_ops, d },
        .fence = fence_port(d->fence),
        .hold = { &hold_ops, d },
        .journal = journal_port(d),
    };

    setup_node_conf(d, &conf);
    journal_load(d, &known, &maintenance);
    node_run_init(&d->run, &conf, &d->key, &ports, known, maintenance);
    d->running = true;
    world_event(d, &(struct node_event){ .kind = NODE_EV_START });
    content_start(d);
}

enum err world_open(struct daemon *d, struct err_info *info)
{
    enum err e = open_timers(d, info);

    if (e == ERR_OK)
        e = lease_writer_init(&d->page, info);
    d->trouble_id = ALARM_SERVICE_MISSING;
    if (e == ERR_OK)
        e = open_services(d, info);
    d->trouble_id = ALARM_ADDRESS_CONFLICT;
    if (e == ERR_OK)
        e = open_net(d, info);
    d->trouble_id = ALARM_GUARD_LOST;
    if (e == ERR_OK)
        e = open_guard(d, info);
    d->trouble_id = ALARM_SHARE_UNREACHABLE;
    if (e == ERR_OK)
        e = open_keeper(d, info);
    d->trouble_id = ALARM_DATABASE_UNREACHABLE;
    if (e == ERR_OK)
        e = open_fence(d, info);
    if (e == ERR_OK)
        e = content_open(d, info);
    if (e == ERR_OK)
        start(d);
    return e;
}

void world_close(struct daemon *d)
{
    d->running = false;
    content_close(d);
    fence_close(d->fence);
    keeper_free(d->keeper);
    supervisor_free(d->supervisor);
    net_close(d->net);
    guard_free(d->guard);
    lease_writer_release(&d->page);
    d->tick = sd_event_source_unref(d->tick);
    d->second = sd_event_source_unref(d->second);
    d->guard_end = sd_event_source_unref(d->guard_end);
    d->address_answer = sd_event_source_unref(d->address_answer);
}
