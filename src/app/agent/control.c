#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "app/agent/agent.h"
#include "app/agent/protect.h"
#include "app/agent/upgrade.h"
#include "sys/log/log.h"

enum { STATUS_BYTES = 16384, STATUS_WAIT_MS = 2000 };

/* Beside the spool: the agent can write there, and nobody else. */
void control_path_of(const struct agent_conf *conf, char *out, size_t size)
{
    (void)snprintf(out, size, "%s.sock", conf->agent.spool);
}

static bool address_of(const char *path, struct sockaddr_un *out)
{
    *out = (struct sockaddr_un){ .sun_family = AF_UNIX };
    return str_copy(out->sun_path, sizeof(out->sun_path), str_of(path));
}

static void pair(struct text *t, const char *key, const char *value)
{
    text_add(t, "\"%s\":", key);
    quoted_json(t, str_of(value));
    text_add(t, ",");
}

static void add_events(const struct agent *a, struct text *t)
{
    const struct event_counts *c = event_spool_counts(a->spool);
    uint64_t untold = 0;

    for (int i = 0; i < EVENT_SEVERITIES; i++)
        untold += c->untold[i];
    text_add(t,
             "\"events\":{\"pending\":%" PRIu64 ",\"pending_critical\":%" PRIu64
             ",\"bytes\":%" PRIu64 ",\"in_memory\":%u,\"dropped\":%" PRIu64
             ",\"dropped_untold\":%" PRIu64 ",\"made\":%" PRIu64
             ",\"acknowledged\":%" PRIu64 ",\"refused\":%" PRIu64 "},",
             c->pending[EVENT_CRITICAL] + c->pending[EVENT_NORMAL],
             c->pending[EVENT_CRITICAL], c->bytes, a->ev.backlog_count, c->dropped,
             untold, a->ev.made, a->ev.acknowledged, a->ev.refused);
}

static void add_policy(const struct agent *a, struct text *t)
{
    text_add(t, "\"policy\":{");
    pair(t, "hash", a->policy.offered);
    pair(t, "in_force", a->policy.hash);
    pair(t, "state", config_status_name(a->policy.status));
    pair(t, "why", a->policy.why);
    text_add(t, "\"heartbeat_s\":%u},\"offer\":{", a->heartbeat_s);
    pair(t, "server", a->offered_server);
    pair(t, "state", config_status_name(a->offer.status));
    text_add(t, "\"why\":");
    quoted_json(t, str_of(a->offer.why));
    text_add(t, "},");
}

static void add_identity(const struct agent *a, struct text *t)
{
    struct identity_status s;

    identity_status(a->identity, &s);
    text_add(t, "\"identity\":{");
    pair(t, "serial", s.serial);
    pair(t, "trouble", s.trouble);
    text_add(t,
             "\"not_after\":%" PRId64 ",\"renew_at\":%" PRId64
             ",\"trying\":%s,\"asking\":%s},",
             s.not_after, s.renew_at, s.trying ? "true" : "false",
             s.asking ? "true" : "false");
}

static void add_facts(const struct agent *a, struct text *t)
{
    struct protect_facts f;

    protect_facts(a->protect, &f);
    text_add(t, "\"protection\":{");
    pair(t, "realtime", f.realtime);
    text_add(t, "\"last_scan\":%" PRId64 ",\"threats_open\":%u},", f.last_scan,
             f.threats_open);
}

void control_json(const struct agent *a, struct text *t)
{
    const struct spool_counts *s = spool_counts(a->spool);
    char id[UUID_TEXT];

    uuid_format(id, &a->device_id);
    text_add(t, "{");
    pair(t, "device_id", id);
    pair(t, "version", agent_version());
    pair(t, "server", a->server);
    pair(t, "connection", link_state_name(link_state(a->link)));
    text_add(t, "\"connected\":%s,\"epoch\":%" PRIu64 ",",
             link_state(a->link) == LINK_OPEN ? "true" : "false", a->server_epoch);
    pair(t, "trouble", a->trouble);
    text_add(t, "\"engine\":{\"up\":%s,", a->engine.up ? "true" : "false");
    pair(t, "why", a->engine.why);
    pair(t, "version", a->engine.version.engine);
    pair(t, "signatures_built", a->engine.version.built);
    text_add(t, "\"signatures\":%u},", a->engine.version.database);
    text_add(t,
             "\"reports\":{\"pending\":%" PRIu64 ",\"dropped\":%" PRIu64
             ",\"last_seq\":%" PRIu64 ",\"made\":%" PRIu64 ",\"lost\":%" PRIu64
             ",\"acknowledged\":%" PRIu64 ",\"refused\":%" PRIu64 "},",
             s->pending, s->dropped, s->last_seq, a->counts.made, a->counts.lost,
             a->counts.acknowledged, a->counts.refused);
    add_events(a, t);
    add_policy(a, t);
    upgrade_json(a, t);
    runs_json(a, t);
    add_identity(a, t);
    add_facts(a, t);
    text_add(t, "\"connects\":%" PRIu64 ",\"unavailable\":%" PRIu64 "}\n",
             a->counts.connects, a->counts.unavailable);
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    const struct agent *a = arg;
    char buf[STATUS_BYTES];
    struct text t;
    int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)source, (void)revents;
    if (c < 0)
        return 0;
    text_init(&t, buf, sizeof(buf));
    control_json(a, &t);
    if (!t.cut) /* fits a socket's buffer: one send is all */
        (void)send(c, buf, t.n, MSG_NOSIGNAL);
    (void)close(c);
    return 0;
}

