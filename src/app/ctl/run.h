/*
 * run: another program, to its end.
 *
 * Purpose   Tools that every Debian system has (dpkg-deb), and this program itself.
 * Errors    ERR_IO it cannot be started, or ended with another status than 0: info says its
 *           last line on standard error, which goes nowhere else.
 * Threads   one
 */
#ifndef APP_CTL_RUN_H
#define APP_CTL_RUN_H

#include "base/err.h"
#include "base/str.h"

/* argv[0] is looked for on PATH; out (NULL: nobody reads) gets what it prints, cut says if
 * that was more. */
MUST_USE enum err run_program(const char *const argv[], struct text *out,
                              struct err_info *info);

#endif
