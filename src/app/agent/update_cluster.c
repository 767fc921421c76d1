#include "app/agent/update_cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/files.h"
#include "sys/ca/ca_sign.h"

enum {
    MANIFEST_MAX = 1024 * 1024,
    FILES_MAX = 200,
    HANDED_MAX = 5 * FILES_MAX,
    PATH_BYTES = 400,
    TRIES = 3,
    SHA = crypto_hash_sha256_BYTES,
    KEPT_MAX = MANIFEST_MAX + 2 * CA_SIGNATURE_MAX + 2,
};
#define FILE_BYTES_MAX ((json_int_t)256 << 20)

void cluster_init(struct cluster_files *c, struct worker *w, const char *web,
                  const char *ca, const char *databases, const char *state)
{
    *c = (struct cluster_files){
        .worker = w, .web = web, .ca = ca, .databases = databases, .stage_fd = -1
    };
    (void)snprintf(c->kept, sizeof(c->kept), "%.280s/custom.json", state);
    (void)snprintf(c->handed_path, sizeof(c->handed_path), "%.280s/custom-handed.json",
                   state);
    (void)snprintf(c->stage, sizeof(c->stage), "%.280s/.redoubt", databases);
}

void cluster_release(struct cluster_files *c)
{
    if (c->stage[0])
        (void)rmdir(c->stage); /* if nothing waits there */
    if (c->stage_fd >= 0)
        (void)close(c->stage_fd); /* a folder */
    free(c->manifest);
    free(c->signature);
    json_decref(c->files);
    json_decref(c->old);
    json_decref(c->handed);
    *c = (struct cluster_files){ .stage_fd = -1 };
}

bool cluster_is_used(const struct cluster_files *c)
{
    return c->files || c->old;
}

static bool goes_on(void *arg)
{
    struct worker *w = arg;

    worker_listen(w, 0);
    return !w->cancelled && !w->ended;
}

/* place: "sig" or "custom". */
static enum err open_fetch(struct cluster_files *c, const char *place,
                           char url[FETCH_URL], struct fetch *f, struct err_info *info)
{
    struct fetch_options o = {
        .url = url, .proxy = "", .ca_file = c->ca, .goes_on = goes_on, .arg = c->worker
    };

    (void)snprintf(url, FETCH_URL, "%s/%s", c->web, place);
    return fetch_init(f, &o, info);
}

enum err cluster_sources(struct cluster_files *c, struct text *conf,
                         struct err_info *info)
{
    static const char *const names[] = { "main", "daily", "bytecode" };
    char url[FETCH_URL], head[CVD_HEADER], file[32];
    enum fetched what = FETCH_ABSENT;
    struct fetch f;
    unsigned there = 0;
    enum err e = open_fetch(c, "sig", url, &f, info);

    if (e != ERR_OK)
        return e;
    text_add(conf, "DatabaseMirror %s\nDNSDatabaseInfo no\nMaxAttempts 2\n", url);
    for (size_t i = 0; e == ERR_OK && i < LEN(names); i++) {
        (void)snprintf(file, sizeof(file), "%s.cvd", names[i]);
        e = fetch_head(&f, file, 0, head, &what, info);
        if (e == ERR_OK && what == FETCH_ABSENT)
            text_add(conf, "ExcludeDatabase %s\n", names[i]);
        there += e == ERR_OK && what == FETCHED;
    }
    fetch_release(&f);
    if (e == ERR_OK && there == 0)
        return err_set(info, ERR_NOT_FOUND, 0,
                       "the cluster publishes no signature databases yet");
    return e;
}

/* ---- the stage ---- */

/*
 * The user of freshclam owns the folder around it, and may have put anything there.  A folder
 * that only this process can write is the same for all that follows: it is not named again.
 */
static enum err open_stage(struct cluster_files *c, struct err_info *info)
{
    struct stat st;

