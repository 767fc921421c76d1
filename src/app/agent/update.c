/*
 * update: the worker's job that runs freshclam with a configuration of our own.
 *
 * Only freshclam writes into the folder of the databases.  It verifies what Talos signed;
 * custom databases are as trustworthy as the place that they come from.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/channel.h"
#include "app/agent/engine_conf.h"
#include "app/agent/files.h"
#include "app/agent/update_cluster.h"
#include "app/agent/worker.h"
#include "sys/clamav/session.h"

enum { LIMIT_S = 3600, OUTPUT_BYTES = 4096, SAY_MS = 5000 };

/* Exit codes of freshclam that tell an administrator something (libfreshclam.h). */
static const struct {
    int code;
    const char *text;
} codes[] = {
    { 3, "the folder of the databases cannot be used" },
    { 5, "the source cannot be reached" },
    { 6, "the source gave an empty file" },
    { 7, "a database from the source is not genuine" },
    { 8, "the engine cannot load the new database" },
    { 9, "the configuration of freshclam is wrong" },
    { 10, "the folder of the databases may not be written" },
    { 11, "the source did not give the database" },
    { 12, "the mirror is older than it says" },
    { 14, "the update failed" },
    { 127, "freshclam is not installed" },
};

struct update {
    char own[ENGINE_CONF_MAX], conf[ENGINE_CONF_MAX], output[OUTPUT_BYTES];
    char folder[256], owner[64];
    struct cluster_files cluster;
};

static uint64_t fnv(uint64_t h, const void *bytes, size_t n)
{
    const uint8_t *p = bytes;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}

/* A container says in its first 512 bytes what it is; others are read whole. */
static uint64_t content(int folder, const char *name, uint64_t h)
{
    static char buf[65536];
    const char *dot = strrchr(name, '.');
    bool container = dot && (strcmp(dot, ".cvd") == 0 || strcmp(dot, ".cld") == 0);
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n;

    while (fd >= 0 && (n = read(fd, buf, container ? 512 : sizeof(buf))) > 0) {
        h = fnv(h, buf, (size_t)n);
        if (container)
            break;
    }
    if (fd >= 0)
        (void)close(fd);
    return h;
}

/*
 * Something that changes whenever a database does.  Not by the times of the files:
 * freshclam may fetch again what it has.
 */
static uint64_t fingerprint(const char *folder, unsigned *files)
{
    DIR *dir = opendir(folder);
    const struct dirent *d;
    uint64_t sum = 0;
    struct stat st;

    *files = 0;
    while (dir && (d = readdir(dir)) != NULL) {
        if (strcmp(d->d_name, "freshclam.dat") == 0 ||
            fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(st.st_mode))
            continue;
        uint64_t h = fnv(1469598103934665603u, d->d_name, strlen(d->d_name));
        h = fnv(h, &st.st_size, sizeof(st.st_size));
        sum += content(dirfd(dir), d->d_name, h);
        ++*files;
    }
    if (dir)
        (void)closedir(dir);
    return sum;
}

static void find_owner(struct update *u)
{
    struct passwd pw, *found = NULL;
    char buf[1024];
    struct stat st;

    if (engine_conf_value(str_of(u->own), "DatabaseOwner", u->owner, sizeof(u->owner)))
        return;
    if (stat(u->folder, &st) == 0 &&
        getpwuid_r(st.st_uid, &pw, buf, sizeof(buf), &found) == 0 && found)
        (void)snprintf(u->owner, sizeof(u->owner), "%s", pw.pw_name);
}

static bool is_one_word(const char *s)
{
    return s[0] != '\0' && strpbrk(s, " \t\r\n\"") == NULL;
}

