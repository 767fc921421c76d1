/*
 * log: structured lines to the journal or to stderr, and a ring of the last ones.
 *
 * Purpose   log_event(LOG_LEVEL_INFO, "node_move", log_str("from", "ready"),
 *                     log_u64("epoch", 41));
 *           gives `2026-11-22T19:56:14.123Z info redoubt-node: node_move from=ready
 *           epoch=41` on stderr, or a journal entry with the fields REDOUBT_EVENT,
 *           REDOUBT_FROM, REDOUBT_EPOCH and that text as its message.
 * Shape     A line is cut at LOG_LINE_BYTES.  Everything, debug lines too, goes into a
 *           ring of LOG_RING_LINES lines in memory, whatever the level.
 * Safety    Never blocks: a line that the journal or the pipe does not take at once is
 *           dropped and counted, and the next line carries lost=N.  One event is printed
 *           at most LOG_BURST times in LOG_WINDOW_MS; the first line after that carries
 *           suppressed=N.
 * Owns      One process has one log; values are borrowed for the call.
 * Threads   one thread only
 * Tests     tests/unit/test_log.c
 */
#ifndef SYS_LOG_H
#define SYS_LOG_H

#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

/* In the order of `enum conf_level` and `enum conf_target`. */
enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };
enum log_target { LOG_TARGET_AUTO, LOG_TARGET_JOURNAL, LOG_TARGET_STDERR };

enum {
    LOG_LINE_BYTES = 512,
    LOG_RING_LINES = 512,
    LOG_BURST = 20,
    LOG_WINDOW_MS = 10000,
};

struct log_field {
    const char *key; /* lower case, digits, '_'; NULL ends a list */
    enum log_kind { LOG_KIND_STR, LOG_KIND_U64, LOG_KIND_I64, LOG_KIND_BOOL } kind;
    union {
        const char *str;
        uint64_t u64;
        int64_t i64;
    };
};

static inline struct log_field log_str(const char *key, const char *value)
{
    return (struct log_field){ .key = key, .kind = LOG_KIND_STR, .str = value };
}

static inline struct log_field log_u64(const char *key, uint64_t value)
{
    return (struct log_field){ .key = key, .kind = LOG_KIND_U64, .u64 = value };
}

static inline struct log_field log_i64(const char *key, int64_t value)
{
    return (struct log_field){ .key = key, .kind = LOG_KIND_I64, .i64 = value };
}

static inline struct log_field log_bool(const char *key, bool value)
{
    return (struct log_field){ .key = key, .kind = LOG_KIND_BOOL, .u64 = value };
}

/* log_event(level, "event", fields...) */
#define log_event(level, ...) LOG_EVENT_(level, __VA_ARGS__, log_str(NULL, NULL))
#define LOG_EVENT_(level, event, ...)                                                    \
    log_fields(level, event, (const struct log_field[]){ __VA_ARGS__ })

/* fields end with a NULL key. */
void log_fields(enum log_level level, const char *event, const struct log_field *fields);

/*
 * log_start - name the program and choose the target; installs check_hook, so that a bug
 * dumps the ring before the process aborts.  Without it lines go to stderr at level info.
 *
 * program  borrowed for the life of the process.
 */
void log_start(const char *program, enum log_level level, enum log_target target);
void log_set_level(enum log_level level);

/* The ring, oldest first: each line borrowed for the call. */
void log_ring_each(void (*each)(void *arg, const char *line), void *arg);
void log_ring_dump(FILE *to);

const char *log_level_name(enum log_level level);

#endif
