/*
 * setup: from the configuration file to what the parts need, and its reload.
 */
#include <errno.h>
#include <sodium.h>
#include <unistd.h>

#include "app/node/daemon.h"
#include "sys/log/log.h"

static void copy_name(char *dst, size_t size, const char *src)
{
    bool fits = str_copy(dst, size, str_of(src)); /* conf_load saw to it */

    CHECK(fits);
}

void setup_node_conf(const struct daemon *d, struct node_conf *out)
{
    const struct conf_cluster *c = &d->conf.cluster;
    struct node_conf n = {
        .renew_ms = c->renew_ms,
        .hold_ms = c->hold_ms,
        .margin_ms = c->margin_ms,
        .poll_ms = c->poll_ms,
        .demote_before_ms = c->demote_before_ms,
        .scan_ms = c->renew_ms > 250 ? 2 * c->renew_ms : 500,
        .fence_wait_ms = d->conf.database.fence_timeout_ms,
        .promote_limit_ms = 10000,
        .demote_limit_ms = 10000,
        .yield_ms = 2 * c->hold_ms,
        .unready_ms = c->hold_ms,
        .switch_max = c->switch_max,
        .switch_window_ms = c->switch_window_s * 1000,
        .service_count = d->conf.service_count,
    };

    n.put_ms = 2 * n.scan_ms;
    n.peer_fresh_ms = 4 * n.put_ms;
    record_cluster_id(n.cluster, &d->key);
    copy_name(n.self, sizeof(n.self), c->node);
    copy_name(n.peer, sizeof(n.peer), c->peer);
    randombytes_buf(&n.incarnation, sizeof(n.incarnation));
    n.incarnation >>= 11; /* 53 bits: every JSON reader takes such a number as it is */
    *out = n;
}

/*
 * The next argument of *rest, unquoted in place, or NULL at the end.  Blanks separate; double
 * quotes keep them together.
 */
static char *next_argument(char **rest)
{
    char *p = *rest, *to;
    bool quoted = false;

    while (*p == ' ')
        p++;
    if (*p == '\0')
        return NULL;
    char *from = to = p;

    for (; *p != '\0' && (quoted || *p != ' '); p++) {
        if (*p == '"')
            quoted = !quoted;
        else
            *to++ = *p;
    }
    *rest = *p == '\0' ? p : p + 1;
    *to = '\0';
    return from;
}

/* exec and arguments as an argument vector. */
static enum err make_argv(struct daemon *d, uint32_t i, struct err_info *info)
{
    const struct conf_service *s = &d->conf.service[i];
    char *rest = d->arguments[i], *arg;
    size_t n = 0;

    memcpy(rest, s->arguments, sizeof(d->arguments[i]));
    d->argv[i][n++] = s->exec;
    while ((arg = next_argument(&rest)) != NULL) {
        if (n + 1 >= LEN(d->argv[i]))
            return err_set(info, ERR_LIMIT, 0, "[service %s] has too many arguments",
                           s->name);
        d->argv[i][n++] = arg;
    }
    d->argv[i][n] = NULL;
    return ERR_OK;
}

static enum err make_services(struct daemon *d, struct err_info *info)
{
    if (d->conf.service_count > SERVICES_MAX)
        return err_set(info, ERR_CONFIG, 0, "more than %d services", SERVICES_MAX);
    for (uint32_t i = 0; i < d->conf.service_count; i++) {
        const struct conf_service *s = &d->conf.service[i];
        enum err e = make_argv(d, i, info);

        if (e != ERR_OK)
            return e;
        if (access(s->exec, X_OK) < 0)
            return err_set(info, ERR_CONFIG, errno, "[service %s] exec = %s", s->name,
                           s->exec);
        d->services[i] = (struct supervisor_service){
            .name = s->name,
            .argv = d->argv[i],
            .standby = (enum supervisor_standby)s->standby,
            .user = s->user,
            .ready_at_start = s->start == CONF_START_EXEC,
            .all_processes = true,
            .order = (int)s->order,
            .start_timeout_ms = s->start_timeout_ms,
            .stop_timeout_ms = s->stop_timeout_ms,
            .role_timeout_ms = s->role_timeout_ms,
            .watchdog_ms = s->watchdog_ms,
            .restart_backoff_ms = s->restart_backoff_ms,
            .restart_backoff_max_ms = s->restart_backoff_max_ms,
            .memory_max_mib = s->memory_max_mib,
            .tasks_max = s->tasks_max,
            .nofile = s->nofile,
        };
    }
    return ERR_OK;
}

