#include "fault/services_world.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include "sys/supervisor/cgroup.h"

struct sandbox box;
char puppet[512];

static void report(void *user, const struct supervisor_report *r)
{
    struct world *w = user;

    w->last[r->service] = *r;
    w->reports[r->service]++;
    if (r->state == SERVICE_FAILED)
        w->failures[r->service]++;
    if (r->state == SERVICE_STOPPED && w->ended < SERVICES)
        w->end_order[w->ended++] = r->service;
}

static void line(void *user, uint32_t service, const char *text)
{
    struct world *w = user;

    if (service >= w->count) {
        w->remarks++;
        return;
    }
    w->lines++;
    (void)snprintf(w->line, sizeof(w->line), "%.190s", text);
}

/* Adds a puppet; what = its arguments, separated by one blank. */
struct supervisor_service *add(struct world *w, enum supervisor_standby standby,
                               const char *name, const char *a, const char *b)
{
    uint32_t i = w->count++;

    w->argv[i][0] = puppet;
    w->argv[i][1] = a;
    w->argv[i][2] = b;
    w->conf[i] = (struct supervisor_service){
        .name = name,
        .argv = w->argv[i],
        .standby = standby,
        .start_timeout_ms = 5000,
        .stop_timeout_ms = 5000,
        .role_timeout_ms = 5000,
        .restart_backoff_ms = 50,
        .restart_backoff_max_ms = 60000,
    };
    return &w->conf[i];
}

void begin(struct world *w, int lease_fd)
{
    struct err_info info = { 0 };

    assert_true(sd_event_new(&w->event) >= 0);
    if (supervisor_new(&w->s,
                       &(struct supervisor_options){ .event = w->event,
                                                     .services = w->conf,
                                                     .service_count = w->count,
                                                     .run_dir = box.run,
                                                     .node = "node-a",
                                                     .conf = "/dev/null",
                                                     .lease_fd = lease_fd,
                                                     .report = report,
                                                     .line = line,
                                                     .user = w },
                       &info))
        fail_msg("supervisor_new: %s", info.what);
    w->port = supervisor_services(w->s);
}

void want(struct world *w, enum service_want what, uint64_t epoch)
{
    uint32_t before[SERVICES];

    memcpy(before, w->reports, sizeof(before));
    w->port.ops->set(w->port.impl, what, epoch);
    assert_memory_equal(before, w->reports,
                        sizeof(before)); /* not from within the call */
}

int world_new(void **state)
{
    *state = calloc(1, sizeof(struct world));
    return *state ? 0 : -1;
}

int world_free(void **state)
{
    struct world *w = *state;

    supervisor_free(w->s);
    sd_event_unref(w->event);
    lease_writer_release(&w->lease);
    free(w);
    return 0;
}

/* Turns the loop until service i is in the state; false after PATIENCE_MS. */
bool turns(struct world *w, uint32_t i, enum service_state state)
{
    for (int ms = 0; ms < PATIENCE_MS; ms++) {
        if (w->reports[i] > 0 && w->last[i].state == state)
            return true;
        (void)sd_event_run(w->event, 1000);
    }
    return false;
}

void rest(struct world *w, int ms)
{
    for (uint64_t now, end = 0;;) {
        assert_true(sd_event_now(w->event, CLOCK_MONOTONIC, &now) >= 0);
        if (end == 0)
            end = now + (uint64_t)ms * 1000u;
        if (now >= end)
            return;
        (void)sd_event_run(w->event, end - now);
    }
}

/* The processes of service i. */
size_t pids_of(struct world *w, uint32_t i, pid_t *pids, size_t max)
{
    struct cgroup g = { .events = -1 };
    size_t n;

    (void)snprintf(g.path, sizeof(g.path), "%s/%s", supervisor_cgroup_path(w->s),
                   w->conf[i].name);
    g.dir = open(g.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(g.dir >= 0);
    n = cgroup_pids(&g, pids, max);
    cgroup_release(&g);
    return n;
}

bool why_has(const struct world *w, uint32_t i, const char *text)
{
    return strstr(w->last[i].why, text) != NULL;
}

int world_run(const char *name, const struct CMUnitTest *tests, size_t count)
{
    if (!sandbox_enter(&box))
        return 0;
    sandbox_sibling(puppet, sizeof(puppet), "puppet");
    int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
    sandbox_leave(&box);
    return failed;
}
