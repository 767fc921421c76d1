/*
 * links: the addresses under which packages can be downloaded.
 *
 * Purpose   Finishes the answer of POST /v1/packages/{id}/link, which names a path and, for what
 *           is private, when the link ends: the link itself needs link.key of [trust] folder.
 * Threads   loop thread only
 * Tests     tests/contract/test_links.py
 */
#ifndef APP_MANAGER_LINKS_H
#define APP_MANAGER_LINKS_H

#include <jansson.h>
#include <stdbool.h>

struct asked;

/* finish of routes.h: adds "url". */
bool links_finish(struct asked *a, json_t *body);

#endif
