#include <unistd.h>

#include "app/ctl/ctl.h"

/* The daemon's answer with --json, else one sentence of ours. */
static void say(struct ctl *c, const json_t *answer, const char *words)
{
    if (c->opt.json)
        ctl_print_json(answer);
    else
        printf("%s\n", ctl_str(answer, "text", words));
}

static int post_and_say(struct ctl *c, const char *path, json_t *body, const char *words)
{
    json_t *answer = NULL;
    int r = ctl_post(c, path, body, &answer);

    if (r == CTL_OK)
        say(c, answer, words);
    json_decref(answer);
    json_decref(body);
    return r;
}

int cmd_pause(struct ctl *c)
{
    return post_and_say(c, "/v1/pause", NULL,
                        "Paused: the cluster does not switch by itself until redoubt "
                        "resume.");
}

int cmd_resume(struct ctl *c)
{
    return post_and_say(c, "/v1/resume", NULL, "The cluster switches by itself again.");
}

int cmd_maintenance(struct ctl *c)
{
    bool on = strcmp(c->argv[0], "on") == 0;

    if (!on && strcmp(c->argv[0], "off") != 0)
        return ctl_usage("redoubt maintenance needs on or off, not '%s'", c->argv[0]);
    json_t *body = json_pack("{s:b, s:s*}", "on", on, "node", c->opt.node);
    char words[128];

    (void)snprintf(words, sizeof(words), "%.63s is %s",
                   c->opt.node ? c->opt.node : "This node",
                   on ? "in maintenance: it will not take over." : "out of maintenance.");
    return post_and_say(c, "/v1/maintenance", body, words);
}

int cmd_lease_adopt(struct ctl *c)
{
    if (!ctl_confirm(c, "The share has gone back in time. Is the other node using this "
                        "same share, and no other copy of it in use?"))
        return ctl_fail(
            c, CTL_FAILED,
            &(struct ctl_problem){
                "not_confirmed", "Not done: it was not confirmed",
                "If both nodes used different copies of the share, both could "
                "become active.",
                "Make sure that they do not, then repeat it with --yes." });
    return post_and_say(c, "/v1/lease/adopt", NULL,
                        "Adopted: the node goes on behind the highest epoch known.");
}

static void print_changes(const json_t *answer)
{
    const json_t *change, *changes = json_object_get(answer, "changes");
    size_t i;

    if (json_array_size(changes) == 0)
        printf("Read again; nothing has changed.\n");
    json_array_foreach(changes, i, change)
    {
        printf("[%s] %s: takes effect %s\n", ctl_str(change, "section", "?"),
               ctl_str(change, "key", "?"), ctl_str(change, "takes_effect", "?"));
    }
}

int cmd_reload(struct ctl *c)
{
    json_t *answer = NULL;
    int r = ctl_post(c, "/v1/reload", NULL, &answer);

    if (r != CTL_OK)
        return r;
    if (c->opt.json)
        ctl_print_json(answer);
    else
        print_changes(answer);
    json_decref(answer);
    return r;
}

int cmd_debug(struct ctl *c)
{
    json_t *answer = NULL, *line;
    int r = ctl_get(c, "/v1/debug", &answer);
    size_t i;

    if (r != CTL_OK)
        return r;
    if (c->opt.json)
        ctl_print_json(answer);
    else
        json_array_foreach(json_object_get(answer, "lines"), i, line)
        {
            printf("%s\n", json_is_string(line) ? json_string_value(line) : "?");
        }
    json_decref(answer);
    return CTL_OK;
}

/* ---- switchover ---- */

/* What is being waited for. */
struct wait {
    char from[CONF_NAME], to[CONF_NAME]; /* "": nobody; any other node */
    uint64_t epoch;
    char last[160]; /* the last line of progress */
};

static void progress(const struct ctl *c, struct wait *w, const json_t *status)
{
    const json_t *nodes = json_object_get(status, "nodes"), *n;
    char line[sizeof(w->last)];
    struct text t;
    size_t i;

    text_init(&t, line, sizeof(line));
    json_array_foreach(nodes, i, n)
    {
        text_add(&t, "%s%s %s", i ? ", " : "", ctl_str(n, "name", "?"),
                 ctl_str(n, "state", "?"));
    }
    if (c->opt.json || strcmp(line, w->last) == 0)
        return;
    memcpy(w->last, line, sizeof(line));
    fprintf(stderr, "  %s\n", line);
}

