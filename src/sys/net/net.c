#include "sys/net/net.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/str.h"
#include "sys/net/announce.h"
#include "sys/net/gate.h"

enum {
    NET_ANSWERS_MAX = 8,
    NET_PERIOD_MS = 10000,
    NET_REPAIR_MS = 100,   /* an address that was removed is put back after */
    NET_TROUBLE_MS = 1000, /* the same trouble is reported at most this often */
    NET_READY_MS = 200,    /* the kernel has readied an IPv6 address long before */
};

/* After the burst of up(): when the next announcements follow, then periodically. */
static const uint32_t announce_after_ms[] = { 100, 900, 4000 };

struct net_answer {
    uint32_t request;
    enum err err;
    struct err_info why;
};

struct net {
    struct net_events events;
    char interface[IF_NAMESIZE], label[IF_NAMESIZE];
    uint32_t period_ms;
    struct net_ip ip4, ip6;
    unsigned ifindex; /* 0: the interface is not there */
    bool link_up, link_told;
    bool wanted;         /* the address is or should be on the interface */
    bool open;           /* up() was called and neither down() nor revoke() since */
    bool ip6_ready;      /* the kernel has told that the IPv6 address works */
    uint32_t up_request; /* up() that waits for it; 0: none */
    struct mono deadline;
    struct gate gate;
    struct announce announce;
    int route_fd, monitor_fd;
    size_t announced; /* how many of announce_after_ms are behind us */
    struct mono told[NET_FAILED + 1];
    struct net_answer answers[NET_ANSWERS_MAX];
    size_t answer_count;
    sd_event *loop;
    sd_event_source *later, *monitor, *announce_timer, *repair_timer, *ready_timer, *arp,
        *nd;
};

static struct mono now_of(void)
{
    struct timespec ts;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &ts) == 0);
    return (struct mono){ (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u };
}

static bool has_address(const struct net *n)
{
    return n->ip4.family != 0 || n->ip6.family != 0;
}

static bool held(const struct net *n)
{
    return n->open && !mono_reached(now_of(), n->deadline);
}

static void arm(sd_event_source *timer, uint32_t ms)
{
    (void)sd_event_source_set_time_relative(timer, (uint64_t)ms * 1000u);
    (void)sd_event_source_set_enabled(timer, SD_EVENT_ONESHOT);
}

static void disarm(sd_event_source *timer)
{
    (void)sd_event_source_set_enabled(timer, SD_EVENT_OFF);
}

/*
 * Trouble found inside a call of the port is told by the same path: the callback only
 * records and logs; it must not call back into this module.
 */
static void tell(struct net *n, enum net_trouble what, const char *text)
{
    struct mono now = now_of();

    if (mono_is_set(n->told[what]) && mono_since_ms(now, n->told[what]) < NET_TROUBLE_MS)
        return;
    n->told[what] = now;
    n->events.trouble(n->events.ctx, what, text);
}

/* --- the gate ------------------------------------------------------------------ */

static enum err open_gate(struct net *n, struct err_info *info)
{
    struct mono now = now_of();
    uint64_t left = n->deadline.us > now.us ? (n->deadline.us - now.us) / 1000u : 0;
    enum err e = gate_set(&n->gate, left, info);

    if (e != ERR_NOT_FOUND)
        return e;
    tell(n, NET_LOST, "the nftables lease was removed by somebody; it is created again");
    e = gate_build(&n->gate, info);
    return e == ERR_OK ? gate_set(&n->gate, left, info) : e;
}

static void shut_gate(struct net *n)
{
    struct err_info info;
    enum err e = gate_set(&n->gate, 0, &info);

    n->open = false;
    disarm(n->announce_timer);
    if (e != ERR_OK && e != ERR_NOT_FOUND) /* gone tables are found by the next up() */
        tell(n, NET_FAILED, info.what);
}

void net_hold_extend(struct net *n, struct mono deadline)
{
    struct err_info info;

    n->deadline = deadline;
    if (n->open && open_gate(n, &info) != ERR_OK)
        tell(n, NET_FAILED, info.what);
}

