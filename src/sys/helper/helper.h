/*
 * helper: a child process that works beside the daemon, watched and started again.
 *
 * Purpose   Starts the program, hands on what it says, and starts it anew when it ends or has
 *           been silent for too long; with a pause that doubles each time, and begins anew
 *           once it has lived for a minute.
 * Contract  The child finds a SOCK_SEQPACKET at HELPER_FD_SOCKET and, if there is one, the
 *           descriptor of the options at HELPER_FD_SHARED.  Each packet is one text.  It ends
 *           when its socket closes.
 * Owns      Options are copied, but not what argv points to: it must outlive the helper.
 * Threads   loop thread only; nothing here waits
 * Tests     tests/unit/test_helper.c
 */
#ifndef SYS_HELPER_H
#define SYS_HELPER_H

#include <stdint.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/str.h"
#include "sys/helper/helper_start.h"

enum { HELPER_PACKET = 8192 };

struct helper_options {
    const char *program;
    const char *const *argv; /* ends with NULL */
    int shared_fd;           /* -1: none */
    uint32_t backoff_ms, backoff_max_ms;
    uint32_t silence_ms; /* without a packet for so long it is replaced; 0: never */
};

struct helper_callbacks {
    void (*said)(void *arg, struct str packet); /* borrowed for the call */
    /* It has ended, or could not be started. */
    void (*ended)(void *arg, const char *why);
    void *arg;
};

struct helper;

/* A program that cannot be started is no error here: ended() says so, again and again. */
MUST_USE enum err helper_new(struct helper **out, sd_event *loop,
                             const struct helper_options *o,
                             const struct helper_callbacks *cb, struct err_info *info);
/* Kills the child.  No callback comes any more.  NULL is fine. */
void helper_free(struct helper *h);

/* ERR_CLOSED: there is no child just now; ERR_LIMIT: it does not read. */
MUST_USE enum err helper_say(struct helper *h, struct str packet);
/* 0: none just now. */
pid_t helper_pid(const struct helper *h);
uint32_t helper_restarts(const struct helper *h);

#endif
