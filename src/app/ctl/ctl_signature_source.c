/* What is published, and where it comes from. */
#include "app/ctl/ctl_signature.h"

static enum ctl_colour ink_of(const char *status)
{
    return strcmp(status, "ok") == 0        ? CTL_GREEN
           : strcmp(status, "warning") == 0 ? CTL_YELLOW
                                            : CTL_RED;
}

static void print_status(const struct ctl *c, const json_t *a)
{
    static const struct column columns[] = {
        { "DATABASE", "name", CELL_TEXT },
        { "VERSION", "version", CELL_RIGHT },
        { "BUILT", "built_at", CELL_AGO },
        { "SIGNATURES", "signatures", CELL_RIGHT },
        { "INCREMENTS", "increments", CELL_RIGHT },
        { "FETCHED", "fetched_at", CELL_AGO },
        { "SOURCE", "source", CELL_TEXT },
    };
    static const struct column fields[] = {
        { "Newest built", "since", CELL_AGO },
        { "Source", "source.url", CELL_TEXT },
        { "Interval (min)", "source.interval_min", CELL_TEXT },
        { "Last look", "upstream.attempt_at", CELL_AGO },
        { "Last success", "upstream.success_at", CELL_AGO },
        { "Error", "upstream.error", CELL_TEXT },
        { "Next look", "upstream.next_at", CELL_TIME },
        { "Blocked until", "upstream.blocked_until", CELL_TIME },
        { "Own files", "custom.files", CELL_TEXT },
        { "Their serial", "custom.serial", CELL_TEXT },
    };
    const char *status = ctl_str(a, "status", "?");

    printf("Signatures: %s", ctl_ink(c, ink_of(status)));
    (void)put_safe(stdout, status);
    printf("%s\n", ctl_ink(c, CTL_PLAIN));
    print_fields(c, a, fields, LEN(fields));
    fputc('\n', stdout);
    print_table(c, json_object_get(a, "databases"), columns, LEN(columns),
                "No database is published.");
}

int cmd_signature_status(struct ctl *c)
{
    json_t *answer = NULL;
    int r = manage_get(c, "/v1/signatures", &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_status(c, answer);
    /* For a script: the age is a state, too. */
    if (r == CTL_OK && c->opt.check && strcmp(ctl_str(answer, "status", ""), "ok") != 0)
        r = CTL_DEGRADED;
    json_decref(answer);
    return r;
}

int cmd_signature_update(struct ctl *c)
{
    json_t *answer = NULL;
    int r = manage_send(c, "POST", "/v1/signatures/update", json_object(), &answer);

    if (r == CTL_OK)
        say_done(
            c, answer,
            "The active node looks at the source now; redoubt signature status tells "
            "what it found.");
    json_decref(answer);
    return r;
}

int cmd_signature_remove(struct ctl *c)
{
    char question[200];
    json_t *answer = NULL;
    struct where w;

    (void)snprintf(question, sizeof(question),
                   "Stop publishing the database %.80s with its increments?", c->argv[0]);
    int r = manage_confirm(c, question);
    if (r != CTL_OK)
        return r;
    where_start(&w, "/v1/signatures/databases");
    where_add(&w, c->argv[0]);
    r = manage_send(c, "DELETE", w.buf, NULL, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s is not published any more.", c->argv[0]);
    json_decref(answer);
    return r;
}

/* ---- the source ---- */

static void text_or_null(json_t *body, const char *key, const char *value)
{
    if (value)
        (void)json_object_set_new(
            body, key, strcmp(value, "none") == 0 ? json_null() : json_string(value));
}

static void number_if(json_t *body, const char *key, const struct ctl_list *given)
{
    uint64_t v = 0;

    if (given->count > 0)
        /* What is no number goes to the server as it is, which says so. */
        (void)json_object_set_new(body, key,
                                  str_u64(str_of(given->at[0]), INT32_MAX, &v)
                                      ? json_integer((json_int_t)v)
                                      : json_string(given->at[0]));
}

static int read_ca(struct ctl *c, json_t *body)
{
    enum { MAX = 64 * 1024 };
    const char *file = c->opt.mirror_ca;
    char *text = NULL;

    if (!file)
        return CTL_OK;
    if (strcmp(file, "none") == 0) {
        (void)json_object_set_new(body, "ca", json_null());
        return CTL_OK;
    }
    FILE *f = fopen(file, "re");
    size_t n = 0;
    if (f && (text = calloc(1, MAX + 1)) != NULL)
        n = fread(text, 1, MAX, f);
    if (f)
        (void)fclose(f); /* it was only read */
    json_t *ca = n > 0 ? json_stringn(text, n) : NULL;
    free(text);
    if (!ca)
        return ctl_usage("%s cannot be read as a certificate in PEM", file);
    (void)json_object_set_new(body, "ca", ca);
    return CTL_OK;
}

static void names_of(json_t *body, const struct ctl_list *list)
{
    json_t *names = list->count > 0 ? json_array() : NULL;

    for (size_t i = 0; i < list->count; i++)
        for (const char *p = list->at[i]; *p;) {
            size_t n = strcspn(p, ",");

            if (n > 0)
                (void)json_array_append_new(names, json_stringn(p, n));
            p += n + (p[n] == ',');
        }
    if (names)
        (void)json_object_set_new(body, "databases", names);
}

static int edit_source(struct ctl *c, const json_t *now, json_t *body)
{
    (void)json_object_update_new(body, json_deep_copy(now));
    text_or_null(body, "url", c->argc > 0 ? c->argv[0] : NULL);
    text_or_null(body, "proxy", c->opt.proxy);
    number_if(body, "interval_min", &c->opt.interval);
    number_if(body, "keep", &c->opt.keep);
    number_if(body, "warning_h", &c->opt.warning);
    number_if(body, "critical_h", &c->opt.critical);
    names_of(body, &c->opt.database);
    return read_ca(c, body);
}

static void print_source(const struct ctl *c, const json_t *a)
{
    static const struct column fields[] = {
        { "Source", "url", CELL_TEXT },
        { "Proxy", "proxy", CELL_TEXT },
        { "Databases", "databases", CELL_LIST },
        { "Interval (min)", "interval_min", CELL_TEXT },
        { "Increments kept", "keep", CELL_TEXT },
        { "Warning after (h)", "warning_h", CELL_TEXT },
        { "Critical after (h)", "critical_h", CELL_TEXT },
    };

    if (c->opt.json) {
        ctl_print_json(a);
        return;
    }
    if (!json_is_string(json_object_get(a, "url")))
        printf("There is no source: databases are imported only.\n");
    print_fields(c, a, fields, LEN(fields));
    printf("Trusted: %s\n", json_is_string(json_object_get(a, "ca"))
                                ? "certificates of its own (--json shows them)"
                                : "the authorities of the node");
}

int cmd_signature_source(struct ctl *c)
{
    const struct ctl_options *o = &c->opt;
    bool change = c->argc > 0 || o->proxy || o->mirror_ca || o->interval.count ||
                  o->keep.count || o->warning.count || o->critical.count ||
                  o->database.count;
    json_t *answer = NULL;
    int r = change ? manage_edit(c,
                                 &(struct manage_edit){ .path = "/v1/signatures/source",
                                                        .method = "PUT",
                                                        .edit = edit_source },
                                 &answer)
                   : manage_get(c, "/v1/signatures/source", &answer);

    if (r == CTL_OK)
        print_source(c, answer);
    json_decref(answer);
    return r;
}
