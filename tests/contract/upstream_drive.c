/*
 * Looks at a mirror as redoubt-mirror does, without a share and a DBMS:
 *     upstream_drive FOLDER URL [NAME VERSION BUILT]...
 * Prints the files as lines "FILE VERSION SHA256", or "error NAME BLOCKED_S WHY".
 */
#include "sys/cvd/cvd_look.h"

static uint64_t number(const char *s)
{
    uint64_t v = 0;

    CHECK(str_u64(str_of(s), UINT64_MAX, &v));
    return v;
}

int main(int argc, char **argv)
{
    struct err_info info = { .what = "" };
    struct fetch_options o = { .proxy = getenv("PROXY") ? getenv("PROXY") : "",
                               .ca_file = getenv("CA_FILE") ? getenv("CA_FILE") : "" };
    struct look l;

    CHECK(argc >= 3 && argc % 3 == 0);
    o.url = argv[2];
    enum err e = look_init(&l, argv[1], 90, &o, &info);
    for (int i = 3; e == ERR_OK && i < argc; i += 3)
        e = look_database(&l, argv[i], (uint32_t)number(argv[i + 1]), number(argv[i + 2]),
                          &info);
    if (e != ERR_OK)
        printf("error %s %u %s\n", err_name(e), l.fetch.blocked_s, info.what);
    for (size_t i = 0; e == ERR_OK && i < l.count; i++)
        printf("%s %u %s\n", l.files[i].file, l.files[i].checked.head.version,
               l.files[i].checked.sha256);
    look_release(&l);
    return 0;
}
