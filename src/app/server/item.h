/*
 * item: what a device says, as an item of redoubt.device_exchange.
 *
 * Purpose   Checks what a custom message carries, and writes the JSON.
 * Shape     One object; only what the message brings.  A device that is not admitted yet
 *           gets "hello"; one that is a clone may say nothing but "csr".
 * Errors    ERR_CORRUPT, ERR_LIMIT, ERR_INVALID with words: the message is refused.
 * Threads   loop thread only
 * Source    db/0010_exchange.sql, docs/protocol/opamp.md
 */
#ifndef APP_SERVER_ITEM_H
#define APP_SERVER_ITEM_H

#include "app/server/conn.h"
#include "wire/report.h"

struct item {
    struct text text;
    struct receipts receipts; /* for its reports; what is refused points to refused */
    char refused[96];
    bool has_receipts, has_events, worth; /* worth: there is something to store */
};

/* out: text initialised by the caller. */
MUST_USE enum err item_make(struct conn *c, const struct opamp_agent *m, struct item *out,
                            struct err_info *info);
void item_refresh(const struct conn *c, struct text *t);

#endif
