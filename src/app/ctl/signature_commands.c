/* The commands for signature databases. */
#include "app/ctl/ctl_option.h"
#include "app/ctl/ctl_signature.h"

OPTION(opt_server, server, 0, "HOST[:PORT]", CTL_TEXT,
       "Ask the server there over TLS, with a token; port 13299 without one.");
OPTION_NAMED(opt_token_file, "token-file", token_file, 0, "FILE", CTL_TEXT,
             "The file with the API token; also REDOUBT_TOKEN_FILE in the environment.");
OPTION(opt_ca, ca, 0, "FILE", CTL_TEXT,
       "The certificate of the cluster's authority, instead of the CAs of this machine.");
OPTION_NAMED(opt_timeout, "timeout", timeout_s, 0, "SECONDS", CTL_NUMBER,
             "Try again for so long while the cluster switches; default 60.");
static const struct ctl_option *const signature_options[] = { &opt_server,
                                                              &opt_token_file, &opt_ca,
                                                              &opt_timeout };

OPTION(opt_check, check, 0, NULL, CTL_FLAG,
       "Exit with 4 if the newest database is too old.");
OPTION(opt_force, force, 0, NULL, CTL_FLAG,
       "Also databases that are older than the published ones.");
OPTION(opt_yes, yes, 'y', NULL, CTL_FLAG, "Do not ask.");
OPTION(opt_interval, interval, 0, "MINUTES", CTL_LIST,
       "How often the source is asked; default 240.");
OPTION(opt_proxy, proxy, 0, "URL|none", CTL_TEXT,
       "The proxy on the way: http://[user:password@]host:port.");
OPTION_NAMED(
    opt_mirror_ca, "mirror-ca", mirror_ca, 0, "FILE|none", CTL_TEXT,
    "Whom to trust for an https source (PEM), instead of the node's authorities.");
OPTION(opt_database, database, 0, "NAME,...", CTL_LIST,
       "Which databases; default main,daily,bytecode.");
OPTION(opt_keep, keep, 0, "N", CTL_LIST,
       "How many increments of each are kept; default 90.");
OPTION(opt_warning, warning, 0, "HOURS", CTL_LIST,
       "Warn when the newest database is older; default 48; 0: never.");
OPTION(opt_critical, critical, 0, "HOURS", CTL_LIST,
       "The same as critical; default 168; 0: never.");

static const struct ctl_command commands[] = {
    { .name = "signature status",
      .args = "",
      .summary = "which signature databases are published, and how old they are",
      .doc = "The published databases with their increments, the source and how the last "
             "look at it went, and whether the newest database is too old.",
      .run = cmd_signature_status,
      .options = { &opt_check } },
    { .name = "signature source",
      .args = "[URL|none]",
      .args_max = 1,
      .summary = "show or set the mirror that databases come from",
      .doc =
          "The active node asks this mirror for newer databases and publishes them as a "
          "set, once each is there and verified. With none, databases are imported only. "
          "What is not given stays as it is.",
      .run = cmd_signature_source,
      .options = { &opt_interval, &opt_proxy, &opt_mirror_ca, &opt_database, &opt_keep,
                   &opt_warning, &opt_critical } },
    { .name = "signature update",
      .args = "",
      .summary = "look at the source now",
      .doc =
          "Does not wait for the interval. It is refused while the source has asked for "
          "patience.",
      .run = cmd_signature_update },
    { .name = "signature import",
      .args = "FILE...",
      .args_min = 1,
      .args_max = ARGS_MANY,
      .summary = "publish databases and increments from files",
      .doc =
          "On a node, as root: verifies databases (.cvd), their increments (.cdiff) and "
          "signatures (.sign), puts them on the data share and publishes them at once, "
          "together with what is published already. Files that are not genuine, and "
          "databases older than the published ones, are refused.",
      .run = cmd_signature_import,
      .options = { &opt_force } },
    { .name = "signature remove",
      .args = "NAME",
      .args_min = 1,
      .args_max = 1,
      .summary = "stop publishing a database",
      .doc = "Takes a database and its increments out of the published set.",
      .run = cmd_signature_remove,
      .options = { &opt_yes } },
    { .name = "signature verify",
      .args = "FILE...",
      .args_min = 1,
      .args_max = ARGS_MANY,
      .summary = "are these files what their names say, and genuine?",
      .doc =
          "Reads databases (.cvd), their increments (.cdiff) and signatures (.sign) and "
          "verifies the digital signatures with the keys of ClamAV's makers, without an "
          "engine and without the cluster. The exit code is 1 if a file is refused.",
      .run = cmd_signature_verify },
    { .name = "signature custom",
      .args = "ACTION [FILE]...",
      .args_min = 1,
      .args_max = ARGS_MANY,
      .summary = "signature files of your own, with a signed manifest",
      .doc =
          "ACTION is publish, remove or list. On a node, as root: publishes files that "
          "ClamAV loads (.ndb .hdb .hsb .ldb "
          ".yar "
          ".cud and others), or stops publishing them. The manifest is signed with the "
          "cluster's key; agents take only what it lists, and never an older one.",
      .run = cmd_signature_custom },
};

const struct ctl_section ctl_signature_section = { .title = "Signature databases",
                                                   .commands = commands,
                                                   .count = LEN(commands),
                                                   .options = signature_options,
                                                   .option_count =
                                                       LEN(signature_options) };
