/*
 * server: the Administration Server's one process.
 *
 * Purpose   Takes device connections on one port while the node is active, hands what
 *           they say to the DBMS session, and answers after the commit.
 * Shape     One event loop.  A connection (conn.h) has at most CONN_REQUESTS_MAX requests
 *           on their way; a request is one AgentToServer that waits for its commit.
 * Safety    No byte goes to a device unless this node holds the lease with the epoch of
 *           its role at that moment (server_may_answer).
 * Threads   loop thread only
 */
#ifndef APP_SERVER_H
#define APP_SERVER_H

#include <redoubt/service.h>
#include <sys/queue.h>
#include <systemd/sd-event.h>

#include "sys/conf/conf.h"
#include "sys/store/store.h"
#include "sys/tls/tls.h"
#include "wire/ws.h"

enum {
    SERVER_BUCKETS = 4096,
    SERVER_BACKLOG = 4096,
    CONN_REQUESTS_MAX = 32,
    CONN_BAD_MAX = 8,       /* bad messages before the connection is closed */
    CONN_OUT_MAX = 1 << 20, /* bytes that a device may leave unread */
    CONN_HELLO_MS = 10000,  /* handshake and request must be over */
    CONN_IDLE_MS = 90000,   /* a device says nothing: it is gone */
    CONN_GOODBYE_MS = 2000, /* to take the last bytes */
    DROP_MS = 30            /* of one turn of the loop for closing connections */
};

struct conn;
struct request;
LIST_HEAD(conn_list, conn);
LIST_HEAD(request_list, request);

struct server_counts {
    uint64_t accepted, handshakes_failed, resumed, strangers, bad_http, bad_messages,
        refused_reports, unavailable, answered, withheld;
};

struct server {
    sd_event *event;
    struct redoubt_service *service;
    struct conf conf;
    struct tls_creds *creds;
    struct store *store;
    sd_event_source *listener; /* NULL unless active; owns its descriptor */
    sd_event_source *dropper;  /* on while connections are left to close */
    bool active;
    uint64_t epoch; /* while active */
    uint64_t now_ms;
    uint32_t conn_count, conn_max;
    struct conn_list conns, dead; /* dead: freed after this turn of the loop */
    struct request_list requests;
    struct conn_list bucket[SERVER_BUCKETS]; /* by device id */
    struct server_counts counts;
    char store_why[160];
    uint8_t scratch[WS_BUFFER(65536)]; /* where a connection without leftovers reads */
};

/* May a device be answered now? */
bool server_may_answer(const struct server *s);

/* Roles, from main.c.  listen errors are told and leave the server without listener. */
void server_active(struct server *s, uint64_t epoch);
void server_standby(struct server *s);

MUST_USE enum err listener_open(struct server *s, struct err_info *info);
/* Is the address usable?  Binds and closes it. */
MUST_USE enum err listener_probe(const struct server *s, struct err_info *info);

#endif
