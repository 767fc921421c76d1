/*
 * partial: what can be shown while some of the list cannot be had.
 *
 * A set is shown whole or as it was.  So the owners of what cannot be had keep what they showed
 * before, if all of that is still here, or show nothing; everybody else's is as the list says.
 */
#include <stdlib.h>

#include "app/mirror/mirror.h"

struct owners {
    struct str *of; /* sorted; one may stand there several times */
    uint32_t count;
};

static int by_bytes(const void *a, const void *b)
{
    const struct str *x = a, *y = b;
    const int c = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);

    return c != 0 ? c : (x->n > y->n) - (x->n < y->n);
}

static bool has(const struct owners *o, struct str owner)
{
    return bsearch(&owner, o->of, o->count, sizeof(owner), by_bytes) != NULL;
}

/* Those of l whose blobs are not all here; store NULL: as l->wants says. */
static bool without_all(const struct list *l, const char *store, struct owners *out)
{
    struct err_info ignored;

    out->count = 0;
    out->of = calloc(l->head.count + 1u, sizeof(*out->of));
    if (!out->of)
        return false;
    for (uint32_t i = 0; i < l->head.count; i++) {
        struct blob b = { .size = l->entries[i].size,
                          .mtime = (int64_t)l->entries[i].mtime };

        if (!blob_id_parse(&b.id, l->entries[i].blob))
            continue; /* list_new() saw to it */
        if (store ? blob_local_check(store, &b, &ignored) != ERR_OK
                  : list_want(l, &b.id)->absent)
            out->of[out->count++] = l->entries[i].owner;
    }
    qsort(out->of, out->count, sizeof(*out->of), by_bytes);
    return true;
}

/* The next entry from *i on of an owner that is, or is not, in `in`, and is not in `not`. */
static const struct publication_entry *next(const struct list *l, uint32_t *i,
                                            const struct owners *in, bool is,
                                            const struct owners * not )
{
    for (; l && *i < l->head.count; (*i)++) {
        const struct publication_entry *e = &l->entries[*i];

        if (has(in, e->owner) == is && (!not || !has(not, e->owner)))
            return e;
    }
    return NULL;
}

/* Both in one order.  A path that two of them claim makes a list that is refused. */
static uint32_t merge(struct text *t, const struct list *l, const struct owners *held,
                      const struct list *before, const struct owners *broken)
{
    uint32_t i = 0, k = 0, count = 0;

    for (;; count++) {
        const struct publication_entry *a = next(l, &i, held, false, NULL);
        const struct publication_entry *b = next(before, &k, held, true, broken);

        if (!a && !b)
            return count;
        if (a && (!b || by_bytes(&a->path, &b->path) <= 0))
            i++;
        else
            k++, a = b;
        if (t)
            publication_add_entry(t, a);
    }
}

static enum err make(const struct list *l, const struct owners *held,
                     const struct list *before, const struct owners *broken,
                     struct list **out, struct err_info *info)
{
    const struct publication_head head = { .serial = l->head.serial,
                                           .count =
                                               merge(NULL, l, held, before, broken) };
    const size_t size = 64 + (size_t)head.count * PUBLICATION_LINE_MAX;
    char *text = malloc(size);
    struct text t;

    if (!text)
        return err_set(info, ERR_MEMORY, 0, "no memory for the list");
    text_init(&t, text, size);
    publication_add_head(&t, &head);
    (void)merge(&t, l, held, before, broken);
    return list_new(out, text, t.n, info);
}

static void name_them(const struct owners *held, char why[MIRROR_WHY])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < held->count; i++)
        n += i == 0 || by_bytes(&held->of[i - 1], &held->of[i]) != 0;
    (void)snprintf(why, MIRROR_WHY, "%.*s%s is shown as before, or not at all",
                   held->count > 0 ? (int)held->of[0].n : 0,
                   held->count > 0 ? held->of[0].p : "", n > 1 ? ", and others," : "");
}

enum err list_rest(const char *store, const struct list *l, const struct list *before,
                   struct list **out, char why[MIRROR_WHY], struct err_info *info)
{
    struct owners held = { 0 }, broken = { 0 };
    enum err e = ERR_MEMORY;

    if (!without_all(l, NULL, &held) || (before && !without_all(before, store, &broken)))
        (void)err_set(info, ERR_MEMORY, 0, "no memory for the list");
    else {
        name_them(&held, why);
        e = make(l, &held, before, &broken, out, info);
        if (e == ERR_CORRUPT || e == ERR_LIMIT) /* what was before is in the way */
            e = make(l, &held, NULL, NULL, out, info);
    }
    free(held.of);
    free(broken.of);
    return e;
}
