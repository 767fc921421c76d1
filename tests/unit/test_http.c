/* The HTTP server in an sd-event loop, asked by our own client in a child process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/http/http_client.h"
#include "sys/http/http_server.h"

static char folder[] = "/tmp/redoubt-http-XXXXXX";
static char path[64];

/* Answered 50 ms after it was asked, or never. */
static struct {
    struct http_server *server;
    void *call;
    sd_event_source *timer;
} waits;

static int on_later(sd_event_source *src, uint64_t us, void *arg)
{
    struct http_reply r = { 0 };

    (void)src;
    (void)us;
    (void)arg;
    http_reply_header(&r, "ETag", "\"v7\"");
    http_reply_text(&r, 201, NULL, STR("later"));
    http_answer(waits.server, waits.call, &r);
    return 0;
}

static bool add_argument(void *arg, struct str name, struct str value)
{
    text_add(arg, "%.*s(%zu)=%.*s(%zu) ", (int)name.n, name.p, name.n, (int)value.n,
             value.p, value.n);
    return true;
}

static bool special(const struct http_request *req, struct http_reply *out)
{
    char buf[512], pieces_buf[128];
    const char *pieces[4], *word = http_header(req, "X-Word");
    struct text t;

    text_init(&t, buf, sizeof(buf));
    if (strcmp(req->path, "/later") == 0 || strcmp(req->path, "/never") == 0) {
        out->later = true;
        waits.call = req->call;
        if (req->path[1] == 'l')
            assert_true(sd_event_source_set_enabled(waits.timer, SD_EVENT_ONESHOT) >= 0 &&
                        sd_event_source_set_time_relative(waits.timer, 50000) >= 0);
        return true;
    }
    if (strcmp(req->path, "/now") == 0) { /* answered before the handler returns */
        struct http_reply r = { 0 };

        out->later = true;
        http_reply_text(&r, 200, NULL, STR("now"));
        http_answer(waits.server, req->call, &r);
        return true;
    }
    if (strncmp(req->target, "/split", 6) != 0)
        return false;
    size_t n =
        http_path_split(req->target, pieces_buf, sizeof(pieces_buf), pieces, LEN(pieces));
    for (size_t i = 0; i < n; i++)
        text_add(&t, "[%s]", pieces[i]);
    http_arguments(req, add_argument, &t);
    text_add(&t, "word=%s address=%s", word ? word : "-", req->address);
    http_reply_text(out, 200, NULL, (struct str){ buf, t.n });
    return true;
}

static size_t body_max(void *arg, const struct http_request *req)
{
    (void)arg;
    return strcmp(req->path, "/short") == 0 ? 10 : 1024 * 1024;
}

static void handle(void *arg, const struct http_request *req, struct http_reply *out)
{
    if (special(req, out))
        return;
    char buf[512];
    struct text t;
    const char *limit = http_argument(req, "limit");

    text_init(&t, buf, sizeof(buf));
    if (strcmp(req->path, "/bad") == 0) {
        http_reply_error(
            out, 409,
            &(struct http_error){ "peer_not_ready", "Not \"now\"", "a\nb", NULL });
        return;
    }
    if (strcmp(req->path, "/silent") == 0)
        return; /* stays 500 */
    text_add(&t, "%s %s limit=%s body=%.*s known=%d uid=%d pid=%d arg=%d", req->method,
             req->path, limit ? limit : "-", (int)(req->body.n < 64 ? req->body.n : 64),
             req->body.n ? req->body.p : "", req->peer_known, (int)req->uid,
             req->pid == *(pid_t *)arg, 1);
    http_reply_text(out, 200, "text/plain", (struct str){ buf, t.n });
}

static int on_child(sd_event_source *s, const siginfo_t *si, void *arg)
{
    *(int *)arg = si->si_status;
    return sd_event_exit(sd_event_source_get_event(s), 0);
}

