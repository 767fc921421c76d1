/* The supervisor with real processes that fail in every way it promises to see. */
#include "fault/services_world.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "redoubt/service.h"

static void a_hot_service_follows_its_role(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_true(why_has(w, 0, "epoch 41"));
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_string_equal(supervisor_status(w->s, 0), "hot on node-a");
    want(w, SERVICE_WANT_STOPPED, 0);
    assert_turns(w, 0, SERVICE_STOPPED);
    assert_int_equal(w->failures[0], 0);
}

static void a_new_epoch_is_told_anew(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    want(w, SERVICE_WANT_ACTIVE, 42);
    assert_turns(w, 0, SERVICE_CHANGING);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_true(why_has(w, 0, "epoch 42"));
}

static void a_cold_service_runs_only_while_active(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_COLD, "cold", NULL, NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_int_equal(supervisor_pid(w->s, 0), 0);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_true(supervisor_pid(w->s, 0) > 0);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_int_equal(supervisor_pid(w->s, 0), 0);
}

static void any_program_can_be_cold(void **state)
{
    struct world *w = *state;
    struct supervisor_service *c = add(w, SUPERVISOR_COLD, "sleep", "1000", NULL);

    w->argv[0][0] = "/bin/sleep";
    c->ready_at_start = true;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
}

static void an_always_service_runs_through_every_role(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_ALWAYS, "agent", "noack", NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    pid_t pid = supervisor_pid(w->s, 0);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    assert_int_equal(supervisor_pid(w->s, 0), pid);
}

static void a_killed_service_fails_and_is_restarted(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(kill(supervisor_pid(w->s, 0), SIGKILL), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "SIGKILL"));
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(w->last[0].restarts, 1);
}

static void a_service_that_ends_by_itself_has_failed(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "exit=0", NULL)->restart_backoff_ms = 5000;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "status 0 before it was ready"));
}

static void the_wait_before_a_restart_doubles(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "exit=7", NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    for (uint32_t n = 1; n <= 4; n++) {
        for (int ms = 0; ms < PATIENCE_MS && w->failures[0] < n; ms++)
            (void)sd_event_run(w->event, 1000);
        assert_int_equal(w->failures[0], n);
    }
    assert_true(why_has(w, 0, "next start in 400 ms"));
    want(w, SERVICE_WANT_STOPPED, 0);
    assert_turns(w, 0, SERVICE_STOPPED);
}

static void a_program_that_does_not_exist_is_named(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL)->restart_backoff_ms = 5000;
    w->argv[0][0] = "/nonexistent/program";
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "/nonexistent/program"));
    assert_true(why_has(w, 0, "No such file"));
}

static void a_user_that_does_not_exist_is_named(void **state)
{
    struct world *w = *state;
    struct supervisor_service *c = add(w, SUPERVISOR_HOT, "hot", NULL, NULL);

    c->restart_backoff_ms = 5000;
    c->user = "no-such-user";
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "no-such-user"));
}

static void a_stopped_service_misses_its_watchdog(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL)->watchdog_ms = 4000;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    rest(w, 5000); /* it is fed as long as the service runs */
    assert_int_equal(w->failures[0], 0);
    assert_int_equal(kill(supervisor_pid(w->s, 0), SIGSTOP), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "WATCHDOG"));
}

static void what_is_never_ready_fails_to_start(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "noready", NULL)->start_timeout_ms = 200;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "not ready within 200 ms"));
}

static void what_will_not_stop_is_killed(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "stubborn", NULL)->stop_timeout_ms = 200;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    pid_t pid = supervisor_pid(w->s, 0);
    want(w, SERVICE_WANT_STOPPED, 0);
    assert_turns(w, 0, SERVICE_STOPPED);
    assert_int_equal(kill(pid, 0), -1);
}

static void what_will_not_stand_by_is_killed(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "nostandby", NULL)->role_timeout_ms = 1500;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    pid_t pid = supervisor_pid(w->s, 0);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "did not acknowledge \"standby\""));
    assert_int_equal(kill(pid, 0), -1);
    assert_turns(w, 0, SERVICE_STANDBY);
}

static void what_does_not_become_active_has_failed(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "noack", NULL)->role_timeout_ms = 300;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "did not acknowledge \"active\""));
}

static void a_worker_that_dies_counts(void **state)
{
    struct world *w = *state;
    pid_t pids[8];

    add(w, SUPERVISOR_HOT, "hot", "worker", NULL)->all_processes = true;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    rest(w, 2500); /* long enough to be lasting */
    pid_t pid = supervisor_pid(w->s, 0);
    assert_int_equal(pids_of(w, 0, pids, 8), 2);
    assert_int_equal(kill(pids[0] == pid ? pids[1] : pids[0], SIGKILL), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "while the main process lives"));
    assert_int_equal(kill(pid, 0), -1);
}

static void a_worker_that_is_stopped_counts(void **state)
{
    struct world *w = *state;
    pid_t pids[8];

    add(w, SUPERVISOR_HOT, "hot", "worker", NULL)->all_processes = true;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(pids_of(w, 0, pids, 8), 2);
    assert_int_equal(
        kill(pids[0] == supervisor_pid(w->s, 0) ? pids[1] : pids[0], SIGSTOP), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "is stopped"));
}

