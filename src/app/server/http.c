/* http: probes, the switch to WebSocket, and OpAMP over plain HTTP. */
#include <inttypes.h>

#include "app/server/conn.h"
#include "app/server/gzip.h"
#include "app/server/push.h"

/* Shorter answers are not worth it. */
enum { GZIP_WORTH = 512, HTTP_RETRY_S = 30 };

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

/* Whose connection is it?  False: nobody's, and told so. */
static bool identified(struct conn *c)
{
    if (c->has_identity)
        return true;
    c->server->counts.strangers++;
    answer(c, "403 Forbidden", "",
           "the certificate names no device (subjectAltName urn:uuid:)\n");
    return false;
}

/* Where the load balancer is, only the device knows by what name it reaches us. */
static void host_keep(struct conn *c, const struct http_head *h)
{
    struct str host;
    char text[256];

    if (c->host || c->server->conf.address.mode == CONF_ADDRESS_VIRTUAL_IP)
        return;
    if (http_find(h, "Host", &host) && str_copy(text, sizeof(text), host) &&
        strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                     ".:-[]") == host.n)
        c->host = strdup(text);
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
               "this is an OpAMP endpoint: WebSocket, or POST\n");
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
    if (!identified(c))
        return;
    host_keep(c, h);
    text_init(&t, buf, sizeof(buf));
    text_add(&t,
             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
             "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
             accept);
    conn_put(c, buf, t.n, false);
    if (c->state == CONN_HTTP)
        conn_upgrade(c);
}

/* What a POST must be; NULL, or why it is refused. */
static const char *post_fault(const struct http_head *h, uint64_t *length,
                              const char **status)
{
    struct str type, text;

    *status = "411 Length Required";
    if (http_find(h, "Transfer-Encoding", &text))
        return "chunks are not taken\n";
    if (!http_find(h, "Content-Length", &text))
        return "Content-Length is missing\n";
    *status = "400 Bad Request";
    if (!str_u64(text, UINT32_MAX, length))
        return "Content-Length is wrong\n";
    *status = "413 Content Too Large";
    if (*length > OPAMP_MESSAGE_MAX)
        return "a message is at most 65536 bytes\n";
    *status = "415 Unsupported Media Type";
    if (!http_find(h, "Content-Type", &type) || !str_is(type, "application/x-protobuf"))
        return "Content-Type must be application/x-protobuf\n";
    if (http_find(h, "Content-Encoding", &text) && !str_is(text, "gzip") &&
        !str_is(text, "identity"))
        return "Content-Encoding must be gzip or identity\n";
    return NULL;
}

/* The uid in the header is there for balancers; it must not lie. */
static bool uid_header_fits(struct conn *c, const struct http_head *h)
{
    struct str text;
    struct uuid uid;

    if (!http_find(h, "OpAMP-Instance-UID", &text))
        return true;
    return uuid_parse(&uid, text) &&
           (uuid_eq(&uid, &c->device_id) ||
            (c->trust == CONN_CLONE && uuid_eq(&uid, &c->new_id)));
}

/* A whole AgentToServer has come. */
static void post(struct conn *c, const struct http_head *h, struct str body)
{
    static uint8_t plain[OPAMP_MESSAGE_MAX];
    struct str encoding;

    if (http_find(h, "Content-Encoding", &encoding) && str_is(encoding, "gzip")) {
        size_t n = 0;
        enum err e = gzip_open(body, plain, sizeof(plain), &n);

        if (e != ERR_OK) {
            c->server->counts.bad_http++;
            answer(c, e == ERR_LIMIT ? "413 Content Too Large" : "400 Bad Request", "",
                   "the compressed body is too long or malformed\n");
            return;
        }
        body = (struct str){ (const char *)plain, n };
    }
    host_keep(c, h);
    conn_list(c);
    c->answering = true;
    c->keep = !http_has_token(h, "Connection", "close");
    c->gzip = http_has_token(h, "Accept-Encoding", "gzip");
    conn_deadline(c, push_idle_ms(c));
    device_message(c, body);
    c->paused = c->answering;
}

