#include "app/ctl/ctl_trust.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "sys/ca/ca_sign.h"
#include "sys/ca/seal.h"

enum {
    TICKET_BYTES = 64, /* what GnuTLS derives the keys of tickets from */
    LINK_BYTES = 32,   /* what links to private packages are made with */
    LEASE_SEED = 32,   /* of the Ed25519 key that signs the leases of licences */
    SEALED_MAX = CA_PEM_MAX + SEAL_EXTRA
};

enum secret {
    CA_CERTIFICATE,
    CA_KEY,
    TICKET_KEY,
    PACKAGE_KEY,
    LINK_KEY,
    WEB_KEY,
    LEASE_KEY,
    SECRETS
};

static const char *const names[SECRETS] = { "ca.pem",      "ca.key",   "ticket.key",
                                            "package.key", "link.key", "web.key",
                                            "lease.key" };

/* All secrets of a cluster, in the open. */
struct secrets {
    struct ca_pem at[SECRETS];
};

static const char *share_of(const struct conf *conf)
{
    return conf->share.data[0] ? conf->share.data : conf->share.state;
}

static int failed(struct ctl *c, const struct err_info *info, const char *advice)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "secret_failed",
                                           "The secrets of the cluster are not usable",
                                           info->what, advice });
}

/* --- on the share --- */

/* Where they lie, and what they are sealed with. */
struct share {
    struct smb *smb;
    const struct mac_key *key;
};

static void share_name(char out[64], enum secret i)
{
    (void)snprintf(out, 64, "secret/%s", names[i]);
}

typedef enum err write_file(struct smb *s, const char *name, struct str body,
                            struct err_info *info);

/* how: smb_put, or smb_create if another one's must not be replaced */
static enum err put(const struct share *s, enum secret i, const struct ca_pem *bytes,
                    write_file *how, struct err_info *info)
{
    static char sealed[SEALED_MAX];
    char name[64];
    size_t n = 0;

    share_name(name, i);
    if (seal_close(s->key, str_of(names[i]), ca_pem_str(bytes), sealed, sizeof(sealed),
                   &n) != ERR_OK)
        return err_set(info, ERR_LIMIT, 0, "%s is too long", names[i]);
    return how(s->smb, name, (struct str){ sealed, n }, info);
}

static enum err get(const struct share *s, enum secret i, struct ca_pem *out,
                    struct err_info *info)
{
    static char sealed[SEALED_MAX];
    char name[64];
    size_t n = 0;

    share_name(name, i);
    enum err e = smb_read(s->smb, name, sealed, sizeof(sealed), &n, info);
    if (e != ERR_OK)
        return e;
    e = seal_open(s->key, str_of(names[i]), (struct str){ sealed, n }, out->text,
                  sizeof(out->text) - 1, &out->n);
    if (e != ERR_OK)
        return err_set(info, ERR_FOREIGN, 0,
                       "%s on the share was not sealed with this cluster key", name);
    out->text[out->n] = '\0';
    return ERR_OK;
}

/* --- made or taken --- */

enum err trust_read(const char *path, struct ca_pem *out, struct err_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s",
                       path);
    ssize_t n = read(fd, out->text, sizeof(out->text) - 1);
    int number = errno;
    (void)close(fd); /* read only */
    if (n < 0)
        return err_set(info, ERR_IO, number, "read %s", path);
    out->n = (size_t)n;
    out->text[n] = '\0';
    return ERR_OK;
}

static enum err make_random(struct ca_pem *out, size_t n, struct err_info *info)
{
    if (getrandom(out->text, n, 0) != (ssize_t)n)
        return err_set(info, ERR_IO, errno, "get random bytes");
    out->n = n;
    return ERR_OK;
}

/* As hex digits, as [activation] key wants it. */
static enum err make_lease_key(struct ca_pem *out, struct err_info *info)
{
    uint8_t seed[LEASE_SEED];

    if (getrandom(seed, sizeof(seed), 0) != sizeof(seed))
        return err_set(info, ERR_IO, errno, "get random bytes");
    hex_encode(out->text, seed, sizeof(seed));
    explicit_bzero(seed, sizeof(seed));
    out->n = strlen(out->text);
    return ERR_OK;
}

static enum err make_authority(struct ctl *c, struct secrets *all, struct err_info *info)
{
    char name[CONF_NAME + 16];
    enum err e;

