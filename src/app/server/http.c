#include <inttypes.h>

#include "app/server/conn.h"

static void answer(struct conn *c, const char *status, const char *header,
                   const char *body)
{
    char buf[1024];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    text_add(&t, "HTTP/1.1 %s\r\n%sConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
             status, header, strlen(body), body);
    CHECK(!t.cut);
    conn_put(c, buf, t.n, true);
}

/* For probes: 200 says that this node is active and holds the lease at this moment. */
static void health(struct conn *c)
{
    struct server *s = c->server;
    char body[256], node[2 * CONF_NAME];
    struct text t;

    /* Node names are checked by the configuration: letters, digits, '-'. */
    (void)snprintf(node, sizeof(node), "%s", redoubt_service_node(s->service));
    text_init(&t, body, sizeof(body));
    text_add(&t, "{\"node\":\"%s\",\"epoch\":%" PRIu64 ",\"database\":\"%s\"}\n", node,
             s->epoch, store_state_name(store_state(s->store)));
    answer(c, "200 OK", "Content-Type: application/json\r\nCache-Control: no-store\r\n",
           body);
}

static void upgrade(struct conn *c, const struct http_head *h)
{
    struct str key, version;
    char accept[TLS_WS_ACCEPT] = "", buf[256];
    struct text t;

    if (!http_has_token(h, "Upgrade", "websocket") ||
        !http_has_token(h, "Connection", "Upgrade")) {
        answer(c, "426 Upgrade Required",
               "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
               "this is an OpAMP endpoint: WebSocket only\n");
        return;
    }
    if (!http_find(h, "Sec-WebSocket-Version", &version) || !str_is(version, "13")) {
        answer(c, "426 Upgrade Required", "Sec-WebSocket-Version: 13\r\n", "");
        return;
    }
    if (http_find(h, "Sec-WebSocket-Key", &key))
        tls_ws_accept(accept, key);
    if (accept[0] == '\0') {
        c->server->counts.bad_http++;
        answer(c, "400 Bad Request", "", "Sec-WebSocket-Key is missing or wrong\n");
        return;
    }
    if (!c->has_identity) {
        c->server->counts.strangers++;
        answer(c, "403 Forbidden", "",
               "the certificate names no device (subjectAltName urn:uuid:)\n");
        return;
    }
    text_init(&t, buf, sizeof(buf));
    text_add(&t,
             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
             "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
             accept);
    conn_put(c, buf, t.n, false);
    if (c->state == CONN_HTTP)
        conn_upgrade(c);
}

void http_answer(struct conn *c, const struct http_head *h)
{
    bool opamp = str_is(h->target, "/v1/opamp"), probe = str_is(h->target, "/v1/health");

    if (!opamp && !probe)
        answer(c, "404 Not Found", "", "");
    else if (!str_is(h->method, "GET"))
        answer(c, "405 Method Not Allowed", "Allow: GET\r\n", "");
    else if (opamp)
        upgrade(c, h);
    else
        health(c);
}
