#include "share_contract.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static struct str keep(struct contract_end *end, struct str s)
{
    struct str copy = { end->bytes + end->used, s.n };

    assert_true(s.n <= sizeof(end->bytes) - end->used);
    if (s.n > 0)
        memcpy(end->bytes + end->used, s.p, s.n);
    end->used += s.n;
    return copy;
}

void contract_take(struct contract_end *end, const struct share_answer *a)
{
    assert_false(end->inside); /* never from within submit() */
    assert_int_equal(a->id, end->waiting);
    assert_int_not_equal(a->id, 0);
    end->waiting = 0;
    end->used = 0;
    end->a = *a;
    end->a.lease = keep(end, a->lease);
    end->a.cluster = keep(end, a->cluster);
    end->a.self = keep(end, a->self);
    end->a.peer = keep(end, a->peer);
    end->a.body = keep(end, a->body);
    assert_true(a->request_count <= SHARE_REQUESTS_MAX);
    for (uint32_t i = 0; i < a->request_count; i++)
        end->a.requests[i].body = keep(end, a->requests[i].body);
    assert_int_equal(a->why != NULL, a->err != ERR_OK);
    if (a->why)
        end->why = *a->why;
    end->a.why = a->why ? &end->why : NULL;
}

static void submit(struct contract_end *end, struct share_request rq)
{
    rq.id = ++end->last_id;
    if (rq.op == SHARE_CLAIM)
        rq.session = end->a.session;
    end->waiting = rq.id;
    end->inside = true;
    end->share.ops->submit(end->share.impl, &rq);
    end->inside = false;
}

enum err contract_do(struct contract_world *w, struct contract_end *end,
                     struct share_request rq)
{
    submit(end, rq);
    while (end->waiting != 0)
        w->pump(w->arg);
    return end->a.err;
}

struct contract_lease contract_record(const char *text)
{
    struct contract_lease l;

    memset(l.bytes, ' ', sizeof(l.bytes));
    memcpy(l.bytes, text, strlen(text));
    return l;
}

struct str contract_str(const struct contract_lease *l)
{
    return (struct str){ l->bytes, sizeof(l->bytes) };
}

static enum err lease_op(struct contract_world *w, struct contract_end *end,
                         enum share_op op, uint64_t epoch, const char *text)
{
    struct contract_lease l = contract_record(text);

    return contract_do(
        w, end,
        (struct share_request){ .op = op, .epoch = epoch, .body = contract_str(&l) });
}

enum err contract_claim(struct contract_world *w, struct contract_end *end,
                        uint64_t epoch, const char *text)
{
    /* As a node does: what it reads tells it that the epoch is free. */
    (void)contract_poll(w, end, epoch - 1);
    return lease_op(w, end, SHARE_CLAIM, epoch, text);
}

enum err contract_renew(struct contract_world *w, struct contract_end *end,
                        uint64_t epoch, const char *text)
{
    return lease_op(w, end, SHARE_RENEW, epoch, text);
}

enum err contract_poll(struct contract_world *w, struct contract_end *end, uint64_t epoch)
{
    return contract_do(w, end,
                       (struct share_request){ .op = SHARE_POLL, .epoch = epoch });
}

enum err contract_named(struct contract_world *w, struct contract_end *end,
                        enum share_op op, const char *name, const char *body)
{
    struct share_request rq = { .op = op, .body = str_of(body) };

    (void)snprintf(rq.name, sizeof(rq.name), "%s", name);
    return contract_do(w, end, rq);
}

static enum err scan(struct contract_world *w, struct contract_end *end)
{
    return contract_do(
        w, end,
        (struct share_request){ .op = SHARE_SCAN, .name = "node-b", .self = "node-a" });
}

static void is_lease(const struct contract_end *end, uint64_t top, const char *text)
{
    struct contract_lease l = contract_record(text);

    assert_true(end->a.top == top);
    assert_true(str_eq(end->a.lease, contract_str(&l)));
}

