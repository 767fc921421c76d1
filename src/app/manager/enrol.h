/*
 * enrol: the certificate authority of the cluster, as the manager uses it.
 *
 * Purpose   Serves POST /v1/enrol and GET /v1/ca, and signs what waits for it: enrolments
 *           that need no approval or have it, renewals, new identities of clones.
 * Contract  enrol_post and enrol_ca are routes (api.h): they must answer their request.
 * Threads   loop thread only
 */
#ifndef APP_MANAGER_ENROL_H
#define APP_MANAGER_ENROL_H

#include "base/err.h"
#include "base/str.h"

struct manager;
struct asked;

/* m->conf and m->pool are there.  m->enrol is this file's own. */
MUST_USE enum err enrol_start(struct manager *m, struct err_info *info);
void enrol_stop(struct manager *m);

/* The node has become active, or is no longer: pool_query() works only between. */
void enrol_active(struct manager *m);
void enrol_standby(struct manager *m);
/* Something waits to be signed (the DBMS told so), or may wait: each second, too. */
void enrol_poke(struct manager *m);

/* Its certificate, PEM; empty: there is none on this node. */
struct str enrol_authority(const struct manager *m);

void enrol_post(struct asked *a);
void enrol_ca(struct asked *a);

#endif