    if (!c->opt.ca_certificate) {
        (void)snprintf(name, sizeof(name), "Redoubt %s", c->conf.cluster.name);
        return ca_create(name, &all->at[CA_CERTIFICATE], &all->at[CA_KEY], info);
    }
    e = trust_read(c->opt.ca_certificate, &all->at[CA_CERTIFICATE], info);
    return e == ERR_OK ? trust_read(c->opt.ca_key, &all->at[CA_KEY], info) : e;
}

/* Do certificate and key make an authority? */
static enum err check_authority(const struct secrets *all, struct ca **out,
                                struct err_info *info)
{
    return ca_load(ca_pem_str(&all->at[CA_CERTIFICATE]), ca_pem_str(&all->at[CA_KEY]),
                   out, info);
}

static enum err make_signer(struct ctl *c, struct secrets *all, struct err_info *info)
{
    char name[CONF_NAME + 32];
    struct ca *ca = NULL;
    enum err e = check_authority(all, &ca, info);

    (void)snprintf(name, sizeof(name), "Redoubt %s packages", c->conf.cluster.name);
    if (e == ERR_OK)
        e = ca_create_signer(ca, name, &all->at[PACKAGE_KEY], info);
    ca_free(ca);
    return e;
}

/* Those that the authority does not need to exist. */
static enum err make_later(struct ctl *c, struct secrets *all, enum secret i,
                           struct err_info *info)
{
    return i == PACKAGE_KEY ? make_signer(c, all, info)
           : i == WEB_KEY   ? ca_key_new(&all->at[WEB_KEY], info)
           : i == LEASE_KEY ? make_lease_key(&all->at[LEASE_KEY], info)
                            : make_random(&all->at[i], LINK_BYTES, info);
}

/*
 * A cluster that was made before there was such a secret gets it now.  Both nodes may be at
 * it: one is first, and the other takes what that one made.
 */
static enum err add_later(struct ctl *c, const struct share *s, struct secrets *all,
                          enum secret i, struct err_info *info)
{
    enum err e = make_later(c, all, i, info);

    if (e == ERR_OK)
        e = put(s, i, &all->at[i], smb_create, info);
    return e == ERR_EXISTS ? get(s, i, &all->at[i], info) : e;
}

static enum err get_all(struct ctl *c, const struct share *s, struct secrets *out,
                        struct err_info *info)
{
    enum err e = ERR_OK;

    for (enum secret i = 0; i < SECRETS && e == ERR_OK; i++) {
        e = get(s, i, &out->at[i], info);
        if (e == ERR_NOT_FOUND && i >= PACKAGE_KEY)
            e = add_later(c, s, out, i, info);
    }
    return e;
}

/* What an init that was broken off has left is used; a given authority replaces it. */
static enum err prepare(struct ctl *c, const struct share *s, struct secrets *all,
                        struct err_info *info)
{
    struct ca *ca = NULL;
    enum err e = smb_make_folder(s->smb, "secret", info);

    if (e == ERR_OK || e == ERR_EXISTS)
        e = get_all(c, s, all, info);
    if (e == ERR_OK && !c->opt.ca_certificate)
        return e;
    if (e != ERR_OK && e != ERR_NOT_FOUND)
        return e;
    e = make_authority(c, all, info);
    if (e == ERR_OK)
        e = check_authority(all, &ca, info);
    ca_free(ca);
    if (e == ERR_OK)
        e = make_random(&all->at[TICKET_KEY], TICKET_BYTES, info);
    for (enum secret i = PACKAGE_KEY; i < SECRETS && e == ERR_OK; i++)
        e = make_later(c, all, i, info);
    for (enum secret i = SECRETS; i-- > 0 && e == ERR_OK;)
        e = put(s, i, &all->at[i], smb_put, info);
    return e;
}

/* --- on this node --- */

static enum err path_of(const struct ctl *c, const char *name, char out[CONF_PATH],
                        struct err_info *info)
{
    int n = snprintf(out, CONF_PATH, "%s/%s", c->conf.trust.folder, name);

    return n < CONF_PATH ? ERR_OK
                         : err_set(info, ERR_CONFIG, 0, "[trust] folder is too long");
}

