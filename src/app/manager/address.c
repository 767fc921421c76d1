#include "app/manager/address.h"

#include <stdio.h>
#include <string.h>

bool address_of(const struct conf *c, const char *listen, char *out, size_t size)
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
