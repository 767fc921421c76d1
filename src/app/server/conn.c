#include "app/server/conn.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "app/server/push.h"
#include "sys/log/log.h"

enum { READS_A_TURN = 16, OUT_FIRST = 2048, GOODBYE_BYTES = 125 };

static_assert(sizeof(((struct server *)0)->scratch) >= WS_BUFFER(OPAMP_MESSAGE_MAX),
              "the scratch buffer takes a whole message");
static_assert(BODY_MAX == HTTP_HEAD_MAX + OPAMP_MESSAGE_MAX, "and a request with it");

void conn_deadline(struct conn *c, uint32_t ms)
{
    c->deadline_ms = c->server->now_ms + ms;
}

static void watch(struct conn *c, bool tls_wants_write)
{
    uint32_t events = 0;

    if (!c->paused && c->state != CONN_GOODBYE)
        events |= EPOLLIN;
    if (tls_wants_write || c->out_n > c->out_at)
        events |= EPOLLOUT;
    (void)sd_event_source_set_io_events(c->io, events);
}

void conn_close(struct conn *c, const char *why)
{
    struct server *s = c->server;

    if (c->state == CONN_CLOSED)
        return;
    log_event(LOG_LEVEL_DEBUG, "device_closed", log_str("peer", c->peer),
              log_str("why", why));
    if (c->state == CONN_TLS)
        s->handshakes--;
    c->state = CONN_CLOSED;
    push_gone(c);
    device_gone(c);
    if (c->held)
        TAILQ_REMOVE(&s->held, c, hold);
    c->held = false;
    if (c->listed)
        LIST_REMOVE(c, device);
    c->listed = false;
    c->io = sd_event_source_disable_unref(c->io);
    LIST_REMOVE(c, all);
    LIST_INSERT_HEAD(&s->dead, c, all);
    s->conn_count--;
}

void conn_bury(struct server *s)
{
    struct conn *c;

    while ((c = LIST_FIRST(&s->dead))) {
        LIST_REMOVE(c, all);
        tls_free(c->tls);
        free(c->in);
        free(c->out);
        free(c->renewed);
        free(c->package);
        free(c->host);
        push_forget(c);
        free(c);
    }
}

/* Sends what waits.  May close the connection. */
static void flush(struct conn *c)
{
    struct err_info info = { 0 };
    enum tls_result r = TLS_DONE;

    while (c->out_at < c->out_n) {
        size_t n = 0;

        r = tls_write(c->tls, c->out + c->out_at, c->out_n - c->out_at, &n, &info);
        if (r != TLS_DONE)
            break;
        c->out_at += n;
    }
    if (r == TLS_CLOSED || r == TLS_FAILED) {
        conn_close(c, info.what[0] ? info.what : "closed by the device");
        return;
    }
    if (c->out_at == c->out_n) {
        free(c->out);
        c->out = NULL;
        c->out_n = c->out_at = c->out_size = 0;
        if (c->state == CONN_GOODBYE) {
            tls_bye(c->tls);
            (void)shutdown(sd_event_source_get_io_fd(c->io), SHUT_WR);
            c->state = CONN_DRAIN;
            c->paused = false;
        }
    }
    watch(c, r == TLS_WANT_WRITE);
}

/* Room for n bytes behind what waits. */
static bool out_room(struct conn *c, size_t n)
{
    if (n <= c->out_size - c->out_n)
        return true;
    if (n > CONN_OUT_MAX - (c->out_n - c->out_at))
        return false;
    if (c->out_at > 0) {
        memmove(c->out, c->out + c->out_at, c->out_n - c->out_at);
        c->out_n -= c->out_at;
        c->out_at = 0;
    }
    size_t size = c->out_size ? c->out_size : OUT_FIRST;
    while (size < c->out_n + n)
        size *= 2;
    uint8_t *p = realloc(c->out, size);
    if (!p)
        return false;
    c->out = p;
    c->out_size = size;
    return true;
}

static bool out_add(struct conn *c, const void *bytes, size_t n)
{
    if (!out_room(c, n)) {
        conn_close(c, "the device does not read its answers");
        return false;
    }
    memcpy(c->out + c->out_n, bytes, n);
    c->out_n += n;
    return true;
}

/* Nothing goes out without the lease, whatever it is. */
static bool allowed(struct conn *c)
{
    if (c->state == CONN_CLOSED)
        return false;
    if (server_may_answer(c->server))
        return true;
    c->server->counts.withheld++;
    conn_close(c, "no lease");
    return false;
}

