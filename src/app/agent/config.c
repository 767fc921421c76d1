/*
 * config: the policy, as the server offers it and as it is in force here.
 *
 * What was accepted is on the disk before it is applied, so that a device without a server
 * is protected as it was told last.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/agent.h"
#include "app/agent/protect.h"
#include "core/policy/policy.h"
#include "sys/log/log.h"

enum { HASH_BYTES = 32 };

static struct policy wanted; /* the one that was given to protect; one loop thread */

static void path_of(const struct agent *a, const char *name, char *out, size_t size)
{
    (void)snprintf(out, size, "%s/%s", a->conf.agent.state_dir, name);
}

/* Writes beside, then renames: there is always a whole file. */
enum err state_write(const struct agent *a, const char *name, struct str head,
                     struct str body, struct err_info *info)
{
    char path[CONF_PATH + 64], beside[CONF_PATH + 72];

    path_of(a, name, path, sizeof(path));
    (void)snprintf(beside, sizeof(beside), "%s.new", path);
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool ok = fd >= 0 && write(fd, head.p, head.n) == (ssize_t)head.n &&
              write(fd, body.p, body.n) == (ssize_t)body.n && fsync(fd) == 0;
    int e = errno;
    if (fd >= 0 && close(fd) != 0 && ok) {
        ok = false;
        e = errno;
    }
    if (ok && rename(beside, path) != 0) {
        ok = false;
        e = errno;
    }
    if (!ok)
        (void)unlink(beside);
    return ok ? ERR_OK
              : err_set(info, e == ENOSPC ? ERR_FULL : ERR_IO, e, "write %s", path);
}

