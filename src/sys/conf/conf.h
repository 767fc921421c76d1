/*
 * conf: redoubt.conf and agent.conf as plain data.
 *
 * Purpose   Reads a whole configuration file into a new struct, with defaults filled in
 *           and every rule checked, or says everything that is wrong with it at once.
 *           One table (conf_tables.c) drives parsing, defaults, printing, the comparison
 *           for a reload, the listing of the command line and the manual page.
 * Shape     struct conf is plain data of fixed size, without pointers: copy, compare,
 * keep. An unset optional text is "". Units     _ms milliseconds, _s seconds, _mib
 * mebibytes. Safety    A struct conf that came out of conf_load with ERR_OK keeps the
 * timing rules of conf_check.c: renew_ms + demote_before_ms < hold_ms, and the rest
 * there. Errors    ERR_CONFIG: `errors` holds at least one entry and the struct is
 * untouched. Threads   any Tests     tests/unit/test_conf.c
 */
#ifndef SYS_CONF_H
#define SYS_CONF_H

#include <stdio.h>

#include "base/err.h"
#include "base/mac.h"
#include "base/str.h"

enum {
    CONF_NAME = 64,  /* names, with the NUL */
    CONF_PATH = 256, /* paths and addresses */
    CONF_TEXT = 512, /* free text: arguments, the DBMS connection */
    CONF_SERVICES_MAX = 16,
    CONF_FILE_BYTES_MAX = 64 * 1024,
    CONF_ERRORS_MAX = 64,
};

#define CONF_DEFAULT_PATH       "/etc/redoubt/redoubt.conf"
#define CONF_AGENT_DEFAULT_PATH "/etc/redoubt/agent.conf"

enum conf_profile { CONF_PROFILE_FAST, CONF_PROFILE_BALANCED, CONF_PROFILE_PATIENT };
enum conf_address_mode { CONF_ADDRESS_VIRTUAL_IP, CONF_ADDRESS_NONE };
enum conf_standby { CONF_STANDBY_HOT, CONF_STANDBY_COLD, CONF_STANDBY_ALWAYS };
enum conf_start { CONF_START_NOTIFY, CONF_START_EXEC };
enum conf_level {
    CONF_LEVEL_ERROR,
    CONF_LEVEL_WARNING,
    CONF_LEVEL_INFO,
    CONF_LEVEL_DEBUG
};
enum conf_target { CONF_TARGET_AUTO, CONF_TARGET_JOURNAL, CONF_TARGET_STDERR };
/* In the order of their age: comparison tells which is newer. */
enum conf_dialect {
    CONF_SMB2_02,
    CONF_SMB2_10,
    CONF_SMB3_00,
    CONF_SMB3_02,
    CONF_SMB3_11,
};

/* The timing values are always filled: from the file, else from the profile. */
struct conf_cluster {
    char name[CONF_NAME];
    char node[CONF_NAME];
    char peer[CONF_NAME];
    enum conf_profile profile;
    uint32_t renew_ms, hold_ms, margin_ms, poll_ms, share_timeout_ms, demote_before_ms;
    uint32_t switch_max, switch_window_s;
    char key_file[CONF_PATH];
    char state_dir[CONF_PATH];
    char run_dir[CONF_PATH];
};

struct conf_share {
    char state[CONF_PATH]; /* //host/share or //host/share/folder */
    char data[CONF_PATH];  /* the same, or "" */
    char credentials[CONF_PATH];
    enum conf_dialect dialect_min, dialect_max;
    uint32_t encrypt; /* 0 or 1 */
    uint32_t port;
};

struct conf_database {
    char conninfo[CONF_TEXT];
    uint32_t probe_ms, fence_timeout_ms;
};

struct conf_address {
    enum conf_address_mode mode;
    char interface[16]; /* IFNAMSIZ */
    char ipv4[32];      /* "10.0.0.1/24" or "" */
    char ipv6[CONF_NAME];
    char health_listen[CONF_PATH]; /* "host:port" or "" */
};

