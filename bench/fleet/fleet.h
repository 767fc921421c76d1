/*
 * fleet: many devices in one process, for ./dev bench devices.
 *
 * Purpose   Each device has a certificate, a TLS connection and a WebSocket of its own, says
 *           who it is, beats, tells events and waits for their acknowledgement, comes back
 *           after a break with a spread, and keeps its TLS session for that.
 * Shape     main.c: options, the loop, what is told on stdout; device.c: one device;
 *           identity.c: its certificate.  All devices of a process share one private key:
 *           what the server does for each of them is the same.
 * Threads   one
 */
#ifndef BENCH_FLEET_H
#define BENCH_FLEET_H

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "wire/uuid.h"
#include "wire/ws.h"

enum { FLEET_SCRATCH = 65536, FLEET_OUT = 65536 };

enum device_state {
    DEVICE_WAITING,
    DEVICE_CONNECTING,
    DEVICE_TLS,
    DEVICE_HTTP,
    DEVICE_OPEN
};

struct device {
    struct fleet *fleet;
    uint32_t index;
    enum device_state state;
    int fd;
    struct uuid id, stream;
    gnutls_datum_t certificate, ticket; /* DER; of the last session */
    gnutls_session_t tls;
    gnutls_pcert_st *shown; /* while the handshake lasts */
    uint64_t due_us;        /* WAITING: connect; OPEN: next heartbeat; else: give up */
    uint64_t managed_us;    /* first good answer after the mark; 0: not yet */
    uint64_t sequence, event_seq, asked_us;
    uint32_t failures;
    uint32_t pending,
        outstanding;    /* events without acknowledgement; of them on their way */
    bool greeted, held; /* held: the server asked for patience until due */
    uint8_t *left;      /* bytes of a frame that is not whole yet */
    size_t left_n;
    uint8_t *out; /* what did not fit into the socket */
    size_t out_n, out_at;
};

struct counts {
    uint64_t handshakes, resumed, failed, broken, answers, heartbeats, events_sent,
        events_acked, unavailable, refused, policies, alien;
};

struct fleet {
    const char *address, *name, *ca, *ca_key;
    uint16_t port;
    uint32_t count, first, heartbeat_s, spread_ms, ramp_ms, batch, keepalive_s;
    double rate; /* events a second, all devices of the process together */
    int epoll;
    gnutls_certificate_credentials_t trust;
    gnutls_priority_t priority;
    gnutls_privkey_t key;
    struct device *devices;
    struct counts counts;
    uint32_t open;
    uint64_t mark_us;
    double owed; /* events that are due */
    uint32_t next_teller;
    uint64_t *ack_us; /* ring of how long the last acknowledgements took */
    uint32_t ack_n;
    uint8_t scratch[WS_BUFFER(FLEET_SCRATCH)];
};

enum { ACK_RING = 65536 };

uint64_t now_us(void);
uint32_t random_below(uint32_t n);

/* identity.c: false after a message on stderr. */
bool identity_open(struct fleet *f);
bool identity_make(struct device *d);
int identity_show(gnutls_session_t s, const gnutls_datum_t *rdn, int n,
                  const gnutls_pk_algorithm_t *algorithms, int algorithm_n,
                  gnutls_pcert_st **certificate, unsigned *length, gnutls_privkey_t *key);

/* device.c */
void device_connect(struct device *d);
void device_io(struct device *d, uint32_t events);
/* Its time has come: connect, beat, or give up. */
void device_due(struct device *d);
void device_tell(struct device *d, uint32_t events);
void device_close(struct device *d);

#endif
