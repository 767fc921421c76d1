/*
 * The rules of the node machine, one row a rule.
 *
 * A row is a script: words that make things happen, and words that say what must be seen.
 *
 *   start stop guard aux     those events                 +N        N ms pass, a tick
 *   auto:N                   N ms in which the world answers everything well
 *   idle                     the share requests in flight are answered, no time passes
 *   ok, io, timeout, ...     the share request in flight is answered so
 *   late:ERR                 an answer to a request that is not in flight
 *   top:N by:WHO seq:N released held to:WHO hold:N count:N lease:ERR    what the share shows
 *   still, moving            the holder renews no more, or again with each read
 *   peer:ready|following|fit|gone|maintenance  paused:0|1  session:N  twin:0|1   the rest
 *   svc:STATE svcN:STATE  db:ERR db=N  fence:ERR fence=N  addr:ERR  content:ERR   answers
 *   op:switchover|on|off|adopt
 *   |                        forget the actions so far
 *   ?STATE why:WORD ob:HEX left:MS holds:0|1 degraded:0|1 moves:N             must be so
 *   !ACTION[=N|=ERR] ~ACTION[=..]   must be, must not be, among the actions since |
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "core/cluster/node.h"

enum { SERVICES = 2, SEEN_MAX = 4096 };

struct world {
    struct node n;
    struct mono now;
    struct node_seen share;
    bool moving, twin, bare; /* bare: published files are not here, whatever auto does */
    uint64_t prints, peer_seq;
    uint32_t session, seen_count;
    struct node_action seen[SEEN_MAX];
};
static struct world w;

static const struct node_conf conf = {
    .cluster = "00000000000000000000000000000001",
    .self = "node-a",
    .peer = "node-b",
    .incarnation = 77,
    .renew_ms = 100,
    .hold_ms = 1000,
    .margin_ms = 50, /* wait = 1000 + 10 + 50 */
    .poll_ms = 20,
    .demote_before_ms = 200,
    .scan_ms = 100,
    .put_ms = 200,
    .fence_wait_ms = 300,
    .promote_limit_ms = 700,
    .demote_limit_ms = 500,
    .yield_ms = 2000,
    .unready_ms = 1000,
    .peer_fresh_ms = 2000,
    .switch_max = 2,
    .switch_window_ms = 10000,
    .service_count = SERVICES,
};

static void step(struct node_event ev)
{
    struct node_actions out;

    ev.now = w.now;
    node_step(&w.n, &ev, &out);
    for (uint32_t i = 0; i < out.count; i++) {
        assert_true(w.seen_count < SEEN_MAX);
        w.seen[w.seen_count++] = out.at[i];
    }
}

/* The world does what the request asks for: the share as it is after a write. */
static void landed(void)
{
    struct lease_rec *l = &w.share.lease;

    if (w.n.io.aux || (w.n.io.op != SHARE_CLAIM && w.n.io.op != SHARE_RENEW &&
                       w.n.io.op != SHARE_RELEASE))
        return;
    for (uint32_t i = w.seen_count; i-- > 0;)
        if (w.seen[i].kind == NODE_ACT_SHARE && w.seen[i].request == w.n.io.request) {
            *l = w.seen[i].lease;
            w.share.top = w.seen[i].epoch;
            w.share.lease_err = ERR_OK;
            w.share.print = ++w.prints;
            return;
        }
}

static void answer_share(enum err e)
{
    struct node_event ev = {
        .kind = NODE_EV_SHARE, .request = w.n.io.request, .err = e, .session = w.session
    };

    if (e == ERR_OK && (w.n.io.op == SHARE_SCAN || w.n.io.op == SHARE_POLL)) {
        if (w.moving && w.share.lease.owner[5] == 'b' && !w.share.lease.released) {
            w.share.lease.seq++;
            w.share.print = ++w.prints;
        }
        w.share.peer.seq = ++w.peer_seq;
        w.share.self.incarnation = w.twin ? 78 : conf.incarnation;
        ev.seen = w.share;
    } else if (e == ERR_OK) {
        landed();
    }
    step(ev);
}

static void answer_all(void)
{
    static const enum service_state goal[] = { SERVICE_STOPPED, SERVICE_STANDBY,
                                               SERVICE_ACTIVE };

    if (w.n.io.request)
        answer_share(ERR_OK);
    for (uint32_t i = 0; i < SERVICES; i++)
        if (w.n.services.state[i] != goal[w.n.services.want])
            step((struct node_event){ .kind = NODE_EV_SERVICE,
                                      .service = i,
                                      .state = goal[w.n.services.want] });
    if (w.n.address.request)
        step((struct node_event){ .kind = NODE_EV_ADDRESS,
                                  .request = w.n.address.request });
    if (w.n.fence.request)
        step((struct node_event){ .kind = NODE_EV_FENCE, .request = w.n.fence.request });
}