struct conf_service {
    char name[CONF_NAME];
    char exec[CONF_PATH];
    char arguments[CONF_TEXT];
    enum conf_standby standby;
    enum conf_start start;
    char user[CONF_NAME];
    uint32_t start_timeout_ms, stop_timeout_ms, role_timeout_ms;
    uint32_t watchdog_ms; /* 0: no watchdog */
    uint32_t restart_backoff_ms, restart_backoff_max_ms;
    uint32_t memory_max_mib; /* 0: no limit */
    uint32_t tasks_max;
    uint32_t nofile;
    uint32_t order; /* started in rising order, stopped in falling order */
};

struct conf_server {
    char listen[CONF_PATH];
    char certificate[CONF_PATH], key[CONF_PATH], ca[CONF_PATH];
    char api_listen[CONF_PATH]; /* "host:port" or "" */
    uint32_t workers;
};

struct conf_trust {
    char folder[CONF_PATH]; /* ca.pem, ca.key, server.pem, ...: app/ctl/ctl_trust.h */
    char names[CONF_TEXT];  /* of the servers, separated by blanks */
    uint32_t device_days, server_days;
};

struct conf_web {
    char http[CONF_PATH], https[CONF_PATH];
    char root[CONF_PATH];
    char store[CONF_PATH]; /* of redoubt-mirror */
    uint32_t mirror_kib_s; /* 0: no limit */
    uint32_t scrub_hours;
    char certificate[CONF_PATH], key[CONF_PATH];
    char link_key[CONF_PATH]; /* of the links to private packages */
    uint32_t workers;         /* 0: one for each processor */
    uint32_t sig_rate, sig_burst, sig_connections, sig_retry_s;
};

struct conf_activation {
    char listen[CONF_PATH];
    char licence[CONF_PATH];
    char anchor[CONF_PATH]; /* the vendor's public key (Ed25519) */
    char key[CONF_PATH];    /* signs the leases of licences (Ed25519) */
    char certificate[CONF_PATH], tls_key[CONF_PATH], ca[CONF_PATH];
    char vendor[CONF_TEXT]; /* "https://..." or "" */
    char vendor_ca[CONF_PATH], vendor_proxy[CONF_TEXT];
    uint32_t vendor_timeout_ms;
    uint32_t lease_days, overdraft_percent, requests_per_minute;
};

struct conf_alert {
    char hook[CONF_PATH];
    uint32_t timeout_ms, max_per_minute;
};

struct conf_metrics {
    char listen[CONF_PATH];
};

struct conf_log {
    enum conf_level level;
    enum conf_target target;
};

struct conf {
    struct conf_cluster cluster;
    struct conf_share share;
    struct conf_database database;
    struct conf_address address;
    struct conf_server server;
    struct conf_trust trust;
    struct conf_web web;
    struct conf_activation activation;
    struct conf_alert alert;
    struct conf_metrics metrics;
    struct conf_log log;
    uint32_t service_count;
    struct conf_service service[CONF_SERVICES_MAX]; /* in the order of the file */
};

/* agent.conf, on devices and on both nodes. */
struct conf_agent {
    char server[CONF_PATH];      /* "host:port" */
    char server_name[CONF_PATH]; /* expected in the server's certificate; "": the host */
    char certificate[CONF_PATH], key[CONF_PATH], ca[CONF_PATH];
    char spool[CONF_PATH];
    char clamd[CONF_PATH];
    char state_dir[CONF_PATH], clamd_conf[CONF_PATH], freshclam_conf[CONF_PATH];
    char engine_restart[CONF_PATH], upgrade[CONF_PATH];
    char web[CONF_PATH];       /* "http://host:port" or "" */
    char device_id[CONF_NAME]; /* a UUID; "": from the certificate */
    uint32_t report_ms, spool_max, events_max, events_max_kib;
    uint32_t dead_after_ms, connect_ms, fast_retry_ms;
    uint32_t upgrade_confirm_s, upgrade_max_mib;
};
struct agent_conf {
    struct conf_agent agent;
    struct conf_log log;
};

/* One line a person reads: `path:line:column: text`.  line 0: about the whole file. */
struct conf_error {
    uint32_t line, column;
    char text[232];
};
struct conf_errors {
    uint32_t count;
    bool more; /* there were more than fit */
    struct conf_error at[CONF_ERRORS_MAX];
};

/*
 * conf_load - read, check and complete the file; everything wrong with it at once.
 *
 * out     filled only on ERR_OK.
 * errors  out; overwritten.
 */
