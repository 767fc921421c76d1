/* PackagesAvailable and PackageStatuses. */
#include "wire/opamp_in.h"

static enum err hash_check(struct str hash, struct err_info *info, const char *what)
{
    return hash.n <= OPAMP_HASH_MAX
               ? ERR_OK
               : err_set(info, ERR_LIMIT, 0, "%s: longer than %d bytes", what,
                         OPAMP_HASH_MAX);
}

/* Header: 1 key, 2 value. */
static enum err header_decode(struct str bytes, struct opamp_package *p,
                              struct err_info *info)
{
    struct opamp_header h;

    if (p->header_count == OPAMP_HEADERS_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d headers", OPAMP_HEADERS_MAX);
    enum err e = opamp_inner(bytes, 1, &h.key, info, "header");
    if (e == ERR_OK)
        e = opamp_inner(bytes, 2, &h.value, info, "header");
    if (e == ERR_OK)
        e = opamp_text_check(h.key, OPAMP_KEY_MAX, info, "header");
    if (e == ERR_OK)
        e = opamp_text_check(h.value, OPAMP_TEXT_MAX, info, "header");
    if (e == ERR_OK)
        p->header[p->header_count++] = h;
    return e;
}

/* DownloadableFile: 1 download_url, 2 content_hash, 3 signature, 4 Headers { 1: Header }. */
static enum err download_decode(struct str bytes, struct opamp_package *p,
                                struct err_info *info)
{
    struct str headers = { 0 };
    struct pb r;
    struct pb_field f;

    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            p->url = pb_bytes(&r, &f);
        else if (f.number == 2)
            p->content_hash = pb_bytes(&r, &f);
        else if (f.number == 3)
            p->signature = pb_bytes(&r, &f);
        else if (f.number == 4)
            headers = pb_bytes(&r, &f);
    }
    enum err e = opamp_verdict_of(&r, info, "package file");
    if (e == ERR_OK)
        e = opamp_text_check(p->url, OPAMP_TEXT_MAX, info, "download_url");
    if (e == ERR_OK)
        e = hash_check(p->content_hash, info, "content_hash");
    if (e == ERR_OK && p->signature.n > OPAMP_SIGNATURE_MAX)
        e = err_set(info, ERR_LIMIT, 0, "signature: longer than %d bytes",
                    OPAMP_SIGNATURE_MAX);
    pb_init(&r, headers);
    while (e == ERR_OK && pb_next(&r, &f))
        if (f.number == 1)
            e = header_decode(pb_bytes(&r, &f), p, info);
    return e == ERR_OK ? opamp_verdict_of(&r, info, "headers") : e;
}

/* PackageAvailable: 1 type, 2 version, 3 file, 4 hash. */
static enum err package_decode(struct str bytes, struct opamp_package *p,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            p->addon = pb_varint(&r, &f) != 0;
        else if (f.number == 2)
            p->version = pb_bytes(&r, &f);
        else if (f.number == 3)
            e = download_decode(pb_bytes(&r, &f), p, info);
        else if (f.number == 4)
            p->hash = pb_bytes(&r, &f);
    }
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "package");
    if (e == ERR_OK)
        e = opamp_text_check(p->version, OPAMP_KEY_MAX, info, "package version");
    return e == ERR_OK ? hash_check(p->hash, info, "package hash") : e;
}

/* One entry of the map: 1 name, 2 PackageAvailable. */
static enum err package_entry(struct str bytes, struct opamp_packages *out,
                              struct err_info *info)
{
    struct opamp_package *p = &out->at[out->count];
    struct str body;

