/*
 * renew: devices that renew their lease again and again, for ./dev bench web.
 *
 * Each has a certificate and a connection of its own, which stays open.  First every device asks
 * once (it takes its seat); then, for so many seconds, they ask in turn: as fast as they are
 * answered, or at a rate.  One line of JSON on stdout.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "fleet/fleet.h"

enum { ANSWER_MAX = 16384, TIMES_MAX = 4000000 };

struct link {
    struct device device; /* what identity.c fills */
    uint64_t asked_us;    /* 0: idle */
    size_t n;
    char answer[ANSWER_MAX];
};

struct bench {
    struct fleet fleet;
    struct link *links;
    uint32_t count, seconds, in_flight, most, next;
    double rate;
    bool measuring;
    uint64_t asked, good, bad;
    uint32_t *times_us, time_count;
};

uint64_t now_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "renew: %s: %s\n", what, why);
    exit(1);
}

/* --- one connection --------------------------------------------------------------------- */

static void connect_link(struct bench *b, struct link *l)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(b->fleet.port) };
    struct device *d = &l->device;
    int one = 1, n;

    d->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (d->fd < 0 || inet_pton(AF_INET, b->fleet.address, &a.sin_addr) != 1 ||
        connect(d->fd, (struct sockaddr *)&a, sizeof(a)) != 0)
        die("connect", strerror(errno));
    (void)setsockopt(d->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (gnutls_init(&d->tls, GNUTLS_CLIENT) < 0 ||
        gnutls_priority_set(d->tls, b->fleet.priority) < 0 ||
        gnutls_credentials_set(d->tls, GNUTLS_CRD_CERTIFICATE, b->fleet.trust) < 0)
        die("TLS", "no session");
    gnutls_session_set_ptr(d->tls, d);
    gnutls_session_set_verify_cert(d->tls, b->fleet.name, 0);
    gnutls_transport_set_int(d->tls, d->fd);
    do
        n = gnutls_handshake(d->tls);
    while (n < 0 && !gnutls_error_is_fatal(n));
    if (n < 0)
        die("handshake", gnutls_strerror(n));
    if (fcntl(d->fd, F_SETFL, O_NONBLOCK) != 0)
        die("fcntl", strerror(errno));
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = l };
    if (epoll_ctl(b->fleet.epoll, EPOLL_CTL_ADD, d->fd, &e) != 0)
        die("epoll", strerror(errno));
}

static void ask(struct bench *b, struct link *l)
{
    static const char request[] = "POST /v1/activate HTTP/1.1\r\nHost: redoubt\r\n"
                                  "Content-Type: application/json\r\n"
                                  "Content-Length: 2\r\n\r\n{}";

    l->asked_us = now_us();
    l->n = 0;
    ssize_t n = gnutls_record_send(l->device.tls, request, sizeof(request) - 1);
    if (n != (ssize_t)sizeof(request) - 1)
        die("send", n < 0 ? gnutls_strerror((int)n) : "cut short");
    b->in_flight++;
    b->asked++;
}

/* The whole answer is there? */
static bool complete(const struct link *l)
{
    static const char key[] = "Content-Length: ";
    const char *end = strstr(l->answer, "\r\n\r\n"), *length = strstr(l->answer, key);

    if (!end || !length || length > end)
        return false;
    size_t body = strtoul(length + sizeof(key) - 1, NULL, 10);
    return l->n >= (size_t)(end + 4 - l->answer) + body;
}

static void answered(struct bench *b, struct link *l)
{
    bool good = strncmp(l->answer, "HTTP/1.1 200", 12) == 0;
    uint64_t took = now_us() - l->asked_us;

    if (!good && b->bad == 0)
        fprintf(stderr, "renew: %.300s\n", l->answer);
    b->good += good;
    b->bad += !good;
    if (b->measuring && b->time_count < TIMES_MAX)
        b->times_us[b->time_count++] = (uint32_t)took;
    l->asked_us = 0;
    b->in_flight--;
}

static void readable(struct bench *b, struct link *l)
{
    for (;;) {
        ssize_t n = gnutls_record_recv(l->device.tls, l->answer + l->n,
                                       sizeof(l->answer) - 1 - l->n);
        if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
            return;
        if (n <= 0)
            die("receive", n < 0 ? gnutls_strerror((int)n) : "the proxy hung up");
        l->n += (size_t)n;
        l->answer[l->n] = '\0';
        if (l->asked_us && complete(l))
            answered(b, l);
        if (gnutls_record_check_pending(l->device.tls) == 0)
            return;
    }
}

/* --- the run ------------------------------------------------------------------------------ */

