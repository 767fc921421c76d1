#include "app/ctl/ctl_option.h"
#include "app/ctl/ctl_trust.h"

static const struct ctl_option opt_conf = {
    .name = "config",
    .letter = 'c',
    .arg = "FILE",
    .offset = offsetof(struct ctl_options, conf),
    .kind = CTL_TEXT,
    .doc = "The configuration, instead of /etc/redoubt/redoubt.conf.",
};
OPTION(opt_socket, socket, 0, "PATH", CTL_TEXT,
       "The control socket, instead of node.sock in run_dir.");
OPTION(opt_json, json, 'j', NULL, CTL_FLAG, "Answer as JSON, errors too.");
OPTION(opt_help, help, 'h', NULL, CTL_FLAG, "Show what the command does.");
OPTION(opt_yes, yes, 'y', NULL, CTL_FLAG, "Do not ask.");
OPTION(opt_watch, watch, 'w', NULL, CTL_FLAG, "Show it again every second until Ctrl-C.");
OPTION(opt_check, check, 0, NULL, CTL_FLAG,
       "Say the health in the exit code: 4 if something is missing, 5 if no node is "
       "active.");
OPTION(opt_to, to, 't', "NODE", CTL_TEXT, "The node that shall be active.");
OPTION(opt_node, node, 'n', "NODE", CTL_TEXT, "The node it is about; default: this one.");
OPTION(opt_follow, follow, 'f', NULL, CTL_FLAG, "Wait for new entries until Ctrl-C.");
OPTION(opt_man, man, 0, NULL, CTL_FLAG, "As the source of the manual page.");
OPTION(opt_agent, agent, 0, NULL, CTL_FLAG, "With --man: of agent.conf.");
OPTION(opt_docs, docs, 0, NULL, CTL_FLAG, "With the explanation of each key.");

OPTION(opt_quick, quick, 0, NULL, CTL_FLAG,
       "Leave out the measurement of the bandwidth.");
OPTION(opt_folder, folder, 0, "FOLDER", CTL_TEXT,
       "The migrations, instead of those that were installed.");

static const struct ctl_option opt_ca_certificate = {
    .name = "ca-certificate",
    .arg = "FILE",
    .offset = offsetof(struct ctl_options, ca_certificate),
    .kind = CTL_TEXT,
    .doc = "Use this authority (PEM) instead of making one.",
};
static const struct ctl_option opt_ca_key = {
    .name = "ca-key",
    .arg = "FILE",
    .offset = offsetof(struct ctl_options, ca_key),
    .kind = CTL_TEXT,
    .doc = "Its private key (PEM).",
};
static const struct ctl_option opt_no_wait = {
    .name = "no-wait",
    .offset = offsetof(struct ctl_options, no_wait),
    .doc = "Return when the wish is accepted.",
};
static const struct ctl_option opt_no_color = {
    .name = "no-color",
    .offset = offsetof(struct ctl_options, no_color),
    .doc = "No colours; also with NO_COLOR in the environment.",
};
static const struct ctl_option opt_number = {
    .name = "number",
    .letter = 'n',
    .arg = "N",
    .offset = offsetof(struct ctl_options, number),
    .kind = CTL_NUMBER,
    .doc = "The last N entries; default 20.",
};
static const struct ctl_option opt_timeout = {
    .name = "timeout",
    .arg = "SECONDS",
    .offset = offsetof(struct ctl_options, timeout_s),
    .kind = CTL_NUMBER,
    .doc = "Wait at most this long; default 60.",
};

const struct ctl_option *const ctl_global_options[] = { &opt_conf, &opt_socket, &opt_json,
                                                        &opt_no_color, &opt_help };
const size_t ctl_global_option_count = LEN(ctl_global_options);

