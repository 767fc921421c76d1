/*
 * announce: tell the neighbours where the virtual IP is, and hear who else claims it.
 *
 * Purpose   Gratuitous ARP in both forms (request and reply: some switches and hosts
 *           learn from one only) and unsolicited neighbour advertisements with the
 *           override flag; an ARP probe whose answer means that somebody else has the
 *           address.
 * Contract  announce_send() is to be called only while the lease is held; the gate drops
 *           what leaves later, packet sockets included where the kernel can (gate.h).
 * Owns      two sockets, open between announce_open() and announce_close().
 * Threads   loop thread only
 * Source    RFC 826, RFC 5227, RFC 4861 section 7.2.6, packet(7)
 */
#ifndef SYS_NET_ANNOUNCE_H
#define SYS_NET_ANNOUNCE_H

#include "sys/net/ip.h"

enum { MAC_TEXT = 18 };

struct announce {
    int arp_fd, nd_fd; /* -1: none */
    unsigned ifindex;
    uint8_t mac[6];
    struct net_ip ip4, ip6;
};

void announce_init(struct announce *a, const struct net_ip *ip4,
                   const struct net_ip *ip6);
/* An interface without Ethernet addresses (loopback) has nothing to announce: ERR_OK. */
MUST_USE enum err announce_open(struct announce *a, const char *interface,
                                unsigned ifindex, struct err_info *info);
void announce_close(struct announce *a);

/* Who has it?  Sent from no address, so nobody learns anything from it. */
void announce_probe(struct announce *a);
/* One round for each address; ERR_IO if a packet could not be handed to the kernel. */
enum err announce_send(struct announce *a, bool with_ip6, struct err_info *info);
/*
 * announce_hear - read one waiting packet of arp_fd or nd_fd.  True: another machine
 *                 claims *ip, with this link address ("" if it did not say).
 */
bool announce_hear(struct announce *a, int fd, const struct net_ip **ip,
                   char mac[MAC_TEXT]);

#endif
