/* The licences: the file of this node, and those of the DBMS. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

#include "app/activation/activation.h"
#include "sys/log/log.h"

/* --- files ------------------------------------------------------------------------------ */

static enum err read_small(const char *path, char *buf, size_t size, size_t *n,
                           struct stat *st, struct err_info *info)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    enum err e = ERR_OK;

    if (fd < 0)
        return err_set(info, errno == ENOENT ? ERR_NOT_FOUND : ERR_DENIED, errno, "%s",
                       path);
    ssize_t got = fstat(fd, st) == 0 && S_ISREG(st->st_mode) ? read(fd, buf, size) : -1;
    if (got < 0)
        e = err_set(info, ERR_IO, errno, "read %s", path);
    else
        *n = (size_t)got;
    close(fd);
    return e;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* The seed of the lease key: of the secrets that the group may read, or of an own file. */
static enum err load_lease_key(struct activation *a, struct err_info *info)
{
    const char *path = a->conf.activation.key;
    char hex[2 * LICENCE_KEY_BYTES + 2];
    uint8_t seed[LICENCE_KEY_BYTES];
    struct stat st = { 0 };
    size_t n = 0;
    enum err e = read_small(path, hex, sizeof(hex), &n, &st, info);

    if (e != ERR_OK)
        return e;
    if (st.st_mode & S_IRWXO)
        return err_set(info, ERR_DENIED, 0, "%s can be read by everybody: chmod o= it",
                       path);
    if (n == sizeof(hex) - 1 && hex[n - 1] == '\n')
        n--;
    if (!hex_decode(seed, sizeof(seed), (struct str){ hex, n }))
        return err_set(info, ERR_CONFIG, 0, "%s is not a key (64 hex digits)", path);
    lease_signer_init(&a->signer, seed);
    explicit_bzero(seed, sizeof(seed));
    explicit_bzero(hex, sizeof(hex));
    return ERR_OK;
}

static enum err load_keys(struct activation *a, struct err_info *info)
{
    enum err e = licence_anchor_load(a->conf.activation.anchor, a->anchor, info);

    if (e == ERR_OK)
        e = load_lease_key(a, info);
    a->keys_loaded = e == ERR_OK;
    if (e == ERR_OK)
        a->sync_due = true; /* nothing could be verified before */
    return e;
}

char *text_copy(struct str text)
{
    char *copy = malloc(text.n + 1);

    if (copy) {
        memcpy(copy, text.p, text.n);
        copy[text.n] = '\0';
    }
    return copy;
}

static void take_file(struct activation *a, struct str text, struct err_info *info)
{
    enum err e = licence_open(&a->file.licence, text, a->anchor, info);

    a->file_state = e == ERR_OK ? REFUSED_NOT : REFUSED_BAD_LICENCE;
    a->file_text = e == ERR_OK ? text_copy(text) : NULL;
    a->file.until = a->file.licence.expires;
}

void licences_file(struct activation *a)
{
    static char buf[LICENCE_BYTES_MAX + 1];
    const char *path = a->conf.activation.licence;
    struct err_info info = { .what = "" };
    struct stat st = { 0 };
    size_t n = 0;

    if (a->file_state == REFUSED_NOT && stat(path, &st) == 0 &&
        same_file(&st, &a->file_stat))
        return;
    enum refusal before = a->file_state;
    enum err e = a->keys_loaded ? ERR_OK : load_keys(a, &info);
    if (e == ERR_OK)
        e = read_small(path, buf, sizeof(buf), &n, &a->file_stat, &info);
    free(a->file_text);
    a->file_text = NULL;
    if (e != ERR_OK)
        a->file_state = e == ERR_NOT_FOUND ? REFUSED_NO_LICENCE : REFUSED_BAD_LICENCE;
    else
        take_file(a, (struct str){ buf, n }, &info);
    (void)snprintf(a->file_why, sizeof(a->file_why), "%s", info.what);
    if (a->file_state == REFUSED_NOT || before != a->file_state)
        a->sync_due = true;
    if (a->file_state == REFUSED_NOT)
        log_event(LOG_LEVEL_INFO, "licence_read",
                  log_str("customer", a->file.licence.customer),
                  log_u64("seats", a->file.licence.seats));
    else if (before != a->file_state)
        log_event(LOG_LEVEL_WARNING, "licence_unusable", log_str("path", path),
                  log_str("why", a->file_why));
}

/* --- those of the DBMS ------------------------------------------------------------------ */

int64_t licences_now(const struct activation *a)
{
    if (a->now == 0)
        return (int64_t)time(NULL);
    return a->now + (int64_t)((boot_ms() - a->now_ms) / 1000u);
}

enum { COL_T, COL_SUSPECT, COL_SOURCE, COL_STATE, COL_ENVELOPE, COL_ANSWER, COL_USED };

