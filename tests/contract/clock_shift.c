/* clock_shift: LD_PRELOAD; the wall clock of a program is CLOCK_SHIFT_S seconds off, or what
 * the file CLOCK_SHIFT_FILE says at the moment. */
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/time.h>
#include <unistd.h>

static long shift(void)
{
    const char *s = getenv("CLOCK_SHIFT_S"), *path = getenv("CLOCK_SHIFT_FILE");
    char text[32] = "";
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        if (read(fd, text, sizeof(text) - 1) > 0)
            s = text;
        (void)close(fd);
    }
    return s ? strtol(s, NULL, 10) : 0;
}

int clock_gettime(clockid_t id, struct timespec *out)
{
    static int (*real)(clockid_t, struct timespec *);

    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int n = real(id, out);
    if (n == 0 && id == CLOCK_REALTIME)
        out->tv_sec += shift();
    return n;
}

time_t time(time_t *out)
{
    struct timespec t = { 0 };

    (void)clock_gettime(CLOCK_REALTIME, &t);
    if (out)
        *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec t = { 0 };

    (void)zone;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    *out = (struct timeval){ .tv_sec = t.tv_sec, .tv_usec = t.tv_nsec / 1000 };
    return 0;
}
