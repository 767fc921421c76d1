/*
 * smbd: a real file server of our own for tests: private files, a loopback port, no daemon.
 *
 * Shape     Shares: state (read and write), ro (the same folder, read-only), full (a tmpfs of
 *           64 KiB).  User root, password SMBD_PASSWORD.
 * Owns      Everything lives in one folder under /tmp and in the test's own mount namespace.
 */
#ifndef TEST_SMBD_H
#define TEST_SMBD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define SMBD_PASSWORD "Secret-1"

struct smbd {
    pid_t pid; /* leader of smbd's process group; 0: not running */
    uint16_t port;
    int port_fd; /* keeps the port ours while smbd is down */
    char dir[64];
    char credentials[96];             /* a file as sys/smb/smb_cred.h wants it */
    char share[32], ro[32], full[32]; /* //127.0.0.1/state ... */
};

/* Why this test cannot run here, or NULL. */
const char *smbd_missing(void);

void smbd_init(struct smbd *s); /* folders, user, configuration; not started */
void smbd_start(struct smbd *s, const char *extra); /* extra: lines for [global], or "" */
void smbd_kill(struct smbd *s);            /* -9 to all of its processes, and reaped */
void smbd_signal(struct smbd *s, int sig); /* to all of its processes */
void smbd_clear(struct smbd *s); /* empties the shares; epoch/ node/ request/ made anew */
void smbd_release(struct smbd *s); /* stopped, and no file left */

/* A file below the share, past smbd: for looking at bytes and for damage. */
void smbd_path(const struct smbd *s, char *buf, size_t size, const char *name);
void smbd_write(const struct smbd *s, const char *name, const char *text);

#endif
