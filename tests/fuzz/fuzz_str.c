/* Views, numbers, hex and bounded text hold for any bytes. */
#include "base/str.h"
#include "fuzz.h"

/* A number that is accepted has at most 20 digits and nothing else, and keeps its value. */
static void check_number(struct str in)
{
    uint64_t v = 0;
    char back[24];

    if (!str_u64(in, UINT64_MAX, &v))
        return;
    (void)snprintf(back, sizeof(back), "%llu", (unsigned long long)v);
    struct str digits = in;
    while (digits.n > 1 && digits.p[0] == '0') {
        digits.p++;
        digits.n--;
    }
    CHECK(str_is(digits, back));
    CHECK(v == 0 || !str_u64(in, v - 1, &v));
}

static void check_hex(struct str in)
{
    uint8_t bytes[64];
    char text[2 * sizeof(bytes) + 1];

    if (in.n / 2 > sizeof(bytes) || !hex_decode(bytes, in.n / 2, in))
        return;
    CHECK(in.n % 2 == 0);
    hex_encode(text, bytes, in.n / 2);
    for (size_t i = 0; i < in.n; i++) {
        char c = in.p[i];
        CHECK(text[i] == (char)(c >= 'A' && c <= 'F' ? c + ('a' - 'A') : c));
    }
}

static void check_text(struct str in)
{
    char small[16], copy[16];
    struct text t;

    text_init(&t, small, sizeof(small));
    text_bytes(&t, in);
    CHECK(t.n < sizeof(small) && small[t.n] == '\0');
    CHECK(t.cut == (in.n > sizeof(small) - 1));
    if (str_copy(copy, sizeof(copy), in))
        CHECK(str_is(in, copy));
    else
        CHECK(copy[0] == '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = { (const char *)data, size };

    check_number(in);
    check_hex(in);
    check_text(in);
    CHECK(str_starts(in, (struct str){ in.p, size / 2 }));
    return 0;
}
