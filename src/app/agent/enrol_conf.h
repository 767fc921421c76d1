/*
 * enrol_conf: agent.conf with the address of the server in it.
 *
 * Purpose   Enrolment is the one thing that changes agent.conf: one line, and nothing else of
 *           what stands there.
 * Threads   any
 * Tests     tests/contract/test_enrol.py
 */
#ifndef APP_AGENT_ENROL_CONF_H
#define APP_AGENT_ENROL_CONF_H

#include "sys/conf/conf.h"

/* host:port, or [v6]:port */
void enrol_conf_server(const char *host, uint16_t port, char out[CONF_PATH]);

/* The configuration as it will be with this server; the file may be missing. */
MUST_USE enum err enrol_conf_load(const char *path, const char *server,
                                  struct agent_conf *out, struct err_info *info);
/* Writes it, if that changes anything. */
MUST_USE enum err enrol_conf_write(const char *path, const char *server,
                                   struct err_info *info);

#endif
