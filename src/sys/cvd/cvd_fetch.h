/*
 * cvd_fetch: files of a signature mirror over HTTP, politely.
 *
 * Purpose   The first bytes of a database, with If-Modified-Since; whole files, resumed where
 *           an earlier call stopped.  What the source says about patience is obeyed.
 * Shape     A file is written as PATH.part and renamed when it is whole.  What is in it is
 *           for cvd_check() to judge: a part of something else is found there.
 * Errors    ERR_DENIED the source asks for patience (403, 429, 503): blocked_s says how much;
 *           ERR_STATE goes_on() said no: the part stays; ERR_LIMIT too long; ERR_IO and
 *           ERR_TIMEOUT the network or an answer that makes no sense; ERR_CONFIG the address,
 *           the proxy or the CA is wrong.
 * Threads   one; blocks, and asks goes_on() several times a second
 */
#ifndef SYS_CVD_FETCH_H
#define SYS_CVD_FETCH_H

#include "base/err.h"
#include "wire/cvd.h"

enum {
    FETCH_REFUSED_S = 24 * 3600, /* after 403 */
    FETCH_PATIENCE_S = 4 * 3600, /* after 429 without Retry-After */
    FETCH_PATIENCE_MAX_S = 7 * 24 * 3600,
    FETCH_URL = 600,
};

enum fetched { FETCHED, FETCH_SAME, FETCH_ABSENT };

struct fetch_options {
    const char *url;   /* http://... or https://..., without a '/' at its end; borrowed */
    const char *proxy; /* "": none; borrowed */
    const char *ca_file;        /* "": the CAs of this machine; borrowed */
    bool (*goes_on)(void *arg); /* NULL: always */
    void *arg;
};

struct fetch {
    struct fetch_options o;
    void *curl;
    uint32_t blocked_s;
};

/* Not to be used before curl_global_init(), which this calls. */
MUST_USE enum err fetch_init(struct fetch *f, const struct fetch_options *o,
                             struct err_info *info);
void fetch_release(struct fetch *f);

/* The first CVD_HEADER bytes.  since: Unix time, 0: whatever its time. */
MUST_USE enum err fetch_head(struct fetch *f, const char *file, uint64_t since,
                             char out[CVD_HEADER], enum fetched *what,
                             struct err_info *info);
/* The whole file as `path`, at most bytes_max. */
MUST_USE enum err fetch_file(struct fetch *f, const char *file, const char *path,
                             uint64_t bytes_max, enum fetched *what,
                             struct err_info *info);

#endif
