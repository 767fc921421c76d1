#include "wire/uuid.h"

void uuid_format(char out[UUID_TEXT], const struct uuid *u)
{
    char hex[2 * UUID_BYTES + 1];
    size_t at = 0;

    hex_encode(hex, u->bytes, UUID_BYTES);
    for (size_t i = 0; i < 2 * UUID_BYTES; i++) {
        if (i == 8 || i == 12 || i == 16 || i == 20)
            out[at++] = '-';
        out[at++] = hex[i];
    }
    out[at] = '\0';
}

bool uuid_parse(struct uuid *out, struct str s)
{
    char hex[2 * UUID_BYTES];
    struct uuid u;
    size_t n = 0;

    if (s.n != UUID_TEXT - 1)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (s.p[i] != '-')
                return false;
        } else {
            hex[n++] = s.p[i];
        }
    }
    if (!hex_decode(u.bytes, UUID_BYTES, (struct str){ hex, n }))
        return false;
    *out = u;
    return true;
}

bool uuid_eq(const struct uuid *a, const struct uuid *b)
{
    return memcmp(a->bytes, b->bytes, UUID_BYTES) == 0;
}

void uuid_make(struct uuid *out, uint64_t unix_ms, const uint8_t random[10])
{
    for (size_t i = 0; i < 6; i++)
        out->bytes[i] = (uint8_t)(unix_ms >> (8 * (5 - i)));
    memcpy(out->bytes + 6, random, 10);
    out->bytes[6] = (uint8_t)((out->bytes[6] & 0x0f) | 0x70);
    out->bytes[8] = (uint8_t)((out->bytes[8] & 0x3f) | 0x80);
}

/* Length of the sequence that starts with this byte, and the bits it carries; 0 if none. */
static size_t sequence_of(uint8_t b, uint32_t *bits)
{
    if (b >= 0xc2 && b <= 0xdf) {
        *bits = b & 0x1fu;
        return 2;
    }
    if (b >= 0xe0 && b <= 0xef) {
        *bits = b & 0x0fu;
        return 3;
    }
    if (b >= 0xf0 && b <= 0xf4) {
        *bits = b & 0x07u;
        return 4;
    }
    return 0;
}

bool text_is_utf8(struct str s)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 };

    for (size_t i = 0; i < s.n;) {
        uint8_t b = (uint8_t)s.p[i];
        uint32_t code = 0;

        if (b == 0)
            return false;
        if (b < 0x80) {
            i++;
            continue;
        }
        size_t n = sequence_of(b, &code);
        if (n == 0 || n > s.n - i)
            return false;
        for (size_t k = 1; k < n; k++) {
            uint8_t c = (uint8_t)s.p[i + k];

            if ((c & 0xc0) != 0x80)
                return false;
            code = code << 6 | (c & 0x3fu);
        }
        if (code < least[n] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
            return false;
        i += n;
    }
    return true;
}
