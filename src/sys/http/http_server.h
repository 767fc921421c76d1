/*
 * http_server: HTTP/JSON interfaces on a Unix socket or a TCP port, with or without TLS.
 *
 * Purpose   The control socket, the health endpoint and the metrics of a daemon; the API.
 * Shape     A request is complete when the handler sees it: at most HTTP_BODY_MAX bytes of
 *           body, or what body_max() allows.  A limited number of connections, each idle
 *           for a limited time; what is beyond is refused or closed.
 * Later     A handler that sets reply->later answers with http_answer() when it can; until
 *           then the connection waits, for as long as it takes.
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
    HTTP_BODIES_MAX = 16 * 1024 * 1024, /* of all connections together */
    HTTP_REPLY_HEADERS_MAX = 4,
    HTTP_HEADER_VALUE = 128,
    HTTP_ADDRESS = 48,
};

struct http_request {
    const char *method; /* "GET" */
    const char *path;   /* "/v1/status", without the query, decoded */
    const char *target; /* path and query as they were sent */
    struct str body;
    const char *address; /* of the peer, numeric; "" on a Unix socket */
    bool peer_known;     /* on a Unix socket */
    uid_t uid;
    gid_t gid;
    pid_t pid;
    void *connection; /* for http_argument and http_header */
    void *call;       /* for http_answer */
};

struct http_reply {
    unsigned status;
    const char *content_type; /* static; NULL: application/json */
    char *body;               /* from malloc, or NULL: no body */
    size_t body_bytes;
    bool later; /* not this: http_answer() will follow, exactly once */
    struct {
        const char *name; /* static */
        char value[HTTP_HEADER_VALUE];
    } headers[HTTP_REPLY_HEADERS_MAX];
    size_t header_count;
};

/* Fills *out, which is {500, no body} when it is called. */
typedef void (*http_handler)(void *arg, const struct http_request *req,
                             struct http_reply *out);

/* The value of ?name=value, NULL if absent; borrowed for the call of the handler. */
const char *http_argument(const struct http_request *req, const char *name);

/* Calls each for every argument, decoded; stops when it returns false. */
void http_arguments(const struct http_request *req,
                    bool (*each)(void *arg, struct str name, struct str value),
                    void *arg);
/* The value of a header, NULL if absent; borrowed for the call of the handler. */
const char *http_header(const struct http_request *req, const char *name);

/*
 * http_path_split - the pieces of the path of a target, each decoded: "/v1/groups/%2FA" is
 *                   "v1", "groups", "/A".
 *
 * buf     holds them; as long as the target and its NUL is always enough
 * Returns how many; 0: more than max, an empty piece, a wrong escape, or a NUL.
 */
size_t http_path_split(const char *target, char *buf, size_t size, const char *pieces[],
                       size_t max);

/* Adds a header; value is copied, and cut at HTTP_HEADER_VALUE - 1. */
void http_reply_header(struct http_reply *out, const char *name, const char *value);
/* Copies the body; headers stay. */
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
    /* TLS, with files that are read again when they change; NULL: none. */
    const char *certificate, *key;
    unsigned connections_max; /* 0: HTTP_CONNECTIONS_MAX */
    unsigned per_ip_max;      /* 0: no limit of its own */
    unsigned idle_s;          /* 0: HTTP_IDLE_S */
    /* How long a body this request may have; it has no body yet.  NULL: HTTP_BODY_MAX. */
    size_t (*body_max)(void *arg, const struct http_request *req);
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
/* Closes the connections too and removes the Unix socket; requests that wait for
 * http_answer() are not to be answered any more.  NULL is fine. */
void http_server_free(struct http_server *s);

/*
 * http_answer - the answer to a request whose handler said `later`.
 *
 * call   of the request; not to be used again
 * reply  its body is taken over
 */
void http_answer(struct http_server *s, void *call, struct http_reply *reply);

#endif
