/*
 * session: one connection to clamd over which descriptors are scanned, several at a time.
 *
 * Shape     IDSESSION with FILDES.  Each question has a number, counted from 1 as clamd
 *           counts; the answers come in any order.
 * Owns      open/close.  The descriptor asked about stays the caller's.
 * Errors    ERR_TIMEOUT: clamd takes no more now, ask later; anything else: the session is
 *           over, and what was asked is unanswered.
 * Safety    Never waits, opens no file: a listener for permission events may use it.
 * Threads   one thread
 * Source    clamd(8)
 */
#ifndef SYS_CLAMAV_SESSION_H
#define SYS_CLAMAV_SESSION_H

#include <sys/types.h>

#include "wire/clamd.h"

struct clamav_session;

MUST_USE enum err clamav_session_open(const char *path, struct clamav_session **out,
                                      struct err_info *info);
void clamav_session_close(struct clamav_session *s);

MUST_USE enum err clamav_session_ask(struct clamav_session *s, int fd, uint32_t *number,
                                     struct err_info *info);

/* The next answer; *number is 0 if there is none yet. */
MUST_USE enum err clamav_session_answer(struct clamav_session *s, uint32_t *number,
                                        struct clamd_verdict *out, struct err_info *info);

/* For poll(): readable when there may be answers. */
int clamav_session_fd(const struct clamav_session *s);
/* The process that listens, 0 if it is not known; and its user. */
pid_t clamav_session_pid(const struct clamav_session *s);
uid_t clamav_session_uid(const struct clamav_session *s);

/* One command and its reply, waiting at most ms: PING, RELOAD, VERSION. */
MUST_USE enum err clamav_say(const char *path, const char *command, uint32_t ms,
                             char *reply, size_t size, struct err_info *info);

#endif
