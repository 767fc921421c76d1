/*
 * journal: the history that `redoubt log` shows, and what must survive this process.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

static void path_in(char *out, size_t size, const char *dir, const char *name)
{
    (void)snprintf(out, size, "%s/%s", dir, name);
}

char *wall_text(uint64_t wall_us, char *buf, size_t size)
{
    time_t s = (time_t)(wall_us / 1000000);
    struct tm tm;
    char date[32] = "";

    if (gmtime_r(&s, &tm))
        (void)strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(buf, size, "%s.%03uZ", date, (unsigned)(wall_us / 1000 % 1000));
    return buf;
}

const char *entry_text(const json_t *entry, const char *key)
{
    const char *text = json_string_value(json_object_get(entry, key));

    return text ? text : "";
}

/* ---- known epoch and maintenance: one small file, renamed into place ---- */

static void remember(void *impl, uint64_t known_epoch, bool maintenance)
{
    struct daemon *d = impl;
    char path[CONF_PATH + 32], temp[CONF_PATH + 32], text[128];

    path_in(path, sizeof(path), d->conf.cluster.state_dir, "memory.json");
    path_in(temp, sizeof(temp), d->conf.cluster.state_dir, "memory.json.new");
    int n = snprintf(text, sizeof(text), "{\"known_epoch\":%llu,\"maintenance\":%s}\n",
                     (unsigned long long)known_epoch, maintenance ? "true" : "false");
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    /* Not synced: a power loss may forget it, the DBMS knows the epoch too (L1). */
    if (fd < 0 || write(fd, text, (size_t)n) != n || rename(temp, path) < 0)
        log_event(LOG_LEVEL_WARNING, "memory_not_written", log_str("path", path),
                  log_str("error", strerror(errno)));
    if (fd >= 0)
        (void)close(fd);
}

static void load_history(struct daemon *d, const char *name)
{
    char path[CONF_PATH + 32];
    char line[4096];

    path_in(path, sizeof(path), d->conf.cluster.state_dir, name);
    FILE *f = fopen(path, "re");

    while (f && fgets(line, sizeof(line), f)) {
        json_t *e = json_loads(line, JSON_REJECT_DUPLICATES, NULL);

        if (json_is_object(e))
            (void)json_array_append(d->history, e);
        json_decref(e);
        if (json_array_size(d->history) > HISTORY_MAX)
            (void)json_array_remove(d->history, 0);
    }
    if (f)
        (void)fclose(f);
}

void journal_load(struct daemon *d, uint64_t *known_epoch, bool *maintenance)
{
    char path[CONF_PATH + 32];

    path_in(path, sizeof(path), d->conf.cluster.state_dir, "memory.json");
    json_t *m = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
    json_int_t epoch = json_integer_value(json_object_get(m, "known_epoch"));

    *known_epoch = epoch > 0 ? (uint64_t)epoch : 0;
    *maintenance = json_is_true(json_object_get(m, "maintenance"));
    json_decref(m);
    d->history = json_array();
    d->switches = json_array();
    CHECK(d->history && d->switches);
    load_history(d, "history.jsonl.1");
    load_history(d, "history.jsonl");
    size_t i;
    json_t *e;

    json_array_foreach(d->history, i, e)
    {
        if (strcmp(entry_text(e, "kind"), "switch") == 0)
            (void)json_array_append(d->switches, e);
    }
}

/* ---- entries ---- */

json_t *journal_entry(struct daemon *d, const char *kind, const char *text)
{
    char at[40];
    json_t *e =
        json_pack("{s:s, s:s, s:s, s:s}", "at", wall_text(now_wall_us(), at, sizeof(at)),
                  "node", d->conf.cluster.node, "kind", kind, "text", text);

    CHECK(e); /* out of memory for a hundred bytes: nothing good can follow */
    return e;
}

void journal_add(struct daemon *d, json_t *entry)
{
    char path[CONF_PATH + 32], old[CONF_PATH + 32];
    struct stat st;

    (void)json_array_append(d->history, entry);
    if (json_array_size(d->history) > HISTORY_MAX)
        (void)json_array_remove(d->history, 0);
    path_in(path, sizeof(path), d->conf.cluster.state_dir, "history.jsonl");
    if (stat(path, &st) == 0 && st.st_size > HISTORY_FILE_BYTES) {
        path_in(old, sizeof(old), d->conf.cluster.state_dir, "history.jsonl.1");
        (void)rename(path, old); /* at worst the file grows on */
    }
    FILE *f = fopen(path, "ae");

    if (f) {
        (void)json_dumpf(entry, f, JSON_COMPACT | JSON_PRESERVE_ORDER);
        (void)fputc('\n', f);
        (void)fclose(f);
    }
    json_decref(entry);
}

static json_t *ms_between(struct mono from, struct mono to)
{
    if (!mono_is_set(from) || to.us < from.us)
        return json_null();
    return json_real((double)((to.us - from.us) / 10) / 100.0);
}

