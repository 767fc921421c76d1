/*
 * offers: new settings of the connection: tried first, kept when they work.
 *
 * An address that is offered is connected to beside the connection that is there; only when
 * the other side has proven who it is and speaks OpAMP does it replace the old one, here and
 * on the disk.  A certificate goes to identity.c, which tries it in the same spirit.
 */
#include "app/agent/agent.h"
#include "sys/log/log.h"

enum { TRIAL_MS = 30000, AWAY_MS = 15000, HEARTBEAT_MAX_S = 86400 };

#define SERVER_FILE "server"

static void tell(struct agent *a, enum opamp_status status, const char *why)
{
    a->offer.status = status;
    a->offer.tell = true;
    (void)snprintf(a->offer.why, sizeof(a->offer.why), "%s", why);
    log_event(status == OPAMP_FAILED ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "offer",
              log_str("state", config_status_name(status)),
              log_str("server", a->offer.server), log_str("why", why));
}

static void trial_end(struct agent *a)
{
    link_free(a->offer.trial);
    a->offer.trial = NULL;
}

static void trial_opened(void *arg)
{
    struct agent *a = arg;
    struct err_info info = { 0 };
    struct link *old = a->link;

    a->link = a->offer.trial;
    a->offer.trial = NULL;
    link_rehook(a->link, &a->hooks, a->conf.agent.fast_retry_ms);
    if (state_write(a, SERVER_FILE, str_of(a->offer.server), STR("\n"), &info) != ERR_OK)
        agent_trouble(a, info.what); /* it is offered again after the next start */
    (void)snprintf(a->server, sizeof(a->server), "%s", a->offer.server);
    (void)snprintf(a->offered_server, sizeof(a->offered_server), "%s", a->server);
    tell(a, OPAMP_APPLIED, "");
    agent_lost(a); /* what was on its way on the old one */
    link_shut(old);
    link_free(old);
    agent_pace(a);
    a->hooks.opened(a->hooks.arg);
}

/* One failed attempt is none: it goes on until TRIAL_MS are over. */
static void trial_lost(void *arg, bool was_open, const char *why)
{
    struct agent *a = arg;

    (void)was_open;
    (void)snprintf(a->offer.why, sizeof(a->offer.why), "%s", why);
}

static void trial_message(void *arg, struct str bytes)
{
    (void)arg, (void)bytes; /* never: once open, the hooks are others */
}

static void trial_begin(struct agent *a, const char *server)
{
    struct err_info info = { 0 };
    struct conf_agent conf = a->conf.agent;
    struct link_hooks hooks = {
        .arg = a, .opened = trial_opened, .lost = trial_lost, .message = trial_message
    };

    trial_end(a);
    (void)snprintf(a->offer.server, sizeof(a->offer.server), "%s", server);
    (void)snprintf(conf.server, sizeof(conf.server), "%s", server);
    conf.fast_retry_ms = 0; /* nobody waits for it */
    if (link_new(a->event, &conf, a->creds, &hooks, &a->offer.trial, &info) != ERR_OK) {
        tell(a, OPAMP_FAILED, info.what);
        return;
    }
    a->offer.due_ms = a->now_ms + TRIAL_MS;
    tell(a, OPAMP_APPLYING, "");
}

static bool is_server(const char *text)
{
    char host[CONF_PATH];
    uint16_t port = 0;

    return conf_listen_split(text, host, sizeof(host), &port) == ERR_OK && host[0] &&
           port != 0;
}

/* wss://host:port/v1/opamp to host:port. */
static bool server_of(struct str endpoint, char *out, size_t size)
{
    struct str path = STR("/v1/opamp");
    size_t head = str_starts(endpoint, STR("wss://"))     ? 6
                  : str_starts(endpoint, STR("https://")) ? 8
                                                          : 0;

    if (head == 0 || endpoint.n < head + path.n)
        return false;
    struct str end = { endpoint.p + endpoint.n - path.n, path.n };
    struct str host = { endpoint.p + head, endpoint.n - head - path.n };
    for (size_t i = 0; i < host.n; i++)
        if (host.p[i] <= ' ' || host.p[i] == '/' || host.p[i] == '@')
            return false;
    return str_eq(end, path) && host.n > 0 && str_copy(out, size, host) && is_server(out);
}

