#include "app/agent/upgrade.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/child.h"
#include "app/agent/deb_version.h"
#include "app/agent/files.h"
#include "app/agent/package.h"
#include "app/agent/supervise.h"
#include "sys/log/log.h"

enum {
    TELL_MS = 5000, /* progress, at most so often */
    LEAVE_MS = 500, /* for what was said to go out */
    STATE_MAX = 64 * 1024,
    HASH_BYTES = 32
};

#define NAME       "redoubt-agent"
#define STATE_FILE "upgrade"

enum step { STEP_NONE, STEP_DOWNLOADING, STEP_INSTALLING, STEP_INSTALLED, STEP_FAILED };

static const char *const step_names[] = { "none", "downloading", "installing",
                                          "installed", "failed" };

struct upgrade {
    struct agent *agent;
    char **argv;
    enum step step;
    json_t *offer; /* owned: as it is in state_dir/upgrade; NULL: none yet */
    uint8_t hash[HASH_BYTES], all[OPAMP_HASH_MAX];
    size_t all_n;
    char why[OPAMP_TEXT_MAX];
    bool tell, sent; /* sent: the supervisor was started by us */
    double percent, rate;
    uint64_t told_ms, due_ms;
    struct child *child;
    char folder[CONF_PATH + 16], exe[CONF_PATH];
};

/* --- what is kept ------------------------------------------------------------------------- */

static bool keep(struct upgrade *u)
{
    struct err_info info = { 0 };

    (void)json_object_set_new(u->offer, "step", json_string(step_names[u->step]));
    (void)json_object_set_new(u->offer, "why", json_string(u->why));
    char *text = json_dumps(u->offer, JSON_COMPACT);
    enum err e = text ? state_write(u->agent, STATE_FILE, str_of(text), STR("\n"), &info)
                      : ERR_MEMORY;

    free(text);
    if (e == ERR_OK)
        return true;
    agent_trouble(u->agent, info.what);
    log_event(LOG_LEVEL_ERROR, "upgrade_not_kept", log_str("why", info.what));
    return false;
}

static bool hashes_take(struct upgrade *u)
{
    const char *all = job_text(u->offer, "all");

    u->all_n = strlen(all) / 2;
    return hex_decode(u->hash, HASH_BYTES, str_of(job_text(u->offer, "hash"))) &&
           u->all_n <= sizeof(u->all) && hex_decode(u->all, u->all_n, str_of(all));
}

/* False: it is not on the disk. */
static bool step_set(struct upgrade *u, enum step step, const char *why)
{
    u->step = step;
    (void)snprintf(u->why, sizeof(u->why), "%s", why);
    u->tell = true;
    bool kept = keep(u);
    log_event(why[0] ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, "upgrade",
              log_str("state", step_names[step]),
              log_str("version", job_text(u->offer, "version")), log_str("why", u->why));
    return kept;
}

static void fail(struct upgrade *u, const char *why)
{
    child_free(u->child);
    u->child = NULL;
    (void)step_set(u, STEP_FAILED, why);
    agent_event(u->agent, "agent_upgrade_failed", "error",
                json_pack("{s:s, s:s, s:s}", "version", job_text(u->offer, "version"),
                          "from", agent_version(), "why", u->why));
    agent_send(u->agent);
}

/* It could not be installed, and not be put back so far. */
static bool is_stuck(const struct upgrade *u)
{
    return u->step == STEP_INSTALLING && u->why[0];
}

/* --- an offer ------------------------------------------------------------------------------- */

static json_t *hex_text(struct str bytes)
{
    char *text = malloc(2 * bytes.n + 1);

    if (!text)
        return NULL;
    hex_encode(text, (const uint8_t *)bytes.p, bytes.n);
    json_t *j = json_string(text);
    free(text);
    return j;
}

static json_t *text_of(struct str s)
{
    return json_stringn(s.n > 0 ? s.p : "", s.n);
}

/* "Key: value", without what would be another line. */
static json_t *headers_of(const struct opamp_package *p)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < p->header_count; i++) {
        char line[OPAMP_KEY_MAX + OPAMP_TEXT_MAX + 4];
        const struct opamp_header *h = &p->header[i];

        (void)snprintf(line, sizeof(line), "%.*s: %.*s", (int)h->key.n, h->key.p,
                       (int)h->value.n, h->value.p);
        if (!strpbrk(line, "\r\n"))
            (void)json_array_append_new(list, json_string(line));
    }
    return list;
}

