/*
 * child: a process of our own program, with a channel.
 *
 * Owns      new/free; free kills it.  A descriptor given to `message` is the hook's.
 * Safety    The child dies with the agent.  `ended` comes once, after the last message;
 *           a hook may free the child.
 * Threads   loop thread only
 */
#ifndef APP_AGENT_CHILD_H
#define APP_AGENT_CHILD_H

#include <jansson.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

#include "base/err.h"

struct child;
struct child_hooks {
    void *arg;
    void (*message)(void *arg, json_t *message, int fd); /* message: borrowed */
    /* code: exit code, or 128 + signal */
    void (*ended)(void *arg, int code);
};

/* mode: "--scanner" | "--on-access" */
MUST_USE enum err child_new(sd_event *event, const char *mode,
                            const struct child_hooks *hooks, struct child **out,
                            struct err_info *info);
void child_free(struct child *c);

/* message is stolen; false: it does not read, or is gone. */
bool child_send(struct child *c, json_t *message, int fd);
/* No more jobs: it ends when it is done. */
void child_finish(struct child *c);
/* While it is held no message of it is taken; its own sends wait or are refused. */
void child_hold(struct child *c, bool held);
pid_t child_pid(const struct child *c);

#endif
