/*
 * mirror: the state of redoubt-mirror.
 *
 * Purpose   Keeps a verified copy of everything that is published on this node, and tells
 *           redoubt-node whether it is complete.
 * Start     main.c: the loop; README.md: what lies where
 * Threads   one; everything here may block
 */
#ifndef APP_MIRROR_H
#define APP_MIRROR_H

#include <libpq-fe.h>

#include "base/mono.h"
#include "redoubt/lease.h"
#include "sys/blob/blob.h"
#include "sys/conf/conf.h"
#include "wire/publication.h"

enum {
    MIRROR_PATH = BLOB_PATH, /* of a file in the store */
    MIRROR_TREE_NAME = 48,
    MIRROR_WHY = 200,
    MIRROR_SUSPECTS = 64,
    MIRROR_BROKEN = 64,
    MIRROR_READ_TRIES = 3, /* then a file that cannot be read is taken for damaged */
    MIRROR_PACKET = 2048,
};

/* What is known of a blob that is not here. */
struct want {
    bool absent;    /* it could not be had when it was tried last */
    bool lost;      /* the active node has no good copy either */
    uint8_t unread; /* so often it could not be read, while the share was there */
};

/* A list, its text, and the different blobs in it. */
struct list {
    char *text;
    size_t text_n;
    struct publication_head head;
    struct publication_entry *entries; /* point into text */
    struct blob *blobs;                /* by digest, each once */
    struct want *wants;                /* of each of them */
    uint32_t blob_count;
    uint64_t bytes; /* of the blobs */
    char name[MIRROR_TREE_NAME];
};

struct mirror {
    struct conf conf;
    int daemon_fd; /* -1: nobody is told */
    const struct redoubt_lease_page *lease;
    bool end;  /* the daemon is gone */
    bool news; /* something was published, or an operator asks: begin the turn anew */

    struct {
        PGconn *conn;
        struct mono retry;
        uint32_t backoff_ms;
        struct mono read;         /* when the list was read last; 0: read it now */
        char refused[MIRROR_WHY]; /* why the list there is not ours; "": it is */
    } db;
    struct {
        struct smb *smb;
        struct mono retry, looked;
        bool ok;
        char why[MIRROR_WHY];
    } share;

    struct list *list; /* NULL: not known */
    struct {
        bool complete; /* current shows the whole list */
        bool partial;  /* it shows all of it that can be had: partial.c */
        struct mono lacking_since;
        struct mono survey; /* look at everything again then */
        struct mono retry;  /* what failed is not tried before */
        struct mono sweep;
        uint32_t backoff_ms;
        uint32_t missing, lost; /* lost: of the missing ones */
        uint64_t missing_bytes;
        uint64_t laid; /* the serial that is shown */
        bool full;
        char why[MIRROR_WHY];
    } content;
    uint64_t fetched_bytes, moving; /* moving: of the blob under way */
    struct {                        /* found, and not healed yet */
        struct blob_id id[MIRROR_BROKEN];
        bool on_share[MIRROR_BROKEN];
        uint32_t count;
    } broken;
    uint32_t damaged, healed; /* since the start */
    struct {
        bool on;
        struct blob_id last; /* looked at; "": none.  The list may change meanwhile */
        uint64_t last_s;     /* wall time of the end of the last one; 0: never */
    } scrub;
    struct blob_id suspects[MIRROR_SUSPECTS]; /* of the share, told by the other node */
    uint32_t suspect_count;
    struct { /* of the active node: is what is published old? */
        char status[12], detail[MIRROR_WHY];
    } signatures;
    struct mono told;
    bool untold; /* there is news that must wait a little */
    char told_text[MIRROR_PACKET];
};

/* main.c */
struct mono mirror_now(void);
uint64_t mirror_wall_s(void);
/* Looks at the daemon, the DBMS and the clock; false: stop what you do, soon. */
bool mirror_goes_on(struct mirror *m);
/* For the functions of sys/blob: mirror_goes_on(), and [web] mirror_kib_s. */
struct blob_watch mirror_watch(struct mirror *m);
/* Does this node hold the lease? */
bool mirror_is_active(const struct mirror *m, uint64_t *epoch);

/* tell.c */
/* Words of others, or cut by bytes, as UTF-8: JSON takes nothing else. */
const char *tell_text(char out[MIRROR_WHY], const char *text);
/* To the daemon, if there is news, and now and then. */
void tell_state(struct mirror *m);
/* A blob is damaged, here or on the share: told once, until it is healed. */
void tell_damage(struct mirror *m, bool on_share, const struct blob_id *id);
/* It is good again, if it was not. */
void tell_healed(struct mirror *m, const struct blob_id *id);
/* Everything of the list is here: what was damaged here is good again, by whomever; and what
 * is published no longer is no trouble. */
