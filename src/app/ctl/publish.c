#include "app/ctl/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sodium.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "app/ctl/manage.h"

enum {
    SHARE_MS = 30000, /* one exchange is a piece of 2 MiB here, over whatever line */
    TRIES = 20, /* connections that were lost one after the other, without progress */
    NAP_MS = 1000,
    REDRAW_MS = 200
};

static uint64_t now_ms(void)
{
    struct timespec t;

    CHECK(clock_gettime(CLOCK_BOOTTIME, &t) == 0);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* ---- interruption ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
    (void)sig;
    interrupted = 1;
}

bool publish_interrupted(void)
{
    return interrupted != 0;
}

/* The first one ends the transfer in order, the second one the program. */
static void catch_signals(void)
{
    const struct sigaction a = { .sa_handler = on_signal,
                                 .sa_flags = SA_RESTART | (int)SA_RESETHAND };

    CHECK(sigaction(SIGINT, &a, NULL) == 0);
    CHECK(sigaction(SIGTERM, &a, NULL) == 0);
}

/* ---- words ---- */

const char *publish_size(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
    double v = (double)bytes / 1024;
    size_t i = 0;

    if (bytes < 1024) {
        (void)snprintf(buf, size, "%llu B", (unsigned long long)bytes);
        return buf;
    }
    for (; v >= 1024 && i + 1 < LEN(units); i++)
        v /= 1024;
    (void)snprintf(buf, size, v < 10 ? "%.1f %s" : "%.0f %s", v, units[i]);
    return buf;
}

static int failed(struct ctl *c, enum err e, const struct err_info *info)
{
    const char *advice =
        e == ERR_FULL ? "Nothing was begun. Make room on the file server; redoubt store "
                        "collect removes what nothing refers to."
        : e == ERR_DENIED
            ? "The user of [share] credentials needs to write there: redoubt "
              "check tests it."
        : e == ERR_INVALID
            ? "Only plain files that do not change meanwhile are published."
        : e == ERR_CORRUPT ? "redoubt store verify reads all of the store."
                           : "redoubt check tests the share. Then run the same command "
                             "again: it goes on where it was.";

    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "store_failed",
                                           e == ERR_FULL
                                               ? "The data share has too little room"
                                               : "The data share did not take it",
                                           info->what, advice });
}

/* ---- progress ---- */

void progress_start(struct progress *p, const struct ctl *c, const char *name)
{
    *p = (struct progress){ .c = c, .name = name, .began_ms = now_ms() };
}

static void draw(struct progress *p, uint64_t done, uint64_t total, uint64_t now)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1], speed[32], left[32] = "";
    uint64_t spent = now - p->began_ms, moved = done - p->began_at;
    uint64_t rate = spent > 0 ? moved * 1000 / spent : 0;
    int full = total > 0 ? (int)(done * WIDTH / total) : WIDTH;

    memset(bar, ' ', WIDTH);
    memset(bar, '#', (size_t)full);
    bar[WIDTH] = '\0';
    if (rate > 0 && done < total)
        (void)ctl_duration((total - done) * 1000 / rate, left, sizeof(left));
    fputs("\r\033[K", stderr);
    (void)put_safe(stderr, p->name);
    fprintf(stderr, " [%s] %3d %%  %s/s  %s", bar,
            total > 0 ? (int)(done * 100 / total) : 100,
            publish_size(rate, speed, sizeof(speed)), left);
    p->drawn = true;
}

bool progress_show(void *progress, uint64_t done, uint64_t total)
{
    struct progress *p = progress;
    uint64_t now = now_ms();

    if (p->shown_ms == 0)
        p->began_at = done; /* what was there already is no speed */
    if (p->c->tty && !p->c->opt.json && now - p->shown_ms >= REDRAW_MS) {
        draw(p, done, total, now);
        p->shown_ms = now;
    }
    return !publish_interrupted();
}

void progress_end(struct progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
}

/* ---- the share ---- */

