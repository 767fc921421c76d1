/* Heads: everything found lies inside the head, and the head inside the bytes. */
#include "fuzz.h"
#include "wire/http_head.h"

static bool inside(struct str part, struct str all)
{
    return part.n == 0 || (part.p >= all.p && part.p + part.n <= all.p + all.n);
}

static void check_head(enum http_result r, const struct http_head *h, struct str in)
{
    struct str value;

    if (r == HTTP_MORE) {
        CHECK(in.n <= HTTP_HEAD_MAX);
        return;
    }
    if (r != HTTP_DONE)
        return;
    CHECK(h->size >= 4 && h->size <= in.n && h->size <= HTTP_HEAD_MAX);
    CHECK(memcmp(in.p + h->size - 4, "\r\n\r\n", 4) == 0);
    CHECK(h->count <= HTTP_HEADERS_MAX);
    struct str head = { in.p, h->size };

    CHECK(inside(h->method, head) && inside(h->target, head));
    for (uint32_t i = 0; i < h->count; i++) {
        CHECK(h->at[i].name.n > 0);
        CHECK(inside(h->at[i].name, head) && inside(h->at[i].value, head));
        CHECK(!memchr(h->at[i].name.p, ' ', h->at[i].name.n));
    }
    if (http_find(h, "Upgrade", &value))
        CHECK(inside(value, head));
    (void)http_has_token(h, "Connection", "upgrade"); /* only that it ends */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = { (const char *)data, size };
    struct http_head h;

    check_head(http_request(in, &h), &h, in);
    check_head(http_response(in, &h), &h, in);
    return 0;
}
