/*
 * The virtual IP on real kernels' network namespaces: "node" is where the code under test
 * runs, "peer" is the neighbour at the other end of a veth pair who looks at it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ifaddrs.h>

#include "own_network.h"
#include "sys/net/announce.h"
#include "sys/net/gate.h"
#include "sys/net/net.h"

enum { PATIENCE_MS = 20000 };

static struct {
    sd_event *loop;
    struct net *net;
    uint32_t answered;
    enum err err;
    int link, conflicts, lost, failed;
} t;

/* --- the code under test ----------------------------------------------------------- */

static void on_answer(void *ctx, uint32_t request, enum err err,
                      const struct err_info *why)
{
    (void)ctx;
    assert_true((err == ERR_OK) == (why == NULL));
    t.answered = request;
    t.err = err;
}

static void on_link(void *ctx, bool up)
{
    (void)ctx;
    t.link = up;
}

static void on_trouble(void *ctx, enum net_trouble trouble, const char *text)
{
    (void)ctx, (void)text;
    t.conflicts += trouble == NET_CONFLICT;
    t.lost += trouble == NET_LOST;
    t.failed += trouble == NET_FAILED;
}

static const struct net_options both = {
    .interface = "n0", .ipv4 = VIP4 "/24", .ipv6 = VIP6 "/64", .label = "n0:vip"
};
static const struct net_events events = { .answer = on_answer,
                                          .link = on_link,
                                          .trouble = on_trouble };

static int start(void **state)
{
    struct err_info why;

    (void)state;
    t.answered = 0;
    t.link = -1;
    t.conflicts = t.lost = t.failed = 0;
    assert_true(sd_event_new(&t.loop) >= 0);
    if (net_open(&t.net, t.loop, &both, &events, &why) != ERR_OK) {
        print_error("%s\n", why.what);
        return -1;
    }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    net_close(t.net);
    t.net = NULL;
    t.loop = sd_event_unref(t.loop);
    return 0;
}

static struct mono in_ms(uint32_t ms)
{
    struct timespec ts;

    assert_int_equal(clock_gettime(CLOCK_BOOTTIME, &ts), 0);
    return mono_after(
        (struct mono){ (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u },
        ms);
}

static void turn(uint32_t ms)
{
    for (struct mono end = in_ms(ms); !mono_reached(in_ms(0), end);)
        assert_true(sd_event_run(t.loop, 5000) >= 0);
}

/* Turns until *count is at least n: it is so in the end, on any machine. */
static void turn_until(const int *count, int n)
{
    for (struct mono end = in_ms(PATIENCE_MS);
         *count < n && !mono_reached(in_ms(0), end);)
        assert_true(sd_event_run(t.loop, 5000) >= 0);
    assert_true(*count >= n);
}

static enum err wait_answer(uint32_t request)
{
    assert_int_not_equal(t.answered, request); /* never from within the call */
    for (struct mono end = in_ms(PATIENCE_MS); t.answered != request;) {
        assert_false(mono_reached(in_ms(0), end));
        assert_true(sd_event_run(t.loop, 5000) >= 0);
    }
    return t.err;
}

static enum err up(uint32_t hold_ms)
{
    struct address a = net_address(t.net);

    net_hold_extend(t.net, in_ms(hold_ms));
    a.ops->up(a.impl, 7);
    return wait_answer(7);
}

static enum err down(void)
{
    struct address a = net_address(t.net);

    a.ops->down(a.impl, 8);
    return wait_answer(8);
}

static bool has_address(const char *address)
{
    struct ifaddrs *all, *i;
    char text[64];
    bool found = false;

    assert_int_equal(getifaddrs(&all), 0);
    for (i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr)
            continue;
        if (i->ifa_addr->sa_family == AF_INET)
            (void)inet_ntop(AF_INET,
                            &((struct sockaddr_in *)(void *)i->ifa_addr)->sin_addr, text,
                            sizeof(text));
        else if (i->ifa_addr->sa_family == AF_INET6)
            (void)inet_ntop(AF_INET6,
                            &((struct sockaddr_in6 *)(void *)i->ifa_addr)->sin6_addr,
                            text, sizeof(text));
        else
            continue;
        found = found || strcmp(text, address) == 0;
    }
    freeifaddrs(all);
    return found;
}

