#include "app/ctl/ctl_installer.h"

#include "app/ctl/ctl_package.h"
#include "app/ctl/ctl_trust.h"
#include "app/ctl/installer.h"
#include "app/ctl/manage.h"
#include "sys/ca/ca_link.h"

enum { DAYS = 7, HOURS_A_DAY = 24, NAME_BYTES = 256, URL_BYTES = 1024 };

/* --- links ------------------------------------------------------------------------------ */

/* The newest package of a name; *out is owned by the caller, NULL: there is none. */
static int newest(struct ctl *c, const char *name, json_t **out)
{
    json_t *answer = NULL;
    struct where w;

    where_start(&w, "/v1/packages"); /* newest first */
    where_arg(&w, "name", name);
    int r = manage_list(c, &w, &answer);
    if (r == CTL_OK)
        *out = json_incref(json_array_get(json_object_get(answer, "items"), 0));
    json_decref(answer);
    return r;
}

static int link_to(struct ctl *c, const char *id, uint32_t hours, json_t **out)
{
    json_t *body = hours ? json_pack("{s:i}", "hours", (int)hours) : json_object();
    struct where w;

    where_start(&w, "/v1/packages");
    where_add(&w, id);
    text_add(&w.t, "/link");
    return manage_send(c, "POST", w.buf, body, out);
}

int cmd_package_link(struct ctl *c)
{
    json_t *package = NULL, *answer = NULL;
    char id[MANAGE_ID] = "";
    int r = newest(c, c->argv[0], &package);

    if (r == CTL_OK && !str_copy(id, sizeof(id), str_of(ctl_str(package, "id", ""))))
        id[0] = '\0';
    if (r == CTL_OK && !id[0])
        r = manage_package(c, c->argv[0], id);
    if (r == CTL_OK)
        r = link_to(c, id, c->opt.expires, &answer);
    if (r == CTL_OK)
        say_done(c, answer, "%s", ctl_str(answer, "url", "?"));
    json_decref(package);
    json_decref(answer);
    return r;
}

/* --- what an installer needs -------------------------------------------------------------- */

struct making {
    struct installer installer;
    char server[CONF_PATH + 16]; /* the API, as devices call it */
    char pin[CA_PIN];
    struct ca_pem ca;
    char base[BLOB_PATH]; /* the package of the agent */
    char token[NAME_BYTES * 2], token_id[NAME_BYTES], until[NAME_BYTES];
    char version[2 * INSTALLER_WORD];
    uint32_t days;
    json_t *links[2]; /* to the package and to the script */
};

static int failed(struct ctl *c, const struct err_info *info, const char *advice)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "installer_failed",
                                           "The installer could not be made", info->what,
                                           advice });
}

/* Where the devices find the cluster, and what they are to trust. */
static int know_cluster(struct ctl *c, struct making *m)
{
    struct err_info info = { .what = "the cluster has no address" };
    struct ca_pem web = { 0 };
    char path[CONF_PATH + 16];
    int r = ctl_load_conf(c);

    if (r != CTL_OK)
        return r;
    if (!conf_address_of(&c->conf, c->conf.server.api_listen, m->server,
                         sizeof(m->server)))
        return failed(c, &info, "See names in [trust], and api_listen in [server].");
    (void)snprintf(path, sizeof(path), "%s/ca.pem", c->conf.trust.folder);
    enum err e = trust_read(path, &m->ca, &info);
    if (e == ERR_OK)
        e = trust_read(c->conf.web.certificate, &web, &info);
    if (e == ERR_OK)
        e = ca_pin(ca_pem_str(&web), m->pin, &info);
    return e == ERR_OK ? CTL_OK
                       : failed(c, &info,
                                "Run it on a node, as root. redoubt secret list "
                                "shows whether the certificates are there.");
}

/* The file that was given, or this node's copy of what is published. */
static int find_base(struct ctl *c, struct making *m)
{
    struct err_info info = { .what = "" };
    struct blob blob = { .mtime = 0 };
    json_t *package = NULL;

    if (c->opt.base)
        return str_copy(m->base, sizeof(m->base), str_of(c->opt.base))
                   ? CTL_OK
                   : ctl_usage("the name of the file is too long");
    int r = newest(c, "redoubt-agent", &package);
    if (r != CTL_OK)
        return r;
    if (!package)
        return ctl_fail(
            c, CTL_FAILED,
            &(struct ctl_problem){ "not_found", "The agent is not published",
                                   "There is no package redoubt-agent.",
                                   "redoubt package publish puts it there; or give its "
                                   "file with --base." });
    bool known = blob_id_parse(&blob.id, str_of(ctl_str(package, "sha256", "")));
    blob.size = ctl_u64(package, "size", 0);
    json_decref(package);
    enum err e = known ? blob_local_verify(c->conf.web.store, &blob, NULL, &info)
                       : err_set(&info, ERR_CORRUPT, 0, "the package has no digest");
    if (e == ERR_OK && !blob_local_path(c->conf.web.store, &blob.id, m->base))
        e = err_set(&info, ERR_LIMIT, 0, "[web] store is too long");
    return e == ERR_OK
               ? CTL_OK
               : failed(c, &info,
                        "This node does not have the published package of the agent "
                        "(yet): redoubt store status. Or give the file with --base.");
}

