/*
 * puppet: a service that misbehaves as its arguments say.
 *
 *   noready          never says READY
 *   exit=N           ends at once with status N
 *   stubborn         ignores SIGTERM
 *   noack            never acknowledges a role
 *   nostandby        acknowledges active but not standby
 *   worker           has a worker process, which lasts
 *   onduty           has a worker process while it is active, ended before it acknowledges
 *                    standby
 *   orphan           leaves a process that has cut every tie (double fork, own session)
 *   helpers          starts a short-lived process every 50 ms
 *   slowhelper       has one when it says READY that ends 0.5 s later, as on a busy machine
 *   talk=N           writes N lines
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#include "redoubt/service.h"

static bool has(int argc, char **argv, const char *word)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return true;
    return false;
}

static long value(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], name, strlen(name)) == 0)
            return strtol(argv[i] + strlen(name), NULL, 10);
    return -1;
}

static void last(bool cut_ties)
{
    pid_t pid = fork();

    if (pid != 0) {
        if (cut_ties)
            (void)waitpid(pid, NULL, 0);
        return;
    }
    if (cut_ties) {
        (void)setsid();
        if (fork() != 0)
            _exit(0);
    }
    for (;;)
        (void)pause();
}

/* Starts or ends the process that lives while we are active. */
static void on_duty(bool active)
{
    static pid_t worker;

    if (active && worker == 0) {
        worker = fork();
        if (worker == 0) {
            for (;;)
                (void)pause();
        }
    } else if (!active && worker > 0) {
        (void)kill(worker, SIGKILL);
        (void)waitpid(worker, NULL, 0);
        worker = 0;
    }
}

static void helper(useconds_t life_us)
{
    if (fork() == 0) {
        (void)usleep(life_us);
        _exit(0);
    }
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
}

static void follow(struct redoubt_service *s, int argc, char **argv)
{
    const bool noack = has(argc, argv, "noack"), nostandby = has(argc, argv, "nostandby");
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(s, &epoch);

    if (role == REDOUBT_ROLE_GONE)
        exit(3);
    if (role == REDOUBT_ROLE_NONE || noack || (nostandby && role == REDOUBT_ROLE_STANDBY))
        return;
    if (has(argc, argv, "onduty"))
        on_duty(role == REDOUBT_ROLE_ACTIVE);
    (void)redoubt_service_ack(s, role, epoch);
}

int main(int argc, char **argv)
{
    struct redoubt_service *s = redoubt_service_start(0);
    long status = value(argc, argv, "exit="), lines = value(argc, argv, "talk=");

    if (!s)
        return 9;
    if (status >= 0) {
        redoubt_service_stop(s);
        return (int)status;
    }
    if (has(argc, argv, "stubborn"))
        (void)signal(SIGTERM, SIG_IGN);
    if (has(argc, argv, "worker"))
        last(false);
    if (has(argc, argv, "orphan"))
        last(true);
    if (has(argc, argv, "slowhelper"))
        helper(500000);
    for (long i = 0; i < lines; i++)
        (void)printf("line %ld\n", i);
    (void)fflush(stdout);
    if (!has(argc, argv, "noready"))
        (void)redoubt_service_ready(s);
    (void)redoubt_service_status(s, "%s on %s", redoubt_service_name(s),
                                 redoubt_service_node(s));
    for (;;) {
        struct pollfd p = { .fd = redoubt_service_role_fd(s), .events = POLLIN };

        if (poll(&p, 1, 50) < 0 && errno != EINTR)
            return 8;
        (void)redoubt_service_watchdog(s);
        if (has(argc, argv, "helpers"))
            helper(20000);
        follow(s, argc, argv);
    }
}