static void an_empty_share_has_no_epoch(struct contract_world *w)
{
    assert_int_equal(scan(w, &w->a), ERR_OK);
    assert_true(w->a.a.top == 0);
    assert_int_equal(w->a.a.lease.n, 0);
    assert_int_equal(w->a.a.cluster.n, 0);
    assert_int_equal(w->a.a.self.n + w->a.a.peer.n, 0);
    assert_int_equal(w->a.a.request_count, 0);
}

static void of_two_claims_the_first_wins(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "a"), ERR_OK);
    assert_int_equal(contract_claim(w, &w->b, 1, "b"), ERR_EXISTS);
    assert_int_equal(contract_poll(w, &w->b, 1), ERR_OK);
    is_lease(&w->b, 1, "a");
    assert_int_equal(contract_claim(w, &w->a, 1, "again"), ERR_EXISTS);
    assert_int_equal(contract_poll(w, &w->a, 1), ERR_OK);
    is_lease(&w->a, 1, "a");
}

static void of_two_claims_at_once_exactly_one_wins(struct contract_world *w)
{
    struct contract_lease a = contract_record("a"), b = contract_record("b");

    for (uint64_t n = 1; n <= 200; n++) {
        const struct share_request rq = { .op = SHARE_CLAIM,
                                          .epoch = n,
                                          .body = contract_str(&a) };
        (void)contract_poll(w, &w->a, n - 1);
        (void)contract_poll(w, &w->b, n - 1);
        submit(&w->a, rq);
        submit(&w->b, (struct share_request){
                          .op = SHARE_CLAIM, .epoch = n, .body = contract_str(&b) });
        while (w->a.waiting || w->b.waiting)
            w->pump(w->arg);
        bool won = w->a.a.err == ERR_OK;
        assert_int_equal(w->a.a.err, won ? ERR_OK : ERR_EXISTS);
        assert_int_equal(w->b.a.err, won ? ERR_EXISTS : ERR_OK);
        assert_int_equal(contract_poll(w, &w->a, n), ERR_OK);
        is_lease(&w->a, n, won ? "a" : "b");
    }
}

static void a_renewal_is_seen_at_once(struct contract_world *w)
{
    char text[16];

    assert_int_equal(contract_claim(w, &w->a, 7, "0"), ERR_OK);
    for (int i = 1; i <= 20; i++) {
        (void)snprintf(text, sizeof(text), "%d", i);
        assert_int_equal(contract_renew(w, &w->a, 7, text), ERR_OK);
        assert_int_equal(contract_poll(w, &w->b, 7), ERR_OK);
        is_lease(&w->b, 7, text);
    }
}

static void a_new_epoch_is_seen_at_once(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "a1"), ERR_OK);
    for (uint64_t n = 1; n <= 20; n++) {
        assert_int_equal(contract_poll(w, &w->a, n), ERR_OK);
        assert_true(w->a.a.top == n);
        assert_int_equal(contract_claim(w, &w->b, n + 1, "b"), ERR_OK);
        assert_int_equal(contract_poll(w, &w->a, n), ERR_OK);
        assert_true(w->a.a.top == n + 1);
        assert_int_equal(w->a.a.lease.n, 0);
    }
}

static void a_renewal_notices_the_next_epoch(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "a"), ERR_OK);
    assert_int_equal(contract_claim(w, &w->b, 2, "b"), ERR_OK);
    assert_int_equal(contract_renew(w, &w->a, 1, "a2"), ERR_STALE);
    assert_int_equal(lease_op(w, &w->a, SHARE_RELEASE, 1, "a3"), ERR_STALE);
    assert_int_equal(contract_poll(w, &w->a, 2), ERR_OK);
    is_lease(&w->a, 2, "b");
}

/* The mark is a piece of the holder's own record. */
static void a_record_of_another_is_not_rewritten(struct contract_world *w)
{
    struct contract_lease l = contract_record("mine 2");
    struct share_request rq = {
        .op = SHARE_RENEW, .epoch = 1, .mark = "mine", .body = contract_str(&l)
    };

    assert_int_equal(contract_claim(w, &w->a, 1, "mine 1"), ERR_OK);
    assert_int_equal(contract_do(w, &w->a, rq), ERR_OK);
    assert_int_equal(contract_renew(w, &w->b, 1, "theirs"), ERR_OK);
    assert_int_equal(contract_do(w, &w->a, rq), ERR_STALE);
    rq.op = SHARE_RELEASE;
    assert_int_equal(contract_do(w, &w->a, rq), ERR_STALE);
    assert_int_equal(contract_poll(w, &w->b, 1), ERR_OK);
    is_lease(&w->b, 1, "theirs");
}

