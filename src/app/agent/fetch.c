/*
 * fetch: the worker's job that brings a package of the agent here: downloaded, verified,
 * looked into; and sees to it that there is a way back.
 *
 * The folder holds VERSION.deb of what was installed last and before, SHA256.part while one is
 * on its way.  A file gets its name only when it is what the server offered.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/agent/files.h"
#include "app/agent/package.h"
#include "app/agent/worker.h"
#include "sys/ca/ca_sign.h"
#include "sys/http/http_fetch.h"

enum {
    STALL_S = 30,
    GIVE_UP_S = 900, /* without one byte more */
    RETRY_MS = 500,
    RETRY_MAX_MS = 30000,
    SAY_MS = 1000,
    HEADERS_MAX = 8,
    PEM_BYTES = 64 * 1024,
    SIGNATURE_BYTES = 8192
};

struct fetcher {
    struct worker *w;
    const json_t *job;
    char part[PACKAGE_PATH], file[PACKAGE_PATH];
    const char *headers[HEADERS_MAX + 1];
    uint64_t have, began_us, said_us, moved_us;
};

static void say_progress(struct fetcher *f, uint64_t have, uint64_t total)
{
    uint64_t now = worker_now_us(), passed = now - f->began_us;

    if (now - f->said_us < SAY_MS * 1000u)
        return;
    f->said_us = now;
    worker_tell(json_pack("{s:s, s:f, s:f}", "t", "progress", "percent",
                          total ? (double)have * 100.0 / (double)total : 0.0, "rate",
                          passed ? (double)have * 1e6 / (double)passed : 0.0));
}

static bool on_progress(void *arg, uint64_t have, uint64_t total)
{
    struct fetcher *f = arg;

    if (have != f->have)
        f->moved_us = worker_now_us();
    f->have = have;
    say_progress(f, have, total);
    worker_listen(f->w, 0);
    return !f->w->cancelled;
}

/* Again and again, as long as something comes. */
static enum err download(struct fetcher *f, int fd, struct err_info *info)
{
    const struct http_fetch call = {
        .url = job_text(f->job, "url"),
        .ca_file = job_text(f->job, "ca"),
        .headers = f->headers,
        .max_bytes = (uint64_t)job_number(f->job, "max_mib") << 20,
        .stall_s = STALL_S,
        .progress = on_progress,
        .arg = f,
    };
    uint32_t wait_ms = RETRY_MS;

    f->began_us = f->moved_us = worker_now_us();
    for (;;) {
        uint64_t before = f->have;
        enum err e = http_fetch(&call, fd, info);

        if (f->w->cancelled)
            return err_set(info, ERR_CLOSED, 0, "the download was cancelled");
        if (e == ERR_OK && fsync(fd) != 0)
            return err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "%s",
                           f->part);
        bool again = e == ERR_CLOSED || e == ERR_TIMEOUT || e == ERR_STATE;
        if (!again || worker_now_us() - f->moved_us > GIVE_UP_S * 1000000ull)
            return e;
        wait_ms = f->have != before         ? RETRY_MS
                  : wait_ms >= RETRY_MAX_MS ? RETRY_MAX_MS
                                            : 2 * wait_ms;
        worker_listen(f->w, wait_ms);
    }
}

static enum err digest_of(int fd, uint8_t out[crypto_hash_sha256_BYTES],
                          struct err_info *info)
{
    static uint8_t buf[256 * 1024];
    crypto_hash_sha256_state state;
    off_t at = 0;
    ssize_t n;

    (void)crypto_hash_sha256_init(&state);
    while ((n = pread(fd, buf, sizeof(buf), at)) > 0) {
        (void)crypto_hash_sha256_update(&state, buf, (size_t)n);
        at += n;
    }
    if (n < 0)
        return err_set(info, ERR_IO, errno, "read the package");
    (void)crypto_hash_sha256_final(&state, out);
    return ERR_OK;
}

/* ERR_CORRUPT: it is not what was offered. */
static enum err check_digest(const struct fetcher *f, int fd, uint8_t digest[32],
                             struct err_info *info)
{
    uint8_t wanted[crypto_hash_sha256_BYTES];
    enum err e = digest_of(fd, digest, info);

    if (e != ERR_OK)
        return e;
    if (!hex_decode(wanted, sizeof(wanted), str_of(job_text(f->job, "sha256"))) ||
        memcmp(wanted, digest, sizeof(wanted)) != 0)
        return err_set(
            info, ERR_CORRUPT, 0,
            "the file is not the one that was offered: its SHA-256 is another");
    return ERR_OK;
}