static void a_stopped_main_process_counts_without_a_watchdog(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", NULL, NULL)->all_processes = true;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(kill(supervisor_pid(w->s, 0), SIGSTOP), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "is stopped"));
}

static void a_worker_may_end_with_the_role(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "onduty", NULL)->all_processes = true;
    begin(w, -1);
    for (uint64_t epoch = 41; epoch < 44; epoch++) {
        want(w, SERVICE_WANT_ACTIVE, epoch);
        assert_turns(w, 0, SERVICE_ACTIVE);
        if (epoch == 41)
            rest(w, 3500); /* long enough to count as a lasting process */
        want(w, SERVICE_WANT_STANDBY, 0);
        assert_turns(w, 0, SERVICE_CHANGING);
        assert_turns(w, 0, SERVICE_STANDBY);
    }
    rest(w, 300);
    assert_int_equal(w->failures[0], 0);
}

/* "Uid:\t65534\t..." of /proc/<pid>/status: the number after the name. */
static long status_number(pid_t pid, const char *name)
{
    char path[64], text[256];
    long v = -1;
    FILE *f;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "re");
    assert_non_null(f);
    while (fgets(text, sizeof(text), f))
        if (strncmp(text, name, strlen(name)) == 0)
            v = strtol(text + strlen(name) + 1, NULL, 10);
    assert_int_equal(fclose(f), 0);
    return v;
}

static void it_runs_as_its_user_and_gains_nothing(void **state)
{
    struct world *w = *state;
    struct supervisor_service *c = add(w, SUPERVISOR_COLD, "sleep", "1000", NULL);

    w->argv[0][0] = "/bin/sleep"; /* which nobody can reach, wherever the build is */
    c->ready_at_start = true;
    c->user = "nobody";
    c->nofile = 1u << 30; /* more than anybody may have: as many as possible */
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    pid_t pid = supervisor_pid(w->s, 0);
    assert_int_equal(status_number(pid, "Uid"), 65534);
    assert_int_equal(status_number(pid, "NoNewPrivs"), 1);
    assert_int_equal(getsid(pid), pid);
}

static void short_lived_helpers_do_not_count(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "helpers", NULL)->all_processes = true;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    rest(w, 1500);
    assert_int_equal(w->failures[0], 0);
}

static void a_helper_that_is_slow_at_the_start_does_not_count(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "slowhelper", NULL)->all_processes = true;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    rest(w, 800);
    assert_int_equal(w->failures[0], 0);
}

static void nothing_of_a_failed_service_lives_on(void **state)
{
    struct world *w = *state;
    pid_t pids[8];

    add(w, SUPERVISOR_HOT, "hot", "orphan", NULL)->restart_backoff_ms = 5000;
    begin(w, -1);
    want(w, SERVICE_WANT_ACTIVE, 41);
    assert_turns(w, 0, SERVICE_ACTIVE);
    assert_int_equal(pids_of(w, 0, pids, 8), 2);
    assert_int_equal(kill(supervisor_pid(w->s, 0), SIGKILL), 0);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_int_equal(pids_of(w, 0, pids, 8), 0);
}

