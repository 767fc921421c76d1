/*
 * api: the control socket (GET and POST below /v1), the health endpoint, the metrics.
 *
 * A wish that concerns the other node goes by way of the share: a sealed file request/<id>,
 * which that node carries out and removes.
 */
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

static void reply_json(struct http_reply *out, unsigned status, json_t *v)
{
    char *text =
        v ? json_dumps(v, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_ENSURE_ASCII)
          : NULL;

    if (text)
        http_reply_text(out, status, NULL, str_of(text));
    free(text);
    json_decref(v);
}

static void refuse(struct http_reply *out, unsigned status, const char *id,
                   const char *title, const char *text, const char *suggestion)
{
    const struct http_error e = { id, title, text, suggestion };

    http_reply_error(out, status, &e);
}

static void refuse_alarm(struct http_reply *out, unsigned status, enum alarm id)
{
    const struct alarm_info *a = alarm_info(id);

    refuse(out, status, a->id, a->title, a->text, a->suggestion);
}

static bool ready_to_act(struct daemon *d, struct http_reply *out)
{
    if (d->running)
        return true;
    refuse(out, 503, "not_started", "redoubt-node has not started its work", d->trouble,
           "Mend what is said there; the daemon tries again by itself.");
    return false;
}

/* ---- wishes by way of the share ---- */

static void aux_logged(void *arg, const struct share_answer *a)
{
    (void)arg;
    if (a->err != ERR_OK)
        log_event(LOG_LEVEL_WARNING, "request_failed",
                  log_str("result", err_name(a->err)));
}

static enum err share_file(struct daemon *d, enum share_op op, const char *name,
                           const char *body)
{
    struct node_aux *aux = calloc(1, sizeof(*aux));
    enum err e = ERR_OK;

    CHECK(aux);
    aux->op = op;
    aux->done = aux_logged;
    (void)snprintf(aux->name, sizeof(aux->name), "%s", name);
    if (body)
        e = record_seal(aux->body, sizeof(aux->body), &aux->body_n, &d->key, str_of(name),
                        str_of(body));
    if (e == ERR_OK)
        e = node_run_aux(&d->run, now_mono(), aux);
    world_wake(d);
    free(aux);
    return e;
}

static enum err send_wish(struct daemon *d, const char *op, const char *node, bool on)
{
    char name[SHARE_NAME_BYTES], body[256];

    (void)snprintf(name, sizeof(name), "request/%s-%llu", op,
                   (unsigned long long)now_wall_us());
    (void)snprintf(body, sizeof(body),
                   "{\"v\":1,\"op\":\"%s\",\"node\":\"%s\",\"on\":%s,\"from\":\"%s\"}",
                   op, node, on ? "true" : "false", d->conf.cluster.node);
    return share_file(d, SHARE_PUT, name, body);
}

static enum err operate(struct daemon *d, enum node_operation op)
{
    d->answered = false;
    d->answer = ERR_STATE;
    world_event(d, &(struct node_event){
                       .kind = NODE_EV_OPERATOR, .op = op, .token = ++d->token });
    return d->answered ? d->answer : ERR_STATE;
}

static void note_operator(struct daemon *d, const char *what, enum err e)
{
    char text[160];

    (void)snprintf(text, sizeof(text), "%s: %s", what,
                   e == ERR_OK ? "taken" : err_name(e));
    log_event(LOG_LEVEL_INFO, "operator", log_str("what", what),
              log_str("result", err_name(e)));
    journal_add(d, journal_entry(d, "operator", text));
}

static int on_wishes(sd_event_source *s, void *user)
{
    struct daemon *d = user;
    uint32_t n = d->wishes;

    (void)s;
    d->wishes = 0;
    for (uint32_t i = 0; i < n; i++) {
        char name[SHARE_NAME_BYTES + 8];

        (void)snprintf(name, sizeof(name), "request/%s", d->wish[i].name);
        note_operator(d, name, operate(d, d->wish[i].op));
        if (share_file(d, SHARE_REMOVE, name, NULL) != ERR_OK)
            log_event(LOG_LEVEL_WARNING, "request_kept", log_str("name", name));
    }
    return 0;
}

/* Is this wish for us, now? */
static bool wish_of(const struct daemon *d, const struct share_file *f,
                    enum node_operation *op)
{
    char name[SHARE_NAME_BYTES + 8];
    struct str body;
    bool ours = false;

