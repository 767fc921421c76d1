/*
 * http_server: small HTTP/JSON interfaces on a Unix socket or a TCP port.
 *
 * Purpose   The control socket, the health endpoint and the metrics of a daemon.
 * Shape     A request is complete when the handler sees it: at most HTTP_BODY_MAX bytes of
 *           body.  At most HTTP_CONNECTIONS_MAX connections, each idle for at most
 *           HTTP_IDLE_S; what is beyond is refused or closed.
 * Owns      The server owns its sockets; the reply's body is owned by the server once the
 *           handler returned.  Requests are borrowed for the call.
 * Safety    No threads: all work happens in the sd-event loop, a bounded piece at a time.
 *           The handler must not block.  The peer's credentials come from the kernel.
 * Threads   the thread of the loop
 * Tests     tests/unit/test_http.c
 */
#ifndef SYS_HTTP_SERVER_H
#define SYS_HTTP_SERVER_H

#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/str.h"

enum {
    HTTP_BODY_MAX = 64 * 1024,
    HTTP_CONNECTIONS_MAX = 64,
    HTTP_IDLE_S = 5,
};

struct http_request {
    const char *method; /* "GET" */
    const char *path;   /* "/v1/status", without the query */
    struct str body;
    bool peer_known; /* on a Unix socket */
    uid_t uid;
    gid_t gid;
    pid_t pid;
    void *connection; /* for http_argument */
};

struct http_reply {
    unsigned status;
    const char *content_type; /* static; NULL: application/json */
    char *body;               /* from malloc, or NULL: no body */
    size_t body_bytes;
};

/* Fills *out, which is {500, no body} when it is called. */
typedef void (*http_handler)(void *arg, const struct http_request *req,
                             struct http_reply *out);

/* The value of ?name=value, NULL if absent; borrowed for the call of the handler. */
const char *http_argument(const struct http_request *req, const char *name);

/* Copies the body. */
void http_reply_text(struct http_reply *out, unsigned status, const char *content_type,
                     struct str body);
/* {"error":{"id","title","text","suggestion"}}; every part is quoted as JSON needs. */
struct http_error {
    const char *id, *title, *text, *suggestion;
};
void http_reply_error(struct http_reply *out, unsigned status,
                      const struct http_error *error);

struct http_server;
struct http_server_options {
    sd_event *loop;
    int64_t priority; /* of its events in the loop: below what keeps the lease */
    /* One of the two. */
    const char *unix_path;  /* a stale socket is replaced, a live one is ERR_EXISTS */
    const char *unix_group; /* mode 0660 root:group; NULL or unknown group: 0600 */
    const char *tcp_host;   /* numeric */
    uint16_t tcp_port;
    http_handler handle;
    void *arg;
};

/*
 * http_server_new - listen and serve until http_server_free.
 *
 * opts  its strings are borrowed for the call, `arg` until http_server_free.
 */
MUST_USE enum err http_server_new(const struct http_server_options *opts,
                                  struct http_server **out, struct err_info *info);
/* Closes the connections too and removes the Unix socket.  NULL is fine. */
void http_server_free(struct http_server *s);

#endif