void net_hold_revoke(struct net *n)
{
    n->deadline = (struct mono){ 0 };
    if (has_address(n))
        shut_gate(n);
}

/* --- announcing ---------------------------------------------------------------- */

static void announce_now(struct net *n)
{
    struct err_info info;

    if (held(n) && announce_send(&n->announce, n->ip6_ready, &info) != ERR_OK)
        tell(n, NET_FAILED, info.what);
}

static void announce_afresh(struct net *n)
{
    announce_now(n);
    announce_now(n);
    n->announced = 0;
    arm(n->announce_timer, announce_after_ms[0]);
}

static int on_announce_timer(sd_event_source *s, uint64_t usec, void *ctx)
{
    struct net *n = ctx;

    (void)s, (void)usec;
    announce_now(n);
    if (n->announced < LEN(announce_after_ms))
        n->announced++;
    arm(n->announce_timer, n->announced < LEN(announce_after_ms)
                               ? announce_after_ms[n->announced]
                               : n->period_ms);
    return 0;
}

static int on_claim(sd_event_source *s, int fd, uint32_t revents, void *ctx)
{
    struct net *n = ctx;
    const struct net_ip *ip;
    char mac[MAC_TEXT], text[160];

    (void)s, (void)revents;
    if (!announce_hear(&n->announce, fd, &ip, mac) || !n->wanted)
        return 0;
    if (mono_is_set(n->told[NET_CONFLICT]) &&
        mono_since_ms(now_of(), n->told[NET_CONFLICT]) < NET_TROUBLE_MS)
        return 0;
    (void)snprintf(text, sizeof(text), "%s is claimed by another machine (%s)", ip->text,
                   mac[0] ? mac : "it did not say its link address");
    tell(n, NET_CONFLICT, text);
    announce_afresh(n);
    return 0;
}

static void stop_announcing(struct net *n)
{
    disarm(n->announce_timer);
    n->arp = sd_event_source_disable_unref(n->arp);
    n->nd = sd_event_source_disable_unref(n->nd);
    announce_close(&n->announce);
}

static enum err start_announcing(struct net *n, struct err_info *info)
{
    int r = 0;

    stop_announcing(n);
    enum err e = announce_open(&n->announce, n->interface, n->ifindex, info);
    if (e != ERR_OK)
        return e;
    if (n->announce.arp_fd >= 0)
        r = sd_event_add_io(n->loop, &n->arp, n->announce.arp_fd, EPOLLIN, on_claim, n);
    if (r >= 0 && n->announce.nd_fd >= 0)
        r = sd_event_add_io(n->loop, &n->nd, n->announce.nd_fd, EPOLLIN, on_claim, n);
    return r < 0 ? err_set(info, ERR_MEMORY, -r, "listen for other claims") : ERR_OK;
}

/* --- the address --------------------------------------------------------------- */

static void look_at_link(struct net *n);

static void on_link_message(void *ctx, const struct nlmsghdr *h)
{
    if (h->nlmsg_type == RTM_NEWLINK || h->nlmsg_type == RTM_DELLINK)
        look_at_link(ctx);
}

static enum err add_addresses(struct net *n, struct err_info *info)
{
    enum err e = ERR_OK;

    /* What was told about addresses so far is about earlier ones. */
    (void)nl_receive(n->monitor_fd, on_link_message, n);
    n->ip6_ready = n->ip6.family == 0;
    if (n->ip4.family)
        e = ip_add(n->route_fd, &n->ip4, n->ifindex, n->label, info);
    if (e != ERR_OK && e != ERR_EXISTS)
        return e;
    if (n->ip6.family) {
        e = ip_add(n->route_fd, &n->ip6, n->ifindex, "", info);
        n->ip6_ready = e == ERR_EXISTS;
    }
    return e == ERR_EXISTS ? ERR_OK : e;
}

