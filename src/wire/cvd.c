#include "wire/cvd.h"

static bool printable(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.p[i] < 0x20 || (unsigned char)s.p[i] > 0x7e)
            return false;
    return true;
}

/* Takes everything up to and with c off *s; without c, all of it. */
static struct str until(struct str *s, char c)
{
    const char *at = s->n > 0 ? memchr(s->p, c, s->n) : NULL;
    struct str head = *s;

    if (!at) {
        *s = (struct str){ s->p + s->n, 0 };
        return head;
    }
    head.n = (size_t)(at - s->p);
    *s = (struct str){ at + 1, s->n - head.n - 1 };
    return head;
}

static bool number(struct str s, uint32_t *out)
{
    uint64_t v = 0;

    if (!str_u64(s, UINT32_MAX, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

/* ---- "22 Jun 2021 14-58 -0400", for headers that do not say the seconds ---- */

static bool month_of(struct str s, unsigned *out)
{
    static const char names[] = "JanFebMarAprMayJunJulAugSepOctNovDec";

    for (unsigned i = 0; s.n == 3 && i < 12; i++)
        if (memcmp(names + (size_t)i * 3, s.p, 3) == 0) {
            *out = i;
            return true;
        }
    return false;
}

static bool small(struct str s, unsigned max, unsigned *out)
{
    uint64_t v = 0;

    if (s.n == 0 || s.n > 4 || !str_u64(s, max, &v))
        return false;
    *out = (unsigned)v;
    return true;
}

/* Days since 1970-01-01 of the Gregorian calendar; month from 0 on. */
static uint64_t days(unsigned year, unsigned month, unsigned day)
{
    static const unsigned before[] = { 0,   31,  59,  90,  120, 151,
                                       181, 212, 243, 273, 304, 334 };
    unsigned leaps = year - (month < 2 ? 1 : 0);

    return (uint64_t)(year - 1970) * 365 + before[month] + day - 1 +
           (leaps / 4 - leaps / 100 + leaps / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
}

static bool seconds_of(struct str time, uint64_t *out)
{
    unsigned day = 0, month = 0, year = 0, hour = 0, minute = 0, zone = 0;
    struct str d = until(&time, ' '), m = until(&time, ' '), y = until(&time, ' ');
    struct str h = until(&time, '-'), min = until(&time, ' ');

    if (!small(d, 31, &day) || day == 0 || !month_of(m, &month) ||
        !small(y, 9999, &year) || year < 1971 || !small(h, 23, &hour) ||
        !small(min, 59, &minute) || time.n != 5 ||
        (time.p[0] != '+' && time.p[0] != '-') ||
        !small((struct str){ time.p + 1, 4 }, 1459, &zone) || zone % 100 > 59)
        return false;
    uint64_t at = days(year, month, day) * 86400 + hour * 3600u + minute * 60u;
    uint64_t offset = zone / 100 * 3600u + zone % 100 * 60u;
    *out = time.p[0] == '-' ? at + offset : at - offset;
    return true;
}

/* ---- headers ---- */

static bool is_sign(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        char c = s.p[i];

        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
              (c >= '0' && c <= '9') || c == '+' || c == '/'))
            return false;
    }
    return true;
}

/* time:version:signatures:level:md5:sign:builder[:seconds] */
static enum err decode(struct str line, bool within, struct cvd *out)
{
    struct cvd c = { 0 };

    if (!str_starts(line, STR("ClamAV-VDB:")) || !printable(line))
        return ERR_CORRUPT;
    (void)until(&line, ':');
    struct str time = until(&line, ':'), version = until(&line, ':');
    struct str signatures = until(&line, ':'), level = until(&line, ':');
    struct str md5 = until(&line, ':'), sign = until(&line, ':');
    struct str builder = until(&line, ':'), seconds = until(&line, ':');
    if (line.n > 0 || time.n == 0 || !str_copy(c.time, sizeof(c.time), time) ||
        !number(version, &c.version) || c.version == 0 ||
        !number(signatures, &c.signatures) || !number(level, &c.level) ||
        !str_copy(c.builder, sizeof(c.builder), builder) || builder.n == 0)
        return ERR_CORRUPT;
    if (!within && (!hex_decode(c.md5, sizeof(c.md5), md5) || !is_sign(sign) ||
                    !str_copy(c.sign, sizeof(c.sign), sign)))
        return ERR_CORRUPT;
    if (seconds.n > 0 ? !str_u64(seconds, (uint64_t)INT32_MAX * 100, &c.built)
                      : !seconds_of(time, &c.built))
        return ERR_CORRUPT;
    *out = c;
    return ERR_OK;
}

static struct str trimmed(struct str s)
{
    while (s.n > 0 && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\n' ||
                       s.p[s.n - 1] == '\r' || s.p[s.n - 1] == '\0'))
        s.n--;
    return s;
}

enum err cvd_header(struct str bytes, struct cvd *out)
{
    if (bytes.n < CVD_HEADER)
        return ERR_CORRUPT;
    return decode(trimmed((struct str){ bytes.p, CVD_HEADER }), false, out);
}

