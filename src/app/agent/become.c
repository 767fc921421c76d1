/* The process becomes the new program: what systemd told it goes on. */
#include <signal.h>
#include <unistd.h>

#include "app/agent/upgrade.h"
#include "sys/log/log.h"

/* What becomes of this process when all is released. */
static struct {
    bool wanted;
    char exe[CONF_PATH];
    char **argv;
} next;

static struct {
    const char *name;
    char value[128];
} inherited[] = { { "NOTIFY_SOCKET", "" },
                  { "WATCHDOG_USEC", "" },
                  { "WATCHDOG_PID", "" } };

void upgrade_next(const char *exe, char **argv)
{
    next.wanted = true;
    next.argv = argv;
    (void)snprintf(next.exe, sizeof(next.exe), "%s", exe);
}

void upgrade_remember(void)
{
    for (size_t i = 0; i < LEN(inherited); i++) {
        const char *value = getenv(inherited[i].name);

        if (!value ||
            !str_copy(inherited[i].value, sizeof(inherited[i].value), str_of(value)))
            inherited[i].value[0] = '\0';
    }
}

void upgrade_become(void)
{
    sigset_t none;

    if (!next.wanted)
        return;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    for (size_t i = 0; i < LEN(inherited); i++)
        if (inherited[i].value[0])
            (void)setenv(inherited[i].name, inherited[i].value, 1);
    (void)execv(next.exe, next.argv);
    log_event(LOG_LEVEL_ERROR, "upgrade_not_started", log_str("program", next.exe));
}
