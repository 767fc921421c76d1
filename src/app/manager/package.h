/*
 * package: a look at the signature of what is published before the DBMS sees it.
 *
 * Purpose   Nothing is published that the pinned authority would not verify: 8060 hands it to
 *           whoever asks, and agents install it.
 * Threads   loop thread only
 * Tests     tests/contract/test_packages.py, test_signatures_api.py
 */
#ifndef APP_MANAGER_PACKAGE_H
#define APP_MANAGER_PACKAGE_H

#include <stdbool.h>

struct asked;

/* The body of POST /v1/packages; false: it was refused. */
bool package_check(struct asked *a);
/* The body of PUT /v1/signatures/custom. */
bool package_check_manifest(struct asked *a);

#endif
