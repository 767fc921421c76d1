/* Heads of HTTP requests and responses: what is accepted, and what is not guessed at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/http_head.h"

static void an_upgrade_request_is_read(void **state)
{
    (void)state;
    static const char text[] = "GET /v1/opamp HTTP/1.1\r\nHost: a\r\n"
                               "Connection: keep-alive, Upgrade\r\nUPGRADE:websocket \r\n"
                               "\r\nrest";
    struct http_head h;
    struct str v;

    for (size_t n = 0; n < sizeof(text) - 5; n++)
        assert_int_equal(http_request((struct str){ text, n }, &h), HTTP_MORE);
    assert_int_equal(http_request(str_of(text), &h), HTTP_DONE);
    assert_int_equal(h.size, sizeof(text) - 5);
    assert_true(str_is(h.method, "GET"));
    assert_true(str_is(h.target, "/v1/opamp"));
    assert_true(http_has_token(&h, "connection", "upgrade"));
    assert_true(http_has_token(&h, "Upgrade", "WebSocket"));
    assert_false(http_has_token(&h, "connection", "up"));
    assert_true(http_find(&h, "host", &v) && str_is(v, "a"));
    assert_false(http_find(&h, "origin", &v));
}

static void a_header_given_twice_is_not_found(void **state)
{
    (void)state;
    struct http_head h;
    struct str v = STR("untouched");

    assert_int_equal(http_request(STR("GET / HTTP/1.1\r\nA: 1\r\na: 2\r\n\r\n"), &h),
                     HTTP_DONE);
    assert_false(http_find(&h, "A", &v));
}

static void limits_are_kept(void **state)
{
    (void)state;
    static char big[HTTP_HEAD_MAX + 10];
    struct http_head h;
    struct text t;

    text_init(&t, big, sizeof(big));
    text_add(&t, "GET / HTTP/1.1\r\n");
    for (int i = 0; i <= HTTP_HEADERS_MAX; i++)
        text_add(&t, "a: b\r\n");
    text_add(&t, "\r\n");
    assert_int_equal(http_request((struct str){ big, t.n }, &h), HTTP_TOO_BIG);
    memset(big, 'a', sizeof(big));
    assert_int_equal(http_request((struct str){ big, HTTP_HEAD_MAX - 1 }, &h), HTTP_MORE);
    assert_int_equal(http_request((struct str){ big, HTTP_HEAD_MAX }, &h), HTTP_TOO_BIG);
}

static void a_response_is_read(void **state)
{
    (void)state;
    struct http_head h;

    assert_int_equal(http_response(STR("HTTP/1.1 101 Switching Protocols\r\n\r\n"), &h),
                     HTTP_DONE);
    assert_int_equal(h.status, 101);
    assert_int_equal(http_response(STR("HTTP/1.1 200\r\n\r\n"), &h), HTTP_DONE);
    assert_int_equal(http_response(STR("HTTP/1.1 2000 x\r\n\r\n"), &h), HTTP_BAD);
    assert_int_equal(http_response(STR("HTTP/1.1 099 x\r\n\r\n"), &h), HTTP_BAD);
    assert_int_equal(http_response(STR("HTTP/1.0 200 x\r\n\r\n"), &h), HTTP_BAD);
    assert_int_equal(http_response(STR("x\r\n\r\n"), &h), HTTP_BAD);
}

static const char *const bad[] = {
    "GET /\r\n\r\n",
    "GET  / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "G@T / HTTP/1.1\r\n\r\n",
    "GET /\x01 HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nname : v\r\n\r\n",
    "GET / HTTP/1.1\r\n: v\r\n\r\n",
    "GET / HTTP/1.1\r\n folded: v\r\n\r\n",
    "GET / HTTP/1.1\r\nno colon\r\n\r\n",
    "GET / HTTP/1.1\r\na: \x01\r\n\r\n",
    "GET / HTTP/1.1\na: b\r\n\r\n",
    "\r\n\r\n",
};

static void malformed_heads_are_refused(void **state)
{
    (void)state;
    struct http_head h;

    for (size_t i = 0; i < LEN(bad); i++)
        if (http_request(str_of(bad[i]), &h) != HTTP_BAD)
            fail_msg("accepted: %s", bad[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_upgrade_request_is_read),
        cmocka_unit_test(a_header_given_twice_is_not_found),
        cmocka_unit_test(limits_are_kept),
        cmocka_unit_test(a_response_is_read),
        cmocka_unit_test(malformed_heads_are_refused),
    };

    return cmocka_run_group_tests_name("http_head", tests, NULL, NULL);
}
