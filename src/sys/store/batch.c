#include "sys/store/batch.h"

enum { ENDS = 3 }; /* a comma before the item, "]" and NUL behind the last */

static_assert(STORE_ITEM_MAX + ENDS + 1 <= STORE_BATCH_BYTES, "an item fits a batch");

struct batch *batch_new(void)
{
    struct batch *b = malloc(sizeof(*b)); /* not zeroed: most of it is text */

    if (b) {
        b->next = NULL;
        b->n = b->count = 0;
        b->solo = false;
    }
    return b;
}

void batch_free(struct batch *b)
{
    free(b);
}

bool batch_has_room(const struct batch *b, struct str item)
{
    return !b->solo && b->count < STORE_BATCH_MAX &&
           item.n + ENDS <= sizeof(b->text) - b->n;
}

void batch_add(struct batch *b, uint64_t ticket, struct str item)
{
    CHECK(b->count < STORE_BATCH_MAX && item.n + ENDS <= sizeof(b->text) - b->n);
    b->text[b->n++] = b->count == 0 ? '[' : ',';
    b->item[b->count].ticket = ticket;
    b->item[b->count].at = b->n;
    b->item[b->count++].n = item.n;
    memcpy(b->text + b->n, item.p, item.n);
    b->n += item.n;
}

const char *batch_text(struct batch *b)
{
    CHECK(b->count > 0);
    b->text[b->n] = ']';
    b->text[b->n + 1] = '\0';
    return b->text;
}

void batch_push(struct batch_list *l, struct batch *b)
{
    b->next = NULL;
    if (l->last)
        l->last->next = b;
    else
        l->first = b;
    l->last = b;
    l->count++;
}

struct batch *batch_pop(struct batch_list *l)
{
    struct batch *b = l->first;

    if (!b)
        return NULL;
    l->first = b->next;
    if (!l->first)
        l->last = NULL;
    l->count--;
    return b;
}

bool batch_split(struct batch_list *l, const struct batch *b)
{
    struct batch_list made = { 0 };
    struct batch *one;

    for (uint32_t i = 0; i < b->count; i++) {
        if (!(one = batch_new())) {
            while ((one = batch_pop(&made)))
                batch_free(one);
            return false;
        }
        batch_add(one, b->item[i].ticket,
                  (struct str){ b->text + b->item[i].at, b->item[i].n });
        one->solo = true;
        batch_push(&made, one);
    }
    made.last->next = l->first;
    l->first = made.first;
    if (!l->last)
        l->last = made.last;
    l->count += made.count;
    return true;
}