enum err setup_load(struct daemon *d, struct err_info *info)
{
    static_assert((int)SUPERVISOR_HOT == (int)CONF_STANDBY_HOT &&
                      (int)SUPERVISOR_COLD == (int)CONF_STANDBY_COLD &&
                      (int)SUPERVISOR_ALWAYS == (int)CONF_STANDBY_ALWAYS,
                  "the two enumerations are in one order");
    struct machine *m = malloc(sizeof(*m));
    struct text t;

    CHECK(m);
    conf_digest(&d->conf, d->conf_digest);
    machine_read(m);
    enum err e = make_services(d, info);

    for (uint32_t i = 0; e == ERR_OK && i < d->conf.service_count; i++)
        machine_add_program(m, d->conf.service[i].exec);
    text_init(&t, d->machine_json, sizeof(d->machine_json));
    machine_json(m, &t);
    free(m);
    if (e == ERR_OK)
        e = conf_load_key(d->conf.cluster.key_file, &d->key, info);
    return e;
}

static void note_change(void *arg, const struct conf_change *c)
{
    static const char *const when[] = { "now", "after a restart of redoubt-node" };
    json_t *list = arg;

    (void)json_array_append_new(list,
                                json_pack("{s:s, s:s, s:s}", "section", c->section, "key",
                                          c->key, "takes_effect", when[c->reload]));
}

/* What may change while we run is taken over; the rest is named and waits for a restart. */
void setup_reload(struct daemon *d, json_t *answer, enum err *e)
{
    struct conf *fresh = calloc(1, sizeof(*fresh));
    struct conf_errors *errors = calloc(1, sizeof(*errors));
    json_t *list = json_array();

    CHECK(fresh && errors && list);
    *e = conf_load(d->conf_path, fresh, errors);
    if (*e != ERR_OK) {
        for (uint32_t i = 0; i < errors->count; i++) {
            char text[300];

            (void)snprintf(text, sizeof(text), "line %u: %s", errors->at[i].line,
                           errors->at[i].text);
            (void)json_array_append_new(list, json_string(text));
            /* Whoever sent SIGHUP reads nothing but the log. */
            log_event(LOG_LEVEL_ERROR, "config_error",
                      log_u64("line", errors->at[i].line),
                      log_str("text", errors->at[i].text));
        }
        (void)json_object_set_new(answer, "errors", list);
    } else {
        uint32_t restart = conf_diff(&d->conf, fresh, note_change, list);

        d->conf.log.level = fresh->log.level;
        d->conf.alert = fresh->alert;
        d->conf.cluster.switch_max = fresh->cluster.switch_max;
        d->conf.cluster.switch_window_s = fresh->cluster.switch_window_s;
        conf_digest(&d->conf, d->conf_digest); /* of what is in force */
        log_set_level((enum log_level)d->conf.log.level);
        if (d->running) {
            d->run.node.conf.switch_max = fresh->cluster.switch_max;
            d->run.node.conf.switch_window_ms = fresh->cluster.switch_window_s * 1000;
        }
        (void)json_object_set_new(answer, "changes", list);
        (void)json_object_set_new(answer, "need_restart", json_integer(restart));
    }
    free(fresh);
    free(errors);
}
