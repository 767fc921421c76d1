#include "sys/helper/helper_start.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <unistd.h>

static int prepare(posix_spawn_file_actions_t *fa, int socket, int shared)
{
    int rc = posix_spawn_file_actions_addopen(fa, 0, "/dev/null", O_RDONLY, 0);

    if (rc == 0)
        rc = posix_spawn_file_actions_addopen(fa, 1, "/dev/null", O_WRONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_adddup2(fa, socket, HELPER_FD_SOCKET);
    if (rc == 0)
        rc = shared >= 0 ? posix_spawn_file_actions_adddup2(fa, shared, HELPER_FD_SHARED)
                         : posix_spawn_file_actions_addopen(fa, HELPER_FD_SHARED,
                                                            "/dev/null", O_RDONLY, 0);
    if (rc == 0)
        rc = posix_spawn_file_actions_addclosefrom_np(fa, HELPER_FD_SHARED + 1);
    return rc;
}

static int spawn(pid_t *out, const char *program, const char *const *argv,
                 const int fds[2])
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int rc = posix_spawn_file_actions_init(&fa);

    if (rc != 0)
        return rc;
    rc = posix_spawnattr_init(&attr);
    if (rc == 0) {
        (void)sigemptyset(&none);
        (void)sigfillset(&all);
        (void)posix_spawnattr_setsigmask(&attr, &none);
        (void)posix_spawnattr_setsigdefault(&attr, &all);
        (void)posix_spawnattr_setflags(
            &attr,
            (short)(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID));
        rc = prepare(&fa, fds[0], fds[1]);
        if (rc == 0)
            rc = posix_spawn(out, program, &fa, &attr, (char *const *)(uintptr_t)argv,
                             environ);
        (void)posix_spawnattr_destroy(&attr);
    }
    (void)posix_spawn_file_actions_destroy(&fa);
    return rc;
}

/* dup2 onto the same number would keep close-on-exec: move fd out of the way. */
static int high_copy(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, HELPER_FD_SHARED + 1);
}

int helper_start(pid_t *out, const char *program, const char *const *argv, int socket,
                 int shared)
{
    int fds[2] = { high_copy(socket), -1 }, rc = fds[0] < 0 ? errno : 0;
    pid_t pid = 0;

    if (rc == 0 && shared >= 0) {
        fds[1] = high_copy(shared);
        rc = fds[1] < 0 ? errno : 0;
    }
    if (rc == 0)
        rc = spawn(&pid, program, argv, fds);
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
    if (rc == 0)
        *out = pid;
    return rc;
}
