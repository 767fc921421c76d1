/*
 * redoubt-keeper: the only process that touches the state share (design section 2).
 *
 * It carries out one request at a time and decides nothing.  Its calls may block for as long
 * as the file server likes; the node daemon's clock rules, and kills it.  When the daemon has
 * died, it has one thing left to do: its will (sys/keeper/keeper.h).
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "sys/keeper/keeper_wire.h"
#include "sys/smb/smb_store.h"

enum { WILL_AGAIN_MS = 50 };

/* Connections of the stores that are gone: a number that was told never comes again. */
static uint32_t connections_before;

struct args {
    struct smb_options smb;
    const char *credentials;
    uint32_t will_wait_ms;
};

/* What is left to the guard's word, and the record that it is to replace: a will that the
 * events have overtaken does not find it any more. */
struct will {
    uint64_t epoch; /* 0: none */
    char last[SHARE_LEASE_BYTES];
    char will[SHARE_LEASE_BYTES];
};

static struct str text_of(char bytes[SHARE_LEASE_BYTES])
{
    return (struct str){ bytes, SHARE_LEASE_BYTES };
}

static void will_follow(struct will *w, const struct share_request *rq, enum err e)
{
    bool lease = rq->op == SHARE_CLAIM || rq->op == SHARE_RENEW;

    if (lease && e == ERR_OK && rq->will.n == SHARE_LEASE_BYTES) {
        w->epoch = rq->epoch;
        memcpy(w->last, rq->body.p, SHARE_LEASE_BYTES);
        memcpy(w->will, rq->will.p, SHARE_LEASE_BYTES);
    } else if (rq->op == SHARE_RELEASE && e == ERR_OK) {
        w->epoch = 0;
    }
}

static bool number(const char *text, uint64_t max, uint64_t *out)
{
    return str_u64(str_of(text), max, out);
}

static bool parse(struct args *a, int argc, char **argv)
{
    static const struct option options[] = {
        { "share", required_argument, NULL, 's' },
        { "credentials", required_argument, NULL, 'c' },
        { "dialect-min", required_argument, NULL, 'l' },
        { "dialect-max", required_argument, NULL, 'h' },
        { "port", required_argument, NULL, 'p' },
        { "timeout-ms", required_argument, NULL, 't' },
        { "will-wait-ms", required_argument, NULL, 'w' },
        { "encrypt", no_argument, NULL, 'e' },
        { NULL, 0, NULL, 0 },
    };
    uint64_t port = 445, timeout = 10000, wait = 0;
    bool ok = true;
    int c;

    a->smb.min = SMB_DIALECT_2_02;
    a->smb.max = SMB_DIALECT_3_11;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's': a->smb.share = optarg; break;
        case 'c': a->credentials = optarg; break;
        case 'l': ok = ok && smb_dialect_parse(str_of(optarg), &a->smb.min); break;
        case 'h': ok = ok && smb_dialect_parse(str_of(optarg), &a->smb.max); break;
        case 'p': ok = ok && number(optarg, UINT16_MAX, &port); break;
        case 't': ok = ok && number(optarg, 600000, &timeout); break;
        case 'w': ok = ok && number(optarg, 600000, &wait); break;
        case 'e': a->smb.encrypt = true; break;
        default: ok = false;
        }
    }
    a->smb.port = (uint16_t)port;
    a->smb.timeout_ms = (uint32_t)timeout;
    a->will_wait_ms = (uint32_t)wait;
    return ok && optind == argc && a->smb.share && a->credentials &&
           a->smb.min <= a->smb.max;
}

/* Reads the credentials anew for each store: a changed password needs no restart. */
static enum err open_store(struct smb_store **st, const struct args *a,
                           struct err_info *why)
{
    struct smb_options o = a->smb;
    struct smb_cred cred;

    enum err e = smb_cred_load(&cred, a->credentials, why);
    if (e)
        return e == ERR_NOT_FOUND ? ERR_CONFIG : e; /* not a file on the share */
    o.cred = &cred;
    e = smb_store_new(st, &o, why);
    explicit_bzero(&cred, sizeof(cred));
    return e;
}

