#include "sys/cvd/cvd_sign.h"

#include <gmp.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

enum { HASH = 32, PSS = 256, MASKED = PSS - HASH - 1, SIGN_DIGITS_MAX = 350 };

/* The keys of databases and of increments. */
#define DATABASE_N                                                                       \
    "118640995551645342603070001658453189751527774412027743746599405743243142607464144"  \
    "767361060640655844749760788890022283424922762488917565551002467771109669598189410"  \
    "434699034532232228621591089508178591428456220796841621637175567590476666928698770"  \
    "143328137383952820383197532047771780196576957695822641224262693037"
#define DATABASE_E "100001027"
#define DIFF_N                                                                           \
    "147839058740774670902622285165579175702545996383762035320319892141055528472696874"  \
    "897719757921234421858172876949519498009087915275420171156005013033947786185358648"  \
    "452357000415900563182301024496122174585490160893133065913885907907965158196541023"  \
    "207257123008223563487240112326548375032417361779077841987008344406811247270605400"  \
    "357546996581058950500965762267530085968816988281856524249019216687583265784620032"  \
    "479064709820922981067896572119054889862810783463614695244848295595608862271980919"  \
    "954984406766396398304635932113860550653602884223940539981344586237125406832940349"  \
    "53818412458362198117811990006021989844180721010947"
#define DIFF_E "100002053"

/* The digits: a-z, A-Z, 0-9, '+', '/'. */
static int digit_of(char c)
{
    if (c >= 'a' && c <= 'z')
        return c - 'a';
    if (c >= 'A' && c <= 'Z')
        return c - 'A' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* What was signed, as `size` bytes, the highest first; false if it is longer. */
static bool recover(struct str sign, const char *modulus, const char *exponent,
                    uint8_t *out, size_t size)
{
    bool ok = sign.n > 1 && sign.n <= SIGN_DIGITS_MAX;
    size_t count = 0;
    mpz_t n, e, x;

    mpz_inits(n, e, x, NULL);
    CHECK(mpz_set_str(n, modulus, 10) == 0 && mpz_set_str(e, exponent, 10) == 0);
    for (size_t i = sign.n; ok && i > 0; i--) {
        int digit = digit_of(sign.p[i - 1]);

        ok = digit >= 0;
        mpz_mul_2exp(x, x, 6);
        mpz_add_ui(x, x, ok ? (unsigned long)digit : 0);
    }
    ok = ok && mpz_cmp(x, n) < 0;
    if (ok) {
        mpz_powm(x, x, e, n);
        ok = (mpz_sizeinbase(x, 2) + 7) / 8 <= size;
    }
    if (ok) {
        size_t bytes = (mpz_sizeinbase(x, 2) + 7) / 8;

        memset(out, 0, size);
        mpz_export(out + (size - bytes), &count, 1, 1, 1, 0, x);
    }
    mpz_clears(n, e, x, NULL);
    return ok;
}

bool cvd_sign_md5(struct str sign, const uint8_t md5[16])
{
    uint8_t plain[16];

    return recover(sign, DATABASE_N, DATABASE_E, plain, sizeof(plain)) &&
           memcmp(plain, md5, sizeof(plain)) == 0;
}

static void sha256(const uint8_t *bytes, size_t n, uint8_t out[HASH])
{
    CHECK(gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, n, out) >= 0);
}

/* EMSA-PSS-VERIFY of RFC 8017, 9.1.2, with SHA-256 and a salt of 32 bytes. */
bool cvd_sign_sha256(struct str sign, const uint8_t digest[32])
{
    uint8_t em[PSS], db[MASKED], seed[HASH + 4], block[HASH],
        last[8 + HASH + HASH] = { 0 };
    const uint8_t *hash = em + MASKED;
    size_t zeros = MASKED - HASH - 1;

    if (!recover(sign, DIFF_N, DIFF_E, em, sizeof(em)) || em[PSS - 1] != 0xbc)
        return false;
    memcpy(seed, hash, HASH);
    for (size_t i = 0; i < MASKED; i++) {
        if (i % HASH == 0) {
            memset(seed + HASH, 0, 3);
            seed[HASH + 3] = (uint8_t)(i / HASH);
            sha256(seed, sizeof(seed), block);
        }
        db[i] = (uint8_t)(em[i] ^ block[i % HASH]);
    }
    db[0] &= 0x7f;
    for (size_t i = 0; i < zeros; i++)
        if (db[i] != 0)
            return false;
    if (db[zeros] != 1)
        return false;
    memcpy(last + 8, digest, HASH);
    memcpy(last + 8 + HASH, db + zeros + 1, HASH);
    sha256(last, sizeof(last), block);
    return memcmp(block, hash, HASH) == 0;
}