    (void)snprintf(name, sizeof(name), "request/%s", f->name);
    if (record_open(f->body, &d->key, str_of(name), &body) != ERR_OK)
        return false;
    json_t *wish = json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES, NULL);

    if (strcmp(entry_text(wish, "node"), d->conf.cluster.node) == 0) {
        ours = true;
        if (strcmp(entry_text(wish, "op"), "switchover") == 0)
            *op = NODE_OP_SWITCHOVER;
        else if (strcmp(entry_text(wish, "op"), "maintenance") == 0)
            *op = json_is_true(json_object_get(wish, "on")) ? NODE_OP_MAINTENANCE_ON
                                                            : NODE_OP_MAINTENANCE_OFF;
        else
            ours = false;
    }
    json_decref(wish);
    return ours;
}

void api_requests(struct daemon *d, const struct share_answer *a)
{
    if (d->wishes > 0)
        return; /* the last ones are still to be carried out */
    for (uint32_t i = 0; i < a->request_count; i++) {
        enum node_operation op;

        if (!wish_of(d, &a->requests[i], &op))
            continue;
        memcpy(d->wish[d->wishes].name, a->requests[i].name, sizeof(d->wish[0].name));
        d->wish[d->wishes++].op = op;
    }
    if (d->wishes > 0)
        (void)sd_event_source_set_enabled(d->wish_source, SD_EVENT_ONESHOT);
}

/* ---- POST ---- */

static json_t *body_of(const struct http_request *req)
{
    json_t *v = json_loadb(req->body.p ? req->body.p : "", req->body.n,
                           JSON_REJECT_DUPLICATES, NULL);

    return json_is_object(v) ? v : json_object();
}

static void refused(struct daemon *d, struct http_reply *out, enum err e)
{
    if (e == ERR_DENIED)
        refuse_alarm(out, 409,
                     d->run.node.peer.rec.maintenance ? ALARM_PEER_MAINTENANCE
                     : d->run.node.peer.alive         ? ALARM_PEER_NOT_READY
                                                      : ALARM_PEER_SILENT);
    else if (e == ERR_LIMIT)
        refuse(out, 503, "busy", "Too many requests wait for the share",
               "Earlier requests have not been written to the share yet.",
               "Try again in a moment; if it stays, see redoubt status for the share.");
    else
        refuse(out, 409, "not_now", "That is not possible in the present state",
               "The cluster is in the middle of a switch, nobody is active, or there is "
               "nothing to do.",
               "See redoubt status, and try again when a node is active.");
}

/* The wish would travel by way of the share only to be refused there: say so here. */
static bool can_take(struct daemon *d, struct http_reply *out)
{
    json_t *obstacles = status_obstacles(&d->run.node);
    const char *first = json_string_value(json_array_get(obstacles, 0));

    if (first)
        refuse(out, 409, "not_ready", "This node is not ready to take over", first,
               d->run.node.maintenance ? "Run redoubt maintenance off here first."
                                       : "redoubt status shows what is missing.");
    json_decref(obstacles);
    return first == NULL;
}

static void post_switchover(struct daemon *d, const json_t *body, struct http_reply *out)
{
    const char *to = json_string_value(json_object_get(body, "to"));
    const char *active = status_active(d), *self = d->conf.cluster.node,
               *peer = d->conf.cluster.peer;
    enum err e;

    if (to && strcmp(to, self) != 0 && strcmp(to, peer) != 0) {
        refuse(out, 400, "no_such_node", "There is no such node", to,
               "The nodes are named in redoubt.conf, [cluster] node and peer.");
        return;
    }
    if (to && active && strcmp(to, active) == 0) {
        reply_json(out, 200,
                   json_pack("{s:s, s:s}", "state", "done", "text",
                             "That node is active already."));
        return;
    }
    if (!active) {
        refused(d, out, ERR_STATE);
        return;
    }
    if (strcmp(active, self) != 0 && !can_take(d, out))
        return;
    e = strcmp(active, self) == 0 ? operate(d, NODE_OP_SWITCHOVER)
                                  : send_wish(d, "switchover", active, true);
    note_operator(d, "switchover", e);
    if (e != ERR_OK)
        refused(d, out, e);
    else
        reply_json(out, 202, json_pack("{s:s, s:s}", "state", "started", "from", active));
}