/*
 * The group whose programs read the file (but not the key that signs packages: only root's
 * programs do that); without it (a test, a container) only root does.  The Web Server talks to
 * everybody, so it has a group of its own, of which the other services are, too.
 */
static gid_t readers(const char *name)
{
    const bool web = strcmp(name, "web.pem") == 0 || strcmp(name, names[WEB_KEY]) == 0 ||
                     strcmp(name, names[LINK_KEY]) == 0;
    const struct group *g = getgrnam(web ? "redoubt-web" : "redoubt");

    return g ? g->gr_gid : (gid_t)-1;
}

static enum err make_folder(const struct ctl *c, struct err_info *info)
{
    const char *folder = c->conf.trust.folder;
    char parent[CONF_PATH];

    (void)snprintf(parent, sizeof(parent), "%s", folder);
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent) {
        *slash = '\0';
        if (mkdir(parent, 0755) != 0 && errno != EEXIST)
            return err_set(info, ERR_IO, errno, "make %s", parent);
    }
    if (mkdir(folder, 0750) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "make %s", folder);
    /* Each file says for itself who reads it; who knows its name gets that far. */
    if (chmod(folder, 0751) != 0 || chown(folder, (uid_t)-1, readers("")) != 0)
        return err_set(info, ERR_IO, errno, "set the rights of %s", folder);
    return ERR_OK;
}

static enum err install_file(const struct ctl *c, const char *name, struct str bytes,
                             struct err_info *info)
{
    char path[CONF_PATH], beside[CONF_PATH + 8];
    enum err e = path_of(c, name, path, info);

    if (e != ERR_OK)
        return e;
    (void)snprintf(beside, sizeof(beside), "%s.tmp", path);
    (void)unlink(beside); /* of a run that was broken off */
    int fd = open(beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(info, ERR_IO, errno, "create %s", beside);
    if (write(fd, bytes.p, bytes.n) != (ssize_t)bytes.n || fsync(fd) != 0)
        e = err_set(info, ERR_IO, errno, "write %s", beside);
    else if (fchown(fd, (uid_t)-1, readers(name)) != 0 ||
             fchmod(fd, strcmp(name, names[PACKAGE_KEY]) == 0 ? 0600 : 0640) != 0)
        e = err_set(info, ERR_IO, errno, "set the rights of %s", beside);
    if (close(fd) != 0 && e == ERR_OK)
        e = err_set(info, ERR_IO, errno, "write %s", beside);
    if (e == ERR_OK && rename(beside, path) != 0)
        e = err_set(info, ERR_IO, errno, "rename %s", beside);
    if (e != ERR_OK)
        (void)unlink(beside); /* best effort */
    return e;
}

static void add_name(struct ca_names *n, const char *name)
{
    for (uint32_t i = 0; i < n->count; i++) {
        if (strcmp(n->at[i], name) == 0)
            return;
    }
    if (name[0] && n->count < CA_NAMES_MAX)
        n->at[n->count++] = name;
}

/* text: where the names lie while they are used. */
static void server_names(const struct conf *conf, char text[CONF_TEXT + 2 * CONF_NAME],
                         struct ca_names *out)
{
    char *rest = NULL, *v4 = text, *v6 = text + 32, *more = text + 32 + CONF_NAME;

    *out = (struct ca_names){ 0 };
    (void)snprintf(v4, 32, "%s", conf->address.ipv4);
    (void)snprintf(v6, CONF_NAME, "%s", conf->address.ipv6);
    v4[strcspn(v4, "/")] = '\0';
    v6[strcspn(v6, "/")] = '\0';
    (void)snprintf(more, CONF_TEXT, "%s", conf->trust.names);
    for (char *w = strtok_r(more, " \t,", &rest); w; w = strtok_r(NULL, " \t,", &rest))
        add_name(out, w);
    add_name(out, v4);
    add_name(out, v6);
    add_name(out, conf->cluster.node);
    add_name(out, conf->cluster.peer);
}

/*
 * Each node makes its certificates for itself.  The key of the Web Server is that of both nodes:
 * who pins it, as the command that installs an agent does, trusts either.
 */
static enum err install(const struct ctl *c, const struct secrets *all,
                        struct err_info *info)
{
    char text[CONF_TEXT + 2 * CONF_NAME];
    struct ca_names server;
    struct ca_issued issued, web;
    struct ca_pem key = { 0 };
    struct ca *ca = NULL;
    uint32_t days = c->conf.trust.server_days;
    enum err e = check_authority(all, &ca, info);

