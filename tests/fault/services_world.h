/* services_world: a node daemon in miniature: the supervisor, and what it reported. */
#ifndef TESTS_FAULT_SERVICES_WORLD_H
#define TESTS_FAULT_SERVICES_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fault/sandbox.h"
#include "sys/guard/page.h"
#include "sys/supervisor/supervisor.h"

enum { PATIENCE_MS = 10000, ARGS_MAX = 16, SERVICES = 3 };

extern struct sandbox box;
extern char puppet[512]; /* the service that misbehaves as told */

struct world {
    sd_event *event;
    struct supervisor *s;
    struct services port;
    struct lease_writer lease;
    struct supervisor_service conf[SERVICES];
    const char *argv[SERVICES][ARGS_MAX + 2];
    uint32_t count;
    struct supervisor_report last[SERVICES];
    uint32_t reports[SERVICES], failures[SERVICES];
    uint32_t end_order[SERVICES], ended;
    uint32_t lines, remarks;
    char line[200];
};

/* Setup and teardown of one test. */
int world_new(void **state);
int world_free(void **state);
/* main(): all tests in a sandbox, or skipped with the reason. */
int world_run(const char *name, const struct CMUnitTest *tests, size_t count);

/* Adds a puppet with at most two arguments. */
struct supervisor_service *add(struct world *w, enum supervisor_standby standby,
                               const char *name, const char *a, const char *b);
/* Starts the supervisor over what was added; lease_fd -1: without a lease page. */
void begin(struct world *w, int lease_fd);
void want(struct world *w, enum service_want what, uint64_t epoch);

/* Turns the loop until service i is in the state; false after PATIENCE_MS. */
bool turns(struct world *w, uint32_t i, enum service_state state);
/* Turns the loop for a while. */
void rest(struct world *w, int ms);

/* The processes of service i. */
size_t pids_of(struct world *w, uint32_t i, pid_t *pids, size_t max);
bool why_has(const struct world *w, uint32_t i, const char *text);

#define assert_turns(w, i, wanted)                                                       \
    do {                                                                                 \
        if (!turns(w, i, wanted))                                                        \
            fail_msg("service %u is in state %u: %s (%s)", (unsigned)(i),                \
                     (unsigned)(w)->last[i].state, (w)->last[i].why, (w)->line);         \
    } while (0)

#define T(f) cmocka_unit_test_setup_teardown(f, world_new, world_free)

#endif
