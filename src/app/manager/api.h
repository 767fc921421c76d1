/*
 * api: one request of the API, from its first line to its answer.
 *
 * Purpose   Finds the route, knows who asks, carries the request to the DBMS and the answer
 *           back.  A route that is served in C gets a struct asked and does the same by
 *           hand: api_sql() as often as it needs, then one of the api_answer_... functions.
 * Contract  Each struct asked is answered exactly once; it is gone then.  When the node
 *           leaves its role, every one is answered with not_active by api_standby(), and
 *           the done() of its query, which comes first, gets ERR_STALE: api_fail() does.
 * Shape     Bodies are at most 16 levels deep and of the length that the route allows,
 *           both known before they are decoded.
 * Threads   loop thread only
 * Tests     tests/contract/test_manager.py, tests/contract/test_openapi.py
 */
#ifndef APP_MANAGER_API_H
#define APP_MANAGER_API_H

#include <jansson.h>

#include "app/manager/manager.h"
#include "app/manager/routes.h"

struct asked {
    TAILQ_ENTRY(asked) next;
    struct manager *m;
    struct http_server *server;
    void *call; /* of http_server.h */
    const struct route *route;
    char address[HTTP_ADDRESS]; /* of the peer; "" on the Unix socket */
    json_t *actor;              /* NULL: a public route, and nobody said who he is */
    json_t *path, *query;       /* objects of texts */
    json_t *body;               /* NULL: none */
    char *idem, *hash;          /* Idempotency-Key and SHA-256 of the request, or NULL */
    int64_t if_match, if_none_match; /* version; -1: none */
    uint64_t wait_until_ms, told;    /* of a long poll; 0: it does not wait */
    bool waiting;                    /* for events */
    const char *allow;               /* with 405: the methods; borrowed for the answer */
    void *own;                       /* for routes served in C */
};

/* http_handler and body_max of both servers; arg is the manager. */
void api_request(void *arg, const struct http_request *req, struct http_reply *out);
size_t api_body_max(void *arg, const struct http_request *req);

/*
 * api_sql - a query for this request; done() gets ctx = a.
 *
 * On failure the request is answered (and gone) and the result is false.
 */
bool api_sql(struct asked *a, const char *sql, size_t count, const char *const values[],
             dbc_done *done);

/* The answers.  text: JSON, copied; json: taken over. */
void api_answer_text(struct asked *a, unsigned status, const char *text);
void api_answer_json(struct asked *a, unsigned status, json_t *json);
void api_refuse(struct asked *a, unsigned status, const struct http_error *e);
/* What done() was told: a refusal by the DBMS (SQLSTATE RHnnn), or that it failed. */
void api_fail(struct asked *a, enum err e, const PGresult *r, const struct err_info *why);

/* 503 not_active: what to do instead. */
void api_not_active(struct asked *a);
/* Through the DBMS by the function of the route, which answers it. */
void api_ask(struct asked *a);

/* New events were stored ("" in pool.h, too): whoever waits for them asks again. */
void api_events(struct manager *m);
/* Several times a second: goes on with those who wait. */
void api_sweep(struct manager *m);
/* Answers everything with not_active.  After pool_standby(). */
void api_standby(struct manager *m);

#endif
