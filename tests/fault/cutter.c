#include "cutter.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"

enum {
    MESSAGE_MAX = 1 << 20,
    SMB_COMMAND = 4 + 12, /* behind the transport's 4 bytes */
    SMB_DISPOSITION = 4 + 64 + 36,
    COMMAND_CREATE = 5,
    COMMAND_WRITE = 9,
    FILE_CREATE = 2,
};

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){ .sin_family = AF_INET,
                                 .sin_port = htons(port),
                                 .sin_addr = { htonl(INADDR_LOOPBACK) } };
}

static bool move(int from, int to, unsigned char *buf, size_t n)
{
    return recv(from, buf, n, MSG_WAITALL) == (ssize_t)n &&
           (to < 0 || send(to, buf, n, MSG_NOSIGNAL) == (ssize_t)n);
}

/* Reads one whole message; its length with the transport's head, or 0. */
static size_t message(int from, unsigned char *buf)
{
    if (!move(from, -1, buf, 4))
        return 0;
    size_t n = (size_t)buf[1] << 16 | (size_t)buf[2] << 8 | buf[3];
    return n <= MESSAGE_MAX - 4 && move(from, -1, buf + 4, n) ? n + 4 : 0;
}

static bool meant(const unsigned char *m, size_t n, enum cut cut)
{
    if (n < SMB_DISPOSITION + 4)
        return false;
    if (cut == CUT_CREATE_ANSWER)
        return m[SMB_COMMAND] == COMMAND_CREATE && m[SMB_DISPOSITION] == FILE_CREATE;
    return cut != CUT_NOTHING && m[SMB_COMMAND] == COMMAND_WRITE;
}

/* One connection, until an end of it or the cut; true if the cut was made. */
static bool forward(int client, int server, const enum cut *cut)
{
    static unsigned char buf[MESSAGE_MAX];
    struct pollfd p[2] = { { .fd = client, .events = POLLIN },
                           { .fd = server, .events = POLLIN } };

    for (;;) {
        if (poll(p, 2, -1) < 0)
            return false;
        int from = p[0].revents ? client : server;
        size_t n = message(from, buf);
        bool now = from == client && meant(buf, n, *cut);

        if (n == 0 || (now && (*cut == CUT_WRITE || *cut == CUT_WRITE_AND_STOP)))
            return now;
        if (send(from == client ? server : client, buf, n, MSG_NOSIGNAL) != (ssize_t)n)
            return false;
        if (now) {
            (void)message(server, buf); /* done, and nobody is told */
            return true;
        }
    }
}

/* One connection, in a process of its own: a keeper and its spare are two clients. */
static void connection(int client, uint16_t server_port, enum cut *cut)
{
    const struct sockaddr_in to = loopback(server_port);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (connect(server, (const struct sockaddr *)&to, sizeof(to)) == 0 &&
        forward(client, server, cut)) {
        if (*cut == CUT_WRITE_ANSWER_FOR_GOOD)
            (void)kill(getppid(), SIGKILL);
        if (*cut == CUT_WRITE_AND_STOP)
            (void)kill(getppid(), SIGSTOP);
        *cut = CUT_NOTHING;
    }
    _exit(0);
}

static void serve(int listener, uint16_t server_port, enum cut *cut)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int client = accept(listener, NULL, NULL);

        if (client >= 0 && fork() == 0) {
            (void)close(listener);
            connection(client, server_port, cut);
        }
        (void)close(client);
    }
}

void cutter_start(struct cutter *c, uint16_t server_port, enum cut cut)
{
    struct sockaddr_in a = loopback(0);
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
          listen(fd, 8) == 0 && getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    enum cut *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    *shared = cut;
    c->port = ntohs(a.sin_port);
    c->pid = fork();
    CHECK(c->pid >= 0);
    if (c->pid == 0)
        serve(fd, server_port, shared);
    c->cut = shared;
    (void)close(fd);
}

void cutter_stop(struct cutter *c)
{
    (void)kill(c->pid, SIGKILL);
    CHECK(waitpid(c->pid, NULL, 0) == c->pid);
    (void)munmap(c->cut, sizeof(*c->cut));
}
