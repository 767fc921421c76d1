#include "app/agent/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "wire/http_head.h"

enum {
    TICK_MS = 50,
    LOOK_UP_MS = 5,    /* between two looks at the resolver */
    RETRY_MIN_MS = 50, /* in quick succession: 50 to 150 ms apart */
    RETRY_SPAN_MS = 100,
    RETRY_MAX_MS = 30000,
    RETRY_LEAST_MS = 1000,  /* the smallest bound that a server can set */
    SLOW_CONNECT_MS = 5000, /* once attempts are rare, each has more time */
    UNWANTED_MS = 30000, /* to twice of it: until a device comes that was turned away */
    OUT_MAX = 1 << 20
};

struct link {
    sd_event *event;
    struct conf_agent conf;
    struct tls_creds *creds;
    struct link_hooks hooks;
    char host[CONF_PATH], port[8];
    enum link_state state;
    bool shut, literal, reached; /* literal: the host is an address */
    sd_event_source *io, *timer; /* io owns the descriptor */
    struct tls *tls;
    struct gaicb *request; /* LINK_RESOLVING */
    struct gaicb request_buf;
    struct addrinfo hints, *found;
    uint32_t which;   /* of the addresses found: the next attempt's */
    uint64_t due_ms;  /* WAITING: next attempt; else: this attempt ends */
    uint64_t lost_ms; /* when the trouble began; 0: no trouble */
    uint32_t wait_ms; /* the last wait that was not quick */
    uint32_t spread_ms, wait_max_ms;
    uint32_t dead_after_ms; /* of the configuration, or what the server asks for */
    uint64_t heard_ms, pinged_ms;
    char key[TLS_WS_KEY];
    struct ws_in ws;
    uint8_t in[WS_BUFFER(OPAMP_MESSAGE_MAX)];
    size_t in_n; /* LINK_UPGRADING */
    uint8_t *out;
    size_t out_n, out_at, out_size;
};

static uint64_t now_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static uint32_t random_below(uint32_t n)
{
    uint32_t v;

    tls_random(&v, sizeof(v));
    return v % n;
}

static void tick_in(struct link *l, uint64_t ms)
{
    (void)sd_event_source_set_time_relative(l->timer, ms * 1000u);
    (void)sd_event_source_set_enabled(l->timer, SD_EVENT_ONESHOT);
}

/* When the next attempt is made: quickly at first, for a switch takes a second or two. */
static void plan(struct link *l, bool at_once)
{
    uint64_t now = now_ms(), wait = 0;

    if (l->lost_ms == 0)
        l->lost_ms = now;
    if (at_once) {
        l->wait_ms = 0;
        wait = l->spread_ms ? random_below(l->spread_ms) : 0;
        l->lost_ms = now + wait; /* quick attempts are counted from the first one on */
    } else if (now - l->lost_ms < l->conf.fast_retry_ms) {
        wait = RETRY_MIN_MS + random_below(RETRY_SPAN_MS);
    } else {
        l->wait_ms =
            l->wait_ms == 0 ? 2 * (RETRY_MIN_MS + RETRY_SPAN_MS) : l->wait_ms * 2;
        if (l->wait_ms > l->wait_max_ms)
            l->wait_ms = l->wait_max_ms;
        wait = l->wait_ms / 2 + random_below(l->wait_ms);
        wait = wait > l->wait_max_ms ? l->wait_max_ms : wait;
    }
    l->state = LINK_WAITING;
    l->due_ms = now + wait;
    tick_in(l, wait);
}

static void close_all(struct link *l)
{
    l->io = sd_event_source_disable_unref(l->io);
    tls_free(l->tls);
    l->tls = NULL;
    free(l->out);
    l->out = NULL;
    l->out_n = l->out_at = l->out_size = l->in_n = 0;
}

void link_break(struct link *l, const char *why)
{
    bool was_open = l->state == LINK_OPEN;
    char words[200];

    (void)snprintf(words, sizeof(words), "%s", why); /* why may lie in what is freed */
    close_all(l);
    if (l->shut)
        return;
    plan(l, was_open);
    l->hooks.lost(l->hooks.arg, was_open, words);
}

