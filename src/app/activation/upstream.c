#include "app/activation/upstream.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <sys/epoll.h>

struct upstream {
    struct upstream_options o;
    CURLM *multi;
    CURL *easy; /* NULL: nothing is under way */
    struct curl_slist *headers;
    sd_event_source *timer;
    char url[1024 + 16];
    char error[CURL_ERROR_SIZE];
    char *body; /* of the request */
    size_t n;
    bool too_long;
    char answer[UPSTREAM_ANSWER_MAX];
};

static size_t on_data(char *data, size_t one, size_t n, void *arg)
{
    struct upstream *u = arg;

    (void)one; /* always 1 */
    if (n > sizeof(u->answer) - u->n) {
        u->too_long = true;
        return 0;
    }
    memcpy(u->answer + u->n, data, n);
    u->n += n;
    return n;
}

/* --- the end of a request ---------------------------------------------------------- */

static void drop(struct upstream *u)
{
    if (u->easy) {
        (void)curl_multi_remove_handle(u->multi, u->easy);
        curl_easy_cleanup(u->easy);
    }
    u->easy = NULL;
    free(u->body);
    u->body = NULL;
}

static void finish(struct upstream *u, CURLcode code)
{
    struct upstream_answer a = { .body = { u->answer, u->n }, .why = "" };
    curl_off_t after = 0;
    long status = 0;

    if (code == CURLE_OK)
        (void)curl_easy_getinfo(u->easy, CURLINFO_RESPONSE_CODE, &status);
    if (code == CURLE_OK)
        (void)curl_easy_getinfo(u->easy, CURLINFO_RETRY_AFTER, &after);
    a.status = (unsigned)status;
    if (after > 0)
        a.retry_after_s =
            after < UPSTREAM_RETRY_MAX_S ? (uint32_t)after : UPSTREAM_RETRY_MAX_S;
    if (u->too_long)
        a.why = "the answer is too long";
    else if (code != CURLE_OK)
        a.why = u->error[0] ? u->error : curl_easy_strerror(code);
    drop(u);
    u->o.done(u->o.arg, &a);
}

static void look(struct upstream *u)
{
    CURLMsg *m;
    int left;

    while ((m = curl_multi_info_read(u->multi, &left))) {
        if (m->msg != CURLMSG_DONE || m->easy_handle != u->easy)
            continue;
        finish(u, m->data.result);
        return; /* the handle, and with it its messages, is gone */
    }
}

/* --- the loop ------------------------------------------------------------------------ */

static int on_socket(sd_event_source *s, int fd, uint32_t events, void *arg)
{
    struct upstream *u = arg;
    int running, what = 0;

    (void)s;
    what |= events & EPOLLIN ? CURL_CSELECT_IN : 0;
    what |= events & EPOLLOUT ? CURL_CSELECT_OUT : 0;
    what |= events & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0;
    (void)curl_multi_socket_action(u->multi, fd, what, &running);
    look(u);
    return 0;
}

static int on_timer(sd_event_source *s, uint64_t us, void *arg)
{
    struct upstream *u = arg;
    int running;

    (void)s, (void)us;
    (void)curl_multi_socket_action(u->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    look(u);
    return 0;
}

/* libcurl's wish: which events of a descriptor it wants to hear of. */
static int want_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *own)
{
    static const uint32_t events[] = { [CURL_POLL_IN] = EPOLLIN,
                                       [CURL_POLL_OUT] = EPOLLOUT,
                                       [CURL_POLL_INOUT] = EPOLLIN | EPOLLOUT };
    struct upstream *u = arg;
    sd_event_source *s = own;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        sd_event_source_disable_unref(s);
        return 0;
    }
    if (what < CURL_POLL_IN || what > CURL_POLL_INOUT)
        return 0;
    if (s)
        return sd_event_source_set_io_events(s, events[what]) < 0 ? -1 : 0;
    if (sd_event_add_io(u->o.loop, &s, fd, events[what], on_socket, u) < 0)
        return -1;
    return curl_multi_assign(u->multi, fd, s) == CURLM_OK ? 0 : -1;
}

