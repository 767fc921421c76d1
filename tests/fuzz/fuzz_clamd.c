/* Replies of clamd: taken one by one, inside the bytes, always forward. */
#include "fuzz.h"
#include "wire/clamd.h"

static void check_text(struct str text)
{
    struct clamd_version v;
    struct clamd_stats s;
    struct clamd_verdict verdict;

    (void)clamd_is_pong(text); /* only that it reads no further */
    if (clamd_version(text, &v) == ERR_OK) {
        CHECK(memchr(v.engine, '\0', sizeof(v.engine)));
        CHECK(memchr(v.built, '\0', sizeof(v.built)));
    }
    if (clamd_verdict(text, &verdict) == ERR_OK)
        CHECK(memchr(verdict.text, '\0', sizeof(verdict.text)));
    clamd_stats(text, &s);
    CHECK(memchr(s.state, '\0', sizeof(s.state)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str rest = { (const char *)data, size };
    struct clamd_reply reply;
    size_t used;

    check_text(rest);
    while (clamd_reply(rest, &reply, &used) == ERR_OK && used > 0) {
        CHECK(used <= rest.n && reply.text.n < used);
        check_text(reply.text);
        rest.p += used;
        rest.n -= used;
    }
    return 0;
}
