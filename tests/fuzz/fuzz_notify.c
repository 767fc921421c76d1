/* What services may send to their supervisor, and the kernel's text that it reads. */
#include "fuzz.h"

#include <string.h>

#include "sys/supervisor/cgroup.h"
#include "sys/supervisor/notify.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str s = { (const char *)data, size };
    char path[CGROUP_PATH_BYTES];
    struct notify_message m;

    notify_decode(&m, s);
    CHECK(memchr(m.status, '\0', sizeof(m.status)));
    CHECK(m.has_status || m.status[0] == '\0');
    CHECK(memchr(m.metrics, '\0', sizeof(m.metrics)));
    CHECK(m.has_metrics || m.metrics[0] == '\0');
    struct str member = cgroup_member(s);
    CHECK(!member.p || (member.n > 0 && member.p[0] == '/'));
    if (cgroup_of_mounts(s, member.p ? member : STR("/"), path, sizeof(path)))
        CHECK(memchr(path, '\0', sizeof(path)));
    return 0;
}