    if (mkdir(c->stage, 0755) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", c->stage);
    c->stage_fd = open(c->stage, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (c->stage_fd < 0)
        return err_set(info, ERR_DENIED, errno, "%s must be a folder: remove it",
                       c->stage);
    if (fstat(c->stage_fd, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 022) != 0)
        return err_set(info, ERR_DENIED, 0,
                       "%s belongs to another user, or others may write there: remove it",
                       c->stage);
    return ERR_OK;
}

/* For what knows only paths. */
static void staged_path(const struct cluster_files *c, const char *name,
                        char path[PATH_BYTES])
{
    (void)snprintf(path, PATH_BYTES, "/proc/self/fd/%d/%s", c->stage_fd, name);
}

static void unstage(const struct cluster_files *c, const char *name)
{
    (void)unlinkat(c->stage_fd, name, 0); /* it may be gone */
}

/* ---- files ---- */

static const char *name_of(const json_t *f)
{
    return json_string_value(json_object_get(f, "name"));
}

/* Is it, to its end, a plain file with this content? */
static bool has_content(int fd, const json_t *f)
{
    const char *sha = json_string_value(json_object_get(f, "sha256"));
    crypto_hash_sha256_state h;
    uint8_t buf[16384], out[SHA];
    char hex[2 * SHA + 1];
    struct stat st;
    ssize_t n;

    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ||
        st.st_size != json_integer_value(json_object_get(f, "size")))
        return false;
    (void)crypto_hash_sha256_init(&h);
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        (void)crypto_hash_sha256_update(&h, buf, (unsigned long long)n);
    (void)crypto_hash_sha256_final(&h, out);
    hex_encode(hex, out, SHA);
    return n == 0 && strcmp(hex, sha) == 0;
}

/* The file, if it is there as it is listed; -1: it is not.  folder: AT_FDCWD or open. */
static int open_file(int folder, const char *path, const json_t *f)
{
    int fd = openat(folder, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd >= 0 && !has_content(fd, f)) {
        (void)close(fd); /* it was only read */
        fd = -1;
    }
    return fd;
}

static bool close_file(int fd)
{
    if (fd >= 0)
        (void)close(fd); /* it was only read */
    return fd >= 0;
}

static bool is_staged(const struct cluster_files *c, const json_t *f)
{
    return close_file(open_file(c->stage_fd, name_of(f), f));
}

static bool is_in_place(const struct cluster_files *c, const json_t *f)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "%s/%s", c->databases, name_of(f));
    return close_file(open_file(AT_FDCWD, path, f));
}

/* freshclam, which is another user, takes what is newer than what it has. */
static bool offer(const struct cluster_files *c, const json_t *f)
{
    int fd = open_file(c->stage_fd, name_of(f), f);
    bool ok = fd >= 0 && fchmod(fd, 0644) == 0 && futimens(fd, NULL) == 0;

    return close_file(fd) && ok;
}

/* Exactly what a file of a manifest may be. */
static bool is_sane(const json_t *f)
{
    const char *name = json_string_value(json_object_get(f, "name"));
    const char *sha = json_string_value(json_object_get(f, "sha256"));
    json_int_t size = json_integer_value(json_object_get(f, "size"));
    uint8_t bytes[SHA];

    return name && sha && cvd_custom_name(str_of(name)) && size > 0 &&
           size <= FILE_BYTES_MAX && hex_decode(bytes, sizeof(bytes), str_of(sha));
}

/* ---- the manifest ---- */

static enum err verify(const struct cluster_files *c, struct str text,
                       struct str signature, struct err_info *info)
{
    static char ca[CA_PEM_MAX];
    uint8_t digest[SHA];
    size_t n = 0;
    enum err e = file_load(c->ca, ca, sizeof(ca), &n, info);

    if (e != ERR_OK)
        return e;
    (void)crypto_hash_sha256(digest, (const unsigned char *)text.p, text.n);
    return ca_verify_digest((struct str){ ca, n }, digest, signature, info);
}