static enum err put_address(struct net *n, struct err_info *info)
{
    n->ifindex = if_nametoindex(n->interface);
    if (n->ifindex == 0)
        return err_set(info, ERR_NOT_FOUND, errno, "interface %s", n->interface);
    enum err e = add_addresses(n, info);
    if (e == ERR_OK)
        e = start_announcing(n, info);
    if (e != ERR_OK)
        return e;
    announce_probe(&n->announce);
    announce_afresh(n);
    return ERR_OK;
}

static enum err drop_address(struct net *n, struct err_info *info)
{
    enum err e = ERR_OK, e6 = ERR_OK;

    stop_announcing(n);
    disarm(n->repair_timer);
    if (n->ip4.family)
        e = ip_remove_all(n->route_fd, &n->ip4, info);
    if (n->ip6.family)
        e6 = ip_remove_all(n->route_fd, &n->ip6, info);
    return e != ERR_OK ? e : e6;
}

static void answer_later(struct net *n, uint32_t request, enum err e,
                         const struct err_info *why)
{
    CHECK(n->answer_count < NET_ANSWERS_MAX);
    struct net_answer *a = &n->answers[n->answer_count++];
    *a = (struct net_answer){ .request = request, .err = e };
    if (e != ERR_OK)
        a->why = *why;
    (void)sd_event_source_set_enabled(n->later, SD_EVENT_ONESHOT);
}

/* The up() that waits for the IPv6 address gets its answer. */
static void end_up(struct net *n, enum err e, const struct err_info *why)
{
    if (n->up_request == 0)
        return;
    disarm(n->ready_timer);
    answer_later(n, n->up_request, e, why);
    n->up_request = 0;
}

static void take_back(struct net *n)
{
    n->wanted = false;
    shut_gate(n);
    (void)drop_address(n, NULL);
}

static void up(void *impl, uint32_t request)
{
    struct net *n = impl;
    struct err_info info = { 0 };
    enum err e = ERR_OK;

    if (has_address(n)) {
        if (mono_reached(now_of(), n->deadline))
            e = err_set(&info, ERR_STATE, 0, "no lease is held for the virtual IP");
        if (e == ERR_OK)
            e = open_gate(n, &info);
        n->open = n->wanted = e == ERR_OK;
        if (e == ERR_OK)
            e = put_address(n, &info);
        if (e != ERR_OK)
            take_back(n);
    }
    CHECK(n->up_request == 0);
    n->up_request = request;
    if (e != ERR_OK || !has_address(n) || n->ip6_ready)
        end_up(n, e, &info);
    else
        arm(n->ready_timer, NET_READY_MS);
}

static void down(void *impl, uint32_t request)
{
    struct net *n = impl;
    struct err_info info = { 0 };
    enum err e = ERR_OK;

    if (has_address(n)) {
        struct err_info gone = { .what = "the address was taken down meanwhile" };
        end_up(n, ERR_STATE, &gone);
        n->wanted = false;
        shut_gate(n);
        e = drop_address(n, &info);
    }
    answer_later(n, request, e, &info);
}

static int on_later(sd_event_source *s, void *ctx)
{
    struct net *n = ctx;
    struct net_answer answers[NET_ANSWERS_MAX];
    size_t count = n->answer_count;

    (void)s;
    memcpy(answers, n->answers, count * sizeof(answers[0]));
    n->answer_count = 0;
    if (!n->link_told) {
        n->link_told = true;
        n->events.link(n->events.ctx, n->link_up);
    }
    for (size_t i = 0; i < count; i++)
        n->events.answer(n->events.ctx, answers[i].request, answers[i].err,
                         answers[i].err == ERR_OK ? NULL : &answers[i].why);
    return 0;
}

/* --- what happens to the interface ----------------------------------------------- */

static void ip6_works(struct net *n)
{
    n->ip6_ready = true;
    announce_afresh(n);
    end_up(n, ERR_OK, NULL);
}

