#include "sys/http/http_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

enum { LONG_BODY = 16 * 1024 };

struct sink {
    struct http_answer *answer;
    bool too_long;
};

static size_t on_data(char *data, size_t one, size_t n, void *arg)
{
    struct sink *sink = arg;
    struct http_answer *a = sink->answer;

    (void)one; /* always 1 */
    if (n > HTTP_ANSWER_MAX - a->body_bytes) {
        sink->too_long = true;
        return 0;
    }
    char *grown = realloc(a->body, a->body_bytes + n + 1);

    if (!grown)
        return 0;
    a->body = grown;
    memcpy(a->body + a->body_bytes, data, n);
    a->body_bytes += n;
    a->body[a->body_bytes] = '\0';
    return n;
}

/* libcurl says only "could not connect"; the file tells why. */
static enum err why_not_connected(const char *path, struct err_info *info)
{
    struct stat st;

    if (stat(path, &st) != 0)
        return err_set(info, errno == EACCES ? ERR_DENIED : ERR_NOT_FOUND, errno, "%s",
                       path);
    if (access(path, W_OK) != 0)
        return err_set(info, ERR_DENIED, errno, "%s", path);
    return err_set(info, ERR_CLOSED, 0, "%s: nobody listens there", path);
}

static size_t on_header(char *data, size_t one, size_t n, void *arg)
{
    static const char name[] = "etag:";
    struct http_answer *a = arg;
    struct str v = { data, n };

    (void)one; /* always 1 */
    if (n < sizeof(name) || strncasecmp(data, name, sizeof(name) - 1) != 0)
        return n;
    v.p += sizeof(name) - 1;
    v.n -= sizeof(name) - 1;
    while (v.n > 0 && (v.p[0] == ' ' || v.p[0] == '\t')) {
        v.p++;
        v.n--;
    }
    while (v.n > 0 && (unsigned char)v.p[v.n - 1] <= ' ')
        v.n--;
    if (!str_copy(a->etag, sizeof(a->etag), v))
        a->etag[0] = '\0'; /* not one of ours */
    return n;
}

/* Why nothing was sent. */
static enum err not_connected(CURLcode c, const struct http_call *call,
                              struct err_info *info)
{
    if (call->unix_path)
        return why_not_connected(call->unix_path, info);
    if (c == CURLE_COULDNT_RESOLVE_HOST)
        return err_set(info, ERR_NOT_FOUND, 0, "%s: the name is not known", call->server);
    if (c == CURLE_PEER_FAILED_VERIFICATION)
        return err_set(info, ERR_FOREIGN, 0,
                       "%s: its certificate does not verify with %s", call->server,
                       call->ca_file ? call->ca_file : "the system's CAs");
    if (c == CURLE_SSL_CACERT_BADFILE)
        return err_set(info, ERR_CONFIG, 0, "%s holds no CA certificate", call->ca_file);
    return err_set(info, ERR_CLOSED, 0, "%s: %s", call->server, curl_easy_strerror(c));
}

static enum err perform(CURL *curl, const struct http_call *call, struct sink *sink,
                        struct err_info *info)
{
    CURLcode c = curl_easy_perform(curl);
    long status = 0;

    if (c == CURLE_COULDNT_CONNECT || c == CURLE_COULDNT_RESOLVE_HOST ||
        c == CURLE_PEER_FAILED_VERIFICATION || c == CURLE_SSL_CACERT_BADFILE ||
        c == CURLE_SSL_CONNECT_ERROR)
        return not_connected(c, call, info);
    sink->answer->sent = true;
    if (c == CURLE_OPERATION_TIMEDOUT)
        return err_set(info, ERR_TIMEOUT, 0, "%s %s: no answer within %u ms",
                       call->method, call->path, call->timeout_ms);
    if (c != CURLE_OK)
        return err_set(info, sink->too_long ? ERR_LIMIT : ERR_CLOSED, 0, "%s %s: %s",
                       call->method, call->path, curl_easy_strerror(c));
    if (curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status) != CURLE_OK)
        return err_set(info, ERR_IO, 0, "no status");
    sink->answer->status = (unsigned)status;
    return ERR_OK;
}

static bool set_options(CURL *curl, const struct http_call *call, const char *url,
                        struct curl_slist *headers)
{
    bool ok = true;

    ok &= curl_easy_setopt(curl, CURLOPT_URL, url) == CURLE_OK;
    if (call->unix_path)
        ok &=
            curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, call->unix_path) == CURLE_OK;
    else
        ok &= curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) ==
              CURLE_OK;
    if (call->unverified) {
        ok &= curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L) == CURLE_OK;
        ok &= curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L) == CURLE_OK;
    }
    if (call->ca_file)
        ok &= curl_easy_setopt(curl, CURLOPT_CAINFO, call->ca_file) == CURLE_OK;
    if (call->certificate && call->key) {
        ok &= curl_easy_setopt(curl, CURLOPT_SSLCERT, call->certificate) == CURLE_OK;
        ok &= curl_easy_setopt(curl, CURLOPT_SSLKEY, call->key) == CURLE_OK;
    }
    ok &= curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, 5000L) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)call->timeout_ms) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_EXPECT_100_TIMEOUT_MS,
                           (long)call->timeout_ms / 2) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_PROXY, "") == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data) == CURLE_OK;
    ok &= curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers) == CURLE_OK;
    if (strcmp(call->method, "GET") != 0) {
        const char *body = call->body ? call->body : "";

        ok &=
            curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(body)) == CURLE_OK;
        ok &= curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body) == CURLE_OK;
        ok &= curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, call->method) == CURLE_OK;
    }
    return ok;
}

/*
 * A long body is sent when the server has asked for it: one that refuses it by its head closes
 * the connection, and its answer would be lost among what is still being sent.  For a short one
 * that would only cost a round trip.
 */
static const char *expectation(const struct http_call *call)
{
    return call->body && strlen(call->body) > LONG_BODY ? "Expect: 100-continue"
                                                        : "Expect:";
}

enum err http_call(const struct http_call *call, struct http_answer *out,
                   struct err_info *info)
{
    struct sink sink = { .answer = out };
    char url[HTTP_PATH_MAX + 300];
    enum err e;

    *out = (struct http_answer){ .body = calloc(1, 1) };
    int n = call->unix_path
                ? snprintf(url, sizeof(url), "http://redoubt%s", call->path)
                : snprintf(url, sizeof(url), "https://%s%s", call->server, call->path);

    if (n < 0 || (size_t)n >= sizeof(url))
        return err_set(info, ERR_LIMIT, 0, "the path is too long");
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = curl_slist_append(NULL, expectation(call));

    for (size_t i = 0; headers && call->headers && call->headers[i]; i++) {
        struct curl_slist *more = curl_slist_append(headers, call->headers[i]);

        if (!more)
            curl_slist_free_all(headers);
        headers = more;
    }
    if (!curl || !headers || !out->body || !set_options(curl, call, url, headers) ||
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &sink) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_HEADERDATA, out) != CURLE_OK)
        e = err_set(info, ERR_MEMORY, 0, "prepare the request");
    else
        e = perform(curl, call, &sink, info);
    curl_slist_free_all(headers);
    if (curl)
        curl_easy_cleanup(curl);
    return e;
}

void http_answer_release(struct http_answer *a)
{
    free(a->body);
    *a = (struct http_answer){ 0 };
}