static enum err check_signature(const struct fetcher *f, const uint8_t digest[32],
                                struct err_info *info)
{
    static char pem[PEM_BYTES];
    static uint8_t signature[SIGNATURE_BYTES];
    const char *hex = job_text(f->job, "signature");
    size_t n = strlen(hex) / 2, pem_n;
    enum err e = file_load(job_text(f->job, "ca"), pem, sizeof(pem), &pem_n, info);

    if (e != ERR_OK)
        return e;
    if (n > sizeof(signature) || !hex_decode(signature, n, str_of(hex)))
        return err_set(info, ERR_CORRUPT, 0, "the signature is not readable");
    return ca_verify_digest((struct str){ pem, pem_n }, digest,
                            (struct str){ (const char *)signature, n }, info);
}

/* Of a download that was interrupted the first bytes may be another file's: once more, then. */
static enum err obtain(struct fetcher *f, int fd, struct err_info *info)
{
    uint8_t digest[32];
    struct stat st;
    enum err e = fstat(fd, &st) == 0 ? ERR_OK : ERR_IO;
    bool resumed = st.st_size > 0;

    for (int attempt = 0; e == ERR_OK; attempt++) {
        e = download(f, fd, info);
        if (e == ERR_OK)
            e = check_digest(f, fd, digest, info);
        if (e != ERR_CORRUPT || !resumed || attempt > 0)
            break;
        e = ftruncate(fd, 0) == 0 ? ERR_OK : err_set(info, ERR_IO, errno, "%s", f->part);
    }
    return e == ERR_OK ? check_signature(f, digest, info) : e;
}

/* What an earlier offer left behind. */
static void sweep(const struct fetcher *f, const char *folder)
{
    const char *mine = strrchr(f->part, '/') + 1;
    DIR *dir = opendir(folder);
    const struct dirent *d;

    while (dir && (d = readdir(dir)) != NULL) {
        const char *dot = strrchr(d->d_name, '.');

        if (dot && strcmp(dot, ".part") == 0 && strcmp(d->d_name, mine) != 0)
            (void)unlinkat(dirfd(dir), d->d_name, 0);
    }
    if (dir)
        (void)closedir(dir);
}

static void take_headers(struct fetcher *f)
{
    const json_t *list = json_object_get(f->job, "headers");

    for (size_t i = 0; i < json_array_size(list) && i < HEADERS_MAX; i++)
        f->headers[i] = json_string_value(json_array_get(list, i));
}

/* Is it there from an earlier time, and still what it was? */
static bool is_here(const struct fetcher *f)
{
    uint8_t digest[32];
    int fd = open(f->file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool here = fd >= 0 && check_digest(f, fd, digest, NULL) == ERR_OK &&
                check_signature(f, digest, NULL) == ERR_OK;

    if (fd >= 0)
        (void)close(fd);
    return here;
}

static enum err fetch(struct fetcher *f, struct err_info *info)
{
    int fd = open(f->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return err_set(info, errno == ENOSPC ? ERR_FULL : ERR_IO, errno, "%s", f->part);
    enum err e = obtain(f, fd, info);
    (void)close(fd);
    if (e == ERR_OK && rename(f->part, f->file) != 0)
        e = err_set(info, ERR_IO, errno, "%s", f->file);
    /* What is wrong is not kept, and neither is what fills the disk. */
    if (e != ERR_OK && e != ERR_CLOSED && e != ERR_TIMEOUT && e != ERR_STATE)
        (void)unlink(f->part);
    return e;
}

enum err fetch_job(struct worker *w, const json_t *job, json_t *out,
                   struct err_info *info)
{
    const char *folder = job_text(job, "folder"), *version = job_text(job, "version");
    struct fetcher f = { .w = w, .job = job };

    if (!package_version_ok(version))
        return err_set(info, ERR_INVALID, 0, "no version that a package can have");
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        return err_set(info, ERR_IO, errno, "%s", folder);
    package_file(folder, version, f.file);
    (void)snprintf(f.part, sizeof(f.part), "%s/%s.part", folder, job_text(job, "sha256"));
    take_headers(&f);
    sweep(&f, folder);
    enum err e = is_here(&f) ? ERR_OK : fetch(&f, info);
    if (e == ERR_OK)
        e = package_inspect(w, f.file, job_text(job, "name"), version, info);
    if (e == ERR_OK)
        e = package_way_back(w, folder, job_text(job, "name"), job_text(job, "from"),
                             f.file, info);
    (void)json_object_set_new(out, "file", json_string(f.file));
    return e;
}
