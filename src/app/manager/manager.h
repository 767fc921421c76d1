/*
 * manager: the part of the Administration Server that people and programs talk to.
 *
 * Purpose   redoubt-manager, a child of redoubt-server: the API on a Unix socket and over
 *           TLS, enrolment and signing, and what must happen each second.
 * Shape     One event loop.  The DBMS is asked through a pool of sessions; requests wait.
 * Safety    Nothing is answered but "not active" unless this node holds the cluster's lease
 *           with the epoch of its role, when the question is asked and when it is answered.
 * Threads   loop thread only
 */
#ifndef APP_MANAGER_H
#define APP_MANAGER_H

#include <redoubt/service.h>
#include <sys/queue.h>

#include "app/manager/pool.h"
#include "sys/conf/conf.h"
#include "sys/http/http_server.h"

TAILQ_HEAD(asked_list, asked);

struct manager {
    sd_event *event;
    struct redoubt_service *service;
    struct conf conf;
    struct pool *pool;
    struct http_server *local, *network; /* network: NULL, if api_listen is empty */
    sd_event_source *second;

    bool active;
    uint64_t epoch; /* while active */

    /* api.c */
    struct asked_list asked; /* every request that is not answered yet */
    uint64_t events_told;    /* how often the DBMS told of new events */
    uint32_t patient;        /* requests that wait for events */
    uint64_t answered, refused;

    /* tick.c */
    bool ticking;
    int step;

    struct enrol *enrol; /* enrol.c */
};

/* May anybody be answered now? */
bool manager_may_answer(const struct manager *m);

/* tick.c: what must happen each second while the node is active. */
void tick(struct manager *m);

#endif
