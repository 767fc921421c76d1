/*
 * package: the files of agent packages in state_dir/package.
 *
 * Purpose   Looks into a package before it is installed, and makes sure that the version
 *           that runs now is there as a file, too: nothing is installed without a way back.
 * Shape     VERSION.deb, whatever kind of package the upgrade command takes; only Debian
 *           packages are looked into.
 * Threads   the worker's or the supervisor's; blocks
 * Tests     tests/contract/test_upgrade.py
 */
#ifndef APP_AGENT_PACKAGE_H
#define APP_AGENT_PACKAGE_H

#include "app/agent/worker.h"

enum { PACKAGE_PATH = 512, PACKAGE_VERSION = 65 };

/* A version that may be part of a file name. */
bool package_version_ok(const char *version);
void package_file(const char *folder, const char *version, char out[PACKAGE_PATH]);

/* ERR_INVALID: another name, version or platform than it should be; ERR_CORRUPT: no package. */
MUST_USE enum err package_inspect(struct worker *w, const char *file, const char *name,
                                  const char *version, struct err_info *info);

/* Is there VERSION.deb, a sound package of the kind that is offered?  If not it is packed anew
 * from what dpkg has installed. */
MUST_USE enum err package_way_back(struct worker *w, const char *folder, const char *name,
                                   const char *version, const char *offered,
                                   struct err_info *info);

/* Removes the packages of other versions than these. */
void package_keep_only(const char *folder, const char *one, const char *two);

#endif
