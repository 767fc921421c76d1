/*
 * net: the virtual IP of the cluster on this node, and the kernel's lease on it.
 *
 * Purpose   Implements port/address.h and the address's half of port/hold.h: up() opens
 *           the gate (gate.h), adds the address and announces it; net_hold_extend() keeps
 *           the gate open until the deadline; after it the kernel drops everything from
 *           and to the address by itself.
 * Contract  Everything is done inside the calls, in well below a millisecond for the hold
 *           functions and about a millisecond for up() and down() (they take the rtnl
 *           lock); answers and events come from the loop, never from within a call.
 *           While up, an address that somebody removes is added again, and a neighbour
 *           who claims it is reported and answered with a new announcement.
 * Safety    net_open() removes the address (leftover of a crash) before anything else.
 *           The gate is opened by up() only and shut by revoke(), down() and the kernel.
 *           Nothing is announced after the deadline.
 * Limits    One cluster in a network namespace: the nftables tables have a fixed name.
 *           The interface may vanish and come back.
 * Owns      struct net owns sockets and event sources; texts are copied.
 * Threads   loop thread only; needs CAP_NET_ADMIN and CAP_NET_RAW
 */
#ifndef SYS_NET_NET_H
#define SYS_NET_NET_H

#include <net/if.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/mono.h"
#include "port/address.h"

enum net_trouble {
    NET_CONFLICT, /* another machine claims the address */
    NET_LOST,     /* somebody removed the address or the tables; they are put back */
    NET_FAILED,   /* the kernel refused; tried again with the next renewal */
};

struct net_options {
    const char *interface;       /* "eth0" */
    const char *ipv4;            /* "10.77.0.100/24", "" for none */
    const char *ipv6;            /* "fd77::100/64", "" for none; both "": mode = none */
    const char *label;           /* of the IPv4 address, "" for none */
    uint32_t announce_period_ms; /* 0: 10000 */
};

struct net_events {
    /* The one answer to up() or down(); why is NULL if ERR_OK. */
    void (*answer)(void *ctx, uint32_t request, enum err err, const struct err_info *why);
    /* Once after net_open(), then at each change: the interface can carry packets. */
    void (*link)(void *ctx, bool up);
    void (*trouble)(void *ctx, enum net_trouble trouble, const char *text);
    void *ctx;
};

struct net;

/*
 * net_open - ERR_CONFIG (an address), ERR_NOT_FOUND (the interface), ERR_DENIED,
 *            ERR_UNSUPPORTED (a kernel without nftables).
 */
MUST_USE enum err net_open(struct net **out, sd_event *loop, const struct net_options *o,
                           const struct net_events *events, struct err_info *info);
/* Removes the address and the tables.  No events after it returns. */
void net_close(struct net *n);

struct address net_address(struct net *n);

/* The address's half of port/hold.h. */
void net_hold_extend(struct net *n, struct mono deadline);
void net_hold_revoke(struct net *n);

bool net_link_up(const struct net *n);

/*
 * net_death_messages - the bytes that remove the addresses when written as one datagram
 * to a NETLINK_ROUTE socket: for the guard, after this process died. Returns their
 * number, 0 if there is no address or no room.
 */
size_t net_death_messages(const struct net *n, void *buf, size_t size);

#endif