    if (out->count == OPAMP_PACKAGES_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d packages", OPAMP_PACKAGES_MAX);
    *p = (struct opamp_package){ 0 };
    enum err e = opamp_inner(bytes, 1, &p->name, info, "package");
    if (e == ERR_OK)
        e = opamp_text_check(p->name, OPAMP_KEY_MAX, info, "package name");
    if (e == ERR_OK)
        e = opamp_inner(bytes, 2, &body, info, "package");
    if (e == ERR_OK)
        e = package_decode(body, p, info);
    if (e == ERR_OK)
        out->count++;
    return e;
}

enum err opamp_packages_decode(struct str bytes, struct opamp_packages *out,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    out->hash = (struct str){ 0 };
    out->count = 0;
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            e = package_entry(pb_bytes(&r, &f), out, info);
        else if (f.number == 2)
            out->hash = pb_bytes(&r, &f);
    }
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "packages_available");
    return e == ERR_OK ? hash_check(out->hash, info, "all_packages_hash") : e;
}

static double real(struct pb *r, const struct pb_field *f)
{
    uint64_t bits = pb_fixed64(r, f);
    double v;

    memcpy(&v, &bits, sizeof(v));
    return v >= 0 && v <= 1e15 ? v : 0; /* not a number, too */
}

/* PackageDownloadDetails: 1 download_percent, 2 download_bytes_per_second. */
static enum err details_decode(struct str bytes, struct opamp_package_status *p,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;

    pb_init(&r, bytes);
    while (pb_next(&r, &f)) {
        if (f.number == 1)
            p->percent = real(&r, &f);
        else if (f.number == 2)
            p->bytes_per_s = real(&r, &f);
    }
    if (p->percent > 100)
        p->percent = 100;
    return opamp_verdict_of(&r, info, "download_details");
}

static enum err status_check(const struct opamp_package_status *p, struct err_info *info)
{
    enum err e = opamp_text_check(p->name, OPAMP_KEY_MAX, info, "package name");

    if (e == ERR_OK)
        e = opamp_text_check(p->has_version, OPAMP_KEY_MAX, info, "package version");
    if (e == ERR_OK)
        e = opamp_text_check(p->offered_version, OPAMP_KEY_MAX, info, "package version");
    if (e == ERR_OK)
        e = opamp_text_check(p->error, OPAMP_TEXT_MAX, info, "error_message");
    if (e == ERR_OK)
        e = hash_check(p->has_hash, info, "package hash");
    return e == ERR_OK ? hash_check(p->offered_hash, info, "package hash") : e;
}

/*
 * PackageStatus: 1 name, 2 agent_has_version, 3 agent_has_hash, 4 server_offered_version,
 * 5 server_offered_hash, 6 status, 7 error_message, 8 download_details.
 */
static enum err status_decode(struct str bytes, struct opamp_package_status *p,
                              struct err_info *info)
{
    uint64_t status = 0;
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        switch (f.number) {
        case 1: p->name = pb_bytes(&r, &f); break;
        case 2: p->has_version = pb_bytes(&r, &f); break;
        case 3: p->has_hash = pb_bytes(&r, &f); break;
        case 4: p->offered_version = pb_bytes(&r, &f); break;
        case 5: p->offered_hash = pb_bytes(&r, &f); break;
        case 6: status = pb_varint(&r, &f); break;
        case 7: p->error = pb_bytes(&r, &f); break;
        case 8: e = details_decode(pb_bytes(&r, &f), p, info); break;
        default: break;
        }
    }
    p->status = status < OPAMP_INSTALL_UNKNOWN ? (enum opamp_install)status
                                               : OPAMP_INSTALL_UNKNOWN;
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "package status");
    return e == ERR_OK ? status_check(p, info) : e;
}

/* The key of the map is the name once more: only the value is looked at. */
static enum err status_entry(struct str bytes, struct opamp_package_statuses *out,
                             struct err_info *info)
{
    struct opamp_package_status *p = &out->at[out->count];
    struct str body;

    if (out->count == OPAMP_PACKAGES_MAX)
        return err_set(info, ERR_LIMIT, 0, "more than %d package statuses",
                       OPAMP_PACKAGES_MAX);
    *p = (struct opamp_package_status){ 0 };
    enum err e = opamp_inner(bytes, 2, &body, info, "package status");
    if (e == ERR_OK)
        e = status_decode(body, p, info);
    if (e == ERR_OK)
        out->count++;
    return e;
}