static void wait_some(struct bench *b, int ms)
{
    struct epoll_event e[256];
    int n = epoll_wait(b->fleet.epoll, e, 256, ms);

    for (int i = 0; i < n; i++)
        readable(b, e[i].data.ptr);
}

static void ask_next(struct bench *b)
{
    for (uint32_t tried = 0; tried < b->count; tried++) {
        struct link *l = &b->links[b->next++ % b->count];
        if (l->asked_us == 0) {
            ask(b, l);
            return;
        }
    }
}

static void everybody_once(struct bench *b)
{
    for (uint32_t i = 0; i < b->count; i++) {
        ask(b, &b->links[i]);
        while (b->in_flight >= b->most)
            wait_some(b, 1000);
    }
    while (b->in_flight > 0)
        wait_some(b, 1000);
}

static double run(struct bench *b)
{
    const uint64_t begin = now_us(), end = begin + b->seconds * 1000000ull;
    uint64_t asked = 0, now;

    b->measuring = true;
    while ((now = now_us()) < end) {
        double due = b->rate > 0 ? (double)(now - begin) / 1e6 * b->rate : 1e18;
        while ((double)asked < due && b->in_flight < b->most) {
            ask_next(b);
            asked++;
        }
        wait_some(b, b->rate > 0 && b->in_flight < b->most ? 1 : 100);
    }
    while (b->in_flight > 0)
        wait_some(b, 1000);
    return (double)(now_us() - begin) / 1e6;
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static double percentile(const struct bench *b, double p)
{
    return b->time_count == 0
               ? 0
               : b->times_us[(uint32_t)((double)(b->time_count - 1) * p)] / 1000.0;
}

static void prepare(struct bench *b)
{
    if (!identity_open(&b->fleet))
        exit(1);
    b->fleet.epoll = epoll_create1(EPOLL_CLOEXEC);
    b->links = calloc(b->count, sizeof(*b->links));
    b->times_us = malloc(TIMES_MAX * sizeof(*b->times_us));
    if (!b->links || !b->times_us)
        die("memory", "there is none");
    for (uint32_t i = 0; i < b->count; i++) {
        struct device *d = &b->links[i].device;
        d->fleet = &b->fleet;
        d->index = i;
        memcpy(d->id.bytes, "redoubt-renew", 12);
        d->id.bytes[12] = (uint8_t)(i >> 8);
        d->id.bytes[13] = (uint8_t)i;
        if (!identity_make(d))
            exit(1);
        connect_link(b, &b->links[i]);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        { "ca", required_argument, NULL, 'c' },
        { "ca-key", required_argument, NULL, 'k' },
        { "count", required_argument, NULL, 'n' },
        { "seconds", required_argument, NULL, 's' },
        { "rate", required_argument, NULL, 'r' },
        { "most", required_argument, NULL, 'm' },
        { 0 },
    };
    static struct bench b = {
        .fleet = { .name = "redoubt" }, .count = 200, .seconds = 5, .most = 64
    };
    int opt;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'c': b.fleet.ca = optarg; break;
        case 'k': b.fleet.ca_key = optarg; break;
        case 'n': b.count = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 's': b.seconds = (uint32_t)strtoul(optarg, NULL, 10); break;
        case 'r': b.rate = strtod(optarg, NULL); break;
        case 'm': b.most = (uint32_t)strtoul(optarg, NULL, 10); break;
        default: return 64;
        }
    }
    if (optind + 2 != argc || !b.fleet.ca || !b.fleet.ca_key || b.count == 0 ||
        b.count > 65535 || b.most == 0) {
        fprintf(stderr, "usage: renew --ca FILE --ca-key FILE [--count N] [--seconds S] "
                        "[--rate R] [--most M] ADDRESS PORT\n");
        return 64;
    }
    b.fleet.address = argv[optind];
    b.fleet.port = (uint16_t)strtoul(argv[optind + 1], NULL, 10);
    prepare(&b);
    everybody_once(&b);
    uint64_t before = b.good;
    double took = run(&b);
    qsort(b.times_us, b.time_count, sizeof(*b.times_us), by_size);
    printf(
        "{\"devices\": %u, \"renewed\": %llu, \"failed\": %llu, \"seconds\": %.3f, "
        "\"per_second\": %.1f, \"p50_ms\": %.3f, \"p95_ms\": %.3f, \"p99_ms\": %.3f}\n",
        b.count, (unsigned long long)(b.good - before), (unsigned long long)b.bad, took,
        (double)(b.good - before) / took, percentile(&b, 0.5), percentile(&b, 0.95),
        percentile(&b, 0.99));
    return b.bad > 0;
}