static void turn_until_addresses(void)
{
    for (struct mono end = in_ms(PATIENCE_MS);
         !(has_address(VIP4) && has_address(VIP6)) && !mono_reached(in_ms(0), end);)
        turn(20);
    assert_true(has_address(VIP4) && has_address(VIP6));
}

/* --- the rules ---------------------------------------------------------------------- */

static void up_makes_it_reachable_and_down_removes_it(void **state)
{
    (void)state;
    assert_true(silent());
    assert_int_equal(up(60000), ERR_OK);
    assert_true(has_address(VIP4) && has_address(VIP6));
    assert_true(reachable());
    assert_int_equal(down(), ERR_OK);
    assert_false(has_address(VIP4) || has_address(VIP6));
    assert_true(silent());
    assert_int_equal(t.failed + t.lost + t.conflicts, 0);
}

static void down_of_an_absent_address_is_ok(void **state)
{
    (void)state;
    assert_int_equal(down(), ERR_OK);
}

static void up_without_a_lease_is_refused(void **state)
{
    (void)state;
    assert_int_equal(up(0), ERR_STATE);
    assert_false(has_address(VIP4) || has_address(VIP6));
}

static void up_announces_to_the_neighbours_and_repeats_it(void **state)
{
    (void)state;
    forget_packets();
    assert_int_equal(up(60000), ERR_OK);
    struct seen s = look(SILENCE_MS);
    assert_true(s.requests >= 2 && s.replies >= 2 && s.advertisements >= 2);
    struct seen again = { 0 };
    for (struct mono end = in_ms(PATIENCE_MS); !mono_reached(in_ms(0), end);) {
        turn(50);
        s = look(10);
        again.requests += s.requests;
        again.replies += s.replies;
        again.advertisements += s.advertisements;
        if (again.requests >= 1 && again.replies >= 1 && again.advertisements >= 1)
            return;
    }
    fail_msg("it is not announced again");
}

static void a_neighbour_with_an_old_entry_follows_the_announcement(void **state)
{
    (void)state;
    enter(hosts.peer_ns);
    assert_int_equal(run("ip neigh replace " VIP4 " lladdr 02:00:00:00:00:99 dev p0"
                         " nud reachable"),
                     0);
    assert_int_equal(run("ip neigh replace " VIP6 " lladdr 02:00:00:00:00:99 dev p0"
                         " nud reachable"),
                     0);
    enter(hosts.node_ns);
    assert_int_equal(up(60000), ERR_OK);
    assert_true(reachable());
}

static void after_the_deadline_the_kernel_alone_silences_it(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_true(reachable());
    net_hold_extend(t.net, in_ms(250));
    (void)poll(NULL, 0, 260); /* nobody runs the loop: a frozen daemon */
    assert_true(has_address(VIP4) && has_address(VIP6));
    assert_true(silent());
    struct seen s = ask_neighbours();
    assert_int_equal(s.requests + s.replies + s.advertisements, 0);
    turn(150); /* thawed: the due announcement is not made */
    s = look(10);
    assert_int_equal(s.requests + s.replies + s.advertisements, 0);
}

static void within_the_lease_neighbours_are_answered(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    struct seen s = ask_neighbours();
    assert_true(s.replies >= 1 && s.advertisements >= 1);
}

static void a_renewal_after_the_deadline_opens_it_again(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    net_hold_extend(t.net, in_ms(50));
    (void)poll(NULL, 0, 60);
    assert_true(silent());
    net_hold_extend(t.net, in_ms(60000));
    assert_true(reachable());
}

