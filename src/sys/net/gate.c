#include "sys/net/gate.h"

#include <arpa/inet.h>
#include <errno.h>
#include <endian.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <nftables/libnftables.h>
#include <unistd.h>

#include "base/str.h"

#define GATE_NAME "redoubt"
#define GATE_SET  "lease"

/* A table is named once before it is deleted: deleting what is not there would fail. */
static void renew_table(struct text *t, const char *family)
{
    text_add(t, "table %s " GATE_NAME "\ndelete table %s " GATE_NAME "\n", family,
             family);
}

static void add_inet_rules(struct text *t, const struct gate *g)
{
    char hex[33];

    renew_table(t, "inet");
    text_add(t, "table inet " GATE_NAME " {\n"
                " set " GATE_SET " { type nf_proto; flags timeout; }\n"
                " chain input {\n"
                "  type filter hook input priority raw; policy accept;\n");
    if (g->ip4.family)
        text_add(t, "  ip daddr %s meta nfproto != @" GATE_SET " counter drop\n",
                 g->ip4.text);
    hex_encode(hex, g->ip6.bytes, 16);
    if (g->ip6.family)
        text_add(t,
                 "  ip6 daddr %s meta nfproto != @" GATE_SET " counter drop\n"
                 "  icmpv6 type nd-neighbor-solicit @th,64,128 0x%s"
                 " meta nfproto != @" GATE_SET " counter drop\n",
                 g->ip6.text, hex);
    text_add(t, " }\n chain output {\n"
                "  type filter hook output priority raw; policy accept;\n");
    if (g->ip4.family)
        text_add(t, "  ip saddr %s meta nfproto != @" GATE_SET " counter drop\n",
                 g->ip4.text);
    if (g->ip6.family)
        text_add(t,
                 "  ip6 saddr %s meta nfproto != @" GATE_SET " counter drop\n"
                 "  icmpv6 type nd-neighbor-advert @th,64,128 0x%s"
                 " meta nfproto != @" GATE_SET " counter drop\n",
                 g->ip6.text, hex);
    text_add(t, " }\n}\n");
}

static void add_arp_rules(struct text *t, const struct gate *g)
{
    renew_table(t, "arp");
    if (!g->ip4.family)
        return;
    text_add(t,
             "table arp " GATE_NAME " {\n"
             " set " GATE_SET " { type ipv4_addr; flags timeout; }\n"
             " chain input {\n"
             "  type filter hook input priority filter; policy accept;\n"
             "  arp operation request arp saddr ip != %s arp daddr ip %s"
             " arp daddr ip != @" GATE_SET " counter drop\n"
             " }\n chain output {\n"
             "  type filter hook output priority filter; policy accept;\n"
             "  arp saddr ip %s arp saddr ip != @" GATE_SET " counter drop\n"
             " }\n}\n",
             g->ip4.text, g->ip4.text, g->ip4.text);
}

/* Also what packet sockets send: our own announcements pass here and nowhere else. */
static void add_egress_rules(struct text *t, const struct gate *g)
{
    renew_table(t, "netdev");
    text_add(t,
             "table netdev " GATE_NAME " {\n"
             " set " GATE_SET " { type ipv4_addr; flags timeout; }\n"
             " chain egress {\n"
             "  type filter hook egress device \"%s\" priority filter; policy accept;\n"
             "  arp saddr ip %s arp saddr ip != @" GATE_SET " counter drop\n"
             " }\n}\n",
             g->interface, g->ip4.text);
}

/* A deletion of the table of a family, which may not be there. */
static enum err run(const char *rules, struct err_info *info)
{
    struct nft_ctx *nft = nft_ctx_new(NFT_CTX_DEFAULT);
    enum err e = ERR_OK;

    if (!nft)
        return err_set(info, ERR_UNSUPPORTED, 0, "start libnftables");
    (void)nft_ctx_buffer_output(nft);
    (void)nft_ctx_buffer_error(nft);
    if (nft_run_cmd_from_buffer(nft, rules) != 0) {
        const char *why = nft_ctx_get_error_buffer(nft);
        size_t line = why ? strcspn(why, "\n") : 0;
        e = err_set(info, ERR_UNSUPPORTED, 0, "create the nftables lease: %.*s",
                    (int)line, why ? why : "");
    }
    nft_ctx_free(nft);
    return e;
}

enum err gate_open(struct gate *g, const char *interface, const struct net_ip *ip4,
                   const struct net_ip *ip6, struct err_info *info)
{
    *g = (struct gate){ .fd = -1, .ip4 = *ip4, .ip6 = *ip6, .interface = interface };
    enum err e = nl_open(NETLINK_NETFILTER, 0, &g->fd, info);

    return e == ERR_OK ? gate_build(g, info) : e;
}

enum err gate_build(struct gate *g, struct err_info *info)
{
    char rules[4096];
    struct text t;