/* The switch that has just ended with this node active: who, why, and where the time went. */
static json_t *switch_entry(struct daemon *d)
{
    const struct node *n = &d->run.node;
    const bool released = n->takeover.why == NODE_WHY_LEASE_RELEASED;
    const char *reason =
        released && n->takeover.from_why[0] ? n->takeover.from_why : "lease_expired";
    char text[300];

    /* Released: it said how long it had been down.  Expired: since its last sign of life. */
    double outage =
        released ? (double)n->takeover.down_ms +
                       (double)(n->takeover.opened.us - n->takeover.old_alive.us) / 1000
                 : (double)(n->takeover.opened.us - n->takeover.old_alive.us) / 1000;

    (void)snprintf(text, sizeof(text), "%s took over from %s: %s.", d->conf.cluster.node,
                   n->takeover.from[0] ? n->takeover.from : "nobody",
                   released ? "the lease was released" : "the holder had gone silent");
    json_t *e = journal_entry(d, "switch", text);

    (void)json_object_set_new(e, "from", json_string(n->takeover.from));
    (void)json_object_set_new(e, "to", json_string(d->conf.cluster.node));
    (void)json_object_set_new(e, "why", json_string(reason));
    (void)json_object_set_new(e, "reason", json_string(reason));
    (void)json_object_set_new(e, "epoch", json_integer((json_int_t)n->lease.epoch));
    /* The first start of the cluster ends no outage. */
    (void)json_object_set_new(e, "outage_ms",
                              strcmp(n->takeover.from, "init") == 0
                                  ? json_null()
                                  : json_integer((json_int_t)(outage + 0.5)));
    (void)json_object_set_new(
        e, "phases",
        json_pack("{s:I, s:o, s:o, s:o, s:o, s:o}", "stand_down_ms",
                  (json_int_t)n->takeover.down_ms, "watch_ms",
                  ms_between(n->takeover.old_alive, n->takeover.decided), "claim_ms",
                  ms_between(n->takeover.decided, n->takeover.claimed), "fence_ms",
                  ms_between(n->takeover.claimed, n->takeover.fenced), "services_ms",
                  ms_between(n->takeover.fenced, n->takeover.activated), "address_ms",
                  ms_between(n->takeover.activated, n->takeover.opened)));
    return e;
}

static const char *action_of(const char *to)
{
    if (strcmp(to, "promoting") == 0)
        return "fence the DBMS, activate the services, open the address";
    if (strcmp(to, "demoting") == 0)
        return "services to standby, address down, then release the lease";
    if (strcmp(to, "fenced") == 0)
        return "kill the services, drop the address";
    if (strcmp(to, "claiming") == 0)
        return "create the next epoch on the share";
    return "";
}

static json_t *evidence_of(const struct daemon *d)
{
    const struct node *n = &d->run.node;
    const bool passive = n->state == NODE_FOLLOWING || n->state == NODE_READY;
    json_t *seen = mono_is_set(n->seen.changed)
                       ? json_integer(mono_since_ms(n->last, n->seen.changed))
                       : json_null();

    /* While it serves or steps down, what would hinder a takeover explains nothing. */
    return json_pack(
        "{s:I, s:o, s:I, s:s, s:b, s:b, s:o}", "share_top", (json_int_t)n->seen.top,
        "unchanged_ms", seen, "known_epoch", (json_int_t)n->known_epoch, "share",
        err_name(n->seen.last_err), "database_ok", n->database.ok, "peer_can_take",
        node_peer_can_take(n), "obstacles", passive ? status_obstacles(n) : json_array());
}

void journal_alarm(struct daemon *d, enum alarm id, const char *why)
{
    json_t *e = journal_entry(d, "alarm", alarm_info(id)->text);

    (void)json_object_set_new(e, "id", json_string(alarm_info(id)->id));
    (void)json_object_set_new(e, "why", json_string(why));
    alert_send(d, e);
    journal_add(d, e);
}

static void moved(void *impl, const struct journal_move *m)
{
    struct daemon *d = impl;
    json_t *e = journal_entry(d, "move", "");

    d->moves_total++;
    d->state_since_us = now_wall_us();
    log_event(LOG_LEVEL_INFO, "node_move", log_str("from", m->from), log_str("to", m->to),
              log_str("why", m->why), log_u64("epoch", m->epoch),
              log_u64("share_top", d->run.node.seen.top),
              log_u64("unchanged_ms",
                      mono_since_ms(d->run.node.last, d->run.node.seen.changed)));
    (void)json_object_set_new(e, "from", json_string(m->from));
    (void)json_object_set_new(e, "to", json_string(m->to));
    (void)json_object_set_new(e, "why", json_string(m->why));
    (void)json_object_set_new(e, "epoch", json_integer((json_int_t)m->epoch));
    (void)json_object_set_new(e, "evidence", evidence_of(d));
    (void)json_object_set_new(e, "action", json_string(action_of(m->to)));
    journal_add(d, e);
    if (strcmp(m->to, "active") == 0) {
        json_t *s = switch_entry(d);

        d->switches_total++;
        (void)json_array_append(d->switches, s);
        if (json_array_size(d->switches) > HISTORY_MAX)
            (void)json_array_remove(d->switches, 0);
        log_event(
            LOG_LEVEL_WARNING, "switch", log_str("from", d->run.node.takeover.from),
            log_str("to", d->conf.cluster.node),
            log_str("reason", json_string_value(json_object_get(s, "reason"))),
            log_u64("epoch", d->run.node.lease.epoch),
            log_i64("outage_ms", json_integer_value(json_object_get(s, "outage_ms"))));
        alert_send(d, s);
        journal_add(d, s);
    } else if (strcmp(m->to, "fenced") == 0) {
        journal_alarm(d, ALARM_LEASE_LOST, m->why);
    }
}

