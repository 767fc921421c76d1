#include "app/ctl/ctl_package.h"
#include "app/ctl/manage.h"

enum {
    BLOBS_MAX = 200000,
    SHOWN = 20,
    DAY_S = 86400,
    HOUR_S = 3600,
    COLLECT_PAGE = 1000
};

/* A blob that the DBMS knows, and what was found of it. */
struct known {
    struct blob b;
    bool published;
    uint64_t share_size, local_size;
    bool on_share, local;
    const char *share_state, *local_state; /* of `store verify`; NULL: well */
};

struct table {
    struct ctl *c;
    struct known *at;
    size_t count;
    uint64_t unknown, unknown_bytes; /* on the share */
    uint64_t share_bytes, local_count, local_bytes;
    json_t *strangers; /* ids on the share that are not known and old enough */
    uint64_t older_s;
};

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct known *)a)->b.id.hex,
                  ((const struct known *)b)->b.id.hex);
}

static struct known *find(const struct table *t, const struct blob_id *id)
{
    struct known key = { .b.id = *id };

    return t->count > 0 ? bsearch(&key, t->at, t->count, sizeof(t->at[0]), by_id) : NULL;
}

static int too_odd(struct ctl *c)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "bad_answer",
                                           "The server's answer makes no sense",
                                           "It lists something that is no blob.",
                                           "Compare redoubt version on both sides." });
}

/* All blobs that the DBMS knows. */
static int load(struct table *t, struct ctl *c)
{
    uint32_t limit = c->opt.limit;
    json_t *answer = NULL;
    const json_t *items, *item;
    struct where w;
    int64_t ms;
    size_t i;

    *t = (struct table){ .c = c };
    where_start(&w, "/v1/store/blobs");
    c->opt.limit = BLOBS_MAX;
    int r = manage_list(c, &w, &answer);
    c->opt.limit = limit;
    items = json_object_get(answer, "items");
    if (r == CTL_OK)
        t->at = calloc(json_array_size(items) + 1, sizeof(t->at[0]));
    json_array_foreach(items, i, item)
    {
        struct known *k = t->at ? &t->at[t->count] : NULL;

        if (r != CTL_OK || !k)
            break;
        if (!blob_id_parse(&k->b.id, str_of(ctl_str(item, "sha256", ""))))
            r = too_odd(c);
        k->b.size = ctl_u64(item, "size", 0);
        if (ctl_parse_time(ctl_str(item, "mtime", ""), &ms))
            k->b.mtime = ms / 1000;
        k->published = json_array_size(json_object_get(item, "paths")) > 0;
        t->count++;
    }
    json_decref(answer);
    if (t->at)
        qsort(t->at, t->count, sizeof(t->at[0]), by_id);
    return r;
}

static void release(struct table *t)
{
    json_decref(t->strangers);
    free(t->at);
}

static bool note_share(void *arg, const struct blob *b, uint64_t age_s)
{
    struct table *t = arg;
    struct known *k = find(t, &b->id);

    t->share_bytes += b->size;
    if (k) {
        k->on_share = true;
        k->share_size = b->size;
        return true;
    }
    t->unknown++;
    t->unknown_bytes += b->size;
    if (t->strangers && age_s >= t->older_s)
        (void)json_array_append_new(t->strangers, json_string(b->id.hex));
    return true;
}

static bool note_local(void *arg, const struct blob *b, uint64_t age_s)
{
    struct table *t = arg;
    struct known *k = find(t, &b->id);

    (void)age_s;
    t->local_count++;
    t->local_bytes += b->size;
    if (k) {
        k->local = true;
        k->local_size = b->size;
    }
    return true;
}

static int share_failed(struct ctl *c, const struct err_info *info)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "share_unreachable",
                                           "The data share cannot be used", info->what,
                                           "redoubt check names the step that fails." });
}