static void post_maintenance(struct daemon *d, const json_t *body, struct http_reply *out)
{
    const char *node = json_string_value(json_object_get(body, "node"));
    const json_t *on = json_object_get(body, "on");
    enum err e;

    if (!json_is_boolean(on) || (node && strcmp(node, d->conf.cluster.node) != 0 &&
                                 strcmp(node, d->conf.cluster.peer) != 0)) {
        refuse(out, 400, "bad_request", "The request makes no sense",
               "It needs \"on\": true or false, and \"node\" a node of this cluster.",
               "redoubt maintenance on|off [--node NODE]");
        return;
    }
    const bool wish = node && strcmp(node, d->conf.cluster.peer) == 0;
    const char *active = status_active(d);

    if (wish && json_is_true(on) && active && strcmp(active, node) == 0 &&
        !can_take(d, out))
        return; /* it could not hand over to us */
    if (wish)
        e = send_wish(d, "maintenance", node, json_is_true(on));
    else
        e = operate(d,
                    json_is_true(on) ? NODE_OP_MAINTENANCE_ON : NODE_OP_MAINTENANCE_OFF);
    note_operator(d, json_is_true(on) ? "maintenance on" : "maintenance off", e);
    if (e != ERR_OK)
        refused(d, out, e);
    else if (wish)
        reply_json(out, 202,
                   json_pack("{s:b, s:s, s:s}", "on", json_is_true(on), "state", "asked",
                             "text",
                             "The other node is asked by way of the share; redoubt "
                             "status shows when it has done so."));
    else
        reply_json(out, 200, json_pack("{s:b}", "on", json_is_true(on)));
}

static void post_pause(struct daemon *d, bool on, struct http_reply *out)
{
    char body[160];

    (void)snprintf(body, sizeof(body), "{\"v\":1,\"op\":\"pause\",\"from\":\"%s\"}",
                   d->conf.cluster.node);
    enum err e =
        share_file(d, on ? SHARE_PUT : SHARE_REMOVE, "request/pause", on ? body : NULL);

    note_operator(d, on ? "pause" : "resume", e);
    if (e != ERR_OK)
        refused(d, out, e);
    else
        reply_json(out, 202, json_pack("{s:b}", "paused", on));
}

/* Every published file is read and compared with its digest, on both nodes. */
static void post_verify(struct daemon *d, struct http_reply *out)
{
    const enum err e = content_verify(d);

    if (e == ERR_OK)
        reply_json(out, 202, json_pack("{s:s}", "state", "started"));
    else if (e == ERR_UNSUPPORTED)
        refuse(out, 409, "no_store", "There is no store",
               "[share] data in redoubt.conf is empty: nothing can be published.",
               "Name the data share there, on both nodes.");
    else
        refuse(out, 503, "mirror_down", "redoubt-mirror does not run just now",
               d->content.down_why, "Try again in a moment, and see redoubt status.");
}

static void post_reload(struct daemon *d, struct http_reply *out)
{
    json_t *answer = json_object();
    enum err e;

    setup_reload(d, answer, &e);
    if (d->history)
        note_operator(d, "reload", e);
    reply_json(out, e == ERR_OK ? 200 : 409, answer);
}

static void post(struct daemon *d, const struct http_request *req, struct http_reply *out)
{
    json_t *body = body_of(req);

    if (strcmp(req->path, "/v1/reload") == 0) {
        post_reload(d, out);
    } else if (!ready_to_act(d, out)) {
        /* answered */
    } else if (strcmp(req->path, "/v1/switchover") == 0) {
        post_switchover(d, body, out);
    } else if (strcmp(req->path, "/v1/maintenance") == 0) {
        post_maintenance(d, body, out);
    } else if (strcmp(req->path, "/v1/pause") == 0) {
        post_pause(d, true, out);
    } else if (strcmp(req->path, "/v1/resume") == 0) {
        post_pause(d, false, out);
    } else if (strcmp(req->path, "/v1/content/verify") == 0) {
        post_verify(d, out);
    } else if (strcmp(req->path, "/v1/lease/adopt") == 0) {
        enum err e = operate(d, NODE_OP_ADOPT);

        note_operator(d, "lease adopt", e);
        if (e == ERR_OK)
            reply_json(out, 200,
                       json_pack("{s:I}", "behind_epoch",
                                 (json_int_t)d->run.node.adopted_epoch));
        else
            refuse(out, 409, "nothing_to_adopt", "There is nothing to adopt",
                   "The share has not gone back in time, as far as this node can see.",
                   "See redoubt status.");
    } else {
        refuse(out, 404, "not_found", "There is nothing at this path", req->path,
               "redoubt --help lists what there is.");
    }
    json_decref(body);
}

/* ---- GET ---- */

static void add_line(void *arg, const char *line)
{
    (void)json_array_append_new(arg, json_string(line));
}

static void get_history(struct daemon *d, const struct http_request *req,
                        struct http_reply *out)
{
    const char *limit = http_argument(req, "limit");
    uint64_t n = 50;