static int want_timer(CURLM *multi, long ms, void *arg)
{
    struct upstream *u = arg;

    (void)multi;
    if (ms < 0)
        return sd_event_source_set_enabled(u->timer, SD_EVENT_OFF) < 0 ? -1 : 0;
    (void)sd_event_source_set_time_relative(u->timer, (uint64_t)ms * 1000u);
    return sd_event_source_set_enabled(u->timer, SD_EVENT_ONESHOT) < 0 ? -1 : 0;
}

/* --- requests ------------------------------------------------------------------------ */

bool upstream_busy(const struct upstream *u)
{
    return u->easy != NULL;
}

static bool set_options(struct upstream *u)
{
    CURL *c = u->easy;
    bool ok = true;

    ok &= curl_easy_setopt(c, CURLOPT_URL, u->url) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "https") == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) ==
          CURLE_OK;
    if (u->o.ca_file[0])
        ok &= curl_easy_setopt(c, CURLOPT_CAINFO, u->o.ca_file) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_PROXY, u->o.proxy) == CURLE_OK; /* "": none */
    ok &= curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
    /* Else the loop waits for the thread that looks a name up, when it is given up. */
    ok &= curl_easy_setopt(c, CURLOPT_QUICK_EXIT, 1L) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)u->o.timeout_ms) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_ERRORBUFFER, u->error) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_HTTPHEADER, u->headers) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_WRITEDATA, u) == CURLE_OK;
    ok &= curl_easy_setopt(c, CURLOPT_POSTFIELDS, u->body) == CURLE_OK;
    return ok;
}

enum err upstream_post(struct upstream *u, const char *body, struct err_info *info)
{
    CHECK(!u->easy);
    u->n = 0;
    u->too_long = false;
    u->error[0] = '\0';
    u->body = strdup(body);
    u->easy = curl_easy_init();
    if (!u->body || !u->easy || !set_options(u) ||
        curl_multi_add_handle(u->multi, u->easy) != CURLM_OK) {
        drop(u);
        return err_set(info, ERR_MEMORY, 0, "libcurl does not take the request");
    }
    return ERR_OK;
}

void upstream_cancel(struct upstream *u)
{
    drop(u);
}

/* --- life ------------------------------------------------------------------------------ */

static bool prepare(struct upstream *u)
{
    CURLM *m = u->multi;

    u->headers = curl_slist_append(NULL, "Content-Type: application/json");
    return u->headers &&
           curl_multi_setopt(m, CURLMOPT_SOCKETFUNCTION, want_socket) == CURLM_OK &&
           curl_multi_setopt(m, CURLMOPT_SOCKETDATA, u) == CURLM_OK &&
           curl_multi_setopt(m, CURLMOPT_TIMERFUNCTION, want_timer) == CURLM_OK &&
           curl_multi_setopt(m, CURLMOPT_TIMERDATA, u) == CURLM_OK;
}

enum err upstream_new(struct upstream **out, const struct upstream_options *o,
                      struct err_info *info)
{
    struct upstream *u = calloc(1, sizeof(*u));
    size_t n = strlen(o->url);

    if (!u || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(u);
        return err_set(info, ERR_MEMORY, 0, "libcurl does not work on this machine");
    }
    u->o = *o;
    while (n > 0 && o->url[n - 1] == '/')
        n--;
    (void)snprintf(u->url, sizeof(u->url), "%.*s/v1/activate", (int)n, o->url);
    u->multi = curl_multi_init();
    if (!u->multi ||
        sd_event_add_time_relative(o->loop, &u->timer, CLOCK_BOOTTIME, 0, 1000, on_timer,
                                   u) < 0 ||
        sd_event_source_set_enabled(u->timer, SD_EVENT_OFF) < 0 || !prepare(u)) {
        upstream_free(u);
        return err_set(info, ERR_MEMORY, 0, "libcurl in the event loop");
    }
    *out = u;
    return ERR_OK;
}

void upstream_free(struct upstream *u)
{
    if (!u)
        return;
    drop(u);
    if (u->multi)
        (void)curl_multi_cleanup(u->multi); /* takes its sockets out of the loop */
    curl_slist_free_all(u->headers);
    u->timer = sd_event_source_disable_unref(u->timer);
    curl_global_cleanup();
    free(u);
}
