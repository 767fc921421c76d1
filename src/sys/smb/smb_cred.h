/*
 * smb_cred: who we are to the file server, from a file that only root can read.
 *
 * Shape     Lines `username=`, `password=`, `domain=`; blank lines and lines that begin with
 *           # are skipped; nothing is trimmed but the line end, so a password may hold
 *           blanks.  At most SMB_CRED_FILE_MAX bytes.
 * Errors    ERR_NOT_FOUND no such file; ERR_DENIED it belongs to another user, or others
 *           may read or write it; ERR_CONFIG a line that is none of the above.
 * Threads   any
 */
#ifndef SMB_CRED_H
#define SMB_CRED_H

#include "base/err.h"
#include "base/str.h"

enum { SMB_CRED_BYTES = 256, SMB_CRED_FILE_MAX = 4096 };

struct smb_cred {
    char user[SMB_CRED_BYTES];
    char password[SMB_CRED_BYTES];
    char domain[SMB_CRED_BYTES];
};

/* path names the text in messages. */
MUST_USE enum err smb_cred_parse(struct smb_cred *out, struct str text, const char *path,
                                 struct err_info *info);
MUST_USE enum err smb_cred_load(struct smb_cred *out, const char *path,
                                struct err_info *info);

#endif
