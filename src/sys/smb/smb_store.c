#include "sys/smb/smb_store.h"

struct smb_store {
    struct smb_options o;
    struct smb_cred cred;
    char share[SMB_SHARE_BYTES];
    struct smb *smb;              /* NULL: not connected */
    struct smb_store_stats stats; /* connections: those that are gone */
    uint32_t served;              /* connections made by the end of the last request */
    bool unsure;     /* a write of this request was sent and its answer lost */
    struct str over; /* of a will: the record that it may replace; else empty */
    struct err_info why;
    char lease[SHARE_LEASE_BYTES];
    char cluster[SHARE_REQUEST_BYTES];
    char self[SHARE_NODE_BYTES];
    char peer[SHARE_NODE_BYTES];
    char body[SHARE_NODE_BYTES];
    char requests[SHARE_REQUESTS_MAX][SHARE_REQUEST_BYTES];
};

enum err smb_store_new(struct smb_store **out, const struct smb_options *o,
                       struct err_info *info)
{
    struct smb_store *st = calloc(1, sizeof(*st));

    if (!st)
        return err_set(info, ERR_MEMORY, 0, "share");
    st->o = *o;
    st->cred = *o->cred;
    st->o.cred = &st->cred;
    st->o.share = st->share;
    if (!str_copy(st->share, sizeof(st->share), str_of(o->share))) {
        free(st);
        return err_set(info, ERR_CONFIG, 0, "share: name too long");
    }
    *out = st;
    return ERR_OK;
}

static void disconnect(struct smb_store *st)
{
    if (st->smb)
        st->stats.connections += smb_connections(st->smb);
    smb_free(st->smb);
    st->smb = NULL;
}

void smb_store_free(struct smb_store *st)
{
    if (!st)
        return;
    disconnect(st);
    explicit_bzero(&st->cred, sizeof(st->cred));
    free(st);
}

/* The dialect, once: libsmbclient knows it, but does not tell. */
static void learn_dialect(struct smb_store *st)
{
    const struct smb_probe p = {
        .host = smb_host(st->smb),
        .port = st->o.port,
        .min = st->o.min,
        .max = st->o.max,
        .timeout_ms = 1000,
    };
    struct smb_negotiated n;

    if (st->stats.dialect == SMB_DIALECT_NONE && smb_probe(&n, &p, NULL) == ERR_OK)
        st->stats.dialect = n.dialect;
}

static uint32_t total_connections(const struct smb_store *st)
{
    return st->stats.connections + (st->smb ? smb_connections(st->smb) : 0);
}

enum err smb_store_connect(struct smb_store *st, struct err_info *info)
{
    if (st->smb)
        return ERR_OK;
    enum err e = smb_connect(&st->smb, &st->o, info);
    if (e)
        return e == ERR_NOT_FOUND ? ERR_IO : e; /* the share, not a file on it */
    learn_dialect(st);
    st->served = total_connections(st);
    return ERR_OK;
}

struct smb_store_stats smb_store_stats(const struct smb_store *st)
{
    struct smb_store_stats stats = st->stats;

    if (st->smb)
        stats.connections += smb_connections(st->smb);
    return stats;
}

struct name {
    char s[SMB_NAME_BYTES];
};

static struct name epoch_name(uint64_t n)
{
    struct name name;

    (void)snprintf(name.s, sizeof(name.s), "epoch/%llu", (unsigned long long)n);
    return name;
}

/* 1 and up, in decimal, without leading zeros: other names in epoch/ are not epochs. */
static bool epoch_of(const char *name, uint64_t *out)
{
    return name[0] != '0' && str_u64(str_of(name), SHARE_EPOCH_MAX, out);
}

/* A write ended with e: remember if nobody knows what became of it. */
static enum err wrote(struct smb_store *st, enum err e)
{
    if (e && smb_is_lost(st->smb))
        st->unsure = true;
    return e;
}

static enum err look_ahead(struct smb_store *st, uint64_t epoch, bool *out)
{
    return smb_exists(st->smb, epoch_name(epoch + 1).s, out, &st->why);
}

static enum err do_poll(struct smb_store *st, const struct share_request *rq,
                        struct share_answer *out)
{
    size_t n = 0;
    bool next = false;
    enum err e = ERR_OK;