static bool is_order_back(const struct opamp_package *p)
{
    for (uint32_t i = 0; i < p->header_count; i++)
        if (str_is(p->header[i].key, OPAMP_ORDER_HEADER) &&
            str_is(p->header[i].value, OPAMP_ORDER_BACK))
            return true;
    return false;
}

static json_t *offer_json(const struct opamp_packages *set, const struct opamp_package *p)
{
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:s}", "version", text_of(p->version),
        "hash", hex_text(p->hash), "all", hex_text(set->hash), "url", text_of(p->url),
        "sha256", hex_text(p->content_hash), "signature", hex_text(p->signature),
        "headers", headers_of(p), "back", is_order_back(p), "from", agent_version());
}

/* Why it is refused at once; NULL: it is not. */
static const char *refusal(const struct upgrade *u, const struct opamp_package *p)
{
    const char *version = job_text(u->offer, "version");

    if (!u->agent->conf.agent.upgrade[0])
        return "packages are refused: [agent] upgrade in agent.conf is empty";
    if (p->addon || p->content_hash.n != HASH_BYTES || p->signature.n == 0 ||
        (!str_starts(p->url, STR("http://")) && !str_starts(p->url, STR("https://"))))
        return "the offer lacks an http(s) address, a SHA-256 or a signature";
    if (!package_version_ok(version))
        return "the offer has a version that no package can have";
    if (!is_order_back(p) && deb_version_compare(version, agent_version()) < 0)
        return "the version is lower than the one that runs, and this is no roll-back";
    return NULL;
}

static void accept(struct upgrade *u, const struct opamp_packages *set,
                   const struct opamp_package *p)
{
    json_t *offer = offer_json(set, p);
    uint32_t jitter;

    if (!offer)
        return; /* no memory: it is offered again */
    child_free(u->child);
    u->child = NULL;
    json_decref(u->offer);
    u->offer = offer;
    u->percent = u->rate = 0;
    if (!hashes_take(u))
        return;
    const char *why = refusal(u, p);
    if (why) {
        fail(u, why);
    } else if (strcmp(job_text(u->offer, "version"), agent_version()) == 0) {
        (void)step_set(u, STEP_INSTALLED, "");
    } else {
        /* Many were told at once: not all of them come at once. */
        tls_random(&jitter, sizeof(jitter));
        u->due_ms = u->agent->now_ms + jitter % (u->agent->spread_ms + 1u);
        (void)step_set(u, STEP_DOWNLOADING, "");
    }
}

void upgrade_offer(struct agent *a, const struct opamp_packages *set)
{
    struct upgrade *u = a->upgrade;
    const struct opamp_package *p = NULL;

    for (uint32_t i = 0; i < set->count; i++)
        if (str_is(set->at[i].name, NAME))
            p = &set->at[i];
    if (!p || upgrade_capabilities(a) == 0)
        return; /* nothing of ours; and we never remove ourselves */
    if (p->hash.n != HASH_BYTES || set->hash.n > sizeof(u->all)) {
        log_event(LOG_LEVEL_WARNING, "package_without_hash");
        return;
    }
    if (u->step != STEP_NONE && memcmp(u->hash, p->hash.p, HASH_BYTES) == 0)
        u->tell = true; /* the server did not know yet */
    else if (u->step != STEP_INSTALLING ||
             (is_stuck(u) && !str_is(p->version, agent_version()))) /* it may mend it */
        accept(u, set, p);
    /* else first things first.  How that ended is told, and then this is offered again; to
     * tell now would have it offered again now, for ever. */
}

/* --- the download --------------------------------------------------------------------------- */

static bool start_supervisor(struct upgrade *u);

static json_t *order_json(const struct upgrade *u)
{
    const struct conf_agent *conf = &u->agent->conf.agent;
    char package[PACKAGE_PATH], previous[PACKAGE_PATH], socket[CONF_PATH + 8];
    json_t *argv = json_array();

    package_file(u->folder, job_text(u->offer, "version"), package);
    package_file(u->folder, job_text(u->offer, "from"), previous);
    control_path_of(&u->agent->conf, socket, sizeof(socket));
    for (char **arg = u->argv; *arg; arg++)
        (void)json_array_append_new(argv, json_string(*arg));
    return json_pack("{s:s, s:s, s:s, s:O, s:O, s:O, s:s, s:s, s:i, s:i, s:I, s:o}",
                     "command", conf->upgrade, "package", package, "previous", previous,
                     "version", json_object_get(u->offer, "version"), "from",
                     json_object_get(u->offer, "from"), "hash",
                     json_object_get(u->offer, "hash"), "exe", u->exe, "socket", socket,
                     "confirm_s", (int)conf->upgrade_confirm_s, "pid", (int)getpid(),
                     "started", (json_int_t)supervise_started(getpid()), "argv", argv);
}

