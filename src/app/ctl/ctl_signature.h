/*
 * ctl_signature: what the commands for signature databases share.
 *
 * Threads   one
 * Tests     tests/contract/test_signatures.py, tests/system/test_signatures.py
 */
#ifndef APP_CTL_SIGNATURE_H
#define APP_CTL_SIGNATURE_H

#include "app/ctl/manage.h"
#include "app/ctl/publish.h"
#include "sys/cvd/cvd_check.h"

/* A file of the command line that was looked at. */
struct signature_file {
    const char *path, *file; /* file: the last part of path */
    struct cvd_file name;
    struct cvd_checked checked;
    int fd;
};

/* CTL_OK, or an exit code after printing why it is refused. */
MUST_USE int signature_open(struct ctl *c, const char *path, struct signature_file *out);
void signature_close(struct signature_file *f);
/* "The file is refused", with why; CTL_FAILED. */
int signature_refused(struct ctl *c, const char *path, enum err e, const char *why,
                      const char *advice);

int cmd_signature_status(struct ctl *c);
int cmd_signature_source(struct ctl *c);
int cmd_signature_update(struct ctl *c);
int cmd_signature_import(struct ctl *c);
int cmd_signature_remove(struct ctl *c);
int cmd_signature_verify(struct ctl *c);
int cmd_signature_custom(struct ctl *c);

#endif
