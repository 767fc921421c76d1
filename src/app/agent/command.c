/* command: other programs, run by the worker, bounded in time and output. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/worker.h"

bool command_split(char *text, char *argv[COMMAND_WORDS_MAX + 1])
{
    size_t n = 0;
    char *save = NULL;

    for (char *word = strtok_r(text, " \t", &save); word;
         word = strtok_r(NULL, " \t", &save)) {
        if (n == COMMAND_WORDS_MAX)
            return false;
        argv[n++] = word;
    }
    argv[n] = NULL;
    return n > 0;
}

_Noreturn static void become(char *const *argv, int out)
{
    sigset_t none;

    (void)setpgid(0, 0);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0)
        (void)dup2(null, STDIN_FILENO);
    (void)dup2(out, STDOUT_FILENO);
    (void)dup2(out, STDERR_FILENO);
    (void)close_range(3, ~0u, 0);
    (void)execvp(argv[0], argv);
    _exit(127);
}

struct output {
    const struct command *c;
    size_t n;
};

static void keep(struct output *o, const char *bytes, size_t n)
{
    size_t room = o->c->size - 1 - o->n;

    if (n > room && !o->c->keep_head) {
        size_t drop = n - room < o->n ? n - room : o->n;

        memmove(o->c->out, o->c->out + drop, o->n - drop);
        o->n -= drop;
        room += drop;
    }
    if (n > room) {
        bytes += o->c->keep_head ? 0 : n - room;
        n = room;
    }
    memcpy(o->c->out + o->n, bytes, n);
    o->n += n;
    o->c->out[o->n] = '\0';
}

static bool has_ended(pid_t pid)
{
    siginfo_t info = { 0 };

    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == pid;
}

/* What is there to read; false at its end. */
static bool take_output(struct output *o, int from)
{
    char buf[4096];
    ssize_t n = read(from, buf, sizeof(buf));

    if (n > 0)
        keep(o, buf, (size_t)n);
    return n > 0;
}

/*
 * Until the program has ended, is cancelled, or the time is over.  The end of its output is
 * not waited for: it may leave a daemon behind that holds the pipe.
 */
static enum err gather(struct worker *w, struct output *o, int from, pid_t pid,
                       struct err_info *info)
{
    uint64_t end = worker_now_us() + o->c->limit_s * 1000000ull;
    bool open = true;

    for (;;) {
        struct pollfd p[2] = { { .fd = w->ended ? -1 : CHANNEL_FD, .events = POLLIN },
                               { .fd = open ? from : -1, .events = POLLIN } };

        if (w->cancelled || worker_now_us() >= end) {
            (void)kill(-pid, SIGKILL);
            return err_set(info, ERR_TIMEOUT, 0, "%s %s", o->c->argv[0],
                           w->cancelled ? "was cancelled" : "takes too long");
        }
        int n = poll(p, 2, 100);
        if (n > 0 && p[0].revents)
            worker_listen(w, 0);
        if (n > 0 && p[1].revents)
            open = take_output(o, from);
        else if (has_ended(pid))
            return ERR_OK;
    }
}

enum err command_run(struct worker *w, const struct command *c, int *code,
                     struct err_info *info)
{
    struct output o = { .c = c };
    int ends[2], status = 0;

    c->out[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) != 0)
        return err_set(info, ERR_IO, errno, "run %s", c->argv[0]);
    pid_t pid = fork();
    if (pid == 0)
        become(c->argv, ends[1]);
    (void)close(ends[1]);
    enum err e = pid < 0 ? err_set(info, ERR_IO, errno, "run %s", c->argv[0])
                         : gather(w, &o, ends[0], pid, info);
    (void)close(ends[0]);
    if (pid > 0) {
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        *code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (e == ERR_OK && *code == 127)
            e = err_set(info, ERR_NOT_FOUND, 0, "%s cannot be run", c->argv[0]);
    }
    return e;
}