static int get_token(struct ctl *c, struct making *m)
{
    const struct ctl_options *o = &c->opt;
    char group[1024] = "/";
    json_t *answer = NULL;

    if (o->enrol_token) {
        /* Its second part names it. */
        const char *id = strchr(o->enrol_token, '.');

        if (!str_copy(m->token, sizeof(m->token), str_of(o->enrol_token)) || !id)
            return ctl_usage("a token looks like rdt1.ID.SECRET.AUTHORITY");
        id++;
        (void)snprintf(m->token_id, sizeof(m->token_id), "%.*s",
                       (int)(strcspn(id, ".") < 32 ? strcspn(id, ".") : 32), id);
        return CTL_OK;
    }
    int r = o->group ? manage_group(o->group, group, sizeof(group)) : CTL_OK;
    if (r != CTL_OK)
        return r;
    r = manage_token(c, "/v1/tokens",
                     json_pack("{s:s, s:s, s:i, s:i, s:b}", "name", "installer", "group",
                               group, "uses", o->uses ? (int)o->uses : 1, "expires_hours",
                               (int)m->days * HOURS_A_DAY, "approval", o->approval),
                     &answer);
    if (r == CTL_OK) {
        (void)snprintf(m->token, sizeof(m->token), "%s", ctl_str(answer, "token", ""));
        (void)snprintf(m->token_id, sizeof(m->token_id), "%s", ctl_str(answer, "id", ""));
        (void)snprintf(m->until, sizeof(m->until), "%s",
                       ctl_str(answer, "expires_at", ""));
    }
    json_decref(answer);
    return r;
}

/* --- published ---------------------------------------------------------------------------- */

static int publish_and_link(struct ctl *c, const struct making *m, const char *path,
                            const char *name, json_t **link)
{
    static struct package k;
    json_t *answer = NULL;

    k = (struct package){ .is_private = true };
    (void)snprintf(k.name, sizeof(k.name), "%s", name);
    (void)snprintf(k.version, sizeof(k.version), "%.64s", m->version);
    (void)snprintf(k.platform, sizeof(k.platform), "%.64s", m->installer.platform);
    (void)snprintf(k.file, sizeof(k.file), "%s", strrchr(path, '/') + 1);
    (void)snprintf(k.description, sizeof(k.description),
                   "made by redoubt package agent; enrolment token %s", m->token_id);
    int r = package_check(&k);
    if (r == CTL_OK)
        r = package_publish(c, &k, path, NULL, &answer);
    if (r == CTL_OK)
        r = link_to(c, ctl_str(answer, "id", "?"), m->days * HOURS_A_DAY, link);
    json_decref(answer);
    return r;
}

static int make(struct ctl *c, struct making *m)
{
    const struct installer_brings brings = { m->server, m->token, m->ca.text };
    struct err_info info = { .what = "" };
    struct installer *n = &m->installer;

    if (installer_pack(n, &brings, &info) != ERR_OK)
        return failed(c, &info, "Is there room in /tmp? TMPDIR names another folder.");
    (void)snprintf(m->version, sizeof(m->version), "%.40s+%.20s", n->version,
                   m->token_id);
    int r = publish_and_link(c, m, n->package, "agent-installer", &m->links[0]);
    if (r != CTL_OK)
        return r;
    if (installer_script(n, m->pin, ctl_str(m->links[0], "url", ""), &info) != ERR_OK)
        return failed(c, &info, "");
    return publish_and_link(c, m, n->script, "agent-installer-script", &m->links[1]);
}

/* --- the command -------------------------------------------------------------------------- */

static void tell(struct ctl *c, const struct making *m)
{
    const char *package = ctl_str(m->links[0], "url", "?");
    const char *url = ctl_str(m->links[1], "url", "?");
    char command[URL_BYTES];

    (void)snprintf(command, sizeof(command), "curl -fsS -k --pinnedpubkey '%s' '%s' | sh",
                   m->pin, url);
    if (c->opt.json) {
        json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "command",
                              command, "script_url", url, "package_url", package,
                              "sha256", m->installer.digest.hex, "pin", m->pin, "version",
                              m->version, "token", m->token_id, "expires_at",
                              ctl_str(m->links[0], "expires_at", ""));

        ctl_print_json(j);
        json_decref(j);
        return;
    }
    printf("On the device, as root:\n\n  %s\n\n", command);
    printf("Or download the package, and install it with apt-get install "
           "./redoubt-agent.deb:\n\n  curl -fsS -k --pinnedpubkey '%s' -o "
           "redoubt-agent.deb '%s'\n\n",
           m->pin, package);
    printf("Both nodes fetch the files now. The links are good until %s; redoubt token "
           "revoke %s ends what the installer can do before.\n",
           ctl_str(m->links[0], "expires_at", "?"), m->token_id);
}

/* A token that nobody will get is of no use. */
static void take_back(struct ctl *c, const struct making *m)
{
    json_t *gone = NULL;
    struct where w;

    if (c->opt.enrol_token || !m->token_id[0])
        return;
    where_start(&w, "/v1/tokens");
    where_add(&w, m->token_id);
    (void)!manage_send(c, "DELETE", w.buf, NULL, &gone); /* it expires */
    json_decref(gone);
}

int cmd_package_agent(struct ctl *c)
{
    struct making *m = calloc(1, sizeof(*m));
    struct err_info info = { .what = "out of memory" };

    if (!m)
        return failed(c, &info, "");
    m->days = c->opt.keep_days ? c->opt.keep_days : DAYS;
    int r = know_cluster(c, m);
    if (r == CTL_OK)
        r = find_base(c, m);
    if (r == CTL_OK && installer_begin(&m->installer, m->base, &info) != ERR_OK)
        r = failed(c, &info,
                   "The base must be a package redoubt-agent, as ./dev package "
                   "makes it.");
    if (r == CTL_OK)
        r = get_token(c, m);
    if (r == CTL_OK) {
        r = make(c, m);
        if (r != CTL_OK)
            take_back(c, m);
    }
    if (r == CTL_OK)
        tell(c, m);
    installer_end(&m->installer);
    json_decref(m->links[0]);
    json_decref(m->links[1]);
    explicit_bzero(m, sizeof(*m));
    free(m);
    return r;
}
