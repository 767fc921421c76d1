#include "sys/conf/conf_table.h"

#include <arpa/inet.h>

#include "wire/record.h"

static bool is_lower_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_name(struct str s)
{
    if (s.n == 0 || !is_lower_or_digit(s.p[0]))
        return false;
    for (size_t i = 1; i < s.n; i++)
        if (!is_lower_or_digit(s.p[i]) && !strchr("-_.", s.p[i]))
            return false;
    return true;
}

static bool is_text(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < ' ' || s.p[i] == 127)
            return false;
    return true;
}

/* //host/share[/folder]...; no empty or dotted parts, no blanks, no backslashes. */
static bool is_share(struct str s)
{
    uint32_t parts = 0;

    if (s.n < 5 || s.p[0] != '/' || s.p[1] != '/')
        return false;
    for (size_t at = 2; at <= s.n; parts++) {
        const char *slash = memchr(s.p + at, '/', s.n - at);
        size_t n = slash ? (size_t)(slash - s.p) - at : s.n - at;

        if (n == 0 || s.p[at] == '.' || memchr(s.p + at, '\\', n) ||
            memchr(s.p + at, ' ', n))
            return false;
        at += n + 1;
    }
    return parts >= 2;
}

static bool is_uuid(struct str s)
{
    if (s.n != 36)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;

        if (dash ? s.p[i] != '-' : !strchr("0123456789abcdef", s.p[i]))
            return false;
    }
    return true;
}

enum err conf_listen_split(const char *listen, char *host, size_t host_size,
                           uint16_t *port)
{
    struct str s = str_of(listen);
    const char *colon = memrchr(s.p, ':', s.n);
    uint64_t number;

    if (!colon || colon == s.p)
        return ERR_INVALID;
    struct str h = { s.p, (size_t)(colon - s.p) };
    struct str p = { colon + 1, s.n - h.n - 1 };

    if (h.p[0] == '[') {
        if (h.n < 3 || h.p[h.n - 1] != ']')
            return ERR_INVALID;
        h = (struct str){ h.p + 1, h.n - 2 };
    } else if (memchr(h.p, ':', h.n)) {
        return ERR_INVALID; /* an IPv6 address without brackets is ambiguous */
    }
    if (memchr(h.p, ' ', h.n) || !str_u64(p, 65535, &number) || number == 0)
        return ERR_INVALID;
    if (!str_copy(host, host_size, h))
        return ERR_INVALID;
    *port = (uint16_t)number;
    return ERR_OK;
}

enum err conf_ip_parse(const char *text, struct conf_ip *out)
{
    const char *slash = strchr(text, '/');
    struct conf_ip ip = { .family = strchr(text, ':') ? AF_INET6 : AF_INET };
    char address[INET6_ADDRSTRLEN];
    uint64_t prefix;

    if (!slash ||
        !str_copy(address, sizeof(address), (struct str){ text, (size_t)(slash - text) }))
        return ERR_INVALID;
    if (!str_u64(str_of(slash + 1), ip.family == AF_INET ? 32 : 128, &prefix) ||
        prefix == 0 || inet_pton(ip.family, address, ip.bytes) != 1)
        return ERR_INVALID;
    ip.prefix = (uint8_t)prefix;
    *out = ip;
    return ERR_OK;
}

static bool is_address(const char *text, int family)
{
    struct conf_ip ip;

    return conf_ip_parse(text, &ip) == ERR_OK && ip.family == family;
}

static bool is_listen(const char *text)
{
    char host[CONF_PATH];
    uint16_t port;

    return conf_listen_split(text, host, sizeof(host), &port) == ERR_OK;
}

/* NULL if the word is fine, else what was expected. */
static const char *word_expected(enum conf_type type, struct str s, const char *cstr)
{
    switch (type) {
    case CONF_T_TEXT: return is_text(s) ? NULL : "text without control characters";
    case CONF_T_NAME:
        return is_name(s) ? NULL : "a name of lower-case letters, digits, '-', '_', '.'";
    case CONF_T_NODE:
        return record_name_ok(s)
                   ? NULL
                   : "up to 31 lower-case letters, digits and '-', a letter "
                     "first";
    case CONF_T_PATH:
        return s.p[0] == '/' && is_text(s) ? NULL : "a path that begins with '/'";
    case CONF_T_SHARE: return is_share(s) ? NULL : "//server/share, with slashes";
    case CONF_T_LISTEN: return is_listen(cstr) ? NULL : "host:port or [IPv6]:port";
    case CONF_T_IPV4:
        return is_address(cstr, AF_INET) ? NULL
                                         : "an IPv4 address with prefix, a.b.c.d/n";
    case CONF_T_IPV6:
        return is_address(cstr, AF_INET6) ? NULL : "an IPv6 address with prefix, x::y/n";
    case CONF_T_UUID: return is_uuid(s) ? NULL : "a UUID in lower case";
    case CONF_T_NUMBER:
    case CONF_T_CHOICE: break;
    }
    CHECK(type < CONF_T_NUMBER);
    return NULL;
}

