#include "app/ctl/report.h"
#include "base/mono.h"
#include "wire/record.h"

enum {
    ROUNDS = 300,
    LATENCY_MS_MAX = 5000, /* then fewer rounds will do */
    CHUNK_BYTES = 1024 * 1024,
    BANDWIDTH_MS = 1500, /* in each direction */
    CHUNKS_MAX = 256,
};

static struct mono now(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    return (struct mono){ (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u };
}

static int by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

struct latency {
    uint32_t count, us[ROUNDS];
};

static uint32_t percentile(const struct latency *l, uint32_t percent)
{
    uint32_t at = l->count * percent / 100;

    return l->us[at < l->count ? at : l->count - 1];
}

/* What a renewal does: rewrite the record, then look for the next one. */
static enum err measure(struct report *r, struct smb *s, const char *folder,
                        struct latency *l, struct err_info *info)
{
    char name[SMB_NAME_BYTES], next[SMB_NAME_BYTES];
    char body[RECORD_LEASE_BYTES];
    struct mono begin = now();
    bool there;

    memset(body, ' ', sizeof(body));
    (void)snprintf(name, sizeof(name), "%s/lease", folder);
    (void)snprintf(next, sizeof(next), "%s/next", folder);
    enum err e = smb_create(s, name, (struct str){ body, sizeof(body) }, info);

    while (e == ERR_OK && l->count < ROUNDS &&
           mono_since_ms(now(), begin) < LATENCY_MS_MAX) {
        struct mono t = now();

        e = smb_rewrite(s, name, (struct str){ body, sizeof(body) }, info);
        if (e == ERR_OK)
            e = smb_exists(s, next, &there, info);
        l->us[l->count++] = (uint32_t)(now().us - t.us);
        report_progress(r, "latency  ", l->count, ROUNDS);
    }
    report_progress(r, "latency  ", ROUNDS, ROUNDS);
    qsort(l->us, l->count, sizeof(l->us[0]), by_size);
    return e;
}

void check_latency(struct report *r, struct smb *s, const char *folder)
{
    const struct conf_cluster *c = &r->c->conf.cluster;
    static struct latency l;
    struct err_info info = { .what = "" };
    enum report_grade grade = REPORT_OK;
    const char *advice = NULL;

    l = (struct latency){ .count = 0 };
    if (measure(r, s, folder, &l, &info) != ERR_OK || l.count == 0) {
        report_add(r, REPORT_FAIL, "share.latency",
                   "The share must take small writes all the time.", "%s", info.what);
        return;
    }
    uint32_t p99 = percentile(&l, 99), worst = l.us[l.count - 1];

    report_add(r, REPORT_OK, "share.latency", NULL,
               "a renewal takes %.1f ms (median), %.1f ms (99 of 100), %.1f ms at most, "
               "in %u rounds",
               percentile(&l, 50) / 1e3, p99 / 1e3, worst / 1e3, l.count);
    if (p99 > c->renew_ms * 1000 || worst > c->share_timeout_ms * 1000) {
        grade = REPORT_FAIL;
        advice = "With this file server the cluster would switch for nothing. Take a "
                 "slower profile, or a faster file server or network.";
    } else if (p99 > c->renew_ms * 500) {
        grade = REPORT_WARN;
        advice = "There is little reserve for a busy hour: consider a slower profile.";
    }
    report_add(r, grade, "share.profile", advice,
               "profile %s renews every %u ms and bears a stall of %u ms",
               conf_profile_name(c->profile), c->renew_ms,
               c->hold_ms - c->demote_before_ms - c->renew_ms);
}

/* Bytes a second in one direction, or 0 and info. */
static double direction(struct report *r, struct smb *s, const char *folder, bool write,
                        uint32_t *chunks, struct err_info *info)
{
    static char chunk[CHUNK_BYTES + 1];
    struct mono begin = now();
    char name[SMB_NAME_BYTES];
    enum err e = ERR_OK;
    uint32_t i = 0, ms = 0;
    size_t n;

    for (size_t k = 0; k < CHUNK_BYTES; k++) /* nothing that could be compressed */
        chunk[k] = (char)(k * 2654435761u >> 13);
    while (e == ERR_OK && ms < BANDWIDTH_MS && i < CHUNKS_MAX) {
        (void)snprintf(name, sizeof(name), "%s/chunk-%u", folder,
                       write ? i % 16 : i % *chunks);
        e = write ? smb_put(s, name, (struct str){ chunk, CHUNK_BYTES }, info)
                  : smb_read(s, name, chunk, sizeof(chunk), &n, info);
        i += e == ERR_OK;
        ms = mono_since_ms(now(), begin);
        report_progress(r, write ? "writing  " : "reading  ", ms, BANDWIDTH_MS);
    }
    report_progress(r, "", 1, 1);
    if (write)
        *chunks = i < 16 ? i : 16;
    if (e != ERR_OK)
        return 0;
    return (double)i * CHUNK_BYTES * 1e6 / (double)(now().us - begin.us);
}

void check_bandwidth(struct report *r, struct smb *s, const char *name,
                     const char *folder)
{
    struct err_info info = { .what = "" };
    uint32_t chunks = 0;
    double up = direction(r, s, folder, true, &chunks, &info);
    double down = up > 0 ? direction(r, s, folder, false, &chunks, &info) : 0;

    if (up <= 0 || down <= 0)
        report_add(r, REPORT_FAIL, name, "Is there room, and may the account write?",
                   "%s", info.what);
    else
        report_add(
            r, up < 5e6 || down < 5e6 ? REPORT_WARN : REPORT_OK, name,
            up < 5e6 || down < 5e6
                ? "Packages and backups will take long. Look at the network to the "
                  "file server."
                : NULL,
            "%.0f MB/s writing, %.0f MB/s reading", up / 1e6, down / 1e6);
}