    if (rq->epoch > 0)
        e = smb_read_head(st->smb, epoch_name(rq->epoch).s, st->lease, sizeof(st->lease),
                          &n, &st->why);
    if (e && e != ERR_NOT_FOUND)
        return e;
    enum err ahead = look_ahead(st, rq->epoch, &next);
    if (ahead)
        return ahead;
    if (next) {
        out->top = rq->epoch + 1;
        return ERR_OK;
    }
    if (e)
        return e;
    out->top = rq->epoch;
    out->lease = (struct str){ st->lease, n };
    return ERR_OK;
}

static enum err do_claim(struct smb_store *st, const struct share_request *rq)
{
    const struct name name = epoch_name(rq->epoch);
    bool there = false;

    if (rq->epoch > SHARE_EPOCH_MAX)
        return err_set(&st->why, ERR_LIMIT, 0, "%s would be beyond the last", name.s);
    /* Also finds out whether the connection lives, while nothing is lost by that. */
    enum err e = smb_exists(st->smb, name.s, &there, &st->why);
    if (e)
        return e;
    if (there)
        return err_set(&st->why, ERR_EXISTS, 0, "%s exists", name.s);
    return wrote(st, smb_create(st->smb, name.s, rq->body, &st->why));
}

/* A holder rewrites its own record only: after a crash of the file server the epoch may have
 * been forgotten and claimed by another. */
static enum err do_renew(struct smb_store *st, const struct share_request *rq)
{
    const struct name name = epoch_name(rq->epoch);
    const struct str mark = st->over.n > 0 ? st->over : str_of(rq->mark);
    bool next = false, sent = false;

    enum err e = smb_rewrite_own(st->smb, name.s, mark, rq->body, &sent, &st->why);
    if (sent)
        e = wrote(st, e);
    if (e == ERR_OK)
        e = look_ahead(st, rq->epoch, &next);
    if (e == ERR_OK && next)
        e = err_set(&st->why, ERR_STALE, 0, "%s exists", epoch_name(rq->epoch + 1).s);
    return e;
}

static bool take_highest(void *arg, const char *entry, bool is_folder)
{
    uint64_t n, *top = arg;

    (void)is_folder; /* a folder of that name is in the way of a claim all the same */
    if (epoch_of(entry, &n) && n > *top)
        *top = n;
    return true;
}

/* The highest epoch and its record; no_folder if there is no epoch/. */
static enum err scan_epochs(struct smb_store *st, struct share_answer *out,
                            bool *no_folder)
{
    enum err e = ERR_NOT_FOUND;
    size_t n = 0;

    /* A record can be pruned between the list and the read: then list again. */
    for (int i = 0; i < 3 && e == ERR_NOT_FOUND; i++) {
        out->top = 0;
        n = 0;
        e = smb_list(st->smb, "epoch", take_highest, &out->top, &st->why);
        *no_folder = e == ERR_NOT_FOUND;
        if (*no_folder || (e == ERR_OK && out->top == 0))
            return ERR_OK;
        if (e)
            return e;
        e = smb_read_head(st->smb, epoch_name(out->top).s, st->lease, sizeof(st->lease),
                          &n, &st->why);
    }
    if (e && (smb_is_lost(st->smb) || e == ERR_DENIED))
        return e;
    out->lease = (struct str){ st->lease, e ? 0 : n }; /* there, but unreadable */
    return ERR_OK;
}

/* A file that may be missing, or too long to be one of ours: then out is empty. */
static enum err scan_file(struct smb_store *st, const char *folder, const char *name,
                          char *buf, size_t size, struct str *out)
{
    struct name path;
    size_t n = 0;

    *out = (struct str){ buf, 0 };
    if (name[0] == '\0' || !smb_name_ok(name))
        return ERR_OK;
    (void)snprintf(path.s, sizeof(path.s), "%s%s", folder, name);
    enum err e = smb_read(st->smb, path.s, buf, size, &n, &st->why);
    if (e && (smb_is_lost(st->smb) || e == ERR_DENIED))
        return e;
    out->n = e ? 0 : n;
    return ERR_OK;
}

