/* The commands for licences. */
#include "app/ctl/ctl_licence.h"
#include "app/ctl/ctl_option.h"

OPTION(opt_limit, limit, 0, "N", CTL_NUMBER, "At most N of them; default 1000.");
OPTION(opt_yes, yes, 'y', NULL, CTL_FLAG, "Do not ask.");

static const struct ctl_command commands[] = {
    { .name = "licence list",
      .args = "",
      .summary = "the licences, their seats, and what the vendor said last",
      .doc =
          "Those that were added or imported are used together, best first; the licence "
          "file of [activation] only while there is no other.",
      .run = cmd_licence_list },
    { .name = "licence show",
      .args = "ID",
      .args_min = 1,
      .args_max = 1,
      .summary = "all about one licence",
      .doc = "ID is the beginning of its id, four characters or more.",
      .run = cmd_licence_show },
    { .name = "licence add",
      .args = "CODE",
      .args_min = 1,
      .args_max = 1,
      .summary = "activate a code of the vendor",
      .doc = "The vendor is asked at once if [activation] vendor is set; in a closed "
             "network "
             "see licence request. A code that was refused is asked for anew.",
      .run = cmd_licence_add },
    { .name = "licence request",
      .args = "[ID]",
      .args_max = 1,
      .summary = "print the request for the vendor, to be carried there by hand",
      .doc =
          "For a licence that was added by its code; without ID there must be only one. "
          "The answer of the vendor is imported with licence import.",
      .run = cmd_licence_request },
    { .name = "licence import",
      .args = "FILE",
      .args_min = 1,
      .args_max = 1,
      .summary = "import a licence, or the vendor's answer to a request",
      .doc = "The file carries the signature of the vendor; - is the standard input.",
      .run = cmd_licence_import },
    { .name = "licence remove",
      .args = "ID",
      .args_min = 1,
      .args_max = 1,
      .summary = "use a licence no more",
      .doc = "Devices that have a lease of it keep it until it ends. The vendor is not "
             "told.",
      .run = cmd_licence_remove,
      .options = { &opt_yes } },
    { .name = "licence seats",
      .args = "[ID]",
      .args_max = 1,
      .summary = "the devices that hold a seat",
      .doc = "Of one licence, or of all.",
      .run = cmd_licence_seats,
      .options = { &opt_limit } },
};

const struct ctl_section ctl_licence_section = { .title = "Licences",
                                                 .commands = commands,
                                                 .count = LEN(commands),
                                                 .options = ctl_api_options,
                                                 .option_count = CTL_API_OPTIONS };
