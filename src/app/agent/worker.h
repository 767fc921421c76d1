/*
 * worker: the process of the agent that may block: scans, the quarantine, freshclam,
 * restarting the engine, the inventory, asking for a licence.
 *
 * Purpose   `redoubt-agent --scanner` takes one job after the other from its channel and
 *           answers {"t":"done","ok":..} to each; in between it tells
 *           {"t":"event","kind","severity","data"} and {"t":"progress",...}.  While a job
 *           runs, {"do":"pause"|"resume"|"cancel"} may come.
 * Safety    It dies with the agent, by prctl and by the end of its channel.
 * Threads   a process of its own, one thread
 * Tests     tests/contract/test_protect.py
 */
#ifndef APP_AGENT_WORKER_H
#define APP_AGENT_WORKER_H

#include <jansson.h>
#include <sys/stat.h>

#include "base/err.h"
#include "sys/quarantine/quarantine.h"

enum { WORKER_PATH_TEXT = 1024 };

struct worker {
    struct quarantine *quarantine; /* NULL: not opened yet */
    bool keep;                     /* infected files go to the quarantine */
    uint32_t days;
    uint64_t max_bytes;
    bool paused, cancelled, ended; /* what the channel said */
};

/* What a job answers: the members of "done"; out is new and becomes the caller's. */
typedef enum err worker_job(struct worker *w, const json_t *job, json_t *out,
                            struct err_info *info);
worker_job scan_job, update_job, engine_job, inventory_job, licence_job, fetch_job;

/* data is stolen. */
void worker_event(const char *kind, const char *severity, json_t *data);
void worker_tell(json_t *message);
/* Takes what the channel says; waits for it at most ms. */
void worker_listen(struct worker *w, uint32_t ms);
/* Monotonic time. */
uint64_t worker_now_us(void);

/* cure.c: a threat was found in what fd holds.  true: cured, or allowed by a restore. */
enum cure { CURE_ALLOWED, CURE_DONE, CURE_FAILED };
enum cure cure_found(struct worker *w, const char *path, int fd,
                     const struct stat *scanned, const char *threat, const char *by);
/* What events tell of a file with a threat, see docs/protocol/events.md; NULL: no memory. */
json_t *cure_describe(const char *path, const char *threat, const char *sha256,
                      const struct stat *st, const char *by);
worker_job cure_restore, cure_delete, cure_recover;

/*
 * command.c: run a program without a shell, at most so long; cancel ends it.
 * out   its output and errors, the last `size` bytes, NUL-terminated
 * code  out: exit code, 128 + signal
 */
struct command {
    char *const *argv;
    uint32_t limit_s;
    char *out;
    size_t size;
    bool keep_head; /* the first bytes instead of the last */
};
MUST_USE enum err command_run(struct worker *w, const struct command *c, int *code,
                              struct err_info *info);
/* Splits at blanks, no quoting; false if there is nothing or too much. */
enum { COMMAND_WORDS_MAX = 16 };
MUST_USE bool command_split(char *text, char *argv[COMMAND_WORDS_MAX + 1]);

const char *job_text(const json_t *job, const char *key);
int64_t job_number(const json_t *job, const char *key);

#endif
