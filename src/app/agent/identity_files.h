/*
 * identity_files: the identity on disk: certificate, key and authority of agent.conf.
 *
 * Shape     Each file is written beside its place, synced and renamed.  The key is 0600.
 *           <certificate>.new and <key>.new: those on trial.
 * Safety    Key and certificate cannot change in one step.  identity_commit renames the key
 *           first; identity_load, finding a key that is not that of the certificate, completes
 *           it with the certificate that is still .new.
 * Threads   loop thread only
 */
#ifndef APP_AGENT_IDENTITY_FILES_H
#define APP_AGENT_IDENTITY_FILES_H

#include <sys/types.h>

#include "sys/ca/ca.h"
#include "sys/conf/conf.h"

/* A whole file of at most CA_PEM_MAX - 1 bytes.  ERR_NOT_FOUND if there is none. */
MUST_USE enum err identity_read(const char *path, struct ca_pem *out,
                                struct err_info *info);
/* The folder is made if missing (0700). */
MUST_USE enum err identity_write(const char *path, struct str bytes, mode_t mode,
                                 struct err_info *info);

/* ERR_CONFIG: there is no identity, or it is not whole. */
MUST_USE enum err identity_load(const struct conf_agent *conf, struct ca_certificate *out,
                                struct err_info *info);
/* Is the certificate of this key, and signed by the authority in this file? */
MUST_USE enum err identity_check(struct str certificate, struct str key,
                                 const char *ca_path, struct err_info *info);
MUST_USE enum err identity_write_new(const struct conf_agent *conf,
                                     struct str certificate, struct str key,
                                     struct err_info *info);
/* out: what the new certificate says. */
MUST_USE enum err identity_commit(const struct conf_agent *conf,
                                  struct ca_certificate *out, struct err_info *info);

#endif
