/*
 * conn: one connection of a device: TLS, then HTTP, then WebSocket.
 *
 * Shape     enum conn_state in the order of life.  In CONN_DRAIN our last word is
 *           out, and what still comes is thrown away: closing at once would reset the
 *           connection, and the last word might be lost.  Buffers exist only while they hold
 *           something, so that an idle device costs little.
 * Owns      The descriptor, the TLS session, the buffers.  A closed connection is freed
 *           by conn_bury, after the turn of the loop in which it was closed.
 * Threads   loop thread only
 */
#ifndef APP_SERVER_CONN_H
#define APP_SERVER_CONN_H

#include "app/server/server.h"
#include "wire/http_head.h"

enum conn_state { CONN_TLS, CONN_HTTP, CONN_WS, CONN_GOODBYE, CONN_DRAIN, CONN_CLOSED };

struct conn {
    LIST_ENTRY(conn) all;    /* of server.conns, then server.dead */
    LIST_ENTRY(conn) device; /* of a bucket, once it has an identity */
    struct server *server;
    sd_event_source *io; /* owns the descriptor */
    struct tls *tls;
    enum conn_state state;
    bool listed, paused, broken, has_identity;
    uint64_t deadline_ms;
    uint8_t *in; /* leftovers, or NULL */
    struct ws_in ws;
    size_t in_n; /* CONN_HTTP */
    uint8_t *out;
    size_t out_n, out_at, out_size;
    struct uuid device_id;
    char peer[64];
    struct request_list own; /* requests on their way */
    uint32_t requests, bad;
    bool greeted, sequence_known;
    uint64_t sequence;
};

/* Takes over the descriptor, also on failure. */
void conn_new(struct server *s, int fd, const char *peer);
void conn_close(struct conn *c, const char *why);
/* Queues a WebSocket close frame, and closes when it is sent. */
void conn_goodbye(struct conn *c, enum ws_close_code code, const char *why);
/* One binary message; withheld (and the connection closed) without the lease. */
void conn_send(struct conn *c, const uint8_t *bytes, size_t n);
/* A request of the connection has ended: it may read again. */
void conn_resume(struct conn *c);
/* Frees what was closed; call it between two turns of the loop. */
void conn_bury(struct server *s);
/* Closes what is past its deadline. */
void conn_sweep(struct server *s);

/* device.c: one OpAMP message of a device. */
void device_message(struct conn *c, struct str bytes);
/* device.c: forgets the connection's requests. */
void device_gone(struct conn *c);
void device_done(void *server, uint64_t ticket, const struct store_done *done);
/* device.c: drops every request; the store has forgotten them. */
void device_forget_all(struct server *s);

/* http.c: answers a request head; bytes are what followed it. */
void http_answer(struct conn *c, const struct http_head *h);
/* conn.c, for http.c: raw bytes; goodbye: close when they are sent. */
void conn_put(struct conn *c, const void *bytes, size_t n, bool goodbye);
void conn_upgrade(struct conn *c);
struct conn *conn_of_device(struct server *s, const struct uuid *id);

#endif
