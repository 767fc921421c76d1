/* When a lease is asked for, and what the device says of its licence. */
#include <sodium.h>

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
        p->licence.lease.expires = json_integer_value(json_object_get(done, "expires"));
        p->licence.lease.renew_after =
            json_integer_value(json_object_get(done, "renew_after"));
        in_seconds(p, AGAIN_S);
    }
    look(p);
}

void licence_load(struct protect *p)
{
    char *text = malloc(LICENCE_LEASE_MAX);
    size_t n = 0;

    p->facts.licence = "unknown";
    (void)snprintf(p->licence.file, sizeof(p->licence.file), "%s/licence.json",
                   p->conf.agent.state_dir);
    if (text && file_load(p->licence.file, text, LICENCE_LEASE_MAX, &n, NULL) == ERR_OK &&
        !licence_read((struct str){ text, n }, &p->licence.lease))
        p->licence.lease = (struct licence_lease){ 0 };
    free(text);
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
    const bool wanted = protect_unix_s() >= p->licence.lease.renew_after;

    look(p);
    if (!wanted || p->licence.job || p->licence.server[0] == '\0' ||
        protect_now_us() < p->licence.due_us)
        return;
    p->licence.job =
        job_start(p,
                  json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "do", "licence", "server",
                            p->licence.server, "ca", c->ca, "certificate", c->certificate,
                            "key", c->key, "file", p->licence.file),
                  -1, asked, NULL);
    if (!p->licence.job)
        in_seconds(p, AGAIN_S);
}
