/* When a lease is asked for, and what the device says of its licence. */
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "app/agent/files.h"
#include "app/agent/protect_in.h"
#include "sys/log/log.h"

enum {
    FIRST_S = 10,     /* the first question comes at random within this time */
    AGAIN_S = 60,     /* the proxy did not answer */
    REFUSED_S = 3600, /* it said no; half of it at random on top */
};

static void in_seconds(struct protect *p, uint32_t s)
{
    p->licence.due_us =
        protect_now_us() + s * 1000000ull + randombytes_uniform(s * 500000u + 1);
}

static const char *state_now(const struct protect *p)
{
    const int64_t now = protect_unix_s();

    if (p->licence.lease.expires > now)
        return "ok";
    if (p->licence.lease.expires > 0)
        return "expired";
    return p->licence.refused[0] ? "missing" : "unknown";
}

static void look(struct protect *p)
{
    const char *state = state_now(p);

    if (strcmp(state, p->facts.licence) == 0)
        return;
    p->facts.licence = state;
    log_event(LOG_LEVEL_INFO, "licence", log_str("state", state),
              log_str("why", p->licence.refused));
    protect_event(p, "licence_changed", strcmp(state, "ok") == 0 ? "info" : "warning",
                  json_pack("{s:s,s:s}", "state", state, "why", p->licence.refused));
    protect_facts_dirty(p);
}

/* A renewed certificate has a new key, and the lease is bound to the old one. */
static bool certificate_is_new(struct protect *p)
{
    struct stat st;

    if (stat(p->conf.agent.certificate, &st) != 0)
        return false;
    const struct timespec *was = &p->licence.certificate_at;
    return st.st_mtim.tv_sec != was->tv_sec || st.st_mtim.tv_nsec != was->tv_nsec;
}

static struct timespec certificate_time(const struct protect *p)
{
    struct stat st;

    return stat(p->conf.agent.certificate, &st) == 0 ? st.st_mtim
                                                     : (struct timespec){ 0 };
}

static void asked(struct protect *p, struct job *job, const json_t *done)
{
    const char *refused = json_string_value(json_object_get(done, "refused"));
    const char *error = json_string_value(json_object_get(done, "error"));

    (void)job;
    p->licence.job = NULL;
    if (!json_is_true(json_object_get(done, "ok"))) {
        log_event(LOG_LEVEL_INFO, "licence_later", log_str("why", error ? error : ""));
        in_seconds(p, AGAIN_S);
        return;
    }
    (void)snprintf(p->licence.refused, sizeof(p->licence.refused), "%s",
                   refused ? refused : "");
    if (refused) {
        in_seconds(p, REFUSED_S);
    } else {
        p->licence.certificate_at = p->licence.asked_with;
        p->licence.lease.expires = json_integer_value(json_object_get(done, "expires"));
        p->licence.lease.renew_after =
            json_integer_value(json_object_get(done, "renew_after"));
        in_seconds(p, AGAIN_S);
    }
    look(p);
}

/* The lease of the last run, if it is one and ours. */
static void read_kept(struct protect *p)
{
    char *text = malloc(LEASE_BYTES_MAX);
    struct err_info info = { .what = "" };
    size_t n = 0;
    enum err e =
        text ? file_load(p->licence.file, text, LEASE_BYTES_MAX, &n, &info) : ERR_MEMORY;

    if (e == ERR_OK)
        e = licence_read((struct str){ text, n }, p->conf.agent.certificate,
                         &p->licence.lease, &info);
    if (e != ERR_OK && e != ERR_NOT_FOUND)
        log_event(LOG_LEVEL_WARNING, "lease_unusable", log_str("why", info.what));
    free(text);
}

void licence_load(struct protect *p)
{
    p->facts.licence = "unknown";
    (void)snprintf(p->licence.file, sizeof(p->licence.file), "%s/licence.json",
                   p->conf.agent.state_dir);
    p->licence.certificate_at = certificate_time(p);
    read_kept(p);
    p->facts.licence = state_now(p);
}

void protect_licence(struct protect *p, const char *server)
{
    if (strcmp(server, p->licence.server) == 0)
        return;
    (void)snprintf(p->licence.server, sizeof(p->licence.server), "%s", server);
    p->licence.due_us = protect_now_us() + randombytes_uniform(FIRST_S * 1000000u);
}

void licence_tick(struct protect *p)
{
    const struct conf_agent *c = &p->conf.agent;
    const bool wanted =
        protect_unix_s() >= p->licence.lease.renew_after || certificate_is_new(p);

    look(p);
    if (!wanted || p->licence.job || p->licence.server[0] == '\0' ||
        protect_now_us() < p->licence.due_us)
        return;
    p->licence.asked_with = certificate_time(p);
    p->licence.job =
        job_start(p,
                  json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "do", "licence", "server",
                            p->licence.server, "ca", c->ca, "certificate", c->certificate,
                            "key", c->key, "file", p->licence.file),
                  -1, asked, NULL);
    if (!p->licence.job)
        in_seconds(p, AGAIN_S);
}
