#include <unistd.h>

#include "app/ctl/ctl.h"

/* The health for --check: what monitoring shall be told. */
static int health(const json_t *status)
{
    const json_t *node;
    size_t i;

    if (!json_is_string(json_object_get(status, "active")))
        return CTL_NOT_ACTIVE;
    if (ctl_bool(status, "degraded", false) || ctl_bool(status, "paused", false))
        return CTL_DEGRADED;
    if (json_array_size(json_object_get(status, "alarms")) > 0)
        return CTL_DEGRADED;
    json_array_foreach(json_object_get(status, "nodes"), i, node)
    {
        if (!ctl_bool(node, "ready", false) &&
            strcmp(ctl_str(node, "role", ""), "active") != 0)
            return CTL_DEGRADED;
    }
    return CTL_OK;
}

/* Without a daemon: what the share tells, and why that is all. */
static int status_without_daemon(struct ctl *c)
{
    char why[256] = "";
    json_t *status = ctl_try_conf(c) ? ctl_status_from_share(c, why, sizeof(why)) : NULL;

    if (!status) {
        ctl_print_no_daemon(c);
        if (!c->opt.json && c->have_conf)
            fprintf(stderr, "The state share cannot be asked either: %s\n", why);
        return CTL_NO_DAEMON;
    }
    if (c->opt.json) {
        ctl_print_json(status);
    } else {
        ctl_print_no_daemon(c);
        printf("\n%sWhat the state share tells:%s\n", ctl_ink(c, CTL_BOLD),
               ctl_ink(c, CTL_PLAIN));
        ctl_print_status(c, status);
    }
    json_decref(status);
    return CTL_NO_DAEMON;
}

static int status_once(struct ctl *c)
{
    json_t *status = NULL;
    int r = ctl_try_get(c, "/v1/status", &status);

    if (r == CTL_NO_DAEMON)
        return status_without_daemon(c);
    if (r != CTL_OK)
        return r;
    if (c->opt.json)
        ctl_print_json(status);
    else
        ctl_print_status(c, status);
    r = c->opt.check ? health(status) : CTL_OK;
    json_decref(status);
    return r;
}

int cmd_status(struct ctl *c)
{
    if (!c->opt.watch)
        return status_once(c);
    for (;;) {
        if (c->colour) /* home, and clear what is below: no flicker */
            fputs("\033[H\033[J", stdout);
        (void)status_once(c); /* what is wrong is on the screen, and may go away */
        if (fflush(stdout) != 0)
            return CTL_FAILED;
        (void)sleep(1); /* Ctrl-C ends it */
    }
}