static bool answer(const struct smb_store *st, const struct share_answer *a, char *packet)
{
    struct smb_store_stats stats = { .connections = 0 };

    if (st)
        stats = smb_store_stats(st);
    struct keeper_news news = { .connections = connections_before + stats.connections };
    if (stats.dialect != SMB_DIALECT_NONE)
        (void)snprintf(news.dialect, sizeof(news.dialect), "%s",
                       smb_dialect_name(stats.dialect));
    size_t n = keeper_wire_answer(packet, a, &news);
    return send(KEEPER_FD_SOCKET, packet, n, MSG_NOSIGNAL) == (ssize_t)n;
}

/* rq NULL: only connect, and say HELLO. */
static bool serve_one(struct smb_store **st, const struct args *args,
                      const struct share_request *rq, struct will *w)
{
    static char reply[KEEPER_WIRE_MAX];
    struct share_answer a = { .id = rq ? rq->id : 0 };
    struct err_info why;

    if (!*st)
        a.err = open_store(st, args, &why);
    if (a.err == ERR_OK && rq)
        smb_store_serve(*st, rq, &a);
    else if (a.err == ERR_OK)
        a.err = smb_store_connect(*st, &why);
    if (a.err && !a.why)
        a.why = &why;
    if (rq)
        will_follow(w, rq, a.err);
    bool up = answer(*st, &a, reply);
    if (a.err == ERR_DENIED && *st) {
        connections_before += smb_store_stats(*st).connections;
        smb_store_free(*st);
        *st = NULL;
    }
    return up;
}

/* Until the daemon closes its end. */
static void serve(struct smb_store **st, const struct args *args, struct will *w)
{
    static char packet[KEEPER_WIRE_MAX];
    struct share_request rq;

    bool up = serve_one(st, args, NULL, w);
    while (up) {
        ssize_t n = recv(KEEPER_FD_SOCKET, packet, sizeof(packet), 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0 || !keeper_wire_read_request(&rq, (struct str){ packet, (size_t)n }))
            break;
        up = serve_one(st, args, &rq, w);
    }
}

/* The guard's byte: no service lives any more. */
static bool guard_says_gone(uint32_t wait_ms)
{
    struct pollfd p = { .fd = KEEPER_FD_GONE, .events = POLLIN };
    char byte;
    int rc;

    do {
        rc = poll(&p, 1, (int)wait_ms);
    } while (rc < 0 && errno == EINTR);
    return rc == 1 && read(KEEPER_FD_GONE, &byte, 1) == 1;
}

/* Nobody is left to kill us if the share hangs: the alarm's default action does. */
static void bound_own_life(uint32_t ms)
{
    struct itimerval t = { .it_value = { .tv_sec = ms / 1000u,
                                         .tv_usec = (suseconds_t)(ms % 1000u) * 1000 } };

    (void)setitimer(ITIMER_REAL, &t, NULL);
}

static enum err bequeath(struct smb_store **st, const struct args *args, struct will *w,
                         struct err_info *why)
{
    enum err e = *st ? ERR_OK : open_store(st, args, why);

    return e ? e
             : smb_store_bequeath(*st, w->epoch, text_of(w->last), text_of(w->will), why);
}

/* Tried again while the file server cannot be reached, until the alarm: an attempt whose
 * outcome is unknown is seen by the record that it left. */
static void execute_will(struct smb_store **st, const struct args *args, struct will *w)
{
    struct err_info why;

    bound_own_life(args->will_wait_ms + args->smb.timeout_ms);
    if (w->epoch == 0 || !guard_says_gone(args->will_wait_ms))
        return;
    enum err e = bequeath(st, args, w, &why);
    while (e == ERR_IO || e == ERR_TIMEOUT) {
        (void)poll(NULL, 0, WILL_AGAIN_MS);
        e = bequeath(st, args, w, &why);
    }
    if (e)
        (void)fprintf(stderr, "redoubt-keeper: will: %s\n", why.what);
}

int main(int argc, char **argv)
{
    static struct will w;
    struct args a = { .credentials = NULL };
    struct smb_store *st = NULL;

    if (!parse(&a, argc, argv)) {
        (void)fprintf(stderr, "redoubt-keeper is started by redoubt-node\n");
        return 2;
    }
    /* Planned stops reach the daemon, which still needs us to release the lease. */
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_DUMPABLE, 0); /* our memory holds the password */
    serve(&st, &a, &w);
    execute_will(&st, &a, &w);
    smb_store_free(st);
    return 0;
}
