/*
 * ctl_licence: the commands for licences, which are a client of the API (manage.h).
 *
 * Threads   one
 * Tests     tests/contract/test_vendor.py
 */
#ifndef APP_CTL_LICENCE_H
#define APP_CTL_LICENCE_H

#include "app/ctl/manage.h"

int cmd_licence_list(struct ctl *c);
int cmd_licence_show(struct ctl *c);
int cmd_licence_add(struct ctl *c);
int cmd_licence_request(struct ctl *c);
int cmd_licence_import(struct ctl *c);
int cmd_licence_remove(struct ctl *c);
int cmd_licence_seats(struct ctl *c);

#endif