void conn_put(struct conn *c, const void *bytes, size_t n, bool goodbye)
{
    if (!allowed(c) || !out_add(c, bytes, n))
        return;
    if (goodbye) {
        c->state = CONN_GOODBYE;
        conn_deadline(c, CONN_GOODBYE_MS);
    }
    flush(c);
}

static void frame_put(struct conn *c, enum ws_opcode op, const void *bytes, size_t n,
                      bool goodbye)
{
    uint8_t head[WS_HEADER_MAX];
    size_t head_n = ws_frame(head, op, n, NULL);

    if (allowed(c) && out_add(c, head, head_n))
        conn_put(c, bytes, n, goodbye);
}

void conn_send(struct conn *c, const uint8_t *bytes, size_t n)
{
    if (c->state == CONN_WS)
        frame_put(c, WS_OP_BINARY, bytes, n, false);
}

void conn_goodbye(struct conn *c, enum ws_close_code code, const char *why)
{
    uint8_t payload[GOODBYE_BYTES] = { (uint8_t)(code >> 8), (uint8_t)code };
    size_t n = strnlen(why, sizeof(payload) - 2);

    memcpy(payload + 2, why, n);

    log_event(LOG_LEVEL_DEBUG, "device_goodbye", log_str("peer", c->peer),
              log_u64("code", code), log_str("why", why));
    if (c->state == CONN_WS)
        frame_put(c, WS_OP_CLOSE, payload, n + 2, true);
    else
        conn_close(c, why);
}

struct conn_list *conn_bucket(struct server *s, const struct uuid *id)
{
    uint32_t h;

    memcpy(&h, id->bytes + UUID_BYTES - sizeof(h), sizeof(h)); /* the random end */
    return &s->bucket[h % SERVER_BUCKETS];
}

void conn_list(struct conn *c)
{
    if (c->listed)
        return;
    LIST_INSERT_HEAD(conn_bucket(c->server, &c->device_id), c, device);
    c->listed = true;
}

/* The same certificate again: the older connection is a half-open one. */
void conn_upgrade(struct conn *c)
{
    struct conn *old, *next;

    for (old = LIST_FIRST(conn_bucket(c->server, &c->device_id)); old; old = next) {
        next = LIST_NEXT(old, device);
        if (old != c && old->state == CONN_WS && uuid_eq(&old->device_id, &c->device_id))
            conn_close(old, "the device has connected anew");
    }
    conn_list(c);
    c->state = CONN_WS;
    conn_deadline(c, CONN_IDLE_MS);
}

/* The header in front of AgentToServer is one byte, 0. */
static void ws_message(struct conn *c, struct str data)
{
    if (data.n < OPAMP_HEADER_BYTES || data.p[0] != 0)
        device_bad(c, "message header is not 0");
    else
        device_message(
            c, (struct str){ data.p + OPAMP_HEADER_BYTES, data.n - OPAMP_HEADER_BYTES });
}

/* Not read until the DBMS has caught up.  It is not the device that is slow. */
static void conn_hold(struct conn *c)
{
    c->paused = true;
    if (c->held)
        return;
    c->held = true;
    TAILQ_INSERT_TAIL(&c->server->held, c, hold);
}

/* Handles whole frames until the bytes are used up or the connection pauses. */
static void frames(struct conn *c)
{
    while (c->state == CONN_WS && !c->paused) {
        struct ws_event ev;

        ws_pull(&c->ws, &ev);
        if (ev.kind != WS_MORE)
            conn_deadline(c, push_idle_ms(c));
        switch (ev.kind) {
        case WS_MORE: return;
        case WS_MESSAGE: ws_message(c, ev.data); break;
        case WS_PING: frame_put(c, WS_OP_PONG, ev.data.p, ev.data.n, false); break;
        case WS_PONG: break;
        case WS_CLOSE: conn_goodbye(c, WS_CLOSE_NORMAL, "closed by the device"); return;
        case WS_FAIL:
            c->server->counts.bad_messages++;
            log_event(LOG_LEVEL_WARNING, "device_bad_frame", log_str("peer", c->peer),
                      log_str("why", ev.reason));
            conn_goodbye(c, (enum ws_close_code)ev.code, ev.reason);
            return;
        }
        c->paused = c->requests >= CONN_REQUESTS_MAX || c->trust == CONN_ASKED;
        if (!c->paused && c->state == CONN_WS && store_busy(c->server->store))
            conn_hold(c);
    }
}

