/*
 * dsn: a libpq connection string, with our time limits in it and its names resolved.
 *
 * Purpose   [database] conninfo as an operator wrote it, plus what it does not say: limits
 *           that notice a dead DBMS in seconds, and the name of the session.  What the
 *           operator says wins.
 * Safety    libpq looks up host names with a call that blocks.  dsn_names() says which
 *           there are; once dsn_resolved() was given their addresses, connecting does not.
 *           Numeric addresses, hostaddr= and sockets need nothing.
 * Owns      struct dsn owns its texts; keys/values are borrowed from it.
 * Threads   any, one at a time for one dsn
 * Tests     tests/unit/test_fence.c
 */
#ifndef SYS_FENCE_DSN_H
#define SYS_FENCE_DSN_H

#include "base/err.h"

enum { DSN_HOSTS_MAX = 8, DSN_ADDRESS_BYTES = 64 };

struct dsn;

/* application: "redoubt-fence/node-a".  ERR_CONFIG: what libpq says about the string. */
MUST_USE enum err dsn_new(struct dsn **out, const char *conninfo, const char *application,
                          struct err_info *info);
void dsn_free(struct dsn *d);

/* The host names that must be looked up before connecting; 0: none. */
size_t dsn_names(const struct dsn *d, const char *names[DSN_HOSTS_MAX]);

/*
 * dsn_resolved - the addresses of the names, in the order of dsn_names(); an empty one
 *                ("not found") leaves its host out.  ERR_NOT_FOUND: none is left; the
 *                addresses of before stay.
 */
MUST_USE enum err dsn_resolved(struct dsn *d, const char addresses[][DSN_ADDRESS_BYTES]);
/* Were there addresses ever?  True if no name needs one. */
bool dsn_ready(const struct dsn *d);

/* For PQconnectStartParams() and PQconnectdbParams(), with expand_dbname 0. */
const char *const *dsn_keys(const struct dsn *d);
const char *const *dsn_values(const struct dsn *d);

#endif
