/* Paths of the API: pieces lie in the buffer in their order, none is empty, and what was
 * encoded again splits into the same. */
#include "fuzz.h"
#include "sys/http/http_server.h"

enum { SIZE = 512, PIECES = 6 };

static void encode(struct text *t, const char *piece)
{
    text_add(t, "/");
    for (; *piece; piece++)
        text_add(t, "%%%02x", (unsigned char)*piece);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char target[SIZE + 1], buf[SIZE], again[SIZE], encoded[4 * SIZE];
    const char *pieces[PIECES], *same[PIECES];
    struct text t;

    if (size > SIZE || memchr(data, 0, size))
        return 0; /* a target is a text */
    memcpy(target, data, size);
    target[size] = '\0';
    size_t n = http_path_split(target, buf, sizeof(buf), pieces, PIECES), used = 0;

    CHECK(n <= PIECES);
    text_init(&t, encoded, sizeof(encoded));
    for (size_t i = 0; i < n; i++) {
        CHECK(pieces[i] == buf + used && pieces[i][0] != '\0');
        used += strlen(pieces[i]) + 1;
        CHECK(used <= sizeof(buf));
        encode(&t, pieces[i]);
    }
    if (n == 0)
        return 0;
    CHECK(!t.cut);
    CHECK(http_path_split(encoded, again, sizeof(again), same, PIECES) == n);
    CHECK(memcmp(buf, again, used) == 0);
    return 0;
}
