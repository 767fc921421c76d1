#include "wire/pb.h"

enum { FIELD_NUMBER_MAX = (1 << 29) - 1, VARINT_MAX = 10 };

void pb_init(struct pb *r, struct str bytes)
{
    *r = (struct pb){ .p = (const uint8_t *)bytes.p, .n = bytes.n };
}

size_t pb_varint_at(struct str bytes, uint64_t *out)
{
    uint64_t v = 0;

    for (size_t i = 0; i < bytes.n && i < VARINT_MAX; i++) {
        uint8_t b = (uint8_t)bytes.p[i];

        if (i == VARINT_MAX - 1 && b > 1)
            return 0; /* more than 64 bits */
        v |= (uint64_t)(b & 0x7f) << (7 * i);
        if (!(b & 0x80)) {
            *out = v;
            return i + 1;
        }
    }
    return 0;
}

static bool bad(struct pb *r)
{
    r->bad = true;
    return false;
}

static struct str rest(const struct pb *r)
{
    return (struct str){ (const char *)r->p + r->at, r->n - r->at };
}

static bool take_varint(struct pb *r, uint64_t *out)
{
    size_t n = pb_varint_at(rest(r), out);

    r->at += n;
    return n > 0 || bad(r);
}

static bool take_fixed(struct pb *r, size_t size, uint64_t *out)
{
    uint64_t v = 0;

    if (r->n - r->at < size)
        return bad(r);
    for (size_t i = 0; i < size; i++)
        v |= (uint64_t)r->p[r->at + i] << (8 * i);
    r->at += size;
    *out = v;
    return true;
}

static bool take_bytes(struct pb *r, struct str *out)
{
    uint64_t n = 0;

    if (!take_varint(r, &n))
        return false;
    if (n > r->n - r->at)
        return bad(r);
    *out = (struct str){ (const char *)r->p + r->at, (size_t)n };
    r->at += (size_t)n;
    return true;
}

bool pb_next(struct pb *r, struct pb_field *out)
{
    struct pb_field f = { 0 };
    uint64_t tag = 0;

    if (r->bad || r->at == r->n)
        return false;
    if (r->fields++ >= PB_FIELDS_MAX) {
        r->over = true;
        return bad(r);
    }
    if (!take_varint(r, &tag))
        return false;
    if (tag >> 3 == 0 || tag >> 3 > FIELD_NUMBER_MAX)
        return bad(r);
    f.number = (uint32_t)(tag >> 3);
    bool ok = false;
    switch (tag & 7) {
    case PB_VARINT:
        f.wire = PB_VARINT;
        ok = take_varint(r, &f.value);
        break;
    case PB_FIXED64:
        f.wire = PB_FIXED64;
        ok = take_fixed(r, 8, &f.value);
        break;
    case PB_BYTES:
        f.wire = PB_BYTES;
        ok = take_bytes(r, &f.bytes);
        break;
    case PB_FIXED32:
        f.wire = PB_FIXED32;
        ok = take_fixed(r, 4, &f.value);
        break;
    default: ok = bad(r);
    }
    if (ok)
        *out = f;
    return ok;
}

uint64_t pb_varint(struct pb *r, const struct pb_field *f)
{
    if (f->wire != PB_VARINT)
        r->bad = true;
    return r->bad ? 0 : f->value;
}

uint64_t pb_fixed64(struct pb *r, const struct pb_field *f)
{
    if (f->wire != PB_FIXED64)
        r->bad = true;
    return r->bad ? 0 : f->value;
}

struct str pb_bytes(struct pb *r, const struct pb_field *f)
{
    if (f->wire != PB_BYTES)
        r->bad = true;
    return r->bad ? STR("") : f->bytes;
}

void pb_out_init(struct pb_out *w, uint8_t *buf, size_t size)
{
    *w = (struct pb_out){ .p = buf, .size = size };
}

static void put(struct pb_out *w, const void *bytes, size_t n)
{
    if (w->full || n > w->size - w->n) {
        w->full = true;
        return;
    }
    if (n > 0)
        memcpy(w->p + w->n, bytes, n);
    w->n += n;
}

static size_t varint_encode(uint8_t out[VARINT_MAX], uint64_t v)
{
    size_t n = 0;

    for (; v >= 0x80; v >>= 7)
        out[n++] = (uint8_t)(v | 0x80);
    out[n++] = (uint8_t)v;
    return n;
}

static void put_raw_varint(struct pb_out *w, uint64_t v)
{
    uint8_t b[VARINT_MAX];

    put(w, b, varint_encode(b, v));
}

static void put_tag(struct pb_out *w, uint32_t number, enum pb_wire wire)
{
    CHECK(number > 0 && number <= FIELD_NUMBER_MAX);
    put_raw_varint(w, (uint64_t)number << 3 | (uint64_t)wire);
}

void pb_put_varint(struct pb_out *w, uint32_t number, uint64_t v)
{
    put_tag(w, number, PB_VARINT);
    put_raw_varint(w, v);
}

void pb_put_fixed64(struct pb_out *w, uint32_t number, uint64_t v)
{
    uint8_t b[8];

    for (size_t i = 0; i < sizeof(b); i++)
        b[i] = (uint8_t)(v >> (8 * i));
    put_tag(w, number, PB_FIXED64);
    put(w, b, sizeof(b));
}

void pb_put_bytes(struct pb_out *w, uint32_t number, struct str bytes)
{
    put_tag(w, number, PB_BYTES);
    put_raw_varint(w, bytes.n);
    put(w, bytes.p, bytes.n);
}

size_t pb_open(struct pb_out *w, uint32_t number)
{
    put_tag(w, number, PB_BYTES);
    return w->n;
}

/* The length goes in front of what was written since: move it up by the varint's size. */
void pb_close(struct pb_out *w, size_t mark)
{
    uint8_t b[VARINT_MAX];

    if (w->full)
        return;
    CHECK(mark <= w->n);
    size_t body = w->n - mark, n = varint_encode(b, body);
    if (n > w->size - w->n) {
        w->full = true;
        return;
    }
    memmove(w->p + mark + n, w->p + mark, body);
    memcpy(w->p + mark, b, n);
    w->n += n;
}