static void revoke_silences_it_at_once(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_true(reachable());
    net_hold_revoke(t.net);
    assert_true(silent());
    net_hold_extend(t.net, in_ms(60000)); /* the next epoch's, before its up() */
    assert_true(silent());
    struct seen s = ask_neighbours();
    assert_int_equal(s.requests + s.replies + s.advertisements, 0);
}

static void an_address_added_by_somebody_else_stays_silent(void **state)
{
    (void)state;
    assert_int_equal(run("ip addr add " VIP4 "/24 dev n0"), 0);
    assert_int_equal(run("ip addr add " VIP6 "/64 dev n0 nodad"), 0);
    assert_true(silent());
    struct seen s = ask_neighbours();
    assert_int_equal(s.requests + s.replies + s.advertisements, 0);
}

static void a_shut_gate_does_not_keep_this_node_from_the_other(void **state)
{
    (void)state;
    enter(hosts.peer_ns);
    assert_int_equal(run("ip addr add " VIP4 "/24 dev p0"), 0);
    enter(hosts.node_ns);
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    bool ok = ping4(fd, VIP4, WAIT_MS);
    close(fd);
    enter(hosts.peer_ns);
    assert_int_equal(run("ip addr del " VIP4 "/24 dev p0"), 0);
    enter(hosts.node_ns);
    assert_true(ok);
}

/* A child pings as fast as it can; its exit status is the number of pings without answer.
 */
static void renewals_lose_no_packet(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_true(reachable());
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int lost = 0;
        for (struct mono end = in_ms(500); !mono_reached(in_ms(0), end);)
            lost +=
                !ping4(hosts.ping4, VIP4, WAIT_MS) + !ping6(hosts.ping6, VIP6, WAIT_MS);
        _exit(lost > 100 ? 100 : lost);
    }
    int status = 0, renewals = 0;
    struct mono began = in_ms(0);
    uint64_t busy = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        struct mono before = in_ms(0);
        net_hold_extend(t.net, in_ms(60000));
        busy += in_ms(0).us - before.us;
        renewals++;
        assert_true(mono_since_ms(in_ms(0), began) < 60000);
    }
    print_message("# %d renewals, %u us each\n", renewals,
                  (unsigned)(busy / (uint64_t)renewals));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void what_a_crash_left_is_removed_at_start(void **state)
{
    (void)state;
    assert_int_equal(run("ip addr add " VIP4 "/32 dev lo"), 0);
    assert_int_equal(run("ip addr add " VIP6 "/64 dev n0 nodad"), 0);
    assert_int_equal(run("nft add table inet redoubt"), 0);
    assert_int_equal(start(NULL), 0);
    assert_false(has_address(VIP4) || has_address(VIP6));
    assert_true(silent());
    stop(NULL);
    assert_int_not_equal(run("nft delete table inet redoubt"), 0);
}

static void an_emptied_ruleset_is_created_again_by_the_renewal(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_int_equal(run("nft flush ruleset"), 0);
    net_hold_extend(t.net, in_ms(2000));
    assert_int_equal(t.lost, 1);
    assert_true(reachable());
    (void)poll(NULL, 0, 2010);
    assert_true(silent());
}

static void a_removed_address_is_put_back(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_int_equal(run("ip addr del " VIP4 "/24 dev n0"), 0);
    assert_int_equal(run("ip addr del " VIP6 "/64 dev n0"), 0);
    turn_until_addresses();
    turn(100);
    assert_true(t.lost >= 1);
    assert_true(reachable());
}