int publish_connect(struct publish *p)
{
    struct ctl *c = p->c;
    const char *share = c->conf.share.data;
    struct err_info info = { .what = "" };

    if (p->smb && !smb_is_lost(p->smb))
        return CTL_OK;
    smb_free(p->smb);
    p->smb = NULL;
    if (!share[0])
        return ctl_fail(c, CTL_FAILED,
                        &(struct ctl_problem){
                            "no_data_share", "There is no data share",
                            "[share] data is empty in the configuration.",
                            "Packages and signature databases need one: a share (or a "
                            "folder of one) beside the state share." });
    enum err e = ctl_share_connect_for(&c->conf, share, SHARE_MS, &p->smb, &info);
    if (e == ERR_OK)
        e = blob_share_prepare(p->smb, &info);
    if (e == ERR_OK)
        return CTL_OK;
    smb_free(p->smb);
    p->smb = NULL;
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "share_unreachable",
                                           "The data share cannot be used", info.what,
                                           "redoubt check names the step that fails." });
}

int publish_open(struct publish *p, struct ctl *c)
{
    int r = ctl_load_conf(c);

    *p = (struct publish){ .c = c };
    if (r == CTL_OK)
        catch_signals();
    return r == CTL_OK ? publish_connect(p) : r;
}

void publish_close(struct publish *p)
{
    smb_free(p->smb);
    p->smb = NULL;
}

/* Quietly, while the server may be restarting. */
static bool connect_again(struct publish *p, struct err_info *info)
{
    smb_free(p->smb);
    p->smb = NULL;
    return ctl_share_connect_for(&p->c->conf, p->c->conf.share.data, SHARE_MS, &p->smb,
                                 info) == ERR_OK;
}

static void nap(void)
{
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, /* a signal only shortens it */
                          &(struct timespec){ .tv_sec = NAP_MS / 1000 }, NULL);
}

static enum err put(struct publish *p, int fd, const char *name, struct blob_put *out,
                    struct err_info *info)
{
    struct progress progress;
    const struct blob_watch w = { .progress = progress_show, .arg = &progress };
    enum err e = ERR_IO;

    progress_start(&progress, p->c, name);
    for (int i = 0; i < TRIES && !publish_interrupted(); i++) {
        if (p->smb)
            e = blob_put(p->smb, fd, &w, out, info);
        if (e == ERR_OK || (p->smb && !smb_is_lost(p->smb)))
            break;
        nap();
        if (!connect_again(p, info))
            e = ERR_IO;
    }
    progress_end(&progress);
    return e;
}

static int put_fd(struct publish *p, int fd, const char *name, struct blob *out)
{
    struct err_info info = { .what = "" };
    struct blob_put done;
    enum err e = put(p, fd, name, &done, &info);

    if (e == ERR_OK) {
        *out = done.blob;
        return CTL_OK;
    }
    if (publish_interrupted())
        return ctl_fail(p->c, CTL_FAILED,
                        &(struct ctl_problem){ "interrupted", "It was interrupted", NULL,
                                               "Run the same command again: it goes on "
                                               "where it was." });
    return failed(p->c, e, &info);
}

static int open_file(struct ctl *c, const char *path, int *out)
{
    char text[400];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block */

    if (fd >= 0) {
        *out = fd;
        return CTL_OK;
    }
    (void)snprintf(text, sizeof(text), "%.250s: %s", path, strerror(errno));
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "file_unreadable", "The file cannot be read",
                                           text, "Is the name right?" });
}

int publish_file(struct publish *p, const char *path, const char *name, struct blob *out)
{
    int fd = -1, r = open_file(p->c, path, &fd);

    if (r == CTL_OK)
        r = put_fd(p, fd, name, out);
    if (fd >= 0)
        (void)close(fd); /* read only */
    return r;
}

int publish_bytes(struct publish *p, struct str bytes, const char *name, struct blob *out)
{
    int fd = memfd_create("redoubt", MFD_CLOEXEC);
    int r;

    if (fd >= 0 && write(fd, bytes.p, bytes.n) == (ssize_t)bytes.n)
        r = put_fd(p, fd, name, out);
    else
        r = ctl_fail(p->c, CTL_FAILED,
                     &(struct ctl_problem){ "no_memory", "There is too little memory",
                                            NULL, "Try again." });
    if (fd >= 0)
        (void)close(fd); /* it is only in memory */
    return r;
}

