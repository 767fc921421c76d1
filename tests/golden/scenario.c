/*
 * scenario NAME: one whole story of a cluster in the simulated world, as a readable trace.
 *
 * Only what the story says goes wrong (weather_calm()); times are milliseconds from the start
 * of the two nodes.  tests/golden/compare holds the output against NAME.txt.
 */
#include "sim.h"

enum { A, B };

struct deed {
    uint32_t at_ms;
    enum {
        POWER_OFF,
        BOOT,
        FREEZE, /* the daemon alone, for ms */
        SUSPEND,
        SERVICE_DIES,
        SERVICES_BAD, /* they fail on both nodes, for ms */
        SWITCHOVER,
        MAINTENANCE_ON,
        MAINTENANCE_OFF,
        SIGTERM,
        ADOPT,
        CUT, /* from the share, for ms */
        SHARE_DOWN,
        RIGHTS_LOST,
        RESTORE, /* ms = epochs back */
        DBMS_DOWN,
        PUBLISHED, /* files that this node does not have, for ms */
    } what;
    uint32_t node, ms;
};

static const struct story {
    const char *name, *about;
    uint32_t end_ms;
    struct deed deeds[8]; /* at_ms 0 ends them */
} stories[] = {
    { "power_off",
      "The active node loses power; later it comes back.",
      12000,
      { { 4000, POWER_OFF, A, 0 }, { 8000, BOOT, A, 0 } } },
    { "service_failure",
      "A service of the active node dies; later one of the other node's does, and again: "
      "after two switches it is restarted in place.",
      14000,
      { { 4000, SERVICE_DIES, A, 1 },
        { 7000, SERVICE_DIES, B, 0 },
        { 10000, SERVICE_DIES, A, 2 } } },
    { "switchover",
      "An operator switches over, asks the passive node, and puts the active one into "
      "maintenance.",
      12000,
      { { 4000, SWITCHOVER, A, 0 },
        { 6000, SWITCHOVER, A, 0 },
        { 8000, MAINTENANCE_ON, B, 0 },
        { 10000, MAINTENANCE_OFF, B, 0 } } },
    { "sigterm",
      "The active node is stopped, as for a reboot.",
      9000,
      { { 4000, SIGTERM, A, 0 } } },
    { "share_cut",
      "The active node alone loses its way to the file server.",
      12000,
      { { 4000, CUT, A, 4000 } } },
    { "rights_lost",
      "The right to write on the share is withdrawn, and given back: nobody may be "
      "active.",
      16000,
      { { 4000, RIGHTS_LOST, A, 5000 } } },
    { "share_down",
      "Both nodes lose the file server: nobody may be active, and it heals by itself.",
      14000,
      { { 4000, SHARE_DOWN, A, 5000 } } },
    { "frozen_daemon",
      "The daemon of the active node is stopped for three seconds; its guard is not.",
      12000,
      { { 4000, FREEZE, A, 3000 } } },
    { "suspended_node",
      "The whole active node is suspended for ten seconds and goes on.",
      18000,
      { { 4000, SUSPEND, A, 10000 } } },
    { "restored_share",
      "The share is restored from a copy that is ten epochs old: an operator decides.",
      32000,
      { { 4000, SWITCHOVER, A, 0 },
        { 5000, SWITCHOVER, B, 0 },
        { 6000, RESTORE, A, 10 },
        { 14000, ADOPT, A, 0 } } },
    { "dbms_down",
      "The DBMS is gone while the active node loses power: the other serves as far as it "
      "can.",
      14000,
      { { 4000, DBMS_DOWN, A, 5000 }, { 4500, POWER_OFF, A, 0 }, { 9500, BOOT, A, 0 } } },
    { "published",
      "Files are published, and the passive node fetches them; meanwhile an operator "
      "asks "
      "in vain for a switch, and a service fails, which is reason enough. Then the other "
      "node has to do without them, and the active one loses power.",
      20000,
      { { 4000, PUBLISHED, B, 4000 },
        { 5000, SWITCHOVER, A, 0 },
        { 6000, SERVICE_DIES, A, 1 },
        { 10000, PUBLISHED, A, 5000 },
        { 11000, POWER_OFF, B, 0 } } },
    { "bad_services",
      "No service starts any more, on either node, for five seconds.",
      24000,
      { { 4000, SERVICES_BAD, A, 5000 },
        { 4100, SERVICE_DIES, A, 0 },
        { 6000, SERVICE_DIES, B, 0 } } },
};

static struct sim world;

static void operate(struct sim *s, const struct deed *d, enum node_operation op)
{
    static const char *const names[] = { "switchover", "maintenance on",
                                         "maintenance off", "lease adopt" };

    sim_note(s, "operator on %s: %s", sim_node_name(d->node), names[op]);
    if (!host_runs(&s->host[d->node]))
        return;
    node_run_event(s->host[d->node].run,
                   &(struct node_event){ .kind = NODE_EV_OPERATOR,
                                         .now = host_clock(s, d->node),
                                         .op = op,
                                         .token = 1 });
    host_schedule(s, d->node);
}

