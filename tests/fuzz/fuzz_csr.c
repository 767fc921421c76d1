/* Signing requests: refused with words, or of a key that can be hashed. */
#include <string.h>

#include "fuzz.h"
#include "sys/ca/ca.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str pem = { (const char *)data, size };
    uint8_t hash[CA_HASH_BYTES];
    struct ca_csr *r = NULL;
    struct err_info why = { .what = "" };
    struct uuid id;

    if (ca_csr_check(pem, &r, &why) != ERR_OK) {
        CHECK(!r && why.what[0]);
        return 0;
    }
    CHECK(size <= CA_CSR_MAX && !memchr(data, 0, size));
    CHECK(ca_csr_key_hash(r, hash, &why) == ERR_OK);
    enum err e = ca_csr_device(r, &id);
    CHECK(e == ERR_OK || e == ERR_NOT_FOUND);
    ca_csr_free(r);
    return 0;
}