static void automatic(uint64_t ms)
{
    step((struct node_event){ .kind = NODE_EV_DATABASE });
    if (!w.bare)
        step((struct node_event){ .kind = NODE_EV_CONTENT });
    for (; ms > 0; ms--) {
        w.now = mono_after(w.now, 1);
        answer_all();
        if (mono_reached(w.now, node_next_wakeup(&w.n)))
            step((struct node_event){ .kind = NODE_EV_TICK });
    }
}

static enum err err_of(const char *name)
{
    for (int e = 0; e < ERR_COUNT; e++)
        if (strcmp(err_name((enum err)e), name) == 0)
            return (enum err)e;
    fail_msg("no such error: %s", name);
    return ERR_OK;
}

static uint64_t number_of(const char *text)
{
    uint64_t v = 0;

    for (; *text; text++) {
        assert_true(*text >= '0' && *text <= '9');
        v = v * 10 + (uint64_t)(*text - '0');
    }
    return v;
}

static enum service_state service_of(const char *name)
{
    static const char *const names[] = { "stopped", "starting", "standby",
                                         "active",  "changing", "failed" };

    for (uint32_t i = 0; i < LEN(names); i++)
        if (strcmp(names[i], name) == 0)
            return (enum service_state)i;
    fail_msg("no such service state: %s", name);
    return SERVICE_FAILED;
}

static bool is_action(const struct node_action *a, const char *name, const char *value)
{
    static const char *const ops[] = { "scan", "poll", "claim",  "renew", "release",
                                       "put",  "get",  "remove", "prune" };
    static const char *const kinds[] = { "share",  "aux",      "services", "kill",
                                         "up",     "down",     "fence",    "extend",
                                         "revoke", "remember", "moved",    "answer",
                                         "exit" };
    static const char *const wants[] = { "stopped", "standby", "active" };
    const char *is = a->kind == NODE_ACT_SHARE      ? ops[a->op]
                     : a->kind == NODE_ACT_SERVICES ? wants[a->want]
                                                    : kinds[a->kind];

    if (strcmp(is, name) != 0)
        return false;
    if (!value)
        return true;
    if (a->kind == NODE_ACT_ANSWER)
        return a->err == err_of(value);
    if (a->kind == NODE_ACT_SHARE && a->op == SHARE_RELEASE &&
        strncmp(value, "node", 4) == 0)
        return strcmp(a->lease.to, value) == 0;
    return a->epoch == number_of(value);
}

static bool was_seen(char *name)
{
    char *value = strchr(name, '=');

    if (value)
        *value++ = '\0';
    for (uint32_t i = 0; i < w.seen_count; i++)
        if (is_action(&w.seen[i], name, value))
            return true;
    return false;
}

static void check_seen(char *word)
{
    const bool wanted = word[0] == '!';

    if (was_seen(word + 1) != wanted)
        fail_msg("%s %s", word + 1, wanted ? "did not happen" : "happened");
}

static bool expect(char *word)
{
    char *v = strchr(word, ':');

    if (word[0] == '?')
        assert_string_equal(node_state_name(w.n.state), word + 1);
    else if (word[0] == '!' || word[0] == '~')
        check_seen(word);
    else if (strncmp(word, "why:", 4) == 0)
        assert_string_equal(node_why_name(w.n.why), v + 1);
    else if (strncmp(word, "ob:", 3) == 0)
        assert_int_equal(node_obstacles(&w.n), strtoul(v + 1, NULL, 16));
    else if (strncmp(word, "left:", 5) == 0)
        assert_int_equal((w.n.lease.deadline.us - w.now.us) / 1000, number_of(v + 1));
    else if (strncmp(word, "holds:", 6) == 0)
        assert_int_equal(node_holds(&w.n), number_of(v + 1));
    else if (strncmp(word, "degraded:", 9) == 0)
        assert_int_equal(node_degraded(&w.n), number_of(v + 1));
    else if (strncmp(word, "moves:", 6) == 0)
        assert_int_equal(w.n.lease.moves, number_of(v + 1));
    else
        return false;
    return true;
}

static void set_peer(const char *how)
{
    w.share.have_peer = strcmp(how, "gone") != 0;
    w.share.peer.ready = strcmp(how, "ready") == 0 || strcmp(how, "maintenance") == 0;
    w.share.peer.maintenance = strcmp(how, "maintenance") == 0;
    w.share.peer.fit = w.share.peer.ready || strcmp(how, "fit") == 0;
}