/* The order is there before the step is, and the step before anything is done. */
static void install(struct upgrade *u)
{
    char path[sizeof(u->folder) + 16];
    struct err_info info = { 0 };
    json_t *order = order_json(u);
    char *text = order ? json_dumps(order, JSON_COMPACT) : NULL;
    static const char *const stale[] = { "outcome", "confirmed" };

    for (size_t i = 0; i < LEN(stale); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", u->folder, stale[i]);
        (void)unlink(path);
    }
    (void)snprintf(path, sizeof(path), "%s/order", u->folder);
    enum err e = text ? file_store(path, str_of(text), NULL, &info) : ERR_MEMORY;
    free(text);
    json_decref(order);
    if (e != ERR_OK) {
        fail(u, info.what[0] ? info.what : err_name(e));
        return;
    }
    u->sent = false;
    if (!step_set(u, STEP_INSTALLING, "")) {
        fail(u, u->agent->trouble);
        return;
    }
    u->due_ms = u->agent->now_ms + LEAVE_MS;
    agent_send(u->agent);
}

static void on_fetch_message(void *arg, json_t *m, int fd)
{
    struct upgrade *u = arg;
    const char *kind = job_text(m, "t");

    if (fd >= 0)
        (void)close(fd);
    if (strcmp(kind, "progress") == 0) {
        u->percent = json_number_value(json_object_get(m, "percent"));
        u->rate = json_number_value(json_object_get(m, "rate"));
        if (u->agent->now_ms - u->told_ms < TELL_MS)
            return;
        u->told_ms = u->agent->now_ms;
        u->tell = true;
        agent_send(u->agent);
    } else if (strcmp(kind, "done") == 0) {
        char why[OPAMP_TEXT_MAX];

        (void)snprintf(why, sizeof(why), "%s", job_text(m, "error"));
        bool ok = json_is_true(json_object_get(m, "ok"));
        child_free(u->child);
        u->child = NULL;
        if (ok)
            install(u);
        else
            fail(u, why);
    }
}

static void on_fetch_ended(void *arg, int code)
{
    struct upgrade *u = arg;
    char why[100];

    (void)snprintf(why, sizeof(why), "the download ended with %d", code);
    fail(u, why);
}

static void download(struct upgrade *u)
{
    const struct conf_agent *conf = &u->agent->conf.agent;
    struct child_hooks hooks = { u, on_fetch_message, on_fetch_ended };
    struct err_info info = { 0 };
    json_t *job = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i}", "do", "fetch", "ca",
                            conf->ca, "folder", u->folder, "name", NAME, "from",
                            agent_version(), "max_mib", (int)conf->upgrade_max_mib);

    (void)json_object_update_missing(job, u->offer);
    enum err e = child_new(u->agent->event, "--scanner", &hooks, &u->child, &info);
    if (e == ERR_OK && child_send(u->child, job, -1))
        return;
    if (e != ERR_OK)
        json_decref(job);
    fail(u, info.what[0] ? info.what : "the download cannot be started");
}

/* --- the installation ------------------------------------------------------------------------ */

static bool start_supervisor(struct upgrade *u)
{
    struct err_info info = { 0 };

    u->sent = true;
    if (supervise_start(u->folder, &info) == ERR_OK)
        return true;
    fail(u, info.what);
    return false;
}

static void leave(struct upgrade *u)
{
    log_event(LOG_LEVEL_INFO, "upgrade_restart",
              log_str("version", job_text(u->offer, "version")));
    upgrade_next(u->exe, u->argv);
    agent_goodbye(u->agent);
    link_shut(u->agent->link);
    (void)sd_event_exit(u->agent->event, 0);
}

static json_t *outcome_of(const struct upgrade *u)
{
    return supervise_outcome(u->folder, job_text(u->offer, "hash"));
}

