/*
 * ctl: the command line `redoubt`.
 *
 * Purpose   What an operator does with a cluster, on either node.
 * Shape     Two tables of commands (ctl_commands.c, manage_commands.c) drive the dispatch,
 *           --help, the manual page and the completion of the shell.  Each command is a function from the
 *           parsed options to an exit code.
 * Threads   one
 * Tests     tests/unit/test_ctl.py runs the program against a fake daemon
 */
#ifndef APP_CTL_H
#define APP_CTL_H

#include <jansson.h>
#include <stdio.h>

#include "base/alarm.h"
#include "base/err.h"
#include "sys/conf/conf.h"
#include "sys/smb/smb.h"

/* Documented in redoubt(8): scripts depend on them. */
enum ctl_exit {
    CTL_OK = 0,
    CTL_FAILED = 1,      /* it was tried and did not work, or a check failed */
    CTL_USAGE = 2,       /* the command line is wrong */
    CTL_NO_DAEMON = 3,   /* redoubt-node cannot be reached */
    CTL_DEGRADED = 4,    /* status --check: something is missing */
    CTL_NOT_ACTIVE = 5,  /* no node is active, or not this one, which was asked */
    CTL_NOT_POSSIBLE = 6 /* the daemon refuses: not possible in the present state */
};

/* What an option said that may be given more than once. */
enum { CTL_LIST_MAX = 64 };
struct ctl_list {
    const char *at[CTL_LIST_MAX];
    size_t count;
};

/* Everything that options can say; a command uses what its entry in the table lists. */
struct ctl_options {
    const char *conf;
    const char *socket;
    const char *to;
    const char *node;
    const char *folder;
    const char *ca_certificate, *ca_key;
    bool json, yes, watch, check, no_wait, follow, help, man, docs, quick, no_color,
        agent;
    uint32_t number, timeout_s;

    /* Of the commands for devices and their protection. */
    const char *server, *token_file, *ca, *file;
    const char *group, *status, *state, *search, *select_status, *select_tag, *tag;
    const char *waves, *soak, *max_failures;
    const char *since, *until, *mode, *at, *timezone, *missed, *item, *reason, *role;
    struct ctl_list device, path, days, kind, severity;
    const char *name, *package_version, *platform, *description, *signature;
    uint32_t grace_h;
    bool is_private;
    const char *base, *enrol_token; /* of an installer */
    uint32_t limit, window, spread, expires, priority, uses, keep_days, keep_count, cpu;
    bool connected, offline, lock, no_subgroups, dry_run, prune, approval, latest, all;

    /* Of the commands for signatures. */
    const char *proxy, *mirror_ca;
    struct ctl_list interval, database, keep, warning, critical;
    bool force;
};

struct ctl {
    struct ctl_options opt;
    int argc; /* what is left after the command and its options */
    char **argv;
    bool colour; /* stdout is a terminal that wants it */
    bool tty;    /* stderr is a terminal: progress may be drawn */
    bool have_conf;
    struct conf conf;
    enum err daemon_err; /* why the daemon could not be reached last */
    struct err_info daemon_why;
    bool api_seen; /* the API has answered already */
};

struct ctl_option {
    const char *name;
    char letter;     /* 0: none */
    const char *arg; /* its metavariable; NULL: a flag */
    size_t offset;   /* in struct ctl_options */
    enum { CTL_FLAG, CTL_TEXT, CTL_NUMBER, CTL_LIST } kind;
    const char *doc;
};

enum { CTL_COMMAND_OPTIONS = 24, ARGS_MANY = 1000 };

struct ctl_command {
    const char *name; /* "lease adopt": one or two words */
    const char *args; /* "on|off", "" if it takes none */
    int args_min, args_max;
    const char *summary; /* one line, without a full stop */
    const char *doc;     /* one paragraph of whole sentences */
    int (*run)(struct ctl *c);
    const struct ctl_option *options[CTL_COMMAND_OPTIONS];
};

/* Commands that belong together, and the options that all of them have. */
struct ctl_section {
    const char *title;
    const struct ctl_command *commands;
    size_t count;
    const struct ctl_option *const *options;
    size_t option_count;
};

/* ctl_commands.c, manage_commands.c */
extern const struct ctl_section ctl_cluster_section, ctl_manage_section,
    ctl_signature_section, ctl_publish_section, ctl_licence_section,
    ctl_installer_section;
extern const struct ctl_option *const ctl_global_options[];
extern const size_t ctl_global_option_count;

/* What every command has that asks the API; for the sections of such commands. */
enum { CTL_API_OPTIONS = 4 };
extern const struct ctl_option *const ctl_api_options[CTL_API_OPTIONS];

/* ctl_table.c: all sections as one table. */
enum { CTL_SECTIONS = 6 };
const struct ctl_section *ctl_section_at(size_t i);
size_t ctl_command_count(void);
const struct ctl_command *ctl_command_at(size_t i);
/* The k-th option of a command, those of its section after its own; NULL: no more. */
const struct ctl_option *ctl_option_of(const struct ctl_command *cmd, size_t k);

