/*
 * check: a bug in our own code stops the program.
 *
 * Purpose   CHECK states what must be true whatever the input.  It is on in every build,
 *           has no side effects inside, and is never applied to input: bad input is an
 *           enum err (base/err.h).
 * Threads   any
 */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <assert.h>

/* Called once before abort(), so that a program can dump its debug ring.  NULL: none. */
extern void (*check_hook)(const char *expr, const char *file, int line);

_Noreturn void check_fail(const char *expr, const char *file, int line);

#define CHECK(expr) ((expr) ? (void)0 : check_fail(#expr, __FILE__, __LINE__))

#define LEN(array) (sizeof(array) / sizeof((array)[0]))
#define MUST_USE   __attribute__((warn_unused_result))

#endif
