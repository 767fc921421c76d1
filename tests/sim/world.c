/*
 * The simulator's main loop.  Two phases a run: safety under any weather, then liveness once
 * it is fair.
 */
#include <stdarg.h>

#include "sim.h"

static struct node_run runs[HOSTS]; /* large, and cleared by node_run_init() */

const char *sim_node_name(uint32_t i)
{
    static const char *const names[HOSTS] = { "node-a", "node-b", "twin-b" };

    return names[i];
}

static void mix(struct sim *s, uint64_t v)
{
    s->hash = (s->hash ^ v) * 0x100000001b3u;
}

void sim_note(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    if (!s->trace)
        return;
    printf("%10.3f ", (double)(s->now - s->epoch_of_trace) / 1000.0);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

void sim_violation(struct sim *s, const char *what)
{
    if (!s->violation)
        s->violation = what;
    sim_note(s, "VIOLATION: %s (fence %llu)", what, (unsigned long long)s->db.fence);
    for (uint32_t i = 0; i < HOSTS; i++) {
        const struct host *h = &s->host[i];

        if (!h->run)
            continue;
        sim_note(
            s,
            "%s: on %d daemon %d paused %d frozen %d; %s, obstacles %x, degraded %d, "
            "serves %d, page epoch %llu",
            sim_node_name(i), h->on, h->daemon, h->paused, h->frozen,
            node_state_name(h->run->node.state), node_obstacles(&h->run->node),
            node_degraded(&h->run->node), check_serves(s, i),
            (unsigned long long)h->page.epoch);
    }
}

static bool earlier(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_at(struct sim *s, uint64_t at, enum event_kind kind, uint32_t node, uint32_t arg,
            uint32_t life, uint32_t arg2)
{
    struct event e = { .at = at < s->now ? s->now : at,
                       .order = ++s->order,
                       .kind = (uint8_t)kind,
                       .node = (uint8_t)node,
                       .arg = (uint16_t)arg,
                       .life = life,
                       .arg2 = arg2 };
    uint32_t i = s->heap_n++;

    if (at == UINT64_MAX) {
        s->heap_n--;
        return;
    }
    CHECK(s->heap_n < HEAP);
    for (; i > 0 && earlier(&e, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = e;
}

void sim_after_us(struct sim *s, uint64_t us, enum event_kind kind, uint32_t node,
                  uint32_t arg, uint32_t life, uint32_t arg2)
{
    sim_at(s, s->now + us, kind, node, arg, life, arg2);
}

static struct event pop(struct sim *s)
{
    struct event first = s->heap[0], last = s->heap[--s->heap_n];
    uint32_t i = 0;

    for (;;) {
        uint32_t c = 2 * i + 1;

        if (c >= s->heap_n)
            break;
        if (c + 1 < s->heap_n && earlier(&s->heap[c + 1], &s->heap[c]))
            c++;
        if (!earlier(&s->heap[c], &last))
            break;
        s->heap[i] = s->heap[c];
        i = c;
    }
    s->heap[i] = last;
    return first;
}

void sim_event(struct sim *s)
{
    struct event e = pop(s);

    CHECK(e.at >= s->now);
    s->still = e.at == s->now ? s->still + 1 : 0;
    if (s->still > 20000)
        sim_violation(s, "livelock: time does not move");
    s->now = e.at;
    s->steps++;
    mix(s, e.at);
    mix(s, (uint64_t)e.kind << 32 | (uint64_t)e.node << 16 | e.arg);
    switch ((enum event_kind)e.kind) {
    case SIM_SHARE_STEP:
    case SIM_SHARE_REPLY:
    case SIM_SHARE_TIMEOUT: share_event(s, &e); break;
    case SIM_SERVICE:
    case SIM_SERVICE_FAULT:
    case SIM_ACTS: services_event(s, &e); break;
    case SIM_FAULT: weather_event(s, &e); break;
    case SIM_NONE:
    case SIM_TICK:
    case SIM_ADDRESS:
    case SIM_FENCE:
    case SIM_PROBE:
    case SIM_COMMIT:
    case SIM_GUARD:
    case SIM_KILLED:
    case SIM_WILL:
    case SIM_BOOT:
    case SIM_RESUME: host_event(s, &e); break;
    }
    for (uint32_t i = 0; i < HOSTS; i++)
        mix(s, s->host[i].run ? s->host[i].run->node.state : 0);
    check_world(s);
}

/* An operator looks after a share that was restored, as the alarm tells him to. */
static void adopt(struct sim *s)
{
    for (uint32_t i = 0; i < NODES; i++) {
        struct host *h = &s->host[i];

        if (!host_runs(h))
            continue;
        for (int k = 0; k < 2; k++) {
            static const enum node_operation ops[] = { NODE_OP_ADOPT,
                                                       NODE_OP_MAINTENANCE_OFF };

            node_run_event(h->run, &(struct node_event){ .kind = NODE_EV_OPERATOR,
                                                         .now = host_clock(s, i),
                                                         .op = ops[k] });
        }
        host_schedule(s, i);
    }
}

void sim_set_up(struct sim *s, uint64_t seed, bool trace)
{
    memset(s, 0, sizeof(*s));
    s->seed = seed;
    s->rng.s = seed;
    s->trace = s->trace_io = trace;
    s->hash = 0xcbf29ce484222325u;
    s->now = 1000000;
    s->key = (struct mac_key){ { 42 } };
    record_cluster_id(s->conf.cluster, &s->key);
    weather_draw(s);
    share_init(s);
    s->db.fence = 1;
    s->db.fence_owner = s->db.last_commit_owner = s->db.replaced = HOSTS; /* nobody */
    for (uint32_t i = 0; i < HOSTS; i++) {
        sim_impl[i] = (struct impl){ s, i };
        if (i < NODES || s->weather.twin)
            sim_at(s, s->now + rng_in(&s->rng, 0, 1000000), SIM_BOOT, i, 0, 0, 0);
        memset(&runs[i].node, 0, sizeof(runs[i].node)); /* the rest when it boots */
        s->host[i].run = &runs[i];
    }
}

const char *sim_run(struct sim *s, uint64_t seed, bool trace)
{
    sim_set_up(s, seed, trace);
    const uint64_t storm =
        s->now + rng_in(&s->rng, s->weather.focus ? 6 : 4, s->weather.focus ? 12 : 13) *
                     s->conf.hold_ms * 1000ull;

    while (s->now < storm && !s->violation)
        sim_event(s);
    if (s->violation)
        return s->violation;
    weather_fair(s);
    const uint64_t limit = s->now + weather_bound_us(s);
    uint64_t next_look = s->now;

    while (!s->violation && !check_healthy(s)) {
        if (s->now > limit) {
            sim_violation(s, "nobody serves although all is well again");
            break;
        }
        if (s->now >= next_look) {
            adopt(s);
            next_look = s->now + 2 * s->conf.hold_ms * 1000ull;
        }
        sim_event(s);
    }
    return s->violation;
}
