/*
 * opamp_in: what the files of opamp share.
 *
 * Threads   any; pure
 */
#ifndef WIRE_OPAMP_IN_H
#define WIRE_OPAMP_IN_H

#include "wire/opamp.h"

/* What became of a cursor. */
MUST_USE enum err opamp_verdict_of(const struct pb *r, struct err_info *info,
                                   const char *what);
MUST_USE enum err opamp_text_check(struct str s, size_t max, struct err_info *info,
                                   const char *what);
/* The content of field `number` of a message of which nothing else matters. */
MUST_USE enum err opamp_inner(struct str bytes, uint32_t number, struct str *out,
                              struct err_info *info, const char *what);

/* opamp_packages.c */
MUST_USE enum err opamp_packages_decode(struct str bytes, struct opamp_packages *out,
                                        struct err_info *info);
MUST_USE enum err opamp_statuses_decode(struct str bytes,
                                        struct opamp_package_statuses *out,
                                        struct err_info *info);
void opamp_packages_put(struct pb_out *w, uint32_t number,
                        const struct opamp_packages *p);
void opamp_statuses_put(struct pb_out *w, uint32_t number,
                        const struct opamp_package_statuses *p);

#endif