/* The kernel's word was missed, or it is very late: go on all the same. */
static int on_ready_timer(sd_event_source *s, uint64_t usec, void *ctx)
{
    (void)s, (void)usec;
    ip6_works(ctx);
    return 0;
}

static int on_repair(sd_event_source *s, uint64_t usec, void *ctx)
{
    struct net *n = ctx;
    struct err_info info;

    (void)s, (void)usec;
    if (n->wanted && put_address(n, &info) != ERR_OK) {
        tell(n, NET_FAILED, info.what);
        arm(n->repair_timer, NET_TROUBLE_MS);
    }
    return 0;
}

static bool interface_runs(const struct net *n)
{
    struct ifreq rq = { 0 };

    memcpy(rq.ifr_name, n->interface, sizeof(rq.ifr_name));
    return ioctl(n->monitor_fd, SIOCGIFFLAGS, &rq) == 0 && (rq.ifr_flags & IFF_UP) &&
           (rq.ifr_flags & IFF_RUNNING);
}

static void look_at_link(struct net *n)
{
    bool runs = interface_runs(n);

    if (runs == n->link_up)
        return;
    n->link_up = runs;
    n->link_told = false;
    (void)sd_event_source_set_enabled(n->later, SD_EVENT_ONESHOT);
    if (runs &&
        n->wanted) /* IPv6 addresses are lost with the link; tell the switch, too */
        arm(n->repair_timer, 0);
}

static void on_message(void *ctx, const struct nlmsghdr *h)
{
    struct net *n = ctx;
    unsigned ifindex;
    uint8_t prefix;

    on_link_message(n, h);
    if (!n->wanted)
        return;
    if (h->nlmsg_type == RTM_NEWADDR && !n->ip6_ready &&
        ip_is_about(h, &n->ip6, &ifindex, &prefix))
        ip6_works(n);
    if (h->nlmsg_type != RTM_DELADDR)
        return;
    if ((n->ip4.family && ip_is_about(h, &n->ip4, &ifindex, &prefix)) ||
        (n->ip6.family && ip_is_about(h, &n->ip6, &ifindex, &prefix))) {
        tell(n, NET_LOST,
             "the virtual IP was removed from the interface by somebody; "
             "it is added again");
        arm(n->repair_timer, NET_REPAIR_MS);
    }
}

static int on_monitor(sd_event_source *s, int fd, uint32_t revents, void *ctx)
{
    struct net *n = ctx;

    (void)s, (void)revents;
    if (nl_receive(fd, on_message, n)) { /* messages were lost: assume the worst */
        look_at_link(n);
        if (n->wanted)
            arm(n->repair_timer, 0);
    }
    return 0;
}

/* --- life ------------------------------------------------------------------------ */

static enum err read_options(struct net *n, const struct net_options *o,
                             struct err_info *info)
{
    enum err e = net_ip_parse(&n->ip4, AF_INET, o->ipv4, info);

    if (e == ERR_OK)
        e = net_ip_parse(&n->ip6, AF_INET6, o->ipv6, info);
    if (e != ERR_OK || !has_address(n))
        return e;
    if (!str_copy(n->interface, sizeof(n->interface), str_of(o->interface)) ||
        strchr(o->interface, '"'))
        return err_set(info, ERR_CONFIG, 0, "\"%s\" is not the name of an interface",
                       o->interface);
    if (!str_copy(n->label, sizeof(n->label), str_of(o->label)))
        return err_set(info, ERR_CONFIG, 0, "the label \"%s\" is too long", o->label);
    n->period_ms = o->announce_period_ms ? o->announce_period_ms : NET_PERIOD_MS;
    n->ifindex = if_nametoindex(n->interface);
    return n->ifindex ? ERR_OK
                      : err_set(info, ERR_NOT_FOUND, errno, "interface %s", n->interface);
}

static enum err listen_to_events(struct net *n, struct err_info *info)
{
    const clockid_t clock = CLOCK_BOOTTIME;
    int r = sd_event_add_defer(n->loop, &n->later, on_later, n);

