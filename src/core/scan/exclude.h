/*
 * exclude: does a pattern of the policy exclude this path?
 *
 * Shape     `*` stands for any characters but '/', `**` for any characters, `?` for one
 *           but '/'.  A pattern that begins with '/' is compared with the whole path, any
 *           other one with the last name of the path.  What excludes a folder excludes
 *           everything below it.
 * Threads   any; pure.  Time is bounded by the product of both lengths, squared.
 * Tests     tests/unit/test_scan.c
 */
#ifndef CORE_SCAN_EXCLUDE_H
#define CORE_SCAN_EXCLUDE_H

#include "base/str.h"

/* path is absolute and without '.', '..' and double slashes. */
bool exclude_match(struct str pattern, struct str path);

#endif
