#include "sys/cvd/cvd_fetch.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

enum {
    CONNECT_S = 30,
    SLOW_S = 60,
    SLOW_BYTES = 10000, /* the largest database in about ten hours */
    HEAD_S = 120,
    PATH_MAX_BYTES = 700
};

/* Where the bytes of an answer go. */
struct sink {
    int fd; /* -1: to head */
    char *head;
    size_t head_n;
    uint64_t at, max;
    bool too_long, failed;
    int sys_errno;
};

enum err fetch_init(struct fetch *f, const struct fetch_options *o, struct err_info *info)
{
    *f = (struct fetch){ .o = *o };
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK ||
        !(f->curl = curl_easy_init()))
        return err_set(info, ERR_MEMORY, 0, "libcurl cannot be used");
    return ERR_OK;
}

void fetch_release(struct fetch *f)
{
    if (f->curl)
        curl_easy_cleanup(f->curl);
    f->curl = NULL;
}

static size_t on_bytes(char *p, size_t size, size_t n, void *arg)
{
    struct sink *s = arg;

    n *= size;
    if (s->fd < 0) {
        size_t more = CVD_HEADER - s->head_n < n ? CVD_HEADER - s->head_n : n;

        memcpy(s->head + s->head_n, p, more);
        s->head_n += more;
        /* A source that knows no ranges sends all: enough. */
        return more == n ? n : 0;
    }
    if (n > s->max - s->at) {
        s->too_long = true;
        return 0;
    }
    for (size_t done = 0; done < n;) {
        ssize_t w = write(s->fd, p + done, n - done);

        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            s->failed = true;
            s->sys_errno = errno;
            return 0;
        }
        done += (size_t)w;
    }
    s->at += n;
    return n;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct fetch *f = arg;

    (void)a, (void)b, (void)c, (void)d;
    return f->o.goes_on && !f->o.goes_on(f->o.arg) ? 1 : 0;
}

/* What all requests have in common. */
static bool prepare(struct fetch *f, const char *file, struct sink *s)
{
    char url[FETCH_URL + CVD_FILE_MAX];
    CURL *c = f->curl;

    curl_easy_reset(c);
    (void)snprintf(url, sizeof(url), "%s/%s", f->o.url, file);
    return curl_easy_setopt(c, CURLOPT_URL, url) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR,
                            strncmp(url, "https:", 6) == 0 ? "https" : "http,https") ==
               CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_MAXREDIRS, 3L) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_USERAGENT,
                            "ClamAV/1.4 (compatible; Redoubt/" REDOUBT_VERSION
                            ")") == CURLE_OK &&
           /* "" keeps what the environment says out of it. */
           curl_easy_setopt(c, CURLOPT_PROXY, f->o.proxy) == CURLE_OK &&
           (!f->o.ca_file[0] ||
            curl_easy_setopt(c, CURLOPT_CAINFO, f->o.ca_file) == CURLE_OK) &&
           curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)SLOW_BYTES) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)SLOW_S) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_XFERINFODATA, f) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_bytes) == CURLE_OK &&
           curl_easy_setopt(c, CURLOPT_WRITEDATA, s) == CURLE_OK;
}

static enum err patience(struct fetch *f, const char *file, long status,
                         struct err_info *info)
{
    curl_off_t after = 0;

    if (curl_easy_getinfo(f->curl, CURLINFO_RETRY_AFTER, &after) != CURLE_OK || after < 0)
        after = 0;
    if (after > FETCH_PATIENCE_MAX_S)
        after = FETCH_PATIENCE_MAX_S;
    if (status == 503 && after == 0)
        return err_set(info, ERR_IO, 0, "%s: the source answers with status 503", file);
    f->blocked_s = after > 0       ? (uint32_t)after
                   : status == 403 ? FETCH_REFUSED_S
                                   : FETCH_PATIENCE_S;
    return err_set(info, ERR_DENIED, 0,
                   "%s: the source %s (status %ld); it is left alone for %u min", file,
                   status == 403 ? "refuses this address" : "asks for patience", status,
                   (f->blocked_s + 59) / 60);
}

static enum err by_status(struct fetch *f, const char *file, long status,
                          enum fetched *what, struct err_info *info)
{
    switch (status) {
    case 200:
    case 206: *what = FETCHED; return ERR_OK;
    case 304: *what = FETCH_SAME; return ERR_OK;
    case 404:
    case 410: *what = FETCH_ABSENT; return ERR_OK;
    case 403:
    case 429:
    case 503: return patience(f, file, status, info);
    default:
        return err_set(info, ERR_IO, 0, "%s: the source answers with status %ld", file,
                       status);
    }
}

/* Carries it out; CURLE_OK is an answer, whichever. */
static enum err perform(struct fetch *f, const char *file, struct sink *s, long *status,
                        struct err_info *info)
{
    CURLcode r = curl_easy_perform(f->curl);

