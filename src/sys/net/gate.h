/*
 * gate: the nftables lease on the virtual IP (design.md section 5, layer 3).
 *
 * Purpose   Tables named `redoubt` drop what comes to and leaves from the virtual IP, ARP
 *           and neighbour discovery for it included, unless the set `lease` holds an
 *           element.  The element carries a timeout, so the kernel shuts the gate by
 *           itself at the deadline, whatever became of this process.
 * Contract  gate_set() replaces the elements of all tables in one transaction, never
 *           takes the rtnl lock, and takes well below a millisecond.  No packet sees the
 *           set empty in between.
 * Safety    The timeout is rounded down.  The kernel's timer stands still while the
 *           machine is suspended; the guard and the DBMS fence cover that.
 * Threads   loop thread only
 * Source    nft(8), linux/netfilter/nf_tables.h
 */
#ifndef SYS_NET_GATE_H
#define SYS_NET_GATE_H

#include "sys/net/ip.h"

struct gate {
    int fd;
    bool built, egress;
    struct net_ip ip4, ip6;
    const char *interface;
};

MUST_USE enum err gate_open(struct gate *g, const char *interface,
                            const struct net_ip *ip4, const struct net_ip *ip6,
                            struct err_info *info);
/* (Re)creates the tables with the gate shut, whatever was there.  Some milliseconds. */
MUST_USE enum err gate_build(struct gate *g, struct err_info *info);
/* Open for left_ms from now; 0 shuts it.  ERR_NOT_FOUND: the tables are gone. */
enum err gate_set(struct gate *g, uint64_t left_ms, struct err_info *info);
/* Removes the tables.  Only when the address is gone. */
void gate_close(struct gate *g);

#endif
