/* The commands for packages and the store on the data share. */
#include "app/ctl/ctl_option.h"
#include "app/ctl/ctl_package.h"

OPTION(opt_limit, limit, 0, "N", CTL_NUMBER, "At most N of them; default 1000.");
OPTION(opt_yes, yes, 'y', NULL, CTL_FLAG, "Do not ask.");
OPTION(opt_name, name, 'n', "NAME", CTL_TEXT,
       "The name; of a .deb the one of its control file.");
OPTION_NAMED(opt_version, "version", package_version, 'V', "VERSION", CTL_TEXT,
             "The version; of a .deb the one of its control file.");
OPTION(opt_platform, platform, 'p', "PLATFORM", CTL_TEXT,
       "What it is for, such as amd64; default all.");
OPTION(opt_description, description, 'd', "TEXT", CTL_TEXT, "What it is, for people.");
OPTION_NAMED(opt_private, "private", is_private, 0, NULL, CTL_FLAG,
             "Shown only with a link that has not expired.");
OPTION(opt_signature, signature, 0, "FILE", CTL_TEXT,
       "A signature made by the cluster's key elsewhere, instead of one made now.");
OPTION_NAMED(opt_filter_name, "name", name, 'n', "NAME", CTL_TEXT, "Of this name.");
OPTION_NAMED(opt_filter_platform, "platform", platform, 'p', "PLATFORM", CTL_TEXT,
             "For this platform.");
OPTION(opt_check, check, 0, NULL, CTL_FLAG,
       "Say in the exit code whether something is missing: 4.");
OPTION_NAMED(opt_repair, "repair", prune, 0, NULL, CTL_FLAG,
             "Replace what is damaged by the good copy, where there is one.");
OPTION_NAMED(opt_grace, "grace", grace_h, 0, "HOURS", CTL_NUMBER,
             "Leave alone what is younger; default 24.");

static const struct ctl_command commands[] = {
    { .name = "package publish",
      .args = "FILE",
      .args_min = 1,
      .args_max = 1,
      .summary = "put an installation package on the Web Server",
      .doc = "The file goes to the data share, is signed with the key of the cluster and "
             "shown by both nodes. Run it on a node, as root. If it is interrupted, the "
             "same command goes on where it was; done twice it is done once.",
      .run = cmd_package_publish,
      .options = { &opt_name, &opt_version, &opt_platform, &opt_description, &opt_private,
                   &opt_signature } },
    { .name = "package list",
      .args = "",
      .summary = "installation packages, newest first",
      .doc = "With their sizes and who may download them.",
      .run = cmd_package_list,
      .options = { &opt_filter_name, &opt_filter_platform, &opt_limit } },
    { .name = "package show",
      .args = "PACKAGE",
      .args_min = 1,
      .args_max = 1,
      .summary = "one package: digest, path, signature",
      .doc =
          "A package is named by its name, by NAME=VERSION, or by the beginning of its "
          "id.",
      .run = cmd_package_show },
    { .name = "package describe",
      .args = "PACKAGE TEXT",
      .args_min = 2,
      .args_max = 2,
      .summary = "change the description of a package",
      .doc = "Everything else of a package stays what it is: other bytes are another "
             "version.",
      .run = cmd_package_describe },
    { .name = "package remove",
      .args = "PACKAGE",
      .args_min = 1,
      .args_max = 1,
      .summary = "take a package from the Web Server",
      .doc = "Its bytes stay on the data share until the next collection.",
      .run = cmd_package_remove,
      .options = { &opt_yes } },
    { .name = "store status",
      .args = "",
      .summary = "what is on the data share and on this node, and what is missing",
      .doc =
          "Space, counts, files that are known but not there, and files that are there "
          "but not known. It looks at names and sizes; redoubt store verify reads the "
          "files.",
      .run = cmd_store_status,
      .options = { &opt_check } },
    { .name = "store verify",
      .args = "",
      .summary = "read everything on the data share and on this node",
      .doc =
          "Each file is compared with its digest. The exit code is 1 if one is damaged "
          "or missing. redoubt-mirror does the same in the background, and heals.",
      .run = cmd_store_verify,
      .options = { &opt_repair } },
    { .name = "store collect",
      .args = "",
      .summary = "remove from the data share what nothing refers to",
      .doc = "Files of removed packages and of uploads that were given up. The active "
             "node does it by itself, too.",
      .run = cmd_store_collect,
      .options = { &opt_grace } },
};

const struct ctl_section ctl_publish_section = { .title = "Packages and the data share",
                                                 .commands = commands,
                                                 .count = LEN(commands),
                                                 .options = ctl_api_options,
                                                 .option_count = CTL_API_OPTIONS };