    *status = 0;
    (void)curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, status);
    if (r == CURLE_OK || r == CURLE_HTTP_RETURNED_ERROR ||
        (r == CURLE_WRITE_ERROR && s->fd < 0 && s->head_n == CVD_HEADER))
        return ERR_OK;
    if (s->too_long)
        return err_set(info, ERR_LIMIT, 0, "%s: it is longer than such a file may be",
                       file);
    if (s->failed)
        return err_set(info, s->sys_errno == ENOSPC ? ERR_FULL : ERR_IO, s->sys_errno,
                       "write %s", file);
    switch ((int)r) {
    case CURLE_ABORTED_BY_CALLBACK:
        return err_set(info, ERR_STATE, 0, "%s: stopped", file);
    case CURLE_OPERATION_TIMEDOUT:
        return err_set(info, ERR_TIMEOUT, 0, "%s: the source is silent or too slow",
                       file);
    case CURLE_RANGE_ERROR: /* it sent all, although asked for the rest */
        *status = 416;
        return ERR_OK;
    case CURLE_URL_MALFORMAT:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_COULDNT_RESOLVE_PROXY:
        return err_set(info, ERR_CONFIG, 0, "%s: %s", file, curl_easy_strerror(r));
    default: return err_set(info, ERR_IO, 0, "%s: %s", file, curl_easy_strerror(r));
    }
}

enum err fetch_head(struct fetch *f, const char *file, uint64_t since,
                    char out[CVD_HEADER], enum fetched *what, struct err_info *info)
{
    struct sink s = { .fd = -1, .head = out };
    long status = 0;

    if (!prepare(f, file, &s) ||
        curl_easy_setopt(f->curl, CURLOPT_RANGE, "0-511") != CURLE_OK ||
        curl_easy_setopt(f->curl, CURLOPT_TIMEOUT, (long)HEAD_S) != CURLE_OK ||
        (since > 0 && (curl_easy_setopt(f->curl, CURLOPT_TIMECONDITION,
                                        (long)CURL_TIMECOND_IFMODSINCE) != CURLE_OK ||
                       curl_easy_setopt(f->curl, CURLOPT_TIMEVALUE_LARGE,
                                        (curl_off_t)since) != CURLE_OK)))
        return err_set(info, ERR_CONFIG, 0, "the address of the source cannot be used");
    enum err e = perform(f, file, &s, &status, info);
    if (e != ERR_OK)
        return e;
    long unmet = 0;
    /* A source that ignores the condition has sent it all the same. */
    (void)curl_easy_getinfo(f->curl, CURLINFO_CONDITION_UNMET, &unmet);
    if (unmet && status / 100 == 2 && s.head_n < CVD_HEADER)
        status = 304;
    e = by_status(f, file, status, what, info);
    if (e == ERR_OK && *what == FETCHED && s.head_n < CVD_HEADER)
        return err_set(info, ERR_CORRUPT, 0, "%s: it has no header", file);
    return e;
}

static enum err finish(int fd, const char *part, const char *path, struct err_info *info)
{
    if (fsync(fd) != 0 || rename(part, path) != 0)
        return err_set(info, ERR_IO, errno, "store %s", path);
    return ERR_OK;
}

/* One request for what is missing of the part. */
static enum err fetch_rest(struct fetch *f, const char *file, struct sink *s,
                           long *status, struct err_info *info)
{
    struct stat st;

    if (fstat(s->fd, &st) != 0 || lseek(s->fd, 0, SEEK_END) < 0)
        return err_set(info, ERR_IO, errno, "read the part of %s", file);
    s->at = (uint64_t)st.st_size;
    if (s->at > s->max)
        return err_set(info, ERR_LIMIT, 0, "%s: it is longer than such a file may be",
                       file);
    if (!prepare(f, file, s) ||
        (s->at > 0 && curl_easy_setopt(f->curl, CURLOPT_RESUME_FROM_LARGE,
                                       (curl_off_t)s->at) != CURLE_OK))
        return err_set(info, ERR_CONFIG, 0, "the address of the source cannot be used");
    return perform(f, file, s, status, info);
}

enum err fetch_file(struct fetch *f, const char *file, const char *path,
                    uint64_t bytes_max, enum fetched *what, struct err_info *info)
{
    char part[PATH_MAX_BYTES];
    struct sink s = { .max = bytes_max };
    long status = 0;

    (void)snprintf(part, sizeof(part), "%s.part", path);
    s.fd = open(part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s.fd < 0)
        return err_set(info, ERR_IO, errno, "open %s", part);
    enum err e = fetch_rest(f, file, &s, &status, info);
    if (e == ERR_OK && status == 416 && s.at > 0) {
        /* The part is whole, of something else, or the source knows no ranges: anew. */
        e = ftruncate(s.fd, 0) == 0 ? fetch_rest(f, file, &s, &status, info)
                                    : err_set(info, ERR_IO, errno, "truncate %s", part);
    }
    if (e == ERR_OK)
        e = by_status(f, file, status, what, info);
    if (e == ERR_OK && *what == FETCHED)
        e = finish(s.fd, part, path, info);
    else if ((e == ERR_OK && *what == FETCH_ABSENT) || e == ERR_LIMIT || s.at == 0)
        (void)unlink(part); /* there is nothing to go on with */
    (void)close(s.fd);
    return e;
}
