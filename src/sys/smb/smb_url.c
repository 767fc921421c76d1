#include "sys/smb/smb_url.h"

/* Takes what stands before the next '/' off s. */
static struct str next_part(struct str *s)
{
    struct str part = { s->p, 0 };

    while (part.n < s->n && s->p[part.n] != '/')
        part.n++;
    size_t used = part.n < s->n ? part.n + 1 : part.n;
    s->p += used;
    s->n -= used;
    return part;
}

static bool part_ok(struct str part)
{
    if (part.n == 0 || str_is(part, ".") || str_is(part, ".."))
        return false;
    for (size_t i = 0; i < part.n; i++)
        if ((unsigned char)part.p[i] < 0x20 || part.p[i] == '\\')
            return false;
    return true;
}

/* Everything but RFC 3986's unreserved characters becomes %XX. */
static void add_encoded(struct text *t, struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                     (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';

        text_add(t, plain ? "%c" : "%%%02X", c);
    }
}

bool smb_url_parse(struct smb_url *out, struct str s)
{
    struct smb_url u = { .host = "" };
    struct text base, folder;

    if (!str_starts(s, STR("//")))
        return false;
    s = (struct str){ s.p + 2, s.n - 2 };
    struct str host = next_part(&s);
    if (host.n > 2 && host.p[0] == '[' && host.p[host.n - 1] == ']')
        host = (struct str){ host.p + 1, host.n - 2 };
    struct str share = next_part(&s);
    if (!part_ok(host) || !part_ok(share) || !str_copy(u.host, sizeof(u.host), host) ||
        !str_copy(u.share, sizeof(u.share), share))
        return false;

    text_init(&base, u.base, sizeof(u.base));
    text_init(&folder, u.folder, sizeof(u.folder));
    text_add(&base, "smb://");
    add_encoded(&base, host);
    text_add(&base, "/");
    add_encoded(&base, share);
    while (s.n > 0) {
        struct str part = next_part(&s);

        if (!part_ok(part))
            return false;
        text_add(&base, "/");
        add_encoded(&base, part);
        text_add(&folder, folder.n ? "/" : "");
        text_bytes(&folder, part);
    }
    if (base.cut || folder.cut)
        return false;
    *out = u;
    return true;
}