static void watch(struct link *l, bool tls_wants_write)
{
    bool out = tls_wants_write || l->out_n > l->out_at;

    (void)sd_event_source_set_io_events(l->io, out ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void flush(struct link *l)
{
    struct err_info info = { 0 };
    enum tls_result r = TLS_DONE;

    while (l->out_at < l->out_n) {
        size_t n = 0;

        r = tls_write(l->tls, l->out + l->out_at, l->out_n - l->out_at, &n, &info);
        if (r != TLS_DONE)
            break;
        l->out_at += n;
    }
    if (r == TLS_CLOSED || r == TLS_FAILED) {
        link_break(l, info.what[0] ? info.what : "closed by the server");
        return;
    }
    if (l->out_at == l->out_n)
        l->out_n = l->out_at = 0;
    watch(l, r == TLS_WANT_WRITE);
}

static bool out_add(struct link *l, const void *bytes, size_t n)
{
    if (l->out_n + n > l->out_size) {
        size_t size = l->out_size ? l->out_size : 4096;

        while (size < l->out_n + n)
            size *= 2;
        uint8_t *p = size <= OUT_MAX ? realloc(l->out, size) : NULL;
        if (!p) {
            link_break(l, "the server does not read what is sent");
            return false;
        }
        l->out = p;
        l->out_size = size;
    }
    memcpy(l->out + l->out_n, bytes, n);
    l->out_n += n;
    return true;
}

static void frame_send(struct link *l, enum ws_opcode op, const void *bytes, size_t n)
{
    uint8_t head[WS_HEADER_MAX], mask[4];

    tls_random(mask, sizeof(mask));
    size_t head_n = ws_frame(head, op, n, mask);
    if (!out_add(l, head, head_n) || !out_add(l, bytes, n))
        return;
    ws_mask(l->out + l->out_n - n, n, mask);
    flush(l);
}

void link_send(struct link *l, const uint8_t *bytes, size_t n)
{
    if (l->state == LINK_OPEN)
        frame_send(l, WS_OP_BINARY, bytes, n);
}

void link_shut(struct link *l)
{
    static const uint8_t code[2] = { WS_CLOSE_NORMAL >> 8, WS_CLOSE_NORMAL & 0xff };

    l->shut = true;
    if (l->state == LINK_OPEN)
        frame_send(l, WS_OP_CLOSE, code, sizeof(code));
    if (l->tls)
        tls_bye(l->tls);
    close_all(l);
    l->state = LINK_WAITING;
    (void)sd_event_source_set_enabled(l->timer, SD_EVENT_OFF);
}

/* The server has ended it.  Who is not wanted (revoked, or floods) is told so with 1008, and
 * does not come again at once. */
static void closed(struct link *l, const struct ws_event *ev)
{
    bool unwanted = ev->code == WS_CLOSE_POLICY;
    char why[200];

    if (ev->data.n > 0)
        (void)snprintf(why, sizeof(why), "closed by the server: %.*s (%u)",
                       (int)ev->data.n, ev->data.p, ev->code);
    else
        (void)snprintf(why, sizeof(why), "closed by the server with code %u", ev->code);
    link_break(l, why);
    if (!unwanted || l->state != LINK_WAITING)
        return;
    uint32_t wait = UNWANTED_MS + random_below(UNWANTED_MS);
    l->due_ms = now_ms() + wait;
    tick_in(l, wait);
}

static void frames(struct link *l)
{
    while (l->state == LINK_OPEN) {
        struct ws_event ev;

        ws_pull(&l->ws, &ev);
        switch (ev.kind) {
        case WS_MORE: return;
        case WS_MESSAGE: l->hooks.message(l->hooks.arg, ev.data); break;
        case WS_PING: frame_send(l, WS_OP_PONG, ev.data.p, ev.data.n); break;
        case WS_PONG: break;
        case WS_CLOSE: closed(l, &ev); return;
        case WS_FAIL: link_break(l, ev.reason); return;
        }
    }
}

static void opened(struct link *l)
{
    l->state = LINK_OPEN;
    l->lost_ms = 0;
    l->wait_ms = 0;
    l->heard_ms = l->pinged_ms = now_ms();
    tick_in(l, TICK_MS);
    l->hooks.opened(l->hooks.arg);
}

/* The answer to the upgrade; what follows it is already WebSocket. */
static void upgraded(struct link *l)
{
    struct http_head h;
    struct str accept = { 0 };
    char expected[TLS_WS_ACCEPT], why[80];
    enum http_result r = http_response((struct str){ (char *)l->in, l->in_n }, &h);

    if (r == HTTP_MORE)
        return;
    tls_ws_accept(expected, str_of(l->key));
    if (r != HTTP_DONE) {
        link_break(l, "the server answers the upgrade in a way that is not HTTP");
        return;
    }
    if (h.status != 101) {
        (void)snprintf(why, sizeof(why), "the server refuses the upgrade: HTTP %u",
                       h.status);
        link_break(l, why);
        return;
    }
    if (!http_has_token(&h, "Upgrade", "websocket") ||
        !http_find(&h, "Sec-WebSocket-Accept", &accept) || !str_is(accept, expected)) {
        link_break(l, "the server's upgrade answers another question");
        return;
    }
    size_t extra = l->in_n - h.size;
    memmove(l->in, l->in + h.size, extra);
    ws_in_init(&l->ws, l->in, sizeof(l->in), OPAMP_MESSAGE_MAX, false);
    ws_filled(&l->ws, extra);
    opened(l);
    frames(l);
}

static void readable(struct link *l)
{
    struct err_info info = { 0 };

    for (;;) {
        uint8_t *to = l->in + l->in_n;
        size_t n = 0, room = HTTP_HEAD_MAX - l->in_n;

        if (l->state == LINK_OPEN)
            room = ws_space(&l->ws, &to);
        enum tls_result r = tls_read(l->tls, to, room, &n, &info);
        if (r == TLS_CLOSED || r == TLS_FAILED) {
            link_break(l, info.what[0] ? info.what : "closed by the server");
            return;
        }
        if (r != TLS_DONE) {
            watch(l, r == TLS_WANT_WRITE);
            return;
        }
        l->heard_ms = now_ms();
        if (l->state == LINK_OPEN) {
            ws_filled(&l->ws, n);
            frames(l);
        } else {
            l->in_n += n;
            upgraded(l);
            if (l->state == LINK_OPEN)
                tls_remember(l->tls);
        }
        if (l->state < LINK_UPGRADING)
            return;
    }
}

static void upgrade(struct link *l)
{
    char head[CONF_PATH + 256];
    struct text t;

    l->state = LINK_UPGRADING;
    l->in_n = 0;
    tls_ws_key(l->key);
    text_init(&t, head, sizeof(head));
    text_add(&t,
             "GET /v1/opamp HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\n"
             "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: %s\r\n\r\n",
             l->conf.server, l->key);
    CHECK(!t.cut);
    if (out_add(l, head, t.n))
        flush(l);
}

static void handshake(struct link *l)
{
    struct err_info info = { 0 };

    switch (tls_handshake(l->tls, &info)) {
    case TLS_WANT_READ: watch(l, false); return;
    case TLS_WANT_WRITE: watch(l, true); return;
    case TLS_CLOSED: link_break(l, "closed by the server during the handshake"); return;
    case TLS_FAILED: link_break(l, info.what); return;
    case TLS_DONE: upgrade(l); return;
    }
}

static void connected(struct link *l, int fd)
{
    int e = 0;
    socklen_t n = sizeof(e);
    char why[200];

    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n) != 0 || e != 0) {
        (void)snprintf(why, sizeof(why), "connect to %.90s: %s", l->conf.server,
                       strerrordesc_np(e));
        link_break(l, why);
        return;
    }
    l->state = LINK_TLS;
    l->reached = true;
    /* A busy server needs its time for the handshake, but a dead one must not hold us. */
    l->due_ms = now_ms() + 2 * (uint64_t)l->conf.dead_after_ms;
    tick_in(l, 2 * (uint64_t)l->conf.dead_after_ms);
    handshake(l);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct link *l = arg;

    (void)source;
    switch (l->state) {
    case LINK_WAITING:
    case LINK_RESOLVING: break;
    case LINK_CONNECTING: connected(l, fd); break;
    case LINK_TLS: handshake(l); break;
    case LINK_UPGRADING:
    case LINK_OPEN:
        if ((revents & EPOLLOUT) && l->out_n > l->out_at)
            flush(l);
        if (l->state >= LINK_UPGRADING)
            readable(l);
        break;
    }
    return 0;
}

