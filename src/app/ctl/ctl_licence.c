#include "app/ctl/ctl_licence.h"

static const struct column licence_columns[] = {
    { "ID", "id", CELL_ID },
    { "STATE", "state", CELL_TEXT },
    { "SOURCE", "source", CELL_TEXT },
    { "CODE", "code", CELL_TEXT },
    { "CUSTOMER", "customer", CELL_TEXT },
    { "USED", "used", CELL_RIGHT },
    { "SEATS", "seats", CELL_RIGHT },
    { "EXPIRES", "expires", CELL_TIME },
    { "ERROR", "error", CELL_TEXT },
};

static int get_all(struct ctl *c, json_t **out)
{
    return manage_get(c, "/v1/licences", out); /* there are few: it has no pages */
}

/* What the table cannot say. */
static void print_notes(const json_t *answer)
{
    if (strcmp(ctl_str(answer, "clock", "ok"), "ok") != 0) {
        (void)put_safe(stdout, ctl_str(answer, "clock_why", "A clock is wrong."));
        printf(
            "\nNew devices get no seat until it is right; what devices have goes on.\n");
    }
    if (strcmp(ctl_str(answer, "state", ""), "ended") == 0)
        printf("No licence can be used: the installation cannot be extended or changed. "
               "Devices stay protected.\n");
}

int cmd_licence_list(struct ctl *c)
{
    json_t *answer = NULL;
    int r = get_all(c, &answer);

    if (r == CTL_OK && c->opt.json) {
        ctl_print_json(answer);
    } else if (r == CTL_OK) {
        print_table(c, json_object_get(answer, "items"), licence_columns,
                    LEN(licence_columns), "No licences.");
        print_notes(answer);
    }
    json_decref(answer);
    return r;
}

static int no_such(struct ctl *c, const char *word, const char *why)
{
    char text[200];

    (void)snprintf(text, sizeof(text), "\"%.60s\" %s.", word, why);
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "licence_unknown", "Which licence is meant?",
                                           text, "redoubt licence list shows the ids." });
}

/* The one whose id begins with the word; word NULL: the only one with a code. */
static int find(struct ctl *c, const char *word, char id[MANAGE_ID])
{
    json_t *answer = NULL;
    const json_t *item;
    size_t i, found = 0;
    int r = get_all(c, &answer);

    if (r != CTL_OK)
        return r;
    json_array_foreach(json_object_get(answer, "items"), i, item)
    {
        const char *text = ctl_str(item, "id", "");
        bool is = word ? strlen(word) >= 4 && strncmp(text, word, strlen(word)) == 0
                       : strcmp(ctl_str(item, "source", ""), "code") == 0;
        if (is && str_copy(id, MANAGE_ID, str_of(text)))
            found++;
    }
    json_decref(answer);
    if (found == 1)
        return CTL_OK;
    if (!word)
        return no_such(c, "redoubt licence request",
                       found ? "needs an ID: there are several licences with a code"
                             : "needs a licence that was added by its code");
    return no_such(c, word, found ? "is the beginning of several ids" : "is no licence");
}

static int path_of(struct ctl *c, const char *word, const char *what, struct where *w)
{
    char id[MANAGE_ID];
    int r = find(c, word, id);

    if (r != CTL_OK)
        return r;
    where_start(w, "/v1/licences");
    where_add(w, id);
    if (what)
        where_add(w, what);
    return CTL_OK;
}

int cmd_licence_show(struct ctl *c)
{
    static const struct column fields[] = {
        { "Id", "id", CELL_TEXT },
        { "State", "state", CELL_TEXT },
        { "Error", "error", CELL_TEXT },
        { "Source", "source", CELL_TEXT },
        { "Code", "code", CELL_TEXT },
        { "Licence", "licence", CELL_TEXT },
        { "Customer", "customer", CELL_TEXT },
        { "Product", "product", CELL_TEXT },
        { "Cluster", "cluster", CELL_TEXT },
        { "Features", "features", CELL_LIST },
        { "Seats", "seats", CELL_TEXT },
        { "Seats used", "used", CELL_TEXT },
        { "Begins", "not_before", CELL_TIME },
        { "Expires", "expires", CELL_TIME },
        { "Vendor asked", "fetched_at", CELL_TIME },
        { "Confirmed until", "valid_until", CELL_TIME },
        { "Grace until", "stale_until", CELL_TIME },
        { "Vendor asked again", "next_try_at", CELL_TIME },
        { "Added", "added_at", CELL_TIME },
        { "Added by", "added_by", CELL_TEXT },
    };
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_get(c, w.buf, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_fields(c, answer, fields, LEN(fields));
    json_decref(answer);
    return r;
}

int cmd_licence_add(struct ctl *c)
{
    json_t *answer = NULL, *body = json_pack("{s:s}", "code", c->argv[0]);
    int r;

    if (!body)
        return ctl_usage("the code is not UTF-8");
    r = manage_send(c, "POST", "/v1/licences", body, &answer);
    if (r == CTL_OK)
        say_done(c, answer,
                 "The code is kept; redoubt licence list tells what the vendor answers.");
    json_decref(answer);
    return r;
}

int cmd_licence_request(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argc > 0 ? c->argv[0] : NULL, "request", &w);

    if (r == CTL_OK)
        r = manage_send(c, "POST", w.buf, NULL, &answer);
    if (r == CTL_OK)
        ctl_print_json(answer);
    json_decref(answer);
    return r;
}

int cmd_licence_import(struct ctl *c)
{
    json_t *answer = NULL, *body = NULL;
    int r = manage_read_file(c, c->argv[0], &body);

    if (r == CTL_OK)
        r = manage_send(c, "POST", "/v1/licences/import", body, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "Imported: the licence of %s is %s.",
                 ctl_str(answer, "customer", "a code"), ctl_str(answer, "state", "?"));
    json_decref(answer);
    return r;
}

int cmd_licence_remove(struct ctl *c)
{
    json_t *answer = NULL;
    struct where w;
    int r = path_of(c, c->argv[0], NULL, &w);

    if (r == CTL_OK)
        r = manage_confirm(c,
                           "No device gets or renews a lease of it any more, and a code "
                           "may not be good a second time. Remove it?");
    if (r == CTL_OK)
        r = manage_send(c, "DELETE", w.buf, NULL, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "The licence of %s is removed.",
                 ctl_str(answer, "customer", "a code"));
    json_decref(answer);
    return r;
}

int cmd_licence_seats(struct ctl *c)
{
    static const struct column columns[] = {
        { "DEVICE", "device", CELL_TEXT },     { "NAME", "device_name", CELL_TEXT },
        { "LICENCE", "licence", CELL_ID },     { "SINCE", "taken_at", CELL_TIME },
        { "RENEWED", "issued_at", CELL_TIME }, { "EXPIRES", "expires_at", CELL_TIME },
    };
    json_t *answer = NULL, *one = NULL;
    struct where w, of;
    int r = CTL_OK;

    where_start(&w, "/v1/seats");
    if (c->argc > 0) {
        r = path_of(c, c->argv[0], NULL, &of);
        if (r == CTL_OK)
            r = manage_get(c, of.buf, &one);
        if (r == CTL_OK)
            where_arg(&w, "licence", ctl_str(one, "licence", "-"));
    }
    if (r == CTL_OK)
        r = manage_list(c, &w, &answer);
    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, LEN(columns),
                    "No device has a seat.");
    json_decref(one);
    json_decref(answer);
    return r;
}