/* A connection with leftovers owns a buffer; the others read into the shared one. */
static uint8_t *in_borrow(struct conn *c)
{
    return c->in ? c->in : c->server->scratch;
}

/* Keeps `n` unused bytes at p for the next time. */
static void in_keep(struct conn *c, const uint8_t *p, size_t n, size_t size)
{
    if (n == 0) {
        free(c->in);
        c->in = NULL;
    } else if (!c->in) {
        c->in = malloc(size);
        if (!c->in)
            conn_close(c, "out of memory");
        else
            memcpy(c->in, p, n);
    }
}

static void ws_bytes(struct conn *c, const uint8_t *bytes, size_t n)
{
    uint8_t *to;

    if (ws_space(&c->ws, &to) < n) {
        conn_close(c, "too many bytes at once");
        return;
    }
    memcpy(to, bytes, n);
    ws_filled(&c->ws, n);
    frames(c);
}

/* The switch to WebSocket: what followed the head are its first bytes. */
static void ws_begin(struct conn *c, const uint8_t *bytes, size_t n)
{
    uint8_t *buf = malloc(BODY_MAX), *old = c->in;

    if (!buf) {
        conn_close(c, "out of memory");
        return;
    }
    ws_in_init(&c->ws, buf, BODY_MAX, OPAMP_MESSAGE_MAX, true);
    c->in = buf;
    c->in_n = 0;
    if (n > 0)
        ws_bytes(c, bytes, n);
    free(old);
}

/* What has come in CONN_HTTP is in the borrowed buffer: answers while it can. */
static void http_settle(struct conn *c)
{
    uint8_t *buf = in_borrow(c);

    while (c->state == CONN_HTTP && !c->paused && c->in_n > 0)
        if (!http_bytes(c, buf))
            break;
    if (c->state == CONN_WS)
        ws_begin(c, buf, c->in_n);
    else if (c->state == CONN_HTTP)
        in_keep(c, buf, c->in_n, BODY_MAX);
}

/* After frames were handled: give the buffer back if nothing is left in it. */
static void ws_settle(struct conn *c)
{
    uint8_t *at;

    if (c->state != CONN_WS)
        return;
    (void)ws_space(&c->ws, &at); /* moves what is left to the start */
    size_t left = c->ws.n;
    bool was_own = c->in != NULL;
    if (left == 0 && !c->ws.fragmented) {
        in_keep(c, NULL, 0, 0);
    } else if (!was_own) {
        in_keep(c, c->server->scratch, left ? left : 1, BODY_MAX);
        c->ws.buf = c->in;
    }
    /* What holds a buffer does not hold it for long. */
    if (c->in && c->deadline_ms > c->server->now_ms + CONN_PARTIAL_MS)
        conn_deadline(c, CONN_PARTIAL_MS);
}

/* Where to read to, and how much. */
static size_t in_space(struct conn *c, uint8_t **out)
{
    uint8_t *buf = in_borrow(c);

    if (c->state == CONN_HTTP) {
        *out = buf + c->in_n;
        return BODY_MAX - c->in_n;
    }
    if (!c->in)
        ws_in_init(&c->ws, buf, BODY_MAX, OPAMP_MESSAGE_MAX, true);
    return ws_space(&c->ws, out);
}

static void readable(struct conn *c)
{
    struct err_info info = { 0 };

    for (int i = 0; i < READS_A_TURN || tls_pending(c->tls) > 0; i++) {
        uint8_t *to;
        size_t n = 0, room = in_space(c, &to);
        enum tls_result r = tls_read(c->tls, to, room, &n, &info);

        if (r == TLS_CLOSED || r == TLS_FAILED) {
            conn_close(c, info.what[0] ? info.what : "closed by the device");
            return;
        }
        if (r != TLS_DONE) {
            watch(c, r == TLS_WANT_WRITE);
            return;
        }
        if (c->state == CONN_WS) {
            ws_filled(&c->ws, n);
            frames(c);
        } else {
            c->in_n += n;
            http_settle(c);
        }
        ws_settle(c);
        if (c->paused || c->state >= CONN_GOODBYE)
            break;
    }
    if (c->state != CONN_CLOSED)
        watch(c, false);
}

static void may_read(struct conn *c)
{
    if (c->state == CONN_WS && store_busy(c->server->store)) {
        conn_hold(c);
        watch(c, false);
    } else {
        readable(c);
    }
}

