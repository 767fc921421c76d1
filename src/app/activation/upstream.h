/*
 * upstream: one HTTPS request at a time to the vendor, inside the event loop (libcurl multi).
 *
 * Purpose   Carries a request and brings the answer, or says why there is none.
 * Contract  done() is called exactly once for each upstream_post(), from the loop, unless it
 *           was cancelled.  Never blocks: names are looked up in a thread of libcurl, which is
 *           left to itself when the request is given up before it has an answer.
 * Shape     An answer of at most UPSTREAM_ANSWER_MAX bytes, within the timeout as a whole.
 * Safety    HTTPS only, nothing is redirected, the certificate must verify.  Who answers is
 *           not believed for that: the caller verifies the signature.
 * Threads   loop thread only
 * Tests     tests/contract/test_vendor.py
 */
#ifndef APP_ACTIVATION_UPSTREAM_H
#define APP_ACTIVATION_UPSTREAM_H

#include <systemd/sd-event.h>

#include "base/err.h"
#include "base/str.h"

enum { UPSTREAM_ANSWER_MAX = 64 * 1024, UPSTREAM_RETRY_MAX_S = 3600 };

struct upstream_answer {
    unsigned status;        /* of HTTP; 0: there was no answer, `why` says it */
    struct str body;        /* borrowed for the call */
    uint32_t retry_after_s; /* 0: nothing was said of it */
    const char *why;
};
typedef void upstream_done(void *arg, const struct upstream_answer *a);

struct upstream_options {
    sd_event *loop;
    const char *url;     /* "https://host:port"; borrowed until upstream_free */
    const char *ca_file; /* "": the machine's */
    const char *proxy;   /* "": none */
    uint32_t timeout_ms;
    upstream_done *done;
    void *arg;
};

struct upstream;

MUST_USE enum err upstream_new(struct upstream **out, const struct upstream_options *o,
                               struct err_info *info);
/* No done() after it returns. */
void upstream_free(struct upstream *u);

bool upstream_busy(const struct upstream *u);
/* POST /v1/activate.  Only if it is not busy.  body: JSON, copied. */
MUST_USE enum err upstream_post(struct upstream *u, const char *body,
                                struct err_info *info);
/* What is under way is given up; the vendor may have got it all the same. */
void upstream_cancel(struct upstream *u);

#endif
