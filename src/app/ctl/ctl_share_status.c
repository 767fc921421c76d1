#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/ctl/ctl.h"
#include "port/share.h"
#include "wire/record.h"

enum { RECORD_MAX = 32 * 1024, LOOK_AGAIN_MIN_MS = 700, LOOK_AGAIN_MAX_MS = 2500 };

/* Everything a look at the share needs. */
struct look {
    const struct conf *conf;
    struct mac_key key;
    char cluster[RECORD_CLUSTER_BYTES];
    struct smb *smb;
};

static bool highest_epoch(void *arg, const char *entry, bool is_folder)
{
    uint64_t n, *top = arg;

    if (!is_folder && str_u64(str_of(entry), SHARE_EPOCH_MAX, &n) && n > *top)
        *top = n;
    return true;
}

/* The verified body of node/<name> as JSON, or NULL. */
static json_t *node_record(const struct look *l, const char *node)
{
    static char bytes[RECORD_MAX];
    char name[CONF_NAME + 8];
    struct str body;
    size_t n;

    (void)snprintf(name, sizeof(name), "node/%s", node);
    if (smb_read(l->smb, name, bytes, sizeof(bytes), &n, NULL) != ERR_OK ||
        record_open((struct str){ bytes, n }, &l->key, str_of(name), &body) != ERR_OK)
        return NULL;
    return json_loadb(body.p, body.n, JSON_REJECT_DUPLICATES, NULL);
}

static enum err read_lease(const struct look *l, struct lease_rec *out)
{
    char bytes[RECORD_LEASE_BYTES], name[32];
    uint64_t top = 0;
    size_t n;
    enum err e = smb_list(l->smb, "epoch", highest_epoch, &top, NULL);

    if (e != ERR_OK || top == 0)
        return e == ERR_OK ? ERR_NOT_FOUND : e;
    record_epoch_name(name, sizeof(name), top);
    e = smb_read(l->smb, name, bytes, sizeof(bytes), &n, NULL);
    return e == ERR_OK
               ? lease_decode(out, &l->key, l->cluster, top, (struct str){ bytes, n })
               : e;
}

/*
 * A record says what its node last wrote, not that the node lives: two looks a moment apart
 * tell, since a node that lives raises its sequence number.
 */
static json_t *node_json(const char *name, const json_t *before, const json_t *after,
                         const char *active)
{
    const json_t *said = json_object_get(after, "status");
    json_t *n =
        json_is_object(said) ? json_copy((json_t *)(uintptr_t)said) : json_object();
    bool alive = before && after && ctl_u64(before, "seq", 0) != ctl_u64(after, "seq", 0);

    (void)json_object_set_new(n, "name", json_string(name));
    (void)json_object_set_new(
        n, "role",
        json_string(active && strcmp(active, name) == 0 ? "active" : "passive"));
    if (!alive) { /* what it said then is not so any more */
        static const char *const stale[] = { "services", "share", "database", "since" };

        for (size_t i = 0; i < LEN(stale); i++)
            (void)json_object_del(n, stale[i]); /* it may not be there */
        (void)json_object_set_new(n, "ready", json_false());
        (void)json_object_set_new(n, "state", json_string(after ? "silent" : "unknown"));
        (void)json_object_set_new(
            n, "not_ready_because",
            json_pack("[s]", after ? "its record on the share does not change"
                                   : "it has no record on the share"));
    }
    return n;
}

/* The lease counts as held only while its record changes. */
static json_t *lease_json(const struct lease_rec *before, const struct lease_rec *after,
                          bool *ret_held)
{
    *ret_held = !after->released && before->epoch > 0 &&
                (before->epoch != after->epoch || before->seq != after->seq);
    return json_pack("{s:s, s:I, s:i, s:b, s:b}", "holder", after->owner, "epoch",
                     (json_int_t)after->epoch, "hold_ms", (int)after->hold_ms, "released",
                     after->released, "renewed", *ret_held);
}

/* Two renewals apart, so that a living holder has changed its record in between. */
static uint32_t look_again_ms(const struct conf_cluster *c)
{
    uint32_t ms = 2 * c->renew_ms;

    if (ms < LOOK_AGAIN_MIN_MS)
        return LOOK_AGAIN_MIN_MS;
    return ms < LOOK_AGAIN_MAX_MS ? ms : LOOK_AGAIN_MAX_MS;
}