/* What is where; a node that has no local store yet has none. */
static int look(struct table *t, struct publish *p)
{
    struct err_info info = { .what = "" };

    if (blob_share_list(p->smb, note_share, t, &info) != ERR_OK)
        return share_failed(t->c, &info);
    enum err e = blob_local_list(t->c->conf.web.store, note_local, t, &info);
    return e == ERR_OK || e == ERR_NOT_FOUND
               ? CTL_OK
               : ctl_fail(t->c, CTL_FAILED,
                          &(struct ctl_problem){
                              "store_unreadable", "The store of this node cannot be read",
                              info.what, "Run it as root on a node." });
}

/* ---- status ---- */

static bool lacks_share(const struct known *k)
{
    return !k->on_share || k->share_size != k->b.size;
}

static bool lacks_local(const struct known *k)
{
    return k->published && (!k->local || k->local_size != k->b.size);
}

static json_t *ids(const struct table *t, bool (*which)(const struct known *k))
{
    json_t *list = json_array();

    for (size_t i = 0; i < t->count; i++)
        if (which(&t->at[i]))
            (void)json_array_append_new(list, json_string(t->at[i].b.id.hex));
    return list;
}

static void print_ids(const struct ctl *c, const char *title, const json_t *list)
{
    const json_t *id;
    size_t i;

    if (json_array_size(list) == 0)
        return;
    printf("%s%zu %s:%s\n", ctl_ink(c, CTL_RED), json_array_size(list), title,
           ctl_ink(c, CTL_PLAIN));
    json_array_foreach(list, i, id)
    {
        if (i < SHOWN)
            printf("  %s\n", json_string_value(id));
    }
    if (json_array_size(list) > SHOWN)
        printf("  ... (%zu more)\n", json_array_size(list) - SHOWN);
}

static void print_place(const char *name, uint64_t count, uint64_t bytes,
                        const struct smb_space *s)
{
    char a[32], b[32], d[32];

    printf("%-11s %llu files, %s; %s of %s free\n", name, (unsigned long long)count,
           publish_size(bytes, a, sizeof(a)), publish_size(s->free_bytes, b, sizeof(b)),
           publish_size(s->total_bytes, d, sizeof(d)));
}

static json_t *place(uint64_t count, uint64_t bytes, const struct smb_space *s)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "files", (json_int_t)count, "bytes",
                     (json_int_t)bytes, "free_bytes", (json_int_t)s->free_bytes,
                     "total_bytes", (json_int_t)s->total_bytes);
}

struct spaces {
    struct smb_space share, local;
    struct blob_left left;
};

static int measure(struct table *t, struct publish *p, struct spaces *out)
{
    struct err_info info = { .what = "" };
    enum err e = smb_space(p->smb, &out->share, &info);

    if (e == ERR_OK)
        e = blob_share_clean(p->smb, UINT64_MAX, NULL, NULL, &out->left, &info);
    if (e != ERR_OK)
        return share_failed(t->c, &info);
    if (blob_local_space(t->c->conf.web.store, &out->local, NULL) != ERR_OK)
        out->local = (struct smb_space){ 0 }; /* not made yet */
    return CTL_OK;
}