/* Told once.  The supervisor goes on trying; if it comes to an end, that is told, too. */
static void stuck(struct upgrade *u, const json_t *outcome)
{
    char why[OPAMP_TEXT_MAX];

    (void)snprintf(
        why, sizeof(why),
        "%s; %s could not be put back: %s; that is tried again: look at dpkg on "
        "the device, or start another rollout",
        job_text(outcome, "why"), job_text(u->offer, "from"),
        job_text(outcome, "trouble"));
    (void)step_set(u, STEP_INSTALLING, why);
    agent_event(u->agent, "agent_put_back_failed", "critical",
                json_pack("{s:s, s:s, s:s}", "version", job_text(u->offer, "version"),
                          "from", job_text(u->offer, "from"), "why", u->why));
    agent_send(u->agent);
}

/* What the supervisor is at; it is started again if it should be there and is not. */
static void installing(struct upgrade *u)
{
    json_t *outcome = outcome_of(u);
    const char *state = job_text(outcome, "state");
    bool is_new = strcmp(agent_version(), job_text(u->offer, "version")) == 0;

    if (strcmp(state, OUTCOME_FAILED) == 0 && !is_new)
        fail(u, job_text(outcome, "why"));
    else if (strcmp(state, OUTCOME_INSTALLED) == 0 && !is_new)
        leave(u);
    else if (job_text(outcome, "trouble")[0] && !is_stuck(u))
        stuck(u, outcome);
    else if (u->agent->now_ms >= u->due_ms && !supervise_runs(u->folder)) {
        u->due_ms = u->agent->now_ms + TELL_MS;
        (void)start_supervisor(u);
    }
    json_decref(outcome);
}

/* Older packages than those of now and before are not needed any more. */
static void confirm(struct upgrade *u)
{
    char path[sizeof(u->folder) + 16];
    struct err_info info = { 0 };
    json_t *j = json_pack("{s:O, s:O}", "version", json_object_get(u->offer, "version"),
                          "hash", json_object_get(u->offer, "hash"));
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

    (void)snprintf(path, sizeof(path), "%s/confirmed", u->folder);
    enum err e = text ? file_store(path, str_of(text), NULL, &info) : ERR_MEMORY;
    free(text);
    json_decref(j);
    if (e != ERR_OK) {
        agent_trouble(u->agent, info.what);
        return; /* with the next tick */
    }
    (void)step_set(u, STEP_INSTALLED, "");
    agent_event(u->agent, "agent_upgraded", "info",
                json_pack("{s:s, s:s}", "version", agent_version(), "from",
                          job_text(u->offer, "from")));
    package_keep_only(u->folder, agent_version(), job_text(u->offer, "from"));
}

void upgrade_greeted(struct agent *a)
{
    struct upgrade *u = a->upgrade;
    json_t *outcome;

    if (u->step != STEP_INSTALLING || !a->greeted ||
        strcmp(agent_version(), job_text(u->offer, "version")) != 0)
        return;
    outcome = outcome_of(u);
    const char *state = job_text(outcome, "state");
    if (strcmp(state, OUTCOME_INSTALLED) == 0 || strcmp(state, OUTCOME_CONFIRMED) == 0)
        confirm(u);
    json_decref(outcome);
}

void upgrade_tick(struct agent *a)
{
    struct upgrade *u = a->upgrade;

    if (u->step == STEP_DOWNLOADING && !u->child && a->now_ms >= u->due_ms)
        download(u);
    else if (u->step == STEP_INSTALLING) {
        upgrade_greeted(a);
        if (u->step == STEP_INSTALLING)
            installing(u);
    }
}

/* --- what is told --------------------------------------------------------------------------- */

uint64_t upgrade_capabilities(const struct agent *a)
{
    return redoubt_service_role_fd(a->service) >= 0
               ? 0
               : OPAMP_ACCEPTS_PACKAGES | OPAMP_REPORTS_PACKAGES;
}

bool upgrade_tells(const struct agent *a)
{
    return a->upgrade && a->upgrade->tell;
}

void upgrade_add(struct agent *a, struct opamp_agent *m)
{
    static const enum opamp_install words[] = {
        [STEP_NONE] = OPAMP_INSTALLED,        [STEP_DOWNLOADING] = OPAMP_DOWNLOADING,
        [STEP_INSTALLING] = OPAMP_INSTALLING, [STEP_INSTALLED] = OPAMP_INSTALLED,
        [STEP_FAILED] = OPAMP_INSTALL_FAILED,
    };
    struct upgrade *u = a->upgrade;

    u->tell = false;
    if (upgrade_capabilities(a) == 0)
        return;
    m->has_packages = true;
    m->packages.count = 1;
    struct opamp_package_status *p = &m->packages.at[0];
    *p = (struct opamp_package_status){ .name = STR(NAME),
                                        .has_version = str_of(agent_version()) };
    if (!u->offer)
        return;
    m->packages.hash = (struct str){ (const char *)u->all, u->all_n };
    p->status = is_stuck(u) ? OPAMP_INSTALL_FAILED : words[u->step];
    p->offered_version = str_of(job_text(u->offer, "version"));
    p->offered_hash = (struct str){ (const char *)u->hash, HASH_BYTES };
    if (u->step == STEP_INSTALLED)
        p->has_hash = p->offered_hash;
    p->error = str_of(u->why);
    p->percent = u->percent;
    p->bytes_per_s = u->rate;
}

