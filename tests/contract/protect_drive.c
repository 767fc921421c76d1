/*
 * protect_drive: the protection of a device without the rest of the agent.
 *
 * usage: protect_drive AGENT.CONF      commands on stdin, one JSON object a line:
 *   {"do":"policy","policy":{..},"hash":".."} {"do":"run","run":uuid,"type":..,"params":{}}
 *   {"do":"cancel"|"pause"|"resume","run":uuid} {"do":"facts"}
 * What the hooks say comes out, one JSON object a line.  End of input ends it.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "app/agent/protect.h"
#include "core/policy/policy.h"
#include "sys/log/log.h"

struct drive {
    sd_event *event;
    struct agent_conf conf;
    struct protect *p;
    struct clamav *clamav;
    struct policy policy;
    char line[65536];
    size_t n;
};

static void say(json_t *j)
{
    (void)json_dumpf(j, stdout, JSON_COMPACT);
    (void)fputc('\n', stdout);
    (void)fflush(stdout);
    json_decref(j);
}

static void on_event(void *arg, const char *kind, const char *severity, json_t *data)
{
    (void)arg;
    say(json_pack("{s:s,s:s,s:s,s:o}", "hook", "event", "kind", kind, "severity",
                  severity, "data", data));
}

static void say_facts(void *arg)
{
    struct drive *d = arg;
    struct protect_facts f;

    protect_facts(d->p, &f);
    say(json_pack("{s:s,s:b,s:s,s:I,s:I,s:s,s:I,s:I}", "hook", "facts", "up", f.engine_up,
                  "engine", f.engine_version, "signatures",
                  (json_int_t)f.signatures_version, "built",
                  (json_int_t)f.signatures_built, "realtime", f.realtime, "last_scan",
                  (json_int_t)f.last_scan, "threats", (json_int_t)f.threats_open));
}

static void on_policy(void *arg, const char hash[65], bool ok, const char *why)
{
    (void)arg;
    say(json_pack("{s:s,s:s,s:b,s:s}", "hook", "policy", "hash", hash, "ok", ok, "why",
                  why));
}

static void on_progress(void *arg, const struct uuid *run, const char *state,
                        unsigned percent, json_t *counts)
{
    char id[UUID_TEXT];

    (void)arg;
    uuid_format(id, run);
    say(json_pack("{s:s,s:s,s:s,s:I,s:o?}", "hook", "progress", "run", id, "state", state,
                  "percent", (json_int_t)percent, "counts", counts));
}

static void on_run_done(void *arg, const struct uuid *run, const char *outcome,
                        json_t *result)
{
    char id[UUID_TEXT];

    (void)arg;
    uuid_format(id, run);
    say(json_pack("{s:s,s:s,s:s,s:o}", "hook", "done", "run", id, "outcome", outcome,
                  "result", result));
}

static void obey(struct drive *d, const json_t *m)
{
    const char *what = json_string_value(json_object_get(m, "do"));
    const char *id = json_string_value(json_object_get(m, "run"));
    struct uuid run = { 0 };

    if (!what || (id && !uuid_parse(&run, str_of(id))))
        return;
    if (strcmp(what, "policy") == 0) {
        char *text = json_dumps(json_object_get(m, "policy"), JSON_COMPACT);
        struct policy_errors errors = { 0 };

        if (!text || policy_parse(&d->policy, str_of(text), &errors) != ERR_OK)
            say(json_pack("{s:s,s:s}", "hook", "bad_policy", "why", errors.at[0].why));
        else
            protect_policy(d->p, &d->policy,
                           json_string_value(json_object_get(m, "hash")));
        free(text);
    } else if (strcmp(what, "run") == 0) {
        protect_run(d->p, &run, json_string_value(json_object_get(m, "type")),
                    json_object_get(m, "params"));
    } else if (strcmp(what, "cancel") == 0) {
        protect_run_cancel(d->p, &run);
    } else if (strcmp(what, "pause") == 0) {
        protect_run_pause(d->p, &run);
    } else if (strcmp(what, "resume") == 0) {
        protect_run_resume(d->p, &run);
    } else if (strcmp(what, "facts") == 0) {
        say_facts(d);
    }
}

static int on_input(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct drive *d = arg;
    ssize_t n = read(fd, d->line + d->n, sizeof(d->line) - d->n - 1);
    char *end;

    (void)revents;
    if (n <= 0)
        return sd_event_exit(sd_event_source_get_event(source), 0);
    d->n += (size_t)n;
    while ((end = memchr(d->line, '\n', d->n)) != NULL) {
        size_t used = (size_t)(end - d->line) + 1;
        json_t *m = json_loadb(d->line, used, 0, NULL);

        if (m)
            obey(d, m);
        json_decref(m);
        memmove(d->line, d->line + used, d->n - used);
        d->n -= used;
    }
    return 0;
}

static void on_engine(void *arg, const struct clamav_state *state)
{
    struct drive *d = arg;

    protect_engine(d->p, state);
}

static int on_probe(sd_event_source *source, uint64_t us, void *arg)
{
    struct drive *d = arg;

    (void)us;
    clamav_probe(d->clamav);
    (void)sd_event_source_set_time_relative(source, 300000);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int work(struct drive *d, const char *conf)
{
    struct conf_errors errors = { 0 };
    struct err_info info = { 0 };
    struct protect_hooks hooks = { d,         on_event,    say_facts,
                                   on_policy, on_progress, on_run_done };

    if (agent_conf_load(conf, &d->conf, &errors) != ERR_OK) {
        conf_errors_print(&errors, conf, stderr);
        return 78;
    }
    if (sd_event_new(&d->event) < 0 ||
        protect_new(d->event, &d->conf, &hooks, &d->p, &info) != ERR_OK ||
        clamav_new(d->event, d->conf.agent.clamd, on_engine, d, &d->clamav) != ERR_OK ||
        sd_event_add_io(d->event, NULL, STDIN_FILENO, EPOLLIN, on_input, d) < 0 ||
        sd_event_add_time_relative(d->event, NULL, CLOCK_BOOTTIME, 0, 0, on_probe, d) <
            0) {
        (void)fprintf(stderr, "%s\n", info.what);
        return 1;
    }
    int code = sd_event_loop(d->event) < 0;
    clamav_free(d->clamav);
    protect_free(d->p);
    sd_event_unref(d->event);
    return code;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--scanner") == 0)
        return scanner_main();
    if (argc == 2 && strcmp(argv[1], "--on-access") == 0)
        return onaccess_main();
    struct drive *d = calloc(1, sizeof(*d));
    int code = argc == 2 && d ? work(d, argv[1]) : 64;
    free(d);
    return code;
}