    server_names(&c->conf, text, &server);
    if (e == ERR_OK)
        e = ca_sign_server(ca, &server, days, &issued, &key, info);
    if (e == ERR_OK)
        e = ca_sign_server_key(ca, &server, days, ca_pem_str(&all->at[WEB_KEY]), &web,
                               info);
    if (e == ERR_OK)
        e = make_folder(c, info);
    for (enum secret i = 0; i < SECRETS && e == ERR_OK; i++)
        e = install_file(c, names[i], ca_pem_str(&all->at[i]), info);
    if (e == ERR_OK)
        e = install_file(c, "server.key", ca_pem_str(&key), info);
    if (e == ERR_OK)
        e = install_file(c, "server.pem", ca_pem_str(&issued.pem), info);
    if (e == ERR_OK)
        e = install_file(c, "web.pem", ca_pem_str(&web.pem), info);
    ca_pem_wipe(&key);
    ca_free(ca);
    return e;
}

static const char run_as_root[] =
    "Run it as root. Does [trust] folder lie on a disk of this node that can be written?";

int ctl_trust_init(struct ctl *c, const struct mac_key *key)
{
    struct secrets *all = calloc(1, sizeof(*all));
    struct err_info info = { .what = "out of memory" };
    struct smb *s = NULL;
    int r = CTL_OK;
    enum err e =
        all ? ctl_share_connect(&c->conf, share_of(&c->conf), &s, &info) : ERR_MEMORY;

    if (e == ERR_OK)
        e = prepare(c, &(struct share){ s, key }, all, &info);
    smb_free(s);
    if (e != ERR_OK)
        r = failed(
            c, &info,
            e == ERR_FOREIGN
                ? "If no node uses the folder secret on the share any more, remove it."
                : "redoubt check tells whether the share can be written.");
    else if (install(c, all, &info) != ERR_OK)
        r = failed(c, &info, run_as_root);
    if (all)
        explicit_bzero(all, sizeof(*all));
    free(all);
    return r;
}

/* --- the commands --- */

static int get_key(struct ctl *c, struct mac_key *key)
{
    struct err_info info = { .what = "" };

    if (conf_load_key(c->conf.cluster.key_file, key, &info) == ERR_OK)
        return CTL_OK;
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "cluster_key",
                                           "The cluster key cannot be used", info.what,
                                           "Copy it from the other node, mode 0600." });
}

static int told(struct ctl *c, const struct secrets *all)
{
    char digest[CA_DIGEST] = "";

    if (ca_digest(ca_pem_str(&all->at[CA_CERTIFICATE]), digest, NULL) != ERR_OK)
        digest[0] = '\0';
    if (c->opt.json) {
        json_t *j =
            json_pack("{s:s, s:s}", "folder", c->conf.trust.folder, "authority", digest);

        ctl_print_json(j);
        json_decref(j);
        return CTL_OK;
    }
    printf(
        "The authority %s and a new certificate of the servers are in %s.\n"
        "Running services read them when they start: restart redoubt-node, the passive "
        "node first.\n",
        digest, c->conf.trust.folder);
    return CTL_OK;
}

int cmd_secret_fetch(struct ctl *c)
{
    struct secrets *all = NULL;
    struct err_info info = { .what = "out of memory" };
    struct mac_key key;
    struct smb *s = NULL;
    int r = ctl_load_conf(c);

    if (r == CTL_OK)
        r = get_key(c, &key);
    if (r != CTL_OK)
        return r;
    all = calloc(1, sizeof(*all));
    enum err e =
        all ? ctl_share_connect(&c->conf, share_of(&c->conf), &s, &info) : ERR_MEMORY;
    if (e == ERR_OK)
        e = get_all(c, &(struct share){ s, &key }, all, &info);
    smb_free(s);
    explicit_bzero(&key, sizeof(key));
    if (e != ERR_OK)
        r = failed(c, &info,
                   e == ERR_NOT_FOUND
                       ? "The cluster was created without them: run redoubt init first."
                   : e == ERR_FOREIGN
                       ? "Copy cluster.key from the node where redoubt init was run."
                       : "redoubt check names the step that fails.");
    else if (install(c, all, &info) != ERR_OK)
        r = failed(c, &info, run_as_root);
    else
        r = told(c, all);
    if (all)
        explicit_bzero(all, sizeof(*all));
    free(all);
    return r;
}

