#include "app/server/master.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <redoubt/service.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "sys/log/log.h"
#include "sys/tls/tls.h"

enum {
    CHILDREN_MAX = 65, /* 64 workers and the manager */
    STATUS_BYTES = 200,
    STOP_MS = 3000,
    WORDS_MAX = 32
};

static_assert((int)MASTER_TICKET_KEY == (int)TLS_TICKET_KEY, "the same key");

struct master;

struct child {
    struct master *master;
    char name[24]; /* "worker 1", "manager" */
    pid_t pid;     /* 0: has ended */
    int role_fd, notify_fd;
    sd_event_source *process, *notify;
    bool ready, acknowledged, alive; /* alive: since the last word to the daemon */
    char status[STATUS_BYTES];
};

struct master {
    sd_event *event;
    struct redoubt_service *service;
    const struct master_env *env;
    const char *conf_path;
    char folder[CONF_PATH];
    int ticket_fd;
    uint32_t count;
    struct child child[CHILDREN_MAX];
    bool ready, role_pending, stopping, failed;
    enum redoubt_role role;
    uint64_t epoch;
};

void master_env_take(struct master_env *env)
{
    const char *lease = getenv("REDOUBT_LEASE_FD"), *us = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    uint64_t fd = 0, own = 0;

    *env = (struct master_env){ .lease_fd = -1 };
    if (lease && str_u64(str_of(lease), INT16_MAX, &fd))
        env->lease_fd = fcntl((int)fd, F_DUPFD_CLOEXEC, 3);
    if (us && (!pid || (str_u64(str_of(pid), INT32_MAX, &own) && (pid_t)own == getpid())))
        (void)snprintf(env->watchdog, sizeof(env->watchdog), "%s", us);
}

bool master_ticket_key(uint8_t key[MASTER_TICKET_KEY])
{
    const char *text = getenv("REDOUBT_TICKET_FD");
    uint64_t fd = 0;

    if (!text || !str_u64(str_of(text), INT16_MAX, &fd))
        return false;
    bool ok = pread((int)fd, key, MASTER_TICKET_KEY, 0) == MASTER_TICKET_KEY;
    (void)close((int)fd);
    (void)unsetenv("REDOUBT_TICKET_FD");
    return ok;
}

/* --- what the children say -------------------------------------------------------------- */

static bool all(const struct master *m, bool (*holds)(const struct child *))
{
    for (uint32_t i = 0; i < m->count; i++)
        if (!holds(&m->child[i]))
            return false;
    return true;
}

static bool is_ready(const struct child *c)
{
    return c->ready;
}

static bool has_acknowledged(const struct child *c)
{
    return c->acknowledged;
}

static bool is_alive(const struct child *c)
{
    return c->alive;
}

/* Cuts a text at its blanks; returns the number of words. */
static uint32_t words_of(char *text, char *word[WORDS_MAX])
{
    uint32_t n = 0;
    char *save = NULL;

    for (char *w = strtok_r(text, " ", &save); w && n < WORDS_MAX;
         w = strtok_r(NULL, " ", &save))
        word[n++] = w;
    return n;
}

/* "name=" and a number: how long the name is, with its sign; 0: it is something else. */
static size_t counter(const char *word, uint64_t *value)
{
    const char *sign = strchr(word, '=');

    if (!sign || strncmp(word, "epoch=", 6) == 0 ||
        !str_u64(str_of(sign + 1), UINT64_MAX, value))
        return 0;
    return (size_t)(sign - word) + 1;
}

/* The workers speak alike: their counters are added, the rest is the first one's. */
static void status_tell(struct master *m)
{
    char first[STATUS_BYTES], line[STATUS_BYTES];
    char *word[WORDS_MAX];
    struct text t;

    (void)snprintf(first, sizeof(first), "%s", m->child[0].status);
    uint32_t n = words_of(first, word);
    text_init(&t, line, sizeof(line));
    for (uint32_t w = 0; w < n; w++) {
        uint64_t sum = 0, more;
        size_t name = counter(word[w], &sum);

        for (uint32_t i = 1; name > 0 && i < m->count; i++) {
            char key[64];

            (void)snprintf(key, sizeof(key), "%.*s", (int)name, word[w]);
            const char *at = strstr(m->child[i].status, key);
            size_t digits = at ? strspn(at + name, "0123456789") : 0;
            if (at && strncmp(m->child[i].name, "worker", 6) == 0 &&
                str_u64((struct str){ at + name, digits }, UINT64_MAX, &more))
                sum += more;
        }
        if (name > 0)
            text_add(&t, "%s%.*s%" PRIu64, w > 0 ? " " : "", (int)name, word[w], sum);
        else
            text_add(&t, "%s%s", w > 0 ? " " : "", word[w]);
    }
    (void)redoubt_service_status(m->service, "%s", line);
}

