#include "sys/conf/conf_table.h"

/*
 * The timing profiles.  docs/timing.md works the argument second by second; in short:
 *
 *   renew         how often the lease is renewed; the share must do a rewrite and a look
 *                 in less than this most of the time.
 *   hold          a renewal is good for this long, so a stall of the share of up to
 *                 hold - demote_before - renew is survived without a switch:
 *                     fast      700 -  100 -  100 =   500 ms
 *                     balanced 1500 -  200 -  250 =  1050 ms
 *                     patient 30000 - 3000 - 2000 = 25000 ms
 *   demote_before the time to make the services standby, drop the address and write
 *                 `released` before the guard kills: a few times what that takes on an
 *                 idle machine (some 30 ms), more where the machine may be slow.
 *   margin        what the other node waits beyond hold * 1.01: the guard's wake-up and
 *                 cgroup.kill of hundreds of processes (25 ms), the timer slack, and
 *                 twice as much again.  1 % of hold covers clocks that run apart by ten
 *                 times the 0.05 % of bad quartz.
 *   wait          hold * 1.01 + margin: 797, 1695 and 31000 ms.
 *   poll          how often the passive node reads: it adds at most this to a takeover.
 *   share_timeout hold - demote_before - renew: a request that a stalled file server
 *                 answers late still counts, and none is given up while it could help.  (A
 *                 keeper that died or was stopped is replaced at once.)
 */
static const struct timing {
    uint32_t renew_ms, hold_ms, margin_ms, poll_ms, demote_before_ms;
} timings[] = {
    [CONF_PROFILE_FAST] = { 100, 700, 90, 20, 100 },
    [CONF_PROFILE_BALANCED] = { 250, 1500, 180, 40, 200 },
    [CONF_PROFILE_PATIENT] = { 2000, 30000, 700, 250, 3000 },
};

enum { TRUST_FOLDER_MAX = 200 }; /* with the names of the files it is still a path */

static void from_profile(const struct conf_lines *lines, const char *key, uint32_t *field,
                         uint32_t value)
{
    if (conf_line_of(&conf_schema, lines, "cluster", 0, key) == 0 ||
        conf_refused(&conf_schema, lines, "cluster", key))
        *field = value;
}

static uint32_t derived_timeout(const struct conf_cluster *c)
{
    const uint64_t used = (uint64_t)c->renew_ms + c->demote_before_ms;

    return used < c->hold_ms ? c->hold_ms - (uint32_t)used : c->hold_ms / 2;
}

/* A file of [trust] folder, unless the section names another. */
struct in_folder {
    const char *section, *key, *file;
    char *field;
};

static void complete_trust(struct conf *c, const struct conf_lines *lines)
{
    const struct in_folder all[] = {
        { "server", "certificate", "server.pem", c->server.certificate },
        { "server", "key", "server.key", c->server.key },
        { "server", "ca", "ca.pem", c->server.ca },
        { "web", "certificate", "web.pem", c->web.certificate },
        { "web", "key", "web.key", c->web.key },
        { "web", "link_key", "link.key", c->web.link_key },
        { "activation", "certificate", "server.pem", c->activation.certificate },
        { "activation", "tls_key", "server.key", c->activation.tls_key },
        { "activation", "ca", "ca.pem", c->activation.ca },
        { "activation", "key", "lease.key", c->activation.key },
    };

    for (size_t i = 0; i < LEN(all); i++) {
        if (conf_line_of(&conf_schema, lines, all[i].section, 0, all[i].key) == 0)
            (void)snprintf(all[i].field, CONF_PATH, "%.*s/%s", TRUST_FOLDER_MAX,
                           c->trust.folder, all[i].file);
    }
}

