#include "wire/ws.h"

#include "wire/uuid.h"

struct head {
    bool fin;
    uint8_t op;
    size_t size; /* of the header */
    uint64_t n;  /* of the payload */
    uint8_t mask[4];
};

void ws_in_init(struct ws_in *w, uint8_t *buf, size_t size, size_t message_max,
                bool from_client)
{
    CHECK(size >= WS_BUFFER(message_max));
    *w = (struct ws_in){
        .buf = buf, .size = size, .message_max = message_max, .from_client = from_client
    };
}

size_t ws_space(struct ws_in *w, uint8_t **out)
{
    CHECK(w->whole <= w->at && w->at <= w->n);
    if (w->at > w->whole) {
        memmove(w->buf + w->whole, w->buf + w->at, w->n - w->at);
        w->n -= w->at - w->whole;
        w->at = w->whole;
    }
    *out = w->buf + w->n;
    return w->size - w->n;
}

void ws_filled(struct ws_in *w, size_t n)
{
    CHECK(n <= w->size - w->n);
    w->n += n;
}

static void fail(struct ws_event *out, enum ws_close_code code, const char *reason)
{
    *out = (struct ws_event){ .kind = WS_FAIL, .code = (uint16_t)code, .reason = reason };
}

/* The first two bytes say what is allowed; NULL if they are fine. */
static const char *head_wrong(const struct ws_in *w, const uint8_t *p)
{
    uint8_t op = p[0] & 0x0f;
    bool control = op & 0x08;

    if (p[0] & 0x70)
        return "reserved bits without an extension";
    if ((op > WS_OP_BINARY && op < WS_OP_CLOSE) || op > WS_OP_PONG)
        return "unknown opcode";
    if (((p[1] & 0x80) != 0) != w->from_client)
        return w->from_client ? "frame of a client without mask" : "masked server frame";
    if (control && (!(p[0] & 0x80) || (p[1] & 0x7f) > WS_CONTROL_MAX))
        return "control frame fragmented or too long";
    if (op == WS_OP_CONTINUE && !w->fragmented)
        return "continuation of nothing";
    if (!control && op != WS_OP_CONTINUE && w->fragmented)
        return "new message inside a fragmented one";
    return NULL;
}

/* Reads the header at w->at.  Returns true when it is whole and right. */
static bool head_read(const struct ws_in *w, struct head *h, struct ws_event *out)
{
    const uint8_t *p = w->buf + w->at;
    size_t have = w->n - w->at;

    *out = (struct ws_event){ .kind = WS_MORE };
    if (have < 2)
        return false;
    const char *wrong = head_wrong(w, p);
    if (wrong) {
        fail(out, WS_CLOSE_PROTOCOL, wrong);
        return false;
    }
    size_t extra = (p[1] & 0x7f) == 126 ? 2 : (p[1] & 0x7f) == 127 ? 8 : 0;
    size_t mask = w->from_client ? 4 : 0;
    *h = (struct head){ .fin = p[0] & 0x80, .op = p[0] & 0x0f, .n = p[1] & 0x7fu };
    h->size = 2 + extra + mask;
    if (have < h->size)
        return false;
    if (extra > 0) {
        h->n = 0;
        for (size_t i = 0; i < extra; i++)
            h->n = h->n << 8 | p[2 + i];
        if (h->n < (extra == 2 ? 126u : 65536u) || h->n >> 63) {
            fail(out, WS_CLOSE_PROTOCOL, "length not in its shortest form");
            return false;
        }
    }
    memcpy(h->mask, p + 2 + extra, mask);
    return true;
}

static void close_frame(struct ws_event *out, struct str payload)
{
    const uint8_t *p = (const uint8_t *)payload.p;

    if (payload.n == 0) {
        *out = (struct ws_event){ .kind = WS_CLOSE, .code = WS_CLOSE_NONE };
        return;
    }
    uint16_t code = payload.n < 2 ? 0 : (uint16_t)(p[0] << 8 | p[1]);
    bool known =
        (code >= 1000 && code <= 1014 && code != 1004 && code != 1005 && code != 1006) ||
        (code >= 3000 && code <= 4999);
    if (!known)
        fail(out, WS_CLOSE_PROTOCOL, "close frame with a wrong code");
    else if (!text_is_utf8((struct str){ payload.p + 2, payload.n - 2 }))
        fail(out, WS_CLOSE_PROTOCOL, "close frame with a reason that is not text");
    else
        *out = (struct ws_event){ .kind = WS_CLOSE,
                                  .code = code,
                                  .data = { payload.p + 2, payload.n - 2 } };
}

static void control_frame(struct ws_event *out, uint8_t op, struct str payload)
{
    if (op == WS_OP_CLOSE)
        close_frame(out, payload);
    else
        *out = (struct ws_event){ .kind = op == WS_OP_PING ? WS_PING : WS_PONG,
                                  .data = payload };
}

/* A frame of a data message: true if it completes the message, which is then in *out. */
static bool data_frame(struct ws_in *w, const struct head *h, uint8_t *p,
                       struct ws_event *out)
{
    size_t n = (size_t)h->n;

    if (h->fin && !w->fragmented) {
        *out = (struct ws_event){ .kind = WS_MESSAGE, .data = { (char *)p, n } };
        return true;
    }
    memmove(w->buf + w->whole, p, n);
    w->whole += n;
    w->fragmented = !h->fin;
    if (!h->fin)
        return false;
    *out = (struct ws_event){ .kind = WS_MESSAGE, .data = { (char *)w->buf, w->whole } };
    w->whole = 0; /* the bytes stay until ws_space moves others over them */
    return true;
}

void ws_pull(struct ws_in *w, struct ws_event *out)
{
    struct head h;

    while (head_read(w, &h, out)) {
        if (h.op == WS_OP_TEXT) {
            fail(out, WS_CLOSE_UNSUPPORTED, "text message where binary is spoken");
            return;
        }
        if (!(h.op & 0x08) && h.n > w->message_max - w->whole) {
            fail(out, WS_CLOSE_TOO_BIG, "message too big");
            return;
        }
        if (h.n > w->n - w->at - h.size)
            return; /* WS_MORE */
        uint8_t *p = w->buf + w->at + h.size;
        if (w->from_client)
            ws_mask(p, (size_t)h.n, h.mask);
        w->at += h.size + (size_t)h.n;
        if (h.op & 0x08) {
            control_frame(out, h.op, (struct str){ (char *)p, (size_t)h.n });
            return;
        }
        if (data_frame(w, &h, p, out))
            return;
    }
}

size_t ws_frame(uint8_t out[WS_HEADER_MAX], enum ws_opcode op, size_t n,
                const uint8_t *mask)
{
    size_t extra = n < 126 ? 0 : n < 65536 ? 2 : 8;

    out[0] = (uint8_t)(0x80 | op);
    out[1] = (uint8_t)((mask ? 0x80 : 0) | (extra == 0 ? n : extra == 2 ? 126 : 127));
    for (size_t i = 0; i < extra; i++)
        out[2 + i] = (uint8_t)((uint64_t)n >> (8 * (extra - 1 - i)));
    if (mask)
        memcpy(out + 2 + extra, mask, 4);
    return 2 + extra + (mask ? 4 : 0);
}

void ws_mask(uint8_t *p, size_t n, const uint8_t mask[4])
{
    for (size_t i = 0; i < n; i++)
        p[i] ^= mask[i & 3];
}
