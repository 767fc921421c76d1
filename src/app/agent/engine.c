/* engine: the worker's jobs on clamd: configure, restart, verify. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/engine_conf.h"
#include "app/agent/files.h"
#include "app/agent/worker.h"
#include "sys/clamav/session.h"

enum { RESTART_S = 300, READY_S = 180, SAY_MS = 2000 };

struct engine {
    struct worker *w;
    const char *conf, *clamd, *restart;
    char unread[PATH_MAX]; /* is there while clamd may not have read its configuration */
    char before[ENGINE_CONF_MAX], base[ENGINE_CONF_MAX], after[ENGINE_CONF_MAX];
};

/* Whoever listens now; 0: nobody, or the service manager does it for clamd. */
static pid_t listener(const struct engine *g)
{
    struct clamav_session *s;
    pid_t pid = 0;

    if (clamav_session_open(g->clamd, &s, NULL) == ERR_OK) {
        pid = clamav_session_pid(s);
        clamav_session_close(s);
    }
    return pid == 1 ? 0 : pid;
}

static bool answers(const struct engine *g)
{
    char reply[256];
    struct clamd_version v;

    return clamav_say(g->clamd, "zPING", SAY_MS, reply, sizeof(reply), NULL) == ERR_OK &&
           strcmp(reply, "PONG") == 0 &&
           clamav_say(g->clamd, "zVERSION", SAY_MS, reply, sizeof(reply), NULL) ==
               ERR_OK &&
           clamd_version(str_of(reply), &v) == ERR_OK;
}

/* Runs the command, then waits for another clamd than the one before. */
static enum err restart(const struct engine *g, struct err_info *info)
{
    char words[256], out[512], *argv[COMMAND_WORDS_MAX + 1];
    struct command c = { argv, RESTART_S, out, sizeof(out), false };
    pid_t old = listener(g);
    int code = 0;

    (void)snprintf(words, sizeof(words), "%s", g->restart);
    if (!command_split(words, argv))
        return ERR_OK; /* nothing restarts it: it reads the file when it starts */
    enum err e = command_run(g->w, &c, &code, info);
    if (e == ERR_OK && code != 0)
        e = err_set(info, ERR_IO, 0, "%s ends with %d: %.150s", argv[0], code, out);
    if (e != ERR_OK)
        return e;
    for (unsigned i = 0; i < READY_S * 5 && !g->w->cancelled; i++) {
        pid_t now = listener(g);

        if ((now != old || old == 0) && answers(g))
            return ERR_OK;
        worker_listen(g->w, 200);
    }
    return err_set(info, ERR_TIMEOUT, 0, "clamd does not come back after its restart");
}

/* The device's own file, as it was before we wrote it for the first time. */
static enum err load_base(struct engine *g, const char *kept, struct err_info *info)
{
    size_t n;
    enum err e = file_load(kept, g->base, sizeof(g->base), &n, NULL);

    if (e == ERR_OK)
        return e;
    if (e != ERR_NOT_FOUND)
        return err_set(info, e, 0, "%s cannot be read", kept);
    memcpy(g->base, g->before, strlen(g->before) + 1);
    return file_store(kept, str_of(g->base), NULL, info);
}

static enum err apply(struct engine *g, struct err_info *info)
{
    struct err_info again;
    struct stat st;
    bool had = stat(g->conf, &st) == 0;
    enum err e = file_store(g->unread, STR("\n"), NULL, info);

    if (e == ERR_OK)
        e = file_store(g->conf, str_of(g->after), had ? &st : NULL, info);
    if (e != ERR_OK)
        return e;
    e = restart(g, info);
    /* The old one did work. */
    if (e == ERR_OK || (file_store(g->conf, str_of(g->before), &st, &again) == ERR_OK &&
                        restart(g, &again) == ERR_OK))
        (void)unlink(g->unread);
    return e;
}

enum err engine_job(struct worker *w, const json_t *job, json_t *out,
                    struct err_info *info)
{
    struct engine *g = calloc(1, sizeof(*g));
    struct text text;
    size_t n;

    if (!g)
        return err_set(info, ERR_MEMORY, ENOMEM, "engine");
    g->w = w;
    g->conf = job_text(job, "conf");
    g->clamd = job_text(job, "clamd");
    g->restart = job_text(job, "restart");
    if (g->conf[0] == '\0') { /* only a restart is wanted */
        enum err e = g->restart[0] ? restart(g, info)
                                   : err_set(info, ERR_CONFIG, 0,
                                             "[agent] engine_restart is empty");
        free(g);
        return e;
    }
    enum err e = file_load(g->conf, g->before, sizeof(g->before), &n, info);
    if (e == ERR_OK)
        e = load_base(g, job_text(job, "kept"), info);
    (void)snprintf(g->unread, sizeof(g->unread), "%.4000s.unread", job_text(job, "kept"));
    text_init(&text, g->after, sizeof(g->after));
    if (e == ERR_OK)
        engine_conf_render(str_of(g->base), str_of(job_text(job, "block")), &text);
    if (e == ERR_OK && text.cut)
        e = err_set(info, ERR_LIMIT, 0, "%s is too long", g->conf);
    if (e == ERR_OK &&
        (strcmp(g->before, g->after) != 0 || access(g->unread, F_OK) == 0)) {
        e = apply(g, info);
        (void)json_object_set_new(out, "changed", json_true());
    }
    if (e == ERR_OK)
        (void)json_object_set_new(out, "text", json_string(g->after));
    free(g);
    return e;
}