enum err control_open(struct agent *a, struct err_info *info)
{
    struct sockaddr_un at;

    control_path_of(&a->conf, a->control_path, sizeof(a->control_path));
    if (!address_of(a->control_path, &at))
        return err_set(info, ERR_LIMIT, 0, "%s is too long for a socket",
                       a->control_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "control socket");
    (void)unlink(a->control_path); /* the spool's lock says that nobody else is there */
    if (bind(fd, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(fd, 8) != 0 ||
        sd_event_add_io(a->event, &a->control, fd, EPOLLIN, on_connection, a) < 0) {
        int e = errno;

        (void)close(fd);
        return err_set(info, ERR_IO, e, "bind %s", a->control_path);
    }
    (void)sd_event_source_set_io_fd_own(a->control, true);
    return ERR_OK;
}

/* Reads until the other side closes; the number of bytes, or -1 with errno. */
static ssize_t read_all(int fd, char *buf, size_t size)
{
    size_t n = 0;

    while (n < size) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        if (poll(&p, 1, STATUS_WAIT_MS) <= 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        ssize_t got = recv(fd, buf + n, size - n, 0);
        if (got < 0)
            return -1;
        if (got == 0)
            return (ssize_t)n;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

/* The member at a path of keys, "a.b"; borrowed, NULL if there is none. */
static const json_t *member(const json_t *root, const char *path)
{
    char key[64];
    const char *dot;

    for (; root && (dot = strchr(path, '.')); path = dot + 1) {
        (void)snprintf(key, sizeof(key), "%.*s", (int)(dot - path), path);
        root = json_object_get(root, key);
    }
    return json_object_get(root, path);
}

static void print_line(const char *title, const json_t *v)
{
    if (json_is_integer(v))
        printf("%-20s %" JSON_INTEGER_FORMAT "\n", title, json_integer_value(v));
    else if (json_is_boolean(v))
        printf("%-20s %s\n", title, json_is_true(v) ? "yes" : "no");
    else
        printf("%-20s %s\n", title, json_string_length(v) ? json_string_value(v) : "-");
}

/* For people: the values of our own JSON, a line each. */
static void print_status(const json_t *status)
{
    static const struct {
        const char *title, *path;
    } lines[] = {
        { "Device", "device_id" },
        { "Server", "server" },
        { "Connection", "connection" },
        { "Epoch of the server", "epoch" },
        { "Trouble", "trouble" },
        { "Certificate", "identity.serial" },
        { "Policy", "policy.state" },
        { "Policy in force", "policy.in_force" },
        { "Policy trouble", "policy.why" },
        { "Upgrade", "upgrade.state" },
        { "Upgrade to", "upgrade.version" },
        { "Upgrade trouble", "upgrade.why" },
        { "Engine up", "engine.up" },
        { "Real-time protection", "protection.realtime" },
        { "Open threats", "protection.threats_open" },
        { "Tasks", "runs.open" },
        { "Events waiting", "events.pending" },
        { "Events stored", "events.acknowledged" },
        { "Events refused", "events.refused" },
        { "Events dropped", "events.dropped" },
        { "Reports waiting", "reports.pending" },
        { "Reports stored", "reports.acknowledged" },
        { "Reports refused", "reports.refused" },
        { "Reports dropped", "reports.dropped" },
    };

    for (size_t i = 0; i < LEN(lines); i++)
        print_line(lines[i].title, member(status, lines[i].path));
}

int control_status(const struct agent_conf *conf, bool json)
{
    char path[CONF_PATH + 8], buf[STATUS_BYTES];
    struct sockaddr_un at;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    control_path_of(conf, path, sizeof(path));
    ssize_t n = -1;
    if (fd >= 0 && address_of(path, &at) &&
        connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0)
        n = read_all(fd, buf, sizeof(buf));
    int e = errno;
    if (fd >= 0)
        (void)close(fd);
    if (n <= 0) {
        fprintf(stderr,
                "redoubt-agent: the agent does not run, or not with this configuration "
                "(%s: %s)\n",
                path, n == 0 ? "no answer" : strerrordesc_np(e));
        return 1;
    }
    json_t *status = json_loadb(buf, (size_t)n, 0, NULL);
    if (!status) {
        fprintf(stderr, "redoubt-agent: the agent's answer is cut off\n");
        return 1;
    }
    if (json)
        printf("%.*s", (int)n, buf);
    else
        print_status(status);
    json_decref(status);
    return ferror(stdout) ? 1 : 0;
}