void journal_service(struct daemon *d, uint32_t i)
{
    const struct service_view *v = &d->view[i];
    char text[SUPERVISOR_WHY_BYTES + 64];

    (void)snprintf(text, sizeof(text), "%s: %s", d->services[i].name, v->why);
    json_t *e = journal_entry(d, "service", text);

    (void)json_object_set_new(e, "restarts", json_integer(v->restarts));
    if (d->run.node.state == NODE_ACTIVE || d->run.node.state == NODE_PROMOTING)
        alert_send(d, e);
    journal_add(d, e);
}

static void answer(void *impl, uint32_t token, enum err e)
{
    struct daemon *d = impl;

    if (token == d->token) {
        d->answered = true;
        d->answer = e;
    }
}

/* What both nodes tell each other besides what decisions need: 0 if it does not fit. */
static size_t extra_with(struct daemon *d, char *buf, size_t size, size_t entries)
{
    json_t *latest = json_array();
    size_t count = json_array_size(d->history),
           from = count > entries ? count - entries : 0;

    for (size_t i = from; i < count; i++)
        (void)json_array_append(latest, json_array_get(d->history, i));
    json_t *all = json_pack("{s:o, s:o, s:s}", "status", status_self(d), "history",
                            latest, "conf", d->conf_digest);
    size_t n = all ? json_dumpb(all, buf, size, JSON_COMPACT | JSON_PRESERVE_ORDER) : 0;

    json_decref(all);
    if (n < 2 || n > size)
        return 0;
    memmove(buf, buf + 1, n - 2); /* the members without their braces */
    n -= 2;
    int m = snprintf(buf + n, size - n, ",\"machine\":%s", d->machine_json);

    return m > 0 && (size_t)m < size - n ? n + (size_t)m : 0;
}

static size_t node_extra(void *impl, char *buf, size_t size)
{
    const size_t room =
        size - 1024; /* the rest is for what decisions need, and the MAC */
    size_t n = 0;

    for (size_t entries = HISTORY_PUBLISHED; n == 0; entries /= 2) {
        n = extra_with(impl, buf, room, entries);
        if (entries == 0)
            break;
    }
    return n;
}

static void scanned(void *impl, const struct share_answer *a)
{
    struct daemon *d = impl;

    if (a->peer.n > 0 && a->peer.n <= sizeof(d->peer_record)) {
        memcpy(d->peer_record, a->peer.p, a->peer.n);
        d->peer_record_n = a->peer.n;
    }
    api_requests(d, a);
}

static void exited(void *impl, const char *why)
{
    struct daemon *d = impl;

    d->exit_status = strcmp(why, "stop") == 0 ? 0 : 1;
    log_event(LOG_LEVEL_INFO, "stopped", log_str("why", why));
    (void)sd_event_exit(d->loop, d->exit_status);
}

struct journal journal_port(struct daemon *d)
{
    static const struct journal_ops ops = { moved,      remember, answer,
                                            node_extra, scanned,  exited };

    return (struct journal){ &ops, d };
}

static int by_time(const void *a, const void *b)
{
    const json_t *x = *(json_t *const *)a, *y = *(json_t *const *)b;

    return strcmp(entry_text(x, "at"), entry_text(y, "at"));
}

/* Both nodes' histories on one timeline, oldest first, the last `limit` of them. */
json_t *journal_merged(struct daemon *d, size_t limit)
{
    json_t *peer = status_peer_record(d), *theirs = json_object_get(peer, "history"), *e;
    json_t *out = json_array();
    size_t total = json_array_size(d->history) + json_array_size(theirs), n = 0, i;
    json_t **all = calloc(total + 1, sizeof(json_t *));

    CHECK(all && out);
    json_array_foreach(d->history, i, e) all[n++] = e;
    json_array_foreach(theirs, i, e)
    {
        /* Ours come back to us only through a node of our own name. */
        if (strcmp(entry_text(e, "node"), d->conf.cluster.node) != 0)
            all[n++] = e;
    }
    qsort(all, n, sizeof(json_t *), by_time);
    for (i = n > limit ? n - limit : 0; i < n; i++)
        (void)json_array_append(out, all[i]);
    free(all);
    json_decref(peer);
    return out;
}
