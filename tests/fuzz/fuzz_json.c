/*
 * JSON of devices: every member of a text that was taken can be read, down to
 * the depth that was allowed, and nothing is read beyond the end.
 */
#include "fuzz.h"
#include "wire/json.h"

static void walk(const struct json_member *all, int depth)
{
    struct json_walk w;
    struct json_member item;

    CHECK(depth <= JSON_DEPTH_MAX + 1);
    if (all->kind != JSON_OBJECT && all->kind != JSON_ARRAY)
        return;
    json_walk(&w, all);
    while (json_next(&w, &item))
        walk(&item, depth + 1);
    CHECK(w.p <= w.end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = { (const char *)data, size };
    struct json_object o;
    struct json_member all;

    (void)json_storable(in);
    if (json_value(&all, in) == ERR_OK)
        walk(&all, 1);
    else
        CHECK(json_load(&o, in) != ERR_OK);
    return 0;
}
