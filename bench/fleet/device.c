#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fleet.h"
#include "wire/pb.h"

enum {
    CONNECT_US = 5000000,
    HELLO_US = 20000000,
    RETRY_MIN_MS = 1000,
    RETRY_MAX_MS = 10000,
    RETRY_LEAST_US = 100000,
    CAPABILITIES = 0x1 | 0x2 | 0x1000 | 0x2000
};

static const char events_capability[] = "com.redoubt.events/v1";

static void watch(struct device *d, bool write)
{
    struct epoll_event e = { .events = write ? EPOLLIN | EPOLLOUT : EPOLLIN,
                             .data.ptr = d };

    (void)epoll_ctl(d->fleet->epoll, EPOLL_CTL_MOD, d->fd, &e);
}

static void shown_free(struct device *d)
{
    if (d->shown)
        gnutls_pcert_deinit(d->shown);
    free(d->shown);
    d->shown = NULL;
}

void device_close(struct device *d)
{
    if (d->state == DEVICE_OPEN)
        d->fleet->open--;
    if (d->tls)
        gnutls_deinit(d->tls);
    if (d->fd >= 0)
        (void)close(d->fd);
    shown_free(d);
    free(d->left);
    free(d->out);
    d->tls = NULL;
    d->fd = -1;
    d->left = d->out = NULL;
    d->left_n = d->out_n = d->out_at = 0;
    d->outstanding = 0;
    d->greeted = d->held = false;
    d->state = DEVICE_WAITING;
}

/* After a break: anywhere in the spread; after a failed attempt: ever later. */
static void again(struct device *d)
{
    struct fleet *f = d->fleet;
    bool was_open = d->state == DEVICE_OPEN;
    uint32_t wait_ms = f->spread_ms;

    device_close(d);
    if (was_open) {
        f->counts.broken++;
        d->failures = 0;
    } else {
        f->counts.failed++;
        wait_ms = (uint32_t)RETRY_MIN_MS << (d->failures < 4 ? d->failures : 4);
        wait_ms = wait_ms > RETRY_MAX_MS ? RETRY_MAX_MS : wait_ms;
        d->failures++;
    }
    d->due_us = now_us() + (uint64_t)random_below(wait_ms + 1) * 1000;
}

void device_connect(struct device *d)
{
    struct fleet *f = d->fleet;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(f->port) };
    int one = 1, idle = (int)f->keepalive_s, pause = 5, probes = 3;

    d->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (d->fd < 0 || inet_pton(AF_INET, f->address, &to.sin_addr) != 1) {
        again(d);
        return;
    }
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    /* Kernel to kernel: whoever has the address now answers an unknown flow with a reset. */
    (void)setsockopt(d->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_KEEPINTVL, &pause, sizeof(pause));
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
    d->state = DEVICE_CONNECTING;
    d->due_us = now_us() + CONNECT_US;
    struct epoll_event e = { .events = EPOLLOUT, .data.ptr = d };
    if ((connect(d->fd, (struct sockaddr *)&to, sizeof(to)) != 0 &&
         errno != EINPROGRESS) ||
        epoll_ctl(f->epoll, EPOLL_CTL_ADD, d->fd, &e) != 0)
        again(d);
}

static bool tls_begin(struct device *d)
{
    struct fleet *f = d->fleet;

    if (gnutls_init(&d->tls, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0)
        return false;
    gnutls_session_set_ptr(d->tls, d);
    (void)gnutls_priority_set(d->tls, f->priority);
    (void)gnutls_credentials_set(d->tls, GNUTLS_CRD_CERTIFICATE, f->trust);
    (void)gnutls_server_name_set(d->tls, GNUTLS_NAME_DNS, f->name, strlen(f->name));
    gnutls_session_set_verify_cert(d->tls, f->name, 0);
    if (d->ticket.data)
        (void)gnutls_session_set_data(d->tls, d->ticket.data, d->ticket.size);
    gnutls_transport_set_int(d->tls, d->fd);
    d->state = DEVICE_TLS;
    d->due_us = now_us() + HELLO_US;
    return true;
}

/* Sends what waits; false: the connection is gone. */
static bool flush(struct device *d)
{
    while (d->out_at < d->out_n) {
        ssize_t n = gnutls_record_send(d->tls, d->out + d->out_at, d->out_n - d->out_at);

        if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) {
            watch(d, true);
            return true;
        }
        if (n < 0)
            return false;
        d->out_at += (size_t)n;
    }
    free(d->out);
    d->out = NULL;
    d->out_n = d->out_at = 0;
    watch(d, false);
    return true;
}

