/*
 * publication: the list of what is published, as the nodes keep it.
 *
 * Purpose   Which file of the Web Server's tree is which blob of the store.  It comes from
 *           the DBMS and lies on the local disk, so that a node knows it while the DBMS is
 *           away; it is checked the same way whichever it came from.
 * Shape     Text, one line an entry, sorted by path (bytes), each path once:
 *               redoubt-publication 2 <serial> <count>\n
 *               <sha256> <size> <mtime> <owner> <path>\n
 *           sha256 64 lower-case hex digits; size bytes; mtime seconds since 1970; owner
 *           whose set it is, [a-z0-9:._-]{1,100}: a set is shown whole or as it was.
 *           path: 2..9 names of [a-z0-9._+~-]{1,128}, the first character a letter or
 *           digit, separated by '/', at most 400 bytes; the first name is public or private.
 * Safety    No path climbs, is hidden, or lies below another: a tree of such paths is made
 *           of folders and files only.
 * Owns      Nothing: entries point into the text.
 * Errors    ERR_CORRUPT: not of this shape (info says where); ERR_LIMIT: too long.
 * Threads   any; pure
 * Tests     tests/unit/test_publication.c, tests/fuzz/fuzz_publication.c
 */
#ifndef WIRE_PUBLICATION_H
#define WIRE_PUBLICATION_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

enum {
    PUBLICATION_MAX = 20000, /* entries */
    PUBLICATION_PATH_BYTES = 401,
    PUBLICATION_NAMES_MAX = 9,
    PUBLICATION_NAME_MAX = 128,
    PUBLICATION_DIGEST = 64,
    PUBLICATION_OWNER_MAX = 100,
    PUBLICATION_LINE_MAX =
        PUBLICATION_DIGEST + 20 + 20 + PUBLICATION_OWNER_MAX + PUBLICATION_PATH_BYTES + 5,
    PUBLICATION_LINK_BYTES = 3 * (PUBLICATION_NAMES_MAX + 1) + 5 + PUBLICATION_DIGEST + 1,
};

#define PUBLICATION_SERIAL_MAX ((UINT64_C(1) << 53) - 1)
#define PUBLICATION_SIZE_MAX   (UINT64_C(1) << 44) /* 16 TiB */
#define PUBLICATION_MTIME_MAX  (UINT64_C(1) << 40)

struct publication_entry {
    struct str path, blob, owner;
    uint64_t size, mtime;
};

struct publication_head {
    uint64_t serial;
    uint32_t count;
};

bool publication_path_ok(struct str path);
bool publication_digest_ok(struct str digest);
bool publication_owner_ok(struct str owner);

/* The lines, in the order in which they are to be parsed again. */
void publication_add_head(struct text *t, const struct publication_head *head);
void publication_add_entry(struct text *t, const struct publication_entry *e);

/*
 * publication_parse - the whole list.
 *
 * out     max entries of the caller, filled in the order of their paths; head->count of them
 */
MUST_USE enum err publication_parse(struct str text, struct publication_head *head,
                                    struct publication_entry *out, uint32_t max,
                                    struct err_info *info);

/*
 * publication_link - what the symbolic link of an entry holds: "../../../blob/<sha256>", from
 * the entry's folder below tree/NAME/ to blob/ beside tree/.
 */
void publication_link(char out[PUBLICATION_LINK_BYTES],
                      const struct publication_entry *e);

#endif