static const struct ctl_command commands[] = {
    { .name = "status",
      .args = "",
      .summary = "who is active, since when and why, and what is missing",
      .doc =
          "One screen: the active node, the readiness of both nodes and what is "
          "missing for it, the services, the latency of the state share and of the "
          "DBMS, the lease, the alarms, the last switches. If the node daemon does not "
          "run, it shows what the state share tells, and exits with 3.",
      .run = cmd_status,
      .options = { &opt_watch, &opt_check } },
    { .name = "explain",
      .args = "",
      .summary = "why the cluster is as it is, and what a failure now would do",
      .doc =
          "Says in sentences why each node is in its state, on which evidence, and what "
          "would happen if the active node, the other node, a service, the file server "
          "or the DBMS failed now.",
      .run = cmd_explain },
    { .name = "log",
      .args = "",
      .summary = "history of switches and moves, from both nodes on one timeline",
      .doc =
          "Each entry says what happened, why, on which evidence, and for a switch how "
          "long the services were away. It reaches back as far as the nodes keep it.",
      .run = cmd_log,
      .options = { &opt_number, &opt_follow } },
    { .name = "switchover",
      .args = "",
      .summary = "make the other node active, without loss",
      .doc =
          "A planned switch: the services of the active node are stood down, the lease "
          "is released and the other node takes over at once. It is refused if that "
          "node is not ready. Waits until it is done and shows the steps.",
      .run = cmd_switchover,
      .options = { &opt_to, &opt_no_wait, &opt_timeout } },
    { .name = "maintenance",
      .args = "on|off",
      .args_min = 1,
      .args_max = 1,
      .summary = "keep a node from taking over while it is worked on",
      .doc = "A node in maintenance does not become active. Turned on at the active node "
             "it hands over to the other one first, and is refused if that is not ready.",
      .run = cmd_maintenance,
      .options = { &opt_node } },
    { .name = "pause",
      .args = "",
      .summary = "stop automatic switching of the whole cluster",
      .doc =
          "For work on the file server or the network. While it is paused, nobody takes "
          "over if the active node breaks; a planned switchover still works.",
      .run = cmd_pause },
    { .name = "resume",
      .args = "",
      .summary = "switch automatically again",
      .doc = "Ends pause.",
      .run = cmd_resume },
    { .name = "check",
      .args = "",
      .summary = "test everything the cluster needs, before and after installation",
      .doc = "Tests the configuration, the programs, the file server (version of the "
             "protocol, rights, whether exclusive create is exclusive, latency, "
             "bandwidth), the DBMS and its fence, whether file server and DBMS are "
             "machines of their own, whether the timing profile fits the measured "
             "latency, how long the certificate of the servers is good, and whether both "
             "nodes are "
             "alike. Each line says ok, warn or FAIL; "
             "the exit code is 1 if anything failed. It changes nothing: what it writes "
             "to the share it removes again.",
      .run = cmd_check,
      .options = { &opt_quick } },
    { .name = "init",
      .args = "",
      .summary = "create the cluster on an empty state share",
      .doc =
          "Makes the cluster key if it is missing, brings the schema and the fence into "
          "the DBMS, makes the certificate authority of the devices (or takes a given "
          "one), seals it with the cluster key on the data share and installs it here, "
          "and writes the cluster record and the folders to the state share. It refuses "
          "a share that is in use. Run it on one node, then copy the key to the other "
          "and run redoubt secret fetch there.",
      .run = cmd_init,
      .options = { &opt_yes, &opt_folder, &opt_ca_certificate, &opt_ca_key } },
    { .name = "secret fetch",
      .args = "",
      .summary = "install the authority and new certificates of the servers on this node",
      .doc =
          "Reads the sealed secrets from the share, opens them with the cluster key and "
          "puts them into [trust] folder, readable by root and the group redoubt (those "
          "of the Web Server: redoubt-web; the key that signs packages: root only), with "
          "new certificates for the servers of this node. What a cluster made by an "
          "older version does not have yet, it makes. Run it on the node where redoubt "
          "init was not run, after [trust] names or [address] changed, and before the "
          "certificate of the servers ends.",
      .run = cmd_secret_fetch },
    { .name = "secret list",
      .args = "",
      .summary = "show which secrets the share and this node have",
      .doc = "Also how long the certificates are good. The exit code is 1 if this node "
             "lacks something or has something else than the share.",
      .run = cmd_secret_list },
    { .name = "lease adopt",
      .args = "",
      .summary = "go on after the state share was restored from a backup",
      .doc =
          "When the share has gone back in time, no node takes the lease by itself. This "
          "command tells this node to go on behind the highest epoch known. Make sure "
          "that the other node uses the same share.",
      .run = cmd_lease_adopt,
      .options = { &opt_yes } },
    { .name = "config check",
      .args = "",
      .summary = "check the configuration, all errors at once",
      .doc = "Names each error with line and column; also programs and files that are "
             "missing on this machine.",
      .run = cmd_config_check },
    { .name = "config show",
      .args = "",
      .summary = "print the configuration with all defaults",
      .doc = "What is printed is a valid configuration file.",
      .run = cmd_config_show,
      .options = { &opt_docs } },
    { .name = "config reference",
      .args = "",
      .summary = "list every section and key",
      .doc = "With type, range, default, and whether a reload may change it.",
      .run = cmd_config_reference,
      .options = { &opt_man, &opt_agent } },
    { .name = "reload",
      .args = "",
      .summary = "let the node daemon read its configuration again",
      .doc =
          "Nothing switches. Each changed key is named, and whether it takes effect now "
          "or after a restart of the daemon. A file with errors is not taken over.",
      .run = cmd_reload },
    { .name = "database migrate",
      .args = "",
      .summary = "bring the schema of the DBMS up to this version",
      .doc =
          "Applies the migrations that are missing, each in a transaction. Run it once, "
          "before the second node is upgraded.",
      .run = cmd_database_migrate,
      .options = { &opt_folder } },
    { .name = "debug",
      .args = "",
      .summary = "the last debug lines of the node daemon",
      .doc =
          "The daemon keeps its last lines in memory, debug lines too, whatever its log "
          "level.",
      .run = cmd_debug },
    { .name = "alarms",
      .args = "[ID]",
      .args_max = 1,
      .summary = "what each alarm means and what to do",
      .doc = "Without an id, all of them.",
      .run = cmd_alarms },
    { .name = "completion",
      .args = "",
      .summary = "print the completion for bash",
      .doc = "It is installed with the package.",
      .run = cmd_completion },
    { .name = "help",
      .args = "[COMMAND]",
      .args_max = 2,
      .summary = "show all commands, or one",
      .doc = "The same as --help.",
      .run = cmd_help,
      .options = { &opt_man } },
    { .name = "version",
      .args = "",
      .summary = "show the version",
      .doc = "Of this program and, if it runs, of the node daemon.",
      .run = cmd_version },
};
const struct ctl_section ctl_cluster_section = { .title = "The cluster",
                                                 .commands = commands,
                                                 .count = LEN(commands) };
