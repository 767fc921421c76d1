/*
 * keeper: port/share.h for the node daemon, by way of a child that may hang alone.
 *
 * Purpose   SMB calls can block for many seconds; they do so in redoubt-keeper.  This side
 *           sends it one request at a time, and kills and replaces it when it does not
 *           answer in time, dies, is stopped, or talks nonsense.
 * Shape     One keeper works; a second one, started and connected, waits to take its place, so
 *           that a replacement costs no start of a process (some 100 ms on a busy machine).
 * Units     timeout_ms is for POLL, CLAIM, RENEW and RELEASE; slow_timeout_ms for SCAN, GET,
 *           PUT, REMOVE and PRUNE.  If there is no spare, a replacement waits 0, 50, 100,
 *           ... 1000 ms after failures in a row; a request meanwhile waits with it.
 *           A keeper gets requests once it has tried to connect; for that it has
 *           timeout_ms and a second.
 * Errors    ERR_TIMEOUT no answer in time, or the child died over a request that writes:
 *           the outcome is unknown.  ERR_IO the child died over one that does not, or the
 *           request was never sent.  Else the keeper's own (sys/smb/smb_store.h).
 * Will      A CLAIM or RENEW that succeeds leaves its will with the keeper.  When the daemon
 *           has died, the keeper waits at most will_wait_ms for a byte from gone_fd, then
 *           writes the will over epoch/<n>, if that still holds what it last wrote there
 *           and epoch n+1 does not exist; again and again while the server cannot be
 *           reached, within will_wait_ms and slow_timeout_ms.  A replaced keeper has no
 *           will before the next RENEW; a RELEASE that succeeds drops it; without the byte
 *           nothing is written.
 *           The keeper must outlive the daemon for that: with systemd, KillMode=process.
 * Owns      The loop and the strings of the options are borrowed for the keeper's life; each
 *           child gets a duplicate of gone_fd.
 * Threads   loop thread only
 * Tests     tests/contract/test_share_smb.c, tests/fault/test_keeper_faults.c
 */
#ifndef KEEPER_H
#define KEEPER_H

#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/mono.h"
#include "port/share.h"

struct keeper_options {
    const char *program;                   /* path of redoubt-keeper */
    const char *share;                     /* //host/share[/folder] */
    const char *credentials;               /* path; see sys/smb/smb_cred.h */
    const char *dialect_min, *dialect_max; /* "SMB2_02" .. "SMB3_11" */
    bool encrypt;
    uint16_t port;
    uint32_t timeout_ms, slow_timeout_ms;
    uint32_t will_wait_ms;
    int gone_fd; /* read end of the guard's "services are gone" pipe; -1: no will */
};

struct keeper_callbacks {
    /* One answer to each submit(); what it points to is borrowed for the call.  submit()
     * may be called from within. */
    void (*answer)(void *arg, const struct share_answer *a);
    /* A keeper was killed or died, and why; may be NULL. */
    void (*replaced)(void *arg, const char *why);
    void *arg;
};

struct keeper;

/* Starts the first child.  ERR_CONFIG: the program cannot be started. */
MUST_USE enum err keeper_new(struct keeper **out, sd_event *loop,
                             const struct keeper_options *o,
                             const struct keeper_callbacks *cb, struct err_info *info);
/* Closes the child's socket: it ends by itself, after its will if the guard says so. */
void keeper_free(struct keeper *k);

struct share keeper_share(struct keeper *k);

struct keeper_stats {
    char dialect[8];       /* "3.1.1"; "" before the first connection */
    uint32_t connections;  /* to the file server, by all keepers that worked */
    uint32_t replacements; /* keepers killed or dead */
    struct mono last_ok;   /* answer without an error of the connection */
    uint32_t latency_us;   /* of that answer */
    pid_t pid, spare_pid;  /* 0: none just now */
};
struct keeper_stats keeper_stats(const struct keeper *k);

#endif