static void connect_to(struct link *l, const struct addrinfo *to)
{
    struct err_info info = { 0 };
    int on = 1;
    unsigned dead = l->conf.dead_after_ms;
    bool fast = now_ms() - l->lost_ms < l->conf.fast_retry_ms;
    uint32_t limit = fast ? l->conf.connect_ms : SLOW_CONNECT_MS;
    const char *name = l->conf.server_name[0] ? l->conf.server_name : l->host;
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd >= 0) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead, sizeof(dead));
    }
    if (fd < 0 || tls_new(l->creds, fd, name, &l->tls, &info) != ERR_OK ||
        sd_event_add_io(l->event, &l->io, fd, EPOLLOUT, on_io, l) < 0) {
        if (fd >= 0)
            (void)close(fd);
        link_break(l, info.what[0] ? info.what : "no socket");
        return;
    }
    (void)sd_event_source_set_io_fd_own(l->io, true);
    l->state = LINK_CONNECTING;
    l->reached = false;
    l->due_ms = now_ms() + limit;
    tick_in(l, limit);
    if (connect(fd, to->ai_addr, to->ai_addrlen) != 0 && errno != EINPROGRESS) {
        char why[200];

        (void)snprintf(why, sizeof(why), "connect to %.90s: %s", l->conf.server,
                       strerrordesc_np(errno));
        link_break(l, why);
    }
}