static void take_certificate(struct agent *a, struct str certificate)
{
    struct err_info info = { 0 };
    enum err e = identity_offered(a->identity, certificate, &info);

    if (e != ERR_OK && e != ERR_EXISTS) {
        tell(a, OPAMP_FAILED, info.what);
        return;
    }
    tell(a, OPAMP_APPLIED, "");
}

void offers_take(struct agent *a, const struct opamp_settings *s)
{
    char server[CONF_PATH];
    bool same =
        s->hash.n == a->offer.hash_n && memcmp(s->hash.p, a->offer.hash, s->hash.n) == 0;

    if (!s->has_opamp || s->hash.n == 0 || s->hash.n > sizeof(a->offer.hash))
        return;
    if (same &&
        (a->offer.status != OPAMP_FAILED || a->offer.connection == a->counts.connects))
        return; /* done, being tried, or it failed on this very connection */
    memcpy(a->offer.hash, s->hash.p, s->hash.n);
    a->offer.hash_n = s->hash.n;
    a->offer.connection = a->counts.connects;
    if (s->heartbeat_s <= HEARTBEAT_MAX_S)
        a->offered_heartbeat_s = (uint32_t)s->heartbeat_s;
    agent_pace(a);
    if (!server_of(s->endpoint, server, sizeof(server))) {
        a->offer.server[0] = '\0';
        tell(a, OPAMP_FAILED, "destination_endpoint is not wss://host:port/v1/opamp");
        return;
    }
    if (strcmp(server, a->server) != 0) {
        trial_begin(a, server);
        return;
    }
    trial_end(a);
    if (s->has_certificate && s->certificate.n > 0)
        take_certificate(a, s->certificate);
    else
        tell(a, OPAMP_APPLIED, "");
}

void offers_tick(struct agent *a)
{
    char why[OPAMP_TEXT_MAX];
    const char *other;

    if (a->offer.trial && a->now_ms > a->offer.due_ms) {
        trial_end(a);
        (void)snprintf(why, sizeof(why), "%s", a->offer.why);
        tell(a, OPAMP_FAILED, why[0] ? why : "the server there does not answer");
    }
    /* Away for long: the address of agent.conf and the one that was offered take turns. */
    other = strcmp(a->server, a->conf.agent.server) == 0 ? a->offered_server
                                                         : a->conf.agent.server;
    if (link_state(a->link) != LINK_WAITING || !other[0] ||
        a->now_ms - a->heard_ms < AWAY_MS)
        return;
    a->heard_ms = a->now_ms;
    if (link_retarget(a->link, other))
        (void)snprintf(a->server, sizeof(a->server), "%s", other);
}

void offers_start(struct agent *a)
{
    struct err_info info = { 0 };
    char buf[CONF_PATH];
    size_t n = 0;

    (void)snprintf(a->server, sizeof(a->server), "%s", a->conf.agent.server);
    if (state_read(a, SERVER_FILE, buf, sizeof(buf), &n, &info) != ERR_OK || n < 2 ||
        buf[n - 1] != '\n')
        return;
    buf[n - 1] = '\0';
    if (is_server(buf)) {
        (void)snprintf(a->server, sizeof(a->server), "%s", buf);
        (void)snprintf(a->offered_server, sizeof(a->offered_server), "%s", buf);
    }
}

void offers_add(struct agent *a, struct opamp_agent *m)
{
    a->offer.tell = false;
    if (a->offer.hash_n == 0)
        return;
    m->has_settings_status = true;
    m->settings_status =
        (struct opamp_verdict){ { (const char *)a->offer.hash, a->offer.hash_n },
                                a->offer.status,
                                str_of(a->offer.why) };
}

void offers_release(struct agent *a)
{
    trial_end(a);
}