/* The files of a verified manifest; NULL and info if it makes no sense. */
static json_t *read_manifest(struct str text, json_int_t *serial, struct err_info *info)
{
    json_t *o = json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES, NULL), *files, *f;
    const char *type = json_string_value(json_object_get(o, "type"));
    bool ok = type && strcmp(type, "redoubt-signatures") == 0;
    size_t i;

    *serial = json_integer_value(json_object_get(o, "serial"));
    files = json_object_get(o, "files");
    ok = ok && *serial > 0 && json_is_array(files) && json_array_size(files) <= FILES_MAX;
    json_array_foreach(files, i, f)
    {
        ok = ok && is_sane(f);
    }
    if (!ok)
        (void)err_set(info, ERR_CORRUPT, 0,
                      "the manifest of the cluster's signature files "
                      "makes no sense");
    files = ok ? json_incref(files) : NULL;
    json_decref(o);
    return files;
}

/* The hex of the signature in a line, then the manifest. */
static json_int_t take_apart(struct cluster_files *c, struct str text)
{
    uint8_t signature[CA_SIGNATURE_MAX];
    const char *end = memchr(text.p, '\n', text.n);
    size_t n = end ? (size_t)(end - text.p) : 0;
    json_int_t serial = 0;

    if (!end || n / 2 > sizeof(signature) ||
        !hex_decode(signature, n / 2, (struct str){ text.p, n }))
        return 0;
    text = (struct str){ end + 1, text.n - n - 1 };
    c->old = read_manifest(text, &serial, NULL);
    /* What it lists was put here by us, whoever signed it; its serial may not count. */
    return c->old && verify(c, text, (struct str){ (char *)signature, n / 2 }, NULL) ==
                         ERR_OK
               ? serial
               : 0;
}

/* What was handed to freshclam since then: a list of ours, of files as in a manifest. */
static void read_handed(struct cluster_files *c, struct str text)
{
    json_t *list = json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES, NULL), *f;
    size_t i;

    json_array_foreach(list, i, f)
    {
        if (is_sane(f) && i < HANDED_MAX)
            (void)json_array_append(c->handed, f);
    }
    json_decref(list);
}

/* What was taken before; its serial, 0: nothing, or of another authority. */
static json_int_t load_old(struct cluster_files *c)
{
    char *text = malloc(KEPT_MAX);
    json_int_t serial = 0;
    size_t n = 0;

    c->handed = json_array();
    if (text && file_load(c->kept, text, KEPT_MAX, &n, NULL) == ERR_OK)
        serial = take_apart(c, (struct str){ text, n });
    if (text && file_load(c->handed_path, text, KEPT_MAX, &n, NULL) == ERR_OK)
        read_handed(c, (struct str){ text, n });
    free(text);
    return serial;
}

static enum err keep(const struct cluster_files *c, struct err_info *info)
{
    char *text = malloc(KEPT_MAX);

    if (!text)
        return err_set(info, ERR_MEMORY, ENOMEM, "update");
    hex_encode(text, (const uint8_t *)c->signature, c->signature_n);
    text[2 * c->signature_n] = '\n';
    memcpy(text + 2 * c->signature_n + 1, c->manifest, c->manifest_n);
    enum err e =
        file_store(c->kept, (struct str){ text, 2 * c->signature_n + 1 + c->manifest_n },
                   NULL, info);
    free(text);
    return e;
}

/* A small file of the Web Server, whole; *out is NULL if it has none. */
static enum err get_small(struct cluster_files *c, struct fetch *f, const char *name,
                          size_t max, char **out, size_t *n, struct err_info *info)
{
    char path[PATH_BYTES];
    enum fetched what = FETCH_ABSENT;
    char *buf = NULL;

    staged_path(c, name, path);
    unstage(c, name);
    enum err e = fetch_file(f, name, path, max, &what, info);
    if (e == ERR_OK && what == FETCHED) {
        buf = malloc(max + 1);
        e = buf ? file_load(path, buf, max + 1, n, info)
                : err_set(info, ERR_MEMORY, ENOMEM, "update");
        unstage(c, name); /* it is read */
    }
    if (e != ERR_OK) {
        free(buf);
        return e;
    }
    free(*out);
    *out = buf;
    return ERR_OK;
}

