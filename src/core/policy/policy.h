/*
 * policy: what an administrator decides about a device, as plain data.
 *
 * Purpose   The one catalogue of settings: names, types, ranges, defaults, words for people.
 *           The manager validates with it, the agent reads its effective policy with it, and
 *           docs/policies.md is made from it.  The table redoubt.setting (db/0005_groups.sql)
 *           says the same to the DBMS, which merges the policies of groups.
 * Shape     struct policy has a member for each setting: "scan.cpu_percent" is
 *           scan_cpu_percent.  It is about 26 KiB: not for the stack.
 * Text      Documents are JSON as PostgreSQL and jansson write it: a text with an escape in
 *           it (\") is refused, because no setting may contain what needs one.
 * Owns      Nothing; no pointers into the text remain.
 * Threads   any; pure
 */
#ifndef CORE_POLICY_POLICY_H
#define CORE_POLICY_POLICY_H

#include "base/err.h"
#include "base/str.h"

enum {
    POLICY_LIST_MAX = 32,        /* entries of a list */
    POLICY_ITEM_MAX = 200,       /* bytes of a path or an address */
    POLICY_DOCUMENT_MAX = 40960, /* bytes of a document; the longest needs 30 KiB */
    POLICY_ERRORS_MAX = 16,
    POLICY_KEY_MAX = 100,
};

struct policy_list {
    uint32_t count;
    char at[POLICY_LIST_MAX][POLICY_ITEM_MAX + 1];
};

/* The words of a POLICY_CHOICE, in the order of the catalogue. */
enum policy_onaccess {
    POLICY_ONACCESS_OFF,
    POLICY_ONACCESS_NOTIFY,
    POLICY_ONACCESS_BLOCK
};
enum policy_severity { POLICY_OK, POLICY_WARNING, POLICY_CRITICAL };

#define POLICY_SEVERITIES "ok|warning|critical"

/*
 * X(TYPE, member, key, min, max, words, default, doc)
 *
 * TYPE: INT min..max; BOOL; CHOICE of words; URL of at most max bytes, "" or "cluster"; URLS and PATHS
 * of min to max entries.  default is JSON.  The order is that of documents.  A new setting:
 * a line here, a line in db/0005_groups.sql (by a migration once that is released).
 */
// clang-format off
#define POLICY_MAP(X)                                                                    \
    X(INT, engine_max_file_size_mib, "engine.max_file_size_mib", 1, 2000, "", "100",     \
      "Files larger than this many MiB are not scanned.")                                \
    X(INT, engine_max_scan_size_mib, "engine.max_scan_size_mib", 1, 4000, "", "400",     \
      "How many MiB of one file or archive, unpacked, are scanned at most.")             \
    X(INT, engine_max_recursion, "engine.max_recursion", 1, 100, "", "17",               \
      "How deep archives within archives are opened.")                                   \
    X(BOOL, engine_scan_archives, "engine.scan_archives", 0, 1, "", "true",              \
      "Look into archives.")                                                             \
    X(BOOL, engine_alert_exceeds_max, "engine.alert_exceeds_max", 0, 1, "", "false",     \
      "Report a file that exceeds a limit of the engine as a threat.")                   \
    X(BOOL, engine_detect_pua, "engine.detect_pua", 0, 1, "", "false",                   \
      "Detect applications that are possibly unwanted.")                                 \
    X(INT, engine_threads, "engine.threads", 1, 64, "", "2",                             \
      "How many files the engine scans at the same time.")                               \
    X(PATHS, exclusions_paths, "exclusions.paths", 0, POLICY_LIST_MAX, "", "[]",         \
      "Files and folders that are never scanned.")                                       \
    X(CHOICE, onaccess_mode, "onaccess.mode", 0, 2, "off|notify|block", "\"notify\"",    \
      "Real-time protection: off; notify of threats in files that were written or opened; or block access to them.") \
    X(PATHS, onaccess_paths, "onaccess.paths", 0, POLICY_LIST_MAX, "",                   \
      "[\"/home\", \"/tmp\"]",                                                           \
      "Folders that real-time protection watches.")                                      \
    X(INT, onaccess_timeout_ms, "onaccess.timeout_ms", 100, 30000, "", "2000",           \
      "After this many milliseconds without a verdict, access is allowed.")              \
    X(INT, onaccess_max_file_mib, "onaccess.max_file_mib", 1, 2000, "", "25",            \
      "Real-time protection lets larger files pass.")                                    \
    X(BOOL, quarantine_enabled, "quarantine.enabled", 0, 1, "", "true",                  \
      "Move infected files to the quarantine of the device.")                            \
    X(INT, quarantine_days, "quarantine.days", 1, 3650, "", "90",                        \
      "Files are kept in quarantine for this many days.")                                \
    X(INT, quarantine_max_mib, "quarantine.max_mib", 1, 1048576, "", "1024",             \
      "How large the quarantine may become; the oldest files go first.")                 \
    X(URL, update_source, "update.source", 0, POLICY_ITEM_MAX, "", "\"\"",               \
      "The mirror that signatures come from: an address, or cluster: its own. Empty: as the freshclam of the device is configured.") \
    X(INT, update_interval_min, "update.interval_min", 10, 10080, "", "240",             \
      "How often signatures are updated, in minutes.")                                   \
    X(URLS, update_custom_urls, "update.custom_urls", 0, POLICY_LIST_MAX, "", "[]",      \
      "Signature files of your own, fetched with each update.")                          \
    X(BOOL, update_cluster_files, "update.cluster_files", 0, 1, "", "true",              \
      "With each update also the signature files that the cluster publishes, verified.") \
    X(INT, scan_cpu_percent, "scan.cpu_percent", 1, 100, "", "50",                       \
      "How much of one CPU a scan may use.")                                             \
    X(PATHS, scan_quick_paths, "scan.quick_paths", 0, POLICY_LIST_MAX, "",               \
      "[\"/tmp\", \"/home\", \"/root\"]",                                                \
      "What a quick scan looks at.")                                                     \
    X(BOOL, scan_one_filesystem, "scan.one_filesystem", 0, 1, "", "true",                \
      "A full scan stays on the file systems of the paths that it began with.")          \
    X(INT, agent_heartbeat_s, "agent.heartbeat_s", 10, 3600, "", "120",                  \
      "A device says that it is there at least this often, in seconds.")                 \
    X(INT, agent_reconnect_spread_s, "agent.reconnect_spread_s", 0, 3600, "", "0",       \
      "After a lost connection, devices come back spread over this many seconds. 0: as the server says.") \
    X(INT, status_signatures_warning_h, "status.signatures_warning_h", 0, 8760, "", "72", \
      "Warning when the signatures are older than this many hours. 0: never.")           \
    X(INT, status_signatures_critical_h, "status.signatures_critical_h", 0, 8760, "", "168", \
      "Critical when the signatures are older than this many hours. 0: never.")          \
    X(INT, status_scan_warning_days, "status.scan_warning_days", 0, 365, "", "0",        \
      "Warning when the last full or quick scan is older than this many days. 0: never.") \
    X(INT, status_unseen_warning_h, "status.unseen_warning_h", 0, 8760, "", "24",        \
      "Warning when the device was not heard of for this many hours. 0: never.")         \
    X(INT, status_unseen_critical_h, "status.unseen_critical_h", 0, 8760, "", "0",       \
      "Critical when the device was not heard of for this many hours. 0: never.")        \
    X(CHOICE, status_realtime_off, "status.realtime_off", 0, 2, POLICY_SEVERITIES, "\"warning\"", \
      "The status of a device whose real-time protection is off or has failed.")         \
    X(CHOICE, status_licence_missing, "status.licence_missing", 0, 2, POLICY_SEVERITIES, "\"ok\"", \
      "The status of a device whose licence is missing or has expired.")                 \
    X(CHOICE, status_engine_down, "status.engine_down", 0, 2, POLICY_SEVERITIES, "\"critical\"", \
      "The status of a device whose engine does not run.")                               \
    X(CHOICE, status_threat, "status.threat", 0, 2, POLICY_SEVERITIES, "\"critical\"",   \
      "The status of a device with a threat that was not cured.")
