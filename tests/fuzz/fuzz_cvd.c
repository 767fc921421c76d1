/* Headers and names of signature databases: bounded, and a name printed is the name read. */
#include "fuzz.h"
#include "wire/cvd.h"

static void check_text(const struct cvd *c)
{
    CHECK(memchr(c->time, '\0', sizeof(c->time)) && c->time[0]);
    CHECK(memchr(c->builder, '\0', sizeof(c->builder)) && c->builder[0]);
    CHECK(memchr(c->sign, '\0', sizeof(c->sign)));
    CHECK(c->version > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str s = { (const char *)data, size };
    char print[CVD_FILE_MAX];
    struct cvd_file f;
    uint32_t version;
    struct cvd c;

    if (cvd_header(s, &c) == ERR_OK)
        check_text(&c);
    if (cvd_info(s, &c) == ERR_OK) {
        check_text(&c);
        CHECK(!cvd_is_signed(&c));
    }
    if (cvd_diff_header(s, &version) == ERR_OK)
        CHECK(version > 0);
    if (cvd_file_name(s, &f)) {
        CHECK(cvd_file_print(&f, print, sizeof(print)));
        CHECK(str_is(s, print));
    }
    if (cvd_custom_name(s))
        CHECK(size < CVD_FILE_MAX && !memchr(s.p, '/', s.n) && s.p[0] != '.');
    return 0;
}
