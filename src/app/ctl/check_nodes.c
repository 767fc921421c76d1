#include <ifaddrs.h>
#include <libpq-fe.h>
#include <netdb.h>
#include <netinet/in.h>

#include "app/ctl/report.h"
#include "sys/smb/smb_url.h"
#include "wire/record.h"

enum { RECORD_MAX = 32 * 1024 };

/* ---- are file server and DBMS machines of their own? ---- */

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!a || !b || a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET) {
        struct sockaddr_in x, y;

        memcpy(&x, a, sizeof(x));
        memcpy(&y, b, sizeof(y));
        return x.sin_addr.s_addr == y.sin_addr.s_addr;
    }
    if (a->sa_family == AF_INET6) {
        struct sockaddr_in6 x, y;

        memcpy(&x, a, sizeof(x));
        memcpy(&y, b, sizeof(y));
        return memcmp(&x.sin6_addr, &y.sin6_addr, sizeof(x.sin6_addr)) == 0;
    }
    return false;
}

enum place { PLACE_HERE, PLACE_ELSEWHERE, PLACE_UNKNOWN };

static enum place place_of(const char *host)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found = NULL;
    struct ifaddrs *mine = NULL;
    enum place place = PLACE_ELSEWHERE;

    if (host[0] == '/' || host[0] == '\0')
        return PLACE_HERE; /* a Unix socket */
    if (getaddrinfo(host, NULL, &hints, &found) != 0)
        return PLACE_UNKNOWN;
    if (getifaddrs(&mine) != 0)
        place = PLACE_UNKNOWN;
    for (const struct addrinfo *a = found; a; a = a->ai_next)
        for (const struct ifaddrs *i = mine; i; i = i->ifa_next)
            if (same_address(a->ai_addr, i->ifa_addr))
                place = PLACE_HERE;
    freeaddrinfo(found);
    if (mine)
        freeifaddrs(mine);
    return place;
}

static void report_place(struct report *r, const char *name, const char *what,
                         const char *host)
{
    switch (place_of(host)) {
    case PLACE_HERE:
        report_add(r, REPORT_FAIL, name,
                   "Put it on a machine of its own: if it breaks together with a node, "
                   "the other node cannot help.",
                   "the %s (%s) is this node", what, host[0] ? host : "local socket");
        break;
    case PLACE_ELSEWHERE:
        report_add(r, REPORT_OK, name, NULL, "the %s (%s) is not this node", what, host);
        break;
    case PLACE_UNKNOWN:
        report_add(r, REPORT_WARN, name,
                   "Correct the name, or put it into /etc/hosts: a name server that is "
                   "down must not stop the cluster.",
                   "the name %s cannot be resolved", host);
        break;
    }
}

/* host= of a connection string; hosts[0] only: several are for a DBMS of several machines,
 * each of which is looked at by its own administrator. */
static void database_host(const char *conninfo, char *out, size_t size)
{
    PQconninfoOption *all = PQconninfoParse(conninfo, NULL);

    out[0] = '\0';
    for (const PQconninfoOption *o = all; o && o->keyword; o++)
        if (o->val && (strcmp(o->keyword, "hostaddr") == 0 ||
                       (strcmp(o->keyword, "host") == 0 && !out[0])))
            (void)snprintf(out, size, "%.*s", (int)strcspn(o->val, ","), o->val);
    if (all)
        PQconninfoFree(all);
}

void check_separate(struct report *r)
{
    char host[CONF_TEXT];
    struct smb_url url;

    if (smb_url_parse(&url, str_of(r->c->conf.share.state)))
        report_place(r, "share.separate", "file server", url.host);
    database_host(r->c->conf.database.conninfo, host, sizeof(host));
    report_place(r, "database.separate", "DBMS", host);
}

/* ---- are the nodes alike? ---- */

static json_t *record_of(const struct report *r, struct smb *s, const char *node)
{
    static char bytes[RECORD_MAX];
    char name[CONF_NAME + 8];
    struct mac_key key;
    struct str body;
    size_t n;

    (void)snprintf(name, sizeof(name), "node/%s", node);
    if (conf_load_key(r->c->conf.cluster.key_file, &key, NULL) != ERR_OK ||
        smb_read(s, name, bytes, sizeof(bytes), &n, NULL) != ERR_OK ||
        record_open((struct str){ bytes, n }, &key, str_of(name), &body) != ERR_OK)
        return NULL;
    return json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES, NULL);
}

