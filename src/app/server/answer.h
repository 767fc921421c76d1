/*
 * answer: what goes to a device in one ServerToAgent.
 *
 * Purpose   Adds to an answer what the device is to learn besides: capabilities with the
 *           first one, its policy and connection settings when they differ from what it
 *           has, one custom message.  What does not fit follows: over WebSocket at once,
 *           over HTTP in the next answers.
 * Owns      Letters are copied.
 * Threads   loop thread only
 * Source    OpAMP specification; docs/protocol/opamp.md
 */
#ifndef APP_SERVER_ANSWER_H
#define APP_SERVER_ANSWER_H

#include "app/server/conn.h"

#define EVENTS_CAPABILITY  "com.redoubt.events/v1"
#define TASKS_CAPABILITY   "com.redoubt.tasks/v1"
#define SESSION_CAPABILITY "com.redoubt.session/v1"
#define LICENCE_CAPABILITY "com.redoubt.licence/v1"

/* a: uid, flags and custom message are the caller's; the rest is added.  May close c. */
void answer_send(struct conn *c, struct opamp_server *a);
/* retry_ms: for OPAMP_ERR_UNAVAILABLE.  flood: because of the device itself. */
void answer_error(struct conn *c, const struct uuid *uid, enum opamp_error error,
                  const char *why, uint32_t retry_ms, bool flood);

/* The bits (enum conn_custom) of those that both sides know. */
uint8_t answer_customs(const struct opamp_caps *caps);
/* Queues the hints for this connection. */
/* Notes what the device says it was offered. */
void answer_package_told(struct conn *c, const struct opamp_package_status *p);

void answer_session(struct conn *c);
void answer_licence(struct conn *c);
/* A custom message, put behind those that wait; not if the device does not know it. */
void answer_letter(struct conn *c, enum conn_custom custom, const char *type,
                   struct str data);
/* {"<member>": [items of the JSON array]}, in as many letters as it takes. */
void answer_letter_list(struct conn *c, enum conn_custom custom, const char *type,
                        const char *member, struct str array);

/* Unasked, over WebSocket. */
void answer_offers(struct conn *c);
void answer_full_state(struct conn *c);
void answer_letters(struct conn *c);

#endif
