/*
 * nginx: runs nginx as a child, and knows every process of it.
 *
 * Purpose   Writes its configuration, tests it, starts it in the foreground, sees the end
 *           of its master and of each worker, and stops it.
 * Shape     The configuration listens on the addresses asked for, and on a Unix socket in
 *           the run directory that answers NGINX_HEALTH_REQUEST (health.h).
 * Owns      struct nginx owns its descriptors and processes; conf is borrowed for its life.
 * Errors    ERR_CONFIG: a value that cannot be written into the configuration, or that
 *           nginx refuses (its own message is on standard error).
 * Threads   one
 * Tests     tests/fault/test_web.py
 */
#ifndef APP_WEB_NGINX_H
#define APP_WEB_NGINX_H

#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

enum { NGINX_WORKERS_MAX = 16, NGINX_PATH_BYTES = 256, NGINX_SOCKET_BYTES = 108 };

struct nginx_conf {
    const char *program;
    const char *node;         /* for the header X-Redoubt-Node */
    const char *http, *https; /* "host:port", "[v6]:port"; "" is not listened on */
    const char *root;
    const char *store; /* what redoubt-mirror lays out; "": nothing of it is served */
    const char *certificate, *key;
    const char *run_dir; /* ours alone, writable */
    const char
        *link_key; /* what the links of /private/ are made with; "": none is good */
    uint32_t workers;
    /* For each address below /sig/; a rate or a number of connections of 0: no limit. */
    uint32_t sig_rate, sig_burst, sig_connections, sig_retry_s;
};

struct nginx_process {
    pid_t pid;
    int pidfd;
};

struct nginx {
    const struct nginx_conf *conf;
    char file[NGINX_PATH_BYTES];     /* its configuration */
    char health[NGINX_SOCKET_BYTES]; /* the socket that answers health requests */
    struct nginx_process master;     /* pid 0: not running */
    struct nginx_process workers[NGINX_WORKERS_MAX];
    uint32_t worker_count;
};

/* Writes the configuration and lets nginx test it; waits for nginx -t, at most 5 s. */
MUST_USE enum err nginx_init(struct nginx *n, const struct nginx_conf *conf,
                             struct err_info *info);

MUST_USE enum err nginx_start(struct nginx *n, struct err_info *info);

/* Finds the workers, once nginx answers.  ERR_NOT_FOUND: not all are there (yet). */
MUST_USE enum err nginx_find_workers(struct nginx *n, struct err_info *info);

/*
 * nginx_dead - has any of its processes ended, or is one stopped?
 *
 * Fills `why` and reaps nothing.  False if nginx is not running.
 */
bool nginx_dead(const struct nginx *n, bool look_for_stopped, struct err_info *why);

/* Is the published folder there?  Without it every request is answered 404. */
bool nginx_has_root(const struct nginx *n);

bool nginx_runs(const struct nginx *n);
/* Asks it to end at once (open connections are cut); nginx_reap() tells when it has. */
void nginx_stop(struct nginx *n);
/* Kills every process of it. */
void nginx_kill(struct nginx *n);
/* True once no process of it lives (the master is reaped); a master's orphans are killed. */
bool nginx_reap(struct nginx *n);

#endif