/* Serves until the child, which runs `client`, has ended; its exit status. */
static int serve_with(int (*client)(void),
                      size_t (*limit)(void *arg, const struct http_request *))
{
    struct http_server_options o = { .unix_path = path,
                                     .body_max = limit,
                                     .unix_group = getgrgid(getgid())->gr_name,
                                     .handle = handle };
    struct http_server *s = NULL, *second = NULL;
    struct err_info info;
    sigset_t chld;
    int status = -1;
    pid_t pid = 0;

    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    assert_int_equal(sigprocmask(SIG_BLOCK, &chld, NULL), 0);
    assert_true(sd_event_new(&o.loop) >= 0);
    o.arg = &pid;
    assert_int_equal(http_server_new(&o, &s, &info), ERR_OK);
    assert_int_equal(http_server_new(&o, &second, &info), ERR_EXISTS);
    waits.server = s;
    assert_true(sd_event_add_time_relative(o.loop, &waits.timer, CLOCK_BOOTTIME, 0, 0,
                                           on_later, NULL) >= 0);
    assert_true(sd_event_source_set_enabled(waits.timer, SD_EVENT_OFF) >= 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60);
        _exit(client());
    }
    assert_true(sd_event_add_child(o.loop, NULL, pid, WEXITED, on_child, &status) >= 0);
    assert_int_equal(sd_event_loop(o.loop), 0);
    http_server_free(s);
    waits.timer = sd_event_source_disable_unref(waits.timer);
    sd_event_unref(o.loop);
    assert_int_equal(access(path, F_OK), -1);
    return status;
}

static int serve(int (*client)(void))
{
    return serve_with(client, NULL);
}

static unsigned ask(const char *method, const char *where, const char *body,
                    struct http_answer *a)
{
    struct http_call call = { .unix_path = path,
                              .method = method,
                              .path = where,
                              .body = body,
                              .timeout_ms = 15000 };
    struct err_info info;

    return http_call(&call, a, &info) == ERR_OK ? a->status : 0;
}

#define WANT(expr)                                                                       \
    do {                                                                                 \
        if (!(expr))                                                                     \
            return __LINE__ % 250 + 1;                                                   \
    } while (0)

static int plain_client(void)
{
    struct http_answer a;
    char want[128];
    struct stat st;

    WANT(stat(path, &st) == 0 && (st.st_mode & 0777) == 0660);
    WANT(ask("GET", "/v1/history?limit=5", NULL, &a) == 200);
    (void)snprintf(want, sizeof(want),
                   "GET /v1/history limit=5 body= known=1 uid=%d pid=1 arg=1",
                   (int)getuid());
    WANT(strcmp(a.body, want) == 0);
    http_answer_release(&a);
    WANT(ask("POST", "/v1/pause", "{\"on\":true}", &a) == 200);
    WANT(strstr(a.body, "POST /v1/pause limit=- body={\"on\":true} ") == a.body);
    http_answer_release(&a);
    WANT(ask("POST", "/v1/resume", NULL, &a) == 200);
    http_answer_release(&a);
    WANT(ask("GET", "/bad", NULL, &a) == 409);
    WANT(strcmp(a.body,
                "{\"error\":{\"id\":\"peer_not_ready\",\"title\":\"Not \\\"now\\\"\""
                ",\"text\":\"a\\u000ab\",\"suggestion\":\"\"}}\n") == 0);
    http_answer_release(&a);
    WANT(ask("GET", "/silent", NULL, &a) == 500 && a.body[0] == '\0');
    http_answer_release(&a);
    return 0;
}

static int long_client(void)
{
    static char body[HTTP_BODY_MAX + 2];
    struct http_answer a;

    memset(body, 'x', HTTP_BODY_MAX);
    WANT(ask("POST", "/v1/pause", body, &a) == 200);
    http_answer_release(&a);
    body[HTTP_BODY_MAX] = 'x';
    WANT(ask("POST", "/v1/pause", body, &a) == 413);
    WANT(strstr(a.body, "too_long") != NULL);
    http_answer_release(&a);
    /* The server is still fine. */
    WANT(ask("GET", "/v1/status", NULL, &a) == 200);
    http_answer_release(&a);
    return 0;
}

