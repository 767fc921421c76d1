#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "app/ctl/report.h"
#include "sys/smb/smb_url.h"
#include "wire/record.h"

enum { RACES = 20, RECORD_MAX = 8192, RACE_SECONDS_MAX = 30 };

/* The folder of this node's test files; left over ones of a broken test are its own. */
static void folder_name(const struct report *r, char *buf, size_t size)
{
    (void)snprintf(buf, size, "check-%s", r->c->conf.cluster.node);
}

static const char *advice_of(enum err e)
{
    switch (e) {
    case ERR_NOT_FOUND:
        return "The file server has no such share or folder: check [share] in "
               "redoubt.conf, and make the folder on the file server.";
    case ERR_DENIED: return alarm_info(ALARM_SHARE_DENIED)->suggestion;
    case ERR_FULL: return alarm_info(ALARM_SHARE_FULL)->suggestion;
    case ERR_VERSION:
        return "Enable SMB 2.0 or later on the file server, or widen dialect_min and "
               "dialect_max.";
    case ERR_UNSUPPORTED:
        return "Enable encryption on the file server, or write encrypt = no.";
    case ERR_CONFIG: return "Correct [share] in redoubt.conf.";
    case ERR_OK:
    case ERR_TIMEOUT:
    case ERR_IO:
    case ERR_CORRUPT:
    case ERR_LIMIT:
    case ERR_EXISTS:
    case ERR_FOREIGN:
    case ERR_STALE:
    case ERR_INVALID:
    case ERR_STATE:
    case ERR_CLOSED:
    case ERR_MEMORY:
    case ERR_COUNT: break;
    }
    return "Is the file server on, and does the network let TCP port 445 (or [share] "
           "port) "
           "through?";
}

static bool check_dialect(struct report *r)
{
    const struct conf_share *s = &r->c->conf.share;
    struct err_info info = { .what = "" };
    struct smb_url url;
    struct smb_negotiated n;
    struct smb_probe p = { .host = url.host,
                           .port = (uint16_t)s->port,
                           .timeout_ms = 3000 };

    if (!smb_url_parse(&url, str_of(s->state)) ||
        !smb_dialect_parse(str_of(conf_dialect_name(s->dialect_min)), &p.min) ||
        !smb_dialect_parse(str_of(conf_dialect_name(s->dialect_max)), &p.max)) {
        report_add(r, REPORT_FAIL, "share.protocol", advice_of(ERR_CONFIG),
                   "%s is not //server/share", s->state);
        return false;
    }
    enum err e = smb_probe(&n, &p, &info);

    if (e != ERR_OK) {
        report_add(r, REPORT_FAIL, "share.protocol", advice_of(e), "%s", info.what);
        return false;
    }
    report_add(r, REPORT_OK, "share.protocol", NULL, "%s speaks SMB %s%s", url.host,
               smb_dialect_name(n.dialect), n.encryption ? ", can encrypt" : "");
    return true;
}

/* The files found in the folder, some at a time. */
struct found {
    uint32_t count;
    char name[32][64];
};

static bool on_found(void *arg, const char *entry, bool is_folder)
{
    struct found *f = arg;

    if (!is_folder && strlen(entry) < sizeof(f->name[0]))
        (void)snprintf(f->name[f->count++], sizeof(f->name[0]), "%.63s", entry);
    return f->count < LEN(f->name);
}

/* Removes the folder and the files in it.  What cannot be removed stays for the next run,
 * which says so. */
static void clean(struct smb *s, const char *folder)
{
    uint32_t removed;

    do {
        struct found f = { .count = 0 };
        char path[SMB_NAME_BYTES];

        removed = 0;
        if (smb_list(s, folder, on_found, &f, NULL) != ERR_OK)
            return;
        for (uint32_t i = 0; i < f.count; i++) {
            (void)snprintf(path, sizeof(path), "%.60s/%.63s", folder, f.name[i]);
            removed += smb_remove(s, path, NULL) == ERR_OK;
        }
    } while (removed > 0);
    if (smb_remove_folder(s, folder, NULL) != ERR_OK)
        return; /* see above */
}

/* Every right that the cluster uses, one after the other. */
static enum err use_rights(struct smb *s, const char *folder, struct err_info *info)
{
    char a[SMB_NAME_BYTES], b[SMB_NAME_BYTES], back[16];
    size_t n = 0;

    (void)snprintf(a, sizeof(a), "%s/a", folder);
    (void)snprintf(b, sizeof(b), "%s/b", folder);
    enum err e = smb_make_folder(s, folder, info);

