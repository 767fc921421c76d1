#include <unistd.h>

#include "app/ctl/ctl_trust.h"

static void check_config(struct report *r)
{
    static struct conf_errors errors;

    report_add(r, REPORT_OK, "config", NULL, "%s has no errors",
               r->c->opt.conf ? r->c->opt.conf : CONF_DEFAULT_PATH);
    if (conf_check_machine(&r->c->conf, &errors) == ERR_OK) {
        report_add(r, REPORT_OK, "config.machine", NULL,
                   "its programs, files and interface are there");
        return;
    }
    for (uint32_t i = 0; i < errors.count; i++)
        report_add(r, REPORT_FAIL, "config.machine", NULL, "%s", errors.at[i].text);
}

static void check_programs(struct report *r)
{
    static const char *const programs[] = { "redoubt-node", "redoubt-guard",
                                            "redoubt-keeper" };
    char folder[CONF_PATH], path[CONF_PATH + 32];

    ctl_sibling_folder(folder, sizeof(folder));
    for (size_t i = 0; i < LEN(programs); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", folder, programs[i]);
        if (access(path, X_OK) != 0) {
            report_add(r, REPORT_FAIL, "programs", "Install Redoubt again.",
                       "%s is missing", path);
            return;
        }
    }
    report_add(r, REPORT_OK, "programs", NULL, "node daemon, guard and keeper in %s",
               folder);
}

static void check_daemon(struct report *r)
{
    json_t *status = NULL;

    if (ctl_try_get(r->c, "/v1/status", &status) == CTL_OK)
        report_add(r, REPORT_OK, "daemon", NULL, "redoubt-node is running");
    else
        report_add(r, REPORT_WARN, "daemon",
                   "After installation: systemctl enable --now redoubt-node.",
                   "redoubt-node is not running on this node");
    json_decref(status);
}

int cmd_check(struct ctl *c)
{
    struct report r;
    int exit = ctl_load_conf(c);

    if (exit != CTL_OK)
        return exit;
    report_init(&r, c);
    check_config(&r);
    check_programs(&r);
    check_separate(&r);
    (void)check_share(&r); /* each check reports for itself */
    check_database(&r);
    check_secrets(&r);
    check_daemon(&r);
    return report_finish(&r);
}