static const struct {
    const char *word;
    enum refusal r;
} states[] = {
    { "valid", REFUSED_NOT },
    { "grace", REFUSED_NOT }, /* right behind it: count() */
    { "pending", REFUSED_PENDING },
    { "refused", REFUSED_REFUSED },
    { "other_cluster", REFUSED_OTHER_CLUSTER },
    { "not_yet_valid", REFUSED_NOT_YET_VALID },
    { "expired", REFUSED_EXPIRED },
    { "stale", REFUSED_STALE },
    { "bad_licence", REFUSED_BAD_LICENCE }, /* what the DBMS does not know: verify() */
};

static enum refusal state_of(const char *word)
{
    for (size_t i = 0; i < LEN(states); i++)
        if (strcmp(states[i].word, word) == 0)
            return states[i].r;
    return REFUSED_BAD_LICENCE;
}

/* Verified anew: who can write to the DBMS cannot make seats. */
static bool verify(struct activation *a, const PGresult *r, int row, struct held *h)
{
    struct err_info info = { .what = "" };
    struct licence_answer answer = { 0 };
    enum err e = ERR_OK;

    if (!PQgetisnull(r, row, COL_ENVELOPE)) {
        e = licence_open(&h->licence, str_of(PQgetvalue(r, row, COL_ENVELOPE)), a->anchor,
                         &info);
        h->until = h->licence.expires;
    }
    if (e == ERR_OK && strcmp(PQgetvalue(r, row, COL_SOURCE), "code") == 0) {
        enum err said = licence_answer_open(
            &answer, str_of(PQgetvalue(r, row, COL_ANSWER)), a->anchor, &info);
        if (said == ERR_OK) {
            h->answered = answer.at;
            h->answer_by = answer.stale_until;
        }
        if (said == ERR_OK && answer.stale_until < h->until)
            h->until = answer.stale_until;
        if (h->state == REFUSED_NOT) /* else it need not have one */
            e = said;
    }
    if (e == ERR_OK)
        return true;
    h->state = REFUSED_BAD_LICENCE;
    log_event(LOG_LEVEL_ERROR, "licence_unusable", log_str("path", "the database"),
              log_str("why", info.what));
    return false;
}

static void take_row(struct activation *a, const PGresult *r, int row)
{
    struct held *h = &a->held[a->held_count];

    if (strcmp(PQgetvalue(r, row, COL_SOURCE), "file") == 0) {
        a->file.used = (uint64_t)cell(r, row, COL_USED);
        return; /* the file is at hand */
    }
    *h = (struct held){ .state = state_of(PQgetvalue(r, row, COL_STATE)),
                        .grace = strcmp(PQgetvalue(r, row, COL_STATE), "grace") == 0,
                        .used = (uint64_t)cell(r, row, COL_USED) };
    (void)verify(a, r, row, h); /* the state says it */
    a->held_count++;
}

static void on_synced(void *ctx, enum err err, const PGresult *r,
                      const struct err_info *why)
{
    struct activation *a = ctx;

    if (err != ERR_OK) {
        a->sync_due = true;
        log_event(LOG_LEVEL_WARNING, "licences_unread", log_str("why", why->what));
        if (err == ERR_STALE) /* the other node is active, whatever this one was told */
            jobs_sweep(a, true, REFUSED_NOT_ACTIVE);
        return; /* the sweep tries again */
    }
    a->synced = true;
    a->held_count = 0;
    for (int row = 0; row < PQntuples(r) && a->held_count < HELD_MAX; row++)
        if (!PQgetisnull(r, row, COL_SOURCE))
            take_row(a, r, row);
    if (PQntuples(r) > 0) {
        bool suspect = strcmp(PQgetvalue(r, 0, COL_SUSPECT), "t") == 0;
        if (suspect != a->clock_suspect)
            log_event(suspect ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, "licence_clock",
                      log_str("state", suspect ? "suspect" : "ok"));
        a->clock_suspect = suspect;
        a->now = cell(r, 0, COL_T);
        a->now_ms = boot_ms();
    }
    pump(a);
}

void licences_sync(struct activation *a)
{
    char now[32];
    const char *values[] = { now, a->conf.cluster.name,
                             a->keys_loaded ? a->signer.public_hex : "", a->file_text };

    a->sync_due = false;
    a->synced_ms = boot_ms();
    a->sync_round++;
    licence_time_format(now, (int64_t)time(NULL));
    dbc_query(a->dbc, QUERY_MS,
              "SELECT t, suspect, source, state, envelope, answer, used"
              " FROM redoubt.licence_sync($1::timestamptz, $2, $3, $4)",
              LEN(values), values, on_synced, a);
}

/* --- what can be used --------------------------------------------------------------------- */

static bool holds(const struct held *h, int64_t now)
{
    return h->state == REFUSED_NOT && now >= h->licence.not_before && now < h->until;
}

