/*
 * version: which package this program came from.
 *
 * A distribution, or a test, may give a package another version than the program was built with;
 * the package then says so in a file of its own.  It is read once: what dpkg puts there later
 * belongs to the program that comes next.
 */
#include <unistd.h>

#include "app/agent/files.h"
#include "app/agent/package.h"
#include "app/agent/upgrade.h"

const char *agent_version(void)
{
    static char version[PACKAGE_VERSION];
    char path[CONF_PATH] = "", *slash;
    size_t n = 0;

    if (version[0])
        return version;
    ssize_t got = readlink("/proc/self/exe", path, sizeof(path) - 64);
    /* PREFIX/lib/redoubt/redoubt-agent, and PREFIX/share/redoubt-agent/version */
    for (int up = 0; got > 0 && up < 3; up++)
        if ((slash = strrchr(path, '/')))
            *slash = '\0';
    (void)snprintf(path + strlen(path), sizeof(path) - strlen(path),
                   "/share/redoubt-agent/version");
    if (file_load(path, version, sizeof(version), &n, NULL) != ERR_OK)
        version[0] = '\0';
    version[strcspn(version, "\n")] = '\0';
    if (!package_version_ok(version))
        (void)snprintf(version, sizeof(version), "%s", REDOUBT_VERSION);
    return version;
}
