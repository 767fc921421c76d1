#include "app/agent/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/agent/files.h"
#include "app/agent/worker.h"

enum {
    INSTALL_S = 600,
    DPKG_TROUBLE = 2, /* dpkg(1): among others, somebody else has the lock */
    LOCKED_MS = 2000,
    LOCKED_TRIES = 300,
    ASK_S = 20,
    LOOK_MS = 200,
    ANSWER_S = 2,
    END_MS = 10000,  /* to end when it was told so */
    START_MS = 5000, /* for whoever starts the agent again */
    AGAIN_MS = 5000, /* doubled with each failure to put back */
    AGAIN_MAX_MS = 300000,
    LOUD_FAILURES = 3, /* so many of them are told */
    TEXT = 64 * 1024,
    OUTPUT = 1024,
    PATHS = 600,
    ARGS_MAX = 32
};

/* As supervise.h says. */
struct order {
    json_t *j;
    const char *folder;
};

static void path_of(const char *folder, const char *name, char out[PATHS])
{
    (void)snprintf(out, PATHS, "%s/%s", folder, name);
}

static void wait_ms(uint32_t ms)
{
    struct timespec t = { ms / 1000, (long)(ms % 1000) * 1000000 };

    (void)nanosleep(&t, NULL);
}

static int lock_open(const char *folder)
{
    char path[PATHS];

    path_of(folder, "lock", path);
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

bool supervise_runs(const char *folder)
{
    int fd = lock_open(folder);
    bool runs = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0;

    if (fd >= 0)
        (void)close(fd);
    return runs;
}

_Noreturn static void become(const char *folder)
{
    char self[] = "/proc/self/exe", name[] = "redoubt-agent", mode[] = "--supervise";
    char where[PATHS];
    char *argv[] = { name, mode, where, NULL };
    sigset_t none;

    (void)snprintf(where, sizeof(where), "%s", folder);
    (void)setsid();
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0)
        (void)dup2(null, STDIN_FILENO);
    (void)close_range(3, ~0u, 0);
    if (fork() == 0)
        (void)execv(self, argv);
    _exit(0);
}

enum err supervise_start(const char *folder, struct err_info *info)
{
    pid_t pid = fork();

    if (pid < 0)
        return err_set(info, ERR_IO, errno, "start the supervisor");
    if (pid == 0)
        become(folder);
    (void)waitpid(pid, NULL, 0);
    return ERR_OK;
}

/* --- what is kept ------------------------------------------------------------------------- */

static void outcome_set(const struct order *o, const char *state, const char *why,
                        const char *trouble)
{
    char path[PATHS];
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s}", "state", state, "why", why,
                          "trouble", trouble, "version", job_text(o->j, "version"),
                          "hash", job_text(o->j, "hash"));
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    struct err_info info = { 0 };

    path_of(o->folder, "outcome", path);
    while (text && file_store(path, str_of(text), NULL, &info) != ERR_OK) {
        fprintf(stderr, "redoubt-agent --supervise: %s\n", info.what);
        wait_ms(1000); /* a full disk: nothing else is more important */
    }
    free(text);
    json_decref(j);
}

static json_t *load(const char *folder, const char *name)
{
    static char text[TEXT];
    char path[PATHS];
    size_t n;

    path_of(folder, name, path);
    if (file_load(path, text, sizeof(text), &n, NULL) != ERR_OK)
        return NULL;
    return json_loadb(text, n, 0, NULL);
}

json_t *supervise_outcome(const char *folder, const char *hash)
{
    json_t *j = load(folder, "outcome");
    const char *of = job_text(j, "hash");

    if (!hash || of[0] == '\0' || strcmp(of, hash) == 0) /* older ones do not say it */
        return j;
    json_decref(j);
    return NULL;
}

static bool is_confirmed(const struct order *o)
{
    json_t *j = load(o->folder, "confirmed");
    bool same = strcmp(job_text(j, "version"), job_text(o->j, "version")) == 0 &&
                strcmp(job_text(j, "hash"), job_text(o->j, "hash")) == 0;

    json_decref(j);
    return same;
}

/* Another order lies there. */
static bool is_replaced(const struct order *o)
{
    json_t *j = load(o->folder, "order");
    bool other = j && strcmp(job_text(j, "hash"), job_text(o->j, "hash")) != 0;

    json_decref(j);
    return other;
}

/* --- the installation ----------------------------------------------------------------------- */

static void environment(void)
{
    (void)setenv("DEBIAN_FRONTEND", "noninteractive", 1);
    (void)setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                 1);
    (void)setenv("LC_ALL", "C.UTF-8", 1);
}

/* ERR_STATE: another installation is going on; later. */
static enum err install(const struct order *o, const char *file, struct err_info *info)
{
    struct worker w = { .ended = true }; /* nobody to listen to */
    char words[1024], output[OUTPUT] = "", last[PATHS];
    char *argv[COMMAND_WORDS_MAX + 2];
    struct command c = { argv, INSTALL_S, output, sizeof(output), false };
    size_t n = 0;
    int code = 0;