enum arrival { STILL_WAITING, ARRIVED, WENT_BACK };

static enum arrival arrival_of(const struct wait *w, const json_t *status)
{
    const char *active = ctl_str(status, "active", NULL);

    if (!active || ctl_u64(status, "epoch", 0) <= w->epoch)
        return STILL_WAITING;
    if (w->to[0] ? strcmp(active, w->to) == 0 : strcmp(active, w->from) != 0)
        return ARRIVED;
    return WENT_BACK;
}

static int arrived(struct ctl *c, const struct wait *w, const json_t *status)
{
    const json_t *last = json_object_get(status, "last_switch");
    const char *active = ctl_str(status, "active", "?");
    char outage[32];

    if (c->opt.json) {
        json_t *j =
            json_pack("{s:s, s:s, s:I, s:O*}", "active", active, "from", w->from, "epoch",
                      (json_int_t)ctl_u64(status, "epoch", 0), "last_switch", last);

        ctl_print_json(j);
        json_decref(j);
        return CTL_OK;
    }
    printf("%s%s is active%s", ctl_ink(c, CTL_GREEN), active, ctl_ink(c, CTL_PLAIN));
    if (json_is_number(json_object_get(last, "outage_ms")) &&
        strcmp(ctl_str(last, "to", ""), active) == 0)
        printf("; the services were away for %s",
               ctl_duration(ctl_u64(last, "outage_ms", 0), outage, sizeof(outage)));
    printf(".\n");
    return CTL_OK;
}

static int not_arrived(struct ctl *c, const struct wait *w, enum arrival a)
{
    if (a == WENT_BACK)
        return ctl_fail(
            c, CTL_FAILED,
            &(struct ctl_problem){
                "switchover_failed", "The other node did not take over",
                "The node that was active before took the lease again, so the "
                "services are running.",
                "redoubt log says what the other node was missing." });
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){
                        "switchover_timeout", "The switch is not done in time", w->last,
                        "It may still complete: redoubt status shows it, redoubt explain "
                        "says what it waits for." });
}

static int wait_for_switch(struct ctl *c, struct wait *w)
{
    uint32_t left_ms = (c->opt.timeout_s ? c->opt.timeout_s : 60) * 1000;
    enum arrival a = STILL_WAITING;
    enum { STEP_MS = 50 };

    while (a == STILL_WAITING && left_ms > 0) {
        json_t *status = NULL;

        (void)usleep(STEP_MS * 1000);
        left_ms -= left_ms < STEP_MS ? left_ms : STEP_MS;
        if (ctl_try_get(c, "/v1/status", &status) != CTL_OK)
            continue; /* it may be busy for a moment */
        progress(c, w, status);
        a = arrival_of(w, status);
        if (a == ARRIVED) {
            int r = arrived(c, w, status);

            json_decref(status);
            return r;
        }
        json_decref(status);
    }
    return not_arrived(c, w, a);
}

static void remember(struct wait *w, const struct ctl *c, const json_t *status)
{
    (void)snprintf(w->from, sizeof(w->from), "%s", ctl_str(status, "active", ""));
    (void)snprintf(w->to, sizeof(w->to), "%s", c->opt.to ? c->opt.to : "");
    w->epoch = ctl_u64(status, "epoch", 0);
}

int cmd_switchover(struct ctl *c)
{
    json_t *status = NULL, *answer = NULL;
    struct wait w = { .epoch = 0 };
    int r = ctl_get(c, "/v1/status", &status);

    if (r != CTL_OK)
        return r;
    remember(&w, c, status);
    json_decref(status);
    if (w.to[0] && strcmp(w.to, w.from) == 0) {
        answer = json_pack("{s:s, s:s}", "active", w.to, "text", "It is active already.");
        say(c, answer, "");
        json_decref(answer);
        return CTL_OK;
    }
    json_t *body = json_pack("{s:s*}", "to", c->opt.to);

    r = ctl_post(c, "/v1/switchover", body, &answer);
    json_decref(body);
    if (r == CTL_OK && c->opt.no_wait)
        say(c, answer, "The switch is under way: redoubt status shows it.");
    else if (r == CTL_OK)
        r = wait_for_switch(c, &w);
    json_decref(answer);
    return r;
}
