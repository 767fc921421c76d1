/*
 * upgrade: another version of the agent, as the server offers it.
 *
 * Purpose   Takes the offer, has the package fetched by a child, hands it to the supervisor,
 *           makes way for the new program, and tells what became of it.
 * Shape     One offer at a time.  What is known of it is in state_dir/upgrade before it is
 *           acted on, so that neither a crash nor another server makes it happen twice; the
 *           hash of the offer is its identity.
 * Safety    Nothing is installed that is not signed by the cluster's authority, and nothing
 *           without a way back.  From the installation on the supervisor, which is no child
 *           of ours, answers for the device (supervise.c).
 * Threads   loop thread only
 * Tests     tests/contract/test_upgrade.py
 */
#ifndef APP_AGENT_UPGRADE_H
#define APP_AGENT_UPGRADE_H

#include "app/agent/agent.h"

struct upgrade;

/* What systemd told us, before it is taken out of the environment: for who comes after us. */
void upgrade_remember(void);
/* Whom upgrade_become() is for; argv is borrowed until then. */
void upgrade_next(const char *exe, char **argv);
/* argv: as the program was started; borrowed for the life of the agent. */
MUST_USE enum err upgrade_start(struct agent *a, char **argv, struct err_info *info);
void upgrade_release(struct agent *a);

void upgrade_offer(struct agent *a, const struct opamp_packages *offer);
/* The server has answered on this connection. */
void upgrade_greeted(struct agent *a);
void upgrade_tick(struct agent *a);
bool upgrade_tells(const struct agent *a);
/* Capabilities to be said: none on a node, which is upgraded as a whole. */
uint64_t upgrade_capabilities(const struct agent *a);
void upgrade_add(struct agent *a, struct opamp_agent *m);
void upgrade_json(const struct agent *a, struct text *t);

/* After the agent was released: becomes the new program if there is one.  Returns if not. */
void upgrade_become(void);

/* The version of the package that this program came from. */
const char *agent_version(void);

#endif
