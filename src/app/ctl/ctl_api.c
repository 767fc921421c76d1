#include "app/ctl/ctl.h"

#include "sys/http/http_client.h"

enum { CALL_TIMEOUT_MS = 3000 };

static const char *socket_path(struct ctl *c, char *buf, size_t size)
{
    if (c->opt.socket)
        return c->opt.socket;
    (void)ctl_try_conf(c); /* a broken file must not hide a daemon that runs */
    (void)snprintf(buf, size, "%s/node.sock",
                   c->have_conf ? c->conf.cluster.run_dir : "/run/redoubt");
    return buf;
}

static struct ctl_problem no_daemon(enum err e, const struct err_info *info)
{
    struct ctl_problem p = { .id = "daemon_unreachable", .text = info->what };

    if (e == ERR_DENIED) {
        p.title = "You may not talk to the node daemon";
        p.suggestion = "Run the command as root, or join the group redoubt.";
    } else if (e == ERR_TIMEOUT) {
        p.title = "The node daemon does not answer";
        p.suggestion =
            "If it stays so, it hangs: the guard has stopped the services. See "
            "journalctl -u redoubt-node, then systemctl restart redoubt-node.";
    } else {
        p.title = "The node daemon is not running";
        p.suggestion = "Start it with systemctl start redoubt-node and see why it ended "
                       "with journalctl -u redoubt-node -e. redoubt config check and "
                       "redoubt check find what is wrong without it.";
    }
    return p;
}

void ctl_print_no_daemon(struct ctl *c)
{
    struct ctl_problem p = no_daemon(c->daemon_err, &c->daemon_why);

    (void)ctl_fail(c, CTL_NO_DAEMON, &p); /* the caller knows the exit code */
}

static int bad_answer(struct ctl *c, const char *text)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "bad_answer",
                                           "The daemon's answer makes no sense", text,
                                           "Is something else listening on the control "
                                           "socket? Compare redoubt version with the "
                                           "version of the daemon in redoubt status." });
}

/* A configuration that was not taken over: its errors. */
static int refused_config(struct ctl *c, const json_t *errors)
{
    const json_t *e;
    char buf[2048];
    struct text t;
    size_t i;

    text_init(&t, buf, sizeof(buf));
    json_array_foreach(errors, i, e)
    {
        if (json_is_string(e))
            text_add(&t, "%s%s", i ? "; " : "", json_string_value(e));
    }
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){ "config",
                               "The configuration has errors; the daemon goes "
                               "on with the old one",
                               buf, "Correct them and repeat it." });
}

/* The daemon's own words of what is wrong. */
static int refused(struct ctl *c, unsigned status, const json_t *answer)
{
    const json_t *e = json_object_get(answer, "error");
    char text[64];

    (void)snprintf(text, sizeof(text), "It answered with status %u.", status);
    if (json_is_array(json_object_get(answer, "errors")))
        return refused_config(c, json_object_get(answer, "errors"));
    return ctl_fail(c, status == 409 ? CTL_NOT_POSSIBLE : CTL_FAILED,
                    &(struct ctl_problem){ ctl_str(e, "id", "failed"),
                                           ctl_str(e, "title", "The daemon refuses"),
                                           ctl_str(e, "text", text),
                                           ctl_str(e, "suggestion", NULL) });
}

struct exchange {
    const char *method, *path;
    const char *body;
    bool quiet; /* about a daemon that cannot be reached */
};

static int exchange(struct ctl *c, const struct exchange *x, json_t **out)
{
    char path[CONF_PATH + 16];
    struct http_call call = { .unix_path = socket_path(c, path, sizeof(path)),
                              .method = x->method,
                              .path = x->path,
                              .body = x->body,
                              .timeout_ms = CALL_TIMEOUT_MS };
    struct http_answer a;
    struct err_info info = { 0 };
    enum err e = http_call(&call, &a, &info);
    int r = CTL_OK;

    if (e != ERR_OK) {
        http_answer_release(&a);
        c->daemon_err = e;
        c->daemon_why = info;
        if (!x->quiet)
            ctl_print_no_daemon(c);
        return CTL_NO_DAEMON;
    }
    json_t *j = a.body_bytes
                    ? json_loadb(a.body, a.body_bytes, JSON_REJECT_DUPLICATES, NULL)
                    : json_object();

    if (a.status >= 400)
        r = refused(c, a.status, j);
    else if (!json_is_object(j))
        r = bad_answer(c, "It is not a JSON object.");
    if (r == CTL_OK)
        *out = json_incref(j);
    json_decref(j);
    http_answer_release(&a);
    return r;
}

int ctl_get(struct ctl *c, const char *path, json_t **out)
{
    return exchange(c, &(struct exchange){ "GET", path, NULL, false }, out);
}

int ctl_try_get(struct ctl *c, const char *path, json_t **out)
{
    return exchange(c, &(struct exchange){ "GET", path, NULL, true }, out);
}

int ctl_post(struct ctl *c, const char *path, json_t *body, json_t **out)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    int r = exchange(c, &(struct exchange){ "POST", path, text, false }, out);

    free(text);
    return r;
}
