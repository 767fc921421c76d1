/*
 * protect: the protection of this device, as the rest of the agent sees it.
 *
 * Purpose   Applies the policy to the engine and to on-access scanning, runs the tasks that
 *           work on this device, keeps the quarantine, and tells what happens by hooks.
 * Shape     What may block or crash is a process of its own (scanner, on-access listener,
 *           freshclam, the restart of the engine); this side is events of one loop.
 * Owns      new/free.  protect_free() ends its processes and calls no hook.  Everything
 *           passed in is copied unless it says "stolen"; a hook steals its json_t.
 * Safety    protect_run() with a run that is known already does nothing.  Each run that was
 *           given ends in exactly one run_done, unless protect_free() comes first; then the
 *           owner of the runs gives it again after the next start.
 *           Hooks are called from the loop, never from within a call into protect.
 * Units     unix_s: seconds since 1970; percent 0..100
 * Threads   loop thread only
 * Tests     tests/contract/test_protect.py
 */
#ifndef APP_AGENT_PROTECT_H
#define APP_AGENT_PROTECT_H

#include <jansson.h>
#include <systemd/sd-event.h>

#include "sys/clamav/clamav.h"
#include "sys/conf/conf.h"
#include "wire/uuid.h"

struct policy; /* core/policy/policy.h */
struct protect;

struct protect_hooks {
    void *arg;
    /* kind and severity are constants; data is an object, stolen. */
    void (*event)(void *arg, const char *kind, const char *severity, json_t *data);
    void (*facts_changed)(void *arg);
    /* The policy of that hash is applied, or it is not and the old one is in force. */
    void (*policy_done)(void *arg, const char hash[65], bool ok, const char *why);
    /* state: "running" | "paused"; counts may be NULL, stolen. */
    void (*run_progress)(void *arg, const struct uuid *run, const char *state,
                         unsigned percent, json_t *counts);
    /* outcome: "done" | "failed" | "cancelled"; result: an object with "counts" (may be
     * absent) and "error" (a string; failed only), stolen. */
    void (*run_done)(void *arg, const struct uuid *run, const char *outcome,
                     json_t *result);
};

struct protect_facts {
    bool engine_known, engine_up; /* known: probed at least once */
    char engine_version[64];      /* "" while down */
    uint32_t signatures_version;  /* 0: custom databases only */
    int64_t signatures_built;     /* unix_s, 0: unknown */
    const char *realtime;         /* constant: "off" | "notify" | "block" | "failed" */
    int64_t last_scan;            /* unix_s, 0: never; a full or quick scan that ended */
    uint32_t threats_open;        /* found and not cured */
    const char *licence;          /* constant: "unknown" | "ok" | "missing" | "expired" */
};

/* Reads what it kept in conf->agent.state_dir; starts nothing before a policy is given. */
MUST_USE enum err protect_new(sd_event *event, const struct agent_conf *conf,
                              const struct protect_hooks *hooks, struct protect **out,
                              struct err_info *info);
void protect_free(struct protect *p);

/*
 * protect_policy - make this policy the one in force; answered once by policy_done, unless
 * a later policy comes first: then only the later one is answered.
 * hash    64 hex digits; "" for the built-in defaults (before the first policy)
 */
void protect_policy(struct protect *p, const struct policy *policy, const char *hash);

/* What the agent's probe of the engine has seen; call it after each probe. */
void protect_engine(struct protect *p, const struct clamav_state *state);

void protect_facts(const struct protect *p, struct protect_facts *out);

/*
 * protect_run - carry out a task of the server.
 * type     scan | update | inventory | restart_engine | quarantine_restore |
 *          quarantine_delete; another one, or params that make no sense, are run_done
 *          "failed" with words.
 * params   borrowed for the call; an object or NULL
 */
void protect_run(struct protect *p, const struct uuid *run, const char *type,
                 const json_t *params);
/* Unknown or finished runs are ignored.  Only scans can be paused. */
void protect_run_cancel(struct protect *p, const struct uuid *run);
void protect_run_pause(struct protect *p, const struct uuid *run);
void protect_run_resume(struct protect *p, const struct uuid *run);

/* Where leases are given: "host:port" of the Activation Proxy. */
void protect_licence(struct protect *p, const char *server);

/* The children: `redoubt-agent --scanner` and `--on-access`; return an exit code. */
int scanner_main(void);
int onaccess_main(void);

#endif