static json_t *look_at_share(struct look *l)
{
    const struct conf_cluster *c = &l->conf->cluster;
    struct lease_rec lease[2] = { { .epoch = 0 } };
    json_t *node[2][2] = { { NULL } };
    bool held = false, paused = false;

    for (int i = 0; i < 2; i++) {
        node[0][i] = node_record(l, c->node);
        node[1][i] = node_record(l, c->peer);
        (void)read_lease(l, &lease[i]); /* none or unreadable: epoch stays 0 */
        if (i == 0)
            (void)usleep(look_again_ms(c) * 1000);
    }
    if (smb_exists(l->smb, "request/pause", &paused, NULL) != ERR_OK)
        paused = false; /* as the nodes do: what cannot be read is no wish */
    json_t *lease_obj = lease_json(&lease[0], &lease[1], &held);
    const char *active = held ? lease[1].owner : NULL;
    json_t *out =
        json_pack("{s:s, s:s, s:I, s:s?, s:b, s:b, s:o, s:[o,o]}", "source", "share",
                  "cluster", c->name, "epoch", (json_int_t)lease[1].epoch, "active",
                  active, "paused", paused, "degraded", 1, "lease", lease_obj, "nodes",
                  node_json(c->node, node[0][0], node[0][1], active),
                  node_json(c->peer, node[1][0], node[1][1], active));

    for (int i = 0; i < 2; i++) {
        json_decref(node[0][i]);
        json_decref(node[1][i]);
    }
    return out;
}

/* In the child: the status or {"error":"why"} as JSON on fd. */
static void child(const struct conf *conf, int fd)
{
    struct look l = { .conf = conf };
    struct err_info info = { .what = "" };
    enum err e = conf_load_key(conf->cluster.key_file, &l.key, &info);
    json_t *out = NULL;

    if (e == ERR_OK) {
        record_cluster_id(l.cluster, &l.key);
        e = ctl_share_connect(conf, conf->share.state, &l.smb, &info);
    }
    out = e == ERR_OK ? look_at_share(&l) : json_pack("{s:s}", "error", info.what);
    if (out)
        (void)json_dumpfd(out, fd, JSON_COMPACT); /* the parent sees a short answer */
}

static bool read_for(int fd, uint32_t ms, struct text *out)
{
    struct timespec t;
    struct pollfd p = { .fd = fd, .events = POLLIN };

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    int64_t end = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000 + ms;

    for (;;) {
        char buf[4096];

        CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
        int64_t left = end - ((int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000);

        if (left <= 0 || poll(&p, 1, (int)left) <= 0)
            return false;
        ssize_t n = read(fd, buf, sizeof(buf));

        if (n <= 0)
            return n == 0;
        text_bytes(out, (struct str){ buf, (size_t)n });
    }
}

json_t *ctl_status_from_share(struct ctl *c, char *why, size_t why_size)
{
    static char answer[4 * RECORD_MAX];
    struct text t;
    int p[2];

    text_init(&t, answer, sizeof(answer));
    (void)snprintf(why, why_size, "the file server gave no answer within %d s",
                   CTL_SHARE_MS / 1000);
    if (pipe(p) != 0)
        return NULL;
    pid_t pid = fork();

    if (pid == 0) {
        (void)close(p[0]);
        child(&c->conf, p[1]);
        _exit(0);
    }
    (void)close(p[1]); /* ours of the child's end */
    bool done = pid > 0 && read_for(p[0], CTL_SHARE_MS, &t);

    (void)close(p[0]);
    if (pid > 0) {
        (void)kill(pid, SIGKILL); /* it may hang in libsmbclient */
        (void)waitpid(pid, NULL, 0);
    }
    json_t *j = done && !t.cut ? json_loads(answer, JSON_REJECT_DUPLICATES, NULL) : NULL;

    if (j && ctl_str(j, "error", NULL)) {
        (void)snprintf(why, why_size, "%s", ctl_str(j, "error", ""));
        json_decref(j);
        j = NULL;
    }
    return j;
}
