/*
 * conn: one connection of a device: TLS, then HTTP, perhaps WebSocket.
 *
 * Shape     enum conn_state in the order of life.  CONN_HTTP is where a connection stays
 *           that speaks OpAMP over plain HTTP.  In CONN_DRAIN our last word is
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
#include "wire/opamp.h"

enum conn_state { CONN_TLS, CONN_HTTP, CONN_WS, CONN_GOODBYE, CONN_DRAIN, CONN_CLOSED };

/* What the DBMS says of the device; asked with its first message. */
enum conn_trust {
    CONN_UNKNOWN,
    CONN_ASKED, /* the first message is on its way: nothing more is read */
    CONN_ADMITTED,
    CONN_CLONE /* it shares its identity with another one, and is to get its own */
};

/* The custom capabilities, as bits. */
enum conn_custom {
    CUSTOM_REPORT = 1,
    CUSTOM_EVENTS = 2,
    CUSTOM_TASKS = 4,
    CUSTOM_SESSION = 8,
    CUSTOM_LICENCE = 16
};

/* A custom message that waits to be sent. */
struct letter {
    STAILQ_ENTRY(letter) next;
    const char *capability, *type;
    size_t n;
    char data[];
};
STAILQ_HEAD(letters, letter);

enum conn_todo { TODO_REFRESH = 1, TODO_OFFERS = 2, TODO_FULL = 4 };

struct conn {
    LIST_ENTRY(conn) all;    /* of server.conns, then server.dead */
    LIST_ENTRY(conn) device; /* of a bucket, once it has spoken HTTP with an identity */
    TAILQ_ENTRY(conn) turn;  /* of server.todo, while there is something to do */
    TAILQ_ENTRY(conn) hold;  /* of server.held, while held */
    struct server *server;
    sd_event_source *io; /* owns the descriptor */
    struct tls *tls;
    enum conn_state state;
    enum conn_trust trust;
    bool listed, paused, broken, has_identity, held;
    bool waiting;               /* in server.todo */
    bool answering, keep, gzip; /* HTTP: a request is on its way, and how to answer it */
    uint8_t todo;
    uint64_t deadline_ms;
    uint8_t *in; /* leftovers, or NULL */
    struct ws_in ws;
    size_t in_n; /* CONN_HTTP */
    uint8_t *out;
    size_t out_n, out_at, out_size;
    struct uuid device_id;
    struct tls_peer certificate;
    char peer[56];
    struct request_list own; /* requests on their way */
    struct letters letters;
    uint32_t letter_count, requests, bad;

    /* What the device has told. */
    bool greeted, described, sequence_known, config_known, settings_known;
    uint8_t custom; /* enum conn_custom */
    uint64_t sequence, capabilities;
    char instance[64];                  /* redoubt.instance, or "" */
    uint8_t config_hash[POLICY_HASH];   /* what it has, or was sent */
    uint8_t settings_hash[POLICY_HASH]; /* the same of the connection settings */
    uint8_t package_hash[POLICY_HASH];  /* the same of the package, or zeros */
    bool package_offered;               /* on this connection */

    /* What the DBMS has told. */
    struct uuid group, new_id; /* new_id: CONN_CLONE */
    char since[40];            /* when it connected, as the DBMS wrote it */
    char *renewed;             /* PEM of a certificate to be fetched, or NULL; owned */
    char *package;             /* JSON: what it is to have (db/0014), or NULL; owned */
    char *host; /* what it calls this server, where that is needed; owned */

    /* How much it says. */
    uint32_t tokens, flooded;
    uint64_t tokens_ms, flood_told_ms, seen_ms;
    uint64_t retry_ms; /* when it may come again after it was sent away */
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
/* Reads again what was held, if the DBMS has caught up; between two turns of the loop. */
void conn_release(struct server *s);
/* Frees what was closed; call it between two turns of the loop. */
void conn_bury(struct server *s);
/* Closes what is past its deadline. */
void conn_sweep(struct server *s);
void conn_deadline(struct conn *c, uint32_t ms);

/* For http.c: raw bytes; goodbye: close when they are sent. */
void conn_put(struct conn *c, const void *bytes, size_t n, bool goodbye);
void conn_upgrade(struct conn *c);
/* Lists it under its device's id. */
void conn_list(struct conn *c);
struct conn_list *conn_bucket(struct server *s, const struct uuid *id);

/* http.c: looks at what has come, and answers a whole request; false: more is needed. */
bool http_bytes(struct conn *c, uint8_t *bytes);
/* http.c: the answer to a POST: a ServerToAgent, or a refusal with a status. */
void http_reply(struct conn *c, const uint8_t *bytes, size_t n);
void http_refuse(struct conn *c, const char *status, uint32_t retry_s,
                 const uint8_t *bytes, size_t n);

/* device.c: one AgentToServer of a device, without the WebSocket header. */
void device_message(struct conn *c, struct str bytes);
/* device.c: a message that cannot be taken: told, counted, and not for ever. */
void device_bad(struct conn *c, const char *why);
/* device.c: forgets the connection's requests. */
void device_gone(struct conn *c);
void device_done(void *server, uint64_t ticket, const struct store_done *done);
/* device.c: drops every request; the store has forgotten them. */
void device_forget_all(struct server *s);
/* device.c: asks the DBMS about the device again; false: not now. */
bool device_refresh(struct conn *c);

#endif