static void tell_status(struct table *t, const struct spaces *s)
{
    const struct ctl *c = t->c;
    uint64_t on_share = t->unknown;
    json_t *no_share = ids(t, lacks_share), *no_local = ids(t, lacks_local);
    char a[32];

    for (size_t i = 0; i < t->count; i++)
        on_share += t->at[i].on_share;
    if (c->opt.json) {
        json_t *j = json_pack(
            "{s:I, s:o, s:o, s:{s:I, s:I}, s:{s:i, s:i, s:i, s:I}, s:O, s:O}", "blobs",
            (json_int_t)t->count, "share", place(on_share, t->share_bytes, &s->share),
            "local", place(t->local_count, t->local_bytes, &s->local), "unknown", "files",
            (json_int_t)t->unknown, "bytes", (json_int_t)t->unknown_bytes, "uploads",
            "parts", (int)s->left.parts, "damaged", (int)s->left.bad, "removing",
            (int)s->left.old, "bytes", (json_int_t)s->left.bytes, "missing_on_share",
            no_share, "missing_here", no_local);

        ctl_print_json(j);
        json_decref(j);
    } else {
        print_place("data share", on_share, t->share_bytes, &s->share);
        print_place("this node", t->local_count, t->local_bytes, &s->local);
        printf("%-11s %u unfinished, %u damaged put aside; %s\n", "uploads",
               s->left.parts, s->left.bad, publish_size(s->left.bytes, a, sizeof(a)));
        if (t->unknown > 0)
            printf("%llu files on the data share (%s) belong to nothing: redoubt store "
                   "collect\n",
                   (unsigned long long)t->unknown,
                   publish_size(t->unknown_bytes, a, sizeof(a)));
        print_ids(c, "are missing on the data share", no_share);
        print_ids(c, "are published, but not yet on this node", no_local);
    }
    json_decref(no_share);
    json_decref(no_local);
}

static bool something_lacks(const struct table *t)
{
    for (size_t i = 0; i < t->count; i++)
        if (lacks_share(&t->at[i]) || lacks_local(&t->at[i]))
            return true;
    return false;
}

/* Opens everything and looks around. */
static int begin(struct table *t, struct publish *p, struct ctl *c)
{
    *p = (struct publish){ .c = c };
    int r = load(t, c);

    if (r == CTL_OK)
        r = publish_open(p, c);
    return r == CTL_OK ? look(t, p) : r;
}

int cmd_store_status(struct ctl *c)
{
    struct publish p;
    struct table t;
    struct spaces s = { .left = { 0 } };
    int r = begin(&t, &p, c);

    if (r == CTL_OK)
        r = measure(&t, &p, &s);
    if (r == CTL_OK) {
        tell_status(&t, &s);
        r = c->opt.check && something_lacks(&t) ? CTL_DEGRADED : CTL_OK;
    }
    publish_close(&p);
    release(&t);
    return r;
}

/* ---- verify ---- */

struct reading {
    struct progress progress;
    uint64_t done, total; /* bytes of all files, on both sides */
};

static bool show_reading(void *arg, uint64_t done, uint64_t total)
{
    struct reading *r = arg;

    (void)total;
    return progress_show(&r->progress, r->done + done, r->total);
}

/* What is wrong with one copy, in a word; NULL: nothing. */
static const char *verdict(enum err e)
{
    return e == ERR_OK          ? NULL
           : e == ERR_NOT_FOUND ? "missing"
           : e == ERR_CORRUPT   ? "damaged"
                                : "unreadable";
}

static void read_one(struct publish *p, struct known *k, struct reading *r)
{
    const struct blob_watch w = { .progress = show_reading, .arg = r };
    const char *store = p->c->conf.web.store;

    k->share_state = verdict(blob_share_verify(p->smb, &k->b, &w, NULL));
    r->done += k->b.size;
    if (k->published || k->local) {
        k->local_state = verdict(blob_local_verify(store, &k->b, &w, NULL));
        r->done += k->b.size;
    }
}

static bool is_state(const char *state, const char *what)
{
    return state && strcmp(state, what) == 0;
}

/* What the DBMS says of one blob; false: it does not know it, or (result) does not say. */
static bool ask(struct ctl *c, const struct blob_id *id, struct manage_answer *out,
                int *result)
{
    struct where w;

    *out = (struct manage_answer){ .body = NULL };
    where_start(&w, "/v1/store/blobs");
    where_add(&w, id->hex);
    *result = manage_call(
        c, &(struct manage_call){ .method = "GET", .path = w.buf, .quiet = 404 }, out);
    if (*result == CTL_OK)
        return true;
    if (out->status == 404)
        *result = CTL_OK;
    return false;
}

/* What is missing may be what is no longer wanted: while others were read it was withdrawn,
 * and its node or the collection removed it. */