/* What the share shows. */
static bool arrange(const char *word)
{
    const char *v = strchr(word, ':');
    struct lease_rec *l = &w.share.lease;

    if (strcmp(word, "released") == 0 || strcmp(word, "held") == 0)
        l->released = word[0] == 'r';
    else if (strcmp(word, "still") == 0 || strcmp(word, "moving") == 0)
        w.moving = word[0] == 'm';
    else if (!v)
        return false;
    else if (strncmp(word, "top:", 4) == 0)
        w.share.top = l->epoch = number_of(v + 1);
    else if (strncmp(word, "by:", 3) == 0)
        memcpy(l->owner, v + 1, strlen(v + 1) + 1);
    else if (strncmp(word, "to:", 3) == 0)
        memcpy(l->to, v + 1, strlen(v + 1) + 1);
    else if (strncmp(word, "seq:", 4) == 0)
        l->seq = number_of(v + 1);
    else if (strncmp(word, "count:", 6) == 0)
        l->moves = (uint32_t)number_of(v + 1);
    else if (strncmp(word, "hold:", 5) == 0)
        l->hold_ms = (uint32_t)number_of(v + 1);
    else if (strncmp(word, "lease:", 6) == 0)
        w.share.lease_err = err_of(v + 1);
    else if (strncmp(word, "peer:", 5) == 0)
        set_peer(v + 1);
    else if (strncmp(word, "paused:", 7) == 0)
        w.share.paused = v[1] == '1';
    else if (strncmp(word, "session:", 8) == 0)
        w.session = (uint32_t)number_of(v + 1);
    else if (strncmp(word, "twin:", 5) == 0)
        w.twin = v[1] == '1';
    else
        return false;
    w.share.print = ++w.prints;
    return true;
}

static void operate(const char *name)
{
    static const char *const ops[] = { "switchover", "on", "off", "adopt" };

    for (uint32_t i = 0; i < LEN(ops); i++)
        if (strcmp(ops[i], name) == 0)
            step((struct node_event){ .kind = NODE_EV_OPERATOR,
                                      .op = (enum node_operation)i });
}

static void answer_other(const char *word)
{
    const char *v = strpbrk(word, ":=");
    struct node_event ev = { .err = *v == ':' ? err_of(v + 1) : ERR_OK };

    if (*v == '=')
        ev.epoch = number_of(v + 1);
    if (word[0] == 'd') {
        ev.kind = NODE_EV_DATABASE;
    } else if (word[0] == 'c') {
        ev.kind = NODE_EV_CONTENT;
        w.bare = ev.err != ERR_OK;
    } else if (word[0] == 'f') {
        ev.kind = NODE_EV_FENCE;
        ev.request = w.n.fence.request;
        if (*v == '=')
            ev.err = ERR_STALE;
    } else {
        ev.kind = NODE_EV_ADDRESS;
        ev.request = w.n.address.request;
    }
    step(ev);
}

static void set_services(const char *word)
{
    const enum service_state state = service_of(strchr(word, ':') + 1);

    for (uint32_t i = 0; i < SERVICES; i++)
        if (word[3] == ':' || word[3] == (char)('0' + i))
            step((struct node_event){
                .kind = NODE_EV_SERVICE, .service = i, .state = state });
}

static void event_of(const char *word)
{
    static const struct {
        const char *name;
        enum node_event_kind kind;
    } simple[] = { { "start", NODE_EV_START },
                   { "stop", NODE_EV_STOP },
                   { "guard", NODE_EV_GUARD_LOST },
                   { "aux", NODE_EV_AUX } };

    for (uint32_t i = 0; i < LEN(simple); i++)
        if (strcmp(word, simple[i].name) == 0) {
            step((struct node_event){ .kind = simple[i].kind });
            return;
        }
    if (word[0] == '|') {
        w.seen_count = 0;
    } else if (word[0] == '+') {
        w.now = mono_after(w.now, (uint32_t)number_of(word + 1));
        step((struct node_event){ .kind = NODE_EV_TICK });
    } else if (strncmp(word, "auto:", 5) == 0) {
        automatic(number_of(word + 5));
    } else if (strcmp(word, "idle") == 0) {
        for (int i = 0; i < 5 && w.n.io.request; i++)
            answer_share(ERR_OK);
    } else if (strncmp(word, "late:", 5) == 0) {
        step((struct node_event){ .kind = NODE_EV_SHARE,
                                  .request = w.n.io.request + 1000,
                                  .err = err_of(word + 5),
                                  .seen = w.share });
    } else if (strncmp(word, "svc", 3) == 0) {
        set_services(word);
    } else if (strncmp(word, "op:", 3) == 0) {
        operate(word + 3);
    } else if (strncmp(word, "db", 2) == 0 || strncmp(word, "fence", 5) == 0 ||
               strncmp(word, "addr", 4) == 0 || strncmp(word, "content", 7) == 0) {
        answer_other(word);
    } else {
        answer_share(err_of(word));
    }
}

