/*
 * batch: items that go to the DBMS in one transaction.
 *
 * Shape     The text is a JSON array under construction; each item keeps where it lies in
 *           it, so that a batch can be split into batches of one.
 * Owns      new/free; a list owns what was pushed into it.
 * Threads   loop thread only
 */
#ifndef SYS_STORE_BATCH_H
#define SYS_STORE_BATCH_H

#include "sys/store/store.h"

struct batch {
    struct batch *next;
    size_t n;
    uint32_t count;
    bool solo; /* made by batch_split: takes no more items */
    struct {
        uint64_t ticket;
        size_t at, n;
    } item[STORE_BATCH_MAX];
    char text[STORE_BATCH_BYTES]; /* "[item,item" */
};

struct batch_list {
    struct batch *first, *last;
    uint32_t count;
};

struct batch *batch_new(void);
void batch_free(struct batch *b);
bool batch_has_room(const struct batch *b, struct str item);
void batch_add(struct batch *b, uint64_t ticket, struct str item);
/* The whole array, NUL-terminated. */
const char *batch_text(struct batch *b);

void batch_push(struct batch_list *l, struct batch *b);
/* The oldest, or NULL. */
struct batch *batch_pop(struct batch_list *l);
/* Puts each item of b into a batch of its own in front of l; false if memory is short. */
MUST_USE bool batch_split(struct batch_list *l, const struct batch *b);

#endif