/* Where from; *any stays false if nobody says it. */
static enum err add_sources(struct update *u, const json_t *job, struct text *t,
                            bool *any, struct err_info *info)
{
    const char *source = job_text(job, "source");
    const json_t *list = json_object_get(job, "custom"), *one;
    struct text from = *t;
    enum err e = ERR_OK;
    size_t i;

    *any = is_one_word(source) || u->own[0] != '\0';
    if (strcmp(source, "cluster") == 0) {
        e = cluster_sources(&u->cluster, t, info);
        *any = e == ERR_OK;
        /* With files of its own alone, it is a source all the same. */
        if (e == ERR_NOT_FOUND && cluster_is_used(&u->cluster))
            e = ERR_OK;
    } else if (is_one_word(source)) {
        /* A mirror of files: no DNS, increments as far as it has them. */
        text_add(t, "DatabaseMirror %s\nDNSDatabaseInfo no\nMaxAttempts 2\n", source);
    } else {
        engine_conf_sources(str_of(u->own), t);
        if (t->n == from.n)
            text_add(t, "ExcludeDatabase main\nExcludeDatabase daily\n"
                        "ExcludeDatabase bytecode\nDatabaseMirror localhost\n"
                        "DNSDatabaseInfo no\n");
    }
    json_array_foreach(list, i, one)
    {
        const char *url = json_string_value(one);

        if (url && is_one_word(url)) {
            text_add(t, "DatabaseCustomURL %s\n", url);
            *any = true;
        }
    }
    return e;
}

static enum err find_folder(struct update *u, const json_t *job, struct err_info *info)
{
    const char *own = job_text(job, "own"), *folder = job_text(job, "databases");
    size_t n;

    if (own[0]) {
        enum err e = file_load(own, u->own, sizeof(u->own), &n, info);

        if (e != ERR_OK)
            return e;
    }
    (void)snprintf(u->folder, sizeof(u->folder), "%s", folder);
    if (!u->folder[0] && !engine_conf_value(str_of(u->own), "DatabaseDirectory",
                                            u->folder, sizeof(u->folder)))
        (void)snprintf(u->folder, sizeof(u->folder), "/var/lib/clamav");
    find_owner(u);
    return ERR_OK;
}

/* *needed: is there anything for freshclam to do? */
static enum err compose(struct update *u, const json_t *job, bool *needed,
                        struct err_info *info)
{
    struct text t;

    text_init(&t, u->conf, sizeof(u->conf));
    text_add(&t, "DatabaseDirectory %s\n", u->folder);
    if (u->owner[0])
        text_add(&t, "DatabaseOwner %s\n", u->owner);
    enum err e = add_sources(u, job, &t, needed, info);
    if (e != ERR_OK)
        return e;
    *needed = cluster_custom(&u->cluster, &t) > 0 || *needed;
    if (!*needed && !cluster_is_used(&u->cluster))
        return err_set(info, ERR_CONFIG, 0, "no source of signatures is configured");
    return t.cut ? err_set(info, ERR_LIMIT, 0, "the configuration is too long") : ERR_OK;
}

/* The cluster's own files.  One that publishes none, or has no Web Server, is no error. */
static enum err stage(struct update *u, struct worker *w, const json_t *job,
                      struct err_info *info)
{
    cluster_init(&u->cluster, w, job_text(job, "web"), job_text(job, "ca"), u->folder,
                 job_text(job, "state"));
    if (!job_text(job, "web")[0] || !json_is_true(json_object_get(job, "cluster_files")))
        return ERR_OK;
    enum err e = cluster_stage(&u->cluster, info);
    if (e == ERR_NOT_FOUND || (e != ERR_OK && !cluster_is_used(&u->cluster) &&
                               (e == ERR_IO || e == ERR_TIMEOUT)))
        return ERR_OK;
    return e;
}

/*
 * A 403 or 429 is exit code 11, and from then on freshclam does nothing for a day, says so,
 * and ends with 0 (seen with 1.4.6).
 */
static enum err judge(int code, const char *output, struct err_info *info)
{
    static const char waits[] = "still on cool-down until after: ";
    const char *text = "freshclam failed", *until = strstr(output, waits);

