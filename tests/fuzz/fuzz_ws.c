/*
 * Frames: however the bytes are cut into pieces, the events are the same, and every message
 * is within its limit and inside the buffer.
 */
#include "fuzz.h"
#include "wire/ws.h"

enum { MESSAGE_MAX = 300, EVENTS_MAX = 5000 };

struct seen {
    uint32_t count;
    uint64_t sum; /* of kinds, codes and content, in order */
    bool over;    /* a close or a failure was seen */
};

static void add(struct seen *s, uint64_t v)
{
    s->sum = (s->sum ^ v) * 0x100000001b3u;
}

static void take(struct seen *s, const struct ws_event *ev, const struct ws_in *w)
{
    s->count++;
    CHECK(s->count <= EVENTS_MAX);
    add(s, ev->kind);
    add(s, ev->code);
    if (ev->kind == WS_MESSAGE || ev->kind == WS_PING || ev->kind == WS_PONG) {
        CHECK(ev->data.n <= (ev->kind == WS_MESSAGE ? MESSAGE_MAX : WS_CONTROL_MAX));
        CHECK(ev->data.n == 0 ||
              ((const uint8_t *)ev->data.p >= w->buf &&
               (const uint8_t *)ev->data.p + ev->data.n <= w->buf + w->size));
        for (size_t i = 0; i < ev->data.n; i++)
            add(s, (uint8_t)ev->data.p[i]);
    }
    s->over = ev->kind == WS_CLOSE || ev->kind == WS_FAIL;
    CHECK(ev->kind != WS_FAIL || ev->reason);
}

/* Feeds the bytes in pieces of at most `piece`. */
static struct seen feed(const uint8_t *data, size_t size, size_t piece, bool from_client)
{
    uint8_t buf[WS_BUFFER(MESSAGE_MAX)];
    struct seen s = { .count = 0 };
    struct ws_in w;
    struct ws_event ev;
    uint8_t *to;

    ws_in_init(&w, buf, sizeof(buf), MESSAGE_MAX, from_client);
    while (size > 0 && !s.over) {
        size_t n = ws_space(&w, &to);

        CHECK(n > 0);
        n = n < piece ? n : piece;
        n = n < size ? n : size;
        memcpy(to, data, n);
        ws_filled(&w, n);
        data += n;
        size -= n;
        for (ws_pull(&w, &ev); ev.kind != WS_MORE; ws_pull(&w, &ev)) {
            take(&s, &ev, &w);
            if (s.over)
                break;
        }
    }
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    bool from_client = (data[0] & 1) != 0;
    struct seen whole = feed(data + 1, size - 1, SIZE_MAX, from_client);
    struct seen bytewise = feed(data + 1, size - 1, 1, from_client);

    CHECK(whole.count == bytewise.count && whole.sum == bytewise.sum);
    return 0;
}
