#include "sys/cvd/cvd_inner.h"

enum { BLOCK = CVD_HEADER, LOOK_MAX = 64 * 1024 * 1024, SIZE_AT = 124, SIZE_LENGTH = 12 };

enum err cvd_inner_init(struct cvd_inner *i, const char *name)
{
    *i = (struct cvd_inner){ 0 };
    (void)snprintf(i->wanted, sizeof(i->wanted), "%s.info", name);
    if (inflateInit2(&i->z, 16 + MAX_WBITS) != Z_OK)
        return ERR_MEMORY;
    i->z.next_out = i->block;
    i->z.avail_out = BLOCK;
    return ERR_OK;
}

void cvd_inner_release(struct cvd_inner *i)
{
    (void)inflateEnd(&i->z); /* of what was only read */
}

/* The octal number of a tar header. */
static bool size_of(const uint8_t *block, uint64_t *out)
{
    uint64_t v = 0;
    size_t n = 0;

    for (; n < SIZE_LENGTH; n++) {
        uint8_t c = block[SIZE_AT + n];

        if (c == '\0' || c == ' ')
            break;
        if (c < '0' || c > '7')
            return false;
        v = v * 8 + (uint64_t)(c - '0');
    }
    *out = v;
    return n > 0;
}

static void take_block(struct cvd_inner *i)
{
    uint64_t size = 0;

    i->seen += BLOCK;
    if (i->taking) {
        struct str text = { (const char *)i->block, i->size < BLOCK ? i->size : BLOCK };

        i->found = cvd_info(text, &i->info) == ERR_OK;
        i->done = true;
    } else if (i->skip > 0) {
        i->skip--;
    } else if (i->block[0] == '\0' || !size_of(i->block, &size)) {
        i->done = true; /* the end of the archive, or none */
    } else if (strncmp((const char *)i->block, i->wanted, 100) == 0) {
        i->taking = true;
        i->size = size < BLOCK ? (size_t)size : BLOCK;
    } else {
        i->skip = (size + BLOCK - 1) / BLOCK;
    }
    if (i->seen >= LOOK_MAX)
        i->done = true;
}

void cvd_inner_feed(struct cvd_inner *i, const uint8_t *bytes, size_t n)
{
    i->z.next_in = (Bytef *)(uintptr_t)bytes;
    i->z.avail_in = (uInt)n;
    while (!i->done) {
        int r = inflate(&i->z, Z_NO_FLUSH);

        if (i->z.avail_out == 0) {
            take_block(i);
            i->z.next_out = i->block;
            i->z.avail_out = BLOCK;
        } else if (r == Z_OK && i->z.avail_in == 0) {
            return; /* more bytes, please */
        } else if (r != Z_OK) {
            if (r == Z_BUF_ERROR && i->z.avail_in == 0)
                return;
            i->done = true;
        }
    }
}