enum err cvd_info(struct str bytes, struct cvd *out)
{
    if (bytes.n > CVD_HEADER)
        bytes.n = CVD_HEADER;
    if (bytes.n == 0 || !memchr(bytes.p, '\n', bytes.n))
        return ERR_CORRUPT;
    return decode(trimmed(until(&bytes, '\n')), true, out);
}

bool cvd_is_signed(const struct cvd *c)
{
    return strlen(c->sign) > 1;
}

enum err cvd_diff_header(struct str bytes, uint32_t *version)
{
    uint32_t v = 0, size = 0;

    if (bytes.n > CVD_HEADER)
        bytes.n = CVD_HEADER;
    if (!str_starts(bytes, STR("ClamAV-Diff:")))
        return ERR_CORRUPT;
    (void)until(&bytes, ':');
    struct str first = until(&bytes, ':'), second = until(&bytes, ':');
    if (!number(first, &v) || v == 0 || !number(second, &size) || bytes.n == 0)
        return ERR_CORRUPT;
    *version = v;
    return ERR_OK;
}

/* ---- names ---- */

static bool cut_tail(struct str *s, struct str tail)
{
    if (s->n < tail.n || memcmp(s->p + s->n - tail.n, tail.p, tail.n) != 0)
        return false;
    s->n -= tail.n;
    return true;
}

static bool plain(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool cvd_name_ok(struct str name)
{
    if (name.n == 0 || name.n > CVD_NAME_MAX || name.p[0] == '-')
        return false;
    for (size_t i = 0; i < name.n; i++)
        if (!plain(name.p[i]) && name.p[i] != '-')
            return false;
    return true;
}

/* Cuts "-<version>" off. */
static bool cut_version(struct str *s, uint32_t *out)
{
    size_t at = s->n;

    while (at > 0 && s->p[at - 1] != '-')
        at--;
    /* Not "007": each file has one name. */
    if (at == 0 || at == s->n || s->p[at] == '0' ||
        !number((struct str){ s->p + at, s->n - at }, out))
        return false;
    s->n = at - 1;
    return true;
}

static const struct {
    const char *ending;
    bool numbered;
} kinds[] = {
    [CVD_DATABASE] = { ".cvd", false },
    [CVD_LOCAL] = { ".cld", false },
    [CVD_UNSIGNED] = { ".cud", false },
    [CVD_DIFF] = { ".cdiff", true },
    [CVD_DATABASE_SIGN] = { ".cvd.sign", true },
    [CVD_DIFF_SIGN] = { ".cdiff.sign", true },
};

bool cvd_file_name(struct str file, struct cvd_file *out)
{
    if (file.n >= CVD_FILE_MAX)
        return false;
    for (size_t i = 0; i < LEN(kinds); i++) {
        struct cvd_file f = { .kind = (enum cvd_kind)i };
        struct str name = file;

        if (!cut_tail(&name, str_of(kinds[i].ending)))
            continue;
        if ((kinds[i].numbered && !cut_version(&name, &f.version)) ||
            !cvd_name_ok(name) || !str_copy(f.name, sizeof(f.name), name))
            return false;
        *out = f;
        return true;
    }
    return false;
}

bool cvd_file_print(const struct cvd_file *f, char *buf, size_t size)
{
    struct text t;

    text_init(&t, buf, size);
    text_add(&t, "%s", f->name);
    if (kinds[f->kind].numbered)
        text_add(&t, "-%u", (unsigned)f->version);
    text_add(&t, "%s", kinds[f->kind].ending);
    return !t.cut;
}

bool cvd_custom_name(struct str file)
{
    static const char *const endings[] = {
        "cud", "db",   "ndb", "ndu", "hdb", "hdu", "hsb",  "hsu",  "mdb", "mdu",
        "msb", "msu",  "ldb", "ldu", "idb", "cdb", "crb",  "ftm",  "fp",  "sfp",
        "ign", "ign2", "pdb", "gdb", "wdb", "yar", "yara", "pwdb", "ioc",
    };
    static const char *const official[] = { "main", "daily", "bytecode" };
    struct str stem = file;

    if (file.n == 0 || file.n >= CVD_FILE_MAX || !plain(file.p[0]))
        return false;
    for (size_t i = 0; i < file.n; i++)
        if (!plain(file.p[i]) && file.p[i] != '-' && file.p[i] != '_' && file.p[i] != '.')
            return false;
    while (stem.n > 0 && stem.p[stem.n - 1] != '.')
        stem.n--;
    if (stem.n < 2)
        return false;
    struct str ending = { file.p + stem.n, file.n - stem.n };
    stem.n--;
    for (size_t i = 0; i < LEN(official); i++)
        if (str_is(stem, official[i]))
            return false;
    for (size_t i = 0; i < LEN(endings); i++)
        if (str_is(ending, endings[i]))
            return true;
    return false;
}
