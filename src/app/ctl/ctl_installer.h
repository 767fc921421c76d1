/*
 * ctl_installer: links to packages, and packages that enrol a device.
 *
 * Threads   one
 * Tests     tests/system/test_installer.py
 */
#ifndef APP_CTL_CTL_INSTALLER_H
#define APP_CTL_CTL_INSTALLER_H

#include "app/ctl/ctl.h"

int cmd_package_link(struct ctl *c);
int cmd_package_agent(struct ctl *c);

#endif
