/*
 * prober: asks the active node every few milliseconds whether it answers, and who it is.
 *
 * Purpose   Measures an outage as a client sees it.  Two kinds of probe start every
 *           interval: "tls" is a full handshake and a request at the Administration
 *           Server, "http" a request at the Web Server.  Each is a connection of its own
 *           with its own timeout, so one that hangs delays no other.
 * Shape     One line a finished probe on standard output:
 *               KIND START END NODE EPOCH     a good answer
 *               KIND START END - REASON       none
 *           START and END are CLOCK_MONOTONIC microseconds.  NODE and EPOCH say who
 *           answered ("?" and 0 if the answer does not tell).
 * Errors    A probe that fails is a result.  The program fails only if it cannot run.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <gnutls/gnutls.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/str.h"

enum { PROBES_MAX = 4096, EVENTS = 64, HEAD_MAX = 2048, NAME_MAX_LEN = 64 };

enum kind { KIND_TLS, KIND_HTTP };
enum step { STEP_CONNECT, STEP_HANDSHAKE, STEP_SEND, STEP_RECEIVE };

struct probe {
    enum kind kind;
    enum step step;
    int fd;
    uint64_t start_us;
    gnutls_session_t tls; /* KIND_TLS only */
    size_t sent, got;
    char head[HEAD_MAX];
    TAILQ_ENTRY(probe) link; /* in order of their start, so of their timeouts */
};
TAILQ_HEAD(probe_list, probe);

struct prober {
    struct sockaddr_storage address[2]; /* by kind */
    socklen_t address_size;
    char request[2][256];
    const char *name; /* expected in the certificate; NULL: not checked */
    uint64_t interval_us, timeout_us;
    int epoll, timer;
    gnutls_certificate_credentials_t creds;
    gnutls_priority_t priority;
    struct probe_list probes;
    uint32_t count;
};

static volatile sig_atomic_t stopped;

static void on_signal(int number)
{
    (void)number;
    stopped = 1;
}

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)fprintf(stderr, "prober: ");
    (void)vfprintf(stderr, fmt, args);
    (void)fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

/* ---- one probe -------------------------------------------------------------------- */

static const char *kind_name(enum kind k)
{
    return k == KIND_TLS ? "tls" : "http";
}

static void probe_free(struct prober *p, struct probe *b)
{
    TAILQ_REMOVE(&p->probes, b, link);
    p->count--;
    if (b->tls)
        gnutls_deinit(b->tls);
    if (b->fd >= 0)
        close(b->fd); /* which takes it out of the epoll set */
    free(b);
}

static void probe_fail(struct prober *p, struct probe *b, const char *reason)
{
    printf("%s %" PRIu64 " %" PRIu64 " - %s\n", kind_name(b->kind), b->start_us, now_us(),
           reason);
    probe_free(p, b);
}

/* The value after `key` up to a byte of `end`, or "" if it is not there. */
static void find(char *dst, size_t size, const char *head, const char *key,
                 const char *end)
{
    const char *at = strcasestr(head, key);
    struct text t;

    text_init(&t, dst, size);
    if (!at)
        return;
    at += strlen(key);
    at += strspn(at, " ");
    text_bytes(&t, (struct str){ at, strcspn(at, end) });
}

static void probe_answered(struct prober *p, struct probe *b)
{
    char node[NAME_MAX_LEN], epoch[NAME_MAX_LEN];

    if (strncmp(b->head, "HTTP/1.1 2", 10) != 0) {
        probe_fail(p, b, "status");
        return;
    }
    find(node, sizeof(node), b->head,
         b->kind == KIND_TLS ? "\"node\":\"" : "X-Redoubt-Node:", "\"\r\n");
    find(epoch, sizeof(epoch), b->head,
         b->kind == KIND_TLS ? "\"epoch\":" : "X-Redoubt-Epoch:", ",}\r\n");
    printf("%s %" PRIu64 " %" PRIu64 " %s %s\n", kind_name(b->kind), b->start_us,
           now_us(), node[0] ? node : "?", epoch[0] ? epoch : "0");
    probe_free(p, b);
}

