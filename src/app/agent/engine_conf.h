/*
 * engine_conf: configuration files of ClamAV as text.
 *
 * Purpose   clamd.conf = what the device's own file says, without the keys that the policy
 *           decides, and then those.  Rendering the result again gives the same.
 * Threads   any; no I/O
 * Tests     tests/unit/test_engine_conf.c
 */
#ifndef APP_AGENT_ENGINE_CONF_H
#define APP_AGENT_ENGINE_CONF_H

#include "base/str.h"
#include "core/policy/policy.h"

enum { ENGINE_CONF_MAX = 64 * 1024 };

/* The lines that the policy decides. */
void engine_conf_block(const struct policy *p, struct text *out);
/* base without the keys of the policy, then block. */
void engine_conf_render(struct str base, struct str block, struct text *out);

/* The (last) value of a key; false if it is not there or too long. */
MUST_USE bool engine_conf_value(struct str conf, const char *key, char *out, size_t size);

/* The lines of the device's freshclam.conf that say where signatures come from. */
void engine_conf_sources(struct str conf, struct text *out);

#endif