size_t licences_usable(struct activation *a, const struct held *out[HELD_MAX],
                       enum refusal *why)
{
    int64_t now = licences_now(a);
    size_t n = 0;

    *why = REFUSED_NOT;
    for (uint32_t i = 0; i < a->held_count; i++) {
        if (holds(&a->held[i], now))
            out[n++] = &a->held[i];
        else if (*why == REFUSED_NOT)
            *why = a->held[i].state == REFUSED_NOT ? REFUSED_EXPIRED : a->held[i].state;
    }
    if (n > 0)
        return n;
    enum refusal file = a->file_state;
    if (file == REFUSED_NOT)
        file = licence_refuses(&a->file.licence, a->conf.cluster.name, now);
    if (file == REFUSED_NOT) {
        out[0] = &a->file;
        return 1;
    }
    if (*why == REFUSED_NOT || file != REFUSED_NO_LICENCE)
        *why = file;
    return 0;
}

uint64_t licences_limit(const struct activation *a, const struct held *h)
{
    return h->licence.seats +
           (uint64_t)h->licence.seats * a->conf.activation.overdraft_percent / 100u;
}

const char *licences_word(struct activation *a)
{
    const struct held *usable[HELD_MAX];
    enum refusal why;
    size_t n = licences_usable(a, usable, &why);

    for (size_t i = 0; i < n; i++)
        if (!usable[i]->grace)
            return "ok";
    return n > 0 ? "grace" : refusal_words(why)->id;
}

/* --- what is told of them ----------------------------------------------------------------- */

void licences_seats(struct activation *a, uint64_t *used, uint64_t *all)
{
    const struct held *usable[HELD_MAX];
    enum refusal why;
    size_t n = licences_usable(a, usable, &why);

    *used = *all = 0;
    for (size_t i = 0; i < n; i++) {
        *used += usable[i]->used;
        *all += usable[i]->licence.seats;
    }
}

/* May have changed since it was read: the DBMS can be away. */
static enum refusal state_now(const struct held *h, int64_t now)
{
    if (h->state != REFUSED_NOT || holds(h, now))
        return h->state;
    return now < h->licence.expires ? REFUSED_STALE : REFUSED_EXPIRED;
}

static void count(uint32_t counts[LEN(states)], enum refusal state, bool grace)
{
    size_t i = 0;

    while (i + 1 < LEN(states) && states[i].r != state)
        i++;
    counts[state == REFUSED_NOT && grace ? i + 1 : i]++;
}

/* The file, if none of the DBMS is the same licence. */
static void count_file(const struct activation *a, uint32_t counts[LEN(states)])
{
    enum refusal r = a->file_state;

    if (r == REFUSED_NO_LICENCE)
        return;
    for (uint32_t i = 0; r == REFUSED_NOT && i < a->held_count; i++)
        if (uuid_eq(&a->held[i].licence.id, &a->file.licence.id))
            return;
    if (r == REFUSED_NOT)
        r = licence_refuses(&a->file.licence, a->conf.cluster.name, licences_now(a));
    count(counts, r, false);
}

static void add_states(const struct activation *a, struct text *t)
{
    uint32_t counts[LEN(states)] = { 0 };

    for (uint32_t i = 0; i < a->held_count; i++)
        count(counts, state_now(&a->held[i], licences_now(a)), a->held[i].grace);
    count_file(a, counts);
    for (size_t i = 0; i < LEN(states); i++)
        text_add(t, "licences:%s=%u ", states[i].word, counts[i]);
}

/* time, where it is not 0, if it is the earlier one. */
static void earlier(int64_t *first, int64_t time)
{
    if (time != 0 && (*first == 0 || time < *first))
        *first = time;
}

void licences_metrics(struct activation *a, struct text *t)
{
    const struct held *usable[HELD_MAX];
    const int64_t now = licences_now(a);
    int64_t ends = 0, answer_by = 0, answered = 0;
    uint64_t used, all;
    enum refusal why;

    if (!a->synced)
        return;
    licences_seats(a, &used, &all);
    add_states(a, t);
    text_add(t, "licence_seats=%" PRIu64 " licence_seats_taken=%" PRIu64, all, used);
    for (size_t i = 0, n = licences_usable(a, usable, &why); i < n; i++) {
        earlier(&ends, usable[i]->licence.expires);
        earlier(&answer_by, usable[i]->answer_by);
    }
    for (uint32_t i = 0; i < a->held_count; i++)
        if (a->held[i].answered > answered)
            answered = a->held[i].answered;
    if (ends != 0)
        text_add(t, " licence_remaining_seconds=%" PRId64, ends - now);
    if (answer_by != 0)
        text_add(t, " licence_answer_remaining_seconds=%" PRId64, answer_by - now);
    if (answered != 0)
        text_add(t, " licence_answer_timestamp_seconds=%" PRId64, answered);
}
