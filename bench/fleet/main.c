#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "fleet.h"

enum { EVENTS_A_TURN = 512, LOOK_US = 20000, TELL_US = 1000000 };

static const char usage[] =
    "Usage: fleet --address IP --port N --name NAME --ca FILE --ca-key FILE --count N\n"
    "             [--first N] [--heartbeat S] [--spread MS] [--ramp MS] [--batch N]\n"
    "             [--keepalive S]\n"
    "\n"
    "Holds N devices and prints its counts as a line of JSON each second.  It reads "
    "commands\n"
    "on stdin: `rate N` (events a second), `mark` (the server breaks now), `end`.\n";

uint64_t now_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

uint32_t random_below(uint32_t n)
{
    return n > 1 ? (uint32_t)(((uint64_t)random() * n) >> 31) : 0;
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static double percentile(const uint64_t *sorted, uint32_t n, double part)
{
    return n ? (double)sorted[(uint32_t)((n - 1) * part)] / 1e6 : 0;
}

/* "name":[median, p95, p99, max] in seconds. */
static void print_times(const char *name, uint64_t *times, uint32_t n)
{
    qsort(times, n, sizeof(*times), by_size);
    printf(",\"%s\":[%.3f,%.3f,%.3f,%.3f]", name, percentile(times, n, 0.5),
           percentile(times, n, 0.95), percentile(times, n, 0.99),
           percentile(times, n, 1));
}

static void tell(struct fleet *f)
{
    const struct counts *c = &f->counts;
    static uint64_t times[ACK_RING];
    uint64_t *managed = calloc(f->count, sizeof(*managed));
    uint32_t n = f->ack_n < ACK_RING ? f->ack_n : ACK_RING, back = 0;

    memcpy(times, f->ack_us, n * sizeof(*times));
    for (uint32_t i = 0; i < f->count && managed && f->mark_us; i++)
        if (f->devices[i].managed_us)
            managed[back++] = f->devices[i].managed_us - f->mark_us;
    printf("{\"open\":%u,\"handshakes\":%llu,\"resumed\":%llu,\"failed\":%llu,\"broken\":"
           "%llu,"
           "\"answers\":%llu,\"heartbeats\":%llu,\"sent\":%llu,\"acked\":%llu,"
           "\"unavailable\":%llu,\"policies\":%llu,\"managed\":%u",
           f->open, (unsigned long long)c->handshakes, (unsigned long long)c->resumed,
           (unsigned long long)c->failed, (unsigned long long)c->broken,
           (unsigned long long)c->answers, (unsigned long long)c->heartbeats,
           (unsigned long long)c->events_sent, (unsigned long long)c->events_acked,
           (unsigned long long)c->unavailable, (unsigned long long)c->policies, back);
    print_times("ack_s", times, n);
    if (managed)
        print_times("managed_s", managed, back);
    printf(",\"managed_us\":[");
    for (uint32_t i = 0; i < back && managed && back == f->count; i++)
        printf("%s%llu", i ? "," : "", (unsigned long long)managed[i]);
    printf("]}\n");
    free(managed);
}

static bool command(struct fleet *f)
{
    char line[128];
    ssize_t n = read(STDIN_FILENO, line, sizeof(line) - 1);

    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    line[n] = '\0';
    for (char *rest = line, *at; (at = strsep(&rest, "\n"));) {
        if (strncmp(at, "rate ", 5) == 0) {
            f->rate = strtod(at + 5, NULL);
            f->ack_n = 0;
        } else if (strcmp(at, "mark") == 0) {
            f->mark_us = now_us();
            for (uint32_t i = 0; i < f->count; i++)
                f->devices[i].managed_us = 0;
        } else if (strcmp(at, "end") == 0) {
            return false;
        }
    }
    return true;
}

static bool may_tell(const struct device *d)
{
    return d->state == DEVICE_OPEN && d->greeted && !d->held && d->outstanding == 0;
}

/* What has to be told again, then as many events as are due, one device after the other. */
static void tell_events(struct fleet *f, double seconds)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->devices[i].pending > 0 && may_tell(&f->devices[i]))
            device_tell(&f->devices[i], f->batch);
    f->owed += f->rate * seconds;
    if (f->owed > f->rate)
        f->owed = f->rate; /* what nobody could take is not made up for */
    for (uint32_t i = 0; i < f->count && f->owed >= f->batch; i++) {
        struct device *d = &f->devices[f->next_teller++ % f->count];

        if (!may_tell(d))
            continue;
        f->owed -= f->batch;
        device_tell(d, f->batch);
    }
}

static void look(struct fleet *f, uint64_t now)
{
    for (uint32_t i = 0; i < f->count; i++)
        if (f->devices[i].due_us <= now)
            device_due(&f->devices[i]);
}