int publish_settle(struct publish *p, const char *path, struct str bytes,
                   const struct blob *b)
{
    struct err_info info = { .what = "" };
    struct blob again;
    uint64_t size = 0;
    int r = publish_connect(p);

    if (r != CTL_OK)
        return r;
    enum err e = blob_share_size(p->smb, &b->id, &size, &info);
    for (int i = 0; i < TRIES && e && (!p->smb || smb_is_lost(p->smb)); i++) {
        nap();
        e = connect_again(p, &info) ? blob_share_size(p->smb, &b->id, &size, &info)
                                    : ERR_IO;
    }
    if (e == ERR_OK)
        return CTL_OK;
    if (e != ERR_NOT_FOUND)
        return failed(p->c, e, &info);
    r = path ? publish_file(p, path, path, &again)
             : publish_bytes(p, bytes, "file", &again);
    if (r == CTL_OK && strcmp(again.id.hex, b->id.hex) != 0)
        r = failed(p->c, ERR_INVALID,
                   &(struct err_info){ .what = "The file has changed meanwhile." });
    return r;
}

/* ---- signatures ---- */

static int trust_file(struct ctl *c, const char *name, char *out, size_t size, size_t *n)
{
    char path[CONF_PATH + 16], text[CONF_PATH + 80];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/%s", c->conf.trust.folder, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, out, size - 1);
    int number = errno;
    if (fd >= 0)
        (void)close(fd); /* read only */
    if (got >= 0) {
        out[got] = '\0';
        *n = (size_t)got;
        return CTL_OK;
    }
    (void)snprintf(text, sizeof(text), "%s: %s", path, strerror(number));
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){
                        "secret_failed", "The secrets of the cluster are not usable",
                        text,
                        "Run it as root on a node. redoubt secret fetch brings what is "
                        "missing, and makes the key of packages where there is none." });
}

static int signature_failed(struct ctl *c, const struct err_info *info,
                            const char *advice)
{
    return ctl_fail(c, CTL_FAILED,
                    &(struct ctl_problem){ "signature_wrong", "The signature is not good",
                                           info->what, advice });
}

static int verify(struct ctl *c, const struct blob_id *id, const struct ca_signature *s,
                  const char *advice)
{
    static char ca[CA_PEM_MAX];
    uint8_t hash[CA_HASH_BYTES];
    struct err_info info = { .what = "" };
    size_t n = 0;
    int r = trust_file(c, "ca.pem", ca, sizeof(ca), &n);

    blob_id_hash(id, hash);
    if (r == CTL_OK &&
        ca_verify_digest((struct str){ ca, n }, hash,
                         (struct str){ (const char *)s->bytes, s->n }, &info) != ERR_OK)
        r = signature_failed(c, &info, advice);
    return r;
}

int publish_sign(struct ctl *c, const struct blob_id *id, struct ca_signature *out)
{
    static const char advice[] =
        "The key is not of this authority: redoubt secret fetch.";
    static char signer[CA_PEM_MAX];
    uint8_t hash[CA_HASH_BYTES];
    struct err_info info = { .what = "" };
    size_t n = 0;
    int r = trust_file(c, "package.key", signer, sizeof(signer), &n);

    blob_id_hash(id, hash);
    if (r == CTL_OK &&
        ca_sign_digest((struct str){ signer, n }, hash, out, &info) != ERR_OK)
        r = signature_failed(c, &info, advice);
    explicit_bzero(signer, sizeof(signer));
    return r == CTL_OK ? verify(c, id, out, advice) : r;
}

int publish_take_signature(struct ctl *c, const char *file, const struct blob_id *id,
                           struct ca_signature *out)
{
    struct err_info info = { .what = "" };
    int fd = -1, r = open_file(c, file, &fd);

    if (r != CTL_OK)
        return r;
    ssize_t n = read(fd, out->bytes, sizeof(out->bytes));
    if (n < 0)
        (void)err_set(&info, ERR_IO, errno, "read %s", file);
    (void)close(fd); /* read only */
    if (n < 0)
        return signature_failed(c, &info, "Is it a file?");
    out->n = (size_t)n;
    return verify(c, id, out,
                  "It must be made for these very bytes by the key of this cluster; "
                  "without --signature redoubt signs by itself.");
}

char *publish_base64(const struct ca_signature *s)
{
    size_t size = sodium_base64_encoded_len(s->n, sodium_base64_VARIANT_ORIGINAL);
    char *text = malloc(size);

    return text ? sodium_bin2base64(text, size, s->bytes, s->n,
                                    sodium_base64_VARIANT_ORIGINAL)
                : NULL;
}