void tell_complete(struct mirror *m);

/* db.c */
void db_close(struct mirror *m);
/* Connects if it is time, takes notifications, and reads the list if it is time. */
void db_turn(struct mirror *m);
/* Is it time to connect? */
bool db_is_due(const struct mirror *m);
/* Notifications that have come meanwhile. */
void db_listen(struct mirror *m);
/* To the mirror of the other node, and to this one. */
void db_tell(struct mirror *m, const char *word, const struct blob_id *id);
int db_socket(const struct mirror *m);
PGconn *db_connect(struct mirror *m, const char *application, struct err_info *info);
/* One statement with text values, limited in time; *out is the caller's (PQclear). */
MUST_USE enum err db_ask(PGconn *c, const char *sql, size_t count,
                         const char *const values[], PGresult **out,
                         struct err_info *info);
/* The same, without its rows. */
MUST_USE enum err db_do(PGconn *c, const char *sql, size_t count,
                        const char *const values[], struct err_info *info);

/* share.c */
/* NULL and info: it cannot be reached, or not again yet. */
struct smb *share_get(struct mirror *m, struct err_info *info);
/* After each use: was the connection lost? */
void share_used(struct mirror *m, enum err e, const struct err_info *info);
/* A file that cannot be read breaks the connection as well: can another be made at once? */
bool share_again(struct mirror *m);
void share_close(struct mirror *m);
/* Now and then, so that a share that is away is known before it is needed. */
void share_turn(struct mirror *m);

/* list.c */
MUST_USE enum err list_new(struct list **out, char *text, size_t n,
                           struct err_info *info); /* owns text, also on failure */
void list_free(struct list *l);
/* name: `list`, as it was read last; `shown`, as it was laid out last. */
MUST_USE enum err list_load(const char *store, const char *name, struct list **out,
                            struct err_info *info);
MUST_USE enum err list_keep(const char *store, const char *name, const struct list *l,
                            struct err_info *info);
bool list_has(const struct list *l, const struct blob_id *id);
struct want *list_want(const struct list *l,
                       const struct blob_id *id); /* NULL: not in it */

/* partial.c */
/*
 * What can be shown of l while some of it is absent; before: what is shown now, or NULL.
 * why: whose sets are not as l says.
 */
MUST_USE enum err list_rest(const char *store, const struct list *l,
                            const struct list *before, struct list **out,
                            char why[MIRROR_WHY], struct err_info *info);

/* tree.c */
/* Does current lead to this list's tree, and is that whole? */
bool tree_is_laid(const char *store, const struct list *l);
/* Makes it and switches.  Every blob must be there. */
MUST_USE enum err tree_lay(const char *store, const struct list *l,
                           struct err_info *info);
/* Removes trees that were replaced long ago. */
void tree_prune(const char *store, uint64_t now_s);
/* What the trees that are kept need. */
struct tree_needs {
    void (*meanwhile)(void *arg); /* now and then; the rest is 0 at first */
    void *arg;
    struct blob_id *id; /* the caller's (free), also after a failure */
    size_t count, room;
    uint64_t looked;
};
/* false: not known, so nothing may be thrown away. */
MUST_USE bool tree_needs_all(const char *store, struct tree_needs *t);
bool tree_needs_it(const struct tree_needs *t, const struct blob_id *id);
/* The owner of the web service may read the store, and nobody else. */
MUST_USE enum err tree_prepare(const struct conf *conf, struct err_info *info);

/* content.c */
void content_turn(struct mirror *m);
/* Has something of the nodes' own waited too long for a task of the active one? */
bool content_waits(const struct mirror *m);
/* A new list was read; it is the mirror's from now on. */
void content_take(struct mirror *m, struct list *l);
/* The active node says: there is no good copy, neither on the share nor on its disk. */
void content_is_lost(struct mirror *m, const struct blob_id *id);
/* The blob of this node is not good: it is removed, and fetched again. */
void content_lost(struct mirror *m, const struct blob *b);
bool content_is_prepared(const struct mirror *m);
/* The list, or what can be had of it, was laid out. */
bool content_is_shown(const struct mirror *m);

/* scrub.c */
void scrub_start(struct mirror *m);
void scrub_turn(struct mirror *m);

#endif