static void the_link_is_told_and_the_address_survives_it(void **state)
{
    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    assert_int_equal(t.link, 1);
    assert_int_equal(run("ip link set n0 down"), 0);
    for (struct mono end = in_ms(PATIENCE_MS); t.link != 0;) {
        assert_false(mono_reached(in_ms(0), end));
        turn(10);
    }
    assert_false(net_link_up(t.net));
    assert_int_equal(run("ip link set n0 up"), 0);
    turn_until(&t.link, 1);
    turn_until_addresses();
    turn(300);
    assert_int_equal(t.link, 1);
    assert_true(reachable());
    assert_int_equal(run("ip addr replace fd77:9::21/64 dev n0 nodad"), 0);
}

static void another_claim_is_noticed(void **state)
{
    struct announce other;
    struct net_ip vip4, vip6;
    struct err_info why;

    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    turn(20);
    assert_int_equal(t.conflicts, 0);
    assert_int_equal(net_ip_parse(&vip4, AF_INET, VIP4 "/24", &why), ERR_OK);
    assert_int_equal(net_ip_parse(&vip6, AF_INET6, "", &why), ERR_OK);
    announce_init(&other, &vip4, &vip6);
    enter(hosts.peer_ns);
    assert_int_equal(announce_open(&other, "p0", if_nametoindex("p0"), &why), ERR_OK);
    enter(hosts.node_ns);
    forget_packets();
    assert_int_equal(announce_send(&other, false, &why), ERR_OK);
    announce_close(&other);
    turn_until(&t.conflicts, 1);
    turn(50);
    assert_int_equal(t.conflicts, 1);
    assert_true(look(SILENCE_MS).replies >= 1); /* and answered */
}

static void the_probe_finds_who_has_it_already(void **state)
{
    (void)state;
    enter(hosts.peer_ns);
    assert_int_equal(run("ip addr add " VIP4 "/24 dev p0"), 0);
    enter(hosts.node_ns);
    enum err e = up(60000);
    turn_until(&t.conflicts, 1);
    turn(100);
    enter(hosts.peer_ns);
    assert_int_equal(run("ip addr del " VIP4 "/24 dev p0"), 0);
    enter(hosts.node_ns);
    assert_int_equal(e, ERR_OK);
    assert_int_equal(t.conflicts, 1);
}

/* A thawed process may be one instruction before sending: the kernel must stop that, too.
 */
static void no_announcement_passes_a_shut_gate(void **state)
{
    struct gate g;
    struct announce a;
    struct net_ip vip4, vip6;
    struct err_info why;

    (void)state;
    assert_int_equal(net_ip_parse(&vip4, AF_INET, VIP4 "/24", &why), ERR_OK);
    assert_int_equal(net_ip_parse(&vip6, AF_INET6, VIP6 "/64", &why), ERR_OK);
    assert_int_equal(gate_open(&g, "n0", &vip4, &vip6, &why), ERR_OK);
    assert_int_equal(run("ip addr add " VIP6 "/64 dev n0 nodad"), 0);
    announce_init(&a, &vip4, &vip6);
    assert_int_equal(announce_open(&a, "n0", if_nametoindex("n0"), &why), ERR_OK);
    assert_int_equal(gate_set(&g, 60000, &why), ERR_OK);
    forget_packets();
    assert_int_equal(announce_send(&a, true, &why), ERR_OK);
    struct seen open = look(SILENCE_MS);
    assert_int_equal(gate_set(&g, 0, &why), ERR_OK);
    (void)announce_send(&a, true, NULL);
    struct seen shut = look(SILENCE_MS);
    announce_close(&a);
    bool egress = g.egress;
    gate_close(&g);
    assert_int_equal(run("ip addr del " VIP6 "/64 dev n0"), 0);
    assert_true(open.replies == 1 && open.requests == 1 && open.advertisements == 1);
    assert_int_equal(shut.advertisements, 0);
    if (egress)
        assert_int_equal(shut.replies + shut.requests, 0);
}

