/* A redoubt-keeper that misbehaves as the last part of --share says. */
#include <sys/socket.h>
#include <unistd.h>

#include "sys/keeper/keeper_wire.h"

static char packet[KEEPER_WIRE_MAX], reply[KEEPER_WIRE_MAX];

static bool say(const char *bytes, size_t n)
{
    return send(KEEPER_FD_SOCKET, bytes, n, MSG_NOSIGNAL) == (ssize_t)n;
}

static bool behave(const char *how, const struct share_request *rq)
{
    const struct keeper_news news = { .connections = 1 };
    struct share_answer a = { .id = rq->id, .top = rq->epoch };

    if (strcmp(how, "garbage") == 0)
        return say("garbage", 7);
    if (strcmp(how, "wrong-id") == 0)
        a.id++;
    size_t n = keeper_wire_answer(reply, &a, &news);
    if (strcmp(how, "old") == 0)
        reply[0] ^= 1;
    return say(reply, n) && (strcmp(how, "twice") != 0 || say(reply, n));
}

int main(int argc, char **argv)
{
    struct share_request rq;
    ssize_t n;

    if (argc < 3 || !strrchr(argv[2], '/'))
        return 2;
    const char *how = strrchr(argv[2], '/') + 1;
    const struct share_answer hello = { .id = 0 };
    const struct keeper_news news = { .connections = 1 };

    if (strcmp(how, "exit") == 0)
        return 1;
    if (strcmp(how, "mute") == 0) /* but it sees the end of its socket */
        return recv(KEEPER_FD_SOCKET, packet, sizeof(packet), 0) != 0;
    if (!say(reply, keeper_wire_answer(reply, &hello, &news)))
        return 1;
    while ((n = recv(KEEPER_FD_SOCKET, packet, sizeof(packet), 0)) > 0)
        if (!keeper_wire_read_request(&rq, (struct str){ packet, (size_t)n }) ||
            !behave(how, &rq))
            return 1;
    return 0;
}
