/*
 * status: what `redoubt status` and `redoubt explain` are made from.
 */
#include <stdarg.h>

#include "app/node/daemon.h"

static const char *const service_names[SERVICE_STATE_COUNT] = {
    [SERVICE_STOPPED] = "stopped",   [SERVICE_STARTING] = "starting",
    [SERVICE_STANDBY] = "standby",   [SERVICE_ACTIVE] = "active",
    [SERVICE_CHANGING] = "changing", [SERVICE_FAILED] = "failed",
};

const char *status_service_state(enum service_state s)
{
    return service_names[s];
}

static json_t *wall_or_null(uint64_t wall_us)
{
    char text[40];

    return wall_us ? json_string(wall_text(wall_us, text, sizeof(text))) : json_null();
}

static json_t *services_json(const struct daemon *d)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < d->conf.service_count; i++) {
        const struct service_view *v = &d->view[i];
        const char *said = d->supervisor ? supervisor_status(d->supervisor, i) : "";

        (void)json_array_append_new(
            list,
            json_pack("{s:s, s:s, s:o, s:I, s:s}", "name", d->conf.service[i].name,
                      "state", service_names[v->state], "since",
                      wall_or_null(v->since_us), "restarts", (json_int_t)v->restarts,
                      "detail", said[0] && v->state != SERVICE_FAILED ? said : v->why));
    }
    return list;
}

json_t *status_obstacles(const struct node *n)
{
    static const struct {
        uint32_t bit;
        const char *text;
    } texts[] = {
#define X(code, bit, text) { code, text },
        NODE_OBSTACLE_MAP(X)
#undef X
    };
    json_t *list = json_array();
    uint32_t ob = node_obstacles(n);

    if (ob & NODE_OB_SCHEMA)
        ob &= ~(uint32_t)NODE_OB_DATABASE; /* it is reached: that is how we know */
    for (size_t i = 0; i < LEN(texts); i++)
        if (ob & texts[i].bit)
            (void)json_array_append_new(list, json_string(texts[i].text));
    return list;
}

static json_t *obstacles_json(const struct daemon *d)
{
    json_t *list = d->running ? status_obstacles(&d->run.node) : json_array();

    for (uint32_t i = 0; d->running && i < d->conf.service_count; i++)
        if (d->view[i].state != SERVICE_STANDBY && d->view[i].state != SERVICE_ACTIVE)
            (void)json_array_append_new(
                list, json_sprintf("service %s is %s: %s", d->conf.service[i].name,
                                   service_names[d->view[i].state], d->view[i].why));
    if (!d->running)
        (void)json_array_append_new(list, json_sprintf("not started: %s", d->trouble));
    return list;
}

static json_t *share_json(const struct daemon *d)
{
    struct keeper_stats st = { .pid = 0 };
    bool ok = d->running && !(node_obstacles(&d->run.node) & NODE_OB_SHARE);

    if (d->keeper)
        st = keeper_stats(d->keeper);
    return json_pack("{s:b, s:f, s:s, s:i, s:i, s:s}", "ok", ok, "latency_ms",
                     (double)st.latency_us / 1000.0, "dialect", st.dialect, "connections",
                     (int)st.connections, "replacements", (int)st.replacements, "detail",
                     ok ? "" : d->share.why);
}

static json_t *database_json(const struct daemon *d)
{
    return json_pack("{s:b, s:f, s:s, s:s}", "ok", d->database.ok, "latency_ms",
                     (double)d->database.latency_us / 1000.0, "state",
                     d->database.known ? fence_state_name(d->database.state) : "unknown",
                     "detail", d->database.why);
}

/* Why the node is what it is: for the active one, what the lease came to it for. */
static const char *why_of(const struct node *n)
{
    if (n->state != NODE_ACTIVE)
        return node_why_name(n->why);
    return n->takeover.from_why[0] ? n->takeover.from_why
                                   : node_why_name(n->takeover.why);
}

json_t *status_self(struct daemon *d)
{
    const struct node *n = &d->run.node;
    const bool active = d->running && n->state == NODE_ACTIVE;

    return json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:b, s:o, s:b, s:s, s:o, s:o, s:o, s:o, s:b, s:I}",
        "name", d->conf.cluster.node, "role", active ? "active" : "passive", "state",
        node_state_name(n->state), "why", why_of(n), "since",
        wall_or_null(d->state_since_us), "ready", d->running && node_obstacles(n) == 0,
        "not_ready_because", obstacles_json(d), "maintenance", n->maintenance, "version",
        REDOUBT_VERSION, "services", services_json(d), "share", share_json(d), "database",
        database_json(d), "content", content_json(d), "degraded", node_degraded(n),
        "known_epoch", (json_int_t)n->known_epoch);
}