/* One line of `secret list`. */
struct listed {
    const char *name;
    bool on_share, sealed_with_key, here, same;
    int64_t not_after; /* of a certificate here; 0: none */
};

static void look_here(const struct ctl *c, struct listed *l, const struct ca_pem *shared)
{
    struct ca_certificate crt;
    struct ca_pem own = { 0 };
    char path[CONF_PATH];

    if (path_of(c, l->name, path, NULL) != ERR_OK ||
        trust_read(path, &own, NULL) != ERR_OK)
        return;
    l->here = true;
    l->same = shared && str_eq(ca_pem_str(&own), ca_pem_str(shared));
    if (strstr(l->name, ".pem") &&
        ca_certificate_read(ca_pem_str(&own), &crt, NULL) == ERR_OK)
        l->not_after = crt.not_after;
    ca_pem_wipe(&own);
}

/* The certificates of the servers are of each node. */
static bool is_shared(const char *name)
{
    return strcmp(name, "server.pem") != 0 && strcmp(name, "web.pem") != 0;
}

static void print_one(const struct listed *l)
{
    char until[64] = "";
    struct tm tm;
    time_t t = (time_t)l->not_after;
    bool of_share = is_shared(l->name);

    if (l->not_after && gmtime_r(&t, &tm))
        (void)strftime(until, sizeof(until), ", good until %Y-%m-%d", &tm);
    printf("  %-11s %s%s%s\n", l->name,
           !of_share             ? ""
           : !l->on_share        ? "not on the share, "
           : !l->sealed_with_key ? "on the share, but of another key, "
                                 : "on the share, ",
           !l->here               ? "not on this node"
           : of_share && !l->same ? "another on this node"
                                  : "on this node",
           until);
}

static json_t *json_one(const struct listed *l)
{
    json_t *j =
        json_pack("{s:s, s:b, s:b}", "name", l->name, "here", l->here, "same", l->same);

    if (is_shared(l->name))
        (void)json_object_set_new(j, "shared", json_boolean(l->sealed_with_key));
    if (l->not_after)
        (void)json_object_set_new(j, "not_after", json_integer(l->not_after));
    return j;
}

static int list(struct ctl *c, const struct share *s)
{
    static struct ca_pem shared;
    struct listed all[SECRETS + 2] = { 0 };
    struct err_info info = { .what = "" };
    json_t *out = json_array();
    int r = CTL_OK;

    for (enum secret i = 0; i < SECRETS; i++) {
        enum err e = get(s, i, &shared, &info);

        all[i].name = names[i];
        all[i].on_share = e == ERR_OK || e == ERR_FOREIGN;
        all[i].sealed_with_key = e == ERR_OK;
        look_here(c, &all[i], e == ERR_OK ? &shared : NULL);
        ca_pem_wipe(&shared);
    }
    all[SECRETS].name = "server.pem";
    all[SECRETS + 1].name = "web.pem";
    look_here(c, &all[SECRETS], NULL);
    look_here(c, &all[SECRETS + 1], NULL);
    for (size_t i = 0; i < LEN(all); i++) {
        if (c->opt.json)
            (void)json_array_append_new(out, json_one(&all[i]));
        else
            print_one(&all[i]);
        if (!all[i].here || (i < SECRETS && !all[i].same))
            r = CTL_FAILED;
    }
    if (c->opt.json)
        ctl_print_json(out);
    else if (r != CTL_OK)
        printf("This node does not have what it needs: redoubt secret fetch\n");
    json_decref(out);
    return r;
}

int cmd_secret_list(struct ctl *c)
{
    struct err_info info = { .what = "" };
    struct mac_key key;
    struct smb *s = NULL;
    int r = ctl_load_conf(c);

    if (r == CTL_OK)
        r = get_key(c, &key);
    if (r != CTL_OK)
        return r;
    r = ctl_share_connect(&c->conf, share_of(&c->conf), &s, &info) == ERR_OK
            ? list(c, &(struct share){ s, &key })
            : failed(c, &info, "redoubt check names the step that fails.");
    smb_free(s);
    explicit_bzero(&key, sizeof(key));
    return r;
}