static void acknowledge(struct master *m)
{
    if (!m->role_pending || !all(m, has_acknowledged))
        return;
    m->role_pending = false;
    (void)redoubt_service_ack(m->service, m->role, m->epoch);
}

static void role_heard(struct child *c, const char *text)
{
    struct master *m = c->master;
    char wanted[64];

    if (m->role == REDOUBT_ROLE_ACTIVE)
        (void)snprintf(wanted, sizeof(wanted), "active %" PRIu64, m->epoch);
    else
        (void)snprintf(wanted, sizeof(wanted), "standby");
    if (!m->role_pending || strcmp(text, wanted) != 0)
        return; /* late: of a role that was overtaken */
    c->acknowledged = true;
    acknowledge(m);
}

static void heard(struct child *c, const char *line)
{
    struct master *m = c->master;

    if (strcmp(line, "READY=1") == 0) {
        c->ready = true;
        if (!m->ready && all(m, is_ready)) {
            m->ready = true;
            (void)redoubt_service_ready(m->service);
        }
    } else if (strncmp(line, "STATUS=", 7) == 0) {
        (void)snprintf(c->status, sizeof(c->status), "%s", line + 7);
        status_tell(m);
    } else if (strcmp(line, "WATCHDOG=1") == 0) {
        c->alive = true;
        if (all(m, is_alive)) {
            for (uint32_t i = 0; i < m->count; i++)
                m->child[i].alive = false;
            (void)redoubt_service_watchdog(m->service);
        }
    } else if (strncmp(line, "REDOUBT_ROLE=", 13) == 0) {
        role_heard(c, line + 13);
    }
}

static int on_notify(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    char text[1024];
    ssize_t n;

    (void)source, (void)revents;
    while ((n = recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT)) > 0) {
        char *save = NULL;

        text[n] = '\0';
        for (char *line = strtok_r(text, "\n", &save); line;
             line = strtok_r(NULL, "\n", &save))
            heard(arg, line);
    }
    return 0;
}

/* --- what the daemon says --------------------------------------------------------------- */

static void children_kill(struct master *m, int sig)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (m->child[i].pid > 0)
            (void)kill(m->child[i].pid, sig);
}

/* Nobody is left: the end. */
static void ended(struct master *m)
{
    for (uint32_t i = 0; i < m->count; i++)
        if (m->child[i].pid > 0)
            return;
    (void)sd_event_exit(m->event, m->failed);
}

static void fail(struct master *m)
{
    m->failed = true;
    children_kill(m, SIGKILL);
    ended(m);
}

