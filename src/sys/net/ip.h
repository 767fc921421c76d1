/*
 * ip: one address of the cluster, and putting it on an interface by rtnetlink.
 *
 * Shape     struct net_ip with family 0 is "none".
 * Safety    An IPv6 address is added without duplicate address detection (it would be
 *           unusable for a second) and deprecated (so that this host never chooses it as
 *           the source of a connection of its own).
 * Threads   loop thread only
 * Source    rtnetlink(7), RFC 6724 section 5 rule 3
 */
#ifndef SYS_NET_IP_H
#define SYS_NET_IP_H

#include "sys/net/netlink.h"

enum { NET_IP_TEXT = 46 };

struct net_ip {
    int family; /* AF_INET, AF_INET6, 0 = none */
    uint8_t prefix;
    uint8_t bytes[16];
    char text[NET_IP_TEXT]; /* without the prefix */
};

/* "10.0.0.5/24", "fd00::5/64"; "" gives none.  ERR_CONFIG says what is wrong. */
MUST_USE enum err net_ip_parse(struct net_ip *out, int family, const char *text,
                               struct err_info *info);
size_t net_ip_size(const struct net_ip *ip);

/*
 * ip_add - label: for IPv4, may be "".  ERR_EXISTS: it is there already.  A new IPv6
 *          address works only when the kernel tells RTM_NEWADDR, a moment later.
 */
MUST_USE enum err ip_add(int fd, const struct net_ip *ip, unsigned ifindex,
                         const char *label, struct err_info *info);
/* An address that is not there is ERR_OK. */
MUST_USE enum err ip_remove(int fd, const struct net_ip *ip, unsigned ifindex,
                            struct err_info *info);
/* Removes the address from every interface it is found on, with whatever prefix. */
MUST_USE enum err ip_remove_all(int fd, const struct net_ip *ip, struct err_info *info);
/* Appends the message that removes it. */
void ip_removal(struct nl_buf *b, const struct net_ip *ip, unsigned ifindex,
                uint32_t seq);
/* Is this a message about ip?  *ifindex gets the interface it speaks of. */
bool ip_is_about(const struct nlmsghdr *h, const struct net_ip *ip, unsigned *ifindex,
                 uint8_t *prefix);

#endif