    if (r < 0)
        return err_set(info, ERR_MEMORY, -r, "add an event source");
    if (!has_address(n)) {
        n->link_up = true;
        return ERR_OK;
    }
    n->link_up = interface_runs(n);
    r = sd_event_add_io(n->loop, &n->monitor, n->monitor_fd, EPOLLIN, on_monitor, n);
    if (r >= 0)
        r = sd_event_add_time_relative(n->loop, &n->announce_timer, clock, 0, 1000,
                                       on_announce_timer, n);
    if (r >= 0)
        r = sd_event_add_time_relative(n->loop, &n->repair_timer, clock, 0, 1000,
                                       on_repair, n);
    if (r >= 0)
        r = sd_event_add_time_relative(n->loop, &n->ready_timer, clock, 0, 1000,
                                       on_ready_timer, n);
    if (r < 0)
        return err_set(info, ERR_MEMORY, -r, "add an event source");
    disarm(n->announce_timer);
    disarm(n->repair_timer);
    disarm(n->ready_timer);
    return ERR_OK;
}

static enum err open_sockets(struct net *n, struct err_info *info)
{
    const uint32_t groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
    enum err e = nl_open(NETLINK_ROUTE, 0, &n->route_fd, info);

    if (e == ERR_OK)
        e = drop_address(n, info); /* what a crash left behind */
    if (e == ERR_OK)
        e = nl_open(NETLINK_ROUTE, groups, &n->monitor_fd, info);
    if (e == ERR_OK)
        e = gate_open(&n->gate, n->interface, &n->ip4, &n->ip6, info);
    return e;
}

enum err net_open(struct net **out, sd_event *loop, const struct net_options *o,
                  const struct net_events *events, struct err_info *info)
{
    struct net *n = calloc(1, sizeof(*n));

    if (!n)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    n->events = *events;
    n->loop = sd_event_ref(loop);
    n->route_fd = n->monitor_fd = n->gate.fd = -1;
    enum err e = read_options(n, o, info);
    announce_init(&n->announce, &n->ip4, &n->ip6);
    if (e == ERR_OK && has_address(n))
        e = open_sockets(n, info);
    if (e == ERR_OK)
        e = listen_to_events(n, info);
    if (e != ERR_OK) {
        net_close(n);
        return e;
    }
    *out = n;
    return ERR_OK;
}

void net_close(struct net *n)
{
    if (!n)
        return;
    n->wanted = n->open = false;
    if (n->gate.fd >= 0)
        (void)gate_set(&n->gate, 0, NULL);
    /* The tables go only when the address did: a shut gate is better than none. */
    if (n->route_fd >= 0 && drop_address(n, NULL) == ERR_OK)
        gate_close(&n->gate);
    stop_announcing(n);
    n->later = sd_event_source_disable_unref(n->later);
    n->monitor = sd_event_source_disable_unref(n->monitor);
    n->announce_timer = sd_event_source_disable_unref(n->announce_timer);
    n->repair_timer = sd_event_source_disable_unref(n->repair_timer);
    n->ready_timer = sd_event_source_disable_unref(n->ready_timer);
    if (n->route_fd >= 0)
        close(n->route_fd);
    if (n->monitor_fd >= 0)
        close(n->monitor_fd);
    sd_event_unref(n->loop);
    free(n);
}

struct address net_address(struct net *n)
{
    static const struct address_ops ops = { .up = up, .down = down };

    return (struct address){ .ops = &ops, .impl = n };
}

bool net_link_up(const struct net *n)
{
    return n->link_up;
}

size_t net_death_messages(const struct net *n, void *buf, size_t size)
{
    struct nl_buf b = { 0 };

    if (n->ip4.family)
        ip_removal(&b, &n->ip4, n->ifindex, 1);
    if (n->ip6.family)
        ip_removal(&b, &n->ip6, n->ifindex, 2);
    if (b.cut || b.n > size)
        return 0;
    memcpy(buf, b.p, b.n);
    return b.n;
}