static void the_death_messages_remove_it(void **state)
{
    struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
    uint8_t buf[512];

    (void)state;
    assert_int_equal(up(60000), ERR_OK);
    size_t n = net_death_messages(t.net, buf, sizeof(buf));
    assert_true(n > 0);
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    assert_int_equal(
        sendto(fd, buf, n, 0, (const struct sockaddr *)&kernel, sizeof(kernel)), n);
    close(fd);
    assert_false(has_address(VIP4) || has_address(VIP6));
    assert_int_equal(net_death_messages(t.net, buf, 8), 0);
}

static void without_an_address_everything_is_ok(void **state)
{
    static const struct net_options none = { "", "", "", "", 0 };
    struct err_info why;

    (void)state;
    assert_true(sd_event_new(&t.loop) >= 0);
    assert_int_equal(net_open(&t.net, t.loop, &none, &events, &why), ERR_OK);
    t.answered = 0;
    assert_int_equal(up(0), ERR_OK);
    assert_int_equal(down(), ERR_OK);
    net_hold_revoke(t.net);
    stop(NULL);
}

static void wrong_options_are_refused(void **state)
{
    static const struct {
        struct net_options o;
        enum err err;
    } rows[] = {
        { { "n0", "10.0.0.1", "", "", 0 }, ERR_CONFIG },
        { { "n0", "10.0.0.1/33", "", "", 0 }, ERR_CONFIG },
        { { "n0", "10.0.0.1/0", "", "", 0 }, ERR_CONFIG },
        { { "n0", "10.0.0/24", "", "", 0 }, ERR_CONFIG },
        { { "n0", "fd00::1/64", "", "", 0 }, ERR_CONFIG },
        { { "n0", "", "10.0.0.1/24", "", 0 }, ERR_CONFIG },
        { { "n0", "", "fd00::1/129", "", 0 }, ERR_CONFIG },
        { { "n0\" x", "10.0.0.1/24", "", "", 0 }, ERR_CONFIG },
        { { "an-interface-too-long", "10.0.0.1/24", "", "", 0 }, ERR_CONFIG },
        { { "nope0", "10.0.0.1/24", "", "", 0 }, ERR_NOT_FOUND },
    };
    struct err_info why;

    (void)state;
    assert_true(sd_event_new(&t.loop) >= 0);
    for (size_t i = 0; i < LEN(rows); i++)
        assert_int_equal(net_open(&t.net, t.loop, &rows[i].o, &events, &why),
                         rows[i].err);
    t.loop = sd_event_unref(t.loop);
}

#define RULE(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_options_are_refused),
        cmocka_unit_test(without_an_address_everything_is_ok),
        RULE(up_makes_it_reachable_and_down_removes_it),
        RULE(down_of_an_absent_address_is_ok),
        RULE(up_without_a_lease_is_refused),
        RULE(up_announces_to_the_neighbours_and_repeats_it),
        RULE(a_neighbour_with_an_old_entry_follows_the_announcement),
        RULE(after_the_deadline_the_kernel_alone_silences_it),
        RULE(within_the_lease_neighbours_are_answered),
        RULE(a_renewal_after_the_deadline_opens_it_again),
        RULE(revoke_silences_it_at_once),
        RULE(an_address_added_by_somebody_else_stays_silent),
        RULE(a_shut_gate_does_not_keep_this_node_from_the_other),
        RULE(renewals_lose_no_packet),
        cmocka_unit_test(what_a_crash_left_is_removed_at_start),
        RULE(an_emptied_ruleset_is_created_again_by_the_renewal),
        RULE(a_removed_address_is_put_back),
        RULE(the_link_is_told_and_the_address_survives_it),
        RULE(another_claim_is_noticed),
        RULE(the_probe_finds_who_has_it_already),
        cmocka_unit_test(no_announcement_passes_a_shut_gate),
        RULE(the_death_messages_remove_it),
    };

    if (unshare(CLONE_NEWNET) < 0) {
        printf("1..0 # SKIP needs root to make network namespaces\n");
        return 0;
    }
    return cmocka_run_group_tests_name("net", tests, make_hosts, NULL);
}
