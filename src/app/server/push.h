/*
 * push: what devices are told unasked, and what the DBMS is told of them besides.
 *
 * Purpose   Follows the notifications of the DBMS (policies, devices, tasks) and brings
 *           each device that they concern up to date, PUSH_PER_S devices a second; tells
 *           the DBMS which devices were heard and which have gone, in batches.
 * Threads   loop thread only
 */
#ifndef APP_SERVER_PUSH_H
#define APP_SERVER_PUSH_H

#include "app/server/conn.h"

MUST_USE enum err push_start(struct server *s, struct err_info *info);
/* The node is not active any more: what waits is forgotten. */
void push_standby(struct server *s);
void push_stop(struct server *s);

/* Something is to be done for this connection when its turn comes. */
void push_todo(struct conn *c, enum conn_todo what);
/* The connection was closed: tell the DBMS. */
void push_gone(struct conn *c);
/* The same of one that was closed before the DBMS had answered when it began. */
void push_gone_before(struct server *s, const struct uuid *device, const char *since);
/* A message without anything to store: the DBMS learns it a little later. */
void push_seen(struct conn *c);
/* Frees what waits to be sent. */
void push_forget(struct conn *c);
/* How long the device may be silent. */
uint32_t push_idle_ms(const struct conn *c);

/* Hooks of the store.  push_done: false, if the ticket is none of ours. */
bool push_done(struct server *s, uint64_t ticket, enum store_outcome outcome);
void push_notified(void *server, struct str payload);
void push_rows(void *server, enum store_query query, const struct store_rows *rows);
/* There is a session (again): what was told meanwhile is not known. */
void push_catch_up(struct server *s);

#endif
