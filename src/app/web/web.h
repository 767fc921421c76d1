/*
 * web: follows the role of this node with nginx.
 *
 * Purpose   Standby: nginx does not run; its configuration is written and tested, its files
 *           are in the page cache.  Active, and the lease is held with the epoch that was
 *           told: nginx serves.  Anything wrong with nginx ends the program, so that the
 *           supervisor sees a failed service.
 *
 *             STANDBY --active--> WAITING --lease--> STARTING --answers--> SERVING
 *                ^                                       |                    |
 *                +---------- nginx has ended ------- STOPPING <-- standby, lease lost
 *
 * Owns      struct web owns nginx; service and conf are borrowed for its life.
 * Safety    acknowledged "standby"  =>  no nginx process lives;
 *           nginx serves  =>  the lease is held (looked at again at each deadline).
 * Threads   one
 * Tests     tests/fault/test_web.py
 */
#ifndef APP_WEB_WEB_H
#define APP_WEB_WEB_H

#include "app/web/health.h"
#include "app/web/nginx.h"
#include "redoubt/service.h"

enum web_state { WEB_STANDBY, WEB_WAITING, WEB_STARTING, WEB_SERVING, WEB_STOPPING };

struct web {
    struct redoubt_service *service;
    struct nginx nginx;
    struct health health;
    enum web_state state;
    struct mono since; /* in this state */
    bool wanted;       /* told "active" with the epoch */
    bool ack_due;
    bool ending; /* SIGTERM: stop and exit */
    uint64_t epoch;
    struct mono next_check, next_ping;
    int signal_fd;
};

/* Tests nginx; ERR_CONFIG says what to correct. */
MUST_USE enum err web_init(struct web *w, struct redoubt_service *service,
                           const struct nginx_conf *conf, struct err_info *info);

/* Told "active"; also how a program started by hand begins. */
void web_activate(struct web *w, uint64_t epoch);

/* Runs until SIGTERM (ERR_OK), the daemon's end (ERR_CLOSED) or a failure. */
MUST_USE enum err web_run(struct web *w, struct err_info *info);

#endif
