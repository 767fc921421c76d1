/*
 * own_network: two hosts of the test's own, "node" and "peer", joined by a veth pair.
 *
 * Purpose   The test runs in the node's network namespace; the peer is the neighbour who
 *           pings the virtual IP, asks for it by ARP, and sees what the node announces.
 * Limits    Needs root.  The namespaces vanish with the process.
 */
#ifndef TESTS_OWN_NETWORK_H
#define TESTS_OWN_NETWORK_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/str.h"

#define VIP4 "10.77.9.100"
#define VIP6 "fd77:9::100"

enum { WAIT_MS = 5000, SILENCE_MS = 120 };

static struct {
    int node_ns, peer_ns;
    int ping4, ping6, packets; /* sockets of the peer */
    uint16_t seq;
} hosts;

/* --- the two hosts ------------------------------------------------------------- */

static int run(const char *words)
{
    char copy[256], *argv[24], *save = NULL;
    extern char **environ;
    size_t n = 0;
    pid_t pid;
    int status = -1;

    assert_true(str_copy(copy, sizeof(copy), str_of(words)));
    for (char *w = strtok_r(copy, " ", &save); w && n < LEN(argv) - 1;
         w = strtok_r(NULL, " ", &save))
        argv[n++] = w;
    argv[n] = NULL;
    assert_int_equal(posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ), 0);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

static void enter(int ns)
{
    assert_int_equal(setns(ns, CLONE_NEWNET), 0);
}

static int new_namespace(void)
{
    if (unshare(CLONE_NEWNET) < 0)
        return -1;
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static void open_peer_sockets(void)
{
    struct icmp6_filter only;

    enter(hosts.peer_ns);
    hosts.ping4 = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    hosts.ping6 = socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6);
    hosts.packets = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ALL));
    struct sockaddr_ll at = { .sll_family = AF_PACKET,
                              .sll_protocol = htons(ETH_P_ALL),
                              .sll_ifindex = (int)if_nametoindex("p0") };
    assert_int_equal(bind(hosts.packets, (const struct sockaddr *)&at, sizeof(at)), 0);
    ICMP6_FILTER_SETBLOCKALL(&only);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &only);
    assert_int_equal(
        setsockopt(hosts.ping6, IPPROTO_ICMPV6, ICMP6_FILTER, &only, sizeof(only)), 0);
    enter(hosts.node_ns);
}

static int make_hosts(void **state)
{
    (void)state;
    hosts.peer_ns = new_namespace();
    hosts.node_ns = hosts.peer_ns < 0 ? -1 : new_namespace();
    if (hosts.node_ns < 0)
        return -1;
    char move[64];
    (void)snprintf(move, sizeof(move), "ip link set p0 netns /proc/self/fd/%d",
                   hosts.peer_ns);
    assert_int_equal(run("ip link add n0 type veth peer name p0"), 0);
    assert_int_equal(fcntl(hosts.peer_ns, F_SETFD, 0), 0);
    assert_int_equal(run(move), 0);
    assert_int_equal(run("ip link set lo up"), 0);
    assert_int_equal(run("ip addr add 10.77.9.21/24 dev n0"), 0);
    assert_int_equal(run("ip addr add fd77:9::21/64 dev n0 nodad"), 0);
    assert_int_equal(run("ip link set n0 up"), 0);
    enter(hosts.peer_ns);
    assert_int_equal(run("ip addr add 10.77.9.1/24 dev p0"), 0);
    assert_int_equal(run("ip addr add fd77:9::1/64 dev p0 nodad"), 0);
    assert_int_equal(run("ip link set p0 up"), 0);
    enter(hosts.node_ns);
    open_peer_sockets();
    return 0;
}

/* --- what the peer sees ---------------------------------------------------------- */

static bool readable(int fd, int ms)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };

    return poll(&p, 1, ms) == 1;
}

static uint16_t checksum(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t sum = 0;

    for (size_t i = 0; i + 1 < n; i += 2)
        sum += (uint32_t)(p[i] << 8 | p[i + 1]);
    sum = (sum >> 16) + (sum & 0xffff);
    sum += sum >> 16;
    return htons((uint16_t)~sum);
}

static bool ping4(int fd, const char *address, int wait_ms)
{
    struct icmphdr h = { .type = ICMP_ECHO };
    struct sockaddr_in to = { .sin_family = AF_INET };
    uint8_t p[256];
    ssize_t n;

    h.un.echo.sequence = htons(++hosts.seq);
    h.checksum = checksum(&h, sizeof(h));
    assert_int_equal(inet_pton(AF_INET, address, &to.sin_addr), 1);
    if (sendto(fd, &h, sizeof(h), 0, (const struct sockaddr *)&to, sizeof(to)) < 0)
        return false;
    while (readable(fd, wait_ms)) {
        n = recv(fd, p, sizeof(p), 0);
        if (n < (ssize_t)(20 + sizeof(h)))
            continue;
        memcpy(&h, p + 20, sizeof(h));
        if (h.type == ICMP_ECHOREPLY && h.un.echo.sequence == htons(hosts.seq))
            return true;
    }
    return false;
}

