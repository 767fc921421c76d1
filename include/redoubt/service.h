/*
 * redoubt/service.h: how a program becomes a service of a Redoubt node.
 *
 * Purpose   The node daemon starts a service, tells it its role, watches over it and
 *           shows it the lease.  These functions are the whole contract
 *           (docs/services.md) for a C program; it has three parts, each usable without
 *           the others:
 *             NOTIFY_SOCKET     the service says READY=1, STATUS=..., WATCHDOG=1
 *             REDOUBT_ROLE_FD   the daemon says "active <epoch>" or "standby"
 *             REDOUBT_LEASE_FD  the lease page (redoubt/lease.h)
 * Shape     A service is started in standby.  It says READY, then follows its role and
 *           acknowledges each change once it has carried it out.
 * By hand   Without the environment everything still works: messages go nowhere, the
 *           role stays NONE, and the lease is NOT held, unless REDOUBT_STANDALONE was
 *           given (which a program should do only for an option of its own, such as
 *           --standalone).
 * Errors    Functions that return int give 0 or -errno.
 * Threads   one thread at a time for one struct redoubt_service;
 *           redoubt_service_lease_held from any thread
 * Tests     tests/unit/test_service_lib.c
 */
#ifndef REDOUBT_SERVICE_H
#define REDOUBT_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "redoubt/lease.h"

enum redoubt_role {
    REDOUBT_ROLE_NONE,    /* nothing new since the last call */
    REDOUBT_ROLE_STANDBY, /* stop acting for the cluster, then acknowledge */
    REDOUBT_ROLE_ACTIVE,  /* act for the cluster with this epoch, then acknowledge */
    REDOUBT_ROLE_GONE,    /* the node daemon has ended: exit now */
};

enum { REDOUBT_STANDALONE = 1 }; /* flag: no lease page means "held", with epoch 0 */

struct redoubt_service;

/*
 * redoubt_service_start - read the environment.  Call it first in main(), before threads.
 *
 * The inherited descriptors become close-on-exec, and the variables are removed from the
 * environment, so that a child process does not take itself for the service.
 * Returns NULL with errno if the environment is there but unusable (a lease page that
 * cannot be mapped, a descriptor that is not open): the program should exit then.
 * Free it with redoubt_service_stop().
 */
struct redoubt_service *redoubt_service_start(unsigned flags);
/* Closes everything and frees; NULL is fine.  Says nothing to the daemon. */
void redoubt_service_stop(struct redoubt_service *s);

/* REDOUBT_SERVICE, REDOUBT_NODE, REDOUBT_CONF; "" if not given.  Borrowed from s. */
const char *redoubt_service_name(const struct redoubt_service *s);
const char *redoubt_service_node(const struct redoubt_service *s);
const char *redoubt_service_conf(const struct redoubt_service *s);

/* Started, and in standby.  Waits at most 200 ms for the daemon to take the message. */
int redoubt_service_ready(struct redoubt_service *s);

/* One line for `redoubt status`; printf-like, at most 200 bytes, never waits. */
int redoubt_service_status(struct redoubt_service *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/*
 * redoubt_service_metrics - numbers for the node's /metrics: "name=number name:state=number".
 *
 * They replace those of before; "" takes them back.  Only names that the node knows are shown.
 * At most 1000 bytes, one line; never waits.
 */
int redoubt_service_metrics(struct redoubt_service *s, const char *numbers);

/*
 * redoubt_service_watchdog - "I am alive and doing my work".  Never waits.
 *
 * Call it from the loop that does the work, every redoubt_service_watchdog_period_ms().
 * A period of 0 says that no watchdog is wanted.
 */
int redoubt_service_watchdog(struct redoubt_service *s);
uint32_t redoubt_service_watchdog_period_ms(const struct redoubt_service *s);

/* Readable when there is a role to read; -1 if there is none to come.  Borrowed. */
int redoubt_service_role_fd(const struct redoubt_service *s);

/*
 * redoubt_service_read_role - the latest role the daemon told; never blocks.
 *
 * epoch  out, may be NULL; set for REDOUBT_ROLE_ACTIVE only
 *
 * Roles that were overtaken by a later one are skipped: only the returned one is to be
 * carried out and acknowledged.  ACTIVE may come again with a higher epoch.
 */
enum redoubt_role redoubt_service_read_role(struct redoubt_service *s, uint64_t *epoch);

/*
 * redoubt_service_ack - the role has been carried out.
 *
 * role   STANDBY or ACTIVE; epoch counts for ACTIVE only.  Waits at most 200 ms.
 */
int redoubt_service_ack(struct redoubt_service *s, enum redoubt_role role,
                        uint64_t epoch);

/* redoubt_lease_held of this service's page.  STANDALONE without a page: true, epoch 0.
 */
bool redoubt_service_lease_held(const struct redoubt_service *s, uint64_t *epoch);
/* The page itself, NULL if there is none.  Borrowed. */
const struct redoubt_lease_page *redoubt_service_lease(const struct redoubt_service *s);

#endif