/* POST /v1/opamp; false: more of the body is needed. */
static bool post_bytes(struct conn *c, const struct http_head *h, const uint8_t *bytes,
                       size_t *used)
{
    uint64_t length = 0;
    const char *status, *why = post_fault(h, &length, &status);

    if (!why && !identified(c))
        return true;
    if (!why && !uid_header_fits(c, h)) {
        status = "400 Bad Request";
        why = "OpAMP-Instance-UID is not the device id of the certificate\n";
    }
    if (why) {
        c->server->counts.bad_http++;
        answer(c, status, "", why);
        return true;
    }
    if (c->in_n - h->size < length)
        return false;
    *used = h->size + (size_t)length;
    post(c, h, (struct str){ (const char *)bytes + h->size, (size_t)length });
    return true;
}

static void other(struct conn *c, const struct http_head *h)
{
    bool opamp = str_is(h->target, "/v1/opamp"), probe = str_is(h->target, "/v1/health");

    if (!opamp && !probe)
        answer(c, "404 Not Found", "", "");
    else if (!str_is(h->method, "GET"))
        answer(c, "405 Method Not Allowed",
               opamp ? "Allow: GET, POST\r\n" : "Allow: GET\r\n", "");
    else if (opamp)
        upgrade(c, h);
    else
        health(c);
}

bool http_bytes(struct conn *c, uint8_t *bytes)
{
    struct http_head h;
    enum http_result r = http_request((struct str){ (char *)bytes, c->in_n }, &h);
    size_t used = 0;
    bool whole = true;

    if (r == HTTP_DONE) {
        used = h.size;
        if (str_is(h.method, "POST") && str_is(h.target, "/v1/opamp"))
            whole = post_bytes(c, &h, bytes, &used);
        else
            other(c, &h);
    } else if (r == HTTP_MORE) {
        whole = false;
    } else {
        c->server->counts.bad_http++;
        answer(c,
               r == HTTP_BAD ? "400 Bad Request" : "431 Request Header Fields Too Large",
               "", "");
    }
    if (!whole && c->deadline_ms > c->server->now_ms + CONN_HELLO_MS)
        conn_deadline(c, CONN_HELLO_MS); /* once begun, a request is sent without delay */
    if (!whole || c->state == CONN_CLOSED)
        return false;
    memmove(bytes, bytes + used, c->in_n - used);
    c->in_n -= used;
    return true;
}

static void reply(struct conn *c, const char *status, uint32_t retry_s,
                  const uint8_t *bytes, size_t n)
{
    static uint8_t packed[OPAMP_MESSAGE_MAX];
    char head[512];
    struct text t;
    size_t packed_n = 0;
    bool gzip = c->gzip && n >= GZIP_WORTH &&
                gzip_pack((struct str){ (const char *)bytes, n }, packed, sizeof(packed),
                          &packed_n) == ERR_OK;

    text_init(&t, head, sizeof(head));
    text_add(&t, "HTTP/1.1 %s\r\nContent-Type: application/x-protobuf\r\n", status);
    if (retry_s > 0)
        text_add(&t, "Retry-After: %u\r\n", retry_s);
    if (gzip)
        text_add(&t, "Content-Encoding: gzip\r\n");
    if (!c->keep)
        text_add(&t, "Connection: close\r\n");
    text_add(&t, "Content-Length: %zu\r\n\r\n", gzip ? packed_n : n);
    CHECK(!t.cut);
    bool goodbye = !c->keep;
    c->answering = false;
    conn_put(c, head, t.n, false);
    if (c->state == CONN_HTTP)
        conn_put(c, gzip ? packed : bytes, gzip ? packed_n : n, goodbye);
}

void http_reply(struct conn *c, const uint8_t *bytes, size_t n)
{
    reply(c, "200 OK", 0, bytes, n);
}

void http_refuse(struct conn *c, const char *status, uint32_t retry_s,
                 const uint8_t *bytes, size_t n)
{
    reply(c, status, retry_s > 0 && retry_s < HTTP_RETRY_S ? HTTP_RETRY_S : retry_s,
          bytes, n);
}
