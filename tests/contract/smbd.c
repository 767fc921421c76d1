#include "smbd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"

static const char program[] = "/usr/sbin/smbd";
static const char user_tool[] = "/usr/bin/smbpasswd";

static bool may_unshare(void)
{
    int status = -1;
    pid_t pid = fork();

    if (pid == 0)
        _exit(unshare(CLONE_NEWNS) == 0 ? 0 : 1);
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

const char *smbd_missing(void)
{
    if (geteuid() != 0)
        return "needs root (smbd, a mount of its own)";
    if (access(program, X_OK) != 0 || access(user_tool, X_OK) != 0)
        return "smbd is not installed (package samba)";
    if (!may_unshare())
        return "needs mount namespaces";
    return NULL;
}

void smbd_path(const struct smbd *s, char *buf, size_t size, const char *name)
{
    CHECK(snprintf(buf, size, "%s/%s", s->dir, name) < (int)size);
}

static void make_folder(const struct smbd *s, const char *name)
{
    char path[128];

    smbd_path(s, path, sizeof(path), name);
    CHECK(mkdir(path, 0700) == 0 || errno == EEXIST);
}

static void write_file(const char *path, const char *text, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    size_t n = strlen(text);

    CHECK(fd >= 0 && write(fd, text, n) == (ssize_t)n && close(fd) == 0);
}

void smbd_write(const struct smbd *s, const char *name, const char *text)
{
    char path[192], below[128];

    CHECK(snprintf(below, sizeof(below), "state/%s", name) < (int)sizeof(below));
    smbd_path(s, path, sizeof(path), below);
    write_file(path, text, 0600);
}

/* A port that stays ours, also while no smbd listens on it: else another program may be given
 * it, or a connection of ours to nobody gets it for its own end and meets itself. */
static uint16_t hold_port(int *out_fd)
{
    struct sockaddr_in a = { .sin_family = AF_INET,
                             .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t n = sizeof(a);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    /* Without SO_REUSEADDR on both sides smbd could not bind to it. */
    CHECK(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
          bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
          getsockname(fd, (struct sockaddr *)&a, &n) == 0);
    *out_fd = fd;
    return ntohs(a.sin_port);
}

static void write_configuration(const struct smbd *s, const char *extra)
{
    char path[128], text[4096];

    (void)snprintf(text, sizeof(text),
                   "[global]\n"
                   "server role = standalone server\n"
                   "interfaces = 127.0.0.1\nbind interfaces only = yes\n"
                   "smb ports = %u\ndisable netbios = yes\n"
                   "lock directory = %s/lock\nstate directory = %s/lock\n"
                   "cache directory = %s/lock\nprivate dir = %s/private\n"
                   "pid directory = %s/lock\nncalrpc dir = %s/lock/rpc\n"
                   "log file = %s/smbd.log\nmax log size = 1000\nlog level = 1\n"
                   "passdb backend = tdbsam:%s/private/passdb.tdb\n"
                   "load printers = no\nprintcap name = /dev/null\n"
                   "server min protocol = SMB2_02\nmap to guest = never\n%s\n"
                   "[state]\npath = %s/state\nread only = no\n"
                   "[ro]\npath = %s/state\nread only = yes\n"
                   "[full]\npath = %s/full\nread only = no\n",
                   (unsigned)s->port, s->dir, s->dir, s->dir, s->dir, s->dir, s->dir,
                   s->dir, s->dir, extra, s->dir, s->dir, s->dir);
    smbd_path(s, path, sizeof(path), "smb.conf");
    write_file(path, text, 0600);
}

/* Runs a program with its standard input from `input`, output to /dev/null, in a process group
 * of its own; it ends when the test does. */
static pid_t spawn(char *const *argv, int input)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);

        if (setpgid(0, 0) == 0 && prctl(PR_SET_PDEATHSIG, SIGTERM) == 0 &&
            dup2(input, 0) >= 0 && dup2(null, 1) >= 0 && dup2(null, 2) >= 0)
            (void)execv(argv[0], argv);
        _exit(127);
    }
    (void)setpgid(pid, pid); /* whoever is first; the child may already run the program */
    return pid;
}