    if (e == ERR_OK)
        e = smb_create(s, a, STR("one"), info);
    if (e == ERR_OK && smb_create(s, a, STR("two"), NULL) != ERR_EXISTS)
        e = err_set(info, ERR_STATE, 0, "creating a file that exists did not fail");
    if (e == ERR_OK)
        e = smb_rewrite(s, a, STR("six"), info);
    if (e == ERR_OK)
        e = smb_read(s, a, back, sizeof(back), &n, info);
    if (e == ERR_OK && !str_is((struct str){ back, n }, "six"))
        e = err_set(info, ERR_CORRUPT, 0, "what was written is not what is read");
    if (e == ERR_OK)
        e = smb_rename(s, a, b, info);
    return e == ERR_OK ? smb_remove(s, b, info) : e;
}

static bool check_rights(struct report *r, struct smb *s, const char *folder)
{
    struct err_info info = { .what = "" };

    clean(s, folder); /* of a run that was broken off */
    enum err e = use_rights(s, folder, &info);

    if (e != ERR_OK) {
        report_add(r, REPORT_FAIL, "share.rights", advice_of(e), "%s", info.what);
        return false;
    }
    report_add(r, REPORT_OK, "share.rights", NULL,
               "create, write, read, rename and remove in %s", r->c->conf.share.state);
    return true;
}

/* One racer, in a process and with a connection of its own: the names it won, as bits. */
static uint32_t race(const struct conf *conf, const char *folder, int start)
{
    struct smb *s = NULL;
    uint32_t won = 0;
    char go;

    if (ctl_share_connect(conf, conf->share.state, &s, NULL) != ERR_OK)
        return UINT32_MAX;
    if (read(start, &go, 1) < 0) /* the end of the pipe is the shot */
        return UINT32_MAX;
    for (uint32_t i = 0; i < RACES; i++) {
        char name[SMB_NAME_BYTES];

        (void)snprintf(name, sizeof(name), "%.60s/race-%u", folder, i);
        if (smb_create(s, name, STR("mine"), NULL) == ERR_OK)
            won |= 1u << i;
    }
    smb_free(s);
    return won;
}

struct racer {
    pid_t pid;
    int result; /* read end */
};

static bool start_racer(struct racer *out, const struct conf *conf, const char *folder,
                        const int start[2])
{
    int p[2];

    if (pipe(p) != 0)
        return false;
    pid_t pid = fork();

    if (pid == 0) {
        (void)alarm(RACE_SECONDS_MAX); /* libsmbclient may hang */
        (void)close(start[1]);
        uint32_t won = race(conf, folder, start[0]);

        _exit(write(p[1], &won, sizeof(won)) == sizeof(won) ? 0 : 1);
    }
    (void)close(p[1]); /* the child's */
    *out = (struct racer){ pid, p[0] };
    return pid > 0;
}

/* UINT32_MAX: it could not race. */
static uint32_t end_racer(struct racer *racer)
{
    uint32_t won = UINT32_MAX;

    if (read(racer->result, &won, sizeof(won)) != sizeof(won))
        won = UINT32_MAX;
    (void)close(racer->result);         /* read */
    (void)waitpid(racer->pid, NULL, 0); /* its alarm ends it in any case */
    return won;
}

static void check_exclusive(struct report *r, const char *folder)
{
    struct racer racer[2] = { { .pid = 0 } };
    uint32_t won[2] = { UINT32_MAX, UINT32_MAX };
    int start[2];

    if (pipe(start) != 0)
        return;
    for (int i = 0; i < 2; i++)
        if (!start_racer(&racer[i], &r->c->conf, folder, start))
            break;
    (void)usleep(300 * 1000); /* both log on; the race is fair enough without, too */
    (void)close(start[0]);
    (void)close(start[1]); /* the shot */
    for (int i = 0; i < 2; i++)
        if (racer[i].pid > 0)
            won[i] = end_racer(&racer[i]);
    if (won[0] == UINT32_MAX || won[1] == UINT32_MAX)
        report_add(
            r, REPORT_FAIL, "share.exclusive",
            "Repeat the check; if it stays so, look at the log of the file server.",
            "two connections at once could not be made");
    else if ((won[0] & won[1]) != 0 || (won[0] | won[1]) != (1u << RACES) - 1)
        report_add(
            r, REPORT_FAIL, "share.exclusive",
            "This file server cannot be the arbiter of a cluster: exclusive create "
            "is not exclusive there. Do not use it.",
            "of two who created the same %d files, not exactly one won each", RACES);
    else
        report_add(r, REPORT_OK, "share.exclusive", NULL,
                   "of two who created the same %d files at once, exactly one won each",
                   RACES);
}

