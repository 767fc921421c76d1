/*
 * render: the configuration of nginx as text.
 *
 * Purpose   What is published where, and how: the store that redoubt-mirror lays out
 *           (docs/web.md), and beside it the folder [web] root.
 * Shape     Two servers, HTTP and HTTPS, that differ in /private/ only; a third answers
 *           health requests on a Unix socket.
 * Safety    What a value of the configuration holds means nothing to nginx.  A request opens
 *           its file once and nothing is cached by name, so that it gets one set or the next,
 *           never parts of both.  Nothing below /sig/ is answered with 403, which freshclam
 *           takes as a ban for a day.
 * Threads   any
 * Tests     tests/fault/test_web.py
 */
#ifndef APP_WEB_RENDER_H
#define APP_WEB_RENDER_H

#include "app/web/nginx.h"
#include "base/str.h"

/* ERR_CONFIG: a value is missing or cannot be written into nginx.conf. */
MUST_USE enum err render_check(const struct nginx_conf *c, struct err_info *info);

/* test: for nginx -t on a node that must not listen: it gets Unix sockets. */
void render(struct text *t, const struct nginx_conf *c, const char *health, bool test);

#endif
