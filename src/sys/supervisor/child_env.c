#include "sys/supervisor/child_env.h"

#include <inttypes.h>
#include <stdarg.h>
#include <unistd.h>

#include "sys/supervisor/unit.h"

static bool is_contract_variable(const char *entry)
{
    static const char *const names[] = {
        "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_",        "REDOUBT_", "HOME=",
        "USER=",          "LOGNAME=",  "INVOCATION_ID=", "MAINPID=", "RUNTIME_DIRECTORY="
    };

    for (size_t i = 0; i < LEN(names); i++)
        if (strncmp(entry, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

static void env_add(struct child_env *env, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void env_add(struct child_env *env, const char *fmt, ...)
{
    va_list ap;

    CHECK(env->own_count < CHILD_ENV_OWN);
    va_start(ap, fmt);
    int n = vsnprintf(env->own[env->own_count++], CHILD_ENV_BYTES, fmt, ap);
    va_end(ap);
    env->cut |= n < 0 || n >= CHILD_ENV_BYTES;
}

bool child_env_make(struct child_env *env, const struct unit *u)
{
    size_t n = 0;

    env->own_count = 0;
    env->cut = false;
    env_add(env, "NOTIFY_SOCKET=%s", u->socket);
    env_add(env, "REDOUBT_SERVICE=%s", u->conf->name);
    env_add(env, "REDOUBT_NODE=%s", u->s->o.node);
    env_add(env, "REDOUBT_CONF=%s", u->s->o.conf);
    env_add(env, "REDOUBT_ROLE_FD=%d", SPAWN_ROLE_FD);
    env_add(env, "RUNTIME_DIRECTORY=%s", u->runtime);
    if (u->s->o.lease_fd >= 0)
        env_add(env, "REDOUBT_LEASE_FD=%d", SPAWN_LEASE_FD);
    if (u->conf->watchdog_ms != 0)
        env_add(env, "WATCHDOG_USEC=%" PRIu64, (uint64_t)u->conf->watchdog_ms * 1000u);
    if (u->user.set)
        env_add(env, "HOME=%s", u->user.home);
    for (size_t i = 0; i < env->own_count; i++)
        env->all[n++] = env->own[i];
    for (char **e = environ; e && *e; e++) {
        if (is_contract_variable(*e))
            continue;
        if (n == CHILD_ENV_MAX - 1)
            return false;
        env->all[n++] = *e;
    }
    env->all[n] = NULL;
    return !env->cut;
}
