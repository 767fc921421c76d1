/*
 * manage: what the commands for devices, groups, policies, tasks and events share.
 *
 * Purpose   The client of the API (redoubt-manager): over its Unix socket on this node, or
 *           over TLS with a token from anywhere; tables for people.
 * Shape     A command builds a path, calls, prints.  Everything that the API says is text
 *           from elsewhere: names may hold anything, members may be missing.
 * Safety    What is repeated because the cluster switches is done once: a POST by its
 *           Idempotency-Key, which stays the same; a change of an object by its version; a
 *           DELETE because what is gone is gone.
 * Errors    Functions that return int return CTL_OK, or the exit code after printing.
 * Threads   one
 * Tests     tests/unit/test_ctl_manage.py, tests/contract/test_ctl_manage.py
 */
#ifndef APP_CTL_MANAGE_H
#define APP_CTL_MANAGE_H

#include "app/ctl/ctl.h"
#include "base/str.h"
#include "sys/http/http_client.h"

/* ---- paths: /v1/groups/%2FServers/policy?a=b ---- */

struct where {
    char buf[HTTP_PATH_MAX];
    struct text t;
    bool has_query;
};
void where_start(struct where *w, const char *base);
/* Another segment, quoted. */
void where_add(struct where *w, const char *segment);
/* name=value, quoted; nothing if value is NULL. */
void where_arg(struct where *w, const char *name, const char *value);
void where_number(struct where *w, const char *name, uint64_t value);

/* ---- calls ---- */

struct manage_call {
    const char *method, *path;
    const json_t *body;   /* borrowed; NULL: none */
    const char *if_match; /* an ETag; NULL or "": whatever the version */
    uint32_t wait_s;      /* how long the answer may be held back on purpose */
    unsigned quiet;       /* this status is CTL_FAILED without a word */
};
struct manage_answer {
    json_t *body; /* an object, owned by the caller after CTL_OK, else NULL */
    char etag[HTTP_TAG_MAX];
    unsigned status; /* 0: there was none */
    bool maybe;      /* an answer was lost: an earlier try may have done it already */
};
MUST_USE int manage_call(struct ctl *c, const struct manage_call *call,
                         struct manage_answer *out);
MUST_USE int manage_get(struct ctl *c, const char *path, json_t **out);
/* POST, PUT, PATCH, DELETE.  Steals body. */
MUST_USE int manage_send(struct ctl *c, const char *method, const char *path,
                         json_t *body, json_t **out);
/* {"items":[...],"next":null|cursor}: follows the cursors up to --limit items.  What else the
 * first page has stays. */
MUST_USE int manage_list(struct ctl *c, const struct where *w, json_t **out);

/*
 * manage_token - makes a token at this path.  Steals body.
 *
 * The text of a token is told once.  If that answer was lost in a switch, the repeated request
 * is answered without it: such a token is of no use, so it is revoked and another one is made.
 */
MUST_USE int manage_token(struct ctl *c, const char *path, json_t *body, json_t **out);

/* The object, changed by `edit`, which fills the body of the change, written with the
 * version that was read; read again when somebody else was faster. */
struct manage_edit {
    const char *path;
    const char *method; /* PATCH or PUT */
    /* CTL_OK, or an exit code after printing.  now: as it was read. */
    int (*edit)(struct ctl *c, const json_t *now, json_t *body);
};
MUST_USE int manage_edit(struct ctl *c, const struct manage_edit *e, json_t **out);

/* ---- names ---- */

enum { MANAGE_ID = 40 };
/* The id of the device that a name or the beginning of an id means. */
MUST_USE int manage_device(struct ctl *c, const char *word, char id[MANAGE_ID]);
/* The same for a task. */
MUST_USE int manage_task(struct ctl *c, const char *word, char id[MANAGE_ID]);
/* For a package also NAME=VERSION. */
MUST_USE int manage_package(struct ctl *c, const char *word, char id[MANAGE_ID]);
MUST_USE int manage_rollout(struct ctl *c, const char *word, char id[MANAGE_ID]);
/* "Servers", "/Servers/" and "/Servers" are the same; ids stay what they are. */
MUST_USE int manage_group(const char *word, char *path, size_t size);

/* ---- for people ---- */

/* Prints UTF-8 with everything that could play with a terminal written as \x1b; returns the
 * columns it takes. */
int put_safe(FILE *to, const char *s);

