/* cure: what happens to a file with a threat, and what the server hears of it. */
#include <errno.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/worker.h"

static const uint64_t day_us = 86400ull * 1000000ull;

static json_t *describe_item(const struct quarantine_item *i)
{
    char id[UUID_TEXT];

    uuid_format(id, &i->id);
    return json_pack("{s:s,s:o,s:o,s:s,s:I}", "item", id, "path",
                     channel_text(i->path, WORKER_PATH_TEXT), "threat",
                     channel_text(i->threat, sizeof(i->threat)), "sha256", i->sha256,
                     "size", (json_int_t)i->size);
}

static void told_deleted(void *arg, const struct quarantine_item *item)
{
    json_t *data = describe_item(item);

    (void)json_object_set_new(data, "why", json_string(arg));
    worker_event("quarantine_deleted", "info", data);
}

static int64_t unix_us(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static enum err make_room(const struct worker *w, uint64_t need, struct err_info *info)
{
    static char why[] = "bounds of the quarantine";
    struct quarantine_bounds b = {
        .before_us = unix_us() - (int64_t)(w->days * day_us),
        .max_bytes = w->max_bytes,
        .need = need,
    };

    return quarantine_trim(w->quarantine, &b, told_deleted, why, info);
}

json_t *cure_describe(const char *path, const char *threat, const char *sha256,
                      const struct stat *st, const char *by)
{
    return json_pack("{s:o,s:o,s:s,s:I,s:s}", "path",
                     channel_text(path, WORKER_PATH_TEXT), "threat",
                     channel_text(threat, QUARANTINE_THREAT_MAX), "sha256", sha256,
                     "size", (json_int_t)st->st_size, "by", by);
}

static enum err take(struct worker *w, const char *path, int fd,
                     const struct stat *scanned, const char *threat,
                     struct quarantine_item *item, struct err_info *info)
{
    if (!w->keep)
        return err_set(info, ERR_STATE, 0, "the policy has switched the quarantine off");
    if (strncmp(threat, "Heuristics.Limits.Exceeded", 26) == 0)
        return err_set(info, ERR_LIMIT, 0,
                       "the file exceeds a limit of the engine, nothing more is known");
    enum err e = make_room(w, (uint64_t)scanned->st_size, info);
    return e == ERR_OK
               ? quarantine_take(w->quarantine, path, fd, scanned, threat, item, info)
               : e;
}

enum cure cure_found(struct worker *w, const char *path, int fd,
                     const struct stat *scanned, const char *threat, const char *by)
{
    struct quarantine_item *item = calloc(1, sizeof(*item));
    char sha256[QUARANTINE_HASH] = "";
    struct err_info info = { 0 };
    struct stat now;

    if (!scanned && fstat(fd, &now) == 0)
        scanned = &now;
    if (!item || !scanned) {
        free(item);
        return CURE_FAILED;
    }
    if (quarantine_hash(fd, sha256, NULL) == ERR_OK &&
        quarantine_is_allowed(w->quarantine, sha256)) {
        free(item);
        return CURE_ALLOWED;
    }
    json_t *data = cure_describe(path, threat, sha256, scanned, by);
    worker_event("threat_found", "critical", json_copy(data));
    if (scanned->st_nlink == 0) {
        (void)json_object_set_new(data, "why", json_string("the file was deleted"));
        worker_event("threat_cured", "warning", data);
        free(item);
        return CURE_DONE;
    }
    enum err e = take(w, path, fd, scanned, threat, item, &info);
    if (e == ERR_OK) {
        worker_event("quarantine_added", "info", describe_item(item));
        (void)json_object_update_new(data, describe_item(item));
        if (item->links > 1)
            (void)json_object_set_new(data, "links_left",
                                      json_integer((json_int_t)item->links - 1));
        worker_event("threat_cured", "warning", data);
    } else {
        (void)json_object_set_new(data, "why",
                                  channel_text(info.what, sizeof(info.what)));
        worker_event("threat_not_cured", "critical", data);
    }
    free(item);
    return e == ERR_OK ? CURE_DONE : CURE_FAILED;
}

typedef enum err quarantine_act(struct quarantine *q, const struct uuid *id,
                                struct quarantine_item *out, struct err_info *info);

static enum err on_item(struct worker *w, const json_t *job, quarantine_act *act,
                        struct quarantine_item *item, struct err_info *info)
{
    struct uuid id;

    if (!uuid_parse(&id, str_of(job_text(job, "item"))))
        return err_set(info, ERR_INVALID, 0, "params.item is not a UUID");
    item->id = id;
    return act(w->quarantine, &id, item, info);
}

enum err cure_restore(struct worker *w, const json_t *job, json_t *out,
                      struct err_info *info)
{
    struct quarantine_item *item = calloc(1, sizeof(*item));
    enum err e = item ? on_item(w, job, quarantine_restore, item, info) : ERR_MEMORY;

    (void)out;
    if (e == ERR_OK)
        worker_event("quarantine_restored", "warning", describe_item(item));
    free(item);
    return e;
}

enum err cure_delete(struct worker *w, const json_t *job, json_t *out,
                     struct err_info *info)
{
    static char why[] = "order of the server";
    struct quarantine_item *item = calloc(1, sizeof(*item));
    enum err e = item ? on_item(w, job, quarantine_delete, item, info) : ERR_MEMORY;

    (void)out;
    if (e == ERR_OK)
        told_deleted(why, item);
    free(item);
    return e;
}

static void recovered(void *arg, const struct quarantine_item *item)
{
    (void)arg;
    worker_event("quarantine_added", "info", describe_item(item));
    worker_event("threat_cured", "warning", describe_item(item));
}

enum err cure_recover(struct worker *w, const json_t *job, json_t *out,
                      struct err_info *info)
{
    enum err e = quarantine_recover(w->quarantine, recovered, NULL, info);

    (void)job, (void)out;
    return e == ERR_OK ? make_room(w, 0, info) : e;
}
