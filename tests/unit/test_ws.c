/* WebSocket frames: what is put together, what is refused and with which close code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/ws.h"

enum { MAX = 300 };

struct fixture {
    struct ws_in in;
    uint8_t buf[WS_BUFFER(MAX)];
};

static void feed(struct fixture *f, const void *bytes, size_t n)
{
    uint8_t *to;

    assert_true(ws_space(&f->in, &to) >= n);
    memcpy(to, bytes, n);
    ws_filled(&f->in, n);
}

static struct ws_event pull(struct fixture *f)
{
    struct ws_event ev;

    ws_pull(&f->in, &ev);
    return ev;
}

/* A masked frame as a client sends it. */
static size_t client_frame(uint8_t *out, uint8_t first, const void *payload, size_t n)
{
    static const uint8_t mask[4] = { 1, 2, 3, 4 };
    size_t head = ws_frame(out, WS_OP_BINARY, n, mask);

    out[0] = first;
    if (n > 0)
        memcpy(out + head, payload, n);
    ws_mask(out + head, n, mask);
    return head + n;
}

static void init(struct fixture *f, bool from_client)
{
    ws_in_init(&f->in, f->buf, sizeof(f->buf), MAX, from_client);
}

static void a_message_arrives_byte_by_byte(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t frame[MAX + WS_HEADER_MAX], payload[MAX];

    memset(payload, 'x', sizeof(payload));
    init(&f, true);
    size_t n = client_frame(frame, 0x82, payload, MAX);
    for (size_t i = 0; i + 1 < n; i++) {
        feed(&f, frame + i, 1);
        assert_int_equal(pull(&f).kind, WS_MORE);
    }
    feed(&f, frame + n - 1, 1);
    struct ws_event ev = pull(&f);
    assert_int_equal(ev.kind, WS_MESSAGE);
    assert_int_equal(ev.data.n, MAX);
    assert_memory_equal(ev.data.p, payload, MAX);
    assert_int_equal(pull(&f).kind, WS_MORE);
}

static void fragments_join_around_a_ping(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t frame[64];

    init(&f, true);
    feed(&f, frame, client_frame(frame, 0x02, "one ", 4));
    feed(&f, frame, client_frame(frame, 0x89, "p", 1));
    feed(&f, frame, client_frame(frame, 0x00, "two ", 4));
    struct ws_event ev = pull(&f);
    assert_int_equal(ev.kind, WS_PING);
    assert_true(str_is(ev.data, "p"));
    assert_int_equal(pull(&f).kind, WS_MORE);
    feed(&f, frame, client_frame(frame, 0x80, "three", 5));
    feed(&f, frame, client_frame(frame, 0x82, "next", 4));
    ev = pull(&f);
    assert_int_equal(ev.kind, WS_MESSAGE);
    assert_true(str_is(ev.data, "one two three"));
    ev = pull(&f);
    assert_int_equal(ev.kind, WS_MESSAGE);
    assert_true(str_is(ev.data, "next"));
}

static void fragments_do_not_pass_the_limit(void **state)
{
    (void)state;
    struct fixture f;
    uint8_t frame[MAX], payload[MAX] = { 0 };

    init(&f, true);
    feed(&f, frame, client_frame(frame, 0x02, payload, 200));
    assert_int_equal(pull(&f).kind, WS_MORE);
    feed(&f, frame, client_frame(frame, 0x00, payload, 101));
    struct ws_event ev = pull(&f);
    assert_int_equal(ev.kind, WS_FAIL);
    assert_int_equal(ev.code, WS_CLOSE_TOO_BIG);
}