    text_init(&t, rules, sizeof(rules));
    add_inet_rules(&t, g);
    add_arp_rules(&t, g);
    CHECK(!t.cut);
    g->built = g->egress = false;
    enum err e = run(rules, info);
    if (e != ERR_OK)
        return e;
    g->built = true;
    if (g->ip4.family) { /* kernels before 5.16 have no egress hook: then go without */
        text_init(&t, rules, sizeof(rules));
        add_egress_rules(&t, g);
        g->egress = run(rules, NULL) == ERR_OK;
    }
    return ERR_OK;
}

/* The whole batch: its frame (begin, end) and, per set, "empty it" and "add this". */
struct batch {
    struct nl_buf b;
    uint32_t seq;
};

static void batch_mark(struct batch *x, uint16_t type)
{
    struct nfgenmsg head = { .nfgen_family = AF_UNSPEC,
                             .version = NFNETLINK_V0,
                             .res_id = htons(NFNL_SUBSYS_NFTABLES) };

    nl_end(&x->b, nl_begin(&x->b, type, NLM_F_REQUEST, x->seq++, &head, sizeof(head)));
}

static size_t batch_message(struct batch *x, uint8_t family, int what, uint16_t flags)
{
    struct nfgenmsg head = { .nfgen_family = family, .version = NFNETLINK_V0 };
    uint16_t type = (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | what);
    size_t m = nl_begin(&x->b, type, NLM_F_REQUEST | NLM_F_ACK | flags, x->seq++, &head,
                        sizeof(head));

    nl_attr_str(&x->b, NFTA_SET_ELEM_LIST_TABLE, GATE_NAME);
    nl_attr_str(&x->b, NFTA_SET_ELEM_LIST_SET, GATE_SET);
    return m;
}

static void batch_clear(struct batch *x, uint8_t family)
{
    nl_end(&x->b, batch_message(x, family, NFT_MSG_DELSETELEM, 0));
}

static void batch_add(struct batch *x, uint8_t family, const void *key, size_t key_size,
                      uint64_t left_ms)
{
    uint64_t timeout = htobe64(left_ms);
    size_t m = batch_message(x, family, NFT_MSG_NEWSETELEM, NLM_F_CREATE);
    size_t list = nl_nest(&x->b, NFTA_SET_ELEM_LIST_ELEMENTS);
    size_t elem = nl_nest(&x->b, NFTA_LIST_ELEM);
    size_t k = nl_nest(&x->b, NFTA_SET_ELEM_KEY);

    nl_attr(&x->b, NFTA_DATA_VALUE, key, key_size);
    nl_nest_end(&x->b, k);
    nl_attr(&x->b, NFTA_SET_ELEM_TIMEOUT, &timeout, sizeof(timeout));
    nl_nest_end(&x->b, elem);
    nl_nest_end(&x->b, list);
    nl_end(&x->b, m);
}

enum err gate_set(struct gate *g, uint64_t left_ms, struct err_info *info)
{
    static const uint8_t v4 = NFPROTO_IPV4, v6 = NFPROTO_IPV6;
    const uint8_t *ip4 = g->ip4.bytes;
    struct batch x = { .seq = 1 };

    if (!g->built)
        return err_set(info, ERR_NOT_FOUND, 0, "the nftables lease is not there");
    batch_mark(&x, NFNL_MSG_BATCH_BEGIN);
    batch_clear(&x, NFPROTO_INET);
    if (left_ms > 0 && g->ip4.family)
        batch_add(&x, NFPROTO_INET, &v4, 1, left_ms);
    if (left_ms > 0 && g->ip6.family)
        batch_add(&x, NFPROTO_INET, &v6, 1, left_ms);
    if (g->ip4.family) {
        batch_clear(&x, NFPROTO_ARP);
        if (left_ms > 0)
            batch_add(&x, NFPROTO_ARP, ip4, 4, left_ms);
    }
    if (g->egress) {
        batch_clear(&x, NFPROTO_NETDEV);
        if (left_ms > 0)
            batch_add(&x, NFPROTO_NETDEV, ip4, 4, left_ms);
    }
    batch_mark(&x, NFNL_MSG_BATCH_END);
    int code = nl_exchange(g->fd, &x.b, NULL, NULL);
    if (code == 0)
        return ERR_OK;
    if (code < 0)
        return err_set(info, ERR_IO, errno, "refresh the nftables lease");
    if (code == ENOENT)
        g->built = false; /* somebody emptied the ruleset */
    return err_set(info, code == ENOENT ? ERR_NOT_FOUND : ERR_IO, code,
                   "refresh the nftables lease");
}

void gate_close(struct gate *g)
{
    if (g->fd < 0)
        return;
    char rules[512];
    struct text t;

    text_init(&t, rules, sizeof(rules));
    renew_table(&t, "inet");
    renew_table(&t, "arp");
    renew_table(&t, "netdev");
    (void)run(rules, NULL);
    close(g->fd);
    g->fd = -1;
}
