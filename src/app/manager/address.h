/*
 * address: by which name or address devices and people find a service of the cluster.
 *
 * Threads   any
 */
#ifndef APP_MANAGER_ADDRESS_H
#define APP_MANAGER_ADDRESS_H

#include "sys/conf/conf.h"

/* "host:port" of a service that listens so: the first of [trust] names, or the address of the
 * cluster.  false: there is none. */
bool address_of(const struct conf *c, const char *listen, char *out, size_t size);

#endif
