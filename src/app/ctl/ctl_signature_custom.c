/* Signature files of one's own, and their signed manifest (docs/protocol/signatures.md). */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/ctl/ctl_signature.h"

enum { FILES_MAX = 200, FILE_BYTES_MAX = 256 * 1024 * 1024, TRIES = 5 };

struct custom {
    struct publish publish;
    json_t *given; /* [{"name", "sha256", "size", "mtime"}] of the command line */
    struct blob blobs[FILES_MAX];
    /* What was made and put last. */
    char *manifest;
    struct ca_signature signature;
    struct blob manifest_blob, signature_blob;
};

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* ---- the files ---- */

/* A container says in its header what it should be. */
static int look_inside(struct ctl *c, const char *path, int fd)
{
    struct err_info info = { .what = "" };
    struct cvd_checked checked;
    struct cvd_file as;

    if (!cvd_file_name(str_of(last_part(path)), &as) || as.kind != CVD_UNSIGNED)
        return CTL_OK;
    enum err e = cvd_check(fd, &as, &checked, &info);
    return e == ERR_OK ? CTL_OK : signature_refused(c, path, e, info.what, NULL);
}

static int look_at(struct ctl *c, const char *path, struct stat *st)
{
    if (!cvd_custom_name(str_of(last_part(path))))
        return signature_refused(c, path, ERR_INVALID,
                                 "it has no name of a signature file",
                                 "Names are lower-case letters, digits and . _ -, "
                                 "shorter than 64 characters, with "
                                 "an ending that ClamAV loads, such as .ndb .hdb .hsb "
                                 ".ldb .yar .cud; main, daily "
                                 "and bytecode are taken.");
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return signature_refused(c, path, ERR_IO, strerror(errno), NULL);
    int r = fstat(fd, st) != 0 || !S_ISREG(st->st_mode) || st->st_size < 1 ||
                    st->st_size > FILE_BYTES_MAX
                ? signature_refused(c, path, ERR_INVALID,
                                    "it must be a file of 1 byte to 256 MiB", NULL)
                : look_inside(c, path, fd);
    (void)close(fd); /* it was only read */
    return r;
}

static int add_file(struct ctl *c, struct custom *u, const char *path, struct blob *blob)
{
    struct stat st;
    int r = look_at(c, path, &st);

    if (r == CTL_OK)
        r = publish_file(&u->publish, path, last_part(path), blob);
    if (r == CTL_OK)
        (void)json_array_append_new(
            u->given, json_pack("{s:s, s:s, s:I, s:I}", "name", last_part(path), "sha256",
                                blob->id.hex, "size", (json_int_t)blob->size, "mtime",
                                (json_int_t)st.st_mtime));
    return r;
}

/* ---- the manifest ---- */

static void set_blob(json_t *body, const char *key, const struct blob *b)
{
    (void)json_object_set_new(
        body, key,
        json_pack("{s:s, s:I}", "sha256", b->id.hex, "size", (json_int_t)b->size));
}

static struct str signature_of(const struct custom *u)
{
    return (struct str){ (const char *)u->signature.bytes, u->signature.n };
}

/* Puts the manifest with its signature; *ret_body is what the API is told. */
static int sign(struct ctl *c, struct custom *u, json_t *files, uint64_t serial,
                json_t **ret_body)
{
    json_t *o = json_pack("{s:s, s:I, s:O}", "type", "redoubt-signatures", "serial",
                          (json_int_t)serial, "files", files);

    free(u->manifest);
    u->manifest = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(o);
    if (!u->manifest)
        return CTL_FAILED;
    int r = publish_bytes(&u->publish, str_of(u->manifest), "manifest.json",
                          &u->manifest_blob);
    if (r == CTL_OK)
        r = publish_sign(c, &u->manifest_blob.id, &u->signature);
    if (r == CTL_OK)
        r = publish_bytes(&u->publish, signature_of(u), "manifest.json.sig",
                          &u->signature_blob);
    if (r != CTL_OK)
        return r;
    *ret_body = json_pack("{s:I, s:O}", "serial", (json_int_t)serial, "files", files);
    set_blob(*ret_body, "manifest", &u->manifest_blob);
    set_blob(*ret_body, "signature", &u->signature_blob);
    char *text = publish_base64(&u->signature);
    (void)json_object_set_new(json_object_get(*ret_body, "signature"), "bytes",
                              json_string(text)); /* NULL: it is refused */
    free(text);
    return CTL_OK;
}

static int settle(struct ctl *c, struct custom *u)
{
    int r = publish_settle(&u->publish, NULL, str_of(u->manifest), &u->manifest_blob);

    if (r == CTL_OK)
        r = publish_settle(&u->publish, NULL, signature_of(u), &u->signature_blob);
    for (size_t i = 0; r == CTL_OK && i < json_array_size(u->given); i++)
        r = publish_settle(&u->publish, c->argv[i + 1], (struct str){ 0 }, &u->blobs[i]);
    return r;
}

/* ---- the set ---- */

static bool is_named(const struct ctl *c, const char *name)
{
    for (int i = 1; i < c->argc; i++)
        if (strcmp(c->argv[i], name) == 0)
            return true;
    return false;
}