json_t *status_peer_record(struct daemon *d)
{
    char name[SHARE_NAME_BYTES];
    struct str body;

    (void)snprintf(name, sizeof(name), "node/%s", d->conf.cluster.peer);
    if (d->peer_record_n == 0 ||
        record_open((struct str){ d->peer_record, d->peer_record_n }, &d->key,
                    str_of(name), &body) != ERR_OK)
        return NULL;
    return json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES, NULL);
}

/* The node that serves, as far as this one can see; NULL: nobody. */
const char *status_active(const struct daemon *d)
{
    const struct node *n = &d->run.node;
    const struct lease_rec *rec = &n->seen.lease;

    if (!d->running)
        return NULL;
    if (n->state == NODE_ACTIVE)
        return d->conf.cluster.node;
    if (n->seen.known && n->seen.lease_err == ERR_OK && !rec->released &&
        strcmp(rec->owner, d->conf.cluster.peer) == 0 &&
        strcmp(n->peer.rec.state, "active") == 0 &&
        mono_since_ms(now_mono(), n->seen.changed) < node_wait_ms(&n->conf, rec->hold_ms))
        return d->conf.cluster.peer;
    return NULL;
}

/* Its last word stays readable, but must not pass for the present. */
static void mark_silent(json_t *status)
{
    json_t *was = json_object_get(status, "not_ready_because"), *service;
    size_t i;

    (void)json_object_set_new(status, "ready", json_false());
    (void)json_object_set_new(status, "role", json_string("passive"));
    (void)json_object_set_new(status, "state", json_string("silent"));
    if (json_is_array(was))
        (void)json_array_insert_new(
            was, 0,
            json_string("its record on the share does not change: it is down or cut "
                        "off"));
    json_array_foreach(json_object_get(status, "services"), i, service)
    {
        (void)json_object_set_new(
            service, "detail",
            json_sprintf("when last seen: %s", entry_text(service, "state")));
        (void)json_object_set_new(service, "state", json_string("unknown"));
    }
}

static json_t *status_peer(struct daemon *d)
{
    const struct node *n = &d->run.node;
    json_t *record = status_peer_record(d), *status = NULL;

    if (record) {
        status = json_incref(json_object_get(record, "status"));
        json_decref(record);
    }
    const bool alive =
        d->running && n->peer.alive &&
        mono_since_ms(now_mono(), n->peer.changed) <= n->conf.peer_fresh_ms;

    if (!json_is_object(status)) {
        json_decref(status);
        status = json_pack("{s:s, s:s, s:s, s:b, s:[s], s:b, s:[]}", "name",
                           d->conf.cluster.peer, "role", "passive", "state", "unknown",
                           "ready", false, "not_ready_because",
                           "it has not written its record on the share", "maintenance",
                           false, "services");
    } else if (!alive) {
        mark_silent(status);
    } else if (status_active(d) && strcmp(status_active(d), d->conf.cluster.node) == 0) {
        (void)json_object_set_new(status, "role", json_string("passive"));
    }
    (void)json_object_set_new(
        status, "seen_ms_ago",
        n->peer.alive ? json_integer(mono_since_ms(now_mono(), n->peer.changed))
                      : json_null());
    return status;
}

static json_t *lease_json(const struct daemon *d)
{
    const struct node *n = &d->run.node;
    const struct mono now = now_mono();
    const bool ours = n->lease.epoch != 0;
    const struct lease_rec *rec = &n->seen.lease;

    if (ours)
        return json_pack("{s:s, s:I, s:I, s:I, s:I, s:b}", "holder", d->conf.cluster.node,
                         "epoch", (json_int_t)n->lease.epoch, "age_ms",
                         (json_int_t)n->conf.hold_ms -
                             (json_int_t)mono_since_ms(n->lease.deadline, now),
                         "remaining_ms",
                         (json_int_t)mono_since_ms(n->lease.deadline, now), "hold_ms",
                         (json_int_t)n->conf.hold_ms, "released", false);
    if (!n->seen.known || n->seen.lease_err != ERR_OK)
        return json_null();
    return json_pack("{s:s, s:I, s:I, s:n, s:I, s:b}", "holder", rec->owner, "epoch",
                     (json_int_t)rec->epoch, "age_ms",
                     (json_int_t)mono_since_ms(now, n->seen.changed), "remaining_ms",
                     "hold_ms", (json_int_t)rec->hold_ms, "released", rec->released);
}

