/*
 * upstream: signature databases come from the mirror that an administrator named.
 *
 * The DBMS says when it is time, and keeps what the source said about patience, so that a
 * switch does not ask anew.  What is newer is fetched and verified on this node (sys/cvd), put
 * on the data share, and then becomes part of the published set in one transaction
 * (redoubt.signatures_take).  Killed anywhere, it goes on with what lies in <store>/upstream.
 */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#include "app/mirror/active.h"
#include "sys/cvd/cvd_look.h"
#include "sys/log/log.h"

enum { ASK_S = 60, LEFT_S = 2 * 86400, CA_MAX = 64 * 1024 };

static struct mono ask_at; /* not before */

void upstream_news(void)
{
    ask_at = (struct mono){ 0 };
}

/* *wait_s: until a look is due.  Keeps what is said of the age of what is published. */
static void take_state(struct mirror *m, const char *text, uint64_t *wait_s)
{
    json_t *o = json_loads(text, 0, NULL);
    json_int_t n = json_integer_value(json_object_get(o, "wait_s"));
    const char *status = json_string_value(json_object_get(o, "status"));
    const char *detail = json_string_value(json_object_get(o, "detail"));

    if (status) {
        *wait_s = n < 0 ? 0 : n > ASK_S ? ASK_S : (uint64_t)n;
        (void)snprintf(m->signatures.status, sizeof(m->signatures.status), "%s", status);
        (void)snprintf(m->signatures.detail, sizeof(m->signatures.detail), "%.190s",
                       detail ? detail : "");
    }
    json_decref(o);
}

/* Over the session that only reads: most of the time there is nothing to do. */
bool upstream_wanted(struct mirror *m)
{
    PGresult *r = NULL;
    struct err_info why;
    uint64_t s = ASK_S;

    if (!m->db.conn || !mono_reached(mirror_now(), ask_at))
        return false;
    if (db_ask(m->db.conn, "SELECT redoubt.upstream_state()", 0, NULL, &r, &why) ==
            ERR_OK &&
        PQntuples(r) == 1)
        take_state(m, PQgetvalue(r, 0, 0), &s);
    PQclear(r); /* NULL is fine */
    if (s > 0)
        ask_at = mono_after(mirror_now(), (uint32_t)s * 1000u);
    return s == 0;
}

/* One look. */
struct looking {
    struct active *a;
    struct look look;
    json_t *due; /* redoubt.upstream_due() */
    char folder[MIRROR_PATH], ca[MIRROR_PATH + 16], url[FETCH_URL];
};

