#include "app/ctl/manage.h"

static int list(struct ctl *c, const char *path, const struct column *columns,
                size_t count, const char *empty)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, path);
    int r = manage_list(c, &w, &answer);

    if (r == CTL_OK && c->opt.json)
        ctl_print_json(answer);
    else if (r == CTL_OK)
        print_table(c, json_object_get(answer, "items"), columns, count, empty);
    json_decref(answer);
    return r;
}

static int revoke(struct ctl *c, const char *path)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, path);
    where_add(&w, c->argv[0]);
    int r = manage_send(c, "DELETE", w.buf, NULL, &answer);

    if (r == CTL_OK)
        say_done(c, answer, "The token %s is revoked.",
                 ctl_str(answer, "name", c->argv[0]));
    json_decref(answer);
    return r;
}

int manage_token(struct ctl *c, const char *path, json_t *body, json_t **out)
{
    int r = manage_send(c, "POST", path, json_incref(body), out);

    for (int i = 0; i < 3 && r == CTL_OK && !ctl_str(*out, "token", NULL); i++) {
        json_t *gone = NULL;
        struct where w;

        where_start(&w, path);
        where_add(&w, ctl_str(*out, "id", "?"));
        json_decref(*out);
        *out = NULL;
        r = manage_send(c, "DELETE", w.buf, NULL, &gone);
        json_decref(gone);
        if (r == CTL_OK)
            r = manage_send(c, "POST", path, json_incref(body), out);
    }
    json_decref(body);
    return r;
}

/* ---- for enrolment ---- */

int cmd_token_list(struct ctl *c)
{
    static const struct column columns[] = {
        { "ID", "id", CELL_TEXT },
        { "NAME", "name", CELL_TEXT },
        { "GROUP", "group_path", CELL_TEXT },
        { "STATE", "state", CELL_TEXT },
        { "USED", "uses", CELL_RIGHT },
        { "OF", "uses_max", CELL_RIGHT },
        { "APPROVAL", "approval", CELL_TEXT },
        { "EXPIRES", "expires_at", CELL_TIME },
    };

    return list(c, "/v1/tokens", columns, LEN(columns), "No enrolment tokens.");
}

/* The address that a device would use: of the command line, or the cluster's. */
static void enrol_address(struct ctl *c, char *out, size_t size)
{
    if (c->opt.server)
        (void)snprintf(out, size, "%s", c->opt.server);
    else if (ctl_try_conf(c) && c->conf.address.ipv4[0])
        (void)snprintf(out, size, "%.*s", (int)strcspn(c->conf.address.ipv4, "/"),
                       c->conf.address.ipv4);
    else
        (void)snprintf(out, size, "ADDRESS");
}

int cmd_token_create(struct ctl *c)
{
    const struct ctl_options *o = &c->opt;
    char group[1024] = "/", address[CONF_TEXT];
    json_t *answer = NULL, *body;
    int r = o->group ? manage_group(o->group, group, sizeof(group)) : CTL_OK;

    if (r != CTL_OK)
        return r;
    body = json_pack("{s:s, s:s, s:i, s:i, s:b}", "name", c->argv[0], "group", group,
                     "uses", o->uses ? (int)o->uses : 1, "expires_hours",
                     o->expires ? (int)o->expires : 168, "approval", o->approval);
    if (!body)
        return ctl_usage("the name is not UTF-8");
    r = manage_token(c, "/v1/tokens", body, &answer);
    if (r == CTL_OK && o->json) {
        ctl_print_json(answer);
    } else if (r == CTL_OK) {
        enrol_address(c, address, sizeof(address));
        say_done(c, answer, "%s", ctl_str(answer, "token", "?"));
        (void)fflush(stdout); /* in order, where both go to one terminal */
        fprintf(stderr, "This is shown once. On the device, as root:\n");
        printf("redoubt-agent enrol --server %s --token ", address);
        say_done(c, answer, "%s", ctl_str(answer, "token", "?"));
    }
    json_decref(answer);
    return r;
}

int cmd_token_revoke(struct ctl *c)
{
    return revoke(c, "/v1/tokens");
}

/* ---- for the API ---- */

int cmd_api_token_list(struct ctl *c)
{
    static const struct column columns[] = {
        { "ID", "id", CELL_TEXT },
        { "NAME", "name", CELL_TEXT },
        { "ROLE", "role", CELL_TEXT },
        { "STATE", "state", CELL_TEXT },
        { "SCOPE", "scope", CELL_LIST },
        { "EXPIRES", "expires_at", CELL_TIME },
        { "LAST USED", "last_used_at", CELL_TIME },
    };

    return list(c, "/v1/api-tokens", columns, LEN(columns), "No API tokens.");
}

int cmd_api_token_create(struct ctl *c)
{
    const struct ctl_options *o = &c->opt;
    char group[1024] = "";
    json_t *answer = NULL, *body;
    int r = o->group ? manage_group(o->group, group, sizeof(group)) : CTL_OK;

    if (r != CTL_OK)
        return r;
    if (!o->role)
        return ctl_usage("redoubt api-token create needs --role administrator, operator "
                         "or auditor");
    body = json_pack("{s:s, s:s, s:i}", "name", c->argv[0], "role", o->role,
                     "expires_days", o->keep_days ? (int)o->keep_days : 365);
    if (!body)
        return ctl_usage("the name is not UTF-8");
    if (o->group)
        (void)json_object_set_new(body, "scope", json_pack("[s]", group));
    r = manage_token(c, "/v1/api-tokens", body, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s", ctl_str(answer, "token", "?"));
    (void)fflush(stdout);
    if (r == CTL_OK && !o->json)
        fprintf(stderr, "This is shown once. Write it to a file that only its user can "
                        "read, and name that with --token-file.\n");
    json_decref(answer);
    return r;
}

int cmd_api_token_revoke(struct ctl *c)
{
    return revoke(c, "/v1/api-tokens");
}
