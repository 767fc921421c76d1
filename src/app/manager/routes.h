/*
 * routes: the table of the API.
 *
 * Purpose   Method and address to what serves it: a function of the DBMS or one in C, the
 *           role it needs, the query it takes, how long its body may be.  docs/api/openapi.json
 *           describes the same routes, and tests/contract/test_openapi.py compares them.
 * Threads   any; constant
 */
#ifndef APP_MANAGER_ROUTES_H
#define APP_MANAGER_ROUTES_H

#include <jansson.h>

#include "base/str.h"

enum { ROUTE_PIECES_MAX = 8 };

enum route_body { BODY_NONE, BODY_OPTIONAL, BODY_NEEDED };

struct asked;
struct http_error;

struct route {
    const char *method, *pattern; /* "/v1/devices/{id}" */
    const char *fn;               /* redoubt.FN, or NULL: serve */
    void (*serve)(struct asked *a);
    const char *role; /* the least; NULL: public */
    bool write;
    enum route_body body;
    const char *query; /* its parameters, separated by blanks */
    const char *guard; /* the function that reads what this one changes; NULL: no ETag */
    /* A look at the body before the DBMS sees it; false: it has refused the request. */
    bool (*check)(struct asked *a);
    /* What the DBMS does not know is put into its answer; false: it has refused the request. */
    bool (*finish)(struct asked *a, json_t *body);
};

enum route_found { ROUTE_OK, ROUTE_UNKNOWN, ROUTE_METHOD };

/* pieces: of the path, decoded.  ROUTE_METHOD: *out is a route with another method. */
enum route_found route_find(const char *method, const char *const pieces[], size_t count,
                            const struct route **out);
/* The methods that this address has: "GET, PATCH". */
void route_methods(const char *const pieces[], size_t count, char *buf, size_t size);
/* Piece i of the pattern is "{name}": name, else NULL. */
const char *route_parameter(const struct route *r, size_t i, char buf[32]);
/* Is it one of the parameters of the query? */
bool route_takes(const struct route *r, struct str parameter);
/* How long a body may be. */
size_t route_body_max(const struct route *r);

/* The whole table; NULL: the end. */
const struct route *route_at(size_t i);

#endif
