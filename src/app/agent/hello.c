/*
 * hello: who this device is and how it is protected, as OpAMP describes an agent.
 */
#include <sys/utsname.h>

#include "app/agent/agent.h"
#include "app/agent/protect.h"
#include "app/agent/upgrade.h"

void hello_start(struct agent *a)
{
    struct utsname u;

    if (uname(&u) == 0) {
        (void)snprintf(a->host, sizeof(a->host), "%s", u.nodename);
        (void)snprintf(a->os, sizeof(a->os), "%s %s %s", u.sysname, u.release, u.machine);
        (void)snprintf(a->arch, sizeof(a->arch), "%s", u.machine);
    }
    a->start_unix_us = agent_unix_us();
}

static void add_health(const struct agent *a, struct opamp_agent *m)
{
    m->has_health = true;
    m->health = (struct opamp_health){ .healthy = a->engine.up,
                                       .start_ns = a->start_unix_us * 1000u,
                                       .status_ns = agent_unix_us() * 1000u,
                                       .count = 1 };
    m->health.status = !a->has_engine ? STR("starting")
                       : a->engine.up ? STR("protected")
                                      : STR("engine down");
    m->health.last_error = str_of(a->has_engine ? a->engine.why : "");
    m->health.at[0] = (struct opamp_component){ .name = STR("engine"),
                                                .healthy = a->engine.up,
                                                .status = m->health.status,
                                                .last_error = m->health.last_error };
}

/* How it is protected; the text lives until the next call. */
static void add_facts(struct agent *a, struct opamp_agent *m)
{
    static struct protect_facts f;

    protect_facts(a->protect, &f);
    a->facts_changed = false;
    if (!f.engine_known)
        return; /* nothing is better than something wrong */
    opamp_add_text(&m->other, STR("protection.engine"),
                   f.engine_up ? STR("running") : STR("down"));
    opamp_add_text(&m->other, STR("protection.engine.version"), str_of(f.engine_version));
    opamp_add_int(&m->other, STR("protection.signatures.version"), f.signatures_version);
    opamp_add_int(&m->other, STR("protection.signatures.built"), f.signatures_built);
    opamp_add_text(&m->other, STR("protection.realtime"), str_of(f.realtime));
    opamp_add_int(&m->other, STR("protection.last_scan"), f.last_scan);
    opamp_add_int(&m->other, STR("protection.threats_open"), f.threats_open);
    opamp_add_text(&m->other, STR("protection.licence"), str_of(f.licence));
}

void hello_add(struct agent *a, struct opamp_agent *m)
{
    static char id[UUID_TEXT];

    uuid_format(id, &a->device_id);
    m->has_description = true;
    opamp_add_text(&m->identifying, STR("service.name"), STR("redoubt-agent"));
    opamp_add_text(&m->identifying, STR("service.version"), str_of(agent_version()));
    opamp_add_text(&m->identifying, STR("service.instance.id"), str_of(id));
    opamp_add_text(&m->identifying, STR("redoubt.instance"),
                   str_of(identity_instance(a->identity)));
    opamp_add_text(&m->other, STR("host.name"), str_of(a->host));
    opamp_add_text(&m->other, STR("host.arch"), str_of(a->arch));
    opamp_add_text(&m->other, STR("os.type"), STR("linux"));
    opamp_add_text(&m->other, STR("os.description"), str_of(a->os));
    opamp_add_text(&m->other, STR("agent.version"), str_of(agent_version()));
    add_facts(a, m);
    add_health(a, m);
    m->has_caps = true;
    m->caps = (struct opamp_caps){ .count = 5,
                                   .at = { STR(REPORT_CAPABILITY), STR(EVENTS_CAPABILITY),
                                           STR(TASKS_CAPABILITY), STR(SESSION_CAPABILITY),
                                           STR(LICENCE_CAPABILITY) } };
}