static bool has_name(const json_t *list, const char *name)
{
    const json_t *f;
    size_t i;

    json_array_foreach(list, i, f)
    {
        if (strcmp(ctl_str(f, "name", ""), name) == 0)
            return true;
    }
    return false;
}

/* What is published now, without those that are replaced or removed, and the new ones. */
static json_t *changed(const struct ctl *c, const struct custom *u, const json_t *now,
                       size_t *ret_removed)
{
    const json_t *f;
    json_t *files = json_array();
    size_t i;

    *ret_removed = 0;
    json_array_foreach(json_object_get(now, "files"), i, f)
    {
        const char *name = ctl_str(f, "name", "");
        bool removed = json_array_size(u->given) == 0 && is_named(c, name);

        *ret_removed += removed;
        if (!removed && !has_name(u->given, name))
            (void)json_array_append_new(files, json_deep_copy(f));
    }
    (void)json_array_extend(files, u->given);
    return files;
}

static int publish_once(struct ctl *c, struct custom *u, json_t **answer, bool *again)
{
    json_t *now = NULL, *body = NULL;
    struct manage_answer a = { 0 };
    size_t removed = 0;
    int r = manage_get(c, "/v1/signatures/custom", &now);

    *again = false;
    if (r != CTL_OK)
        return r;
    json_t *files = changed(c, u, now, &removed);
    if (json_array_size(u->given) == 0 && removed < (size_t)(c->argc - 1))
        r = ctl_fail(
            c, CTL_FAILED,
            &(struct ctl_problem){ "not_found", "There is no such file",
                                   "One of the names is not published.",
                                   "redoubt signature custom list shows them." });
    else if (json_array_size(files) > FILES_MAX)
        r = ctl_usage("at most %d files can be published", FILES_MAX);
    if (r == CTL_OK)
        r = sign(c, u, files, ctl_u64(now, "serial", 0) + 1, &body);
    if (r == CTL_OK) {
        r = manage_call(c,
                        &(struct manage_call){ .method = "PUT",
                                               .path = "/v1/signatures/custom",
                                               .body = body,
                                               .quiet = 409 },
                        &a);
        *again = a.status == 409;
    }
    *answer = a.body;
    json_decref(files);
    json_decref(body);
    json_decref(now);
    return r;
}

static int publish(struct ctl *c, struct custom *u)
{
    json_t *answer = NULL;
    bool again = true;
    int r = CTL_OK;

    /* Somebody else may have been faster: then on top of that. */
    for (int i = 0; again && i < TRIES; i++) {
        json_decref(answer);
        answer = NULL;
        r = publish_once(c, u, &answer, &again);
    }
    if (again)
        return ctl_fail(c, CTL_NOT_POSSIBLE,
                        &(struct ctl_problem){
                            "custom_serial", "The files are being changed by others",
                            "Each time somebody else was faster.", "Try again." });
    if (r == CTL_OK)
        r = settle(c, u);
    if (r == CTL_OK)
        say_done(c, answer, "%llu files are published, with serial %llu.",
                 (unsigned long long)json_array_size(json_object_get(answer, "files")),
                 (unsigned long long)ctl_u64(answer, "serial", 0));
    json_decref(answer);
    return r;
}

static int change(struct ctl *c, bool add)
{
    struct custom *u =
        c->argc > 1 && c->argc - 1 <= FILES_MAX ? calloc(1, sizeof(*u)) : NULL;

    if (!u)
        return ctl_usage("redoubt signature custom %s needs 1 to %d files", c->argv[0],
                         FILES_MAX);
    u->given = json_array();
    int r = publish_open(&u->publish, c);
    for (int i = 1; add && r == CTL_OK && i < c->argc; i++)
        r = add_file(c, u, c->argv[i], &u->blobs[i - 1]);
    if (r == CTL_OK)
        r = publish(c, u);
    publish_close(&u->publish);
    json_decref(u->given);
    free(u->manifest);
    free(u);
    return r;
}

static int list(struct ctl *c)
{
    static const struct column columns[] = {
        { "FILE", "name", CELL_TEXT },
        { "SIZE", "size", CELL_RIGHT },
        { "SHA-256", "sha256", CELL_TEXT },
    };
    json_t *answer = NULL;
    int r = manage_get(c, "/v1/signatures/custom", &answer);

    if (r == CTL_OK && c->opt.json) {
        ctl_print_json(answer);
    } else if (r == CTL_OK) {
        printf("Serial: %llu\n", (unsigned long long)ctl_u64(answer, "serial", 0));
        print_table(c, json_object_get(answer, "files"), columns, LEN(columns),
                    "No file is published.");
    }
    json_decref(answer);
    return r;
}

int cmd_signature_custom(struct ctl *c)
{
    const char *verb = c->argv[0];

    if (strcmp(verb, "list") == 0)
        return c->argc == 1 ? list(c) : ctl_usage("list takes no file");
    if (strcmp(verb, "publish") == 0)
        return change(c, true);
    if (strcmp(verb, "remove") == 0)
        return change(c, false);
    return ctl_usage("redoubt signature custom publish, remove or list, not %s", verb);
}