static const struct row {
    const char *name;
    const char *bytes;
    size_t n;
    bool from_client;
    enum ws_kind kind;
    uint16_t code;
} rows[] = {
#define ROW(bytes) bytes, sizeof(bytes) - 1
    { "a client must mask", ROW("\x82\x00"), true, WS_FAIL, 1002 },
    { "a server must not", ROW("\x82\x80\0\0\0\0"), false, WS_FAIL, 1002 },
    { "reserved bits are refused", ROW("\xc2\x00"), false, WS_FAIL, 1002 },
    { "unknown opcodes are refused", ROW("\x83\x00"), false, WS_FAIL, 1002 },
    { "unknown control opcodes are refused", ROW("\x8b\x00"), false, WS_FAIL, 1002 },
    { "text is refused", ROW("\x81\x00"), false, WS_FAIL, 1003 },
    { "a ping is not fragmented", ROW("\x09\x00"), false, WS_FAIL, 1002 },
    { "a ping has at most 125 bytes", ROW("\x89\x7e"), false, WS_FAIL, 1002 },
    { "nothing to continue", ROW("\x80\x00"), false, WS_FAIL, 1002 },
    { "a new message inside another", ROW("\x02\x01x\x82\x00"), false, WS_FAIL, 1002 },
    { "16 bits only when needed", ROW("\x82\x7e\x00\x7d"), false, WS_FAIL, 1002 },
    { "64 bits only when needed", ROW("\x82\x7f\0\0\0\0\0\0\xff\xff"), false, WS_FAIL,
      1002 },
    { "no negative length", ROW("\x82\x7f\x80\0\0\0\0\0\0\0"), false, WS_FAIL, 1002 },
    { "one byte too many", ROW("\x82\x7e\x01\x2d"), false, WS_FAIL, 1009 },
    { "a huge length", ROW("\x82\x7f\x7f\0\0\0\0\0\0\0"), false, WS_FAIL, 1009 },
    { "close without a code", ROW("\x88\x00"), false, WS_CLOSE, 1005 },
    { "close with a code", ROW("\x88\x02\x03\xe9"), false, WS_CLOSE, 1001 },
    { "close with words", ROW("\x88\x05\x03\xf0why"), false, WS_CLOSE, 1008 },
    { "close with words that are no text", ROW("\x88\x04\x03\xf0\xff\xfe"), false,
      WS_FAIL, 1002 },
    { "close with half a code", ROW("\x88\x01\x03"), false, WS_FAIL, 1002 },
    { "close with a reserved code", ROW("\x88\x02\x03\xed"), false, WS_FAIL, 1002 },
    { "an empty message", ROW("\x82\x00"), false, WS_MESSAGE, 0 },
    { "half a header", ROW("\x82"), false, WS_MORE, 0 },
    { "half a long header", ROW("\x82\x7e\x01"), false, WS_MORE, 0 },
#undef ROW
};

static void row_holds(void **state)
{
    const struct row *row = *state;
    struct fixture f;

    init(&f, row->from_client);
    feed(&f, row->bytes, row->n);
    struct ws_event ev = pull(&f);
    assert_int_equal(ev.kind, row->kind);
    assert_int_equal(ev.code, row->code);
    if (ev.kind == WS_FAIL)
        assert_non_null(ev.reason);
}

static void headers_take_the_shortest_length(void **state)
{
    (void)state;
    uint8_t h[WS_HEADER_MAX];

    assert_int_equal(ws_frame(h, WS_OP_PING, 125, NULL), 2);
    assert_int_equal(ws_frame(h, WS_OP_BINARY, 126, NULL), 4);
    assert_int_equal(h[2] << 8 | h[3], 126);
    assert_int_equal(ws_frame(h, WS_OP_BINARY, 65535, NULL), 4);
    assert_int_equal(ws_frame(h, WS_OP_BINARY, 65536, NULL), 10);
    assert_int_equal(h[7], 1);
}

int main(void)
{
    struct CMUnitTest tests[LEN(rows) + 4] = {
        cmocka_unit_test(a_message_arrives_byte_by_byte),
        cmocka_unit_test(fragments_join_around_a_ping),
        cmocka_unit_test(fragments_do_not_pass_the_limit),
        cmocka_unit_test(headers_take_the_shortest_length),
    };

    for (size_t i = 0; i < LEN(rows); i++)
        tests[4 + i] =
            (struct CMUnitTest){ .name = rows[i].name,
                                 .test_func = row_holds,
                                 .initial_state = (void *)(uintptr_t)&rows[i] };
    return cmocka_run_group_tests_name("ws", tests, NULL, NULL);
}
