#include "sys/net/announce.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netpacket/packet.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { ARP_SENDER_IP = 14 }; /* offset in an ARP packet for IPv4 over Ethernet */

void announce_init(struct announce *a, const struct net_ip *ip4, const struct net_ip *ip6)
{
    *a = (struct announce){ .arp_fd = -1, .nd_fd = -1, .ip4 = *ip4, .ip6 = *ip6 };
}

/* Lets through only ARP packets whose sender claims the virtual IP. */
static bool hear_only_claims(int fd, const struct net_ip *ip)
{
    uint32_t word;
    int one = 1;

    memcpy(&word, ip->bytes, sizeof(word));
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARP_SENDER_IP),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ntohl(word), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT16_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog prog = { .len = LEN(code), .filter = code };

    (void)setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one));
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) == 0;
}

static enum err open_arp(struct announce *a, struct err_info *info)
{
    struct sockaddr_ll at = { .sll_family = AF_PACKET,
                              .sll_protocol = htons(ETH_P_ARP),
                              .sll_ifindex = (int)a->ifindex };

    /* Protocol 0: nothing is heard before the filter is in place. */
    a->arp_fd = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (a->arp_fd < 0 || !hear_only_claims(a->arp_fd, &a->ip4) ||
        bind(a->arp_fd, (const struct sockaddr *)&at, sizeof(at)) < 0)
        return err_set(info, ERR_IO, errno, "open a packet socket for ARP");
    return ERR_OK;
}

static enum err open_nd(struct announce *a, struct err_info *info)
{
    struct icmp6_filter only;
    int index = (int)a->ifindex, hops = 255, off = 0;

    ICMP6_FILTER_SETBLOCKALL(&only);
    ICMP6_FILTER_SETPASS(ND_NEIGHBOR_ADVERT, &only);
    a->nd_fd = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6);
    if (a->nd_fd < 0 ||
        setsockopt(a->nd_fd, IPPROTO_ICMPV6, ICMP6_FILTER, &only, sizeof(only)) < 0 ||
        setsockopt(a->nd_fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops, sizeof(hops)) <
            0 ||
        setsockopt(a->nd_fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, &off, sizeof(off)) < 0 ||
        setsockopt(a->nd_fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &index, sizeof(index)) < 0)
        return err_set(info, ERR_IO, errno, "open a raw socket for ICMPv6");
    return ERR_OK;
}

enum err announce_open(struct announce *a, const char *interface, unsigned ifindex,
                       struct err_info *info)
{
    struct ifreq rq = { 0 };
    enum err e = ERR_OK;

    announce_close(a);
    a->ifindex = ifindex;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "open a socket");
    (void)snprintf(rq.ifr_name, sizeof(rq.ifr_name), "%s", interface);
    if (ioctl(fd, SIOCGIFHWADDR, &rq) < 0)
        e = err_set(info, ERR_NOT_FOUND, errno, "interface %s", interface);
    close(fd);
    if (e != ERR_OK || rq.ifr_hwaddr.sa_family != ARPHRD_ETHER)
        return e;
    memcpy(a->mac, rq.ifr_hwaddr.sa_data, sizeof(a->mac));
    if (a->ip4.family)
        e = open_arp(a, info);
    if (e == ERR_OK && a->ip6.family)
        e = open_nd(a, info);
    if (e != ERR_OK)
        announce_close(a);
    return e;
}

void announce_close(struct announce *a)
{
    if (a->arp_fd >= 0)
        close(a->arp_fd);
    if (a->nd_fd >= 0)
        close(a->nd_fd);
    a->arp_fd = a->nd_fd = -1;
}

static bool send_arp(struct announce *a, uint16_t op, bool claim)
{
    struct ether_arp p = {
        .ea_hdr = { .ar_hrd = htons(ARPHRD_ETHER),
                    .ar_pro = htons(ETH_P_IP),
                    .ar_hln = 6,
                    .ar_pln = 4,
                    .ar_op = htons(op) },
    };
    struct sockaddr_ll to = { .sll_family = AF_PACKET,
                              .sll_protocol = htons(ETH_P_ARP),
                              .sll_ifindex = (int)a->ifindex,
                              .sll_halen = 6,
                              .sll_addr = { 255, 255, 255, 255, 255, 255 } };

    memcpy(p.arp_sha, a->mac, 6);
    if (claim)
        memcpy(p.arp_spa, a->ip4.bytes, 4);
    if (op == ARPOP_REPLY)
        memset(p.arp_tha, 255, 6);
    memcpy(p.arp_tpa, a->ip4.bytes, 4);
    return sendto(a->arp_fd, &p, sizeof(p), MSG_DONTWAIT, (const struct sockaddr *)&to,
                  sizeof(to)) == (ssize_t)sizeof(p);
}