void conf_complete(void *conf, const struct conf_lines *lines)
{
    struct conf_cluster *c = &((struct conf *)conf)->cluster;
    const struct timing *t = &timings[c->profile];

    complete_trust(conf, lines);

    from_profile(lines, "renew_ms", &c->renew_ms, t->renew_ms);
    from_profile(lines, "hold_ms", &c->hold_ms, t->hold_ms);
    from_profile(lines, "margin_ms", &c->margin_ms, t->margin_ms);
    from_profile(lines, "poll_ms", &c->poll_ms, t->poll_ms);
    from_profile(lines, "demote_before_ms", &c->demote_before_ms, t->demote_before_ms);
    from_profile(lines, "share_timeout_ms", &c->share_timeout_ms, derived_timeout(c));
}

/* Is this timing value the one that an absent key would have? */
bool conf_is_derived(const struct conf *conf, const char *key)
{
    static const struct conf_lines none;
    struct conf other = *conf;

    conf_complete(&other, &none);
    for (uint32_t k = 0; k < conf_schema.sections[0].key_count; k++) {
        const struct conf_key *entry = &conf_schema.sections[0].keys[k];

        if (strcmp(entry->key, key) != 0)
            continue;
        /* share_timeout_ms follows the hold_ms in force. */
        if (entry->offset == offsetof(struct conf_cluster, share_timeout_ms))
            return conf->cluster.share_timeout_ms == derived_timeout(&conf->cluster);
        return memcmp((const char *)&conf->cluster + entry->offset,
                      (const char *)&other.cluster + entry->offset, entry->size) == 0;
    }
    return false;
}

/* The line to blame: that of the key, or of a related one. */
struct blame {
    const struct conf_lines *lines;
    struct conf_errors *errors;
};

static uint32_t line_of(const struct blame *b, const char *section, const char *key)
{
    return conf_line_of(&conf_schema, b->lines, section, 0, key);
}

static uint32_t first_line(const struct blame *b, const char *k1, const char *k2,
                           const char *k3)
{
    uint32_t line = line_of(b, "cluster", k1);

    if (line == 0)
        line = line_of(b, "cluster", k2);
    if (line == 0 && k3)
        line = line_of(b, "cluster", k3);
    return line ? line : line_of(b, "cluster", "profile");
}

static void check_timing(const struct conf_cluster *c, const struct blame *b)
{
    if ((uint64_t)c->renew_ms + c->demote_before_ms >= c->hold_ms)
        conf_error_add(
            b->errors, first_line(b, "hold_ms", "demote_before_ms", "renew_ms"), 0,
            "renew_ms %u + demote_before_ms %u must be less than hold_ms %u, or "
            "the active node steps down between two renewals",
            c->renew_ms, c->demote_before_ms, c->hold_ms);
    else if ((uint64_t)c->renew_ms * 2 + c->demote_before_ms > c->hold_ms)
        conf_error_add(
            b->errors, first_line(b, "hold_ms", "renew_ms", "demote_before_ms"), 0,
            "2 * renew_ms %u + demote_before_ms %u must not exceed hold_ms %u, "
            "or a single late renewal makes the cluster switch",
            c->renew_ms, c->demote_before_ms, c->hold_ms);
    if (c->share_timeout_ms >= c->hold_ms)
        conf_error_add(b->errors, first_line(b, "share_timeout_ms", "hold_ms", NULL), 0,
                       "share_timeout_ms %u must be less than hold_ms %u",
                       c->share_timeout_ms, c->hold_ms);
    if ((uint64_t)c->poll_ms * 4 > c->hold_ms)
        conf_error_add(b->errors, first_line(b, "poll_ms", "hold_ms", NULL), 0,
                       "poll_ms %u must be at most a quarter of hold_ms %u", c->poll_ms,
                       c->hold_ms);
}

/* Not given, and not merely given wrongly: that has been said. */
static bool missing(const struct blame *b, const char *key, const char *value)
{
    return value[0] == '\0' && !conf_refused(&conf_schema, b->lines, "address", key);
}

