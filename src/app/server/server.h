/*
 * server: a worker of the Administration Server.
 *
 * Purpose   Takes device connections on one port while the node is active, hands what
 *           they say to the DBMS session, and answers after the commit.  Tells devices
 *           what concerns them: policies, tasks, certificates, where to connect.
 * Shape     One event loop.  A connection (conn.h) has at most CONN_REQUESTS_MAX requests
 *           on their way; a request is one AgentToServer that waits for its commit.
 *           What is to be told to many devices at once is told at a pace (push.c).
 *           While the DBMS has more to do than it takes at once, nothing new is accepted
 *           and connections are not read (conn_hold): devices wait in the network.
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
#include "wire/http_head.h"
#include "wire/ws.h"

enum {
    SERVER_BUCKETS = 4096,
    SERVER_BACKLOG = 1024, /* who waits longer than that takes has given up meanwhile */
    CONN_REQUESTS_MAX = 32,
    CONN_BAD_MAX = 8,        /* bad messages before the connection is closed */
    CONN_OUT_MAX = 1 << 20,  /* bytes that a device may leave unread */
    CONN_HELLO_MS = 10000,   /* handshake and request must be over */
    CONN_IDLE_MS = 90000,    /* a device says nothing, twice its heartbeat and so long */
    CONN_PARTIAL_MS = 15000, /* to send the rest of a message */
    CONN_GOODBYE_MS = 2000,  /* to take the last bytes */
    CONN_LETTERS_MAX = 64,
    DROP_MS = 30, /* of one turn of the loop for closing connections */

    /* New connections, a worker: so many a second, so many at once, so many shaking hands. */
    ACCEPT_PER_S = 500,
    ACCEPT_BURST = 100,
    HANDSHAKES_MAX = 256,

    /* A device: so many messages at once, and so many a second. */
    FLOOD_BURST = 1000,
    FLOOD_PER_S = 50,
    FLOOD_CLOSE = 4000, /* told so often that it is too much, it is closed */

    /* Devices that could not be served come again so many a second, a worker. */
    RETRY_PER_S = 500,
    RETRY_MAX_MS = 60000,

    FULL_PER_S = 200, /* devices that are asked for their full state */
    PUSH_PER_S = 400, /* devices that are told something unasked */
    POLICY_HASH = 32,
    BODY_MAX = HTTP_HEAD_MAX + 65536
};

struct conn;
struct request;
struct note;
struct policies;
LIST_HEAD(conn_list, conn);
TAILQ_HEAD(conn_queue, conn);
LIST_HEAD(request_list, request);
TAILQ_HEAD(note_list, note);

struct server_counts {
    uint64_t accepted, handshakes_failed, resumed, strangers, bad_http, bad_messages,
        refused_reports, unavailable, answered, withheld, floods, refused_devices, pushed;
};

struct server {
    sd_event *event;
    struct redoubt_service *service;
    struct conf conf;
    struct tls_creds *creds;
    struct store *store;
    struct policies *policies;
    sd_event_source *listener; /* NULL unless active; owns its descriptor */
    sd_event_source *dropper;  /* on while connections are left to close */
    sd_event_source *pump;     /* on while something is to be told */
    sd_event_source *pacer;    /* opens the listener again */
    bool active, was_down, policies_reading, policies_due;
    uint64_t epoch; /* while active */
    uint64_t now_ms;
    uint32_t conn_count, conn_max, handshakes;
    uint32_t full_count; /* full states asked for in the second that began at full_ms */
    uint64_t full_ms;
    uint32_t accept_tokens;
    uint64_t accept_ms;
    struct conn_list conns, dead; /* dead: freed after this turn of the loop */
    struct conn_queue todo, held; /* held: not read until the DBMS has caught up */
    uint64_t retry_ms;            /* when the next device that is sent away may come */
    struct request_list requests;
    struct note_list notes, notes_sent;      /* sent: the DBMS has not answered yet */
    uint32_t note_count;                     /* of both */
    struct conn_list bucket[SERVER_BUCKETS]; /* by device id */
    struct server_counts counts;
    char store_why[160];
    uint8_t scratch[BODY_MAX]; /* where a connection without leftovers reads */
};

/* May a device be answered now? */
bool server_may_answer(const struct server *s);

/* Roles, from main.c.  listen errors are told and leave the server without listener. */
void server_active(struct server *s, uint64_t epoch);
void server_standby(struct server *s);

MUST_USE enum err listener_open(struct server *s, struct err_info *info);
/* Is the address usable?  Binds and closes it. */
MUST_USE enum err listener_probe(const struct server *s, struct err_info *info);
/* A handshake ended, or time went by: accepts again if that is due. */
void listener_pace(struct server *s);

#endif