static bool put(struct device *d, const void *bytes, size_t n)
{
    uint8_t *grown = realloc(d->out, d->out_n + n);

    if (!grown)
        return false;
    memcpy(grown + d->out_n, bytes, n);
    d->out = grown;
    d->out_n += n;
    return d->out_n > n || flush(d);
}

static bool frame(struct device *d, uint8_t *payload, size_t n)
{
    uint8_t head[WS_HEADER_MAX];
    uint8_t mask[4] = { (uint8_t)random_below(256), (uint8_t)random_below(256),
                        (uint8_t)random_below(256), (uint8_t)random_below(256) };
    size_t h = ws_frame(head, WS_OP_BINARY, n, mask);

    ws_mask(payload, n, mask);
    return put(d, head, h) && put(d, payload, n);
}

static void attribute(struct pb_out *w, uint32_t number, const char *key,
                      const char *text)
{
    size_t mark = pb_open(w, number);

    pb_put_bytes(w, 1, str_of(key));
    size_t value = pb_open(w, 2);
    pb_put_bytes(w, 1, str_of(text));
    pb_close(w, value);
    pb_close(w, mark);
}

static void begin(struct device *d, struct pb_out *w, uint8_t *buf, size_t size)
{
    buf[0] = 0;
    pb_out_init(w, buf + 1, size - 1);
    pb_put_bytes(w, 1, (struct str){ (const char *)d->id.bytes, sizeof(d->id.bytes) });
    pb_put_varint(w, 2, ++d->sequence);
    pb_put_varint(w, 4, CAPABILITIES);
}

static bool finish(struct device *d, struct pb_out *w, uint8_t *buf)
{
    d->asked_us = now_us();
    return !w->full && frame(d, buf, w->n + 1);
}

static bool hello(struct device *d)
{
    uint8_t buf[2048];
    struct pb_out w;
    char name[32], id[UUID_TEXT];

    (void)snprintf(name, sizeof(name), "bench-%u", d->index);
    uuid_format(id, &d->id);
    begin(d, &w, buf, sizeof(buf));
    size_t mark = pb_open(&w, 3);
    attribute(&w, 1, "service.name", "redoubt-agent");
    attribute(&w, 1, "service.instance.id", id);
    attribute(&w, 1, "redoubt.instance", id);
    attribute(&w, 2, "host.name", name);
    attribute(&w, 2, "os.type", "linux");
    attribute(&w, 2, "protection.engine", "running");
    attribute(&w, 2, "protection.realtime", "notify");
    pb_close(&w, mark);
    mark = pb_open(&w, 12);
    pb_put_bytes(&w, 1, str_of(events_capability));
    pb_close(&w, mark);
    return finish(d, &w, buf);
}

static bool heartbeat(struct device *d)
{
    uint8_t buf[128];
    struct pb_out w;

    begin(d, &w, buf, sizeof(buf));
    d->fleet->counts.heartbeats++;
    return finish(d, &w, buf);
}

/* What was told and not acknowledged is told again, with the same numbers. */
void device_tell(struct device *d, uint32_t events)
{
    if (d->pending == 0) {
        d->pending = events;
        d->fleet->counts.events_sent += events;
    }
    events = d->pending;

    static uint8_t buf[65536];
    static char json[60000];
    struct text t;
    struct pb_out w;
    char stream[UUID_TEXT];

    uuid_format(stream, &d->stream);
    text_init(&t, json, sizeof(json));
    text_add(&t, "{\"stream\":\"%s\",\"first\":%llu,\"events\":[", stream,
             (unsigned long long)d->event_seq + 1);
    for (uint32_t i = 0; i < events; i++)
        text_add(
            &t,
            "%s{\"at\":%llu,\"kind\":\"threat_found\",\"severity\":\"critical\","
            "\"data\":{\"path\":\"/srv/bench/%u/%llu\",\"signature\":\"Bench.Marker\"}}",
            i ? "," : "", (unsigned long long)time(NULL) * 1000000ull, d->index,
            (unsigned long long)d->event_seq + i);
    text_add(&t, "]}");
    begin(d, &w, buf, sizeof(buf));
    size_t mark = pb_open(&w, 13);
    pb_put_bytes(&w, 1, str_of(events_capability));
    pb_put_bytes(&w, 2, STR("batch"));
    pb_put_bytes(&w, 3, (struct str){ t.p, t.n });
    pb_close(&w, mark);
    d->outstanding = events;
    if (t.cut || !finish(d, &w, buf))
        again(d);
}