static void check_address(const struct conf_address *a, const struct blame *b)
{
    uint32_t line = line_of(b, "address", "mode");

    if (a->mode == CONF_ADDRESS_NONE) {
        if (a->ipv4[0] || a->ipv6[0])
            conf_error_add(b->errors, line, 0,
                           "mode = none does not go with ipv4 or ipv6: remove them, or "
                           "write mode = virtual-ip");
        if (!a->health_listen[0])
            conf_error_add(b->errors, line, 0,
                           "mode = none needs health_listen: without it no load balancer "
                           "can find the active node");
        return;
    }
    if (missing(b, "interface", a->interface))
        conf_error_add(b->errors, line, 0,
                       "[address] needs interface: the network interface of the address");
    if (missing(b, "ipv4", a->ipv4) && missing(b, "ipv6", a->ipv6))
        conf_error_add(b->errors, line, 0,
                       "[address] needs ipv4 or ipv6, or mode = none behind a load "
                       "balancer");
}

static void check_share(const struct conf_share *s, const struct blame *b)
{
    if (s->dialect_min > s->dialect_max)
        conf_error_add(b->errors, line_of(b, "share", "dialect_min"), 0,
                       "dialect_min %s is newer than dialect_max %s",
                       conf_dialect_name(s->dialect_min),
                       conf_dialect_name(s->dialect_max));
    if (s->encrypt && s->dialect_max < CONF_SMB3_00)
        conf_error_add(b->errors, line_of(b, "share", "encrypt"), 0,
                       "encrypt = yes needs dialect_max SMB3_00 or later");
    if (s->data[0] && strcmp(s->data, s->state) == 0)
        conf_error_add(
            b->errors, line_of(b, "share", "data"), 0,
            "data must not be the same folder as state: nothing else may write "
            "there");
}

static void check_service(const struct conf *conf, uint32_t i, const struct blame *b)
{
    const struct conf_service *s = &conf->service[i];

    if (s->restart_backoff_ms > s->restart_backoff_max_ms)
        conf_error_add(
            b->errors,
            conf_line_of(&conf_schema, b->lines, "service", i, "restart_backoff_ms"), 0,
            "[service %s]: restart_backoff_ms %u exceeds "
            "restart_backoff_max_ms %u",
            s->name, s->restart_backoff_ms, s->restart_backoff_max_ms);
    if (s->start == CONF_START_EXEC && s->watchdog_ms > 0)
        conf_error_add(b->errors,
                       conf_line_of(&conf_schema, b->lines, "service", i, "watchdog_ms"),
                       0, "[service %s]: watchdog_ms needs start = notify", s->name);
    if (s->start == CONF_START_EXEC && s->standby == CONF_STANDBY_HOT)
        conf_error_add(b->errors,
                       conf_line_of(&conf_schema, b->lines, "service", i, "start"), 0,
                       "[service %s]: start = exec needs standby = cold or always: a "
                       "program that does not know the protocol cannot be told its role",
                       s->name);
}

void conf_check(const void *conf, const struct conf_lines *lines, struct conf_errors *e)
{
    const struct conf *c = conf;
    const struct blame b = { lines, e };

    if (strlen(c->trust.folder) > TRUST_FOLDER_MAX)
        conf_error_add(e, line_of(&b, "trust", "folder"), 0,
                       "[trust] folder must not be longer than %d characters",
                       TRUST_FOLDER_MAX);

    if (c->cluster.node[0] && strcmp(c->cluster.node, c->cluster.peer) == 0)
        conf_error_add(e, line_of(&b, "cluster", "peer"), 0,
                       "node and peer must be two names, both are %s", c->cluster.node);
    check_timing(&c->cluster, &b);
    check_share(&c->share, &b);
    check_address(&c->address, &b);
    if (c->activation.vendor[0] && strncmp(c->activation.vendor, "https://", 8) != 0)
        conf_error_add(e, line_of(&b, "activation", "vendor"), 0,
                       "[activation] vendor must begin with https://");
    for (uint32_t i = 0; i < c->service_count; i++)
        check_service(c, i, &b);
}

void agent_conf_complete(void *conf, const struct conf_lines *lines)
{
    (void)conf; /* nothing in agent.conf is derived */
    (void)lines;
}
