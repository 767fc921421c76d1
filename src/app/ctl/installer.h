/*
 * installer: a package of the agent that enrols the device on which it is installed.
 *
 * Purpose   Puts what an enrolment needs into a package of the agent (docs/web.md), and writes
 *           the script that fetches, verifies and installs it.
 * Shape     All happens in a folder of its own, for its owner only, because of the token.
 * Errors    ERR_INVALID: the file is no package of the agent; ERR_IO: a program failed.
 * Threads   one
 * Tests     tests/unit/test_installer.c, tests/system/test_installer.py
 */
#ifndef APP_CTL_INSTALLER_H
#define APP_CTL_INSTALLER_H

#include "base/err.h"
#include "sys/blob/blob.h"
#include "sys/conf/conf.h"

enum { INSTALLER_WORD = 128 };

struct installer {
    char folder[CONF_PATH]; /* "": not begun */
    char version[INSTALLER_WORD],
        platform[INSTALLER_WORD]; /* of the package of the agent */
    char package[CONF_PATH + 32], script[CONF_PATH + 32]; /* the files made */
    struct blob_id digest;                                /* of the package */
};

/* Makes the folder and unpacks the package of the agent. */
MUST_USE enum err installer_begin(struct installer *n, const char *base,
                                  struct err_info *info);

struct installer_brings {
    const char *server; /* HOST:PORT of the API */
    const char *token;
    const char *ca; /* PEM */
};
/* Packs it anew with what the enrolment needs. */
MUST_USE enum err installer_pack(struct installer *n, const struct installer_brings *b,
                                 struct err_info *info);
/* pin and url: as curl takes them. */
MUST_USE enum err installer_script(struct installer *n, const char *pin, const char *url,
                                   struct err_info *info);
/* Removes the folder and all in it. */
void installer_end(struct installer *n);

#endif
