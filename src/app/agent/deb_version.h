/*
 * deb_version: which of two versions is newer, as dpkg sees it.
 *
 * Threads   any; pure
 * Source    deb-version(7)
 * Tests     tests/unit/test_deb_version.c
 */
#ifndef APP_AGENT_DEB_VERSION_H
#define APP_AGENT_DEB_VERSION_H

/* Below 0: a is older; 0: they are the same; above 0: a is newer. */
int deb_version_compare(const char *a, const char *b);

#endif