static json_t *address_json(const struct daemon *d)
{
    const struct conf_address *a = &d->conf.address;

    if (a->mode == CONF_ADDRESS_NONE)
        return json_string("none");
    if (a->ipv4[0] && a->ipv6[0])
        return json_sprintf("%s %s", a->ipv4, a->ipv6);
    return json_string(a->ipv4[0] ? a->ipv4 : a->ipv6);
}

/* The takeovers of both nodes, oldest first. */
static json_t *switches(struct daemon *d)
{
    json_t *all = journal_merged(d, HISTORY_MAX), *out = json_array(), *e;
    size_t i;

    json_array_foreach(all, i, e)
    {
        if (strcmp(entry_text(e, "kind"), "switch") == 0)
            (void)json_array_append(out, e);
    }
    json_decref(all);
    while (json_array_size(out) > 10)
        (void)json_array_remove(out, 0);
    return out;
}

json_t *status_all(struct daemon *d)
{
    struct node *n = &d->run.node;
    const char *active = status_active(d);
    json_t *list = switches(d), *last, *nodes, *self = status_self(d),
           *peer = status_peer(d);

    last = json_array_get(list, json_array_size(list) - 1);
    nodes = json_array();
    /* In the order of their names: the same on both nodes. */
    const bool first = strcmp(d->conf.cluster.node, d->conf.cluster.peer) < 0;

    (void)json_array_append_new(nodes, first ? self : peer);
    (void)json_array_append_new(nodes, first ? peer : self);
    const uint64_t epoch = n->lease.epoch ? n->lease.epoch : n->seen.top;
    const json_t *serves =
        active && strcmp(active, d->conf.cluster.node) == 0 ? self : peer;
    const bool degraded = !active || json_is_true(json_object_get(serves, "degraded"));

    return json_pack("{s:s, s:I, s:o, s:o, s:b, s:b, s:s, s:o, s:o, s:o, s:O, s:o}",
                     "cluster", d->conf.cluster.name, "epoch", (json_int_t)epoch,
                     "active", active ? json_string(active) : json_null(), "address",
                     address_json(d), "paused", n->paused, "degraded", degraded,
                     "profile", conf_profile_name(d->conf.cluster.profile), "alarms",
                     alarms_json(d), "nodes", nodes, "lease", lease_json(d),
                     "last_switch", last ? last : json_null(), "switches", list);
}

/* ---- explain ---- */

