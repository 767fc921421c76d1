/* The HTTP server in an sd-event loop, asked by our own client in a child process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <grp.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/http/http_client.h"
#include "sys/http/http_server.h"

static char folder[] = "/tmp/redoubt-http-XXXXXX";
static char path[64];

static void handle(void *arg, const struct http_request *req, struct http_reply *out)
{
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
static int serve(int (*client)(void))
{
    struct http_server_options o = { .unix_path = path,
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
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(20);
        _exit(client());
    }
    assert_true(sd_event_add_child(o.loop, NULL, pid, WEXITED, on_child, &status) >= 0);
    assert_int_equal(sd_event_loop(o.loop), 0);
    http_server_free(s);
    sd_event_unref(o.loop);
    assert_int_equal(access(path, F_OK), -1);
    return status;
}

static unsigned ask(const char *method, const char *where, const char *body,
                    struct http_answer *a)
{
    struct http_call call = { path, method, where, body, 3000 };
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
    struct http_call call = { path, "GET", "/v1/status", NULL, 1000 };
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
        cmocka_unit_test(no_daemon_is_told_apart),
        cmocka_unit_test(tcp_needs_a_number),
    };

    return cmocka_run_group_tests_name("http", tests, make_folder, remove_folder);
}