static bool set_word(const struct conf_key *key, void *field, struct str text,
                     struct text *wrong)
{
    char value[CONF_TEXT];

    CHECK(key->size <= sizeof(value));
    if (text.n == 0 && !key->dflt) {
        text_add(wrong, "must not be empty");
        return false;
    }
    if (!str_copy(value, key->size, text)) {
        text_add(wrong, "is too long: %zu characters, at most %u", text.n, key->size - 1);
        return false;
    }
    const char *expected = text.n > 0 ? word_expected(key->type, text, value) : NULL;

    if (expected) {
        text_add(wrong, "must be %s, not '%s'", expected, value);
        return false;
    }
    /* The whole field: structs are compared and hashed as bytes. */
    memset(field, 0, key->size);
    memcpy(field, value, text.n);
    return true;
}

static bool set_number(const struct conf_key *key, void *field, struct str text,
                       struct text *wrong)
{
    uint64_t v;

    if (!str_u64(text, UINT32_MAX, &v)) {
        text_add(wrong, "must be a whole number%s%s, not '%.*s'",
                 key->unit[0] ? " in " : "", key->unit, (int)(text.n < 40 ? text.n : 40),
                 text.p);
        return false;
    }
    if (v < key->min || v > key->max) {
        text_add(wrong, "must be %u to %u%s%s, not %llu", key->min, key->max,
                 key->unit[0] ? " " : "", key->unit, (unsigned long long)v);
        return false;
    }
    uint32_t v32 = (uint32_t)v;

    memcpy(field, &v32, sizeof(v32));
    return true;
}

static bool set_choice(const struct conf_key *key, void *field, struct str text,
                       struct text *wrong)
{
    for (uint32_t i = 0; key->choices[i]; i++)
        if (str_is(text, key->choices[i])) {
            memcpy(field, &i, sizeof(i));
            return true;
        }
    text_add(wrong, "must be ");
    for (uint32_t i = 0; key->choices[i]; i++)
        text_add(wrong, "%s%s",
                 i == 0                ? ""
                 : key->choices[i + 1] ? ", "
                                       : " or ",
                 key->choices[i]);
    text_add(wrong, ", not '%.*s'", (int)(text.n < 40 ? text.n : 40), text.p);
    return false;
}

bool conf_value_set(const struct conf_key *key, void *field, struct str text,
                    struct text *wrong)
{
    if (key->type == CONF_T_NUMBER)
        return set_number(key, field, text, wrong);
    if (key->type == CONF_T_CHOICE)
        return set_choice(key, field, text, wrong);
    return set_word(key, field, text, wrong);
}

void conf_value_text(const struct conf_key *key, const void *field, struct text *out)
{
    if (key->type != CONF_T_NUMBER && key->type != CONF_T_CHOICE) {
        text_bytes(out, str_of(field));
        return;
    }
    uint32_t v;

    memcpy(&v, field, sizeof(v));
    if (key->type == CONF_T_NUMBER)
        text_add(out, "%u", v);
    else
        text_add(out, "%s", key->choices[v]);
}

bool conf_address_of(const struct conf *c, const char *listen, char *out, size_t size)
{
    char host[CONF_PATH] = "", name[CONF_PATH];
    uint16_t port = 0;

    if (conf_listen_split(listen, host, sizeof(host), &port) != ERR_OK)
        return false;
    (void)snprintf(name, sizeof(name), "%.200s",
                   c->trust.names[0]    ? c->trust.names
                   : c->address.ipv4[0] ? c->address.ipv4
                                        : c->address.ipv6);
    name[strcspn(name, " \t,/")] = '\0';
    if (!name[0])
        return false;
    (void)snprintf(out, size, strchr(name, ':') ? "[%s]:%u" : "%s:%u", name, port);
    return true;
}

const char *conf_web_user(const struct conf *c)
{
    for (uint32_t i = 0; i < c->service_count; i++) {
        const char *name = strrchr(c->service[i].exec, '/');

        if (name && strcmp(name, "/redoubt-web") == 0)
            return c->service[i].user;
    }
    return NULL;
}