/* Bytes moved, 0 at the end of the stream, -EAGAIN, or another negative number. */
static ssize_t probe_send(struct probe *b, const char *bytes, size_t n)
{
    ssize_t done = b->tls ? gnutls_record_send(b->tls, bytes, n)
                          : send(b->fd, bytes, n, MSG_NOSIGNAL);

    if (b->tls)
        return done == GNUTLS_E_AGAIN || done == GNUTLS_E_INTERRUPTED ? -EAGAIN : done;
    return done < 0 ? -errno : done;
}

static ssize_t probe_receive(struct probe *b, char *bytes, size_t n)
{
    ssize_t done =
        b->tls ? gnutls_record_recv(b->tls, bytes, n) : recv(b->fd, bytes, n, 0);

    if (b->tls)
        return done == GNUTLS_E_AGAIN || done == GNUTLS_E_INTERRUPTED ? -EAGAIN : done;
    return done < 0 ? -errno : done;
}

static bool tls_begin(struct prober *p, struct probe *b)
{
    if (gnutls_init(&b->tls, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0 ||
        gnutls_priority_set(b->tls, p->priority) < 0 ||
        gnutls_credentials_set(b->tls, GNUTLS_CRD_CERTIFICATE, p->creds) < 0)
        return false;
    if (p->name)
        gnutls_session_set_verify_cert(b->tls, p->name, 0);
    gnutls_transport_set_int(b->tls, b->fd);
    return true;
}

/* Each step below returns true if the probe is still there and can go on at once. */
static bool probe_connected(struct prober *p, struct probe *b)
{
    int error = 0;
    socklen_t size = sizeof(error);

    if (getsockopt(b->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
        probe_fail(p, b, error == ECONNREFUSED ? "refused" : "unreachable");
        return false;
    }
    b->step = STEP_SEND;
    if (b->kind == KIND_TLS) {
        b->step = STEP_HANDSHAKE;
        if (!tls_begin(p, b))
            die("GnuTLS cannot begin a session");
    }
    return true;
}

static void probe_wait(struct prober *p, struct probe *b, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.ptr = b };

    if (epoll_ctl(p->epoll, EPOLL_CTL_MOD, b->fd, &ev) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

static bool probe_handshake(struct prober *p, struct probe *b)
{
    int n = gnutls_handshake(b->tls);

    if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) {
        probe_wait(p, b, gnutls_record_get_direction(b->tls) ? EPOLLOUT : EPOLLIN);
        return false;
    }
    if (n < 0 && !gnutls_error_is_fatal(n))
        return true;
    if (n < 0) {
        probe_fail(p, b,
                   n == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR ? "certificate"
                                                                : "handshake");
        return false;
    }
    b->step = STEP_SEND;
    return true;
}

static bool probe_request(struct prober *p, struct probe *b)
{
    const char *request = p->request[b->kind];
    ssize_t n = probe_send(b, request + b->sent, strlen(request) - b->sent);

    if (n == -EAGAIN) {
        probe_wait(p, b, EPOLLOUT);
        return false;
    }
    if (n <= 0) {
        probe_fail(p, b, "send");
        return false;
    }
    b->sent += (size_t)n;
    if (b->sent == strlen(request)) {
        b->step = STEP_RECEIVE;
        probe_wait(p, b, EPOLLIN);
    }
    return true;
}

/* The head tells the Web Server; the Administration Server tells itself in the body. */
static bool probe_complete(const struct probe *b)
{
    const char *body = strstr(b->head, "\r\n\r\n");

    return body && (b->kind == KIND_HTTP || strchr(body, '}'));
}

static bool probe_reply(struct prober *p, struct probe *b)
{
    size_t room = sizeof(b->head) - 1 - b->got;
    ssize_t n = room ? probe_receive(b, b->head + b->got, room) : 0;

    if (n == -EAGAIN)
        return false;
    if (n > 0) {
        b->got += (size_t)n;
        b->head[b->got] = '\0';
        if (!probe_complete(b))
            return true;
        probe_answered(p, b);
        return false;
    }
    probe_fail(p, b, "closed");
    return false;
}

static void probe_go_on(struct prober *p, struct probe *b)
{
    bool more = true;

    while (more) {
        switch (b->step) {
        case STEP_CONNECT: more = probe_connected(p, b); break;
        case STEP_HANDSHAKE: more = probe_handshake(p, b); break;
        case STEP_SEND: more = probe_request(p, b); break;
        case STEP_RECEIVE: more = probe_reply(p, b); break;
        }
    }
}

/* ---- all probes ------------------------------------------------------------------- */

static void probe_start(struct prober *p, enum kind kind)
{
    static const int one = 1;
    struct probe *b = calloc(1, sizeof(*b));
    struct epoll_event ev = { .events = EPOLLOUT, .data.ptr = b };

    if (!b)
        die("no memory");
    b->kind = kind;
    b->start_us = now_us();
    b->fd =
        socket(p->address[kind].ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (b->fd < 0)
        die("socket: %s", strerror(errno));
    TAILQ_INSERT_TAIL(&p->probes, b, link);
    p->count++;
    (void)setsockopt(b->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(b->fd, (struct sockaddr *)&p->address[kind], p->address_size) != 0 &&
        errno != EINPROGRESS) {
        probe_fail(p, b, "unreachable");
        return;
    }
    if (epoll_ctl(p->epoll, EPOLL_CTL_ADD, b->fd, &ev) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

static void expire(struct prober *p)
{
    uint64_t now = now_us();
    struct probe *b = TAILQ_FIRST(&p->probes);

    while (b && now >= b->start_us + p->timeout_us) {
        probe_fail(p, b, "timeout");
        b = TAILQ_FIRST(&p->probes);
    }
}

static void tick(struct prober *p)
{
    uint64_t times;

    if (read(p->timer, &times, sizeof(times)) != (ssize_t)sizeof(times))
        return;
    expire(p);
    for (enum kind k = KIND_TLS; k <= KIND_HTTP; k++) {
        if (p->request[k][0] && p->count < PROBES_MAX)
            probe_start(p, k);
    }
    (void)fflush(stdout);
}

static void run(struct prober *p)
{
    struct epoll_event got[EVENTS];

    while (!stopped) {
        int n = epoll_wait(p->epoll, got, EVENTS, -1);
        bool timer = false;

        /* One event a descriptor, so a probe freed here is not met again in this turn;
         * the timer, which frees others, comes last. */
        for (int i = 0; i < n; i++) {
            if (got[i].data.ptr)
                probe_go_on(p, got[i].data.ptr);
            else
                timer = true;
        }
        if (timer)
            tick(p);
    }
}

/* ---- options ---------------------------------------------------------------------- */

static const char usage[] =
    "Usage: prober --address IP [--tls-port N --ca FILE --cert FILE --key FILE]\n"
    "              [--name NAME] [--http-port N] [--interval-ms N] [--timeout-ms N]\n"
    "Asks the Administration Server (a TLS handshake and GET /v1/health) and the Web\n"
    "Server (GET /) every interval, and prints one line a probe until it is ended.\n";

struct options {
    const char *address, *ca, *cert, *key, *name;
    uint64_t port[2], interval_ms, timeout_ms;
};

static uint64_t number(const char *text, const char *what)
{
    uint64_t value;

    if (!str_u64(str_of(text), 65535, &value))
        die("--%s: '%s' is no number up to 65535", what, text);
    return value;
}

static void parse(struct options *o, int argc, char **argv)
{
    static const struct option known[] = {
        { "address", required_argument, NULL, 'a' },
        { "tls-port", required_argument, NULL, 't' },
        { "http-port", required_argument, NULL, 'h' },
        { "interval-ms", required_argument, NULL, 'i' },
        { "timeout-ms", required_argument, NULL, 'o' },
        { "ca", required_argument, NULL, 'C' },
        { "cert", required_argument, NULL, 'c' },
        { "key", required_argument, NULL, 'k' },
        { "name", required_argument, NULL, 'n' },
        { "help", no_argument, NULL, 'H' },
        { NULL, 0, NULL, 0 },
    };
    int c;

    while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (c) {
        case 'a': o->address = optarg; break;
        case 't': o->port[KIND_TLS] = number(optarg, "tls-port"); break;
        case 'h': o->port[KIND_HTTP] = number(optarg, "http-port"); break;
        case 'i': o->interval_ms = number(optarg, "interval-ms"); break;
        case 'o': o->timeout_ms = number(optarg, "timeout-ms"); break;
        case 'C': o->ca = optarg; break;
        case 'c': o->cert = optarg; break;
        case 'k': o->key = optarg; break;
        case 'n': o->name = optarg; break;
        case 'H': (void)fputs(usage, stdout); exit(0);
        default: exit(2);
        }
    }
    if (!o->address || (!o->port[KIND_TLS] && !o->port[KIND_HTTP]) || !o->interval_ms)
        die("--address and a port are needed\n%s", usage);
    if (o->port[KIND_TLS] && (!o->ca || !o->cert || !o->key))
        die("--tls-port needs --ca, --cert and --key");
}

static void set_target(struct prober *p, enum kind kind, const char *address,
                       uint64_t port)
{
    struct sockaddr_in *four = (struct sockaddr_in *)&p->address[kind];
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&p->address[kind];
    bool is_six = strchr(address, ':') != NULL;

    if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        p->address_size = sizeof(*four);
    } else if (is_six && inet_pton(AF_INET6, address, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        p->address_size = sizeof(*six);
    } else {
        die("'%s' is no IP address", address);
    }
    if (port)
        (void)snprintf(p->request[kind], sizeof(p->request[kind]),
                       "GET %s HTTP/1.1\r\nHost: %s%s%s\r\nConnection: close\r\n\r\n",
                       kind == KIND_TLS ? "/v1/health" : "/", is_six ? "[" : "", address,
                       is_six ? "]" : "");
}

static void prober_init(struct prober *p, const struct options *o)
{
    struct itimerspec every = { 0 };
    struct epoll_event ev = { .events = EPOLLIN };

    TAILQ_INIT(&p->probes);
    set_target(p, KIND_TLS, o->address, o->port[KIND_TLS]);
    set_target(p, KIND_HTTP, o->address, o->port[KIND_HTTP]);
    p->name = o->name;
    p->interval_us = o->interval_ms * 1000;
    p->timeout_us = o->timeout_ms * 1000;
    if (o->port[KIND_TLS] && (gnutls_certificate_allocate_credentials(&p->creds) < 0 ||
                              gnutls_certificate_set_x509_trust_file(
                                  p->creds, o->ca, GNUTLS_X509_FMT_PEM) < 1 ||
                              gnutls_certificate_set_x509_key_file(
                                  p->creds, o->cert, o->key, GNUTLS_X509_FMT_PEM) < 0 ||
                              gnutls_priority_init(&p->priority, "NORMAL", NULL) < 0))
        die("cannot use the certificates %s, %s, %s", o->ca, o->cert, o->key);
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    p->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    every.it_interval.tv_nsec = (long)(p->interval_us % 1000000) * 1000;
    every.it_interval.tv_sec = (time_t)(p->interval_us / 1000000);
    every.it_value = every.it_interval;
    if (p->epoll < 0 || p->timer < 0 || timerfd_settime(p->timer, 0, &every, NULL) != 0 ||
        epoll_ctl(p->epoll, EPOLL_CTL_ADD, p->timer, &ev) != 0)
        die("no timer: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    static struct prober prober;
    struct options options = { .interval_ms = 5, .timeout_ms = 1000 };
    struct sigaction ends = { .sa_handler = on_signal };

    parse(&options, argc, argv);
    (void)sigaction(SIGTERM, &ends, NULL);
    (void)sigaction(SIGINT, &ends, NULL);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    prober_init(&prober, &options);
    run(&prober);
    (void)fflush(stdout);
    return 0;
}
