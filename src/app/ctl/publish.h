/*
 * publish: files on their way from the command line to the data share.
 *
 * Purpose   What `redoubt package`, `redoubt signature` and `redoubt store` share: the
 *           connection to the data share, uploads with a progress bar that survive a lost
 *           connection, signatures with the cluster's key.
 * Contract  publish_open(); publish_file() for each file; the API is told; publish_settle()
 *           for each file, which puts it again if it was collected in between.
 * Errors    CTL_OK, or the exit code after printing
 * Threads   one; SIGINT and SIGTERM end an upload in order, from publish_open() on
 * Tests     tests/contract/test_packages.py
 */
#ifndef APP_CTL_PUBLISH_H
#define APP_CTL_PUBLISH_H

#include "app/ctl/ctl.h"
#include "sys/blob/blob.h"
#include "sys/ca/ca_sign.h"

struct publish {
    struct ctl *c;
    struct smb *smb; /* NULL between a lost connection and the next */
};

/* Reads the configuration, too. */
MUST_USE int publish_open(struct publish *p, struct ctl *c);
void publish_close(struct publish *p);
/* Connects again if the connection was lost. */
MUST_USE int publish_connect(struct publish *p);

/* name: for the progress bar.  *out: its digest and size. */
MUST_USE int publish_file(struct publish *p, const char *path, const char *name,
                          struct blob *out);
/* The same for bytes that are in no file yet, such as a manifest or a signature. */
MUST_USE int publish_bytes(struct publish *p, struct str bytes, const char *name,
                           struct blob *out);
/* After the API knows it: is it still on the share?  path NULL: bytes as they were. */
MUST_USE int publish_settle(struct publish *p, const char *path, struct str bytes,
                            const struct blob *b);

/* With the key of this node's [trust] folder. */
MUST_USE int publish_sign(struct ctl *c, const struct blob_id *id,
                          struct ca_signature *out);
/* A signature that was brought along; refused unless it verifies. */
MUST_USE int publish_take_signature(struct ctl *c, const char *file,
                                    const struct blob_id *id, struct ca_signature *out);
/* Base64 as the API takes it, from malloc; NULL without memory. */
char *publish_base64(const struct ca_signature *s);

/* --- watching --- */

/* A line on stderr, on a terminal and without --json only. */
struct progress {
    const struct ctl *c;
    const char *name;
    uint64_t began_ms, shown_ms, began_at;
    bool drawn;
};
void progress_start(struct progress *p, const struct ctl *c, const char *name);
/* As blob_watch has it; false after Ctrl-C. */
bool progress_show(void *progress, uint64_t done, uint64_t total);
void progress_end(struct progress *p);
/* Was it Ctrl-C, or SIGTERM? */
bool publish_interrupted(void);

/* "1.4 GiB"; in buf, returned. */
const char *publish_size(uint64_t bytes, char *buf, size_t size);

#endif