void upgrade_json(const struct agent *a, struct text *t)
{
    const struct upgrade *u = a->upgrade;

    text_add(t, "\"upgrade\":{\"state\":\"%s\",\"percent\":%u,\"version\":",
             step_names[u->step], (unsigned)u->percent);
    quoted_json(t, str_of(job_text(u->offer, "version")));
    text_add(t, ",\"why\":");
    quoted_json(t, str_of(u->why));
    text_add(t, "},");
}

/* --- life --------------------------------------------------------------------------------------- */

/* It was confirmed too late for the supervisor, or another version was installed by hand. */
static void not_any_more(struct upgrade *u)
{
    json_t *outcome = outcome_of(u);
    bool failed = strcmp(job_text(outcome, "state"), OUTCOME_FAILED) == 0;

    (void)step_set(u, STEP_FAILED,
                   failed ? job_text(outcome, "why")
                          : "another version was installed meanwhile, not by the server");
    json_decref(outcome);
}

static void recall(struct upgrade *u)
{
    static char text[STATE_MAX];
    struct err_info info = { 0 };
    size_t n = 0;

    if (state_read(u->agent, STATE_FILE, text, sizeof(text), &n, &info) != ERR_OK)
        return;
    u->offer = json_loadb(text, n, 0, NULL);
    if (!json_is_object(u->offer) || !hashes_take(u) ||
        !package_version_ok(job_text(u->offer, "from"))) {
        log_event(LOG_LEVEL_ERROR, "upgrade_damaged");
        json_decref(u->offer);
        u->offer = NULL;
        return;
    }
    for (size_t i = 0; i < LEN(step_names); i++)
        if (strcmp(job_text(u->offer, "step"), step_names[i]) == 0)
            u->step = (enum step)i;
    (void)snprintf(u->why, sizeof(u->why), "%s", job_text(u->offer, "why"));
    /* The administrator has installed it meanwhile, by hand. */
    if (u->step == STEP_DOWNLOADING &&
        strcmp(agent_version(), job_text(u->offer, "version")) == 0)
        (void)step_set(u, STEP_INSTALLED, "");
    else if (u->step == STEP_INSTALLED &&
             strcmp(agent_version(), job_text(u->offer, "version")) != 0)
        not_any_more(u);
}

/* Another offer came to nothing while it was being put back: that goes on. */
static void go_on(const struct upgrade *u)
{
    json_t *outcome = supervise_outcome(u->folder, NULL);
    struct err_info info = { 0 };

    if (u->step != STEP_INSTALLING &&
        strcmp(job_text(outcome, "state"), OUTCOME_RETURNING) == 0 &&
        !supervise_runs(u->folder) && supervise_start(u->folder, &info) != ERR_OK)
        log_event(LOG_LEVEL_ERROR, "upgrade_not_put_back", log_str("why", info.what));
    json_decref(outcome);
}

enum err upgrade_start(struct agent *a, char **argv, struct err_info *info)
{
    struct upgrade *u = calloc(1, sizeof(*u));

    if (!u)
        return err_set(info, ERR_MEMORY, ENOMEM, "upgrade");
    a->upgrade = u;
    u->agent = a;
    u->argv = argv;
    (void)agent_version(); /* before anybody puts another one there */
    (void)snprintf(u->folder, sizeof(u->folder), "%s/package", a->conf.agent.state_dir);
    ssize_t n = readlink("/proc/self/exe", u->exe, sizeof(u->exe) - 1);
    if (n <= 0)
        return err_set(info, ERR_IO, errno, "/proc/self/exe");
    u->exe[n] = '\0';
    recall(u);
    go_on(u);
    return ERR_OK;
}

void upgrade_release(struct agent *a)
{
    struct upgrade *u = a->upgrade;

    if (!u)
        return;
    child_free(u->child);
    json_decref(u->offer);
    free(u);
    a->upgrade = NULL;
}
