#include "app/agent/worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/protect.h"
#include "sys/log/log.h"

/* linux/ioprio.h: best effort, last in line.  Idle could mean never. */
enum { IO_WHO_PROCESS = 1, IO_LAST = 2 << 13 | 7 };

uint64_t worker_now_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

const char *job_text(const json_t *job, const char *key)
{
    const char *s = json_string_value(json_object_get(job, key));

    return s ? s : "";
}

int64_t job_number(const json_t *job, const char *key)
{
    return json_integer_value(json_object_get(job, key));
}

/* The agent is gone, or does not understand us: there is nobody to work for. */
void worker_tell(json_t *message)
{
    if (channel_send(CHANNEL_FD, message, -1, true) != ERR_OK)
        _exit(1);
}

void worker_event(const char *kind, const char *severity, json_t *data)
{
    worker_tell(json_pack("{s:s,s:s,s:s,s:o}", "t", "event", "kind", kind, "severity",
                          severity, "data", data));
}

void worker_listen(struct worker *w, uint32_t ms)
{
    struct pollfd p = { .fd = CHANNEL_FD, .events = POLLIN };
    json_t *message;
    int fd;

    if (w->ended || poll(&p, 1, (int)ms) <= 0)
        return;
    enum err e = channel_receive(CHANNEL_FD, &message, &fd, false);
    if (e == ERR_CLOSED)
        w->ended = w->cancelled = true;
    if (e != ERR_OK)
        return;
    const char *what = job_text(message, "do");
    if (strcmp(what, "pause") == 0)
        w->paused = true;
    else if (strcmp(what, "resume") == 0)
        w->paused = false;
    else if (strcmp(what, "cancel") == 0)
        w->cancelled = true;
    if (fd >= 0)
        (void)close(fd);
    json_decref(message);
}

static enum err use_quarantine(struct worker *w, const json_t *job, struct err_info *info)
{
    const json_t *q = json_object_get(job, "quarantine");

    if (!q)
        return ERR_OK;
    w->keep = json_is_true(json_object_get(q, "enabled"));
    w->days = (uint32_t)job_number(q, "days");
    w->max_bytes = (uint64_t)job_number(q, "max_mib") << 20;
    return w->quarantine ? ERR_OK
                         : quarantine_open(job_text(q, "folder"), &w->quarantine, info);
}

/* A threat that the on-access listener found; the descriptor says where. */
static enum err cure_one(struct worker *w, const json_t *job, int fd,
                         struct err_info *info)
{
    char link[40], path[QUARANTINE_PATH_MAX];

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = fd < 0 ? -1 : readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return err_set(info, ERR_INVALID, 0, "no descriptor came along");
    path[n] = '\0';
    (void)cure_found(w, path, fd, NULL, job_text(job, "threat"), "on-access");
    return ERR_OK;
}

static const struct {
    const char *name;
    worker_job *run;
} jobs[] = {
    { "scan", scan_job },        { "update", update_job },
    { "engine", engine_job },    { "inventory", inventory_job },
    { "restore", cure_restore }, { "delete", cure_delete },
    { "recover", cure_recover }, { "licence", licence_job },
    { "fetch", fetch_job },
};

static void work(struct worker *w, const json_t *job, int fd)
{
    const char *what = job_text(job, "do");
    struct err_info info = { 0 };
    json_t *out = json_object();
    enum err e = use_quarantine(w, job, &info);

    w->paused = w->cancelled = false;
    if (e == ERR_OK && strcmp(what, "cure") == 0) {
        e = cure_one(w, job, fd, &info);
    } else if (e == ERR_OK) {
        e = err_set(&info, ERR_INVALID, 0, "unknown job");
        for (size_t i = 0; i < LEN(jobs); i++)
            if (strcmp(what, jobs[i].name) == 0)
                e = jobs[i].run(w, job, out, &info);
    }
    (void)json_object_set_new(out, "t", json_string("done"));
    (void)json_object_set_new(out, "ok", json_boolean(e == ERR_OK));
    if (w->cancelled)
        (void)json_object_set_new(out, "cancelled", json_true());
    if (e != ERR_OK)
        (void)json_object_set_new(
            out, "error",
            channel_text(info.what[0] ? info.what : err_name(e), sizeof(info.what)));
    worker_tell(out);
}

int scanner_main(void)
{
    struct worker *w = calloc(1, sizeof(*w));
    json_t *job;
    int fd;

    if (!w)
        return 1;
    (void)prctl(PR_SET_NAME, "redoubt-scanner");
    (void)signal(SIGPIPE, SIG_IGN);
    (void)setpriority(PRIO_PROCESS, 0, 10);
    (void)syscall(SYS_ioprio_set, IO_WHO_PROCESS, 0, IO_LAST);
    while (!w->ended && channel_receive(CHANNEL_FD, &job, &fd, true) == ERR_OK) {
        work(w, job, fd);
        if (fd >= 0)
            (void)close(fd);
        json_decref(job);
    }
    quarantine_close(w->quarantine);
    free(w);
    return 0;
}