enum err opamp_statuses_decode(struct str bytes, struct opamp_package_statuses *out,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    out->hash = out->error = (struct str){ 0 };
    out->count = 0;
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1)
            e = status_entry(pb_bytes(&r, &f), out, info);
        else if (f.number == 2)
            out->hash = pb_bytes(&r, &f);
        else if (f.number == 3)
            out->error = pb_bytes(&r, &f);
    }
    if (e == ERR_OK)
        e = opamp_verdict_of(&r, info, "package_statuses");
    if (e == ERR_OK)
        e = opamp_text_check(out->error, OPAMP_TEXT_MAX, info, "error_message");
    return e == ERR_OK ? hash_check(out->hash, info, "all_packages_hash") : e;
}

/* ---- encoding ---- */

static void optional(struct pb_out *w, uint32_t number, struct str s)
{
    if (s.n > 0)
        pb_put_bytes(w, number, s);
}

static void put_real(struct pb_out *w, uint32_t number, double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof(bits));
    if (bits != 0)
        pb_put_fixed64(w, number, bits);
}

static void download_put(struct pb_out *w, const struct opamp_package *p)
{
    size_t file = pb_open(w, 3);

    optional(w, 1, p->url);
    optional(w, 2, p->content_hash);
    optional(w, 3, p->signature);
    if (p->header_count > 0) {
        size_t headers = pb_open(w, 4);

        for (uint32_t i = 0; i < p->header_count; i++) {
            size_t one = pb_open(w, 1);

            pb_put_bytes(w, 1, p->header[i].key);
            pb_put_bytes(w, 2, p->header[i].value);
            pb_close(w, one);
        }
        pb_close(w, headers);
    }
    pb_close(w, file);
}

void opamp_packages_put(struct pb_out *w, uint32_t number, const struct opamp_packages *p)
{
    size_t all = pb_open(w, number);

    for (uint32_t i = 0; i < p->count; i++) {
        size_t entry = pb_open(w, 1);

        pb_put_bytes(w, 1, p->at[i].name);
        size_t package = pb_open(w, 2);
        if (p->at[i].addon)
            pb_put_varint(w, 1, 1);
        optional(w, 2, p->at[i].version);
        download_put(w, &p->at[i]);
        optional(w, 4, p->at[i].hash);
        pb_close(w, package);
        pb_close(w, entry);
    }
    optional(w, 2, p->hash);
    pb_close(w, all);
}

static void status_put(struct pb_out *w, const struct opamp_package_status *p)
{
    size_t status = pb_open(w, 2);

    pb_put_bytes(w, 1, p->name);
    optional(w, 2, p->has_version);
    optional(w, 3, p->has_hash);
    optional(w, 4, p->offered_version);
    optional(w, 5, p->offered_hash);
    if (p->status != OPAMP_INSTALLED)
        pb_put_varint(w, 6, (uint64_t)p->status);
    optional(w, 7, p->error);
    if (p->status == OPAMP_DOWNLOADING) {
        size_t details = pb_open(w, 8);

        put_real(w, 1, p->percent);
        put_real(w, 2, p->bytes_per_s);
        pb_close(w, details);
    }
    pb_close(w, status);
}

void opamp_statuses_put(struct pb_out *w, uint32_t number,
                        const struct opamp_package_statuses *p)
{
    size_t all = pb_open(w, number);

    for (uint32_t i = 0; i < p->count; i++) {
        size_t entry = pb_open(w, 1);

        pb_put_bytes(w, 1, p->at[i].name);
        status_put(w, &p->at[i]);
        pb_close(w, entry);
    }
    optional(w, 2, p->hash);
    optional(w, 3, p->error);
    pb_close(w, all);
}