/* The whole file, at most size bytes; *n says how many. */
enum err state_read(const struct agent *a, const char *name, char *buf, size_t size,
                    size_t *n, struct err_info *info)
{
    char path[CONF_PATH + 64];
    ssize_t got = 0;

    path_of(a, name, path, sizeof(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "%s", path);
    for (*n = 0; *n < size && (got = read(fd, buf + *n, size - *n)) > 0;)
        *n += (size_t)got;
    int e = errno;
    (void)close(fd);
    if (got < 0)
        return err_set(info, ERR_IO, e, "read %s", path);
    return *n < size ? ERR_OK : err_set(info, ERR_LIMIT, 0, "%s is too big", path);
}

static void config_state(struct agent *a, enum opamp_status status, const char *why)
{
    a->policy.status = status;
    (void)snprintf(a->policy.why, sizeof(a->policy.why), "%s", why);
    a->policy.tell = true;
    log_event(status == OPAMP_FAILED ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, "policy",
              log_str("state", config_status_name(status)),
              log_str("hash", a->policy.offered), log_str("why", why));
    if (!a->policy.fresh || status == OPAMP_APPLYING)
        return;
    a->policy.fresh = false;
    agent_event(a, status == OPAMP_APPLIED ? "policy_applied" : "policy_failed",
                status == OPAMP_APPLIED ? "info" : "warning",
                json_pack("{s:s, s:s}", "hash", a->policy.offered, "why", why));
}

const char *config_status_name(enum opamp_status status)
{
    static const char *const names[] = { "none", "applied", "applying", "failed" };

    return names[status];
}

static void errors_text(const struct policy_errors *errors, char *out, size_t size)
{
    struct text t;

    text_init(&t, out, size);
    for (uint32_t i = 0; i < errors->count; i++)
        text_add(&t, "%s%s: %s", i > 0 ? "; " : "", errors->at[i].path,
                 errors->at[i].why);
    if (errors->unsaid > 0)
        text_add(&t, "; and %u more", errors->unsaid);
}

/* Gives it to those that act on it. */
static void in_force(struct agent *a, const char *hash)
{
    (void)snprintf(a->policy.hash, sizeof(a->policy.hash), "%s", hash);
    a->policy.spread_ms = wanted.agent_reconnect_spread_s * 1000u;
    a->policy.heartbeat_s = wanted.agent_heartbeat_s;
    agent_pace(a);
    protect_policy(a->protect, &wanted, hash);
}

void config_release(struct agent *a)
{
    free(a->policy.unkept);
    a->policy.unkept = NULL;
}

/* What is in force is what the next start begins with: a full disk is asked again. */
void config_tick(struct agent *a)
{
    struct err_info info = { 0 };

    if (a->policy.unkept &&
        state_write(a, "policy", str_of(a->policy.unkept), STR(""), &info) == ERR_OK)
        config_release(a);
}

static void keep(struct agent *a, struct str document)
{
    struct err_info info = { 0 };
    char head[72];

    config_release(a);
    (void)snprintf(head, sizeof(head), "%s\n", a->policy.offered);
    if (state_write(a, "policy", str_of(head), document, &info) == ERR_OK)
        return;
    agent_trouble(a, info.what);
    log_event(LOG_LEVEL_ERROR, "policy_not_kept", log_str("why", info.what));
    if (asprintf(&a->policy.unkept, "%s%.*s", head, (int)document.n, document.p) < 0)
        a->policy.unkept = NULL;
}

static void accept(struct agent *a, struct str document)
{
    keep(a, document);
    config_state(a, OPAMP_APPLYING, "");
    in_force(a, a->policy.offered);
}

void config_offer(struct agent *a, const struct opamp_config *offer)
{
    static struct policy_errors errors;
    char hash[65], why[OPAMP_TEXT_MAX];
    struct str document = { 0 };

    if (offer->hash.n != HASH_BYTES) {
        log_event(LOG_LEVEL_WARNING, "policy_without_hash");
        return;
    }
    hex_encode(hash, (const uint8_t *)offer->hash.p, HASH_BYTES);
    a->policy.tell = true;
    if (strcmp(hash, a->policy.offered) == 0 && a->policy.status != OPAMP_FAILED)
        return; /* the server did not know yet */
    a->policy.fresh = true;
    (void)snprintf(a->policy.offered, sizeof(a->policy.offered), "%s", hash);
    for (uint32_t i = 0; i < offer->count; i++)
        if (str_is(offer->at[i].name, "policy.json"))
            document = offer->at[i].body;
    if (!document.p) {
        config_state(a, OPAMP_FAILED, "there is no policy.json");
        return;
    }
    errors = (struct policy_errors){ 0 };
    if (policy_parse(&wanted, document, &errors) != ERR_OK) {
        errors_text(&errors, why, sizeof(why));
        config_state(a, OPAMP_FAILED, why);
        return;
    }
    accept(a, document);
}

void config_done(void *arg, const char hash[65], bool ok, const char *why)
{
    struct agent *a = arg;

    if (strcmp(hash, a->policy.offered) == 0)
        config_state(a, ok ? OPAMP_APPLIED : OPAMP_FAILED, ok ? "" : why);
    else
        log_event(ok ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR, "policy_of_before",
                  log_str("why", why));
    agent_send(a);
}

void config_start(struct agent *a)
{
    static char buf[POLICY_DOCUMENT_MAX + 128];
    static struct policy_errors errors;
    struct err_info info = { 0 };
    char why[OPAMP_TEXT_MAX];
    uint8_t digest[HASH_BYTES];
    size_t n = 0;
    enum err e = state_read(a, "policy", buf, sizeof(buf), &n, &info);

    policy_defaults(&wanted);
    if (e == ERR_OK && (n < 65 || buf[64] != '\n' ||
                        !hex_decode(digest, sizeof(digest), (struct str){ buf, 64 })))
        e = err_set(&info, ERR_CORRUPT, 0, "the policy that was kept is damaged");
    if (e == ERR_OK &&
        policy_parse(&wanted, (struct str){ buf + 65, n - 65 }, &errors) != ERR_OK) {
        errors_text(&errors, why, sizeof(why));
        e = err_set(&info, ERR_CORRUPT, 0, "the policy that was kept: %s", why);
    }
    if (e == ERR_OK) {
        buf[64] = '\0';
        memcpy(a->policy.offered, buf, sizeof(a->policy.offered));
        config_state(a, OPAMP_APPLYING, "");
        in_force(a, buf);
        return;
    }
    if (e != ERR_NOT_FOUND)
        log_event(LOG_LEVEL_ERROR, "policy_not_read", log_str("why", info.what));
    in_force(a, "");
}

void config_add(struct agent *a, struct opamp_agent *m)
{
    static uint8_t digest[HASH_BYTES];

    a->policy.tell = false;
    if (!a->policy.offered[0] ||
        !hex_decode(digest, sizeof(digest), str_of(a->policy.offered)))
        return;
    m->has_config_status = true;
    m->config_status = (struct opamp_verdict){ { (char *)digest, sizeof(digest) },
                                               a->policy.status,
                                               str_of(a->policy.why) };
}