/* The next of the addresses found; NULL when all were tried. */
static const struct addrinfo *next_address(struct link *l)
{
    const struct addrinfo *a = l->found;

    for (uint32_t i = 0; i < l->which && a; i++)
        a = a->ai_next;
    l->which = a ? l->which + 1 : 0;
    return a;
}

static void resolve_poll(struct link *l)
{
    int n = gai_error(l->request);
    const struct addrinfo *a;
    char why[200];

    if (n == EAI_INPROGRESS) {
        tick_in(l, LOOK_UP_MS);
        return;
    }
    l->request = NULL;
    if (n == 0) {
        if (l->found)
            freeaddrinfo(l->found);
        l->found = l->request_buf.ar_result;
        l->which = 0;
    }
    a = next_address(l); /* without an answer, those of the last time */
    if (a) {
        connect_to(l, a);
        return;
    }
    (void)snprintf(why, sizeof(why), "look up %.90s: %s", l->host, gai_strerror(n));
    link_break(l, why);
}

static void attempt(struct link *l)
{
    const struct addrinfo *a = next_address(l);

    if (!a && l->literal)
        a = next_address(l);
    if (a) {
        connect_to(l, a);
        return;
    }
    l->request_buf = (struct gaicb){ .ar_name = l->host,
                                     .ar_service = l->port,
                                     .ar_request = &l->hints };
    l->request = &l->request_buf;
    l->state = LINK_RESOLVING;
    if (getaddrinfo_a(GAI_NOWAIT, &l->request, 1, NULL) != 0) {
        l->request = NULL;
        link_break(l, "host names cannot be looked up now");
        return;
    }
    tick_in(l, LOOK_UP_MS);
}

/* While open: ask three times in dead_after_ms, and give up what stays silent. */
static void liveness(struct link *l)
{
    uint64_t now = now_ms();

    if (now - l->heard_ms >= l->dead_after_ms) {
        link_break(l, "the server has fallen silent");
        return;
    }
    if (now - l->heard_ms >= l->dead_after_ms / 3 &&
        now - l->pinged_ms >= l->dead_after_ms / 3) {
        l->pinged_ms = now;
        frame_send(l, WS_OP_PING, "", 0);
    }
    if (l->state == LINK_OPEN)
        tick_in(l, l->dead_after_ms / 6 > TICK_MS ? l->dead_after_ms / 6 : TICK_MS);
}

static int on_timer(sd_event_source *source, uint64_t us, void *arg)
{
    struct link *l = arg;

    (void)source, (void)us;
    switch (l->state) {
    case LINK_WAITING: attempt(l); break;
    case LINK_RESOLVING: resolve_poll(l); break;
    case LINK_CONNECTING: link_break(l, "the server does not take the connection"); break;
    case LINK_TLS:
    case LINK_UPGRADING: link_break(l, "the server does not answer"); break;
    case LINK_OPEN: liveness(l); break;
    }
    return 0;
}

