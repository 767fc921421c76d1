#include "app/web/health.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/str.h"

static const char REQUEST[] = "GET / HTTP/1.0\r\n\r\n";
static const char ANSWER[] = "HTTP/1.1 204";

void health_init(struct health *h)
{
    *h = (struct health){ .fd = -1 };
}

void health_clear(struct health *h)
{
    if (h->fd >= 0)
        (void)close(h->fd);
    health_init(h);
}

enum err health_ask(struct health *h, const char *socket_path, struct mono now)
{
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    const ssize_t size = (ssize_t)sizeof(REQUEST) - 1;

    health_clear(h);
    if (!str_copy(to.sun_path, sizeof(to.sun_path), str_of(socket_path)))
        return ERR_LIMIT;
    h->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (h->fd < 0)
        return ERR_IO;
    h->asked = now;
    /* A Unix connection is there at once or not at all; the request fits its buffer. */
    if (connect(h->fd, (struct sockaddr *)&to, sizeof(to)) != 0 ||
        send(h->fd, REQUEST, (size_t)size, MSG_NOSIGNAL) != size) {
        health_clear(h);
        return ERR_CLOSED;
    }
    return ERR_OK;
}

enum err health_read(struct health *h)
{
    const size_t enough = sizeof(ANSWER) - 1;

    while (h->used < enough) {
        ssize_t n = recv(h->fd, h->answer + h->used, sizeof(h->answer) - h->used, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return ERR_TIMEOUT;
        if (n <= 0)
            break;
        h->used += (size_t)n;
    }
    bool ok = h->used >= enough && memcmp(h->answer, ANSWER, enough) == 0;
    health_clear(h);
    return ok ? ERR_OK : ERR_IO;
}
