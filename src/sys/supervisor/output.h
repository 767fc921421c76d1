/*
 * output: the lines a service writes, passed on one by one and bounded (internal).
 *
 * Shape     A pipe; lines longer than OUTPUT_LINE_BYTES are cut into several, bytes
 *           below blank replaced, at most OUTPUT_LINES_PER_S passed on, the rest
 *           counted.
 * Owns      The pipe's reading end and its event source.
 */
#ifndef SYS_SUPERVISOR_OUTPUT_H
#define SYS_SUPERVISOR_OUTPUT_H

#include <systemd/sd-event.h>

#include "base/err.h"

enum { OUTPUT_LINE_BYTES = 1024, OUTPUT_LINES_PER_S = 100 };

struct output {
    int fd; /* -1: none */
    sd_event_source *source;
    void (*line)(void *user, uint32_t service, const char *text);
    void *user;
    uint32_t service;
    uint64_t second;         /* the present second of the rate limit */
    uint32_t lines, dropped; /* in it */
    size_t used;
    char text[OUTPUT_LINE_BYTES];
};

/* Opens the pipe; *ret_write is the caller's to close once the child has it. */
MUST_USE enum err output_open(struct output *out, sd_event *event, int *ret_write,
                              struct err_info *info);
/* Passes on what still waits, and closes. */
void output_close(struct output *out);

#endif