static void say(json_t *list, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(json_t *list, const char *fmt, ...)
{
    char text[600];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    (void)json_array_append_new(list, json_string(text));
}

static void explain_now(struct daemon *d, json_t *l)
{
    const struct node *n = &d->run.node;
    const char *active = status_active(d), *self = d->conf.cluster.node;
    const struct lease_rec *rec = &n->seen.lease;

    if (!d->running) {
        say(l, "The daemon of %s has not started its work: %s.", self, d->trouble);
        return;
    }
    if (n->state == NODE_ACTIVE)
        say(l,
            "%s is active because it holds epoch %llu of the lease, last renewed %u ms "
            "ago. "
            "It came to it because of: %s.",
            self, (unsigned long long)n->lease.epoch,
            n->conf.hold_ms - mono_since_ms(n->lease.deadline, now_mono()),
            n->takeover.from_why[0] ? n->takeover.from_why
                                    : node_why_name(n->takeover.why));
    else if (active)
        say(l, "%s is active: its record of epoch %llu changed %u ms ago. %s is %s.",
            active, (unsigned long long)rec->epoch,
            mono_since_ms(now_mono(), n->seen.changed), self, node_state_name(n->state));
    else
        say(l,
            "Nobody is active as far as %s can see. It is %s (%s); the newest epoch on "
            "the "
            "share is %llu%s.",
            self, node_state_name(n->state), node_why_name(n->why),
            (unsigned long long)n->seen.top,
            n->seen.known && n->seen.lease_err == ERR_OK && rec->released ? ", released"
                                                                          : "");
    if (n->paused)
        say(l, "The cluster is paused: nothing switches by itself until redoubt resume.");
    json_t *obstacles = status_obstacles(n), *o;
    size_t i;

    json_array_foreach(obstacles, i, o)
    {
        say(l, "%s is not prepared: %s.", self, json_string_value(o));
    }
    json_decref(obstacles);
    content_explain(d, l, say);
}

/* Why the other node would not take over if this one broke; NULL: it would. */
static const char *peer_refusal(const struct node *n)
{
    if (n->paused)
        return "nobody takes over while the cluster is paused";
    if (!n->peer.alive || mono_since_ms(n->last, n->peer.changed) > n->conf.peer_fresh_ms)
        return "nobody takes over, because the other node is silent";
    return n->peer.rec.maintenance
               ? "nobody takes over, because the other node is in maintenance"
               : NULL;
}

static void explain_active(struct daemon *d, json_t *l)
{
    const struct node *n = &d->run.node;
    const char *peer = d->conf.cluster.peer;
    const bool can = node_peer_fit(n) && !n->paused;
    const uint32_t wait = node_wait_ms(&n->conf, n->conf.hold_ms);
    const char *refusal = peer_refusal(n);

    if (can && n->lease.moves < n->conf.switch_max)
        say(l,
            "If a service fails here: %s takes over at once (handed over, well below a "
            "second).",
            peer);
    else
        say(l, "If a service fails here: it is restarted in place, because %s.",
            n->paused                              ? "the cluster is paused"
            : n->lease.moves >= n->conf.switch_max ? "failed services have switched the "
                                                     "cluster often enough lately"
                                                   : "the other node is not prepared");
    say(l,
        "If this machine breaks, is cut off, or loses the file server: it stops serving "
        "%u ms "
        "after its last renewal at the latest, and %s.",
        n->conf.hold_ms,
        refusal             ? refusal
        : n->peer.rec.ready ? "the other node takes over after its wait"
                            : "the other node takes over after its wait, and a little "
                              "later because it is not prepared");
    if (!refusal)
        say(l, "The wait of the other node is %u ms after it last saw the lease change.",
            wait);
    say(l,
        "If redoubt-node dies: the guard kills the services, the lease is released, and "
        "%s.",
        can ? "the other node takes over at its next look" : "this node starts again");
}

/* What a passive node would do. */
static void explain_passive(struct daemon *d, json_t *l)
{
    const struct node *n = &d->run.node;
    const char *self = d->conf.cluster.node;
    const uint32_t ob = node_obstacles(n);
    const char *lead = status_active(d) ? "If the active node fails" : "Nobody is active";

    if (n->maintenance)
        say(l, "%s: this node does not take over, it is in maintenance.", lead);
    else if (n->paused)
        say(l, "%s: this node does not take over while the cluster is paused.", lead);
    else if (ob & (NODE_OB_REGRESSED | NODE_OB_DUPLICATE | NODE_OB_RECORD |
                   NODE_OB_STOPPING | NODE_OB_ADDRESS | NODE_OB_SHARE | NODE_OB_SCHEMA))
        say(l, "%s: this node does not take over until what is said above is mended.",
            lead);
    else
        say(l,
            "%s: %s takes over %u ms after it last saw the lease change%s; at once if "
            "the lease is released.",
            lead, self,
            node_wait_ms(&n->conf,
                         n->seen.lease.hold_ms ? n->seen.lease.hold_ms : n->conf.hold_ms),
            ob & (NODE_OB_SERVICES | NODE_OB_CONTENT)
                ? " (and a little later, because it is not prepared)"
                : "");
}

json_t *status_explain(struct daemon *d)
{
    json_t *now = json_array(), *then = json_array();

    explain_now(d, now);
    if (d->running && d->run.node.state == NODE_ACTIVE)
        explain_active(d, then);
    else if (d->running)
        explain_passive(d, then);
    say(then,
        "If the file server fails for both nodes: nobody is active until it is back; "
        "then one of them takes the lease by itself.");
    say(then,
        "If the DBMS fails: nothing switches; the services go on as far as they can, "
        "and devices keep their reports until it is back.");
    return json_pack("{s:o, s:o, s:o}", "Why it is as it is", now, "What would happen",
                     then, "alarms", alarms_json(d));
}