static int on_role(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
    struct master *m = arg;
    char line[64];
    uint64_t epoch = 0;
    enum redoubt_role role = redoubt_service_read_role(m->service, &epoch);

    (void)fd, (void)revents;
    if (role == REDOUBT_ROLE_NONE)
        return 0;
    if (role == REDOUBT_ROLE_GONE) {
        log_event(LOG_LEVEL_WARNING, "daemon_gone");
        (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
        fail(m);
        return 0;
    }
    m->role = role;
    m->epoch = role == REDOUBT_ROLE_ACTIVE ? epoch : 0;
    m->role_pending = true;
    if (role == REDOUBT_ROLE_ACTIVE)
        (void)snprintf(line, sizeof(line), "active %" PRIu64 "\n", epoch);
    else
        (void)snprintf(line, sizeof(line), "standby\n");
    for (uint32_t i = 0; i < m->count; i++) {
        m->child[i].acknowledged = false;
        /* A pipe that is full belongs to one that reads no roles any more. */
        if (write(m->child[i].role_fd, line, strlen(line)) < 0) {
            log_event(LOG_LEVEL_ERROR, "child_deaf", log_str("process", m->child[i].name),
                      log_str("why", strerrordesc_np(errno)));
            fail(m);
        }
    }
    return 0;
}

static int on_child(sd_event_source *source, const siginfo_t *si, void *arg)
{
    struct child *c = arg;
    struct master *m = c->master;

    (void)source;
    c->pid = 0;
    if (!m->stopping && !m->failed) {
        log_event(LOG_LEVEL_ERROR, "child_ended", log_str("process", c->name),
                  log_str("how", si->si_code == CLD_EXITED ? "exit" : "signal"),
                  log_u64("status", (uint64_t)si->si_status));
        fail(m);
    }
    ended(m);
    return 0;
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si,
                     void *arg)
{
    struct master *m = arg;

    (void)source, (void)si;
    m->stopping = true;
    children_kill(m, SIGTERM);
    ended(m);
    return 0;
}

static int on_stop_late(sd_event_source *source, uint64_t us, void *arg)
{
    struct master *m = arg;

    (void)us;
    if (m->stopping) {
        log_event(LOG_LEVEL_WARNING, "children_killed");
        fail(m);
    }
    (void)sd_event_source_set_time_relative(source, STOP_MS * 1000u);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* --- the children ----------------------------------------------------------------------- */

/* A socket of its own for what the child says; its name is the kernel's. */
static int notify_open(char *name, size_t size)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    socklen_t n = sizeof(sa_family_t);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    if (bind(fd, (struct sockaddr *)&at, n) != 0) {
        (void)close(fd);
        return -1;
    }
    n = sizeof(at);
    if (getsockname(fd, (struct sockaddr *)&at, &n) != 0) {
        (void)close(fd);
        return -1;
    }
    size_t length = n - offsetof(struct sockaddr_un, sun_path) - 1;
    (void)snprintf(name, size, "@%.*s", (int)length, at.sun_path + 1);
    return fd;
}

static void set_fd(const char *name, int fd)
{
    char text[16];

    (void)fcntl(fd, F_SETFD, 0);
    (void)snprintf(text, sizeof(text), "%d", fd);
    (void)setenv(name, text, 1);
}

/* In the child, between fork and exec. */
static void become(const struct master *m, const char *program, const char *argument,
                   const char *notify, int role_fd, pid_t parent)
{
    sigset_t none;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setenv("NOTIFY_SOCKET", notify, 1);
    (void)setenv("REDOUBT_SERVICE", redoubt_service_name(m->service), 1);
    (void)setenv("REDOUBT_NODE", redoubt_service_node(m->service), 1);
    (void)setenv("REDOUBT_CONF", m->conf_path, 1);
    if (m->env->watchdog[0])
        (void)setenv("WATCHDOG_USEC", m->env->watchdog, 1);
    set_fd("REDOUBT_ROLE_FD", role_fd);
    if (m->env->lease_fd >= 0)
        set_fd("REDOUBT_LEASE_FD", m->env->lease_fd);
    if (argument)
        set_fd("REDOUBT_TICKET_FD", m->ticket_fd);
    (void)execl(program, program, argument, (char *)NULL);
    _exit(127);
}

/* argument: of a worker; NULL for the manager. */
static enum err child_start(struct master *m, const char *name, const char *program,
                            const char *argument, struct err_info *info)
{
    struct child *c = &m->child[m->count++];
    char notify[64];
    int role[2] = { -1, -1 };
    pid_t parent = getpid();

    *c = (struct child){ .master = m, .role_fd = -1 };
    (void)snprintf(c->name, sizeof(c->name), "%s", name);
    c->notify_fd = notify_open(notify, sizeof(notify));
    if (c->notify_fd < 0 || pipe2(role, O_CLOEXEC) != 0)
        return err_set(info, ERR_IO, errno, "start %s", name);
    c->role_fd = role[1];
    (void)fcntl(role[1], F_SETFL, O_NONBLOCK);
    c->pid = fork();
    if (c->pid == 0)
        become(m, program, argument, notify, role[0], parent);
    (void)close(role[0]);
    if (c->pid < 0)
        return err_set(info, ERR_IO, errno, "start %s", name);
    int n = sd_event_add_io(m->event, &c->notify, c->notify_fd, EPOLLIN, on_notify, c);
    if (n >= 0)
        n = sd_event_add_child(m->event, &c->process, c->pid, WEXITED, on_child, c);
    return n < 0 ? err_set(info, ERR_MEMORY, -n, "start %s", name) : ERR_OK;
}

static enum err children_start(struct master *m, uint32_t workers, struct err_info *info)
{
    char program[CONF_PATH + 32], name[24];
    enum err e = ERR_OK;

    (void)snprintf(program, sizeof(program), "%s/redoubt-server", m->folder);
    for (uint32_t i = 0; e == ERR_OK && i < workers; i++) {
        (void)snprintf(name, sizeof(name), "worker %u", i + 1);
        e = child_start(m, name, program, "--worker", info);
    }
    /* Installed side by side; in the tree each program has a folder of its own. */
    (void)snprintf(program, sizeof(program), "%s/redoubt-manager", m->folder);
    if (access(program, X_OK) != 0)
        (void)snprintf(program, sizeof(program), "%s/../manager/redoubt-manager",
                       m->folder);
    if (e == ERR_OK && access(program, X_OK) == 0)
        e = child_start(m, "manager", program, NULL, info);
    return e;
}

/*
 * The key of the cluster, if `redoubt init` or `redoubt secret fetch` has put it on this
 * node: then the other node resumes the sessions of this one.  Else one for this run.
 */
static enum err ticket_make(struct master *m, const char *folder, struct err_info *info)
{
    uint8_t key[MASTER_TICKET_KEY + 1];
    char path[CONF_PATH + 32];

    (void)snprintf(path, sizeof(path), "%s/ticket.key", folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n = fd < 0 ? -1 : read(fd, key, sizeof(key));

    if (fd >= 0)
        (void)close(fd);
    if (fd >= 0 && n != MASTER_TICKET_KEY)
        return err_set(info, ERR_CONFIG, 0, "%s: not a key of %d bytes", path,
                       MASTER_TICKET_KEY);
    if (n < 0)
        tls_random(key, MASTER_TICKET_KEY);
    log_event(LOG_LEVEL_INFO, "ticket_key", log_str("from", n < 0 ? "this run" : path));
    m->ticket_fd = memfd_create("ticket", MFD_CLOEXEC);
    if (m->ticket_fd < 0 ||
        write(m->ticket_fd, key, MASTER_TICKET_KEY) != MASTER_TICKET_KEY)
        return err_set(info, ERR_IO, errno, "TLS ticket key");
    return ERR_OK;
}

static enum err prepare(struct master *m, const char *folder, struct err_info *info)
{
    static const int signals[] = { SIGTERM, SIGINT };
    ssize_t n = readlink("/proc/self/exe", m->folder, sizeof(m->folder) - 1);
    sigset_t children;

    if (n < 0)
        return err_set(info, ERR_IO, errno, "read /proc/self/exe");
    m->folder[n] = '\0';
    *strrchr(m->folder, '/') = '\0';
    (void)sigemptyset(&children);
    (void)sigaddset(&children, SIGCHLD);
    (void)sigprocmask(SIG_BLOCK, &children, NULL);
    int r = sd_event_new(&m->event);
    int fd = redoubt_service_role_fd(m->service);
    if (r >= 0 && fd >= 0)
        r = sd_event_add_io(m->event, NULL, fd, EPOLLIN, on_role, m);
    for (size_t i = 0; r >= 0 && i < LEN(signals); i++)
        r = sd_event_add_signal(m->event, NULL, signals[i] | SD_EVENT_SIGNAL_PROCMASK,
                                on_signal, m);
    if (r >= 0)
        r = sd_event_add_time_relative(m->event, NULL, CLOCK_BOOTTIME, STOP_MS * 1000u, 0,
                                       on_stop_late, m);
    return r < 0 ? err_set(info, ERR_MEMORY, -r, "event loop")
                 : ticket_make(m, folder, info);
}

static void release(struct master *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        struct child *c = &m->child[i];

        c->process = sd_event_source_disable_unref(c->process);
        c->notify = sd_event_source_disable_unref(c->notify);
        if (c->notify_fd >= 0)
            (void)close(c->notify_fd);
        if (c->role_fd >= 0)
            (void)close(c->role_fd);
        if (c->pid > 0)
            (void)kill(c->pid, SIGKILL);
    }
    sd_event_unref(m->event);
    if (m->ticket_fd >= 0)
        (void)close(m->ticket_fd);
    free(m);
}

int master_run(struct redoubt_service *service, const struct master_env *env,
               const struct conf *conf, const char *conf_path)
{
    struct err_info info = { 0 };
    struct master *m = calloc(1, sizeof(*m));
    int code = 1;

    if (!m)
        return 1;
    *m = (struct master){
        .service = service, .env = env, .conf_path = conf_path, .ticket_fd = -1
    };
    enum err e = prepare(m, conf->trust.folder, &info);
    if (e == ERR_OK)
        e = children_start(m, conf->server.workers, &info);
    if (e != ERR_OK)
        log_event(LOG_LEVEL_ERROR, "start_failed", log_str("why", info.what));
    else
        code = sd_event_loop(m->event);
    release(m);
    return code != 0;
}