    (void)snprintf(words, sizeof(words), "%s", job_text(o->j, "command"));
    (void)snprintf(last, sizeof(last), "%s", file);
    if (!command_split(words, argv))
        return err_set(info, ERR_CONFIG, 0, "[agent] upgrade is no command");
    while (argv[n])
        n++;
    argv[n] = last;
    argv[n + 1] = NULL;
    enum err e = command_run(&w, &c, &code, info);
    if (e == ERR_OK && code != 0) {
        size_t tail = strlen(output) > 150 ? strlen(output) - 150 : 0;

        e = err_set(info,
                    code == DPKG_TROUBLE && strstr(output, "lock") ? ERR_STATE : ERR_IO,
                    0, "%s ends with %d: %s", argv[0], code, output + tail);
    }
    return e;
}

/* Does the program that is there now run at all, and is it what was installed? */
static enum err ask_program(const struct order *o, const char *version,
                            struct err_info *info)
{
    struct worker w = { .ended = true };
    char program[PATHS], output[256] = "", wanted[256];
    char *argv[] = { program, (char[]){ "--version" }, NULL };
    struct command c = { argv, ASK_S, output, sizeof(output), true };
    int code = 0;

    (void)snprintf(program, sizeof(program), "%s", job_text(o->j, "exe"));
    (void)snprintf(wanted, sizeof(wanted), "redoubt-agent %s\n", version);
    enum err e = command_run(&w, &c, &code, info);
    if (e != ERR_OK)
        return e;
    output[strcspn(output, "\n") + (strchr(output, '\n') != NULL)] = '\0';
    if (code == 0 && strcmp(output, wanted) == 0)
        return ERR_OK;
    output[strcspn(output, "\n")] = '\0';
    return err_set(
        info, ERR_INVALID, 0,
        "the new program does not run as version %.60s: it ends with %d and says: "
        "%.60s",
        version, code, output);
}

/* --- the agent that runs ---------------------------------------------------------------------- */

/* Who listens on the agent's socket, and what it says about itself; 0: nobody. */
static pid_t listener(const struct order *o, char *said, size_t size)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    struct timeval limit = { ANSWER_S, 0 };
    struct ucred who = { 0 };
    socklen_t who_n = sizeof(who);
    size_t n = 0;
    ssize_t got = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok =
        fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0 &&
        str_copy(at.sun_path, sizeof(at.sun_path), str_of(job_text(o->j, "socket"))) &&
        connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &who_n) == 0;

    while (ok && n + 1 < size && (got = recv(fd, said + n, size - 1 - n, 0)) > 0)
        n += (size_t)got;
    said[n] = '\0';
    if (fd >= 0)
        (void)close(fd);
    return ok ? who.pid : 0;
}

/* Is the agent that runs the one that was put back? */
static bool is_right(const struct order *o)
{
    static char said[TEXT];
    json_t *j = listener(o, said, sizeof(said)) > 0 ? json_loads(said, 0, NULL) : NULL;
    bool right = strcmp(job_text(j, "version"), job_text(o->j, "from")) == 0;

    json_decref(j);
    return right;
}

/* False: there is none, or it has ended and nobody has fetched its exit code. */
static bool lives(pid_t pid, int64_t started)
{
    return pid > 1 && supervise_started(pid) == started;
}

int64_t supervise_started(pid_t pid)
{
    char path[64], text[1024];
    size_t n = 0;

    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (file_load(path, text, sizeof(text), &n, NULL) != ERR_OK)
        return -1;
    char *at = strrchr(text, ')'), *save = NULL;
    char *word = at ? strtok_r(at + 1, " ", &save) : NULL;
    if (!word || word[0] == 'Z')
        return -1;
    for (int i = 0; word && i < 19; i++) /* proc(5): fields 3 to 22 */
        word = strtok_r(NULL, " ", &save);
    return word ? strtoll(word, NULL, 10) : -1;
}

static void end_process(pid_t pid, int64_t started)
{
    if (pid == getpid() || !lives(pid, started) || kill(pid, SIGTERM) != 0)
        return;
    for (uint32_t passed = 0; passed < END_MS && lives(pid, started); passed += LOOK_MS)
        wait_ms(LOOK_MS);
    if (lives(pid, started))
        (void)kill(pid, SIGKILL);
}

static void start_agent(const struct order *o)
{
    const json_t *args = json_object_get(o->j, "argv");
    char *argv[ARGS_MAX + 1] = { 0 };

    for (size_t i = 0; i < json_array_size(args) && i < ARGS_MAX; i++)
        argv[i] = (char *)(uintptr_t)json_string_value(json_array_get(args, i));
    if (argv[0] && fork() == 0) {
        (void)setsid();
        (void)close_range(3, ~0u, 0);
        (void)execv(job_text(o->j, "exe"), argv);
        _exit(127);
    }
}

