#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include "app/ctl/ctl_trust.h"
#include "sys/fence/migrate.h"
#include "wire/record.h"

enum { USED_SHOWN = 8, RECORD_MAX = 8192 };

void ctl_sibling_folder(char *out, size_t size)
{
    char exe[CONF_PATH];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    char *slash;

    exe[n > 0 ? n : 0] = '\0';
    slash = strrchr(exe, '/');
    if (slash)
        *slash = '\0';
    /* <prefix>/bin/redoubt and <prefix>/lib/redoubt/ */
    slash = strrchr(exe, '/');
    if (slash)
        *slash = '\0';
    (void)snprintf(out, size, "%.200s/lib/redoubt", exe);
}

static void migrations_folder(const struct ctl *c, char *out, size_t size)
{
    char lib[CONF_PATH];

    ctl_sibling_folder(lib, sizeof(lib));
    if (c->opt.folder)
        (void)snprintf(out, size, "%s", c->opt.folder);
    else
        (void)snprintf(out, size, "%.200s/../../share/redoubt/db", lib);
}

static void on_migration(void *ctx, const char *file)
{
    const struct ctl *c = ctx;

    if (!c->opt.json)
        printf("Database: %s\n", file);
}

static int migrate(struct ctl *c, struct migrate_result *result)
{
    struct err_info info = { .what = "" };
    char folder[CONF_PATH + 32];

    migrations_folder(c, folder, sizeof(folder));
    enum err e =
        migrate_run(c->conf.database.conninfo, folder, on_migration, c, result, &info);

    if (e == ERR_OK)
        return CTL_OK;
    return ctl_fail(
        c, CTL_FAILED,
        &(struct ctl_problem){
            e == ERR_VERSION ? "database_schema" : "database_failed",
            e == ERR_VERSION ? "The schema in the DBMS is newer than this program"
                             : "The DBMS could not be prepared",
            info.what,
            e == ERR_VERSION ? "Install on this node the version that the other node has."
                             : "Is PostgreSQL running, and may the user of [database] "
                               "conninfo create a schema in its database? redoubt check "
                               "tells more." });
}

int cmd_database_migrate(struct ctl *c)
{
    struct migrate_result result = { 0 };
    int r = ctl_load_conf(c);

    if (r == CTL_OK)
        r = migrate(c, &result);
    if (r != CTL_OK)
        return r;
    if (c->opt.json) {
        json_t *j =
            json_pack("{s:i, s:i}", "before", result.before, "after", result.after);

        ctl_print_json(j);
        json_decref(j);
    } else if (result.before == result.after) {
        printf("The schema is at version %d already.\n", result.after);
    } else {
        printf("The schema is at version %d now.\n", result.after);
    }
    return CTL_OK;
}

/* ---- the key ---- */

static int key_failed(struct ctl *c, const struct err_info *info, const char *advice)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "cluster_key",
                                           "The cluster key cannot be used", info->what,
                                           advice });
}

static enum err write_new_key(const char *path, struct err_info *info)
{
    uint8_t bytes[MAC_KEY_BYTES];
    char hex[2 * MAC_KEY_BYTES + 2];
    enum err e = ERR_OK;

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return err_set(info, ERR_IO, errno, "get random bytes");
    hex_encode(hex, bytes, sizeof(bytes));
    hex[2 * MAC_KEY_BYTES] = '\n';
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0)
        e = err_set(info, ERR_IO, errno, "create %s", path);
    else if (write(fd, hex, 2 * MAC_KEY_BYTES + 1) != 2 * MAC_KEY_BYTES + 1 ||
             fsync(fd) != 0)
        e = err_set(info, ERR_IO, errno, "write %s", path);
    if (fd >= 0 && close(fd) != 0 && e == ERR_OK)
        e = err_set(info, ERR_IO, errno, "write %s", path);
    explicit_bzero(bytes, sizeof(bytes));
    explicit_bzero(hex, sizeof(hex));
    return e;
}

static int get_key(struct ctl *c, struct mac_key *key, bool *ret_made)
{
    const char *path = c->conf.cluster.key_file;
    struct err_info info = { .what = "" };
    enum err e = conf_load_key(path, key, &info);

    *ret_made = false;
    if (e == ERR_NOT_FOUND) {
        if (write_new_key(path, &info) != ERR_OK)
            return key_failed(c, &info, "Run it as root; the folder must exist.");
        *ret_made = true;
        e = conf_load_key(path, key, &info);
    }
    if (e != ERR_OK)
        return key_failed(
            c, &info,
            "Correct the rights or the content; or, for a new cluster only, "
            "remove the file and let redoubt init make another.");
    return CTL_OK;
}