/* From the address itself, chosen by IPV6_PKTINFO: RFC 4861 wants one of the sender. */
static bool send_na(struct announce *a)
{
    struct {
        struct nd_neighbor_advert na;
        struct nd_opt_hdr opt;
        uint8_t mac[6];
    } p = { .na = { .nd_na_hdr = { .icmp6_type = ND_NEIGHBOR_ADVERT },
                    .nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE },
            .opt = { .nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1 } };
    struct sockaddr_in6 to = { .sin6_family = AF_INET6, .sin6_scope_id = a->ifindex };
    struct in6_pktinfo from = { .ipi6_ifindex = a->ifindex };
    union {
        struct cmsghdr align;
        uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    } control = { 0 };
    struct iovec iov = { .iov_base = &p, .iov_len = sizeof(p) };
    struct msghdr m = { .msg_name = &to,
                        .msg_namelen = sizeof(to),
                        .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = &control,
                        .msg_controllen = sizeof(control.bytes) };
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    memcpy(&p.na.nd_na_target, a->ip6.bytes, 16);
    memcpy(p.mac, a->mac, 6);
    memcpy(&from.ipi6_addr, a->ip6.bytes, 16);
    (void)inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
    c->cmsg_level = IPPROTO_IPV6;
    c->cmsg_type = IPV6_PKTINFO;
    c->cmsg_len = CMSG_LEN(sizeof(from));
    memcpy(CMSG_DATA(c), &from, sizeof(from));
    return sendmsg(a->nd_fd, &m, MSG_DONTWAIT) == (ssize_t)sizeof(p);
}

void announce_probe(struct announce *a)
{
    if (a->arp_fd >= 0)
        (void)send_arp(a, ARPOP_REQUEST, false);
}

enum err announce_send(struct announce *a, bool with_ip6, struct err_info *info)
{
    enum err e = ERR_OK;

    if (a->arp_fd >= 0 &&
        (!send_arp(a, ARPOP_REQUEST, true) || !send_arp(a, ARPOP_REPLY, true)))
        e = err_set(info, ERR_IO, errno, "send a gratuitous ARP for %s", a->ip4.text);
    if (with_ip6 && a->nd_fd >= 0 && !send_na(a))
        e = err_set(info, ERR_IO, errno, "send a neighbour advertisement for %s",
                    a->ip6.text);
    return e;
}

static void mac_text(char out[MAC_TEXT], const uint8_t *m)
{
    (void)snprintf(out, MAC_TEXT, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3],
                   m[4], m[5]);
}

static bool hear_arp(struct announce *a, const uint8_t *p, size_t n, char mac[MAC_TEXT])
{
    struct ether_arp arp;

    if (n < sizeof(arp))
        return false;
    memcpy(&arp, p, sizeof(arp));
    if (memcmp(arp.arp_spa, a->ip4.bytes, 4) != 0 || memcmp(arp.arp_sha, a->mac, 6) == 0)
        return false;
    mac_text(mac, arp.arp_sha);
    return true;
}

static bool hear_na(struct announce *a, const uint8_t *p, size_t n, char mac[MAC_TEXT])
{
    struct nd_neighbor_advert na;
    const size_t opt = sizeof(na), mac_at = opt + sizeof(struct nd_opt_hdr);

    if (n < sizeof(na))
        return false;
    memcpy(&na, p, sizeof(na));
    if (memcmp(&na.nd_na_target, a->ip6.bytes, 16) != 0)
        return false;
    mac[0] = '\0';
    if (n >= mac_at + 6 && p[opt] == ND_OPT_TARGET_LINKADDR) {
        if (memcmp(p + mac_at, a->mac, 6) == 0)
            return false;
        mac_text(mac, p + mac_at);
    }
    return true;
}

bool announce_hear(struct announce *a, int fd, const struct net_ip **ip,
                   char mac[MAC_TEXT])
{
    uint8_t p[256];
    ssize_t n = recv(fd, p, sizeof(p), MSG_DONTWAIT);

    if (n <= 0)
        return false;
    *ip = fd == a->arp_fd ? &a->ip4 : &a->ip6;
    return fd == a->arp_fd ? hear_arp(a, p, (size_t)n, mac)
                           : hear_na(a, p, (size_t)n, mac);
}
