/* For `redoubt check`: are the secrets of the cluster here, until when, and who reads them? */
#include <grp.h>
#include <pwd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "app/ctl/ctl_trust.h"

enum { DAY_S = 86400, SOON_DAYS = 30, UNKNOWN = 128 };

/* A certificate with its key; crt: what it says. */
static enum err check_pair(const char *certificate, const char *key,
                           struct ca_certificate *crt, struct err_info *info)
{
    struct ca_pem own = { 0 }, secret = { 0 };
    enum err e = trust_read(key, &secret, info);

    if (e == ERR_OK)
        e = trust_read(certificate, &own, info);
    if (e == ERR_OK)
        e = ca_certificate_check(ca_pem_str(&own), ca_pem_str(&secret), (struct str){ 0 },
                                 info);
    if (e == ERR_OK)
        e = ca_certificate_read(ca_pem_str(&own), crt, info);
    ca_pem_wipe(&secret);
    return e;
}

/* What the user may read of these files, the first one is 1, the next 2; UNKNOWN if it cannot
 * be told.  A process of its own becomes that user: nothing else knows all that counts. */
static unsigned may_read(const struct passwd *user, const char *const *paths, size_t n)
{
    int status = 0;
    const pid_t pid = fork();

    if (pid == 0) {
        unsigned found = 0;

        if (initgroups(user->pw_name, user->pw_gid) != 0 || setgid(user->pw_gid) != 0 ||
            setuid(user->pw_uid) != 0)
            _exit(UNKNOWN);
        for (size_t i = 0; i < n; i++)
            found |= access(paths[i], R_OK) == 0 ? 1u << i : 0;
        _exit((int)found);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return UNKNOWN;
    return (unsigned)WEXITSTATUS(status);
}

/* The Web Server talks to everybody: whoever takes it over must not get the rest. */
static void check_web_user(struct report *r)
{
    const struct conf *conf = &r->c->conf;
    const char *name = conf_web_user(conf);
    const struct passwd *user = name ? getpwnam(name) : NULL;
    char ca_key[CONF_PATH + 16];
    const char *const paths[] = { conf->web.certificate, conf->web.key, ca_key,
                                  conf->server.key, conf->activation.key };
    enum { OWN = 2 };

    (void)snprintf(ca_key, sizeof(ca_key), "%s/ca.key", conf->trust.folder);
    const unsigned found = user ? may_read(user, paths, LEN(paths)) : UNKNOWN;
    if (found == UNKNOWN) /* no root, no such service, or said before: no such user */
        return;
    for (size_t i = 0; i < LEN(paths); i++) {
        const bool may = (found & 1u << i) != 0;

        if (i < OWN && !may && conf->web.https[0]) {
            report_add(r, REPORT_FAIL, "secrets.web",
                       "redoubt secret fetch gives the files of the Web Server to the "
                       "group redoubt-web: its user must be in it.",
                       "the Web Server, which runs as %s, cannot read %s", name,
                       paths[i]);
            return;
        }
        if (i >= OWN && may) {
            report_add(r, REPORT_WARN, "secrets.web",
                       "Set user = redoubt-web for it in redoubt.conf, and restart "
                       "redoubt-node, on one node after the other.",
                       "the Web Server, which runs as %s, can read %s", name, paths[i]);
            return;
        }
    }
    report_add(r, REPORT_OK, "secrets.web", NULL,
               "the Web Server, which runs as %s, can read its own only", name);
}

void check_secrets(struct report *r)
{
    struct err_info info = { .what = "" };
    struct ca_certificate crt, web;
    struct ca_pem ca = { 0 };
    const struct conf *conf = &r->c->conf;
    char path[CONF_PATH + 16];
    int64_t left, until;
    (void)snprintf(path, sizeof(path), "%s/ca.pem", conf->trust.folder);
    enum err e = trust_read(path, &ca, &info);
    if (e == ERR_OK)
        e = check_pair(conf->server.certificate, conf->server.key, &crt, &info);
    if (e == ERR_OK && conf->web.https[0])
        e = check_pair(conf->web.certificate, conf->web.key, &web, &info);
    if (e != ERR_OK) {
        report_add(
            r, r->before_init ? REPORT_WARN : REPORT_FAIL, "secrets",
            "redoubt init makes them, redoubt secret fetch brings them to the other "
            "node.",
            "%s", info.what);
        return;
    }
    until = conf->web.https[0] && web.not_after < crt.not_after ? web.not_after
                                                                : crt.not_after;
    left = (until - (int64_t)time(NULL)) / DAY_S;
    report_add(r,
               left > SOON_DAYS ? REPORT_OK
               : left > 0       ? REPORT_WARN
                                : REPORT_FAIL,
               "secrets",
               left > SOON_DAYS
                   ? NULL
                   : "Run redoubt secret fetch and restart redoubt-node, on one "
                     "node after the other.",
               "the certificate of the servers is good for %lld days", (long long)left);
    check_web_user(r);
}
