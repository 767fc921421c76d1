/* bad_sector: LD_PRELOAD; files whose names stand in the file BAD_SECTOR cannot be read. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_bad(int fd)
{
    const char *list = getenv("BAD_SECTOR");
    char link[64], path[4096], line[256];
    FILE *f;
    int bad = 0;

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0 || !list || !(f = fopen(list, "re")))
        return 0;
    path[n] = '\0';
    while (!bad && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        bad = line[0] && strstr(path, line);
    }
    (void)fclose(f);
    return bad;
}

typedef ssize_t pread_fn(int fd, void *buf, size_t n, off_t at);

static ssize_t read_at(const char *name, int fd, void *buf, size_t n, off_t at)
{
    pread_fn *real;

    if (is_bad(fd)) {
        errno = EIO;
        return -1;
    }
    *(void **)&real = dlsym(RTLD_NEXT, name);
    return real(fd, buf, n, at);
}

/* The names of the symbols: this file is compiled with 64-bit offsets, as others may not be. */
pread_fn plain __asm__("pread"), large __asm__("pread64");

ssize_t plain(int fd, void *buf, size_t n, off_t at)
{
    return read_at("pread", fd, buf, n, at);
}

ssize_t large(int fd, void *buf, size_t n, off_t at)
{
    return read_at("pread64", fd, buf, n, at);
}
