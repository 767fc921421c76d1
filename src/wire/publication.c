#include "wire/publication.h"

#include <string.h>

#define MAGIC "redoubt-publication 2 "

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool name_ok(struct str name)
{
    if (name.n == 0 || name.n > PUBLICATION_NAME_MAX || !is_word(name.p[0]))
        return false;
    for (size_t i = 0; i < name.n; i++)
        if (!is_word(name.p[i]) && !memchr("._+~-", name.p[i], 5))
            return false;
    return true;
}

/* The text before the next `end`, which is skipped in *rest; false: there is none. */
static bool cut(struct str *rest, char end, struct str *out)
{
    const char *at = rest->n > 0 ? memchr(rest->p, end, rest->n) : NULL;

    if (!at)
        return false;
    *out = (struct str){ rest->p, (size_t)(at - rest->p) };
    rest->n -= out->n + 1;
    rest->p = at + 1;
    return true;
}

bool publication_path_ok(struct str path)
{
    struct str rest = path, name;
    uint32_t names = 1;

    if (path.n >= PUBLICATION_PATH_BYTES || !cut(&rest, '/', &name) ||
        (!str_is(name, "public") && !str_is(name, "private")))
        return false;
    while (cut(&rest, '/', &name))
        if (!name_ok(name) || ++names >= PUBLICATION_NAMES_MAX)
            return false;
    return name_ok(rest);
}

bool publication_digest_ok(struct str digest)
{
    if (digest.n != PUBLICATION_DIGEST)
        return false;
    for (size_t i = 0; i < digest.n; i++)
        if (!(digest.p[i] >= '0' && digest.p[i] <= '9') &&
            !(digest.p[i] >= 'a' && digest.p[i] <= 'f'))
            return false;
    return true;
}

bool publication_owner_ok(struct str owner)
{
    if (owner.n == 0 || owner.n > PUBLICATION_OWNER_MAX)
        return false;
    for (size_t i = 0; i < owner.n; i++)
        if (!is_word(owner.p[i]) && !memchr(":._-", owner.p[i], 4))
            return false;
    return true;
}

void publication_add_head(struct text *t, const struct publication_head *head)
{
    text_add(t, MAGIC "%llu %u\n", (unsigned long long)head->serial, head->count);
}

void publication_add_entry(struct text *t, const struct publication_entry *e)
{
    text_bytes(t, e->blob);
    text_add(t, " %llu %llu ", (unsigned long long)e->size, (unsigned long long)e->mtime);
    text_bytes(t, e->owner);
    text_bytes(t, STR(" "));
    text_bytes(t, e->path);
    text_bytes(t, STR("\n"));
}

static int compare(struct str a, struct str b)
{
    const int c = memcmp(a.p, b.p, a.n < b.n ? a.n : b.n);

    return c != 0 ? c : (a.n > b.n) - (a.n < b.n);
}

static bool has_path(const struct publication_entry *list, uint32_t n, struct str path)
{
    uint32_t lo = 0;

    while (lo < n) {
        const uint32_t mid = lo + (n - lo) / 2;
        const int c = compare(list[mid].path, path);

        if (c == 0)
            return true;
        if (c < 0)
            lo = mid + 1;
        else
            n = mid;
    }
    return false;
}

/* Is a folder of this path a file of the list?  It would stand before it. */
static bool below_a_file(const struct publication_entry *list, uint32_t n,
                         struct str path)
{
    for (size_t i = 0; i < path.n; i++)
        if (path.p[i] == '/' && has_path(list, n, (struct str){ path.p, i }))
            return true;
    return false;
}

static bool entry_of(struct str line, struct publication_entry *out)
{
    struct publication_entry e;
    struct str size, mtime;

    if (!cut(&line, ' ', &e.blob) || !cut(&line, ' ', &size) ||
        !cut(&line, ' ', &mtime) || !cut(&line, ' ', &e.owner) ||
        !publication_digest_ok(e.blob) || !publication_owner_ok(e.owner) ||
        !str_u64(size, PUBLICATION_SIZE_MAX, &e.size) ||
        !str_u64(mtime, PUBLICATION_MTIME_MAX, &e.mtime) || !publication_path_ok(line))
        return false;
    e.path = line;
    *out = e;
    return true;
}

static bool head_of(struct str *text, struct publication_head *out)
{
    struct str line, serial;
    uint64_t count, n;

    if (!str_starts(*text, STR(MAGIC)) || !cut(text, '\n', &line))
        return false;
    line.p += sizeof(MAGIC) - 1;
    line.n -= sizeof(MAGIC) - 1;
    if (!cut(&line, ' ', &serial) || !str_u64(serial, PUBLICATION_SERIAL_MAX, &n) ||
        !str_u64(line, UINT32_MAX, &count))
        return false;
    *out = (struct publication_head){ .serial = n, .count = (uint32_t)count };
    return true;
}

enum err publication_parse(struct str text, struct publication_head *head,
                           struct publication_entry *out, uint32_t max,
                           struct err_info *info)
{
    struct publication_head h;
    struct str line;

    if (!head_of(&text, &h))
        return err_set(info, ERR_CORRUPT, 0, "this is no list of what is published");
    if (h.count > max)
        return err_set(info, ERR_LIMIT, 0, "%u files are published, %u are possible",
                       h.count, max);
    for (uint32_t i = 0; i < h.count; i++) {
        if (!cut(&text, '\n', &line) || !entry_of(line, &out[i]))
            return err_set(info, ERR_CORRUPT, 0, "line %u of the list is wrong", i + 2);
        if (i > 0 && compare(out[i - 1].path, out[i].path) >= 0)
            return err_set(info, ERR_CORRUPT, 0, "line %u of the list is out of order",
                           i + 2);
        if (below_a_file(out, i, out[i].path))
            return err_set(info, ERR_CORRUPT, 0, "line %u of the list is below a file",
                           i + 2);
    }
    if (text.n != 0)
        return err_set(info, ERR_CORRUPT, 0, "the list is longer than it says");
    *head = h;
    return ERR_OK;
}

void publication_link(char out[PUBLICATION_LINK_BYTES], const struct publication_entry *e)
{
    struct text t;

    text_init(&t, out, PUBLICATION_LINK_BYTES);
    text_bytes(&t, STR("../"));
    for (size_t i = 0; i < e->path.n; i++)
        if (e->path.p[i] == '/')
            text_bytes(&t, STR("../"));
    text_bytes(&t, STR("../blob/"));
    text_bytes(&t, e->blob);
    CHECK(!t.cut);
}
