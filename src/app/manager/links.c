#include "app/manager/links.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "app/manager/api.h"
#include "sys/ca/ca_link.h"

enum { SECRET_MAX = 1024, URL_MAX = CA_LINK_MAX + CONF_PATH + 32 };

static enum err read_key(const char *path, char out[CA_LINK_KEY], struct err_info *info)
{
    char secret[SECRET_MAX];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, secret, sizeof(secret));
    enum err e = n < 0 ? err_set(info, ERR_IO, errno, "read %s", path)
                       : ca_link_key((struct str){ secret, (size_t)n }, out, info);

    if (fd >= 0)
        (void)close(fd); /* read only */
    explicit_bzero(secret, sizeof(secret));
    return e;
}

/* "/private/...?md5=...&expires=...", or the path of what is public. */
static enum err link_of(const struct asked *a, const json_t *body, char out[CA_LINK_MAX],
                        struct err_info *info)
{
    const char *path = json_string_value(json_object_get(body, "path"));
    const json_t *expires = json_object_get(body, "expires");
    char key[CA_LINK_KEY], whole[CA_LINK_MAX];
    struct text t;

    text_init(&t, whole, sizeof(whole));
    text_add(&t, "/%s", path ? path : "");
    if (t.cut)
        return err_set(info, ERR_LIMIT, 0, "the path is too long");
    if (!json_is_integer(expires)) {
        struct str rest = str_of(whole);

        if (str_starts(rest, STR("/public/"))) /* as nginx shows it */
            rest = (struct str){ rest.p + 7, rest.n - 7 };
        return str_copy(out, CA_LINK_MAX, rest) ? ERR_OK : ERR_LIMIT;
    }
    enum err e = read_key(a->m->conf.web.link_key, key, info);
    if (e == ERR_OK)
        e = ca_link_make(key, whole, json_integer_value(expires), out, info);
    explicit_bzero(key, sizeof(key));
    return e;
}

bool links_finish(struct asked *a, json_t *body)
{
    struct err_info why = { .what = "" };
    char address[CONF_PATH + 16], link[CA_LINK_MAX], url[URL_MAX];

    if (!conf_address_of(&a->m->conf, a->m->conf.web.https, address, sizeof(address))) {
        api_refuse(a, 409,
                   &(struct http_error){ "no_https", "There is no HTTPS",
                                         "The Web Server listens for HTTP only, or the "
                                         "cluster has no address.",
                                         "See https in [web], and names in [trust]." });
        return false;
    }
    if (link_of(a, body, link, &why) != ERR_OK) {
        api_refuse(a, 503,
                   &(struct http_error){ "no_link_key", "Links cannot be made", why.what,
                                         "Run redoubt secret fetch on both nodes, and "
                                         "restart redoubt-node." });
        return false;
    }
    (void)snprintf(url, sizeof(url), "https://%s%s", address, link);
    (void)json_object_set_new(body, "url", json_string(url));
    return true;
}