/* A source may be slow for hours: what the nodes need comes first.  It goes on from its part. */
static bool goes_on(void *arg)
{
    struct active *a = arg;
    struct blob_watch w = mirror_watch(a->m);

    return w.progress(w.arg, 0, 0) && mirror_is_active(a->m, NULL) &&
           !content_waits(a->m);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

static enum err ask_due(struct looking *l, struct err_info *info)
{
    PGresult *r = NULL;
    enum err e = active_ask(l->a, "SELECT redoubt.upstream_due()", 0, NULL, &r, info);

    if (e != ERR_OK)
        return e;
    l->due = PQntuples(r) == 1 ? json_loads(PQgetvalue(r, 0, 0), 0, NULL) : NULL;
    PQclear(r);
    return l->due ? ERR_OK : err_set(info, ERR_CORRUPT, 0, "redoubt.upstream_due()");
}

/* libcurl takes the authorities of a source from a file. */
static enum err store_ca(struct looking *l, struct err_info *info)
{
    const char *pem = text_of(l->due, "ca");
    size_t n = strlen(pem);

    if (n == 0) {
        l->ca[0] = '\0';
        return ERR_OK;
    }
    (void)snprintf(l->ca, sizeof(l->ca), "%s/ca.pem", l->folder);
    (void)unlink(l->ca);
    int fd = open(l->ca, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool ok = fd >= 0 && write(fd, pem, n) == (ssize_t)n;
    int number = errno;
    if (fd >= 0 && close(fd) != 0)
        ok = false;
    return ok ? ERR_OK : err_set(info, ERR_IO, number, "write %s", l->ca);
}

static enum err open_look(struct looking *l, struct err_info *info)
{
    struct fetch_options o = { .url = l->url,
                               .proxy = text_of(l->due, "proxy"),
                               .ca_file = l->ca,
                               .goes_on = goes_on,
                               .arg = l->a };
    json_int_t keep = json_integer_value(json_object_get(l->due, "keep"));
    size_t n = strlen(text_of(l->due, "url"));

    if (n >= sizeof(l->url) ||
        snprintf(l->folder, sizeof(l->folder), "%s/upstream", l->a->m->conf.web.store) >=
            (int)sizeof(l->folder))
        return err_set(info, ERR_CONFIG, 0, "an address or a folder is too long");
    (void)snprintf(l->url, sizeof(l->url), "%s", text_of(l->due, "url"));
    while (n > 0 && l->url[n - 1] == '/')
        l->url[--n] = '\0';
    enum err e = look_init(&l->look, l->folder, (uint32_t)keep, &o, info);
    if (e == ERR_OK)
        e = store_ca(l, info);
    if (e == ERR_OK)
        look_clean(l->folder, LEFT_S);
    return e;
}

static enum err look_at_all(struct looking *l, struct err_info *info)
{
    const json_t *names = json_object_get(l->due, "databases"), *name;
    const json_t *have = json_object_get(l->due, "have");
    enum err e = ERR_OK;
    size_t i;

    json_array_foreach(names, i, name)
    {
        const char *s = json_string_value(name);
        const json_t *mine = s ? json_object_get(have, s) : NULL;

        if (e == ERR_OK && s && cvd_name_ok(str_of(s)))
            e = look_database(
                &l->look, s,
                (uint32_t)json_integer_value(json_object_get(mine, "version")),
                (uint64_t)json_integer_value(json_object_get(mine, "built_at")), info);
    }
    return e;
}

/* ---- what was found ---- */

static json_t *entry(const struct look_file *f)
{
    const struct cvd *h = &f->checked.head;
    json_t *o = json_pack("{s:s, s:s, s:I}", "file", f->file, "sha256", f->checked.sha256,
                          "size", (json_int_t)f->checked.size);

    if (f->name.kind == CVD_DATABASE) {
        (void)json_object_set_new(o, "version", json_integer(h->version));
        (void)json_object_set_new(o, "built_at", json_integer((json_int_t)h->built));
        (void)json_object_set_new(o, "signatures", json_integer(h->signatures));
        (void)json_object_set_new(o, "level", json_integer(h->level));
    }
    return o;
}

static enum err put(struct active *a, const struct look_file *f, struct err_info *info)
{
    struct blob_watch w = mirror_watch(a->m);
    struct blob_put done;
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return err_set(info, ERR_IO, errno, "open %s", f->path);
    enum err e = blob_put(a->smb, fd, &w, &done, info);
    (void)close(fd); /* it was only read */
    if (e == ERR_OK && strcmp(done.blob.id.hex, f->checked.sha256) != 0)
        return err_set(info, ERR_CORRUPT, 0, "%s changed on the disk", f->path);
    return e;
}

/* Once the DBMS knows them: one may have been collected in between (sys/blob/blob.h). */
static enum err settle(struct looking *l, struct err_info *info)
{
    enum err e = ERR_OK;
    struct blob_id id;
    uint64_t size;

    for (size_t i = 0; e == ERR_OK && i < l->look.count; i++) {
        CHECK(blob_id_parse(&id, str_of(l->look.files[i].checked.sha256)));
        e = blob_share_size(l->a->smb, &id, &size, info);
        if (e == ERR_NOT_FOUND)
            e = put(l->a, &l->look.files[i], info);
    }
    return e;
}

/* Our own words (RHnnn), or data that does not fit.  Others are of the moment: a deadlock. */
static bool is_refusal(const char *sqlstate)
{
    return strncmp(sqlstate, "RH", 2) == 0 || strncmp(sqlstate, "22", 2) == 0 ||
           strncmp(sqlstate, "23", 2) == 0;
}

/* *refused: the DBMS does not want it, and will not later. */
static enum err take(struct looking *l, bool *refused, struct err_info *info)
{
    json_t *list = json_array();
    enum err e = ERR_OK;
    PGresult *r = NULL;

    for (size_t i = 0; e == ERR_OK && i < l->look.count; i++) {
        e = put(l->a, &l->look.files[i], info);
        (void)json_array_append_new(list, entry(&l->look.files[i]));
    }
    char *text = json_dumps(list, JSON_COMPACT);
    const char *const values[] = { text, l->url };
    json_decref(list);
    if (e == ERR_OK && !text)
        e = err_set(info, ERR_MEMORY, ENOMEM, "upstream");
    if (e == ERR_OK) {
        e = active_ask(l->a, "SELECT redoubt.signatures_take($1::jsonb, $2, false)", 2,
                       values, &r, info);
        *refused = e != ERR_OK && is_refusal(l->a->sqlstate);
        PQclear(r);
    }
    free(text);
    return e == ERR_OK ? settle(l, info) : e;
}

static enum err tell(struct looking *l, const char *why, struct err_info *info)
{
    char clean[MIRROR_WHY];
    json_t *o = json_pack("{s:s, s:I, s:O?}", "error", tell_text(clean, why), "blocked_s",
                          (json_int_t)l->look.fetch.blocked_s, "version",
                          json_object_get(l->due, "version"));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    const char *const values[] = { text };
    PGresult *r = NULL;

    json_decref(o);
    if (!text)
        return err_set(info, ERR_MEMORY, ENOMEM, "upstream");
    enum err e =
        active_ask(l->a, "SELECT redoubt.upstream_told($1::jsonb)", 1, values, &r, info);
    PQclear(r);
    free(text);
    return e;
}

/*
 * The source is told from however a look ends, so that it is not asked each minute: neither by
 * its own fault nor while the share is full.  What was fetched stays until it is taken.
 */
static enum err carry_out(struct looking *l, struct err_info *info)
{
    bool refused = false;
    enum err e = look_at_all(l, info);

    if (e == ERR_OK && l->look.count > 0)
        e = take(l, &refused, info);
    if (e == ERR_STATE || e == ERR_STALE)
        return e;
    log_event(e == ERR_OK ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "upstream",
              log_str("source", l->url), log_u64("files", l->look.count),
              log_str("why", e == ERR_OK ? "" : info->what));
    if (e == ERR_OK || refused)
        look_clean(l->folder, 0);
    return tell(l, e == ERR_OK ? "" : info->what, info);
}

enum err upstream_run(struct active *a, struct err_info *info)
{
    struct looking *l = calloc(1, sizeof(*l));

    if (!l)
        return err_set(info, ERR_MEMORY, ENOMEM, "upstream");
    l->a = a;
    enum err e = ask_due(l, info);
    if (e == ERR_OK && json_integer_value(json_object_get(l->due, "wait_s")) == 0) {
        e = open_look(l, info);
        if (e == ERR_OK)
            e = carry_out(l, info);
        look_release(&l->look);
    }
    json_decref(l->due);
    free(l);
    return e;
}