/* Takes the address apart; false leaves all as it was. */
static bool link_aim(struct link *l, const char *server)
{
    char host[CONF_PATH];
    uint16_t port = 0;

    if (conf_listen_split(server, host, sizeof(host), &port) != ERR_OK || !host[0])
        return false;
    (void)snprintf(l->conf.server, sizeof(l->conf.server), "%s", server);
    (void)snprintf(l->host, sizeof(l->host), "%s", host);
    (void)snprintf(l->port, sizeof(l->port), "%u", port);
    if (l->found)
        freeaddrinfo(l->found);
    l->found = NULL;
    l->which = 0;
    l->hints = (struct addrinfo){ .ai_socktype = SOCK_STREAM,
                                  .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
    l->literal = getaddrinfo(l->host, l->port, &l->hints, &l->found) == 0;
    l->hints.ai_flags = AI_NUMERICSERV | AI_ADDRCONFIG;
    return true;
}

bool link_retarget(struct link *l, const char *server)
{
    return l->state == LINK_WAITING && link_aim(l, server);
}

void link_rehook(struct link *l, const struct link_hooks *hooks, uint32_t fast_retry_ms)
{
    l->hooks = *hooks;
    l->conf.fast_retry_ms = fast_retry_ms;
}

void link_recred(struct link *l, struct tls_creds *creds)
{
    l->creds = creds;
    if (l->state != LINK_WAITING)
        link_break(l, "another certificate is used");
}

bool link_reached(const struct link *l)
{
    return l->reached;
}

enum err link_new(sd_event *event, const struct conf_agent *conf, struct tls_creds *creds,
                  const struct link_hooks *hooks, struct link **out,
                  struct err_info *info)
{
    struct link *l = calloc(1, sizeof(*l));

    if (!l)
        return err_set(info, ERR_MEMORY, ENOMEM, "link");
    l->event = sd_event_ref(event);
    l->conf = *conf;
    l->dead_after_ms = conf->dead_after_ms;
    l->creds = creds;
    l->hooks = *hooks;
    l->wait_max_ms = RETRY_MAX_MS;
    enum err e =
        link_aim(l, conf->server)
            ? ERR_OK
            : err_set(info, ERR_CONFIG, 0, "[agent] server: no host in %s", conf->server);
    if (e == ERR_OK && sd_event_add_time_relative(event, &l->timer, CLOCK_BOOTTIME, 0, 0,
                                                  on_timer, l) < 0)
        e = err_set(info, ERR_MEMORY, ENOMEM, "link");
    if (e != ERR_OK) {
        link_free(l);
        return e;
    }
    l->lost_ms = now_ms();
    *out = l;
    return ERR_OK;
}

void link_free(struct link *l)
{
    if (!l)
        return;
    close_all(l);
    l->timer = sd_event_source_disable_unref(l->timer);
    if (l->request && gai_cancel(l->request) == EAI_NOTCANCELED)
        return; /* the resolver still writes into it: leave it to the end of the process */
    if (l->found)
        freeaddrinfo(l->found);
    sd_event_unref(l->event);
    free(l);
}

void link_patience(struct link *l, uint32_t dead_after_ms)
{
    l->dead_after_ms =
        dead_after_ms > l->conf.dead_after_ms ? dead_after_ms : l->conf.dead_after_ms;
}

void link_pace(struct link *l, uint32_t spread_ms, uint32_t backoff_max_ms)
{
    l->spread_ms = spread_ms;
    l->wait_max_ms = backoff_max_ms == 0               ? RETRY_MAX_MS
                     : backoff_max_ms < RETRY_LEAST_MS ? RETRY_LEAST_MS
                                                       : backoff_max_ms;
}

enum link_state link_state(const struct link *l)
{
    return l->state;
}

const char *link_state_name(enum link_state state)
{
    static const char *const names[] = { "waiting",    "looking up the server",
                                         "connecting", "handshake",
                                         "upgrading",  "connected" };

    return names[state];
}

size_t link_unsent(const struct link *l)
{
    return l->out_n - l->out_at;
}