static bool policy_applied(struct device *d, struct str config)
{
    uint8_t buf[256];
    struct pb_out w;
    struct pb r;
    struct pb_field f;
    struct str hash = STR("");

    pb_init(&r, config);
    while (pb_next(&r, &f))
        if (f.number == 2)
            hash = pb_bytes(&r, &f);
    d->fleet->counts.policies++;
    begin(d, &w, buf, sizeof(buf));
    size_t mark = pb_open(&w, 7);
    pb_put_bytes(&w, 1, hash);
    pb_put_varint(&w, 2, 1); /* APPLIED */
    pb_close(&w, mark);
    return finish(d, &w, buf);
}

static void acknowledged(struct device *d)
{
    struct fleet *f = d->fleet;

    if (d->outstanding == 0)
        return;
    d->event_seq += d->outstanding;
    f->counts.events_acked += d->outstanding;
    d->pending = 0;
    f->ack_us[f->ack_n++ % ACK_RING] = now_us() - d->asked_us;
    d->outstanding = 0;
}

/* Is this custom message the acknowledgement of our events? */
static bool is_ack(struct str custom)
{
    struct pb r;
    struct pb_field f;
    bool ours = false, ack = false;

    pb_init(&r, custom);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            ours = str_is(pb_bytes(&r, &f), events_capability);
        else if (f.number == 2)
            ack = str_is(pb_bytes(&r, &f), "ack");
    }
    return ours && ack;
}

/* How long an error_response asks to wait, in microseconds. */
static uint64_t patience_us(struct str error)
{
    uint64_t ns = 0;
    struct pb r, info;
    struct pb_field f;

    pb_init(&r, error);
    while (pb_next(&r, &f)) {
        if (f.number != 3)
            continue;
        pb_init(&info, pb_bytes(&r, &f));
        while (pb_next(&info, &f))
            if (f.number == 1)
                ns = pb_varint(&info, &f);
    }
    return ns / 1000 < RETRY_LEAST_US ? RETRY_LEAST_US : ns / 1000;
}

static bool answer(struct device *d, struct str bytes)
{
    struct fleet *f = d->fleet;
    struct str config = { NULL, 0 };
    bool error = false, ack = false;
    uint64_t wait_us = 0;
    struct pb r;
    struct pb_field field;

    if (bytes.n == 0 || bytes.p[0] != 0)
        return false;
    pb_init(&r, (struct str){ bytes.p + 1, bytes.n - 1 });
    while (pb_next(&r, &field)) {
        if (field.number == 2) {
            error = true;
            wait_us = patience_us(pb_bytes(&r, &field));
        } else if (field.number == 3)
            config = pb_bytes(&r, &field);
        else if (field.number == 11)
            ack |= is_ack(pb_bytes(&r, &field));
    }
    f->counts.answers++;
    if (error) {
        f->counts.unavailable++;
        d->held = true; /* what it had to say is said again a little later */
        d->outstanding = 0;
        d->due_us = now_us() + wait_us + random_below((uint32_t)(wait_us / 2));
        return true;
    }
    if (!d->greeted || d->held)
        d->due_us = now_us() + (uint64_t)random_below(f->heartbeat_s * 1000 + 1) * 1000;
    d->greeted = true;
    d->held = false;
    d->failures = 0;
    if (f->mark_us != 0 && d->managed_us == 0)
        d->managed_us = now_us();
    if (ack)
        acknowledged(d);
    return config.n == 0 || policy_applied(d, config);
}

static bool pull(struct device *d, struct ws_in *w)
{
    struct ws_event e;

    for (;;) {
        ws_pull(w, &e);
        if (e.kind == WS_MORE)
            return true;
        if (e.kind == WS_CLOSE || e.kind == WS_FAIL)
            return false;
        if (e.kind == WS_MESSAGE && !answer(d, e.data))
            return false;
    }
}

