/*
 * smb_context: a libsmbclient context that behaves the same on every machine.
 *
 * Purpose   For smb.c and smb_file.c only: everything about making, configuring and explaining a
 *           connection, and the parts of a call.
 * Safety    libsmbclient reads $HOME/.smb/smb.conf or else the machine's; we give it a HOME
 *           of our own, with one file, whenever a context is made.
 */
#ifndef SMB_CONTEXT_H
#define SMB_CONTEXT_H

#include <libsmbclient.h>

#include "sys/smb/smb.h"
#include "sys/smb/smb_url.h"

struct smb {
    SMBCCTX *ctx;
    struct smb_cred cred;
    struct smb_url url;
    struct smb_options options; /* its pointers: to cred and share */
    char share[SMB_SHARE_BYTES];
    smbc_check_server_fn check; /* libsmbclient's own */
    bool pinned; /* no request may go over a connection that is not there yet */
    bool lost;
    uint32_t deaths; /* of connections that the library replaced by itself */
};

/* Fills s->ctx from the options; s->cred and s->url are set.  A context may have served an
 * earlier connection; its connections are closed. */
MUST_USE enum err smb_context_make(struct smb *s, const struct smb_options *o,
                                   struct err_info *info);
void smb_context_release(SMBCCTX *ctx);

/* --- the parts of a call (smb.c) --- */

struct smb_path {
    char url[SMB_URL_BYTES + SMB_NAME_BYTES];
};

/* Begins a call: checks the name ("": the share's folder) and writes its URL. */
bool smb_begin(struct smb *s, struct smb_path *p, const char *name);
/* The error of a call that failed with errno sys; marks a connection that is lost. */
enum err smb_failed(struct smb *s, int sys, const char *verb, const char *name,
                    struct err_info *info);
enum err smb_bad_name(struct err_info *info);
/* NULL: *ret_e says why. */
SMBCFILE *smb_open(struct smb *s, const char *name, int flags, struct err_info *info,
                   enum err *ret_e);
/* A failure to close matters only if all went well so far (e). */
MUST_USE enum err smb_close(struct smb *s, SMBCFILE *f, const char *name, enum err e,
                            struct err_info *info);
MUST_USE enum err smb_write(struct smb *s, SMBCFILE *f, const char *name, struct str body,
                            struct err_info *info);

#endif
