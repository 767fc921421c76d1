/*
 * smb_dialect: which SMB versions there are, and which one a server would choose.
 *
 * Purpose   libsmbclient does not tell the dialect that it negotiated.  One NEGOTIATE on a
 *           connection of our own does, before any credentials are sent; it also says in
 *           plain words why a server cannot be used (SMB 1 only, no encryption).
 * Errors    ERR_VERSION the server speaks none of the dialects asked for; ERR_CORRUPT its
 *           answer is not an SMB 2 NEGOTIATE response; ERR_TIMEOUT, ERR_IO.
 * Threads   any; smb_probe() blocks for at most timeout_ms per address
 * Source    MS-SMB2 2.2.3, 2.2.4
 * Tests     tests/unit/test_smb_parse.c
 */
#ifndef SMB_DIALECT_H
#define SMB_DIALECT_H

#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

enum smb_dialect {
    SMB_DIALECT_NONE = 0,
    SMB_DIALECT_2_02 = 0x0202,
    SMB_DIALECT_2_10 = 0x0210,
    SMB_DIALECT_3_00 = 0x0300,
    SMB_DIALECT_3_02 = 0x0302,
    SMB_DIALECT_3_11 = 0x0311,
};

/* "3.1.1", for people; "none" for anything unknown. */
const char *smb_dialect_name(enum smb_dialect d);
/* "SMB3_11", as configuration files write it. */
const char *smb_dialect_config(enum smb_dialect d);
/* From either spelling; false leaves *out untouched. */
MUST_USE bool smb_dialect_parse(struct str s, enum smb_dialect *out);

struct smb_negotiated {
    enum smb_dialect dialect;
    bool encryption; /* the server can encrypt */
    bool dfs;
    bool must_sign;
    uint8_t server_guid[16];
};

enum { SMB_NEGOTIATE_MAX = 256 };

/* The request with its 4-byte transport header; the number of bytes.  guid: 16 bytes. */
size_t smb_negotiate_encode(uint8_t buf[SMB_NEGOTIATE_MAX], enum smb_dialect min,
                            enum smb_dialect max, const uint8_t guid[16]);
/* bytes: one message without the transport header. */
MUST_USE enum err smb_negotiate_decode(struct smb_negotiated *out, const uint8_t *bytes,
                                       size_t n);

struct smb_probe {
    const char *host; /* name or address, borrowed for the call */
    uint16_t port;
    enum smb_dialect min, max;
    uint32_t timeout_ms;
};

MUST_USE enum err smb_probe(struct smb_negotiated *out, const struct smb_probe *p,
                            struct err_info *info);

#endif