static bool upgraded(struct device *d, struct ws_in *w)
{
    static const char ok[] = "HTTP/1.1 101 ";
    char *end = memmem(w->buf, w->n, "\r\n\r\n", 4);

    if (!end)
        return true;
    if (w->n < sizeof(ok) || memcmp(w->buf, ok, sizeof(ok) - 1) != 0)
        return false;
    size_t head = (size_t)(end + 4 - (char *)w->buf);

    memmove(w->buf, w->buf + head, w->n - head);
    w->n -= head;
    d->state = DEVICE_OPEN;
    d->fleet->open++;
    d->due_us = now_us() + HELLO_US;
    d->held = true; /* until the first answer its time means: say hello again */
    return hello(d);
}

static void keep_ticket(struct device *d)
{
    if (!(gnutls_session_get_flags(d->tls) & GNUTLS_SFLAGS_SESSION_TICKET))
        return;
    gnutls_free(d->ticket.data);
    d->ticket = (gnutls_datum_t){ 0 };
    (void)gnutls_session_get_data2(d->tls, &d->ticket);
}

/* Reads all that is there; false: the connection is gone. */
static bool readable(struct device *d)
{
    struct fleet *f = d->fleet;
    struct ws_in w;
    bool good = true;
    uint8_t *to;

    ws_in_init(&w, f->scratch, sizeof(f->scratch), FLEET_SCRATCH, false);
    if (d->left_n > 0) {
        memcpy(f->scratch, d->left, d->left_n);
        ws_filled(&w, d->left_n);
    }
    free(d->left);
    d->left = NULL;
    d->left_n = 0;
    while (good) {
        size_t room = ws_space(&w, &to);
        ssize_t n = gnutls_record_recv(d->tls, to, room);

        if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
            break;
        if (n <= 0)
            return false;
        ws_filled(&w, (size_t)n);
        if (d->state == DEVICE_HTTP)
            good = upgraded(d, &w);
        if (good && d->state == DEVICE_OPEN)
            good = pull(d, &w);
    }
    if (good && w.fragmented)
        return false; /* our server never does */
    if (good && w.n > w.at) {
        d->left = malloc(w.n - w.at);
        if (!d->left)
            return false;
        d->left_n = w.n - w.at;
        memcpy(d->left, w.buf + w.at, d->left_n);
    }
    if (good && d->greeted && !d->ticket.data)
        keep_ticket(d);
    return good;
}

static bool handshake(struct device *d)
{
    struct fleet *f = d->fleet;
    int n = gnutls_handshake(d->tls);
    char request[256];

    if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) {
        watch(d, gnutls_record_get_direction(d->tls) == 1);
        return true;
    }
    if (n < 0) {
        if (n != GNUTLS_E_WARNING_ALERT_RECEIVED && gnutls_error_is_fatal(n))
            return false;
        return true;
    }
    f->counts.handshakes++;
    if (gnutls_session_is_resumed(d->tls))
        f->counts.resumed++;
    gnutls_free(d->ticket.data); /* used once */
    d->ticket = (gnutls_datum_t){ 0 };
    shown_free(d);
    d->state = DEVICE_HTTP;
    int len = snprintf(request, sizeof(request),
                       "GET /v1/opamp HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\n"
                       "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                       "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                       f->name);
    watch(d, false);
    return put(d, request, (size_t)len) && readable(d);
}

void device_io(struct device *d, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof(error);
    bool good = true;

    if (d->state == DEVICE_CONNECTING) {
        (void)getsockopt(d->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        good = error == 0 && tls_begin(d);
    }
    if (good && d->state == DEVICE_TLS) {
        good = handshake(d);
    } else if (good && d->state != DEVICE_WAITING) {
        if (events & EPOLLOUT)
            good = flush(d);
        if (good && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            good = readable(d);
    }
    if (!good)
        again(d);
}

void device_due(struct device *d)
{
    struct fleet *f = d->fleet;

    switch (d->state) {
    case DEVICE_WAITING: device_connect(d); return;
    case DEVICE_OPEN:
        d->due_us = now_us() + (uint64_t)f->heartbeat_s * 1000000;
        if (d->held && !d->greeted)
            d->due_us = now_us() + HELLO_US;
        if (!(d->held && !d->greeted ? hello(d) : heartbeat(d)))
            again(d);
        return;
    case DEVICE_CONNECTING:
    case DEVICE_TLS:
    case DEVICE_HTTP: again(d); return;
    }
}