struct row {
    const char *name, *script;
    uint64_t known_epoch;
    bool maintenance;
};

static void row_holds(void **state)
{
    const struct row *row = *state;
    char script[1024], *rest = script;

    assert_true(strlen(row->script) < sizeof(script));
    memcpy(script, row->script, strlen(row->script) + 1);
    memset(&w, 0, sizeof(w));
    w.now = (struct mono){ 5000000 };
    w.moving = true;
    w.session = 1;
    w.share = (struct node_seen){ .top = 5, .print = ++w.prints, .have_self = true };
    w.share.lease = (struct lease_rec){
        .epoch = 5, .owner = "node-b", .incarnation = 99, .seq = 1, .hold_ms = 1000
    };
    w.share.peer = (struct node_rec){ .incarnation = 99, .hold_ms = 1000 };
    set_peer("ready");
    node_init(&w.n, &conf, row->known_epoch, row->maintenance);
    for (char *word = strtok_r(script, " ", &rest); word;
         word = strtok_r(NULL, " ", &rest)) {
        if (!expect(word) && !arrange(word))
            event_of(word);
    }
}

#include "test_node_rows.h"

/* Whatever comes, in whatever order: node_step() checks the invariants itself. */
static void any_event_is_legal(void **state)
{
    (void)state;
    uint64_t seed = 1;

    for (uint32_t k = 0; k < 200000; k++) {
        if (k % 500 == 0)
            node_init(&w.n, &conf, k % 7, k % 3 == 0);
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const uint32_t r = (uint32_t)(seed >> 33);
        const uint32_t requests[] = { w.n.io.request, w.n.address.request,
                                      w.n.fence.request, r };
        struct node_event ev = {
            .kind = (enum node_event_kind)(
                r % (r % 50 ? NODE_EV_GUARD_LOST : NODE_EV_STOP + 1u)),
            .request = requests[(r >> 4) % LEN(requests)],
            .err = r & 64 ? ERR_OK : (enum err)((r >> 7) % ERR_COUNT),
            .service = (r >> 8) % (SERVICES + 2),
            .state = (enum service_state)((r >> 10) % (SERVICE_STATE_COUNT + 2)),
            .epoch = (r >> 12) % 12,
            .op = (enum node_operation)((r >> 16) % (NODE_OP_ADOPT + 1)),
        };

        ev.seen = w.share;
        ev.seen.top = ev.seen.lease.epoch = (r >> 14) % 12;
        ev.seen.print = (r >> 18) % 4;
        ev.seen.lease.released = (r & 0x100000) != 0;
        w.seen_count = 0;
        w.now = mono_after(w.now, r & 0x600000 ? 0 : r % 300);
        ev.now = w.now;
        struct node_actions out;

        node_step(&w.n, &ev, &out);
        assert_true(w.n.state < NODE_STATE_COUNT);
        assert_true(node_next_wakeup(&w.n).us > 0);
    }
}

static void names_are_words(void **state)
{
    (void)state;
    assert_string_equal(node_state_name(NODE_STATE_COUNT), "unknown");
    assert_string_equal(node_why_name(NODE_WHY_COUNT), "unknown");
    for (int i = 0; i < NODE_WHY_COUNT; i++)
        assert_true(strlen(node_why_name((enum node_why)i)) < 32);
    /* Every state can be left, and is entered from another one or by node_init(). */
    uint32_t entered = 1u << NODE_STOPPED;

    for (int i = 0; i < NODE_STATE_COUNT; i++) {
        assert_int_not_equal(node_moves_from((enum node_state)i), 0);
        entered |= node_moves_from((enum node_state)i);
    }
    assert_int_equal(entered, (1u << NODE_STATE_COUNT) - 1);
}

int main(void)
{
    struct CMUnitTest tests[LEN(rows) + 2] = { [LEN(rows)] =
                                                   cmocka_unit_test(any_event_is_legal),
                                               cmocka_unit_test(names_are_words) };

    for (size_t i = 0; i < LEN(rows); i++)
        tests[i] = (struct CMUnitTest){ .name = rows[i].name,
                                        .test_func = row_holds,
                                        .initial_state = (void *)(uintptr_t)&rows[i] };
    return cmocka_run_group_tests_name("node", tests, NULL, NULL);
}
