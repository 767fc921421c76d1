/*
 * policy: a look at the settings of a policy before the DBMS sees them.
 *
 * Purpose   What core/policy refuses never costs a session of the DBMS.  The DBMS has the last
 *           word: it says the same (tests/contract/test_groups.py), and apply goes there only.
 * Threads   loop thread only
 */
#ifndef APP_MANAGER_POLICY_H
#define APP_MANAGER_POLICY_H

#include <stdbool.h>

struct asked;

/* The body of PUT policy; false: it was refused, with the path of each error. */
bool policy_check(struct asked *a);

#endif