// clang-format on

enum policy_type {
    POLICY_INT,
    POLICY_BOOL,
    POLICY_CHOICE,
    POLICY_URL,
    POLICY_URLS,
    POLICY_PATHS,
};

#define POLICY_C_INT    uint32_t
#define POLICY_C_BOOL   bool
#define POLICY_C_CHOICE uint32_t /* index of the word: enum policy_onaccess, ... */
#define POLICY_C_URL    POLICY_C_TEXT
#define POLICY_C_URLS   struct policy_list
#define POLICY_C_PATHS  struct policy_list

typedef char POLICY_C_TEXT[POLICY_ITEM_MAX + 1];

struct policy {
#define X(type, member, key, min, max, words, def, doc) POLICY_C_##type member;
    POLICY_MAP(X)
#undef X
};

/* One line of the catalogue. */
struct policy_setting {
    const char *key;
    enum policy_type type;
    uint32_t min, max;
    const char *words; /* "off|notify|block"; "" for other types */
    const char *def;   /* JSON */
    const char *doc;
    size_t offset; /* in struct policy */
};

enum {
#define X(type, member, key, min, max, words, def, doc) POLICY_AT_##member,
    POLICY_MAP(X)
#undef X
        POLICY_SETTINGS
};

extern const struct policy_setting policy_catalogue[POLICY_SETTINGS];

const char *policy_type_name(enum policy_type t);

/* What is wrong, and where: a setting's key, or "" for the whole document. */
struct policy_error {
    char path[POLICY_KEY_MAX + 1];
    char why[120];
};

struct policy_errors {
    uint32_t count;  /* in at[] */
    uint32_t unsaid; /* more that found no place */
    struct policy_error at[POLICY_ERRORS_MAX];
};

void policy_defaults(struct policy *out);

/*
 * policy_parse - read an effective policy, {"key": value, ...}.
 *
 * A key that is missing has its default; one that is not known is left out of account (the
 * server may be newer).  ERR_INVALID, errors filled and *out untouched, if anything else is
 * wrong.  errors may be NULL.
 */
MUST_USE enum err policy_parse(struct policy *out, struct str json,
                               struct policy_errors *errors);

/*
 * policy_validate_settings - what an administrator sets for a group:
 * {"key": value, ...} or {"key": {"value": value, "locked": bool}, ...}.
 *
 * Keys must be known.  ERR_INVALID, errors filled, if anything is wrong.
 */
MUST_USE enum err policy_validate_settings(struct str json, struct policy_errors *errors);

/* The document of p, all settings in order, byte for byte as redoubt.effective has it. */
void policy_document(const struct policy *p, struct text *out);

#endif
