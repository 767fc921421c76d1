/*
 * ctl_trust: the authority of the cluster and the other secrets, on the share and here.
 *
 * Purpose   `redoubt init` makes or takes them, `redoubt secret` brings them to this node.
 * Shape     On the data share (the state share, if there is no data share) each is a file
 *           secret/NAME, sealed with the cluster key.  Here they lie in [trust] folder, for root
 *           and the group redoubt (those of the Web Server: redoubt-web), with certificates for
 *           the servers, which each node makes for itself.
 * Threads   one
 * Tests     tests/contract/test_ctl.py
 */
#ifndef APP_CTL_TRUST_H
#define APP_CTL_TRUST_H

#include "app/ctl/report.h"
#include "base/mac.h"
#include "sys/ca/ca.h"

/* Makes what is missing on the share, or takes the files of --ca-certificate and --ca-key; and
 * installs all on this node.  CTL_OK, or the exit code after the error was printed. */
MUST_USE int ctl_trust_init(struct ctl *c, const struct mac_key *key);

/* A whole file.  ERR_NOT_FOUND if there is none. */
MUST_USE enum err trust_read(const char *path, struct ca_pem *out, struct err_info *info);

/* check_secrets.c, for `redoubt check`: are they here, until when, and who reads them? */
void check_secrets(struct report *r);

int cmd_secret_fetch(struct ctl *c);
int cmd_secret_list(struct ctl *c);

#endif
