/*
 * policies: the effective policy of each group, in memory.
 *
 * Purpose   A device gets its policy without a question to the DBMS, also right after a
 *           switch: they are read in standby too, and again when they have changed.
 * Owns      new/free; an entry is borrowed until the next policies_take.
 * Threads   loop thread only
 * Source    db/0005_groups.sql, redoubt.effective
 */
#ifndef APP_SERVER_POLICIES_H
#define APP_SERVER_POLICIES_H

#include "app/server/server.h"

enum { POLICY_HEARTBEAT_S = 120 }; /* without a policy */

struct policy_entry {
    LIST_ENTRY(policy_entry) next;
    struct uuid group;
    uint8_t hash[POLICY_HASH];
    char *document; /* owned */
    size_t n;
    uint32_t heartbeat_s, spread_s; /* what the server itself needs of it */
    bool seen;
};

struct policies *policies_new(void);
void policies_free(struct policies *p);

/* Asks for what has changed; the rows go to policies_take. */
void policies_read(struct server *s);
void policies_take(struct policies *p, const struct store_rows *rows);
/* NULL if the group is not known. */
const struct policy_entry *policies_find(const struct policies *p,
                                         const struct uuid *group);
uint32_t policies_count(const struct policies *p);

#endif