/* Both files of one publication: it may change between the two requests. */
static enum err get_manifest(struct cluster_files *c, struct fetch *f,
                             struct err_info *info)
{
    enum err e = ERR_DENIED;

    for (int i = 0; i < TRIES && e == ERR_DENIED; i++) {
        e = get_small(c, f, "manifest.json", MANIFEST_MAX - 1, &c->manifest,
                      &c->manifest_n, info);
        if (e != ERR_OK || !c->manifest)
            return e;
        e = get_small(c, f, "manifest.json.sig", CA_SIGNATURE_MAX - 1, &c->signature,
                      &c->signature_n, info);
        if (e != ERR_OK)
            return e;
        e = verify(c, (struct str){ c->manifest, c->manifest_n },
                   (struct str){ c->signature ? c->signature : "", c->signature_n },
                   info);
    }
    return e;
}

/* Fetches what is neither here nor in place. */
static enum err get_files(struct cluster_files *c, struct fetch *f, struct err_info *info)
{
    char path[PATH_BYTES];
    const json_t *one;
    enum err e = ERR_OK;
    size_t i;

    json_array_foreach(c->files, i, one)
    {
        const char *name = name_of(one);
        enum fetched what = FETCHED;

        if (e != ERR_OK || is_in_place(c, one) || is_staged(c, one))
            continue;
        staged_path(c, name, path);
        e = fetch_file(f, name, path,
                       (uint64_t)json_integer_value(json_object_get(one, "size")), &what,
                       info);
        if (e == ERR_OK && what != FETCHED)
            e = err_set(info, ERR_IO, 0, "%s is listed, but the cluster does not have it",
                        name);
        if (e == ERR_OK && !is_staged(c, one)) {
            unstage(c, name);
            e = err_set(info, ERR_CORRUPT, 0, "%s is not what the manifest lists", name);
        }
    }
    return e;
}

/* ---- whose is what is there? ---- */

static bool lists(const json_t *files, const char *name)
{
    const json_t *f;
    size_t i;

    json_array_foreach(files, i, f)
    {
        if (strcmp(name_of(f), name) == 0)
            return true;
    }
    return false;
}

static bool was_handed(const struct cluster_files *c, const char *name)
{
    const json_t *f;
    size_t i;

    json_array_foreach(c->handed, i, f)
    {
        if (strcmp(name_of(f), name) == 0 && is_in_place(c, f))
            return true;
    }
    return false;
}

/* A file that somebody else put there is neither replaced nor, later, removed. */
static enum err check_names(const struct cluster_files *c, struct err_info *info)
{
    char path[PATH_BYTES];
    const json_t *f;
    struct stat st;
    size_t i;

    json_array_foreach(c->files, i, f)
    {
        const char *name = name_of(f);

        (void)snprintf(path, sizeof(path), "%s/%s", c->databases, name);
        if (!lists(c->old, name) && lstat(path, &st) == 0 && !is_in_place(c, f) &&
            !was_handed(c, name))
            return err_set(
                info, ERR_EXISTS, 0,
                "%s: another file of this name, which is not from the cluster, "
                "is in the folder of the databases: rename one of them",
                name);
    }
    return ERR_OK;
}

/* freshclam may take some files and refuse others: those are ours all the same. */
static enum err note_handed(struct cluster_files *c, struct err_info *info)
{
    json_t *f, *known;
    enum err e = ERR_OK;
    bool more = false;
    size_t i, k;