static int run(struct fleet *f)
{
    struct epoll_event events[EVENTS_A_TURN];
    uint64_t looked = 0, told = 0;

    for (;;) {
        int n = epoll_wait(f->epoll, events, EVENTS_A_TURN, 5);

        for (int i = 0; i < n; i++)
            if (events[i].data.ptr)
                device_io(events[i].data.ptr, events[i].events);
        uint64_t now = now_us();
        if (now - looked >= LOOK_US) {
            if (!command(f))
                return 0;
            look(f, now);
            tell_events(f, looked ? (double)(now - looked) / 1e6 : 0);
            looked = now;
        }
        if (now - told >= TELL_US) {
            tell(f);
            told = now;
        }
    }
}

/* The same device has the same identity in every run, a new stream in each. */
static bool make_devices(struct fleet *f)
{
    f->devices = calloc(f->count, sizeof(*f->devices));
    f->ack_us = calloc(ACK_RING, sizeof(*f->ack_us));
    if (!f->devices || !f->ack_us)
        return false;
    for (uint32_t i = 0; i < f->count; i++) {
        struct device *d = &f->devices[i];

        *d = (struct device){ .fleet = f, .index = f->first + i, .fd = -1 };
        memcpy(d->id.bytes, "\xbe\x5c\x00\x00\x00\x00\x4f\x1e\x80\x00\x00\x00", 12);
        d->id.bytes[12] = (uint8_t)(d->index >> 24);
        d->id.bytes[13] = (uint8_t)(d->index >> 16);
        d->id.bytes[14] = (uint8_t)(d->index >> 8);
        d->id.bytes[15] = (uint8_t)d->index;
        if (getrandom(d->stream.bytes, sizeof(d->stream.bytes), 0) < 0 ||
            !identity_make(d))
            return false;
        d->stream.bytes[6] = (uint8_t)((d->stream.bytes[6] & 0x0f) | 0x40);
        d->stream.bytes[8] = (uint8_t)((d->stream.bytes[8] & 0x3f) | 0x80);
    }
    return true;
}

static void spread_starts(struct fleet *f)
{
    uint64_t now = now_us();

    for (uint32_t i = 0; i < f->count; i++)
        f->devices[i].due_us = now + (uint64_t)f->ramp_ms * 1000 * i / f->count;
}

static bool parse(struct fleet *f, int argc, char **argv)
{
    static const struct option options[] = {
        { "address", required_argument, NULL, 'a' },
        { "port", required_argument, NULL, 'p' },
        { "name", required_argument, NULL, 'n' },
        { "ca", required_argument, NULL, 'c' },
        { "ca-key", required_argument, NULL, 'k' },
        { "count", required_argument, NULL, 'N' },
        { "first", required_argument, NULL, 'f' },
        { "heartbeat", required_argument, NULL, 'h' },
        { "spread", required_argument, NULL, 's' },
        { "ramp", required_argument, NULL, 'r' },
        { "batch", required_argument, NULL, 'b' },
        { "keepalive", required_argument, NULL, 'i' },
        { 0 }
    };
    int opt;

    *f = (struct fleet){ .port = 13000,
                         .heartbeat_s = 120,
                         .spread_ms = 20000,
                         .batch = 10,
                         .keepalive_s = 15 };
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        uint32_t n = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;

        switch (opt) {
        case 'a': f->address = optarg; break;
        case 'p': f->port = (uint16_t)n; break;
        case 'n': f->name = optarg; break;
        case 'c': f->ca = optarg; break;
        case 'k': f->ca_key = optarg; break;
        case 'N': f->count = n; break;
        case 'f': f->first = n; break;
        case 'h': f->heartbeat_s = n; break;
        case 's': f->spread_ms = n; break;
        case 'r': f->ramp_ms = n; break;
        case 'b': f->batch = n; break;
        case 'i': f->keepalive_s = n; break;
        default: return false;
        }
    }
    return f->address && f->name && f->ca && f->ca_key && f->count > 0 && f->batch > 0 &&
           f->batch <= 100 && f->heartbeat_s > 0 && optind == argc;
}

int main(int argc, char **argv)
{
    static struct fleet fleet;
    struct rlimit files = { 0 };

    if (!parse(&fleet, argc, argv)) {
        fputs(usage, stderr);
        return 64;
    }
    (void)getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &files);
    (void)signal(SIGPIPE, SIG_IGN);
    srandom((unsigned)(now_us() ^ (uint64_t)getpid()));
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    (void)fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
    fleet.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (fleet.epoll < 0 || !identity_open(&fleet) || !make_devices(&fleet))
        return 1;
    spread_starts(&fleet);
    return run(&fleet);
}