/* ---- the share ---- */

/* What stands on the share that a new cluster must not touch. */
struct used {
    struct smb *s;
    bool has_cluster;
    uint32_t count;
    char shown[400];
    struct text t;
    const char *folder; /* being listed; "" for the top */
};

static void note_used(struct used *u, const char *entry)
{
    if (u->count++ < USED_SHOWN)
        text_add(&u->t, "%s%s%s%s", u->t.n ? ", " : "", u->folder,
                 u->folder[0] ? "/" : "", entry);
}

static bool is_ours(const char *entry)
{
    return strcmp(entry, "epoch") == 0 || strcmp(entry, "node") == 0 ||
           strcmp(entry, "request") == 0 || strcmp(entry, "secret") == 0;
}

static bool on_entry(void *arg, const char *entry, bool is_folder)
{
    struct used *u = arg;

    if (u->folder[0] == '\0' && is_folder && is_ours(entry))
        return true; /* an empty one is no harm: looked into below, secret by its seals */
    if (u->folder[0] == '\0' && strcmp(entry, "cluster") == 0)
        u->has_cluster = true;
    note_used(u, entry);
    return true;
}

static enum err look_for_use(struct used *u, struct err_info *info)
{
    static const char *const folders[] = { "", "epoch", "node", "request" };
    enum err e = ERR_OK;

    text_init(&u->t, u->shown, sizeof(u->shown));
    for (size_t i = 0; i < LEN(folders) && e == ERR_OK; i++) {
        u->folder = folders[i];
        e = smb_list(u->s, folders[i], on_entry, u, info);
        if (e == ERR_NOT_FOUND && i > 0)
            e = ERR_OK;
    }
    return e;
}

/* Is it the cluster of our key?  Without a key it is not. */
static bool cluster_is_mine(const struct ctl *c, struct smb *s)
{
    char bytes[RECORD_MAX], id[RECORD_CLUSTER_BYTES];
    struct mac_key key;
    size_t n = 0;

    if (conf_load_key(c->conf.cluster.key_file, &key, NULL) != ERR_OK ||
        smb_read(s, "cluster", bytes, sizeof(bytes), &n, NULL) != ERR_OK)
        return false;
    record_cluster_id(id, &key);
    enum err e = cluster_check((struct str){ bytes, n }, &key, id);

    explicit_bzero(&key, sizeof(key));
    return e == ERR_OK;
}

static int share_used(struct ctl *c, const struct used *u)
{
    char text[800];

    if (u->has_cluster && cluster_is_mine(c, u->s))
        return ctl_fail(c, CTL_FAILED,
                        &(struct ctl_problem){
                            "share_used", "This cluster exists already",
                            "The state share holds the cluster of this key.",
                            "There is nothing to do: start redoubt-node on both nodes. "
                            "redoubt check tests everything." });
    (void)snprintf(text, sizeof(text), "There is already %s%s in %s.", u->shown,
                   u->count > USED_SHOWN ? " and more" : "", c->conf.share.state);
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){
                        "share_used",
                        u->has_cluster ? "The state share belongs to another cluster"
                                       : "The state share is not empty",
                        text,
                        "If the other node made it, copy its cluster.key here; nothing "
                        "else is to be done. Otherwise give the cluster a share or "
                        "folder of its own. If this is the rest of a cluster that is "
                        "gone, make sure that no node uses it, then empty it on the file "
                        "server." });
}

static int share_failed(struct ctl *c, const struct err_info *info)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "share_unreachable",
                                           "The state share cannot be used", info->what,
                                           "redoubt check names the step that fails." });
}

/* A lease that nobody holds any more: the nodes take the next as after any release. */
static enum err write_first_epoch(const struct ctl *c, struct smb *s,
                                  const struct mac_key *key, struct err_info *info)
{
    struct lease_rec first = { .epoch = 1,
                               .owner = "init",
                               .seq = 1,
                               .released = true,
                               .hold_ms = c->conf.cluster.hold_ms,
                               .why = "init" };
    char bytes[RECORD_LEASE_BYTES];

    record_cluster_id(first.cluster, key);
    enum err e = lease_encode(bytes, key, &first);

    return e == ERR_OK
               ? smb_create(s, "epoch/1", (struct str){ bytes, sizeof(bytes) }, info)
               : e;
}