static void the_session_stays_while_the_connection_does(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "a"), ERR_OK);
    uint32_t session = w->a.a.session;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(contract_renew(w, &w->a, 1, "a"), ERR_OK);
        assert_int_equal(w->a.a.session, session);
        assert_int_equal(scan(w, &w->a), ERR_OK);
        assert_int_equal(w->a.a.session, session);
    }
}

static void a_vanished_record_is_not_made_again(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 3, "a"), ERR_OK);
    assert_int_equal(
        contract_do(w, &w->b, (struct share_request){ .op = SHARE_PRUNE, .epoch = 3 }),
        ERR_OK);
    assert_int_equal(contract_renew(w, &w->a, 3, "a2"), ERR_NOT_FOUND);
    assert_int_equal(lease_op(w, &w->a, SHARE_RELEASE, 3, "a3"), ERR_NOT_FOUND);
    assert_int_equal(contract_poll(w, &w->a, 3), ERR_NOT_FOUND);
    assert_int_equal(scan(w, &w->a), ERR_OK);
    assert_true(w->a.a.top == 0);
}

static void a_release_rewrites_the_record(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "held"), ERR_OK);
    assert_int_equal(lease_op(w, &w->a, SHARE_RELEASE, 1, "released"), ERR_OK);
    assert_int_equal(contract_poll(w, &w->b, 1), ERR_OK);
    is_lease(&w->b, 1, "released");
}

static void a_poll_sees_the_successor_of_a_pruned_record(struct contract_world *w)
{
    assert_int_equal(contract_claim(w, &w->a, 1, "a"), ERR_OK);
    assert_int_equal(contract_claim(w, &w->b, 2, "b"), ERR_OK);
    assert_int_equal(
        contract_do(w, &w->b, (struct share_request){ .op = SHARE_PRUNE, .epoch = 1 }),
        ERR_OK);
    assert_int_equal(contract_poll(w, &w->a, 1), ERR_OK);
    assert_true(w->a.a.top == 2);
    assert_int_equal(contract_poll(w, &w->a, 2), ERR_OK);
    is_lease(&w->a, 2, "b");
}

static void a_scan_shows_the_highest_epoch(struct contract_world *w)
{
    for (uint64_t n = 8; n <= 12; n++)
        assert_int_equal(contract_claim(w, &w->a, n, n == 12 ? "top" : "old"), ERR_OK);
    assert_int_equal(scan(w, &w->b), ERR_OK);
    is_lease(&w->b, 12, "top");
}

static void a_scan_shows_everything(struct contract_world *w)
{
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "cluster", "the cluster"),
                     ERR_OK);
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "node/node-a", "I"), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_PUT, "node/node-b", "you"), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_PUT, "request/pause", "p"), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_PUT, "request/0a", "q"), ERR_OK);
    assert_int_equal(contract_claim(w, &w->b, 1, "b"), ERR_OK);
    assert_int_equal(scan(w, &w->a), ERR_OK);
    is_lease(&w->a, 1, "b");
    assert_true(str_is(w->a.a.cluster, "the cluster"));
    assert_true(str_is(w->a.a.self, "I"));
    assert_true(str_is(w->a.a.peer, "you"));
    assert_int_equal(w->a.a.request_count, 2);
    assert_string_equal(w->a.a.requests[0].name, "pause");
    assert_true(str_is(w->a.a.requests[0].body, "p"));
    assert_string_equal(w->a.a.requests[1].name, "0a");
    assert_true(str_is(w->a.a.requests[1].body, "q"));
}