/* What comes back for these bytes, up to the end of the connection. */
static ssize_t raw(const char *request, char *buf, size_t size)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ssize_t n = 0, got;

    if (!str_copy(at.sun_path, sizeof(at.sun_path), str_of(path)) ||
        connect(fd, (struct sockaddr *)&at, sizeof(at)) != 0 ||
        send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request))
        n = -1;
    while (n >= 0 && (got = recv(fd, buf + n, size - 1 - (size_t)n, 0)) > 0)
        n += got;
    buf[n > 0 ? n : 0] = '\0';
    close(fd);
    return n;
}

static int later_client(void)
{
    struct http_answer a;
    char buf[4096];

    WANT(ask("GET", "/later", NULL, &a) == 201 && strcmp(a.body, "later") == 0);
    http_answer_release(&a);
    WANT(ask("POST", "/now", "{}", &a) == 200 && strcmp(a.body, "now") == 0);
    http_answer_release(&a);
    WANT(raw("GET /later HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", buf,
             sizeof(buf)) > 0);
    WANT(strstr(buf, "ETag: \"v7\"\r\n"));
    struct http_call call = {
        .unix_path = path, .method = "GET", .path = "/never", .timeout_ms = 200
    };
    struct err_info info;
    WANT(http_call(&call, &a, &info) == ERR_TIMEOUT); /* freed with the server */
    http_answer_release(&a);
    return 0;
}

static int split_client(void)
{
    char buf[4096];

    WANT(raw("GET /split/a%2Fb/%c3%bc?x=1%262+3&&y&n=%00z HTTP/1.1\r\nHost: x\r\nx-word: "
             "yes\r\nConnection: close\r\n\r\n",
             buf, sizeof(buf)) > 0);
    WANT(strstr(buf, "[split][a/b][\xc3\xbc]x(1)=1&2 3(5) "));
    WANT(strstr(buf, "y(1)=(0) n(1)="));
    WANT(strstr(buf, "word=yes address="));
    return 0;
}

static int limit_client(void)
{
    static char body[1024 * 1024 + 2];
    struct http_answer a;
    char buf[4096];

    memset(body, 'x', sizeof(body) - 2);
    WANT(ask("POST", "/long", body, &a) == 200);
    http_answer_release(&a);
    body[sizeof(body) - 2] = 'x';
    WANT(ask("POST", "/long", body, &a) == 413 && strstr(a.body, "1024 KiB"));
    http_answer_release(&a);
    /* Refused by its head alone: the body never comes. */
    WANT(raw("POST /short HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n", buf,
             sizeof(buf)) > 0);
    WANT(strncmp(buf, "HTTP/1.1 413 ", 13) == 0);
    /* Without a length it is refused when it has grown too long. */
    WANT(raw("POST /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
             "Transfer-Encoding: chunked\r\n\r\nb\r\n12345678901\r\n0\r\n\r\n",
             buf, sizeof(buf)) > 0);
    WANT(strncmp(buf, "HTTP/1.1 413 ", 13) == 0);
    return 0;
}

static void an_answer_may_come_later(void **state)
{
    (void)state;
    assert_int_equal(serve(later_client), 0);
}

static void path_query_and_headers_are_decoded(void **state)
{
    (void)state;
    assert_int_equal(serve(split_client), 0);
}

static void a_route_has_its_own_limit(void **state)
{
    (void)state;
    assert_int_equal(serve_with(limit_client, body_max), 0);
}

/* A server that refuses what it is asked by its head; true: nothing came behind the head. */
static bool refuse(int listening)
{
    static const char answer[] = "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n";
    char head[4096] = "";
    size_t n = 0;
    int fd = accept(listening, NULL, NULL);

    while (fd >= 0 && n < sizeof(head) - 1 && !strstr(head, "\r\n\r\n")) {
        ssize_t got = recv(fd, head + n, sizeof(head) - 1 - n, 0);

        if (got <= 0)
            return false;
        n += (size_t)got;
    }
    struct pollfd more = { .fd = fd, .events = POLLIN };
    return strstr(head, "\r\n\r\n") == head + n - 4 && poll(&more, 1, 200) == 0 &&
           send(fd, answer, sizeof(answer) - 1, MSG_NOSIGNAL) > 0 && close(fd) == 0;
}

