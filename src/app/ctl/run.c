#include "app/ctl/run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUT, ERRORS, PIPES, LAST_WORDS = 4096 };

static void child(const char *const argv[], int pipes[PIPES][2])
{
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (nothing < 0 || dup2(nothing, STDIN_FILENO) < 0 ||
        dup2(pipes[OUT][1], STDOUT_FILENO) < 0 ||
        dup2(pipes[ERRORS][1], STDERR_FILENO) < 0)
        _exit(127);
    (void)execvp(argv[0], (char *const *)(uintptr_t)argv);
    (void)dprintf(STDERR_FILENO, "%s\n", strerror(errno));
    _exit(127);
}

/* Both pipes until both are closed; what does not fit is read and dropped. */
static void read_all(int pipes[PIPES][2], struct text *out, struct text *words)
{
    struct pollfd p[PIPES] = { { .fd = pipes[OUT][0], .events = POLLIN },
                               { .fd = pipes[ERRORS][0], .events = POLLIN } };
    char buf[4096];

    while (p[OUT].fd >= 0 || p[ERRORS].fd >= 0) {
        if (poll(p, PIPES, -1) < 0 && errno != EINTR)
            return;
        for (int i = 0; i < PIPES; i++) {
            if (p[i].fd < 0 || !p[i].revents)
                continue;
            ssize_t n = read(p[i].fd, buf, sizeof(buf));
            struct text *to = i == OUT ? out : words;

            if (n <= 0)
                p[i].fd = -1;
            else if (to)
                text_bytes(to, (struct str){ buf, (size_t)n });
        }
    }
}

/* The last line that says something. */
static const char *last_line(char *text)
{
    size_t n = strlen(text);

    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
        text[--n] = '\0';
    const char *line = strrchr(text, '\n');
    return line ? line + 1 : text;
}

static void close_all(int pipes[PIPES][2], int end)
{
    for (int i = 0; i < PIPES; i++)
        if (pipes[i][end] >= 0)
            (void)close(pipes[i][end]);
}

enum err run_program(const char *const argv[], struct text *out, struct err_info *info)
{
    int pipes[PIPES][2] = { { -1, -1 }, { -1, -1 } }, status = 0;
    char words[LAST_WORDS];
    struct text t;
    pid_t pid = -1;

    if (pipe2(pipes[OUT], O_CLOEXEC) == 0 && pipe2(pipes[ERRORS], O_CLOEXEC) == 0)
        pid = fork();
    if (pid == 0)
        child(argv, pipes);
    enum err e = pid < 0 ? err_set(info, ERR_IO, errno, "start %s", argv[0]) : ERR_OK;
    close_all(pipes, 1);
    text_init(&t, words, sizeof(words));
    if (e == ERR_OK) {
        read_all(pipes, out, &t);
        if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
            WEXITSTATUS(status) != 0)
            e = err_set(info, ERR_IO, 0, "%.60s: %.180s", argv[0],
                        words[0] ? last_line(words) : "it failed without a word");
    }
    close_all(pipes, 0);
    return e;
}
