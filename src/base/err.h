/*
 * err: what can go wrong, in one list.
 *
 * Purpose   Functions that can fail return enum err and leave their outputs untouched
 *           on failure.  struct err_info carries the words for people.
 * Owns      Nothing: err_info is plain data of the caller, filled only on failure; every
 *           function that takes one accepts NULL.
 * Threads   any
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>
#include <stddef.h>

#include "base/check.h"

/* code, name (stable: logs, JSON, metrics), may a retry help? */
#define ERR_MAP(X)                                                                       \
    X(ERR_OK, "ok", false)                                                               \
    X(ERR_TIMEOUT, "timeout", true)      /* no answer in time: outcome unknown (L8) */   \
    X(ERR_IO, "io", true)                /* the other side failed or is unreachable */   \
    X(ERR_CORRUPT, "corrupt", false)     /* bytes that do not decode or verify */        \
    X(ERR_LIMIT, "limit", false)         /* a bound of ours is reached */                \
    X(ERR_NOT_FOUND, "not_found", false) /* it does not exist */                         \
    X(ERR_EXISTS, "exists", false)       /* exclusive create lost */                     \
    X(ERR_DENIED, "denied", false)       /* rights or credentials */                     \
    X(ERR_FULL, "full", false)           /* no space */                                  \
    X(ERR_FOREIGN, "foreign", false)     /* belongs to another cluster */                \
    X(ERR_VERSION, "version", false)     /* newer or older than we understand */         \
    X(ERR_STALE, "stale", false)         /* a higher epoch exists */                     \
    X(ERR_INVALID, "invalid", false)     /* the request makes no sense */                \
    X(ERR_CONFIG, "config", false)       /* the configuration is wrong */                \
    X(ERR_STATE, "state", false)         /* not possible in the present state */         \
    X(ERR_UNSUPPORTED, "unsupported", false) /* this machine cannot do it */             \
    X(ERR_CLOSED, "closed", true)            /* the other side closed */                 \
    X(ERR_MEMORY, "memory", true)

enum err {
#define X(code, name, retry) code,
    ERR_MAP(X)
#undef X
        ERR_COUNT
};

struct err_info {
    int sys_errno;  /* errno of the failing call, 0 if none */
    char what[240]; /* "open //fs/state/epoch/4: ..."; NUL-terminated, cut */
};

/* Stable lower-case name of an error; never NULL. */
const char *err_name(enum err e);

/* May the same call succeed later without anybody changing anything? */
bool err_may_retry(enum err e);

/*
 * err_set - fill info (may be NULL) and return e, so that a caller can write
 *           return err_set(info, ERR_IO, errno, "open %s", path);
 *           With sys_errno != 0 the system's words are appended after ": ".
 */
enum err err_set(struct err_info *info, enum err e, int sys_errno, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