    if (until) {
        until += sizeof(waits) - 1;
        return err_set(info, ERR_DENIED, 0,
                       "the source refused this device (403 or 429): freshclam waits "
                       "until %.*s",
                       (int)strcspn(until, "\r\n"), until);
    }
    if (code == 0 || code == 1)
        return ERR_OK;
    for (size_t i = 0; i < LEN(codes); i++)
        if (codes[i].code == code)
            text = codes[i].text;
    return err_set(info, ERR_IO, 0, "%s (freshclam ends with %d)", text, code);
}

/* Another source has refused nobody yet: freshclam forgets that it should wait. */
static enum err store_conf(const struct update *u, const char *path,
                           struct err_info *info)
{
    char *old = malloc(ENGINE_CONF_MAX), dat[300];
    size_t n;

    if (!old)
        return err_set(info, ERR_MEMORY, ENOMEM, "update");
    if (file_load(path, old, ENGINE_CONF_MAX, &n, NULL) != ERR_OK ||
        strcmp(old, u->conf) != 0) {
        (void)snprintf(dat, sizeof(dat), "%s/freshclam.dat", u->folder);
        (void)unlink(dat);
    }
    free(old);
    return file_store(path, str_of(u->conf), NULL, info);
}

static enum err freshclam(struct worker *w, struct update *u, const char *path,
                          json_t *out, struct err_info *info)
{
    char config[300];
    char *argv[] = { (char[]){ "freshclam" }, (char[]){ "--stdout" }, config, NULL };
    struct command c = { argv, LIMIT_S, u->output, sizeof(u->output), false };
    int code = 0;
    enum err e = store_conf(u, path, info);

    (void)snprintf(config, sizeof(config), "--config-file=%s", path);
    if (e == ERR_OK)
        e = command_run(w, &c, &code, info);
    if (e == ERR_OK)
        e = judge(code, u->output, info);
    (void)json_object_set_new(out, "exit", json_integer(code));
    if (e != ERR_OK) {
        size_t n = strlen(u->output), tail = n > 800 ? n - 800 : 0;

        (void)json_object_set_new(out, "output", channel_text(u->output + tail, 800));
    }
    return e;
}

static enum err run(struct worker *w, struct update *u, const json_t *job, json_t *out,
                    struct err_info *info)
{
    struct err_info late = { .what = "" };
    bool needed = false;
    char none[64];
    unsigned files;
    uint64_t before = fingerprint(u->folder, &files);
    enum err staged = stage(u, w, job, &late);
    enum err e = compose(u, job, &needed, info);

    if (e == ERR_OK && needed)
        e = freshclam(w, u, job_text(job, "conf"), out, info);
    if (e == ERR_OK && staged == ERR_OK)
        e = cluster_finish(&u->cluster, info);
    bool changed = fingerprint(u->folder, &files) != before;
    /* Without this clamd sees it by itself, within ten minutes. */
    if (changed && clamav_say(job_text(job, "clamd"), "zRELOAD", SAY_MS, none,
                              sizeof(none), NULL) != ERR_OK)
        (void)json_object_set_new(out, "reload", json_false());
    (void)json_object_set_new(out, "changed", json_boolean(changed));
    (void)json_object_set_new(out, "files", json_integer((json_int_t)files));
    /* The databases are up to date, at least; or the cluster has none, and this is why. */
    return (e == ERR_OK || e == ERR_NOT_FOUND) && staged != ERR_OK
               ? err_set(info, staged, 0, "%s", late.what)
               : e;
}

enum err update_job(struct worker *w, const json_t *job, json_t *out,
                    struct err_info *info)
{
    struct update *u = calloc(1, sizeof(*u));

    if (!u)
        return err_set(info, ERR_MEMORY, ENOMEM, "update");
    enum err e = find_folder(u, job, info);
    if (e == ERR_OK)
        e = run(w, u, job, out, info);
    cluster_release(&u->cluster);
    free(u);
    return e;
}