static int ask_again(struct publish *p, struct known *k)
{
    struct manage_answer a;
    int r;

    if (!is_state(k->share_state, "missing") && !is_state(k->local_state, "missing"))
        return CTL_OK;
    const bool known = ask(p->c, &k->b.id, &a, &r);

    k->published = known && json_array_size(json_object_get(a.body, "paths")) > 0;
    json_decref(a.body);
    if (!known && is_state(k->share_state, "missing"))
        k->share_state = NULL;
    if (!k->published && is_state(k->local_state, "missing"))
        k->local_state = NULL;
    return r;
}

/* From the good copy to the other one, if there is one. */
static void repair(struct publish *p, struct known *k)
{
    const char *store = p->c->conf.web.store;
    enum err e = ERR_OK;

    if (k->share_state && !k->local_state && (k->local || k->published)) {
        if (is_state(k->share_state, "damaged"))
            e = blob_share_set_aside(p->smb, &k->b.id, NULL);
        if (e == ERR_OK)
            e = blob_heal_share(p->smb, store, &k->b, NULL, NULL);
        k->share_state = e == ERR_OK ? "repaired" : k->share_state;
    } else if (k->local_state && !k->share_state) {
        if (is_state(k->local_state, "damaged"))
            e = blob_local_remove(store, &k->b.id, NULL);
        if (e == ERR_OK)
            e = blob_fetch(p->smb, store, &k->b, NULL, NULL);
        k->local_state = e == ERR_OK ? "repaired" : k->local_state;
    }
}

static int interrupted(struct ctl *c)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "interrupted", "It was interrupted", NULL,
                                           "What was repaired stays so; begin again "
                                           "to read the rest." });
}

static int read_all(struct table *t, struct publish *p)
{
    struct reading r = { .total = 0 };
    int result = CTL_OK;

    for (size_t i = 0; i < t->count; i++)
        r.total += t->at[i].b.size *
                   (t->at[i].published || t->at[i].local ? UINT64_C(2) : UINT64_C(1));
    progress_start(&r.progress, t->c, "reading");
    for (size_t i = 0; i < t->count && result == CTL_OK; i++) {
        struct known *k = &t->at[i];

        read_one(p, k, &r);
        if (publish_interrupted()) {
            progress_end(&r.progress);
            return interrupted(t->c);
        }
        result = ask_again(p, k);
        if (result == CTL_OK && t->c->opt.prune && (k->share_state || k->local_state))
            repair(p, k);
        if (result == CTL_OK && smb_is_lost(p->smb))
            result = publish_connect(p);
    }
    progress_end(&r.progress);
    return result;
}

static bool is_bad(const char *state)
{
    return state && !is_state(state, "repaired");
}

static int tell_verified(struct table *t)
{
    json_t *list = json_array();
    bool bad = false;

    for (size_t i = 0; i < t->count; i++) {
        const struct known *k = &t->at[i];

        if (!k->share_state && !k->local_state)
            continue;
        bad = bad || is_bad(k->share_state) || is_bad(k->local_state);
        (void)json_array_append_new(
            list, json_pack("{s:s, s:s, s:s}", "sha256", k->b.id.hex, "share",
                            k->share_state ? k->share_state : "good", "here",
                            k->local_state ? k->local_state : "good"));
        if (!t->c->opt.json)
            printf("%s  data share: %s, this node: %s\n", k->b.id.hex,
                   k->share_state ? k->share_state : "good",
                   k->local_state ? k->local_state : "good");
    }
    if (t->c->opt.json) {
        json_t *j =
            json_pack("{s:I, s:O}", "verified", (json_int_t)t->count, "problems", list);

        ctl_print_json(j);
        json_decref(j);
    } else if (!bad) {
        printf("%zu files are what their names say.\n", t->count);
    }
    json_decref(list);
    return bad ? CTL_FAILED : CTL_OK;
}

int cmd_store_verify(struct ctl *c)
{
    struct publish p;
    struct table t;
    int r = begin(&t, &p, c);

    if (r == CTL_OK)
        r = read_all(&t, &p);
    if (r == CTL_OK)
        r = tell_verified(&t);
    publish_close(&p);
    release(&t);
    return r;
}

