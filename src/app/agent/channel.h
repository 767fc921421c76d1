/*
 * channel: one JSON object a packet between the agent and its children, with a descriptor.
 *
 * Shape     A SOCK_SEQPACKET pair; CHANNEL_FD in the child.
 * Owns      What is received belongs to the caller.
 * Threads   one thread
 */
#ifndef APP_AGENT_CHANNEL_H
#define APP_AGENT_CHANNEL_H

#include <jansson.h>

#include "base/err.h"

enum { CHANNEL_FD = 3, CHANNEL_MAX = 100 * 1024 };

/* message is stolen; pass: a descriptor that goes along, or -1.  ERR_TIMEOUT: the other
 * side does not read (only if `wait` is false); ERR_CLOSED: it is gone. */
MUST_USE enum err channel_send(int fd, json_t *message, int pass, bool wait);

/* *pass is -1 without a descriptor.  ERR_TIMEOUT: nothing there (only if !wait). */
MUST_USE enum err channel_receive(int fd, json_t **message, int *pass, bool wait);

/* A path or an output as JSON text: bytes that are no UTF-8 become '?', at most max. */
json_t *channel_text(const char *s, size_t max);

#endif