/* Whoever runs is not what is installed now: it ends, and somebody starts the right one. */
static void exchange_agent(const struct order *o)
{
    static char said[TEXT];
    pid_t second;

    if (is_right(o))
        return;
    /* The process that the agent was: it may have become anything since. */
    end_process((pid_t)job_number(o->j, "pid"), job_number(o->j, "started"));
    second = listener(o, said, sizeof(said));
    end_process(second, supervise_started(second));
    for (uint32_t passed = 0; passed < START_MS; passed += LOOK_MS) {
        if (is_right(o))
            return;
        wait_ms(LOOK_MS);
    }
    start_agent(o);
}

/* --- the course of it ------------------------------------------------------------------------- */

/* ERR_STATE as install(). */
static enum err bring_back(const struct order *o, struct err_info *info)
{
    enum err e = install(o, job_text(o->j, "previous"), info);

    return e != ERR_OK ? e : ask_program(o, job_text(o->j, "from"), info);
}

/* False: another order has come, which may mend what this one cannot. */
static bool pause_is_over(const struct order *o, uint32_t ms)
{
    for (uint32_t passed = 0; passed < ms; passed += AGAIN_MS) {
        wait_ms(AGAIN_MS);
        if (is_replaced(o))
            return false;
    }
    return true;
}

static void put_back(const struct order *o, const char *why)
{
    struct err_info info = { 0 };
    uint32_t pause_ms = AGAIN_MS, failures = 0;
    char text[600];
    enum err e;

    outcome_set(o, OUTCOME_RETURNING, why, "");
    /* As long as it takes: without this the device has no agent. */
    while ((e = bring_back(o, &info)) != ERR_OK) {
        const bool locked = e == ERR_STATE; /* that ends by itself */

        fprintf(stderr, "redoubt-agent --supervise: put back: %s\n", info.what);
        if (!locked && ++failures >= LOUD_FAILURES)
            outcome_set(o, OUTCOME_RETURNING, why, info.what);
        if (!pause_is_over(o, locked ? AGAIN_MS : pause_ms))
            return;
        if (!locked)
            pause_ms = pause_ms * 2 < AGAIN_MAX_MS ? pause_ms * 2 : AGAIN_MAX_MS;
    }
    (void)snprintf(text, sizeof(text), "%s; %s was put back", why,
                   job_text(o->j, "from"));
    outcome_set(o, OUTCOME_FAILED, text, "");
    exchange_agent(o);
}

static void watch(const struct order *o)
{
    uint32_t limit_ms = (uint32_t)job_number(o->j, "confirm_s") * 1000u;
    char why[200];

    for (uint64_t end = worker_now_us() + limit_ms * 1000ull; worker_now_us() < end;) {
        if (is_confirmed(o)) {
            outcome_set(o, OUTCOME_CONFIRMED, "", "");
            return;
        }
        wait_ms(LOOK_MS);
    }
    (void)snprintf(why, sizeof(why), "the new agent did not reach the server within %u s",
                   limit_ms / 1000u);
    put_back(o, why);
}

static void begin(const struct order *o)
{
    struct err_info info = { 0 };

    outcome_set(o, OUTCOME_INSTALLING, "", "");
    enum err e = install(o, job_text(o->j, "package"), &info);
    for (uint32_t n = 0; e == ERR_STATE && n < LOCKED_TRIES; n++) {
        wait_ms(LOCKED_MS);
        e = install(o, job_text(o->j, "package"), &info);
    }
    if (e == ERR_OK)
        e = ask_program(o, job_text(o->j, "version"), &info);
    if (e != ERR_OK) {
        put_back(o, info.what[0] ? info.what : err_name(e));
        return;
    }
    outcome_set(o, OUTCOME_INSTALLED, "", "");
    watch(o);
}

static void proceed(const struct order *o)
{
    json_t *outcome = supervise_outcome(o->folder, job_text(o->j, "hash"));
    const char *state = job_text(outcome, "state");

    environment();
    if (!outcome)
        begin(o);
    else if (strcmp(state, OUTCOME_INSTALLED) == 0)
        watch(o);
    else if (strcmp(state, OUTCOME_INSTALLING) == 0)
        put_back(o, "the device stopped in the middle of the installation");
    else if (strcmp(state, OUTCOME_RETURNING) == 0)
        put_back(o, job_text(outcome, "why"));
    json_decref(outcome);
}

int supervise_main(const char *folder)
{
    int lock = lock_open(folder);

    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) != 0)
        return 1; /* another one is at it */
    (void)signal(SIGCHLD, SIG_DFL);
    (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    struct order o = { load(folder, "order"), folder };
    if (o.j)
        proceed(&o);
    json_decref(o.j);
    (void)close(lock);
    return 0;
}
