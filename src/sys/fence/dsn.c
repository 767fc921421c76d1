#include "sys/fence/dsn.h"

#include <arpa/inet.h>
#include <libpq-fe.h>

#include "base/str.h"

enum { DSN_WORDS_MAX = 64, DSN_LIST_BYTES = 1024 };

/* A list of hosts in libpq's way: "a,b", with as many addresses and ports. */
struct dsn {
    PQconninfoOption *options;
    char application[64];
    size_t host_count;
    char hosts[DSN_HOSTS_MAX][256], ports[DSN_HOSTS_MAX][16];
    bool named[DSN_HOSTS_MAX]; /* must be looked up */
    bool ready;
    char host[DSN_LIST_BYTES], hostaddr[DSN_LIST_BYTES], port[DSN_LIST_BYTES];
    const char *keys[DSN_WORDS_MAX + 1], *values[DSN_WORDS_MAX + 1];
};

/* A connection that died is noticed within about 3 s, whatever it was doing. */
static const struct {
    const char *key, *value;
} defaults[] = {
    { "connect_timeout", "2" },     { "tcp_user_timeout", "3000" },
    { "keepalives", "1" },          { "keepalives_idle", "2" },
    { "keepalives_interval", "1" }, { "keepalives_count", "2" },
    { "gssencmode", "disable" },    { "client_encoding", "UTF8" },
};

static const char *option(const struct dsn *d, const char *key)
{
    for (const PQconninfoOption *o = d->options; o->keyword; o++)
        if (strcmp(o->keyword, key) == 0)
            return o->val && o->val[0] ? o->val : NULL;
    return NULL;
}

static bool needs_lookup(const char *host)
{
    uint8_t bytes[16];

    return host[0] != '\0' && host[0] != '/' && host[0] != '@' &&
           inet_pton(AF_INET, host, bytes) != 1 && inet_pton(AF_INET6, host, bytes) != 1;
}

/* The i-th part of a comma-separated list; the last (only) one if single stands for all. */
static bool part(const char *list, size_t i, bool single, char *out, size_t size)
{
    const char *p = list ? list : "";

    if (single && !strchr(p, ','))
        i = 0;
    for (; i > 0; i--) {
        p = strchr(p, ',');
        if (!p)
            return false;
        p++;
    }
    return str_copy(out, size, (struct str){ p, strcspn(p, ",") });
}

static enum err split_hosts(struct dsn *d, struct err_info *info)
{
    const char *hosts = option(d, "host"), *ports = option(d, "port");
    char host[256];

    if (option(d, "hostaddr") || !hosts) { /* libpq needs no names then */
        d->ready = true;
        return ERR_OK;
    }
    d->ready = true;
    for (size_t i = 0; part(hosts, i, false, host, sizeof(host)); i++) {
        if (i == DSN_HOSTS_MAX)
            return err_set(info, ERR_CONFIG, 0, "conninfo: more than %d hosts",
                           DSN_HOSTS_MAX);
        memcpy(d->hosts[i], host, sizeof(host));
        if (!part(ports, i, true, d->ports[i], sizeof(d->ports[i])))
            return err_set(info, ERR_CONFIG, 0, "conninfo: as many ports as hosts");
        d->named[i] = needs_lookup(host);
        d->ready = d->ready && !d->named[i];
        d->host_count++;
    }
    return ERR_OK;
}

static void set(struct dsn *d, const char *key, const char *value)
{
    size_t n = 0;

    while (d->keys[n] && strcmp(d->keys[n], key) != 0)
        n++;
    CHECK(n < DSN_WORDS_MAX);
    d->keys[n] = key;
    d->values[n] = value;
}

enum err dsn_new(struct dsn **out, const char *conninfo, const char *application,
                 struct err_info *info)
{
    struct dsn *d = calloc(1, sizeof(*d));
    char *why = NULL;

    if (!d)
        return err_set(info, ERR_MEMORY, 0, "out of memory");
    d->options = PQconninfoParse(conninfo, &why);
    if (!d->options) {
        size_t line = why ? strcspn(why, "\n") : 0;
        enum err e = err_set(info, ERR_CONFIG, 0, "conninfo: %.*s", (int)line,
                             why ? why : "out of memory");
        PQfreemem(why);
        dsn_free(d);
        return e;
    }
    enum err e = split_hosts(d, info);
    if (e != ERR_OK ||
        !str_copy(d->application, sizeof(d->application), str_of(application))) {
        dsn_free(d);
        return e != ERR_OK ? e : err_set(info, ERR_INVALID, 0, "application name");
    }
    for (size_t i = 0; i < LEN(defaults); i++)
        set(d, defaults[i].key, defaults[i].value);
    set(d, "application_name", d->application);
    if (d->host_count > 1)
        set(d, "target_session_attrs", "read-write");
    for (const PQconninfoOption *o = d->options; o->keyword; o++)
        if (o->val && o->val[0])
            set(d, o->keyword, o->val);
    *out = d;
    return ERR_OK;
}

void dsn_free(struct dsn *d)
{
    if (d && d->options)
        PQconninfoFree(d->options);
    free(d);
}

size_t dsn_names(const struct dsn *d, const char *names[DSN_HOSTS_MAX])
{
    size_t n = 0;

    for (size_t i = 0; i < d->host_count; i++)
        if (d->named[i])
            names[n++] = d->hosts[i];
    return n;
}

enum err dsn_resolved(struct dsn *d, const char addresses[][DSN_ADDRESS_BYTES])
{
    char host[DSN_LIST_BYTES], hostaddr[DSN_LIST_BYTES], port[DSN_LIST_BYTES];
    struct text hosts, addrs, ports;
    size_t named = 0, kept = 0;

    text_init(&hosts, host, sizeof(host));
    text_init(&addrs, hostaddr, sizeof(hostaddr));
    text_init(&ports, port, sizeof(port));
    for (size_t i = 0; i < d->host_count; i++) {
        const char *address = d->named[i] ? addresses[named++] : "";
        if (d->named[i] && address[0] == '\0')
            continue;
        const char *comma = kept++ ? "," : "";
        text_add(&hosts, "%s%s", comma, d->hosts[i]);
        text_add(&addrs, "%s%s", comma, address);
        text_add(&ports, "%s%s", comma, d->ports[i]);
    }
    if (kept == 0 || hosts.cut || addrs.cut || ports.cut)
        return ERR_NOT_FOUND;
    memcpy(d->host, host, sizeof(host));
    memcpy(d->hostaddr, hostaddr, sizeof(hostaddr));
    memcpy(d->port, port, sizeof(port));
    set(d, "host", d->host);
    set(d, "hostaddr", d->hostaddr);
    set(d, "port", d->port);
    d->ready = true;
    return ERR_OK;
}

bool dsn_ready(const struct dsn *d)
{
    return d->ready;
}

const char *const *dsn_keys(const struct dsn *d)
{
    return d->keys;
}

const char *const *dsn_values(const struct dsn *d)
{
    return d->values;
}