    if (limit && !str_u64(str_of(limit), 2 * HISTORY_MAX, &n))
        n = 2 * HISTORY_MAX;
    reply_json(out, 200, json_pack("{s:o}", "entries", journal_merged(d, (size_t)n)));
}

static void get_config(struct daemon *d, struct http_reply *out)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);

    if (!f)
        return;
    conf_print(&d->conf, false, f);
    if (fclose(f) == 0)
        http_reply_text(out, 200, "text/plain", (struct str){ text, n });
    free(text);
}

static void get(struct daemon *d, const struct http_request *req, struct http_reply *out)
{
    json_t *list;

    if (strcmp(req->path, "/v1/status") == 0) {
        reply_json(out, 200, status_all(d));
    } else if (strcmp(req->path, "/v1/explain") == 0) {
        reply_json(out, 200, status_explain(d));
    } else if (strcmp(req->path, "/v1/history") == 0) {
        get_history(d, req, out);
    } else if (strcmp(req->path, "/v1/debug") == 0) {
        list = json_array();
        log_ring_each(add_line, list);
        reply_json(out, 200, json_pack("{s:o}", "lines", list));
    } else if (strcmp(req->path, "/v1/config") == 0) {
        get_config(d, out);
    } else {
        refuse(out, 404, "not_found", "There is nothing at this path", req->path,
               "redoubt --help lists what there is.");
    }
}

static void control(void *arg, const struct http_request *req, struct http_reply *out)
{
    struct daemon *d = arg;

    if (strcmp(req->method, "GET") == 0)
        get(d, req, out);
    else if (strcmp(req->method, "POST") == 0)
        post(d, req, out);
    else
        refuse(out, 405, "method", "Only GET and POST are understood", req->method, "");
}

/* For load balancers: 200 on the active node, 503 on the other. */
static void health(void *arg, const struct http_request *req, struct http_reply *out)
{
    struct daemon *d = arg;
    const bool active = d->running && d->run.node.state == NODE_ACTIVE &&
                        !mono_reached(now_mono(), d->run.node.lease.deadline);

    (void)req;
    reply_json(out, active ? 200 : 503,
               json_pack("{s:s, s:s, s:s, s:I}", "node", d->conf.cluster.node, "role",
                         active ? "active" : "passive", "state",
                         node_state_name(d->run.node.state), "epoch",
                         (json_int_t)d->run.node.lease.epoch));
}

static void metrics(void *arg, const struct http_request *req, struct http_reply *out)
{
    size_t n = 0;
    char *text = metrics_text(arg, &n);

    (void)req;
    if (text)
        http_reply_text(out, 200, "text/plain; version=0.0.4", (struct str){ text, n });
    free(text);
}

static enum err listen_tcp(struct daemon *d, const char *where, http_handler handle,
                           struct http_server **out, struct err_info *info)
{
    char host[CONF_PATH];
    uint16_t port;

    if (where[0] == '\0')
        return ERR_OK;
    if (conf_listen_split(where, host, sizeof(host), &port) != ERR_OK)
        return err_set(info, ERR_CONFIG, 0, "listen address %s", where);
    const struct http_server_options o = { .loop = d->loop,
                                           .priority = PRIORITY_PEOPLE,
                                           .tcp_host = host,
                                           .tcp_port = port,
                                           .handle = handle,
                                           .arg = d };

    return http_server_new(&o, out, info);
}

enum err api_open(struct daemon *d, struct err_info *info)
{
    char path[CONF_PATH + 32];

    (void)snprintf(path, sizeof(path), "%s/node.sock", d->conf.cluster.run_dir);
    const struct http_server_options o = { .loop = d->loop,
                                           .priority = PRIORITY_PEOPLE,
                                           .unix_path = path,
                                           .unix_group = "redoubt",
                                           .handle = control,
                                           .arg = d };
    int r = sd_event_add_defer(d->loop, &d->wish_source, on_wishes, d);

    if (r < 0)
        return err_set(info, ERR_IO, -r, "event loop");
    (void)sd_event_source_set_enabled(d->wish_source, SD_EVENT_OFF);
    enum err e = http_server_new(&o, &d->control, info);

    if (e == ERR_OK)
        e = listen_tcp(d, d->conf.address.health_listen, health, &d->health, info);
    if (e == ERR_OK)
        e = listen_tcp(d, d->conf.metrics.listen, metrics, &d->metrics, info);
    return e;
}

void api_close(struct daemon *d)
{
    http_server_free(d->control);
    http_server_free(d->health);
    http_server_free(d->metrics);
    d->wish_source = sd_event_source_unref(d->wish_source);
}
