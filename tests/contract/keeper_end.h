/*
 * keeper_end: one node's view of a share through the real keeper, for tests.
 */
#ifndef KEEPER_END_H
#define KEEPER_END_H

#include "share_contract.h"
#include "smbd.h"
#include "sys/keeper/keeper.h"

struct keeper_end {
    struct contract_end *end;
    sd_event *loop;
    struct keeper *keeper;
    uint32_t replaced; /* how often */
};

/* Defaults for a server: balanced timing; share state; no will. */
struct keeper_options keeper_end_options(const struct smbd *s);
void keeper_end_open(struct keeper_end *ke, struct contract_end *end,
                     const struct keeper_options *o);
void keeper_end_close(struct keeper_end *ke);
/* One turn of the loop, at most 20 ms: a contract_world's pump, arg is the keeper_end. */
void keeper_end_pump(void *arg);

#endif
