#include "app/server/gzip.h"

#include <zlib.h>

enum { WINDOW_GZIP = 15 + 16, MEMORY_SMALL = 8 };

static z_stream stream_of(struct str in, uint8_t *out, size_t size)
{
    return (z_stream){ .next_in = (Bytef *)(uintptr_t)in.p,
                       .avail_in = (uInt)in.n,
                       .next_out = out,
                       .avail_out = (uInt)size };
}

enum err gzip_open(struct str packed, uint8_t *out, size_t size, size_t *n)
{
    z_stream z = stream_of(packed, out, size);

    if (inflateInit2(&z, WINDOW_GZIP) != Z_OK)
        return ERR_MEMORY;
    int r = inflate(&z, Z_FINISH);
    size_t made = size - z.avail_out;
    bool full = z.avail_out == 0, rest = z.avail_in > 0;

    (void)inflateEnd(&z);
    if (r == Z_STREAM_END && !rest) {
        *n = made;
        return ERR_OK;
    }
    return r == Z_BUF_ERROR && full ? ERR_LIMIT : ERR_CORRUPT;
}

enum err gzip_pack(struct str plain, uint8_t *out, size_t size, size_t *n)
{
    z_stream z = stream_of(plain, out, size);

    if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, WINDOW_GZIP, MEMORY_SMALL,
                     Z_DEFAULT_STRATEGY) != Z_OK)
        return ERR_MEMORY;
    int r = deflate(&z, Z_FINISH);
    size_t made = size - z.avail_out;

    (void)deflateEnd(&z);
    if (r != Z_STREAM_END)
        return ERR_LIMIT;
    *n = made;
    return ERR_OK;
}