/* ---- collect ---- */

/* blob_is_known: asks the API. */
static enum err is_known(void *arg, const struct blob_id *id, bool *out,
                         struct err_info *info)
{
    struct manage_answer a;
    int r;

    *out = ask(arg, id, &a, &r);
    json_decref(a.body);
    return r == CTL_OK ? ERR_OK
                       : err_set(info, ERR_STATE, 0,
                                 "the server does not say whether it is known");
}

/* The DBMS forgets what nothing refers to. */
static int forget(struct ctl *c, uint64_t grace_s, uint64_t *count)
{
    size_t n = COLLECT_PAGE;
    int r = CTL_OK;

    while (r == CTL_OK && n == COLLECT_PAGE) {
        json_t *answer = NULL;

        r = manage_send(c, "POST", "/v1/store/collect",
                        json_pack("{s:I}", "grace_s", (json_int_t)grace_s), &answer);
        n = json_array_size(json_object_get(answer, "forgotten"));
        *count += n;
        json_decref(answer);
    }
    return r;
}

/* A file that somebody reads just now stays until the next time. */
static int remove_strangers(struct table *t, struct publish *p, uint64_t *count)
{
    struct err_info info = { .what = "" };
    const json_t *word;
    size_t i;

    json_array_foreach(t->strangers, i, word)
    {
        struct blob_id id;
        bool removed = false;

        if (!blob_id_parse(&id, str_of(json_string_value(word))))
            continue;
        enum err e = blob_share_remove(p->smb, &id, is_known, t->c, &removed, &info);
        if (e == ERR_STATE)
            return CTL_FAILED; /* it was said why */
        if (e != ERR_OK && smb_is_lost(p->smb))
            return share_failed(t->c, &info);
        *count += removed;
    }
    return CTL_OK;
}

static void tell_collected(const struct ctl *c, uint64_t forgotten, uint64_t files,
                           const struct blob_left *left)
{
    char a[32];

    if (c->opt.json) {
        json_t *j = json_pack("{s:I, s:I, s:i, s:I}", "forgotten", (json_int_t)forgotten,
                              "files_removed", (json_int_t)files, "leavings_removed",
                              (int)left->removed, "leavings_bytes",
                              (json_int_t)left->removed_bytes);

        ctl_print_json(j);
        json_decref(j);
        return;
    }
    printf("%llu files that nothing refers to were removed from the data share, and %u "
           "leavings of uploads (%s).\n",
           (unsigned long long)files, left->removed,
           publish_size(left->removed_bytes, a, sizeof(a)));
}

int cmd_store_collect(struct ctl *c)
{
    struct err_info info = { .what = "" };
    struct blob_left left = { 0 };
    struct publish p = { .c = c };
    struct table t = { .c = c };
    uint64_t forgotten = 0, files = 0;
    uint64_t grace_s = c->opt.grace_h ? (uint64_t)c->opt.grace_h * HOUR_S : DAY_S;
    int r = forget(c, grace_s, &forgotten);

    if (r == CTL_OK)
        r = load(&t, c);
    t.strangers = json_array();
    t.older_s = grace_s;
    if (r == CTL_OK)
        r = publish_open(&p, c);
    if (r == CTL_OK && blob_share_list(p.smb, note_share, &t, &info) != ERR_OK)
        r = share_failed(c, &info);
    if (r == CTL_OK)
        r = remove_strangers(&t, &p, &files);
    if (r == CTL_OK) {
        enum err e = blob_share_clean(p.smb, grace_s, is_known, c, &left, &info);

        if (e != ERR_OK)
            r = e == ERR_STATE ? CTL_FAILED : share_failed(c, &info);
    }
    if (r == CTL_OK)
        tell_collected(c, forgotten, files, &left);
    publish_close(&p);
    release(&t);
    return r;
}
