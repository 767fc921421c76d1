/*
 * services: the services of this node, as the node machine needs them.
 *
 * Contract  set() states what is wanted; the adapter converges to it (start, tell the role,
 *           stop, restart with backoff) and reports every change of a service's state, never
 *           from within the call.  After each set() every service is reported at least once
 *           more, when it has got where it is wanted, even if it was there already.  A service that fails is restarted by the adapter after
 *           its backoff for as long as anything but STOPPED is wanted.
 *           kill() ends every process of every service at once (cgroup.kill); the adapter
 *           reports each service STOPPED when its cgroup is empty, and starts none before
 *           the next set().
 * Who       sys/supervisor, tests/sim.
 * Threads   loop thread only
 */
#ifndef PORT_SERVICES_H
#define PORT_SERVICES_H

#include <stdbool.h>
#include <stdint.h>

enum { SERVICES_MAX = 8 };

enum service_want {
    SERVICE_WANT_STOPPED,
    SERVICE_WANT_STANDBY, /* hot: running, told "standby"; cold: not running; always: runs */
    SERVICE_WANT_ACTIVE, /* all run; hot ones told "active <epoch>" and acknowledged it */
};

enum service_state {
    SERVICE_STOPPED,  /* no process of it lives */
    SERVICE_STARTING, /* started, not yet READY=1 */
    SERVICE_STANDBY,  /* as it should be on the passive node (a cold one: startable) */
    SERVICE_ACTIVE,   /* told active with the present epoch, and acknowledged */
    SERVICE_CHANGING, /* told a new role, not yet acknowledged; or stopping */
    SERVICE_FAILED, /* ended, missed its watchdog, or would not start; waits to restart */
    SERVICE_STATE_COUNT
};

struct services_ops {
    void (*set)(void *impl, enum service_want want, uint64_t epoch);
    void (*kill)(void *impl);
};

struct services {
    const struct services_ops *ops;
    void *impl;
};

#endif
