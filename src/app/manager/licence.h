/*
 * licence: a look at what an administrator imports before the DBMS sees it.
 *
 * Purpose   The DBMS cannot verify signatures.  A licence, or an answer of the vendor, is
 *           looked at here, and the DBMS, which knows who may do this, is told what is wrong.
 * Threads   loop thread only
 * Tests     tests/contract/test_vendor.py
 */
#ifndef APP_MANAGER_LICENCE_H
#define APP_MANAGER_LICENCE_H

#include <stdbool.h>

struct asked;

/* The body of POST /v1/licences/import becomes {"envelope", "problem"}; always true. */
bool licence_check(struct asked *a);

#endif