static void kill_ends_everything_and_starts_nothing(void **state)
{
    struct world *w = *state;
    pid_t pids[8];

    add(w, SUPERVISOR_HOT, "hot", "stubborn", "orphan");
    add(w, SUPERVISOR_ALWAYS, "agent", "stubborn", NULL);
    add(w, SUPERVISOR_COLD, "cold", NULL, NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_turns(w, i, SERVICE_STANDBY);
    w->port.ops->kill(w->port.impl);
    for (uint32_t i = 0; i < 3; i++) {
        assert_turns(w, i, SERVICE_STOPPED);
        assert_int_equal(pids_of(w, i, pids, 8), 0);
    }
    rest(w, 300);
    uint32_t before = w->reports[2];
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(w->last[i].state, SERVICE_STOPPED);
    w->port.ops->kill(w->port.impl); /* what is stopped already says so again */
    rest(w, 50);
    assert_int_equal(w->reports[2], before + 1);
    want(w, SERVICE_WANT_STANDBY, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_turns(w, i, SERVICE_STANDBY);
}

static void they_stop_in_reverse_order(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "second", NULL, NULL)->order = 2;
    add(w, SUPERVISOR_HOT, "third", "stubborn", NULL)->order = 3;
    add(w, SUPERVISOR_HOT, "first", NULL, NULL)->order = 1;
    w->conf[1].stop_timeout_ms = 200;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_turns(w, i, SERVICE_STANDBY);
    want(w, SERVICE_WANT_STOPPED, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_turns(w, i, SERVICE_STOPPED);
    assert_int_equal(w->end_order[0], 1);
    assert_int_equal(w->end_order[1], 0);
    assert_int_equal(w->end_order[2], 2);
}

static void what_a_crashed_daemon_left_is_killed_first(void **state)
{
    struct world *w = *state;
    char path[PATH_MAX];
    int status;
    pid_t stray = fork();

    assert_true(stray >= 0);
    if (stray == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            (void)pause();
    }
    (void)snprintf(path, sizeof(path), "%s/services", box.group);
    assert_int_equal(mkdir(path, 0755), 0);
    (void)snprintf(path, sizeof(path), "%s/services/old", box.group);
    assert_int_equal(mkdir(path, 0755), 0);
    (void)snprintf(path, sizeof(path), "%s/services/old/cgroup.procs", box.group);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    (void)fprintf(f, "%d", (int)stray);
    assert_int_equal(fclose(f), 0);
    add(w, SUPERVISOR_HOT, "hot", NULL, NULL);
    begin(w, -1);
    /* It has left the group; to be a dead child it needs a moment more. */
    pid_t reaped = 0;
    for (int ms = 0; ms < PATIENCE_MS && reaped == 0; ms++) {
        (void)usleep(1000);
        reaped = waitpid(stray, &status, WNOHANG);
    }
    assert_int_equal(reaped, stray);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(w->remarks > 0);
}

static void lines_come_through_bounded(void **state)
{
    struct world *w = *state;

    add(w, SUPERVISOR_HOT, "hot", "talk=5000", NULL);
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    assert_turns(w, 0, SERVICE_STANDBY);
    for (int ms = 0; ms < PATIENCE_MS && w->lines < 50; ms++)
        (void)sd_event_run(w->event, 1000);
    rest(w, 200);
    assert_in_range(w->lines, 50, 400);
}

static void its_processes_cannot_outlive_the_daemon(void **state)
{
    struct world *w = *state;
    int status, told[2];
    pid_t main_pid = 0;

    assert_int_equal(pipe2(told, O_CLOEXEC), 0);
    add(w, SUPERVISOR_HOT, "hot", "stubborn", NULL);
    pid_t daemon = fork();
    if (daemon == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        begin(w, -1);
        want(w, SERVICE_WANT_STANDBY, 0);
        (void)turns(w, 0, SERVICE_STANDBY);
        main_pid = supervisor_pid(w->s, 0);
        if (write(told[1], &main_pid, sizeof(main_pid)) < 0)
            _exit(1);
        (void)raise(SIGKILL);
    }
    assert_int_equal(waitpid(daemon, &status, 0), daemon);
    assert_int_equal(read(told[0], &main_pid, sizeof(main_pid)), sizeof(main_pid));
    assert_true(main_pid > 0);
    (void)close(told[0]);
    (void)close(told[1]);
    for (int ms = 0; ms < PATIENCE_MS && kill(main_pid, 0) == 0; ms++)
        (void)usleep(1000);
    assert_int_equal(kill(main_pid, 0), -1);
}

static void a_message_from_outside_the_group_is_not_heard(void **state)
{
    struct world *w = *state;
    char path[PATH_MAX];

    add(w, SUPERVISOR_HOT, "hot", "noready", NULL)->start_timeout_ms = 1000;
    begin(w, -1);
    want(w, SERVICE_WANT_STANDBY, 0);
    (void)snprintf(path, sizeof(path), "%s/notify/hot", box.run);
    assert_int_equal(setenv("NOTIFY_SOCKET", path, 1), 0);
    struct redoubt_service *liar = redoubt_service_start(0);
    assert_non_null(liar);
    assert_int_equal(redoubt_service_ready(liar), 0);
    redoubt_service_stop(liar);
    assert_turns(w, 0, SERVICE_FAILED);
    assert_true(why_has(w, 0, "not ready"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_hot_service_follows_its_role),
        T(a_new_epoch_is_told_anew),
        T(a_cold_service_runs_only_while_active),
        T(any_program_can_be_cold),
        T(an_always_service_runs_through_every_role),
        T(a_killed_service_fails_and_is_restarted),
        T(a_service_that_ends_by_itself_has_failed),
        T(the_wait_before_a_restart_doubles),
        T(a_program_that_does_not_exist_is_named),
        T(a_user_that_does_not_exist_is_named),
        T(a_stopped_service_misses_its_watchdog),
        T(what_is_never_ready_fails_to_start),
        T(what_will_not_stop_is_killed),
        T(what_will_not_stand_by_is_killed),
        T(what_does_not_become_active_has_failed),
        T(a_worker_that_dies_counts),
        T(a_worker_that_is_stopped_counts),
        T(a_stopped_main_process_counts_without_a_watchdog),
        T(a_worker_may_end_with_the_role),
        T(it_runs_as_its_user_and_gains_nothing),
        T(short_lived_helpers_do_not_count),
        T(a_helper_that_is_slow_at_the_start_does_not_count),
        T(nothing_of_a_failed_service_lives_on),
        T(kill_ends_everything_and_starts_nothing),
        T(they_stop_in_reverse_order),
        T(what_a_crashed_daemon_left_is_killed_first),
        T(lines_come_through_bounded),
        T(its_processes_cannot_outlive_the_daemon),
        T(a_message_from_outside_the_group_is_not_heard),
    };

    return world_run("supervisor", tests, LEN(tests));
}
