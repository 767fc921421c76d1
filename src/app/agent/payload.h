/* payload: see payload.c.  ERR_CORRUPT unless it is one object, of bounded depth. */
#ifndef APP_AGENT_PAYLOAD_H
#define APP_AGENT_PAYLOAD_H

#include "base/err.h"
#include "base/str.h"

MUST_USE enum err payload_check(struct str json, struct err_info *info);

#endif
