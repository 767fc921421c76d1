#include "sys/net/ip.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>

#include "base/str.h"

enum { IP_FOUND_MAX = 16 };

size_t net_ip_size(const struct net_ip *ip)
{
    return ip->family == AF_INET6 ? 16 : 4;
}

enum err net_ip_parse(struct net_ip *out, int family, const char *text,
                      struct err_info *info)
{
    struct net_ip ip = { .family = family };
    const char *slash = strchr(text, '/');
    uint64_t prefix, max = family == AF_INET6 ? 128 : 32;

    if (text[0] == '\0') {
        *out = (struct net_ip){ 0 };
        return ERR_OK;
    }
    if (!slash ||
        !str_copy(ip.text, sizeof(ip.text), (struct str){ text, (size_t)(slash - text) }))
        return err_set(info, ERR_CONFIG, 0, "\"%s\" is not ADDRESS/PREFIX", text);
    if (inet_pton(family, ip.text, ip.bytes) != 1)
        return err_set(info, ERR_CONFIG, 0, "\"%s\" is not an IPv%d address", ip.text,
                       family == AF_INET6 ? 6 : 4);
    if (!str_u64(str_of(slash + 1), max, &prefix) || prefix == 0)
        return err_set(info, ERR_CONFIG, 0, "the prefix of \"%s\" is not 1 to %u", text,
                       (unsigned)max);
    ip.prefix = (uint8_t)prefix;
    (void)inet_ntop(family, ip.bytes, ip.text, sizeof(ip.text)); /* one spelling */
    *out = ip;
    return ERR_OK;
}

static struct ifaddrmsg head_of(const struct net_ip *ip, unsigned ifindex)
{
    return (struct ifaddrmsg){
        .ifa_family = (uint8_t)ip->family,
        .ifa_prefixlen = ip->prefix,
        .ifa_scope = RT_SCOPE_UNIVERSE,
        .ifa_index = ifindex,
    };
}

static enum err failed(const struct net_ip *ip, const char *verb, int code,
                       struct err_info *info)
{
    int e = code < 0 ? errno : code;

    return err_set(info, e == EPERM ? ERR_DENIED : ERR_IO, e, "%s %s/%u", verb, ip->text,
                   ip->prefix);
}

enum err ip_add(int fd, const struct net_ip *ip, unsigned ifindex, const char *label,
                struct err_info *info)
{
    struct ifaddrmsg head = head_of(ip, ifindex);
    struct ifa_cacheinfo life = { .ifa_prefered = 0, .ifa_valid = UINT32_MAX };
    uint32_t flags = IFA_F_NODAD;
    struct nl_buf b = { 0 };
    size_t m =
        nl_begin(&b, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                 1, &head, sizeof(head));

    nl_attr(&b, IFA_LOCAL, ip->bytes, net_ip_size(ip));
    nl_attr(&b, IFA_ADDRESS, ip->bytes, net_ip_size(ip));
    if (ip->family == AF_INET6) {
        nl_attr(&b, IFA_FLAGS, &flags, sizeof(flags));
        nl_attr(&b, IFA_CACHEINFO, &life, sizeof(life));
    } else if (label[0] != '\0') {
        nl_attr_str(&b, IFA_LABEL, label);
    }
    nl_end(&b, m);
    int code = nl_exchange(fd, &b, NULL, NULL);
    if (code == EEXIST)
        return err_set(info, ERR_EXISTS, code, "add %s/%u", ip->text, ip->prefix);
    return code == 0 ? ERR_OK : failed(ip, "add", code, info);
}

void ip_removal(struct nl_buf *b, const struct net_ip *ip, unsigned ifindex, uint32_t seq)
{
    struct ifaddrmsg head = head_of(ip, ifindex);
    size_t m =
        nl_begin(b, RTM_DELADDR, NLM_F_REQUEST | NLM_F_ACK, seq, &head, sizeof(head));

    nl_attr(b, IFA_LOCAL, ip->bytes, net_ip_size(ip));
    nl_attr(b, IFA_ADDRESS, ip->bytes, net_ip_size(ip));
    nl_end(b, m);
}

enum err ip_remove(int fd, const struct net_ip *ip, unsigned ifindex,
                   struct err_info *info)
{
    struct nl_buf b = { 0 };

    ip_removal(&b, ip, ifindex, 1);
    int code = nl_exchange(fd, &b, NULL, NULL);
    return code == 0 || code == EADDRNOTAVAIL || code == ENODEV
               ? ERR_OK
               : failed(ip, "remove", code, info);
}

bool ip_is_about(const struct nlmsghdr *h, const struct net_ip *ip, unsigned *ifindex,
                 uint8_t *prefix)
{
    struct ifaddrmsg head;
    bool local = false, same = false;

    if ((h->nlmsg_type != RTM_NEWADDR && h->nlmsg_type != RTM_DELADDR) ||
        h->nlmsg_len < NLMSG_LENGTH(sizeof(head)))
        return false;
    memcpy(&head, NLMSG_DATA(h), sizeof(head));
    if (head.ifa_family != ip->family)
        return false;
    const uint8_t *p = (const uint8_t *)h;
    struct rtattr a;
    size_t at = NLMSG_LENGTH(sizeof(head));
    for (; h->nlmsg_len - at >= sizeof(a); at += RTA_ALIGN(a.rta_len)) {
        memcpy(&a, p + at, sizeof(a));
        if (a.rta_len < sizeof(a) || a.rta_len > h->nlmsg_len - at)
            break;
        bool is_local = a.rta_type == IFA_LOCAL;
        if ((is_local || (a.rta_type == IFA_ADDRESS && !local)) &&
            a.rta_len == RTA_LENGTH(net_ip_size(ip))) {
            local = is_local; /* IFA_ADDRESS counts only where there is no IFA_LOCAL */
            same = memcmp(p + at + RTA_LENGTH(0), ip->bytes, net_ip_size(ip)) == 0;
        }
        if (RTA_ALIGN(a.rta_len) > h->nlmsg_len - at)
            break;
    }
    *ifindex = head.ifa_index;
    *prefix = head.ifa_prefixlen;
    return same;
}

struct found {
    const struct net_ip *ip;
    size_t n;
    struct {
        unsigned ifindex;
        uint8_t prefix;
    } at[IP_FOUND_MAX];
};

static void collect(void *ctx, const struct nlmsghdr *h)
{
    struct found *f = ctx;
    unsigned ifindex;
    uint8_t prefix;

    if (f->n < IP_FOUND_MAX && ip_is_about(h, f->ip, &ifindex, &prefix)) {
        f->at[f->n].ifindex = ifindex;
        f->at[f->n].prefix = prefix;
        f->n++;
    }
}

enum err ip_remove_all(int fd, const struct net_ip *ip, struct err_info *info)
{
    struct found f = { .ip = ip };
    struct ifaddrmsg head = { .ifa_family = (uint8_t)ip->family };
    struct nl_buf b = { 0 };
    enum err e = ERR_OK;

    nl_end(&b,
           nl_begin(&b, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, &head, sizeof(head)));
    int code = nl_exchange(fd, &b, collect, &f);
    if (code != 0)
        return failed(ip, "look for", code, info);
    for (size_t i = 0; i < f.n && e == ERR_OK; i++) {
        struct net_ip found = *ip;
        found.prefix = f.at[i].prefix;
        e = ip_remove(fd, &found, f.at[i].ifindex, info);
    }
    return e;
}