static void handshake(struct conn *c)
{
    struct err_info info = { 0 };
    struct server *s = c->server;

    switch (tls_handshake(c->tls, &info)) {
    case TLS_WANT_READ: watch(c, false); return;
    case TLS_WANT_WRITE: watch(c, true); return;
    case TLS_CLOSED: conn_close(c, "closed during the handshake"); return;
    case TLS_FAILED:
        s->counts.handshakes_failed++;
        log_event(LOG_LEVEL_WARNING, "handshake_failed", log_str("peer", c->peer),
                  log_str("why", info.what));
        conn_close(c, "handshake failed");
        return;
    case TLS_DONE: break;
    }
    s->counts.resumed += tls_resumed(c->tls);
    c->has_identity = tls_peer_device(c->tls, &c->device_id) == ERR_OK &&
                      tls_peer_certificate(c->tls, &c->certificate) == ERR_OK;
    c->state = CONN_HTTP;
    (void)sd_event_source_set_priority(c->io, SD_EVENT_PRIORITY_NORMAL);
    s->handshakes--;
    listener_pace(s);
    readable(c);
}

/* Throws away what still comes, until the device has closed its side too. */
static void drain(struct conn *c, int fd)
{
    for (int i = 0; i < READS_A_TURN; i++) {
        ssize_t n = recv(fd, c->server->scratch, BODY_MAX, 0);

        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            conn_close(c, "answered");
            return;
        }
    }
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct conn *c = arg;

    (void)source;
    if (c->state == CONN_TLS) {
        handshake(c);
        return 0;
    }
    if (c->state == CONN_DRAIN) {
        drain(c, fd);
        return 0;
    }
    if (c->out_n > c->out_at && (revents & EPOLLOUT))
        flush(c);
    if (c->state >= CONN_DRAIN)
        return 0;
    if ((revents & (EPOLLHUP | EPOLLERR)) && (c->paused || c->state == CONN_GOODBYE))
        conn_close(c, "closed by the device");
    else if (c->state < CONN_GOODBYE && !c->paused)
        may_read(c);
    return 0;
}

void conn_resume(struct conn *c)
{
    if (!c->paused || c->held || c->state > CONN_WS || c->trust == CONN_ASKED ||
        c->requests > CONN_REQUESTS_MAX / 2)
        return;
    c->paused = false;
    if (c->state == CONN_HTTP)
        http_settle(c);
    else if (c->in)
        frames(c);
    ws_settle(c);
    if (c->state <= CONN_WS && !c->paused)
        may_read(c);
}

void conn_release(struct server *s)
{
    struct conn *c;

    while (!store_busy(s->store) && (c = TAILQ_FIRST(&s->held))) {
        TAILQ_REMOVE(&s->held, c, hold);
        c->held = false;
        if (c->state == CONN_WS)
            conn_deadline(c, c->in ? CONN_PARTIAL_MS : push_idle_ms(c));
        conn_resume(c);
    }
}

void conn_sweep(struct server *s)
{
    struct conn *c, *next;

    for (c = LIST_FIRST(&s->conns); c; c = next) {
        next = LIST_NEXT(c, all);
        if (s->now_ms < c->deadline_ms || (c->held && c->state == CONN_WS))
            continue;
        if (c->state == CONN_WS && !c->broken) {
            c->broken = true;
            conn_goodbye(c, WS_CLOSE_AWAY, "nothing heard for too long");
        } else {
            conn_close(c, "too slow");
        }
    }
}

void conn_new(struct server *s, int fd, const char *peer)
{
    struct err_info info = { 0 };
    struct conn *c = calloc(1, sizeof(*c));

    if (!c) {
        (void)close(fd);
        return;
    }
    c->server = s;
    STAILQ_INIT(&c->letters);
    c->tokens = FLOOD_BURST;
    c->tokens_ms = s->now_ms;
    (void)snprintf(c->peer, sizeof(c->peer), "%s", peer);
    if (tls_new(s->creds, fd, NULL, &c->tls, &info) != ERR_OK ||
        sd_event_add_io(s->event, &c->io, fd, EPOLLIN, on_io, c) < 0) {
        (void)close(fd);
        tls_free(c->tls);
        free(c);
        return;
    }
    (void)sd_event_source_set_io_fd_own(c->io, true);
    /* A handshake is the dearest of all: devices that are there already come before it. */
    (void)sd_event_source_set_priority(c->io, SD_EVENT_PRIORITY_NORMAL + 5);
    conn_deadline(c, CONN_HELLO_MS);
    LIST_INSERT_HEAD(&s->conns, c, all);
    s->conn_count++;
    s->handshakes++;
    handshake(c);
}
