/* A list either is refused, or is made of safe, sorted paths and survives being written. */
#include "fuzz.h"
#include "wire/publication.h"

enum { MAX = 64, TEXT = 64 * PUBLICATION_LINE_MAX + 64 };

static bool climbs(struct str path)
{
    for (size_t i = 0; i + 1 < path.n; i++)
        if (path.p[i] == '.' && path.p[i + 1] == '.' && (i == 0 || path.p[i - 1] == '/'))
            return true;
    return path.n == 0 || path.p[0] == '/' || memchr(path.p, '\0', path.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct publication_entry list[MAX], again[MAX];
    static char text[TEXT];
    struct publication_head head, second;
    struct text t;

    if (publication_parse((struct str){ (const char *)data, size }, &head, list, MAX,
                          NULL) != ERR_OK)
        return 0;
    CHECK(head.count <= MAX && head.serial <= PUBLICATION_SERIAL_MAX);
    text_init(&t, text, sizeof(text));
    publication_add_head(&t, &head);
    for (uint32_t i = 0; i < head.count; i++) {
        char link[PUBLICATION_LINK_BYTES];

        CHECK(!climbs(list[i].path) && publication_digest_ok(list[i].blob));
        publication_link(link, &list[i]);
        publication_add_entry(&t, &list[i]);
    }
    CHECK(!t.cut);
    CHECK(publication_parse((struct str){ t.p, t.n }, &second, again, MAX, NULL) ==
          ERR_OK);
    CHECK(second.serial == head.serial && second.count == head.count);
    for (uint32_t i = 0; i < head.count; i++)
        CHECK(str_eq(list[i].path, again[i].path) &&
              str_eq(list[i].blob, again[i].blob) &&
              str_eq(list[i].owner, again[i].owner) && list[i].size == again[i].size &&
              list[i].mtime == again[i].mtime);
    return 0;
}
