/*
 * update_cluster: signatures from the cluster's own Web Server.
 *
 * Purpose   Which official databases it has; and the signature files of the administrator,
 *           which count only as its signed manifest lists them.
 * Shape     <databases>/.redoubt/NAME  fetched and verified; freshclam takes it from there,
 *                                      tries it and puts it beside the others
 *           <state_dir>/custom.json        the manifest that was taken last, signature first
 *           <state_dir>/custom-handed.json what freshclam was given since then
 * Safety    The manifest verifies with the authority that the device has pinned, and its
 *           serial never falls: an old set cannot be played back.  What is replaced or
 *           removed is only what this put there.  The worker is root, the folder of the
 *           databases is freshclam's: nothing there is followed or changed by its name.
 * Threads   in the worker; blocks
 * Source    docs/protocol/signatures.md
 */
#ifndef APP_AGENT_UPDATE_CLUSTER_H
#define APP_AGENT_UPDATE_CLUSTER_H

#include <jansson.h>

#include "app/agent/worker.h"
#include "sys/cvd/cvd_fetch.h"

struct cluster_files {
    struct worker *worker;
    const char *web, *ca, *databases; /* borrowed */
    char kept[300], handed_path[300], stage[300];
    int stage_fd;   /* -1: not open */
    char *manifest; /* verified; NULL: nothing is published, or it is not known */
    size_t manifest_n;
    char *signature;
    size_t signature_n;
    json_t *files;  /* of the manifest */
    json_t *old;    /* of the one that was taken before */
    json_t *handed; /* what may have been installed since then */
};

/* web: "http://host:8060"; state: folder.  To be released whatever the result. */
void cluster_init(struct cluster_files *c, struct worker *w, const char *web,
                  const char *ca, const char *databases, const char *state);
void cluster_release(struct cluster_files *c);

/* The lines that make freshclam ask the cluster.  ERR_NOT_FOUND: it has no databases. */
MUST_USE enum err cluster_sources(struct cluster_files *c, struct text *conf,
                                  struct err_info *info);
/* Fetches the manifest and the files that are new.  ERR_NOT_FOUND: none was ever published. */
MUST_USE enum err cluster_stage(struct cluster_files *c, struct err_info *info);
/* Was there ever a manifest? */
bool cluster_is_used(const struct cluster_files *c);
/* A line for each file that is not in place; returns how many. */
unsigned cluster_custom(const struct cluster_files *c, struct text *conf);
/* After freshclam: are all there?  Removes what is not listed any more. */
MUST_USE enum err cluster_finish(struct cluster_files *c, struct err_info *info);

#endif
