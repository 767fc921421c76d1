#include "sys/keeper/keeper_wire.h"

struct request_head {
    uint32_t magic, id, op, body_n, will_n;
    uint32_t unused; /* keeps the padding explicit */
    uint64_t epoch;
    char name[SHARE_NAME_BYTES], self[SHARE_NAME_BYTES], mark[SHARE_MARK_BYTES];
};

struct answer_head {
    uint32_t magic, id, err, sys_errno;
    uint64_t top;
    uint32_t lease_n, cluster_n, self_n, peer_n, body_n, request_count;
    uint32_t request_n[SHARE_REQUESTS_MAX];
    char request_name[SHARE_REQUESTS_MAX][SHARE_NAME_BYTES];
    char what[sizeof(((struct err_info *)0)->what)];
    struct keeper_news news;
};

static_assert(KEEPER_WIRE_MAX >= sizeof(struct answer_head) + SHARE_LEASE_BYTES +
                                     4 * SHARE_NODE_BYTES +
                                     SHARE_REQUESTS_MAX * SHARE_REQUEST_BYTES,
              "the largest answer must fit");
static_assert(KEEPER_WIRE_MAX >= sizeof(struct request_head) + 2 * SHARE_NODE_BYTES,
              "the largest request must fit");

/* Appends s behind the n bytes that are there. */
static uint32_t add(char *buf, size_t *n, struct str s)
{
    CHECK(s.n <= KEEPER_WIRE_MAX - *n);
    if (s.n > 0)
        memcpy(buf + *n, s.p, s.n);
    *n += s.n;
    return (uint32_t)s.n;
}

/* Takes count bytes off the front of rest; false if there are fewer. */
static bool take(struct str *rest, uint32_t count, struct str *out)
{
    if (count > rest->n)
        return false;
    *out = (struct str){ rest->p, count };
    rest->p += count;
    rest->n -= count;
    return true;
}

static bool ends(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

size_t keeper_wire_request(char *buf, const struct share_request *rq)
{
    struct request_head h = { .magic = KEEPER_WIRE_MAGIC,
                              .id = rq->id,
                              .op = (uint32_t)rq->op,
                              .epoch = rq->epoch };
    size_t n = sizeof(h);

    memcpy(h.name, rq->name, sizeof(h.name));
    memcpy(h.self, rq->self, sizeof(h.self));
    memcpy(h.mark, rq->mark, sizeof(h.mark));
    h.body_n = add(buf, &n, rq->body);
    h.will_n = add(buf, &n, rq->will);
    memcpy(buf, &h, sizeof(h));
    return n;
}

bool keeper_wire_read_request(struct share_request *out, struct str packet)
{
    struct request_head h;

    if (packet.n < sizeof(h))
        return false;
    memcpy(&h, packet.p, sizeof(h));
    struct str rest = { packet.p + sizeof(h), packet.n - sizeof(h) };
    struct share_request rq = { .id = h.id, .op = (enum share_op)h.op, .epoch = h.epoch };
    if (h.magic != KEEPER_WIRE_MAGIC || h.op > SHARE_PRUNE ||
        !ends(h.name, sizeof(h.name)) || !ends(h.self, sizeof(h.self)) ||
        !ends(h.mark, sizeof(h.mark)) || !take(&rest, h.body_n, &rq.body) ||
        !take(&rest, h.will_n, &rq.will))
        return false;
    memcpy(rq.name, h.name, sizeof(rq.name));
    memcpy(rq.self, h.self, sizeof(rq.self));
    memcpy(rq.mark, h.mark, sizeof(rq.mark));
    *out = rq;
    return true;
}

size_t keeper_wire_answer(char *buf, const struct share_answer *a,
                          const struct keeper_news *news)
{
    struct answer_head h = { .magic = KEEPER_WIRE_MAGIC,
                             .id = a->id,
                             .err = (uint32_t)a->err,
                             .top = a->top,
                             .request_count = a->request_count,
                             .news = *news };
    size_t n = sizeof(h);

    CHECK(a->request_count <= SHARE_REQUESTS_MAX);
    if (a->why) {
        h.sys_errno = (uint32_t)a->why->sys_errno;
        memcpy(h.what, a->why->what, sizeof(h.what));
    }
    h.lease_n = add(buf, &n, a->lease);
    h.cluster_n = add(buf, &n, a->cluster);
    h.self_n = add(buf, &n, a->self);
    h.peer_n = add(buf, &n, a->peer);
    h.body_n = add(buf, &n, a->body);
    for (uint32_t i = 0; i < a->request_count; i++) {
        memcpy(h.request_name[i], a->requests[i].name, SHARE_NAME_BYTES);
        h.request_n[i] = add(buf, &n, a->requests[i].body);
    }
    memcpy(buf, &h, sizeof(h));
    return n;
}

bool keeper_wire_read_answer(struct share_answer *out, struct keeper_news *news,
                             struct err_info *why, struct str packet)
{
    struct answer_head h;

    if (packet.n < sizeof(h))
        return false;
    memcpy(&h, packet.p, sizeof(h));
    struct str rest = { packet.p + sizeof(h), packet.n - sizeof(h) };
    struct share_answer a = {
        .id = h.id, .err = (enum err)h.err, .top = h.top, .request_count = h.request_count
    };
    if (h.magic != KEEPER_WIRE_MAGIC || h.err >= ERR_COUNT ||
        h.request_count > SHARE_REQUESTS_MAX || !ends(h.what, sizeof(h.what)) ||
        !ends(h.news.dialect, sizeof(h.news.dialect)) ||
        !take(&rest, h.lease_n, &a.lease) || !take(&rest, h.cluster_n, &a.cluster) ||
        !take(&rest, h.self_n, &a.self) || !take(&rest, h.peer_n, &a.peer) ||
        !take(&rest, h.body_n, &a.body))
        return false;
    for (uint32_t i = 0; i < h.request_count; i++) {
        if (!ends(h.request_name[i], SHARE_NAME_BYTES) ||
            !take(&rest, h.request_n[i], &a.requests[i].body))
            return false;
        memcpy(a.requests[i].name, h.request_name[i], SHARE_NAME_BYTES);
    }
    why->sys_errno = (int)h.sys_errno;
    memcpy(why->what, h.what, sizeof(why->what));
    a.why = a.err ? why : NULL;
    *news = h.news;
    *out = a;
    return true;
}