MUST_USE enum err conf_load(const char *path, struct conf *out,
                            struct conf_errors *errors);
MUST_USE enum err agent_conf_load(const char *path, struct agent_conf *out,
                                  struct conf_errors *errors);

/* The same from memory; text is borrowed for the call. */
MUST_USE enum err conf_parse(struct str text, struct conf *out,
                             struct conf_errors *errors);
MUST_USE enum err agent_conf_parse(struct str text, struct agent_conf *out,
                                   struct conf_errors *errors);

/* Prints the errors, one a line. */
void conf_errors_print(const struct conf_errors *errors, const char *path, FILE *to);
/* conf_load for a program: what is wrong goes to stderr; false then. */
MUST_USE bool conf_load_told(const char *path, struct conf *out);

/*
 * conf_check_machine - what the file says against this machine: programs exist and may be
 * run, their users exist, key files are private, the interface exists.  ERR_CONFIG with
 * errors, or ERR_OK.
 */
MUST_USE enum err conf_check_machine(const struct conf *conf, struct conf_errors *errors);

/* Writes a file that parses to the same struct; each key with its documentation if
 * `with_docs`. */
void conf_print(const struct conf *conf, bool with_docs, FILE *to);
void agent_conf_print(const struct agent_conf *conf, bool with_docs, FILE *to);

/* Calls each for every key in the order of conf_print; texts are borrowed for the call. */
void conf_each(const struct conf *conf,
               void (*each)(void *arg, const char *section, const char *key,
                            const char *value),
               void *arg);

/*
 * conf_digest - 16 hex digits and a NUL over everything that must be the same on both nodes:
 * all but node, peer and [address] interface.
 */
void conf_digest(const struct conf *conf, char out[17]);

/*
 * conf_diff - which keys differ, for a reload.
 *
 * Calls `each` once for a changed key; a service that came or went is the key "exec" of
 * it.  Returns the number of differences that need a restart of the daemon.
 */
enum conf_reload {
    CONF_RELOAD_LIVE,    /* taken over at once */
    CONF_RELOAD_RESTART, /* needs a restart of redoubt-node */
};
struct conf_change {
    char section[CONF_NAME + 8]; /* "cluster", "service web" */
    const char *key;
    enum conf_reload reload;
};
uint32_t conf_diff(const struct conf *from, const struct conf *to,
                   void (*each)(void *arg, const struct conf_change *change), void *arg);

/* Names of the choices as in the file. */
const char *conf_profile_name(enum conf_profile p);
const char *conf_standby_name(enum conf_standby s);
const char *conf_dialect_name(enum conf_dialect d);

/* How long the other node waits after the record last changed (design.md, rule L4). */
static inline uint32_t conf_wait_ms(uint32_t hold_ms, uint32_t margin_ms)
{
    return hold_ms + (hold_ms + 99) / 100 + margin_ms;
}

/*
 * conf_load_key - the cluster key: 64 hex digits and an optional newline.
 *
 * ERR_NOT_FOUND, ERR_DENIED (others than the owner may read it, or it is not ours to
 * read), ERR_CORRUPT (not 64 hex digits).
 */
MUST_USE enum err conf_load_key(const char *path, struct mac_key *out,
                                struct err_info *info);

/* Splits "host:port" or "[v6]:port"; the host without brackets.  ERR_INVALID. */
MUST_USE enum err conf_listen_split(const char *listen, char *host, size_t host_size,
                                    uint16_t *port);
/* "host:port" by which devices and people find a service that listens so: the first of
 * [trust] names, or the address of the cluster.  false: there is none. */
bool conf_address_of(const struct conf *c, const char *listen, char *out, size_t size);
/* The user of the service that is the Web Server; NULL if there is none. */
const char *conf_web_user(const struct conf *c);

/* An address with a prefix length as in [address]. */
struct conf_ip {
    int family; /* AF_INET or AF_INET6 */
    uint8_t bytes[16];
    uint8_t prefix;
};
MUST_USE enum err conf_ip_parse(const char *text, struct conf_ip *out);

/* The reference: every section and key as text for a terminal, or as the manual pages
 * redoubt.conf(5) and agent.conf(5) (mdoc). */
void conf_reference(FILE *to);
void conf_reference_man(FILE *to);
void agent_conf_reference_man(FILE *to);

#endif