enum cell {
    CELL_TEXT,  /* numbers and booleans, too */
    CELL_ID,    /* the first eight characters */
    CELL_TIME,  /* an RFC 3339 time as date and time */
    CELL_AGO,   /* "3 min ago" */
    CELL_LIST,  /* a, b, c */
    CELL_RIGHT, /* aligned to the right */
    CELL_BYTES, /* "1.4 GiB" */
    CELL_JSON   /* compact */
};
struct column {
    const char *title;
    const char *key; /* "result.outcome" */
    enum cell kind;
};
/* A table of the items, or `empty` in a line. */
void print_table(const struct ctl *c, const json_t *items, const struct column *columns,
                 size_t count, const char *empty);
/* A line a member that is there and not null. */
void print_fields(const struct ctl *c, const json_t *o, const struct column *fields,
                  size_t count);
/* Member by member, so that one changed setting is one line: "- key: old", "+ key: new". */
void print_difference(const struct ctl *c, const json_t *before, const json_t *after);
/* As one cell of a table. */
char *cell_text(const json_t *o, const struct column *column);
/* The JSON of the API with --json, else the words, printf-like with safe texts only. */
void say_done(const struct ctl *c, const json_t *answer, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A safe copy, from malloc; "" without memory. */
char *safe_copy(const char *s);

/* Asks; prints why not and returns CTL_FAILED if nobody said yes. */
MUST_USE int manage_confirm(struct ctl *c, const char *question);

/* File of -f: JSON or YAML.  "-": stdin.  *out is owned by the caller. */
MUST_USE int manage_read_file(struct ctl *c, const char *name, json_t **out);

/* ---- the commands: ctl_device.c, ctl_group.c, ctl_policy.c, ... ---- */

int cmd_rollout_start(struct ctl *c);
int cmd_rollout_list(struct ctl *c);
int cmd_rollout_show(struct ctl *c);
int cmd_rollout_watch(struct ctl *c);
int cmd_rollout_pause(struct ctl *c);
int cmd_rollout_resume(struct ctl *c);
int cmd_rollout_stop(struct ctl *c);
int cmd_rollout_rollback(struct ctl *c);
int cmd_device_list(struct ctl *c);
int cmd_device_show(struct ctl *c);
int cmd_device_move(struct ctl *c);
int cmd_device_tag(struct ctl *c);
int cmd_device_untag(struct ctl *c);
int cmd_device_rename(struct ctl *c);
int cmd_device_approve(struct ctl *c);
int cmd_device_revoke(struct ctl *c);
int cmd_device_remove(struct ctl *c);
int cmd_device_policy(struct ctl *c);
int cmd_device_quarantine(struct ctl *c);
int cmd_group_list(struct ctl *c);
int cmd_group_show(struct ctl *c);
int cmd_group_create(struct ctl *c);
int cmd_group_rename(struct ctl *c);
int cmd_group_move(struct ctl *c);
int cmd_group_remove(struct ctl *c);
int cmd_policy_show(struct ctl *c);
int cmd_policy_set(struct ctl *c);
int cmd_policy_unset(struct ctl *c);
int cmd_policy_lock(struct ctl *c);
int cmd_policy_unlock(struct ctl *c);
int cmd_policy_effective(struct ctl *c);
int cmd_policy_catalogue(struct ctl *c);
int cmd_rules_show(struct ctl *c);
int cmd_rules_set(struct ctl *c);
int cmd_task_list(struct ctl *c);
int cmd_task_show(struct ctl *c);
int cmd_task_create(struct ctl *c);
int cmd_task_start(struct ctl *c);
int cmd_task_pause(struct ctl *c);
int cmd_task_resume(struct ctl *c);
int cmd_task_cancel(struct ctl *c);
int cmd_task_remove(struct ctl *c);
int cmd_task_watch(struct ctl *c);
int cmd_task_results(struct ctl *c);
int cmd_events(struct ctl *c);
int cmd_audit(struct ctl *c);
int cmd_token_list(struct ctl *c);
int cmd_token_create(struct ctl *c);
int cmd_token_revoke(struct ctl *c);
int cmd_api_token_list(struct ctl *c);
int cmd_api_token_create(struct ctl *c);
int cmd_api_token_revoke(struct ctl *c);
int cmd_retention_show(struct ctl *c);
int cmd_retention_set(struct ctl *c);
int cmd_apply(struct ctl *c);
int cmd_export(struct ctl *c);

/* yaml.c: at most YAML_BYTES_MAX bytes and YAML_DEPTH_MAX levels.  Numbers, true, false and
 * null only as JSON knows them; no aliases, no tags.  On failure why says line and column. */
enum { YAML_BYTES_MAX = 4 * 1024 * 1024, YAML_DEPTH_MAX = 32 };
json_t *yaml_read(const char *text, size_t bytes, char *why, size_t why_size);
bool yaml_write(const json_t *j, FILE *to);

#endif
