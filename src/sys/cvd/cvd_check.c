#include "sys/cvd/cvd_check.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sys/cvd/cvd_inner.h"
#include "sys/cvd/cvd_sign.h"

enum { PIECE = 65536, SHA = 32, MD5 = 16 };

struct reader {
    const struct cvd_file *name;
    uint64_t size, at;
    uint64_t covered; /* the signature of an increment covers so many bytes */
    char tail[CVD_SIGN_MAX + 1];
    size_t tail_n;
    gnutls_hash_hd_t all,
        part; /* part: MD5 behind the header, SHA-256 of what is covered */
    struct cvd_inner inner;
    bool has_inner;
    uint8_t first[CVD_HEADER];
    size_t first_n;
};

uint64_t cvd_bytes_max(enum cvd_kind kind)
{
    switch (kind) {
    case CVD_DATABASE:
    case CVD_LOCAL:
    case CVD_UNSIGNED: return CVD_DATABASE_BYTES;
    case CVD_DIFF: return CVD_DIFF_BYTES;
    case CVD_DATABASE_SIGN:
    case CVD_DIFF_SIGN: return CVD_TEXT_BYTES;
    }
    return 0;
}

static bool is_database(enum cvd_kind kind)
{
    return kind == CVD_DATABASE || kind == CVD_LOCAL || kind == CVD_UNSIGNED;
}

/* Where the signature behind the last ':' begins. */
static enum err find_tail(struct reader *r, int fd, struct err_info *info)
{
    uint64_t want = r->size < CVD_SIGN_MAX + 1 ? r->size : CVD_SIGN_MAX + 1;
    char buf[CVD_SIGN_MAX + 1];
    ssize_t n = pread(fd, buf, want, (off_t)(r->size - want));
    size_t at = (size_t)want;

    if (n != (ssize_t)want)
        return err_set(info, ERR_IO, n < 0 ? errno : 0, "read");
    while (at > 0 && buf[at - 1] != ':')
        at--;
    if (at == 0)
        return err_set(info, ERR_CORRUPT, 0, "it has no digital signature at its end");
    r->tail_n = (size_t)want - at;
    memcpy(r->tail, buf + at, r->tail_n);
    r->covered = r->size - r->tail_n - 1;
    return ERR_OK;
}

static enum err start(struct reader *r, int fd, struct err_info *info)
{
    bool md5 = is_database(r->name->kind);

    if (r->name->kind == CVD_DIFF) {
        enum err e = find_tail(r, fd, info);

        if (e != ERR_OK)
            return e;
    }
    if (gnutls_hash_init(&r->all, GNUTLS_DIG_SHA256) < 0 ||
        gnutls_hash_init(&r->part, md5 ? GNUTLS_DIG_MD5 : GNUTLS_DIG_SHA256) < 0)
        return err_set(info, ERR_UNSUPPORTED, 0, "no MD5 or SHA-256 on this machine");
    if (md5) {
        if (cvd_inner_init(&r->inner, r->name->name) != ERR_OK)
            return err_set(info, ERR_MEMORY, ENOMEM, "decompress");
        r->has_inner = true;
    }
    return ERR_OK;
}

static void take(struct reader *r, const uint8_t *bytes, size_t n)
{
    size_t begin = 0, end = n;

    CHECK(gnutls_hash(r->all, bytes, n) >= 0);
    if (r->first_n < CVD_HEADER) {
        size_t more = CVD_HEADER - r->first_n < n ? CVD_HEADER - r->first_n : n;

        memcpy(r->first + r->first_n, bytes, more);
        r->first_n += more;
        if (r->has_inner)
            begin = more;
    }
    if (r->name->kind == CVD_DIFF)
        end = r->at >= r->covered       ? 0
              : r->covered - r->at >= n ? n
                                        : (size_t)(r->covered - r->at);
    if (begin < end) {
        CHECK(gnutls_hash(r->part, bytes + begin, end - begin) >= 0);
        if (r->has_inner)
            cvd_inner_feed(&r->inner, bytes + begin, end - begin);
    }
    r->at += n;
}

static enum err read_all(struct reader *r, int fd, struct err_info *info)
{
    uint8_t *buf = malloc(PIECE);
    enum err e = ERR_OK;

