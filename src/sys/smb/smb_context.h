/*
 * smb_context: a libsmbclient context that behaves the same on every machine.
 *
 * Purpose   smb.c's own: everything about making, configuring and explaining a connection.
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

#endif
