#include "app/ctl/ctl_signature.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

int signature_refused(struct ctl *c, const char *path, enum err e, const char *why,
                      const char *advice)
{
    char text[600];

    (void)snprintf(text, sizeof(text), "%s: %s.", path, why);
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){ e == ERR_CORRUPT ? "not_genuine" : "file_refused",
                               "The file is refused", text, advice });
}

int signature_open(struct ctl *c, const char *path, struct signature_file *out)
{
    struct signature_file f = { .path = path, .file = last_part(path), .fd = -1 };
    struct err_info info = { .what = "" };

    if (!cvd_file_name(str_of(f.file), &f.name))
        return signature_refused(
            c, path, ERR_INVALID, "this is no name of a signature database",
            "They are called NAME.cvd, NAME-VERSION.cdiff and "
            "NAME-VERSION.cvd.sign. Files of your own are published with redoubt "
            "signature custom publish.");
    if (f.name.kind == CVD_LOCAL || f.name.kind == CVD_UNSIGNED)
        return signature_refused(
            c, path, ERR_INVALID,
            f.name.kind == CVD_LOCAL
                ? "a .cld was made by freshclam on one machine; clients could "
                  "not verify it"
                : "a .cud has no signature, and freshclam takes none",
            f.name.kind == CVD_LOCAL
                ? "Import the .cvd with its increments."
                : "Publish it with redoubt signature custom publish.");
    f.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f.fd < 0)
        return signature_refused(c, path, ERR_IO, strerror(errno), NULL);
    enum err e = cvd_check(f.fd, &f.name, &f.checked, &info);
    if (e == ERR_OK) {
        *out = f;
        return CTL_OK;
    }
    signature_close(&f);
    return signature_refused(c, path, e, info.what,
                             e == ERR_CORRUPT
                                 ? "Get it again from where it came from; a client would "
                                   "refuse it, too."
                                 : NULL);
}

void signature_close(struct signature_file *f)
{
    if (f->fd >= 0)
        (void)close(f->fd); /* it was only read */
    f->fd = -1;
}

static json_t *described(const struct signature_file *f)
{
    json_t *o = json_object();

    (void)json_object_set_new(o, "file", json_string(f->file));
    (void)json_object_set_new(o, "database", json_string(f->name.name));
    (void)json_object_set_new(o, "version", json_integer(f->checked.head.version));
    if (f->name.kind == CVD_DATABASE) {
        (void)json_object_set_new(o, "signatures",
                                  json_integer(f->checked.head.signatures));
        (void)json_object_set_new(o, "built", json_string(f->checked.head.time));
    }
    (void)json_object_set_new(o, "size", json_integer((json_int_t)f->checked.size));
    (void)json_object_set_new(o, "sha256", json_string(f->checked.sha256));
    (void)json_object_set_new(o, "genuine", json_boolean(f->checked.genuine));
    return o;
}

/* ---- verify ---- */

int cmd_signature_verify(struct ctl *c)
{
    static const struct column columns[] = {
        { "FILE", "file", CELL_TEXT },   { "VERSION", "version", CELL_RIGHT },
        { "BUILT", "built", CELL_TEXT }, { "GENUINE", "genuine", CELL_TEXT },
        { "SIZE", "size", CELL_RIGHT },
    };
    json_t *items = json_array();
    int r = CTL_OK;

    for (int i = 0; i < c->argc; i++) {
        struct signature_file f;
        int one = signature_open(c, c->argv[i], &f);

        if (one != CTL_OK) {
            r = one;
            continue;
        }
        (void)json_array_append_new(items, described(&f));
        signature_close(&f);
    }
    if (r == CTL_OK && c->opt.json) {
        json_t *all = json_pack("{s:O}", "items", items);

        ctl_print_json(all);
        json_decref(all);
    } else if (!c->opt.json && json_array_size(items) > 0) {
        print_table(c, items, columns, LEN(columns), "");
    }
    json_decref(items);
    return r;
}

/* ---- import ---- */

/* What the API is told of a file. */
static json_t *entry(const struct signature_file *f, const struct blob *b)
{
    const struct cvd *h = &f->checked.head;
    json_t *o = json_pack("{s:s, s:s, s:I}", "file", f->file, "sha256", b->id.hex, "size",
                          (json_int_t)b->size);

    if (f->name.kind == CVD_DATABASE) {
        (void)json_object_set_new(o, "version", json_integer(h->version));
        (void)json_object_set_new(o, "built_at", json_integer((json_int_t)h->built));
        (void)json_object_set_new(o, "signatures", json_integer(h->signatures));
        (void)json_object_set_new(o, "level", json_integer(h->level));
    }
    return o;
}

static int put_all(struct ctl *c, struct publish *p, const struct signature_file *files,
                   struct blob *blobs, json_t *list)
{
    int r = CTL_OK;

    for (int i = 0; r == CTL_OK && i < c->argc; i++) {
        r = publish_file(p, files[i].path, files[i].file, &blobs[i]);
        /* What was verified is what was put. */
        if (r == CTL_OK && strcmp(blobs[i].id.hex, files[i].checked.sha256) != 0)
            r = signature_refused(c, files[i].path, ERR_STATE, "it changed meanwhile",
                                  NULL);
        if (r == CTL_OK)
            (void)json_array_append_new(list, entry(&files[i], &blobs[i]));
    }
    return r;
}

static void print_imported(const struct ctl *c, const json_t *answer)
{
    const json_t *list = json_object_get(answer, "databases"), *d;
    size_t i;

    if (c->opt.json) {
        ctl_print_json(answer);
        return;
    }
    if (!ctl_bool(answer, "changed", false))
        printf("All of it is published already.\n");
    else if (json_array_size(list) == 0)
        printf("The files are published with the databases that were there.\n");
    json_array_foreach(list, i, d)
    {
        (void)put_safe(stdout, ctl_str(d, "name", "?"));
        printf(": version %llu is published\n", (unsigned long long)ctl_u64(d, "to", 0));
    }
}

static int import(struct ctl *c, const struct signature_file *files, struct blob *blobs)
{
    struct publish p;
    json_t *answer = NULL, *list = json_array();
    int r = publish_open(&p, c);

    if (r == CTL_OK)
        r = put_all(c, &p, files, blobs, list);
    if (r == CTL_OK)
        r = manage_send(c, "POST", "/v1/signatures",
                        json_pack("{s:O, s:b}", "files", list, "force", c->opt.force),
                        &answer);
    for (int i = 0; r == CTL_OK && i < c->argc; i++)
        r = publish_settle(&p, files[i].path, (struct str){ 0 }, &blobs[i]);
    if (r == CTL_OK)
        print_imported(c, answer);
    publish_close(&p);
    json_decref(list);
    json_decref(answer);
    return r;
}

int cmd_signature_import(struct ctl *c)
{
    struct signature_file *files = calloc((size_t)c->argc, sizeof(*files));
    struct blob *blobs = calloc((size_t)c->argc, sizeof(*blobs));
    int r = files && blobs ? CTL_OK : CTL_FAILED;

    /* All are looked at before the first one is uploaded. */
    for (int i = 0; r == CTL_OK && i < c->argc; i++) {
        r = signature_open(c, c->argv[i], &files[i]);
        if (r == CTL_OK)
            signature_close(&files[i]);
    }
    if (r == CTL_OK)
        r = import(c, files, blobs);
    free(files);
    free(blobs);
    return r;
}
