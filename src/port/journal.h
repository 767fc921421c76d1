/*
 * journal: what the node machine tells the people and the local disk.
 *
 * Contract  Never blocks for long, never feeds the machine from within the call.
 *           remember() must survive the end of the process: a small file, renamed into place.
 * Who       app/node, tests/sim.
 */
#ifndef PORT_JOURNAL_H
#define PORT_JOURNAL_H

#include <stdint.h>

#include "base/err.h"
#include "port/share.h"

struct journal_move {
    const char *from, *to, *why; /* stable words; live for ever */
    uint64_t epoch;              /* 0: no lease */
};

struct journal_ops {
    void (*moved)(void *impl, const struct journal_move *move);
    void (*remember)(void *impl, uint64_t known_epoch, bool maintenance);
    /* An operator's wish was taken (ERR_OK) or refused. */
    void (*answer)(void *impl, uint32_t token, enum err e);
    /* The members that the node record shall carry besides ours; returns their length. */
    size_t (*node_extra)(void *impl, char *buf, size_t size);
    /* A scan was answered: the raw records of both nodes and the requests. */
    void (*scanned)(void *impl, const struct share_answer *a);
    /* The machine has stopped: the process may end. */
    void (*exited)(void *impl, const char *why);
};

struct journal {
    const struct journal_ops *ops;
    void *impl;
};

#endif
