/* The commands for links and installers. */
#include "app/ctl/ctl_installer.h"
#include "app/ctl/ctl_option.h"

OPTION_NAMED(opt_link_hours, "hours", expires, 0, "HOURS", CTL_NUMBER,
             "How long the link is good; default 24.");
OPTION(opt_group, group, 'g', "GROUP", CTL_TEXT,
       "The group of the devices, by its path or id; default /.");
OPTION(opt_uses, uses, 0, "N", CTL_NUMBER, "How many devices may use it; default 1.");
OPTION_NAMED(opt_token_days, "days", keep_days, 0, "DAYS", CTL_NUMBER,
             "How long token and links are good; default 7.");
OPTION(opt_approval, approval, 0, NULL, CTL_FLAG,
       "Each device waits until it is approved.");
OPTION_NAMED(opt_own_token, "token", enrol_token, 0, "TOKEN", CTL_TEXT,
             "An enrolment token that there is, instead of a new one.");
OPTION(opt_base, base, 0, "FILE", CTL_TEXT,
       "The package of the agent; default: the newest redoubt-agent that is published.");

static const struct ctl_command commands[] = {
    { .name = "package link",
      .args = "PACKAGE",
      .args_min = 1,
      .args_max = 1,
      .summary = "a link under which a package can be downloaded",
      .doc =
          "A package is named by its name, which means the newest one, by NAME=VERSION, "
          "or by the beginning of its id. The link to a private "
          "package expires; whoever has it can download the package until then. Each "
          "link is in the audit trail.",
      .run = cmd_package_link,
      .options = { &opt_link_hours } },
    { .name = "package agent",
      .args = "",
      .summary = "make an installer that enrols devices, and the command that runs it",
      .doc =
          "On a node, as root. Packs the package of the agent anew, with the address "
          "of the cluster, its authority and an enrolment token, publishes it as a "
          "private package with a script that installs it, and prints the command for "
          "the device. The command pins the key of the Web Server. The installer is as "
          "good as the token in it: give it to nobody else.",
      .run = cmd_package_agent,
      .options = { &opt_group, &opt_uses, &opt_token_days, &opt_approval, &opt_own_token,
                   &opt_base } },
};

const struct ctl_section ctl_installer_section = { .title = "Links and installers",
                                                   .commands = commands,
                                                   .count = LEN(commands),
                                                   .options = ctl_api_options,
                                                   .option_count = CTL_API_OPTIONS };