static void value_text(const json_t *v, char *buf, size_t size)
{
    if (json_is_string(v))
        (void)snprintf(buf, size, "%s", json_string_value(v));
    else if (json_is_integer(v))
        (void)snprintf(buf, size, "%lld", (long long)json_integer_value(v));
    else
        (void)snprintf(buf, size, "unknown");
}

struct difference {
    struct text t;
    uint32_t count;
};

static void differ(struct difference *d, const char *what, const json_t *a,
                   const json_t *b)
{
    char ta[80], tb[80];

    if (json_equal(a, b))
        return;
    value_text(a, ta, sizeof(ta));
    value_text(b, tb, sizeof(tb));
    text_add(&d->t, "%s%s: %s here, %s there", d->count++ ? "; " : "", what, ta, tb);
}

/* Firmware keeps a little of the memory for itself, and not the same on each machine. */
static bool memory_is_alike(const json_t *a, const json_t *b)
{
    uint64_t x = ctl_u64(a, "memory_mib", 0), y = ctl_u64(b, "memory_mib", 0);

    return x > y ? (x - y) * 20 <= x : (y - x) * 20 <= y;
}

static void compare_hardware(struct report *r, const json_t *a, const json_t *b)
{
    static const char *const keys[] = { "cpu", "cpus", "arch" };
    char buf[400];
    struct difference d = { .count = 0 };

    text_init(&d.t, buf, sizeof(buf));
    for (size_t i = 0; i < LEN(keys); i++)
        differ(&d, keys[i], json_object_get(a, keys[i]), json_object_get(b, keys[i]));
    if (!memory_is_alike(a, b))
        differ(&d, "memory_mib", json_object_get(a, "memory_mib"),
               json_object_get(b, "memory_mib"));
    report_add(r, d.count ? REPORT_WARN : REPORT_OK, "nodes.hardware",
               d.count ? "The weaker node must be able to carry all the load." : NULL,
               "%s", d.count ? buf : "the same on both nodes");
}

static void compare_software(struct report *r, const json_t *a, const json_t *b)
{
    static const char *const keys[] = { "version", "os", "kernel" };
    const json_t *pa = json_object_get(a, "programs"),
                 *pb = json_object_get(b, "programs"), *v;
    char buf[400];
    struct difference d = { .count = 0 };
    const char *name;

    text_init(&d.t, buf, sizeof(buf));
    for (size_t i = 0; i < LEN(keys); i++)
        differ(&d, keys[i], json_object_get(a, keys[i]), json_object_get(b, keys[i]));
    json_object_foreach((json_t *)(uintptr_t)pa, name, v)
    {
        differ(&d, name, v, json_object_get(pb, name));
    }
    json_object_foreach((json_t *)(uintptr_t)pb, name, v)
    {
        if (!json_object_get(pa, name))
            differ(&d, name, NULL, v);
    }
    report_add(r, d.count ? REPORT_WARN : REPORT_OK, "nodes.software",
               d.count ? "During an upgrade this is expected until both nodes are done."
                       : NULL,
               "%s", d.count ? buf : "the same on both nodes");
}

void check_nodes(struct report *r, struct smb *s)
{
    const struct conf_cluster *c = &r->c->conf.cluster;
    json_t *mine = record_of(r, s, c->node), *other = record_of(r, s, c->peer);
    const json_t *ca = json_object_get(mine, "conf"),
                 *cb = json_object_get(other, "conf");

    if (!mine || !other) {
        report_add(r, REPORT_WARN, "nodes.compared",
                   "Start redoubt-node on both nodes, then check again.",
                   "%s has not yet published what it is", mine ? c->peer : c->node);
    } else {
        compare_hardware(r, json_object_get(mine, "machine"),
                         json_object_get(other, "machine"));
        compare_software(r, json_object_get(mine, "machine"),
                         json_object_get(other, "machine"));
        report_add(
            r, json_equal(ca, cb) ? REPORT_OK : REPORT_FAIL, "nodes.config",
            json_equal(ca, cb) ? NULL : alarm_info(ALARM_CONFIG_MISMATCH)->suggestion,
            json_equal(ca, cb) ? "the same on both nodes" : "the configurations differ");
    }
    json_decref(mine);
    json_decref(other);
}