static enum err write_cluster(const struct ctl *c, struct smb *s,
                              const struct mac_key *key, struct err_info *info)
{
    static const char *const folders[] = { "epoch", "node", "request" };
    char body[512], sealed[1024], id[RECORD_CLUSTER_BYTES], created[32];
    struct timespec now;
    struct tm tm;
    size_t n = 0;
    enum err e = ERR_OK;

    for (size_t i = 0; i < LEN(folders) && e == ERR_OK; i++) {
        e = smb_make_folder(s, folders[i], info);
        if (e == ERR_EXISTS)
            e = ERR_OK; /* of an init that was broken off */
    }
    if (e != ERR_OK)
        return e;
    record_cluster_id(id, key);
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0 && gmtime_r(&now.tv_sec, &tm));
    (void)strftime(created, sizeof(created), "%Y-%m-%dT%H:%M:%SZ", &tm);
    int len = snprintf(body, sizeof(body),
                       "{\"v\":%d,\"cluster\":\"%s\",\"name\":\"%s\",\"created\":\"%s\"}",
                       RECORD_FORMAT, id, c->conf.cluster.name, created);

    e = record_seal(sealed, sizeof(sealed), &n, key, STR("cluster"),
                    (struct str){ body, (size_t)len });
    /* Exclusively: of two that run at once one succeeds. */
    if (e == ERR_OK)
        e = smb_create(s, "cluster", (struct str){ sealed, n }, info);
    return e == ERR_OK ? write_first_epoch(c, s, key, info) : e;
}

static int done(struct ctl *c, bool key_made, const struct migrate_result *db,
                const struct mac_key *key)
{
    const struct conf_cluster *k = &c->conf.cluster;
    char id[RECORD_CLUSTER_BYTES];

    record_cluster_id(id, key);
    if (c->opt.json) {
        json_t *j =
            json_pack("{s:s, s:s, s:s, s:b, s:i}", "cluster", id, "name", k->name,
                      "key_file", k->key_file, "key_made", key_made, "schema", db->after);

        ctl_print_json(j);
        json_decref(j);
        return CTL_OK;
    }
    printf("%sThe cluster %s is created%s (id %s, schema %d).\n\nNext:\n",
           ctl_ink(c, CTL_GREEN), k->name, ctl_ink(c, CTL_PLAIN), id, db->after);
    printf("  1. copy %s to %s over a safe way (scp -p), mode 0600%s\n", k->key_file,
           k->peer, key_made ? "; it was made just now" : ", if it is not there");
    printf("  2. run redoubt secret fetch on %s\n"
           "  3. run redoubt check on both nodes\n"
           "  4. systemctl enable --now redoubt-node on both nodes\n"
           "  5. redoubt status\n",
           k->peer);
    return CTL_OK;
}

/* Empty, so that a new cluster may be made there? */
static int check_unused(struct ctl *c, struct smb *s)
{
    struct used u = { .s = s };
    struct err_info info = { .what = "" };

    if (look_for_use(&u, &info) != ERR_OK)
        return share_failed(c, &info);
    return u.count > 0 ? share_used(c, &u) : CTL_OK;
}

static int init_share(struct ctl *c, struct smb *s, const struct mac_key *key)
{
    struct err_info info = { .what = "" };
    enum err e = write_cluster(c, s, key, &info);

    if (e == ERR_EXISTS)
        return share_used(
            c, &(struct used){ .s = s, .has_cluster = true, .shown = "cluster" });
    return e == ERR_OK ? CTL_OK : share_failed(c, &info);
}

int cmd_init(struct ctl *c)
{
    struct migrate_result db = { 0 };
    struct err_info info = { .what = "" };
    struct smb *s = NULL;
    struct mac_key key = { 0 };
    bool key_made = false;
    int r = ctl_load_conf(c);

    if (r != CTL_OK)
        return r;
    if (!c->opt.ca_certificate != !c->opt.ca_key)
        return ctl_usage("--ca-certificate and --ca-key go together");
    if (!ctl_confirm(c, "Create a new cluster on the state share and in the DBMS?"))
        return ctl_fail(c, CTL_FAILED,
                        &(struct ctl_problem){ "not_confirmed",
                                               "Not done: it was not confirmed", NULL,
                                               "Repeat it with --yes." });
    /* The share first: a wrong name, or a share in use, must not leave a key behind. */
    if (ctl_share_connect(&c->conf, c->conf.share.state, &s, &info) != ERR_OK)
        return share_failed(c, &info);
    r = check_unused(c, s);
    if (r == CTL_OK)
        r = get_key(c, &key, &key_made);
    if (r == CTL_OK)
        r = migrate(c, &db);
    if (r == CTL_OK)
        r = ctl_trust_init(c, &key);
    if (r == CTL_OK)
        r = init_share(c, s, &key);
    smb_free(s);
    if (r == CTL_OK)
        r = done(c, key_made, &db, &key);
    explicit_bzero(&key, sizeof(key));
    return r;
}
