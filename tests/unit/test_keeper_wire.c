/* What the daemon and its keeper say to each other survives the way, and nonsense does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sys/keeper/keeper_wire.h"

static char packet[KEEPER_WIRE_MAX];

static void a_request_arrives_as_it_was(void **state)
{
    const struct share_request rq = { .id = 7,
                                      .op = SHARE_RENEW,
                                      .epoch = UINT64_C(1) << 60,
                                      .name = "node-b",
                                      .self = "node-a",
                                      .body = STR("the body"),
                                      .will = STR("the will") };
    struct share_request out;

    (void)state;
    size_t n = keeper_wire_request(packet, &rq);
    assert_true(keeper_wire_read_request(&out, (struct str){ packet, n }));
    assert_int_equal(out.id, 7);
    assert_int_equal(out.op, SHARE_RENEW);
    assert_true(out.epoch == rq.epoch);
    assert_string_equal(out.name, "node-b");
    assert_string_equal(out.self, "node-a");
    assert_true(str_is(out.body, "the body"));
    assert_true(str_is(out.will, "the will"));
    for (size_t cut = 0; cut < n; cut++)
        assert_false(keeper_wire_read_request(&out, (struct str){ packet, cut }));
}

static size_t large_answer(struct share_answer *a)
{
    static char bytes[SHARE_NODE_BYTES];
    const struct keeper_news news = { .dialect = "3.1.1", .connections = 3 };

    memset(bytes, 'x', sizeof(bytes));
    *a = (struct share_answer){ .id = 9,
                                .top = 12,
                                .lease = { bytes, SHARE_LEASE_BYTES },
                                .cluster = { bytes, SHARE_REQUEST_BYTES },
                                .self = { bytes, sizeof(bytes) },
                                .peer = { bytes, sizeof(bytes) },
                                .request_count = SHARE_REQUESTS_MAX };
    for (uint32_t i = 0; i < SHARE_REQUESTS_MAX; i++) {
        (void)snprintf(a->requests[i].name, SHARE_NAME_BYTES, "r%u", i);
        a->requests[i].body = (struct str){ bytes, SHARE_REQUEST_BYTES };
    }
    return keeper_wire_answer(packet, a, &news);
}

static void the_largest_answer_arrives_as_it_was(void **state)
{
    struct share_answer a, out;
    struct keeper_news news;
    struct err_info why;
    size_t n = large_answer(&a);

    (void)state;
    assert_true(keeper_wire_read_answer(&out, &news, &why, (struct str){ packet, n }));
    assert_int_equal(out.id, 9);
    assert_null(out.why);
    assert_true(out.top == 12);
    assert_int_equal(out.lease.n, SHARE_LEASE_BYTES);
    assert_int_equal(out.peer.n, SHARE_NODE_BYTES);
    assert_int_equal(out.body.n, 0);
    assert_int_equal(out.request_count, SHARE_REQUESTS_MAX);
    assert_string_equal(out.requests[7].name, "r7");
    assert_int_equal(out.requests[7].body.n, SHARE_REQUEST_BYTES);
    assert_string_equal(news.dialect, "3.1.1");
    assert_int_equal(news.connections, 3);
    for (size_t cut = 0; cut < n; cut += 97)
        assert_false(
            keeper_wire_read_answer(&out, &news, &why, (struct str){ packet, cut }));
}

static void an_error_arrives_with_its_words(void **state)
{
    struct err_info why = { .sys_errno = 13, .what = "open epoch/1" }, got;
    const struct share_answer a = { .id = 1, .err = ERR_DENIED, .why = &why };
    const struct keeper_news news = { .connections = 0 };
    struct share_answer out;
    struct keeper_news n;

    (void)state;
    size_t size = keeper_wire_answer(packet, &a, &news);
    assert_true(keeper_wire_read_answer(&out, &n, &got, (struct str){ packet, size }));
    assert_int_equal(out.err, ERR_DENIED);
    assert_ptr_equal(out.why, &got);
    assert_int_equal(got.sys_errno, 13);
    assert_string_equal(got.what, "open epoch/1");
}

/* Whatever one damaged byte does, what is read lies within the packet. */
static void a_damaged_packet_never_points_outside(void **state)
{
    struct share_answer a, out;
    struct keeper_news news;
    struct err_info why;
    size_t n = large_answer(&a), head = 2048; /* more than the fixed part */

    (void)state;
    for (size_t i = 0; i < head; i++) {
        char was = packet[i];

        packet[i] = (char)0xff;
        if (keeper_wire_read_answer(&out, &news, &why, (struct str){ packet, n })) {
            const struct str all[] = { out.lease, out.cluster, out.self, out.peer,
                                       out.body };
            for (size_t k = 0; k < LEN(all); k++)
                assert_true(all[k].n == 0 ||
                            (all[k].p >= packet && all[k].p + all[k].n <= packet + n));
            assert_true(out.request_count <= SHARE_REQUESTS_MAX);
            assert_true((unsigned)out.err < ERR_COUNT);
        }
        packet[i] = was;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_arrives_as_it_was),
        cmocka_unit_test(the_largest_answer_arrives_as_it_was),
        cmocka_unit_test(an_error_arrives_with_its_words),
        cmocka_unit_test(a_damaged_packet_never_points_outside),
    };
    return cmocka_run_group_tests_name("keeper_wire", tests, NULL, NULL);
}
