/*
 * ctl_option: how the tables of commands name an option.
 *
 * Shape     OPTION(identifier, member of struct ctl_options, letter, metavariable, kind,
 *           sentence); OPTION_NAMED for a name that is no C identifier.
 */
#ifndef APP_CTL_OPTION_H
#define APP_CTL_OPTION_H

#include "app/ctl/ctl.h"

#define OPTION_NAMED(id, word, field, sign, metavar, sort, text)                         \
    static const struct ctl_option id = { .name = word,                                  \
                                          .letter = sign,                                \
                                          .arg = metavar,                                \
                                          .offset = offsetof(struct ctl_options, field), \
                                          .kind = sort,                                  \
                                          .doc = text }
#define OPTION(id, field, sign, metavar, sort, text)                                     \
    OPTION_NAMED(id, #field, field, sign, metavar, sort, text)

#endif
