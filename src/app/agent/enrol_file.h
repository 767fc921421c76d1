/*
 * enrol_file: what an installer brings for the enrolment of the device it is installed on.
 *
 * Purpose   `redoubt package agent` puts server, token and authority into a file of the package
 *           that it makes; `redoubt-agent enrol --from FILE` reads it.
 * Shape     JSON: {"server": "HOST[:PORT]", "token": "rdt1...", "ca": PEM}.
 * Safety    The token lets devices in: a file that others may read is refused, and it is
 *           removed when the device is enrolled.
 * Threads   one
 * Tests     tests/contract/test_enrol.py
 */
#ifndef APP_AGENT_ENROL_FILE_H
#define APP_AGENT_ENROL_FILE_H

#include "base/err.h"

enum { ENROL_SERVER_MAX = 256, ENROL_TOKEN_MAX = 400 };

struct enrol_file {
    char server[ENROL_SERVER_MAX], token[ENROL_TOKEN_MAX];
    char *ca; /* PEM, from malloc */
};

/* ERR_NOT_FOUND: there is none.  ERR_DENIED: others may read it. */
MUST_USE enum err enrol_file_read(const char *path, struct enrol_file *out,
                                  struct err_info *info);
void enrol_file_release(struct enrol_file *f);

#endif