struct wishes {
    uint32_t count;
    char name[SHARE_REQUESTS_MAX][SHARE_NAME_BYTES];
};

/* "pause" before all others, then by name: which ones are seen must not depend on luck. */
static bool wish_before(const char *a, const char *b)
{
    bool pa = strcmp(a, "pause") == 0, pb = strcmp(b, "pause") == 0;

    return pa != pb ? pa : strcmp(a, b) < 0;
}

static bool take_wish(void *arg, const char *entry, bool is_folder)
{
    struct wishes *w = arg;
    uint32_t at = 0;

    if (is_folder || strlen(entry) >= SHARE_NAME_BYTES || !smb_name_ok(entry) ||
        strchr(entry, '/'))
        return true;
    while (at < w->count && wish_before(w->name[at], entry))
        at++;
    if (at == SHARE_REQUESTS_MAX)
        return true;
    if (w->count < SHARE_REQUESTS_MAX)
        w->count++;
    memmove(w->name[at + 1], w->name[at], (w->count - at - 1) * sizeof(w->name[0]));
    (void)snprintf(w->name[at], sizeof(w->name[at]), "%s", entry);
    return true;
}

static enum err scan_wishes(struct smb_store *st, struct share_answer *out)
{
    struct wishes w = { .count = 0 };

    enum err e = smb_list(st->smb, "request", take_wish, &w, &st->why);
    if (e)
        return e == ERR_NOT_FOUND ? ERR_OK : e;
    for (uint32_t i = 0; i < w.count; i++) {
        struct share_file *f = &out->requests[out->request_count];

        e = scan_file(st, "request/", w.name[i], st->requests[out->request_count],
                      SHARE_REQUEST_BYTES, &f->body);
        if (e)
            return e;
        if (f->body.n == 0)
            continue;
        (void)snprintf(f->name, sizeof(f->name), "%s", w.name[i]);
        out->request_count++;
    }
    return ERR_OK;
}

static enum err do_scan(struct smb_store *st, const struct share_request *rq,
                        struct share_answer *out)
{
    bool no_folder = false;

    out->request_count = 0;
    enum err e = scan_epochs(st, out, &no_folder);
    if (e == ERR_OK)
        e = scan_file(st, "", "cluster", st->cluster, sizeof(st->cluster), &out->cluster);
    if (e == ERR_OK && no_folder && out->cluster.n == 0)
        return err_set(&st->why, ERR_NOT_FOUND, 0,
                       "neither `cluster` nor `epoch` is on %s", st->share);
    if (e == ERR_OK)
        e = scan_file(st, "node/", rq->self, st->self, sizeof(st->self), &out->self);
    if (e == ERR_OK)
        e = scan_file(st, "node/", rq->name, st->peer, sizeof(st->peer), &out->peer);
    if (e == ERR_OK)
        e = scan_wishes(st, out);
    return e;
}

static enum err do_get(struct smb_store *st, const struct share_request *rq,
                       struct share_answer *out)
{
    size_t n = 0;

    enum err e = smb_read(st->smb, rq->name, st->body, sizeof(st->body), &n, &st->why);
    if (e == ERR_OK)
        out->body = (struct str){ st->body, n };
    return e;
}

static enum err do_remove(struct smb_store *st, const char *name)
{
    enum err e = wrote(st, smb_remove(st->smb, name, &st->why));

    return e == ERR_NOT_FOUND ? ERR_OK : e;
}

struct old_epochs {
    uint64_t up_to;
    uint32_t count;
    uint64_t at[SMB_STORE_PRUNE_MAX];
};

static bool take_old(void *arg, const char *entry, bool is_folder)
{
    struct old_epochs *o = arg;
    uint64_t n;

    if (!is_folder && epoch_of(entry, &n) && n <= o->up_to)
        o->at[o->count++] = n;
    return o->count < SMB_STORE_PRUNE_MAX;
}

static enum err do_prune(struct smb_store *st, const struct share_request *rq)
{
    struct old_epochs o = { .up_to = rq->epoch };

    enum err e = smb_list(st->smb, "epoch", take_old, &o, &st->why);
    for (uint32_t i = 0; i < o.count && e == ERR_OK; i++)
        e = do_remove(st, epoch_name(o.at[i]).s);
    return e == ERR_NOT_FOUND ? ERR_OK : e;
}

