#include "sys/supervisor/output.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "sys/supervisor/unit.h"

enum { READS_AT_ONCE = 8 };

static void pass_on(struct output *out)
{
    struct timespec t = { 0 };

    out->text[out->used] = '\0';
    out->used = 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    if ((uint64_t)t.tv_sec != out->second) {
        if (out->dropped > 0) {
            char note[64];

            (void)snprintf(note, sizeof(note), "(%u lines dropped)", out->dropped);
            out->line(out->user, out->service, note);
        }
        out->second = (uint64_t)t.tv_sec;
        out->lines = out->dropped = 0;
    }
    if (out->lines >= OUTPUT_LINES_PER_S) {
        out->dropped++;
        return;
    }
    out->lines++;
    out->line(out->user, out->service, out->text);
}

static void take(struct output *out, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '\n') {
            pass_on(out);
            continue;
        }
        out->text[out->used++] = (unsigned char)p[i] < ' ' && p[i] != '\t' ? '?' : p[i];
        if (out->used == sizeof(out->text) - 1)
            pass_on(out);
    }
}

/* Reads what waits, but lets the loop turn; false: nothing will come any more. */
static bool drain(struct output *out)
{
    char buf[4096];

    for (int i = 0; i < READS_AT_ONCE; i++) {
        ssize_t n = read(out->fd, buf, sizeof(buf));

        if (n > 0)
            take(out, buf, (size_t)n);
        else if (n < 0 && errno == EINTR)
            continue;
        else
            return n < 0 && errno == EAGAIN;
    }
    return true;
}

static int readable(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct output *out = user;

    (void)fd;
    (void)events;
    if (!drain(out))
        (void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
    return 0;
}

enum err output_open(struct output *out, sd_event *event, int *ret_write,
                     struct err_info *info)
{
    int p[2], r;

    if (pipe2(p, O_CLOEXEC) != 0)
        return err_set(info, ERR_IO, errno, "make a pipe for its output");
    /* Only our end: a service does not expect that its standard output says EAGAIN. */
    r = fcntl(p[0], F_SETFL, O_NONBLOCK) != 0 ? -errno : 0;
    if (r == 0)
        r = sd_event_add_io(event, &out->source, p[0], EPOLLIN, readable, out);
    if (r < 0) {
        (void)close(p[0]);
        (void)close(p[1]);
        return err_set(info, ERR_IO, -r, "watch its output");
    }
    (void)sd_event_source_set_priority(out->source, UNIT_PRIO_OUTPUT);
    out->fd = p[0];
    out->used = 0;
    *ret_write = p[1];
    return ERR_OK;
}

void output_close(struct output *out)
{
    if (out->fd < 0)
        return;
    (void)drain(out);
    if (out->used > 0)
        pass_on(out);
    out->source = sd_event_source_disable_unref(out->source);
    (void)close(out->fd);
    out->fd = -1;
}