static void of_many_requests_a_bounded_number_is_shown(struct contract_world *w)
{
    char name[SHARE_NAME_BYTES];

    for (int i = 0; i < SHARE_REQUESTS_MAX + 3; i++) {
        (void)snprintf(name, sizeof(name), "request/%02d", i);
        assert_int_equal(contract_named(w, &w->a, SHARE_PUT, name, "x"), ERR_OK);
    }
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "request/pause", "p"), ERR_OK);
    assert_int_equal(scan(w, &w->b), ERR_OK);
    assert_int_equal(w->b.a.request_count, SHARE_REQUESTS_MAX);
    assert_string_equal(w->b.a.requests[0].name, "pause"); /* is never crowded out */
}

static void a_file_put_again_has_its_new_length(struct contract_world *w)
{
    char large[4000];

    memset(large, 'x', sizeof(large) - 1);
    large[sizeof(large) - 1] = '\0';
    assert_int_equal(contract_named(w, &w->a, SHARE_GET, "node/node-a", ""),
                     ERR_NOT_FOUND);
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "node/node-a", large), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_GET, "node/node-a", ""), ERR_OK);
    assert_true(str_is(w->b.a.body, large));
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "node/node-a", "short"), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_GET, "node/node-a", ""), ERR_OK);
    assert_true(str_is(w->b.a.body, "short"));
}

static void a_removed_file_is_gone_and_may_be_removed_again(struct contract_world *w)
{
    assert_int_equal(contract_named(w, &w->a, SHARE_PUT, "request/pause", "p"), ERR_OK);
    assert_int_equal(contract_named(w, &w->b, SHARE_REMOVE, "request/pause", ""), ERR_OK);
    assert_int_equal(contract_named(w, &w->a, SHARE_GET, "request/pause", ""),
                     ERR_NOT_FOUND);
    assert_int_equal(contract_named(w, &w->b, SHARE_REMOVE, "request/pause", ""), ERR_OK);
}

static void pruning_ends_and_keeps_what_is_newer(struct contract_world *w)
{
    for (uint64_t n = 1; n <= 25; n++)
        assert_int_equal(contract_claim(w, &w->a, n, "x"), ERR_OK);
    for (int i = 0; i < 25; i++) /* at least one record a call */
        assert_int_equal(
            contract_do(w, &w->a,
                        (struct share_request){ .op = SHARE_PRUNE, .epoch = 23 }),
            ERR_OK);
    assert_int_equal(contract_poll(w, &w->a, 23), ERR_OK);
    assert_true(w->a.a.top == 24);
    assert_int_equal(contract_poll(w, &w->a, 1), ERR_NOT_FOUND);
    assert_int_equal(contract_poll(w, &w->a, 25), ERR_OK);
    assert_true(w->a.a.top == 25);
}

static void a_number_with_many_digits_is_an_epoch(struct contract_world *w)
{
    uint64_t big = SHARE_EPOCH_MAX; /* the last: 9007199254740991 */

    assert_int_equal(contract_claim(w, &w->a, big, "big"), ERR_OK);
    assert_int_equal(scan(w, &w->b), ERR_OK);
    is_lease(&w->b, big, "big");
    assert_int_equal(contract_renew(w, &w->a, big, "bigger"), ERR_OK);
}

#define TEST(f)                                                                          \
    {                                                                                    \
#f, f                                                                            \
    }
const struct contract_test contract_tests[] = {
    TEST(an_empty_share_has_no_epoch),
    TEST(of_two_claims_the_first_wins),
    TEST(of_two_claims_at_once_exactly_one_wins),
    TEST(a_renewal_is_seen_at_once),
    TEST(a_new_epoch_is_seen_at_once),
    TEST(a_renewal_notices_the_next_epoch),
    TEST(a_record_of_another_is_not_rewritten),
    TEST(the_session_stays_while_the_connection_does),
    TEST(a_vanished_record_is_not_made_again),
    TEST(a_release_rewrites_the_record),
    TEST(a_poll_sees_the_successor_of_a_pruned_record),
    TEST(a_scan_shows_the_highest_epoch),
    TEST(a_scan_shows_everything),
    TEST(of_many_requests_a_bounded_number_is_shown),
    TEST(a_file_put_again_has_its_new_length),
    TEST(a_removed_file_is_gone_and_may_be_removed_again),
    TEST(pruning_ends_and_keeps_what_is_newer),
    TEST(a_number_with_many_digits_is_an_epoch),
};
const size_t contract_test_count = LEN(contract_tests);