static void stop(struct sim *s, uint32_t i)
{
    sim_note(s, "%s gets SIGTERM", sim_node_name(i));
    node_run_simple(s->host[i].run, NODE_EV_STOP, host_clock(s, i));
    host_schedule(s, i);
}

static void carry_out(struct sim *s, const struct deed *d)
{
    const uint64_t until = s->now + d->ms * 1000ull;

    switch (d->what) {
    case POWER_OFF: host_power_off(s, d->node); break;
    case BOOT: host_boot(s, d->node); break;
    case FREEZE: weather_freeze(s, d->node, false, until); break;
    case SUSPEND: weather_freeze(s, d->node, true, until); break;
    case SERVICE_DIES: services_fail(s, d->node, d->ms, false); break;
    case SERVICES_BAD:
        sim_note(s, "no service starts for %u ms", d->ms);
        s->faults.bad_service_until = until;
        break;
    case SWITCHOVER: operate(s, d, NODE_OP_SWITCHOVER); break;
    case MAINTENANCE_ON: operate(s, d, NODE_OP_MAINTENANCE_ON); break;
    case MAINTENANCE_OFF: operate(s, d, NODE_OP_MAINTENANCE_OFF); break;
    case ADOPT: operate(s, d, NODE_OP_ADOPT); break;
    case SIGTERM: stop(s, d->node); break;
    case CUT:
        sim_note(s, "%s is cut off from the share for %u ms", sim_node_name(d->node),
                 d->ms);
        s->faults.cut_until[d->node] = until;
        break;
    case SHARE_DOWN:
        sim_note(s, "the file server is down for %u ms", d->ms);
        s->faults.share_down_until = until;
        break;
    case RIGHTS_LOST:
        sim_note(s, "the share may not be written for %u ms", d->ms);
        s->faults.share_denied_until = until;
        break;
    case RESTORE:
        sim_note(s, "the share is restored from an old copy");
        share_restore(s, d->ms);
        break;
    case DBMS_DOWN:
        sim_note(s, "the DBMS is down for %u ms", d->ms);
        s->faults.db_down_until = until;
        break;
    case PUBLISHED:
        sim_note(s, "files are published that %s needs %u ms to fetch",
                 sim_node_name(d->node), d->ms);
        s->faults.content_until[d->node] = until;
        break;
    }
}

/* What a client of the cluster sees. */
static void look(struct sim *s, bool *served, uint64_t *since)
{
    bool now_served = false;

    for (uint32_t i = 0; i < NODES; i++)
        now_served |= check_serves(s, i) && check_address_open(s, i);
    if (now_served == *served)
        return;
    sim_note(s, "%s after %llu ms", now_served ? "CLIENTS ARE SERVED" : "CLIENTS WAIT",
             (unsigned long long)((s->now - *since) / 1000));
    *served = now_served;
    *since = s->now;
}

static int tell(struct sim *s, const struct story *story)
{
    bool served = false;
    uint32_t next = 0;

    printf("%s\n\n", story->about);
    sim_set_up(s, 1, false);
    weather_calm(s);
    s->trace = true;
    s->now = s->epoch_of_trace = 1000000;
    uint64_t since = s->now;

    if (strcmp(story->name, "restored_share") == 0)
        share_age(s, 20); /* there must be something to lose */
    sim_at(s, s->now, SIM_BOOT, A, 0, 0, 0);
    sim_at(s, s->now + 200000, SIM_BOOT, B, 0, 0, 0);
    while (s->now - s->epoch_of_trace < story->end_ms * 1000ull && !s->violation) {
        const struct deed *d = &story->deeds[next];
        const uint64_t at = s->epoch_of_trace + d->at_ms * 1000ull;

        if (d->at_ms && at <= s->heap[0].at) {
            s->now = at;
            carry_out(s, d);
            next++;
        }
        sim_event(s);
        look(s, &served, &since);
    }
    for (uint32_t i = 0; i < NODES; i++)
        printf("in the end: %s is %s\n", sim_node_name(i),
               host_runs(&s->host[i]) ? node_state_name(s->host[i].run->node.state)
                                      : "off");
    return s->violation ? 1 : 0;
}

int main(int argc, char **argv)
{
    if (mac_start() != ERR_OK)
        return 1;
    for (size_t i = 0; i < LEN(stories); i++)
        if (argc == 2 && strcmp(stories[i].name, argv[1]) == 0)
            return tell(&world, &stories[i]);
    fprintf(stderr, "usage: scenario NAME\n");
    return 2;
}