static void a_long_body_waits_until_it_is_asked_for(void **state)
{
    static char body[64 * 1024];
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), status = -1;
    struct http_answer a;

    (void)state;
    memset(body, 'x', sizeof(body) - 1);
    assert_true(str_copy(at.sun_path, sizeof(at.sun_path), str_of(path)));
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(fd, 1), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(refuse(fd) ? 0 : 1);
    assert_int_equal(ask("POST", "/", body, &a), 413);
    http_answer_release(&a);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(close(fd) + unlink(path), 0);
}

static void paths_are_split_as_sent(void **state)
{
    static const struct {
        const char *target;
        size_t count;
        const char *last;
    } rows[] = {
        { "/v1", 1, "v1" },
        { "/v1?a=/b/c", 1, "v1" },
        { "/v1/groups/%2fServers%2FLinux/policy", 4, "policy" },
        { "/a/b/c/%41%42", 4, "AB" },
        { "/a/b/c/d/e", 0, NULL }, /* too many */
        { "/", 0, NULL },
        { "/a/", 0, NULL },
        { "//a", 0, NULL },
        { "", 0, NULL },
        { "*", 0, NULL },
        { "/a%00b", 0, NULL },
        { "/a%", 0, NULL },
        { "/a%2", 0, NULL },
        { "/a%2g", 0, NULL },
        { "/a%%41", 0, NULL },
        { "/0123456789012345678901234567890123456789", 0, NULL }, /* longer than buf */
    };
    const char *pieces[4];
    char buf[40];

    (void)state;
    for (size_t i = 0; i < LEN(rows); i++) {
        size_t n = http_path_split(rows[i].target, buf, sizeof(buf), pieces, LEN(pieces));

        assert_int_equal(n, rows[i].count);
        if (n > 0)
            assert_string_equal(pieces[n - 1], rows[i].last);
    }
}

static void requests_and_answers_pass(void **state)
{
    (void)state;
    assert_int_equal(serve(plain_client), 0);
}

static void a_long_body_is_refused(void **state)
{
    (void)state;
    assert_int_equal(serve(long_client), 0);
}

static void no_daemon_is_told_apart(void **state)
{
    (void)state;
    struct http_call call = {
        .unix_path = path, .method = "GET", .path = "/v1/status", .timeout_ms = 1000
    };
    struct http_answer a;
    struct err_info info;

    assert_int_equal(http_call(&call, &a, &info), ERR_NOT_FOUND);
    http_answer_release(&a);
    FILE *f = fopen(path, "w"); /* a file that nobody listens on */

    assert_non_null(f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(http_call(&call, &a, &info), ERR_CLOSED);
    assert_non_null(strstr(info.what, "nobody listens"));
    http_answer_release(&a);
    assert_int_equal(unlink(path), 0);
}

static void tcp_needs_a_number(void **state)
{
    (void)state;
    struct http_server_options o = { .tcp_host = "example", .tcp_port = 80 };
    struct http_server *s = NULL;
    struct err_info info;

    assert_true(sd_event_new(&o.loop) >= 0);
    assert_int_equal(http_server_new(&o, &s, &info), ERR_INVALID);
    assert_non_null(strstr(info.what, "example"));
    o.tcp_host = "127.0.0.1";
    o.tcp_port = 0; /* any */
    o.handle = handle;
    assert_int_equal(http_server_new(&o, &s, &info), ERR_OK);
    http_server_free(s);
    sd_event_unref(o.loop);
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    return snprintf(path, sizeof(path), "%s/sock", folder) > 0 ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_and_answers_pass),
        cmocka_unit_test(a_long_body_is_refused),
        cmocka_unit_test(an_answer_may_come_later),
        cmocka_unit_test(path_query_and_headers_are_decoded),
        cmocka_unit_test(a_route_has_its_own_limit),
        cmocka_unit_test(a_long_body_waits_until_it_is_asked_for),
        cmocka_unit_test(paths_are_split_as_sent),
        cmocka_unit_test(no_daemon_is_told_apart),
        cmocka_unit_test(tcp_needs_a_number),
    };

    return cmocka_run_group_tests_name("http", tests, make_folder, remove_folder);
}