static void add_user(const struct smbd *s)
{
    static const char twice[] = SMBD_PASSWORD "\n" SMBD_PASSWORD "\n";
    char conf[128];
    int pipe_fd[2], status;

    smbd_path(s, conf, sizeof(conf), "smb.conf");
    CHECK(pipe(pipe_fd) == 0);
    CHECK(write(pipe_fd[1], twice, sizeof(twice) - 1) == sizeof(twice) - 1);
    CHECK(close(pipe_fd[1]) == 0);
    const char *argv[] = { user_tool, "-c", conf, "-a", "-s", "root", NULL };
    pid_t pid = spawn((char *const *)(uintptr_t)argv, pipe_fd[0]);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(close(pipe_fd[0]) == 0);
}

void smbd_init(struct smbd *s)
{
    char full[128];

    *s = (struct smbd){ .dir = "/tmp/redoubt-smbd-XXXXXX" };
    CHECK(mkdtemp(s->dir) != NULL);
    CHECK(unshare(CLONE_NEWNS) == 0);
    CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    CHECK(mount("tmpfs", s->dir, "tmpfs", 0, "size=32m,mode=0700") == 0);
    make_folder(s, "lock");
    make_folder(s, "private");
    make_folder(s, "state");
    make_folder(s, "full");
    smbd_path(s, full, sizeof(full), "full");
    CHECK(mount("tmpfs", full, "tmpfs", 0, "size=64k") == 0);
    smbd_path(s, s->credentials, sizeof(s->credentials), "cred");
    write_file(s->credentials, "username=root\npassword=" SMBD_PASSWORD "\n", 0600);
    (void)snprintf(s->share, sizeof(s->share), "//127.0.0.1/state");
    (void)snprintf(s->ro, sizeof(s->ro), "//127.0.0.1/ro");
    (void)snprintf(s->full, sizeof(s->full), "//127.0.0.1/full");
    s->port = hold_port(&s->port_fd);
    write_configuration(s, "");
    add_user(s);
}

static bool listens(uint16_t port)
{
    struct sockaddr_in a = { .sin_family = AF_INET,
                             .sin_port = htons(port),
                             .sin_addr = { htonl(INADDR_LOOPBACK) } };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    bool ok = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
    CHECK(close(fd) == 0);
    return ok;
}

void smbd_start(struct smbd *s, const char *extra)
{
    char conf[128];
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    CHECK(s->pid == 0 && null >= 0);
    write_configuration(s, extra);
    smbd_path(s, conf, sizeof(conf), "smb.conf");
    const char *argv[] = { program, "-F", "--no-process-group", "-s", conf, NULL };
    s->pid = spawn((char *const *)(uintptr_t)argv, null);
    CHECK(close(null) == 0);
    for (int i = 0; i < 1500 && !listens(s->port); i++)
        (void)poll(NULL, 0, 20);
    CHECK(listens(s->port));
}

void smbd_signal(struct smbd *s, int sig)
{
    CHECK(s->pid > 0);
    (void)kill(-s->pid, sig);
}

void smbd_kill(struct smbd *s)
{
    if (s->pid == 0)
        return;
    smbd_signal(s, SIGKILL);
    CHECK(waitpid(s->pid, NULL, 0) == s->pid);
    s->pid = 0;
    /* Its children end a moment later; one that has just been forked has the socket, too, and
     * would be asked instead of the next smbd (SO_REUSEPORT). */
    for (int i = 0; i < 500 && listens(s->port); i++)
        (void)poll(NULL, 0, 20);
    CHECK(!listens(s->port));
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag;
    if (ftw->level > 0)
        (void)remove(path);
    return 0;
}

void smbd_clear(struct smbd *s)
{
    static const char *const shares[] = { "state", "full" };
    static const char *const folders[] = { "epoch", "node", "request" };
    char path[128], below[64];

    for (size_t i = 0; i < LEN(shares); i++) {
        smbd_path(s, path, sizeof(path), shares[i]);
        CHECK(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
        for (size_t k = 0; k < LEN(folders); k++) {
            (void)snprintf(below, sizeof(below), "%s/%s", shares[i], folders[k]);
            make_folder(s, below);
        }
    }
}

void smbd_release(struct smbd *s)
{
    char full[128];

    smbd_kill(s);
    CHECK(close(s->port_fd) == 0);
    smbd_path(s, full, sizeof(full), "full");
    (void)umount2(full, MNT_DETACH);
    (void)umount2(s->dir, MNT_DETACH);
    CHECK(rmdir(s->dir) == 0);
}