    json_array_foreach(c->files, i, f)
    {
        bool is_known = is_in_place(c, f);

        json_array_foreach(c->handed, k, known)
        {
            is_known = is_known || json_equal(f, known);
        }
        if (is_known)
            continue;
        if (json_array_size(c->handed) == HANDED_MAX)
            (void)json_array_remove(c->handed, 0);
        more = json_array_append(c->handed, f) == 0 || more;
    }
    char *text = more ? json_dumps(c->handed, JSON_COMPACT) : NULL;
    if (more)
        e = text ? file_store(c->handed_path, str_of(text), NULL, info)
                 : err_set(info, ERR_MEMORY, ENOMEM, "update");
    free(text);
    return e;
}

enum err cluster_stage(struct cluster_files *c, struct err_info *info)
{
    json_int_t had = load_old(c), serial = 0;
    char url[FETCH_URL];
    struct fetch f;
    enum err e = open_stage(c, info);

    if (e != ERR_OK)
        return e;
    e = open_fetch(c, "custom", url, &f, info);
    if (e == ERR_OK)
        e = get_manifest(c, &f, info);
    if (e == ERR_OK && !c->manifest)
        e = err_set(info, ERR_NOT_FOUND, 0, "the cluster has no manifest");
    if (e == ERR_OK) {
        c->files =
            read_manifest((struct str){ c->manifest, c->manifest_n }, &serial, info);
        e = c->files ? ERR_OK : ERR_CORRUPT;
    }
    if (e == ERR_OK && serial < had)
        e = err_set(
            info, ERR_STALE, 0,
            "the manifest of the cluster's signature files is older (serial %lld) "
            "than the one that was taken (%lld)",
            (long long)serial, (long long)had);
    if (e == ERR_OK)
        e = check_names(c, info);
    if (e == ERR_OK)
        e = get_files(c, &f, info);
    if (e == ERR_OK)
        e = note_handed(c, info);
    fetch_release(&f);
    if (e != ERR_OK) { /* all of it or nothing */
        json_decref(c->files);
        c->files = NULL;
    }
    return e;
}

unsigned cluster_custom(const struct cluster_files *c, struct text *conf)
{
    char there[PATH_BYTES];
    const json_t *one;
    unsigned count = 0;
    struct stat st;
    size_t i;

    json_array_foreach(c->files, i, one)
    {
        if (is_in_place(c, one) || !offer(c, one))
            continue;
        (void)snprintf(there, sizeof(there), "%s/%s", c->databases, name_of(one));
        if (stat(there, &st) == 0 && st.st_mtim.tv_sec > time(NULL))
            (void)unlink(there);
        text_add(conf, "DatabaseCustomURL file://%s/%s\n", c->stage, name_of(one));
        count++;
    }
    return count;
}

/* Those of a list that are not wanted any more; what was changed since by hand stays. */
static enum err remove_old(const struct cluster_files *c, const json_t *list,
                           struct err_info *info)
{
    char path[PATH_BYTES];
    const json_t *f;
    size_t i;

    json_array_foreach(list, i, f)
    {
        (void)snprintf(path, sizeof(path), "%s/%s", c->databases, name_of(f));
        if (!lists(c->files, name_of(f)) && is_in_place(c, f) && unlink(path) != 0 &&
            errno != ENOENT)
            return err_set(info, ERR_IO, errno, "remove %s", path);
    }
    return ERR_OK;
}

enum err cluster_finish(struct cluster_files *c, struct err_info *info)
{
    const json_t *one;
    size_t i;

    if (!c->files)
        return ERR_OK;
    json_array_foreach(c->files, i, one)
    {
        if (!is_in_place(c, one))
            return err_set(info, ERR_IO, 0, "%s was fetched but not taken", name_of(one));
        unstage(c, name_of(one));
    }
    enum err e = remove_old(c, c->old, info);
    if (e == ERR_OK)
        e = remove_old(c, c->handed, info);
    if (e == ERR_OK)
        e = keep(c, info);
    if (e == ERR_OK)
        (void)unlink(c->handed_path); /* the manifest says the same now */
    return e;
}