static enum err run(struct smb_store *st, const struct share_request *rq,
                    struct share_answer *out)
{
    switch (rq->op) {
    case SHARE_SCAN: return do_scan(st, rq, out);
    case SHARE_POLL: return do_poll(st, rq, out);
    case SHARE_CLAIM: return do_claim(st, rq);
    case SHARE_RENEW:
    case SHARE_RELEASE: return do_renew(st, rq);
    case SHARE_PUT: return wrote(st, smb_put(st->smb, rq->name, rq->body, &st->why));
    case SHARE_GET: return do_get(st, rq, out);
    case SHARE_REMOVE: return do_remove(st, rq->name);
    case SHARE_PRUNE: return do_prune(st, rq);
    }
    return ERR_INVALID;
}

static bool request_ok(const struct share_request *rq)
{
    switch (rq->op) {
    case SHARE_CLAIM:
    case SHARE_RENEW:
    case SHARE_RELEASE:
        return rq->epoch > 0 && rq->epoch < UINT64_MAX && rq->body.n == SHARE_LEASE_BYTES;
    case SHARE_POLL: return rq->epoch < UINT64_MAX;
    case SHARE_PUT: return smb_name_ok(rq->name) && rq->body.n <= SHARE_NODE_BYTES;
    case SHARE_GET:
    case SHARE_REMOVE: return smb_name_ok(rq->name);
    case SHARE_SCAN:
    case SHARE_PRUNE: return true;
    }
    return false;
}

void smb_store_serve(struct smb_store *st, const struct share_request *rq,
                     struct share_answer *out)
{
    enum err e = ERR_OK;
    bool again = true;

    *out = (struct share_answer){ .id = rq->id };
    st->unsure = false;
    if (!request_ok(rq)) {
        again = false;
        e = err_set(&st->why, ERR_INVALID, 0, "the request makes no sense");
    }
    if (again && rq->op == SHARE_CLAIM) {
        /* What found the lease free was read over this very connection, or it counts for
         * nothing: a server that has crashed may have forgotten an epoch (port/share.h). */
        again = st->smb && total_connections(st) == st->served;
        if (again)
            smb_pin(st->smb, true);
        else
            e = err_set(&st->why, ERR_CLOSED, 0, "the connection is another one by now");
    }
    for (int attempt = 0; attempt < 2 && again; attempt++) {
        *out = (struct share_answer){ .id = rq->id };
        e = smb_store_connect(st, &st->why);
        if (e)
            break;
        e = run(st, rq, out);
        if (e == ERR_OK || !smb_is_lost(st->smb)) {
            st->unsure = false;
            break;
        }
        disconnect(st);
        again = rq->op != SHARE_CLAIM;
        if (!again && !st->unsure)
            e = err_set(&st->why, ERR_CLOSED, 0, "the connection broke before the claim");
    }
    if (st->smb)
        smb_pin(st->smb, false);
    st->served = total_connections(st);
    if (e)
        *out = (struct share_answer){ .id = rq->id };
    out->err = st->unsure ? ERR_TIMEOUT : e;
    out->why = e ? &st->why : NULL;
}

enum err smb_store_bequeath(struct smb_store *st, uint64_t epoch, struct str last,
                            struct str will, struct err_info *info)
{
    const struct share_request look = { .id = 1, .op = SHARE_POLL, .epoch = epoch };
    const struct share_request write = {
        .id = 1, .op = SHARE_RELEASE, .epoch = epoch, .body = will
    };
    struct share_answer a;

    smb_store_serve(st, &look, &a);
    if (a.err == ERR_OK && (a.top != epoch || !str_eq(a.lease, last)))
        return err_set(info, ERR_STALE, 0, "epoch %llu is not ours any more",
                       (unsigned long long)epoch);
    st->over = last; /* also if the connection breaks after the look, and is made anew */
    if (a.err == ERR_OK)
        smb_store_serve(st, &write, &a);
    st->over = (struct str){ NULL, 0 };
    if (a.err && info)
        *info = *a.why;
    return a.err;
}
