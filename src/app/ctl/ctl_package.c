#include "app/ctl/ctl_package.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/ctl/manage.h"

enum { CONTROL_MAX = 16 * 1024 };

/* ---- names ---- */

static bool word_ok(const char *s, size_t most, bool upper, const char *others)
{
    size_t n = strlen(s);

    if (n == 0 || n > most || strchr(others, s[0]))
        return false;
    for (size_t i = 0; i < n; i++)
        if (!((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9') ||
              (upper && s[i] >= 'A' && s[i] <= 'Z') || strchr(others, s[i])))
            return false;
    return true;
}

static int bad_word(const char *what, const char *value, const char *may)
{
    char *safe = safe_copy(value);
    int r = ctl_usage("%s '%.150s' cannot be used: %s", what, safe ? safe : "", may);

    free(safe);
    return r;
}

int package_check(const struct package *k)
{
    static const char lower[] = "1 to 64 lower-case letters, digits, or . + -";

    if (!word_ok(k->name, 64, false, ".+-"))
        return bad_word("the name", k->name, lower);
    if (!word_ok(k->version, 64, true, ".+~:_-"))
        return bad_word("the version", k->version,
                        "1 to 64 letters, digits, or . + ~ : _ -");
    if (!word_ok(k->platform, 64, false, ".+-"))
        return bad_word("the platform", k->platform, lower);
    if (!word_ok(k->file, 128, false, "._+~-"))
        return bad_word("the file name", k->file,
                        "1 to 128 letters, digits, or . _ + ~ -; rename the file");
    return CTL_OK;
}

static void take(char *out, size_t size, const char *given)
{
    if (given)
        (void)snprintf(out, size, "%s", given);
}

/* ---- what a .deb says of itself ---- */

/* What a program writes, NUL-terminated; false: it cannot be run, or failed. */
static bool capture(const char *const *argv, char *out, size_t size)
{
    int ends[2], status = -1;
    size_t n = 0;
    ssize_t got = 1;

    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);

        if (dup2(null, 0) == 0 && dup2(ends[1], 1) == 1 && dup2(null, 2) == 2)
            (void)execvp(argv[0], (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    (void)close(ends[1]); /* the child has it */
    while (pid > 0 && got > 0 && n < size - 1) {
        got = read(ends[0], out + n, size - 1 - n);
        if (got < 0 && errno == EINTR)
            got = 1;
        else if (got > 0)
            n += (size_t)got;
    }
    (void)close(ends[0]); /* what else it writes ends it */
    out[n] = '\0';
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* The first line of "Field: value" in a control file. */
static void field(const char *control, const char *name, char *out, size_t size)
{
    size_t n = strlen(name);

    for (const char *line = control; *line; line += *line == '\n') {
        size_t length = strcspn(line, "\n");

        if (out[0] == '\0' && length > n + 1 && strncasecmp(line, name, n) == 0 &&
            line[n] == ':') {
            const char *value = line + n + 1 + strspn(line + n + 1, " \t");

            (void)snprintf(out, size, "%.*s", (int)(length - (size_t)(value - line)),
                           value);
        }
        line += length;
    }
}

static bool ends_with(const char *s, const char *ending)
{
    size_t n = strlen(s), m = strlen(ending);

    return n >= m && strcmp(s + n - m, ending) == 0;
}

/* Fills what was not given on the command line. */
static void ask_deb(const char *path, struct package *k)
{
    static char control[CONTROL_MAX];
    char at[4096];

    /* A name like -x must not be an option. */
    (void)snprintf(at, sizeof(at), "%s%s", path[0] == '/' ? "" : "./", path);
    const char *argv[] = { "dpkg-deb", "-f", at, NULL };

    if (!ends_with(k->file, ".deb") || !capture(argv, control, sizeof(control)))
        return;
    field(control, "Package", k->name, sizeof(k->name));
    field(control, "Version", k->version, sizeof(k->version));
    field(control, "Architecture", k->platform, sizeof(k->platform));
    field(control, "Description", k->description, sizeof(k->description));
}

static int describe(struct ctl *c, const char *path, struct package *k)
{
    const struct ctl_options *o = &c->opt;
    const char *slash = strrchr(path, '/');

    *k = (struct package){ .is_private = o->is_private };
    take(k->file, sizeof(k->file), slash ? slash + 1 : path);
    for (char *p = k->file; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    take(k->name, sizeof(k->name), o->name);
    take(k->version, sizeof(k->version), o->package_version);
    take(k->platform, sizeof(k->platform), o->platform);
    take(k->description, sizeof(k->description), o->description);
    ask_deb(path, k);
    if (!k->platform[0])
        take(k->platform, sizeof(k->platform), "all");
    if (!k->name[0] || !k->version[0])
        return ctl_usage("this file does not say its name and version: give --name and "
                         "--version");
    return package_check(k);
}

/* ---- publishing ---- */

static int own_signature(struct ctl *c, const char *path, const char *file,
                         struct ca_signature *out)
{
    struct err_info info = { .what = "" };
    struct blob_id id;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        (void)err_set(&info, ERR_IO, errno, "open %s", path);
    enum err e = fd < 0 ? ERR_IO : blob_digest(fd, NULL, &id, &info);
    if (fd >= 0)
        (void)close(fd); /* read only */
    if (e != ERR_OK)
        return ctl_fail(c, CTL_FAILED,
                        &(struct ctl_problem){ "file_unreadable",
                                               "The file cannot be read", info.what,
                                               "Is the name right?" });
    return publish_take_signature(c, file, &id, out);
}

static json_t *as_body(const struct package *k, const struct blob *b,
                       const struct ca_signature *s)
{
    char *signature = publish_base64(s);
    json_t *j =
        signature
            ? json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:s}", "name", k->name,
                        "version", k->version, "platform", k->platform, "description",
                        k->description, "file", k->file, "visibility",
                        k->is_private ? "private" : "public", "sha256", b->id.hex, "size",
                        (json_int_t)b->size, "signature", signature)
            : NULL;

    free(signature);
    return j;
}

static int upload_and_register(struct publish *p, const struct package *k,
                               const char *path, struct ca_signature *given, json_t **out)
{
    static struct ca_signature made;
    struct blob b;
    json_t *body;
    int r = publish_file(p, path, k->file, &b);

    if (r == CTL_OK && !given)
        r = publish_sign(p->c, &b.id, &made);
    if (r != CTL_OK)
        return r;
    body = as_body(k, &b, given ? given : &made);
    if (!body)
        return ctl_usage("the description is not UTF-8");
    r = manage_send(p->c, "POST", "/v1/packages", body, out);
    if (r == CTL_OK)
        r = publish_settle(p, path, (struct str){ NULL, 0 }, &b);
    return r;
}

int package_publish(struct ctl *c, const struct package *k, const char *path,
                    const char *signature, json_t **out)
{
    static struct ca_signature given;
    struct publish p = { .c = c };
    json_t *answer = NULL;
    /* First what is quick: nobody wants to send a file for nothing. */
    int r = manage_get(c, "/v1/store", &answer);

    json_decref(answer);
    if (r == CTL_OK)
        r = publish_open(&p, c);
    if (r == CTL_OK && signature)
        r = own_signature(c, path, signature, &given);
    if (r == CTL_OK)
        r = upload_and_register(&p, k, path, signature ? &given : NULL, out);
    publish_close(&p);
    return r;
}

int cmd_package_publish(struct ctl *c)
{
    static struct package k;
    json_t *answer = NULL;
    int r = describe(c, c->argv[0], &k);

    if (r == CTL_OK)
        r = package_publish(c, &k, c->argv[0], c->opt.signature, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s %s is published as %s.", ctl_str(answer, "name", "?"),
                 ctl_str(answer, "version", "?"), ctl_str(answer, "path", "?"));
    json_decref(answer);
    return r;
}

/* ---- looking and changing ---- */

int cmd_package_list(struct ctl *c)
{
    static const struct column columns[] = {
        { "ID", "id", CELL_ID },
        { "NAME", "name", CELL_TEXT },
        { "VERSION", "version", CELL_TEXT },
        { "PLATFORM", "platform", CELL_TEXT },
        { "SIZE", "size", CELL_BYTES },
        { "SHOWN TO", "visibility", CELL_TEXT },
        { "PUBLISHED", "created_at", CELL_TIME },
        { "DESCRIPTION", "description", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/packages");
    where_arg(&w, "name", c->opt.name);
    where_arg(&w, "platform", c->opt.platform);
    int r = manage_list(c, &w, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                    "No packages.");
    json_decref(answer);
    return r;
}

static int path_of(struct ctl *c, const char *word, struct where *w)
{
    char id[MANAGE_ID];
    int r = manage_package(c, word, id);

    where_start(w, "/v1/packages");
    if (r == CTL_OK)
        where_add(w, id);
    return r;
}

int cmd_package_show(struct ctl *c)
{
    static const struct column fields[] = {
        { "id", "id", CELL_TEXT },
        { "name", "name", CELL_TEXT },
        { "version", "version", CELL_TEXT },
        { "platform", "platform", CELL_TEXT },
        { "description", "description", CELL_TEXT },
        { "file", "file", CELL_TEXT },
        { "shown to", "visibility", CELL_TEXT },
        { "path", "path", CELL_TEXT },
        { "size", "size", CELL_BYTES },
        { "sha256", "sha256", CELL_TEXT },
        { "published", "created_at", CELL_TIME },
        { "by", "created_by", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argv[0], &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_fields(c, answer, fields, LEN(fields));
    json_decref(answer);
    return r;
}

static int set_description(struct ctl *c, const json_t *now, json_t *body)
{
    json_t *text = json_string(c->argv[1]);

    (void)now;
    if (!text)
        return ctl_usage("the description is not UTF-8");
    return json_object_set_new(body, "description", text) == 0 ? CTL_OK : CTL_FAILED;
}

int cmd_package_describe(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argv[0], &w);
    const struct manage_edit edit = { .path = w.buf,
                                      .method = "PATCH",
                                      .edit = set_description };

    if (r == CTL_OK)
        r = manage_edit(c, &edit, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s %s is described.", ctl_str(answer, "name", "?"),
                 ctl_str(answer, "version", "?"));
    json_decref(answer);
    return r;
}

int cmd_package_remove(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argv[0], &w);

    if (r == CTL_OK)
        r = manage_confirm(c, "Take this package from the Web Server?");
    if (r == CTL_OK)
        r = manage_send(c, "DELETE", w.buf, NULL, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The package %s is removed.", c->argv[0]);
    json_decref(answer);
    return r;
}
