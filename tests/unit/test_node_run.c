/* node_run: other uses of the share take turns, and what cannot be read is not believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "run/node_run.h"

static struct {
    struct node_run run;
    struct share_request last;
    char name[SHARE_NAME_BYTES];
    uint32_t done;
    enum err done_err;
    size_t extra_n;
} w;

static void submit(void *impl, const struct share_request *rq)
{
    (void)impl;
    w.last = *rq;
    memcpy(w.name, rq->name, sizeof(w.name));
}

static void set(void *impl, enum service_want want, uint64_t epoch)
{
    (void)impl, (void)want, (void)epoch;
}
static void nothing(void *impl)
{
    (void)impl;
}
static void request(void *impl, uint32_t id)
{
    (void)impl, (void)id;
}
static void raise_to(void *impl, uint32_t id, uint64_t epoch)
{
    (void)impl, (void)id, (void)epoch;
}
static void extend(void *impl, uint64_t epoch, struct mono deadline)
{
    (void)impl, (void)epoch, (void)deadline;
}
static void moved(void *impl, const struct journal_move *m)
{
    (void)impl, (void)m;
}
static void remember(void *impl, uint64_t epoch, bool on)
{
    (void)impl, (void)epoch, (void)on;
}
static void answered(void *impl, uint32_t token, enum err e)
{
    (void)impl, (void)token, (void)e;
}
static size_t node_extra(void *impl, char *buf, size_t size)
{
    (void)impl;
    const size_t n = w.extra_n < size ? w.extra_n : size;

    memset(buf, ' ', n);
    return n;
}
static void scanned(void *impl, const struct share_answer *a)
{
    (void)impl, (void)a;
}
static void exited(void *impl, const char *why)
{
    (void)impl, (void)why;
}

static const struct share_ops share_ops = { submit };
static const struct services_ops services_ops = { set, nothing };
static const struct address_ops address_ops = { request, request };
static const struct fence_ops fence_ops = { raise_to };
static const struct hold_ops hold_ops = { extend, nothing };
static const struct journal_ops journal_ops = { moved,      remember, answered,
                                                node_extra, scanned,  exited };
static const struct mac_key key = { { 5 } };
static const struct mono now = { 9000000 };

static int begin(void **state)
{
    struct node_conf conf = { .self = "node-a",
                              .peer = "node-b",
                              .renew_ms = 100,
                              .hold_ms = 1000,
                              .margin_ms = 50,
                              .poll_ms = 20,
                              .scan_ms = 100,
                              .put_ms = 200 };
    const struct node_ports ports = { .share = { &share_ops, NULL },
                                      .services = { &services_ops, NULL },
                                      .address = { &address_ops, NULL },
                                      .fence = { &fence_ops, NULL },
                                      .hold = { &hold_ops, NULL },
                                      .journal = { &journal_ops, NULL } };

    (void)state;
    memset(&w, 0, sizeof(w));
    record_cluster_id(conf.cluster, &key);
    node_run_init(&w.run, &conf, &key, &ports, 0, false);
    node_run_simple(&w.run, NODE_EV_START, now);
    return w.last.op == SHARE_SCAN ? 0 : 1;
}

static void answer(enum err e)
{
    const struct share_answer a = { .id = w.last.id, .err = e };

    node_run_share(&w.run, now, &a);
}

static void done(void *arg, const struct share_answer *a)
{
    *(uint32_t *)arg += 1;
    w.done_err = a->err;
}

static void other_uses_take_turns_and_are_bounded(void **state)
{
    (void)state;
    struct node_aux aux = { .op = SHARE_GET, .done = done, .arg = &w.done };

    for (uint32_t i = 0; i < NODE_AUX_MAX; i++) {
        aux.name[0] = (char)('a' + i);
        aux.done = i == 1 ? NULL : done;
        assert_int_equal(node_run_aux(&w.run, now, &aux), ERR_OK);
    }
    assert_int_equal(node_run_aux(&w.run, now, &aux), ERR_LIMIT);
    for (uint32_t i = 0, k = 0; k < 30 && i < NODE_AUX_MAX; k++) {
        const bool is_aux = w.last.op == SHARE_GET && w.name[0] == (char)('a' + i);

        answer(is_aux ? ERR_NOT_FOUND : ERR_IO);
        i += is_aux;
    }
    assert_int_equal(w.done, NODE_AUX_MAX - 1);
    assert_int_equal(w.done_err, ERR_NOT_FOUND);
    assert_int_equal(w.run.aux_count, 0);
}

static enum err scan_with(struct str cluster, struct str lease)
{
    const struct share_answer a = {
        .id = w.last.id, .top = 3, .cluster = cluster, .lease = lease
    };

    assert_int_equal(w.last.op, SHARE_SCAN);
    node_run_share(&w.run, now, &a);
    return w.run.node.seen.known ? w.run.node.seen.lease_err : ERR_NOT_FOUND;
}

static void a_share_without_the_file_of_the_cluster_says_nothing(void **state)
{
    (void)state;
    assert_int_equal(scan_with(STR(""), STR("")), ERR_NOT_FOUND);
}

static void a_file_of_the_cluster_that_does_not_verify_is_foreign(void **state)
{
    (void)state;
    assert_int_equal(scan_with(STR("nonsense"), STR("")), ERR_FOREIGN);
    assert_true(node_obstacles(&w.run.node) & NODE_OB_RECORD);
}

static void one_that_is_too_long_is_foreign(void **state)
{
    static char large[SHARE_REQUEST_BYTES + 1];

    (void)state;
    assert_int_equal(scan_with((struct str){ large, sizeof(large) }, STR("")),
                     ERR_FOREIGN);
}

static void a_lease_record_that_is_too_long_is_corrupt(void **state)
{
    static char large[RECORD_LEASE_BYTES + 1];
    char body[256], sealed[512];
    struct text t;
    size_t n;

    (void)state;
    text_init(&t, body, sizeof(body));
    text_add(&t, "{\"v\":1,\"cluster\":\"%s\"}", w.run.node.conf.cluster);
    assert_int_equal(record_seal(sealed, sizeof(sealed), &n, &key, STR("cluster"),
                                 (struct str){ body, t.n }),
                     ERR_OK);
    assert_int_equal(
        scan_with((struct str){ sealed, n }, (struct str){ large, sizeof(large) }),
        ERR_CORRUPT);
}

static void a_node_record_goes_without_what_does_not_fit(void **state)
{
    struct node_rec rec;

    (void)state;
    w.extra_n = SHARE_NODE_BYTES;
    for (int k = 0; k < 5 && w.last.op != SHARE_PUT; k++)
        answer(ERR_IO);
    assert_int_equal(w.last.op, SHARE_PUT);
    assert_string_equal(w.name, "node/node-a");
    assert_int_equal(
        node_rec_decode(&rec, &key, w.run.node.conf.cluster, "node-a", w.last.body),
        ERR_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(other_uses_take_turns_and_are_bounded, begin),
        cmocka_unit_test_setup(a_share_without_the_file_of_the_cluster_says_nothing,
                               begin),
        cmocka_unit_test_setup(a_file_of_the_cluster_that_does_not_verify_is_foreign,
                               begin),
        cmocka_unit_test_setup(one_that_is_too_long_is_foreign, begin),
        cmocka_unit_test_setup(a_lease_record_that_is_too_long_is_corrupt, begin),
        cmocka_unit_test_setup(a_node_record_goes_without_what_does_not_fit, begin),
    };

    if (mac_start() != ERR_OK)
        return 1;
    return cmocka_run_group_tests_name("node_run", tests, NULL, NULL);
}
