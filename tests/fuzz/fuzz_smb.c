/* What sys/smb reads from outside: a server's first answer, a credentials file, a share's
 * name.  The first byte says which. */
#include "fuzz.h"
#include "sys/smb/smb_cred.h"
#include "sys/smb/smb_dialect.h"
#include "sys/smb/smb_url.h"

static void check_ended(const char *text, size_t size)
{
    CHECK(memchr(text, '\0', size));
}

static void try_answer(const uint8_t *data, size_t size)
{
    struct smb_negotiated n;

    if (smb_negotiate_decode(&n, data, size) == ERR_OK) {
        CHECK(strcmp(smb_dialect_name(n.dialect), "none") != 0);
        CHECK(!n.encryption || n.dialect >= SMB_DIALECT_3_00);
    }
}

static void try_credentials(struct str text)
{
    struct smb_cred c;

    if (smb_cred_parse(&c, text, "fuzz", NULL) == ERR_OK) {
        CHECK(c.user[0] != '\0');
        check_ended(c.user, sizeof(c.user));
        check_ended(c.password, sizeof(c.password));
        check_ended(c.domain, sizeof(c.domain));
    }
}

static void try_share(struct str text)
{
    struct smb_url u;

    if (smb_url_parse(&u, text)) {
        check_ended(u.base, sizeof(u.base));
        CHECK(strncmp(u.base, "smb://", 6) == 0);
        CHECK(!strstr(u.base + 6, "//") && !strstr(u.base, "/../"));
        CHECK(u.host[0] != '\0' && u.share[0] != '\0');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct str text = { (const char *)data + 1, size - 1 };
    switch (data[0] % 3) {
    case 0: try_answer(data + 1, size - 1); break;
    case 1: try_credentials(text); break;
    case 2: try_share(text); break;
    }
    return 0;
}