/* ctl_help.c */
void ctl_help_all(FILE *to);
void ctl_help_command(const struct ctl_command *cmd, FILE *to);
int cmd_help(struct ctl *c);
int cmd_completion(struct ctl *c);
int cmd_version(struct ctl *c);
int cmd_alarms(struct ctl *c);

/* ctl_conf.c: the configuration, read once.  CTL_OK, or the exit code after printing. */
MUST_USE int ctl_load_conf(struct ctl *c);
/* The same without a word: is there one? */
bool ctl_try_conf(struct ctl *c);
int cmd_config_check(struct ctl *c);
int cmd_config_show(struct ctl *c);
int cmd_config_reference(struct ctl *c);

/* ctl_api.c: the daemon.  *out is owned by the caller; CTL_OK, or the exit code after the
 * error was printed. */
MUST_USE int ctl_get(struct ctl *c, const char *path, json_t **out);
/* body may be NULL; it is borrowed. */
MUST_USE int ctl_post(struct ctl *c, const char *path, json_t *body, json_t **out);
/* As ctl_get, but says nothing if the daemon cannot be reached (CTL_NO_DAEMON). */
MUST_USE int ctl_try_get(struct ctl *c, const char *path, json_t **out);
/* What the last ctl_try_get said nothing about. */
void ctl_print_no_daemon(struct ctl *c);

/* ctl_out.c: words for people */
/* Title, text and suggestion on stderr, or {"error":...} on stdout with --json; `exit`. */
struct ctl_problem {
    const char *id, *title, *text, *suggestion;
};
int ctl_fail(struct ctl *c, int exit, const struct ctl_problem *p);
/* One sentence, for a command line that is wrong. */
int ctl_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_print_json(const json_t *j);

enum ctl_colour { CTL_PLAIN, CTL_BOLD, CTL_GREEN, CTL_YELLOW, CTL_RED, CTL_DIM };
/* "" if there are no colours. */
const char *ctl_ink(const struct ctl *c, enum ctl_colour k);

/* "120 ms", "1.4 s", "12 min", "3 h 5 min", "2 d 4 h"; in buf, returned. */
const char *ctl_duration(uint64_t ms, char *buf, size_t size);
/* RFC 3339 to ms since 1970; false if it is not. */
bool ctl_parse_time(const char *text, int64_t *ret_ms);
/* "2026-11-22 19:56:14 UTC (12 min ago)"; the text itself if it is not a time. */
const char *ctl_when(const char *text, char *buf, size_t size);
/* "[y/N]" on a terminal; true with --yes; false without a terminal. */
bool ctl_confirm(const struct ctl *c, const char *question);
/* A paragraph of at most 78 columns, each line after `indent` blanks. */
void ctl_paragraph(FILE *to, int indent, const char *text);

/* Members of objects that may be missing or of another type. */
const char *ctl_str(const json_t *o, const char *key, const char *or_else);
uint64_t ctl_u64(const json_t *o, const char *key, uint64_t or_else);
bool ctl_bool(const json_t *o, const char *key, bool or_else);

/* ctl_status.c, ctl_log.c, ctl_operate.c, ctl_init.c, ctl_check.c */
int cmd_status(struct ctl *c);
int cmd_log(struct ctl *c);
int cmd_explain(struct ctl *c);
int cmd_switchover(struct ctl *c);
int cmd_maintenance(struct ctl *c);
int cmd_pause(struct ctl *c);
int cmd_resume(struct ctl *c);
int cmd_lease_adopt(struct ctl *c);
int cmd_reload(struct ctl *c);
int cmd_debug(struct ctl *c);
/* <prefix>/lib/redoubt, where the daemons are. */
void ctl_sibling_folder(char *out, size_t size);
int cmd_init(struct ctl *c);
int cmd_check(struct ctl *c);
int cmd_database_migrate(struct ctl *c);

/* ctl_status_print.c: the screen of `status`; where the time of a switch went. */
void ctl_print_phases(const json_t *phases, int indent);
void ctl_print_status(const struct ctl *c, const json_t *status);

/*
 * ctl_share.c: connects to a share of the configuration; blocks as long as the server likes.
 * ctl_share_status.c: what the state share tells without a daemon: an object like that of
 * GET /v1/status, with "source":"share".  NULL after an error or CTL_SHARE_MS; why is filled.
 */
enum { CTL_SHARE_MS = 4000 };
MUST_USE enum err ctl_share_connect(const struct conf *conf, const char *share,
                                    struct smb **out, struct err_info *info);
/* timeout_ms: of one exchange with the server, for those that move large pieces. */
MUST_USE enum err ctl_share_connect_for(const struct conf *conf, const char *share,
                                        uint32_t timeout_ms, struct smb **out,
                                        struct err_info *info);
json_t *ctl_status_from_share(struct ctl *c, char *why, size_t why_size);

#endif
