/*
 * report: the lines of `redoubt check`, as text while they come, or as JSON at the end.
 *
 * Shape     Each line is `ok|warn|FAIL name: text`, with what to do below it.
 * Owns      struct report owns its items; all texts are copied.
 */
#ifndef APP_CTL_REPORT_H
#define APP_CTL_REPORT_H

#include "app/ctl/ctl.h"

enum report_grade { REPORT_OK, REPORT_WARN, REPORT_FAIL };

struct report {
    struct ctl *c;
    json_t *items;
    uint32_t warnings, failures;
    bool before_init; /* the share holds no cluster yet */
};

void report_init(struct report *r, struct ctl *c);
/* name: a stable word; suggestion: NULL for none. */
void report_add(struct report *r, enum report_grade grade, const char *name,
                const char *suggestion, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Prints the sum (or everything, with --json), releases the items; the exit code. */
int report_finish(struct report *r);

/* A bar on the terminal, cleared when done == total; nothing where there is none. */
void report_progress(const struct report *r, const char *what, uint32_t done,
                     uint32_t total);

/* check_share.c: true if the share can be used. */
bool check_share(struct report *r);
/* check_measure.c: latency and bandwidth on a connected share; the folder is there. */
void check_latency(struct report *r, struct smb *s, const char *folder);
void check_bandwidth(struct report *r, struct smb *s, const char *name,
                     const char *folder);
/* check_database.c */
void check_database(struct report *r);
/* check_nodes.c */
void check_separate(struct report *r);
void check_nodes(struct report *r, struct smb *s);

#endif
