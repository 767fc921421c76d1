/* For `redoubt check`: are the secrets of the cluster here, and until when? */
#include <time.h>

#include "app/ctl/ctl_trust.h"

enum { DAY_S = 86400, SOON_DAYS = 30 };

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
}
