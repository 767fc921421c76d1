#include "sys/http/http_fetch.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

enum { CONNECT_MS = 10000 };

struct fetch {
    const struct http_fetch *f;
    CURL *curl;
    int fd, error;       /* errno of a write that failed */
    uint64_t have, from; /* from: where it was begun */
    bool begun, too_long;
};

static long status_of(CURL *curl)
{
    long status = 0;

    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    return status;
}

/* The first bytes of a body: is it what was asked for? */
static bool begin(struct fetch *t)
{
    long status = status_of(t->curl);

    t->begun = true;
    if (status == 206)
        return true;
    if (status != 200)
        return false;
    t->have = t->from = 0; /* the whole file, whatever we have */
    if (ftruncate(t->fd, 0) == 0)
        return true;
    t->error = errno;
    return false;
}

static size_t on_data(char *data, size_t one, size_t n, void *arg)
{
    struct fetch *t = arg;
    size_t at = 0;

    (void)one; /* always 1 */
    if (!t->begun && !begin(t))
        return 0;
    if (n > t->f->max_bytes - t->have) {
        t->too_long = true;
        return 0;
    }
    while (at < n) {
        ssize_t put = pwrite(t->fd, data + at, n - at, (off_t)(t->have + at));

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            t->error = put < 0 ? errno : EIO;
            return 0;
        }
        at += (size_t)put;
    }
    t->have += n;
    return n;
}

static int on_progress(void *arg, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up)
{
    struct fetch *t = arg;

    (void)now, (void)up_total, (void)up;
    if (total > 0 && status_of(t->curl) / 100 == 2 &&
        (uint64_t)total > t->f->max_bytes - t->from) {
        t->too_long = true;
        return 1;
    }
    uint64_t all = total > 0 ? t->from + (uint64_t)total : 0;
    return t->f->progress && !t->f->progress(t->f->arg, t->have, all);
}

static enum err status_error(const struct fetch *t, struct err_info *info)
{
    long status = status_of(t->curl);

    if (status == 416 && t->from > 0) /* nothing is missing; the digest will tell */
        return ERR_OK;
    if (status == 404 || status == 429 || status == 503)
        return err_set(info, ERR_STATE, 0, "%s: status %ld", t->f->url, status);
    return err_set(info, ERR_DENIED, 0, "%s: status %ld", t->f->url, status);
}

static enum err result(const struct fetch *t, CURLcode c, struct err_info *info)
{
    const char *url = t->f->url;

    if (t->too_long)
        return err_set(info, ERR_LIMIT, 0, "%s is longer than %" PRIu64 " bytes", url,
                       t->f->max_bytes);
    if (t->error != 0)
        return err_set(info, t->error == ENOSPC || t->error == EDQUOT ? ERR_FULL : ERR_IO,
                       t->error, "write what %s has", url);
    if (status_of(t->curl) >= 300)
        return status_error(t, info);
    if (c == CURLE_OK)
        return ERR_OK;
    if (c == CURLE_URL_MALFORMAT || c == CURLE_UNSUPPORTED_PROTOCOL)
        return err_set(info, ERR_INVALID, 0, "%s: no URL that can be fetched", url);
    if (c == CURLE_PEER_FAILED_VERIFICATION || c == CURLE_SSL_CACERT_BADFILE)
        return err_set(info, ERR_FOREIGN, 0, "%s: its certificate does not verify", url);
    return err_set(info, c == CURLE_OPERATION_TIMEDOUT ? ERR_TIMEOUT : ERR_CLOSED, 0,
                   "%s: %s", url, curl_easy_strerror(c));
}

#define SET(option, value) (ok = ok && curl_easy_setopt(c, option, value) == CURLE_OK)

static bool set_options(struct fetch *t, struct curl_slist *headers)
{
    const struct http_fetch *f = t->f;
    CURL *c = t->curl;
    bool ok = true;

    SET(CURLOPT_URL, f->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (f->ca_file)
        SET(CURLOPT_CAINFO, f->ca_file);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_LOW_SPEED_TIME, (long)f->stall_s);
    SET(CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->from);
    SET(CURLOPT_WRITEFUNCTION, on_data);
    SET(CURLOPT_WRITEDATA, t);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, t);
    return ok;
}

/* What ignores ranges sends the whole file, which libcurl does not take for its rest: anew,
 * then. */
static CURLcode perform(struct fetch *t)
{
    CURLcode c = curl_easy_perform(t->curl);

    if (c != CURLE_RANGE_ERROR || t->from == 0)
        return c;
    if (ftruncate(t->fd, 0) != 0) {
        t->error = errno;
        return c;
    }
    t->have = t->from = 0;
    c = curl_easy_setopt(t->curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)0);
    return c == CURLE_OK ? curl_easy_perform(t->curl) : c;
}

enum err http_fetch(const struct http_fetch *f, int fd, struct err_info *info)
{
    struct fetch t = { .f = f, .fd = fd };
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
    struct stat st;
    enum err e;

    if (fstat(fd, &st) != 0) {
        curl_slist_free_all(headers);
        return err_set(info, ERR_IO, errno, "fstat");
    }
    t.have = t.from = (uint64_t)st.st_size;
    for (size_t i = 0; headers && f->headers && f->headers[i]; i++) {
        struct curl_slist *more = curl_slist_append(headers, f->headers[i]);

        if (!more)
            curl_slist_free_all(headers);
        headers = more;
    }
    t.curl = curl_easy_init();
    if (!t.curl || !headers || !set_options(&t, headers))
        e = err_set(info, ERR_MEMORY, 0, "prepare to fetch %s", f->url);
    else
        e = result(&t, perform(&t), info);
    curl_slist_free_all(headers);
    if (t.curl)
        curl_easy_cleanup(t.curl);
    return e;
}
