#include "sys/smb/smb_dialect.h"

static const struct {
    enum smb_dialect dialect;
    const char *name, *config;
} dialects[] = {
    { SMB_DIALECT_2_02, "2.0.2", "SMB2_02" }, { SMB_DIALECT_2_10, "2.1", "SMB2_10" },
    { SMB_DIALECT_3_00, "3.0", "SMB3_00" },   { SMB_DIALECT_3_02, "3.0.2", "SMB3_02" },
    { SMB_DIALECT_3_11, "3.1.1", "SMB3_11" },
};

enum {
    HEADER = 64, /* MS-SMB2 2.2.1.2 */
    BODY = 36,   /* of the request, without the dialects */
    RESPONSE_BODY = 64,
    CAP_DFS = 0x01,
    CAP_ENCRYPTION = 0x40,
    MUST_SIGN = 0x02,
    CONTEXT_PREAUTH = 1,
    CONTEXT_ENCRYPTION = 2,
    CONTEXTS_MAX = 16,
};
static const uint32_t status_not_supported = 0xC00000BB;

const char *smb_dialect_name(enum smb_dialect d)
{
    for (size_t i = 0; i < LEN(dialects); i++)
        if (dialects[i].dialect == d)
            return dialects[i].name;
    return "none";
}

const char *smb_dialect_config(enum smb_dialect d)
{
    for (size_t i = 0; i < LEN(dialects); i++)
        if (dialects[i].dialect == d)
            return dialects[i].config;
    return "none";
}

bool smb_dialect_parse(struct str s, enum smb_dialect *out)
{
    for (size_t i = 0; i < LEN(dialects); i++)
        if (str_is(s, dialects[i].name) || str_is(s, dialects[i].config)) {
            *out = dialects[i].dialect;
            return true;
        }
    return false;
}

static void put16(uint8_t *p, size_t v)
{
    p[0] = (uint8_t)(v & 0xff);
    p[1] = (uint8_t)(v >> 8 & 0xff);
}

static uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)get16(p) | (uint32_t)get16(p + 2) << 16;
}

/* SMB 3.1.1 asks for a list of contexts: a hash for the handshake, and the ciphers. */
static size_t encode_contexts(uint8_t *p, const uint8_t salt[16])
{
    put16(p, CONTEXT_PREAUTH);
    put16(p + 2, 22);
    put16(p + 8, 1);   /* one hash */
    put16(p + 10, 16); /* salt */
    put16(p + 12, 1);  /* SHA-512 */
    memcpy(p + 14, salt, 16);
    p += 32; /* 8 + 22, to a multiple of 8 */
    put16(p, CONTEXT_ENCRYPTION);
    put16(p + 2, 6);
    put16(p + 8, 2);
    put16(p + 10, 2); /* AES-128-GCM */
    put16(p + 12, 1); /* AES-128-CCM */
    return 32 + 8 + 6;
}

size_t smb_negotiate_encode(uint8_t buf[SMB_NEGOTIATE_MAX], enum smb_dialect min,
                            enum smb_dialect max, const uint8_t guid[16])
{
    uint8_t *h = buf + 4, *b = h + HEADER;
    size_t count = 0, n = HEADER + BODY;

    memset(buf, 0, SMB_NEGOTIATE_MAX);
    memcpy(h, "\xfeSMB", 4);
    put16(h + 4, HEADER);
    put16(h + 14, 1); /* one credit */
    put16(b, BODY);
    put16(b + 4, 1); /* signing enabled */
    memcpy(b + 12, guid, 16);
    for (size_t i = 0; i < LEN(dialects); i++)
        if (dialects[i].dialect >= min && dialects[i].dialect <= max)
            put16(b + BODY + 2 * count++, dialects[i].dialect);
    put16(b + 2, count);
    if (max >= SMB_DIALECT_3_00)
        put16(b + 8, CAP_DFS | CAP_ENCRYPTION);
    n += 2 * count;
    if (max >= SMB_DIALECT_3_11) {
        n = (n + 7) & ~(size_t)7;
        put16(b + 28, n);
        put16(b + 32, 2);
        n += encode_contexts(h + n, guid);
    }
    put16(buf + 2, (n & 0xff) << 8 | n >> 8); /* big-endian length of the transport */
    return 4 + n;
}

/* Did the server of an SMB 3.1.1 answer choose a cipher? */
static bool has_cipher(const uint8_t *p, size_t n)
{
    size_t at = get32(p + HEADER + 60);
    uint16_t count = get16(p + HEADER + 6);

    for (uint16_t i = 0; i < count && i < CONTEXTS_MAX; i++) {
        if (at > n || n - at < 8)
            return false;
        uint16_t len = get16(p + at + 2);
        if (len > n - at - 8)
            return false;
        if (get16(p + at) == CONTEXT_ENCRYPTION)
            return len >= 4 && get16(p + at + 8) == 1 && get16(p + at + 10) != 0;
        at += ((size_t)8 + len + 7) & ~(size_t)7;
    }
    return false;
}

enum err smb_negotiate_decode(struct smb_negotiated *out, const uint8_t *p, size_t n)
{
    if (n >= 4 && memcmp(p, "\xffSMB", 4) == 0)
        return ERR_VERSION;
    if (n < HEADER || memcmp(p, "\xfeSMB", 4) != 0 || get16(p + 12) != 0)
        return ERR_CORRUPT;
    if (get32(p + 8) == status_not_supported)
        return ERR_VERSION;
    if (get32(p + 8) != 0 || n < HEADER + RESPONSE_BODY || get16(p + HEADER) != 65)
        return ERR_CORRUPT;

    const uint8_t *b = p + HEADER;
    struct smb_negotiated r = { .must_sign = (get16(b + 2) & MUST_SIGN) != 0,
                                .dfs = (get32(b + 24) & CAP_DFS) != 0 };

    for (size_t i = 0; i < LEN(dialects); i++)
        if (dialects[i].dialect == (enum smb_dialect)get16(b + 4))
            r.dialect = dialects[i].dialect;
    if (r.dialect == SMB_DIALECT_NONE)
        return ERR_VERSION;
    if (r.dialect == SMB_DIALECT_3_11)
        r.encryption = has_cipher(p, n);
    else if (r.dialect >= SMB_DIALECT_3_00)
        r.encryption = (get32(b + 24) & CAP_ENCRYPTION) != 0;
    memcpy(r.server_guid, b + 8, sizeof(r.server_guid));
    *out = r;
    return ERR_OK;
}
