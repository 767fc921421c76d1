/* replay: runs a fuzz target on each file of its corpus, as an ordinary test. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>

#include "fuzz.h"

enum { INPUT_MAX = 1 << 20 };

/*
 * The input stands at the very end of a block of its own size, so that the sanitizers see a
 * read beyond it.
 */
static int replay_file(const char *path)
{
    static uint8_t buf[INPUT_MAX];
    FILE *f = fopen(path, "rb");

    if (!f) {
        printf("# %s: %s\n", path, strerror(errno));
        return -1;
    }
    size_t n = fread(buf, 1, sizeof(buf), f);
    (void)fclose(f); /* read only */
    uint8_t *exact = malloc(n > 0 ? n : 1);
    if (!exact)
        return -1;
    memcpy(exact, buf, n);
    int result = LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    return result;
}

static int replay_folder(const char *folder, const char *target)
{
    struct dirent **names = NULL;
    int n = scandir(folder, &names, NULL, alphasort), ran = 0, bad = 0;

    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];

        (void)snprintf(path, sizeof(path), "%s/%s", folder, names[i]->d_name);
        if (names[i]->d_name[0] != '.') {
            ran++;
            bad += replay_file(path) != 0;
        }
        free(names[i]);
    }
    free(names);
    printf("1..1\n%s 1 - %s holds for %d inputs\n", ran > 0 && bad == 0 ? "ok" : "not ok",
           target, ran);
    return ran > 0 && bad == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s TARGET CORPUS-FOLDER\n", argv[0]);
        return 2;
    }
    return replay_folder(argv[2], argv[1]);
}