static void check_cluster_record(struct report *r, struct smb *s)
{
    char bytes[RECORD_MAX], id[RECORD_CLUSTER_BYTES];
    struct err_info info = { .what = "" };
    struct mac_key key;
    size_t n = 0;

    enum err e = smb_read(s, "cluster", bytes, sizeof(bytes), &n, &info);
    enum err k = conf_load_key(r->c->conf.cluster.key_file, &key, &info);

    /* Before redoubt init neither is there, and nothing is wrong with that. */
    r->before_init = e == ERR_NOT_FOUND;
    if (k != ERR_OK && !(r->before_init && k == ERR_NOT_FOUND)) {
        report_add(r, REPORT_FAIL, "cluster.key",
                   "Copy the key file from the node where the cluster was made, "
                   "readable by root only.",
                   "%s", info.what);
        return;
    }
    if (k == ERR_OK)
        record_cluster_id(id, &key);
    if (r->before_init)
        report_add(r, REPORT_WARN, "share.cluster", "Run redoubt init once, on one node.",
                   "the share holds no cluster yet");
    else if (e != ERR_OK)
        report_add(r, REPORT_FAIL, "share.cluster", advice_of(e), "%s", info.what);
    else if (cluster_check((struct str){ bytes, n }, &key, id) != ERR_OK)
        report_add(r, REPORT_FAIL, "share.cluster",
                   alarm_info(ALARM_SHARE_FOREIGN)->suggestion,
                   "the cluster on the share is not that of our key");
    else
        report_add(r, REPORT_OK, "share.cluster", NULL, "cluster %s, id %s",
                   r->c->conf.cluster.name, id);
}

static void check_space(struct report *r, struct smb *s)
{
    struct smb_space space;

    if (smb_space(s, &space, NULL) != ERR_OK)
        return; /* some servers do not tell */
    bool low = space.free_bytes < 2u * 1024 * 1024;

    report_add(r, low ? REPORT_WARN : REPORT_OK, "share.space",
               low ? alarm_info(ALARM_SHARE_FULL)->suggestion : NULL,
               "%llu MiB free on the state share",
               (unsigned long long)space.free_bytes / (1024 * 1024));
}

static void check_data_share(struct report *r, const char *folder)
{
    const struct conf *conf = &r->c->conf;
    struct err_info info = { .what = "" };
    struct smb *s = NULL;

    if (!conf->share.data[0]) {
        report_add(r, REPORT_OK, "share.data", NULL, "no data share is configured");
        return;
    }
    enum err e = ctl_share_connect(conf, conf->share.data, &s, &info);

    if (e == ERR_OK) {
        clean(s, folder);
        e = use_rights(s, folder, &info);
    }
    if (e != ERR_OK)
        report_add(r, REPORT_FAIL, "share.data", advice_of(e), "%s", info.what);
    else
        report_add(r, REPORT_OK, "share.data", NULL,
                   "create, write, read, rename and remove in %s", conf->share.data);
    if (e == ERR_OK && !r->c->opt.quick)
        check_bandwidth(r, s, "share.bandwidth", folder);
    if (s)
        clean(s, folder);
    smb_free(s);
}

bool check_share(struct report *r)
{
    const struct conf *conf = &r->c->conf;
    struct err_info info = { .what = "" };
    char folder[SMB_NAME_BYTES];
    struct smb *s = NULL;

    folder_name(r, folder, sizeof(folder));
    if (!check_dialect(r))
        return false;
    enum err e = ctl_share_connect(conf, conf->share.state, &s, &info);

    if (e != ERR_OK) {
        report_add(r, REPORT_FAIL, "share.login", advice_of(e), "%s", info.what);
        return false;
    }
    report_add(r, REPORT_OK, "share.login", NULL, "%s", conf->share.state);
    check_cluster_record(r, s);
    bool usable = check_rights(r, s, folder);

    if (usable) {
        check_exclusive(r, folder);
        check_latency(r, s, folder);
        if (!conf->share.data[0] && !r->c->opt.quick)
            check_bandwidth(r, s, "share.bandwidth", folder);
        check_space(r, s);
    }
    clean(s, folder);
    check_data_share(r, folder);
    check_nodes(r, s);
    smb_free(s);
    return usable;
}
