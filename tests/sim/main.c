/*
 * sim --runs N [--seed S] [--trace]: the simulator's command line.
 */
#include <inttypes.h>

#include "sim.h"

static struct sim world;

static void on_bug(const char *expr, const char *file, int line)
{
    printf("BUG: %s:%d: %s does not hold\nreplay: ./dev sim --runs 1 --seed %" PRIu64
           " --trace\n",
           file, line, expr, world.seed);
    fflush(stdout);
}

static bool number(const char *text, uint64_t *out)
{
    return text && str_u64(str_of(text), UINT64_MAX, out);
}

static int usage(void)
{
    fprintf(stderr,
            "usage: sim [--runs N] [--seed S] [--trace] [--hash]\n"
            "Runs N schedules with the seeds S, S+1, ...; exit 1 on a violation.\n"
            "--trace prints every event; --hash prints a checksum of each trace.\n");
    return 2;
}

int main(int argc, char **argv)
{
    uint64_t runs = 1000, seed = 1, steps = 0, takeovers = 0, commits = 0;
    bool trace = false, hash = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--runs") == 0 && number(argv[i + 1], &runs))
            i++;
        else if (strcmp(argv[i], "--seed") == 0 && number(argv[i + 1], &seed))
            i++;
        else if (strcmp(argv[i], "--trace") == 0)
            trace = true;
        else if (strcmp(argv[i], "--hash") == 0)
            hash = true;
        else
            return usage();
    }
    if (mac_start() != ERR_OK)
        return 1;
    check_hook = on_bug;
    for (uint64_t k = 0; k < runs; k++) {
        const char *bad = sim_run(&world, seed + k, trace);

        steps += world.steps;
        takeovers += world.takeovers;
        commits += world.db.commits;
        if (hash)
            printf("%" PRIu64 " %016" PRIx64 "\n", seed + k, world.hash);
        if (bad) {
            printf("VIOLATION: %s\nreplay: ./dev sim --runs 1 --seed %" PRIu64
                   " --trace\n",
                   bad, seed + k);
            return 1;
        }
    }
    printf("%" PRIu64 " schedules from seed %" PRIu64 ": no violation; %" PRIu64
           " events, %" PRIu64 " takeovers, %" PRIu64 " commits\n",
           runs, seed, steps, takeovers, commits);
    return 0;
}