static bool ping6(int fd, const char *address, int wait_ms)
{
    struct icmp6_hdr h = { .icmp6_type = ICMP6_ECHO_REQUEST };
    struct sockaddr_in6 to = { .sin6_family = AF_INET6 };
    ssize_t n;

    h.icmp6_seq = htons(++hosts.seq);
    assert_int_equal(inet_pton(AF_INET6, address, &to.sin6_addr), 1);
    if (sendto(fd, &h, sizeof(h), 0, (const struct sockaddr *)&to, sizeof(to)) < 0)
        return false;
    while (readable(fd, wait_ms)) {
        n = recv(fd, &h, sizeof(h), 0);
        if (n == (ssize_t)sizeof(h) && h.icmp6_seq == htons(hosts.seq))
            return true;
    }
    return false;
}

static bool reachable(void)
{
    return ping4(hosts.ping4, VIP4, WAIT_MS) && ping6(hosts.ping6, VIP6, WAIT_MS);
}

static bool silent(void)
{
    return !ping4(hosts.ping4, VIP4, SILENCE_MS) && !ping6(hosts.ping6, VIP6, SILENCE_MS);
}

static void forget_packets(void)
{
    uint8_t p[2048];

    while (recv(hosts.packets, p, sizeof(p), MSG_DONTWAIT) >= 0)
        ;
}

struct seen {
    int requests, replies, advertisements;
};

/* Everything the node said about the virtual IP by ARP and ND, until it is quiet. */
static struct seen look(int quiet_ms)
{
    struct seen s = { 0 };
    uint8_t p[2048];
    struct in_addr vip4;
    struct in6_addr vip6;

    assert_int_equal(inet_pton(AF_INET, VIP4, &vip4), 1);
    assert_int_equal(inet_pton(AF_INET6, VIP6, &vip6), 1);
    while (readable(hosts.packets, quiet_ms)) {
        struct sockaddr_ll from;
        socklen_t size = sizeof(from);
        ssize_t n =
            recvfrom(hosts.packets, p, sizeof(p), 0, (struct sockaddr *)&from, &size);
        struct ether_arp arp;
        if (n < 0 || from.sll_pkttype == PACKET_OUTGOING)
            continue;
        memcpy(&arp, p, sizeof(arp));
        if (from.sll_protocol == htons(ETH_P_ARP) && memcmp(arp.arp_spa, &vip4, 4) == 0) {
            s.requests += arp.ea_hdr.ar_op == htons(ARPOP_REQUEST);
            s.replies += arp.ea_hdr.ar_op == htons(ARPOP_REPLY);
        }
        if (from.sll_protocol == htons(ETH_P_IPV6) && n >= 40 + 24 &&
            p[6] == IPPROTO_ICMPV6 && p[40] == ND_NEIGHBOR_ADVERT &&
            memcmp(p + 48, &vip6, 16) == 0)
            s.advertisements++;
    }
    return s;
}

/* The peer asks, by broadcast, who has the address. */
static void ask_arp(void)
{
    struct sockaddr_ll to = { .sll_family = AF_PACKET,
                              .sll_protocol = htons(ETH_P_ARP),
                              .sll_halen = 6,
                              .sll_addr = { 255, 255, 255, 255, 255, 255 } };
    struct ether_arp p = { .ea_hdr = { .ar_hrd = htons(1),
                                       .ar_pro = htons(ETH_P_IP),
                                       .ar_hln = 6,
                                       .ar_pln = 4,
                                       .ar_op = htons(ARPOP_REQUEST) } };
    struct sockaddr_ll me;
    socklen_t size = sizeof(me);

    enter(hosts.peer_ns);
    to.sll_ifindex = (int)if_nametoindex("p0");
    enter(hosts.node_ns);
    assert_int_equal(getsockname(hosts.packets, (struct sockaddr *)&me, &size), 0);
    memcpy(p.arp_sha, me.sll_addr, 6);
    assert_int_equal(inet_pton(AF_INET, "10.77.9.1", p.arp_spa), 1);
    assert_int_equal(inet_pton(AF_INET, VIP4, p.arp_tpa), 1);
    assert_int_equal(
        sendto(hosts.packets, &p, sizeof(p), 0, (const struct sockaddr *)&to, sizeof(to)),
        sizeof(p));
}

/* The peer forgets its neighbours and asks anew: who answers for the virtual IP? */
static struct seen ask_neighbours(void)
{
    enter(hosts.peer_ns);
    (void)run("ip -6 neigh flush dev p0");
    enter(hosts.node_ns);
    forget_packets();
    ask_arp();
    (void)ping6(hosts.ping6, VIP6, 1);
    return look(SILENCE_MS);
}

#endif
