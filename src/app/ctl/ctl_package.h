/*
 * ctl_package: installation packages, and the store that they lie in.
 *
 * Errors    all return CTL_OK, or the exit code after printing
 * Threads   one
 * Tests     tests/contract/test_packages.py
 */
#ifndef APP_CTL_PACKAGE_H
#define APP_CTL_PACKAGE_H

#include "app/ctl/publish.h"

/* What the API is told of a package besides its bytes. */
struct package {
    char name[80], version[80], platform[80], file[160], description[2048];
    bool is_private;
};

/* Are these names that the API takes?  Known before anything is sent. */
MUST_USE int package_check(const struct package *k);
/* Uploads path, signs it (signature NULL) and registers it.  *out: the API's answer, owned. */
MUST_USE int package_publish(struct ctl *c, const struct package *k, const char *path,
                             const char *signature, json_t **out);

int cmd_package_publish(struct ctl *c);
int cmd_package_list(struct ctl *c);
int cmd_package_show(struct ctl *c);
int cmd_package_describe(struct ctl *c);
int cmd_package_remove(struct ctl *c);
int cmd_store_status(struct ctl *c);
int cmd_store_verify(struct ctl *c);
int cmd_store_collect(struct ctl *c);

#endif
