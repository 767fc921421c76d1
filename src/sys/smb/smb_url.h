/*
 * smb_url: "//host/share/folder" taken apart, and written as libsmbclient wants it.
 *
 * Shape     host is a name, an IPv4 address, or an IPv6 address with or without brackets.
 * Threads   any; pure
 * Tests     tests/unit/test_smb_parse.c
 */
#ifndef SMB_URL_H
#define SMB_URL_H

#include "base/str.h"

enum { SMB_URL_BYTES = 1024 };

struct smb_url {
    char host[256];
    char share[81];           /* MS-SMB2 2.2.9: at most 80 characters */
    char folder[256];         /* "" or "a/b" */
    char base[SMB_URL_BYTES]; /* "smb://host/share/folder", percent-encoded */
};

/* False if it is not of that form, or a part is empty, too long, "." or "..". */
MUST_USE bool smb_url_parse(struct smb_url *out, struct str share);

#endif
