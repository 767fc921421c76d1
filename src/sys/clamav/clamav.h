/*
 * clamav: looks at the anti-malware engine without ever waiting for it.
 *
 * Purpose   One probe is one connection to clamd's socket with PING, VERSION and STATS in
 *           one session; its result is told once, by the hook, from the loop.
 * Shape     struct clamav_state is plain data.
 * Owns      new/free; the path is copied.
 * Errors    A clamd that is away, slow, or answers nonsense is `up = false` with words.
 * Threads   loop thread only
 * Source    clamd(8); wire/clamd.h
 */
#ifndef SYS_CLAMAV_H
#define SYS_CLAMAV_H

#include <systemd/sd-event.h>

#include "wire/clamd.h"

enum { CLAMAV_PROBE_MS = 2000 };

struct clamav_state {
    bool up;
    char why[160]; /* up: "" */
    struct clamd_version version;
    struct clamd_stats stats;
};

struct clamav;
typedef void clamav_done(void *arg, const struct clamav_state *state);

MUST_USE enum err clamav_new(sd_event *event, const char *path, clamav_done *done,
                             void *arg, struct clamav **out);
void clamav_free(struct clamav *c);

/* Starts a probe; nothing if one is under way. */
void clamav_probe(struct clamav *c);

#endif