    if (!buf)
        return err_set(info, ERR_MEMORY, ENOMEM, "read");
    while (e == ERR_OK && r->at < r->size) {
        ssize_t n = pread(fd, buf, PIECE, (off_t)r->at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            e = err_set(info, ERR_IO, n < 0 ? errno : 0,
                        n < 0 ? "read" : "it was cut off");
        else if ((uint64_t)n > r->size - r->at)
            e = err_set(info, ERR_CORRUPT, 0, "it grew while it was read");
        else
            take(r, buf, (size_t)n);
    }
    free(buf);
    return e;
}

static enum err judge_database(struct reader *r, const uint8_t md5[MD5],
                               struct cvd_checked *c, struct err_info *info)
{
    const struct cvd *in = &r->inner.info;
    enum err e = cvd_header((struct str){ (const char *)r->first, r->first_n }, &c->head);

    if (e != ERR_OK)
        return err_set(info, e, 0, "it has no sane header of a signature database");
    if (memcmp(md5, c->head.md5, MD5) != 0)
        return err_set(info, ERR_CORRUPT, 0,
                       "it is damaged: its MD5 is not that of its header");
    c->genuine = cvd_is_signed(&c->head) && cvd_sign_md5(str_of(c->head.sign), md5);
    if (r->name->kind != CVD_DATABASE)
        return ERR_OK;
    if (!c->genuine)
        return err_set(info, ERR_CORRUPT, 0,
                       cvd_is_signed(&c->head)
                           ? "its digital signature is not that of ClamAV's makers"
                           : "it has no digital signature");
    if (!r->inner.found || in->version != c->head.version || in->built != c->head.built ||
        in->level != c->head.level)
        return err_set(info, ERR_CORRUPT, 0,
                       "its header was changed: the signed %s does not say version %u",
                       r->inner.wanted, c->head.version);
    return ERR_OK;
}

static enum err judge_diff(struct reader *r, const uint8_t digest[SHA],
                           struct cvd_checked *c, struct err_info *info)
{
    struct str first = { (const char *)r->first, r->first_n };

    if (cvd_diff_header(first, &c->head.version) != ERR_OK)
        return err_set(info, ERR_CORRUPT, 0, "it is no increment of signatures");
    if (c->head.version != r->name->version)
        return err_set(info, ERR_CORRUPT, 0, "it leads to version %u, not to %u",
                       c->head.version, r->name->version);
    c->genuine = cvd_sign_sha256((struct str){ r->tail, r->tail_n }, digest);
    return c->genuine ? ERR_OK
                      : err_set(info, ERR_CORRUPT, 0,
                                "its digital signature is not that of ClamAV's makers");
}

static enum err judge_text(const struct reader *r, struct err_info *info)
{
    for (size_t i = 0; i < r->first_n; i++)
        if (r->first[i] != '\n' && r->first[i] != '\r' &&
            (r->first[i] < 0x20 || r->first[i] > 0x7e))
            return err_set(info, ERR_CORRUPT, 0, "it is no signature file");
    return r->first_n > 0 ? ERR_OK : err_set(info, ERR_CORRUPT, 0, "it is empty");
}

static enum err judge(struct reader *r, struct cvd_checked *c, struct err_info *info)
{
    uint8_t all[SHA], part[SHA];
    char hex[2 * SHA + 1];

    gnutls_hash_output(r->all, all);
    gnutls_hash_output(r->part, part);
    hex_encode(hex, all, sizeof(all));
    (void)snprintf(c->sha256, sizeof(c->sha256), "%s", hex);
    c->size = r->size;
    if (is_database(r->name->kind))
        return judge_database(r, part, c, info);
    c->head.version = r->name->version;
    return r->name->kind == CVD_DIFF ? judge_diff(r, part, c, info) : judge_text(r, info);
}

enum err cvd_check(int fd, const struct cvd_file *name, struct cvd_checked *out,
                   struct err_info *info)
{
    struct reader r = { .name = name };
    struct cvd_checked c = { 0 };
    struct stat st;

    if (fstat(fd, &st) != 0)
        return err_set(info, ERR_IO, errno, "stat");
    if (!S_ISREG(st.st_mode))
        return err_set(info, ERR_INVALID, 0, "it is no file");
    r.size = (uint64_t)st.st_size;
    if (r.size > cvd_bytes_max(name->kind))
        return err_set(info, ERR_LIMIT, 0, "it is larger than such a file may be");
    enum err e = start(&r, fd, info);
    if (e == ERR_OK)
        e = read_all(&r, fd, info);
    if (e == ERR_OK)
        e = judge(&r, &c, info);
    if (r.all)
        gnutls_hash_deinit(r.all, NULL);
    if (r.part)
        gnutls_hash_deinit(r.part, NULL);
    if (r.has_inner)
        cvd_inner_release(&r.inner);
    if (e == ERR_OK)
        *out = c;
    return e;
}
