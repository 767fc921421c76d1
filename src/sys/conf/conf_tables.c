#include "sys/conf/conf_table.h"

#include "wire/record.h"

/*
 * The whole configuration, one line of code a key.  The documentation strings are what
 * the manual page and `redoubt config reference` show: plain sentences.
 */
const char conf_from_profile[] = "from the profile";

static const char *const profiles[] = { "fast", "balanced", "patient", NULL };
static const char *const dialects[] = { "SMB2_02", "SMB2_10", "SMB3_00",
                                        "SMB3_02", "SMB3_11", NULL };
static const char *const no_yes[] = { "no", "yes", NULL };
static const char *const address_modes[] = { "virtual-ip", "none", NULL };
static const char *const standbys[] = { "hot", "cold", "always", NULL };
static const char *const starts[] = { "notify", "exec", NULL };
static const char *const levels[] = { "error", "warning", "info", "debug", NULL };
static const char *const targets[] = { "auto", "journal", "stderr", NULL };

#define LIVE    CONF_RELOAD_LIVE
#define RESTART CONF_RELOAD_RESTART

#define FIELD(s, field)                                                                  \
    .offset = offsetof(struct s, field), .size = sizeof(((struct s *)0)->field)

#define WORD(s, field, kind, def, load, text)                                            \
    {                                                                                    \
        .key = #field, .type = kind, .reload = load, FIELD(s, field), .dflt = def,       \
        .doc = text                                                                      \
    }
#define NUMBER(s, field, def, lo, hi, units, load, text)                                 \
    {                                                                                    \
        .key = #field, .type = CONF_T_NUMBER, .reload = load, FIELD(s, field),           \
        .dflt = def, .min = lo, .max = hi, .unit = units, .doc = text                    \
    }
#define CHOICE(s, field, def, names, load, text)                                         \
    {                                                                                    \
        .key = #field, .type = CONF_T_CHOICE, .reload = load, FIELD(s, field),           \
        .dflt = def, .choices = names, .doc = text                                       \
    }

static const struct conf_key cluster_keys[] = {
    WORD(conf_cluster, name, CONF_T_NAME, NULL, RESTART,
         "Name of the cluster, the same on both nodes."),
    WORD(conf_cluster, node, CONF_T_NODE, NULL, RESTART,
         "Name of this node: up to 31 lower-case letters, digits and '-', a letter "
         "first."),
    WORD(conf_cluster, peer, CONF_T_NODE, NULL, RESTART, "Name of the other node."),
    CHOICE(conf_cluster, profile, "balanced", profiles, RESTART,
           "Timing profile: fast for a file server in the same rack, balanced for an "
           "ordinary LAN, patient for clustered file servers that pause while they fail "
           "over. The six timing keys below override single values of it."),
    NUMBER(conf_cluster, renew_ms, conf_from_profile, 20, 60000, "ms", RESTART,
           "The active node renews its lease this often."),
    NUMBER(conf_cluster, hold_ms, conf_from_profile, 200, RECORD_HOLD_MAX_MS, "ms",
           RESTART, "A renewal is good for this long, counted from before it was sent."),
    NUMBER(conf_cluster, margin_ms, conf_from_profile, 50, 60000, "ms", RESTART,
           "The other node waits hold_ms, 1 % of it for clock drift, and this margin for "
           "the last services to end, before it takes over."),
    NUMBER(conf_cluster, poll_ms, conf_from_profile, 5, 10000, "ms", RESTART,
           "The passive node reads the lease this often."),
    NUMBER(conf_cluster, share_timeout_ms, conf_from_profile, 50, 300000, "ms", RESTART,
           "A request to the state share without an answer is given up after this long. "
           "Default: half of hold_ms."),
    NUMBER(conf_cluster, demote_before_ms, conf_from_profile, 20, 60000, "ms", RESTART,
           "An active node that could not renew begins to step down this long before its "
           "lease runs out."),
    NUMBER(conf_cluster, switch_max, "2", 1, 100, "", LIVE,
           "At most this many switches because of failed services in switch_window_s; "
           "after that the active node stays and restarts them in place."),
    NUMBER(conf_cluster, switch_window_s, "600", 10, 86400, "s", LIVE,
           "The window of switch_max."),
    WORD(
        conf_cluster, key_file, CONF_T_PATH, "/etc/redoubt/cluster.key", RESTART,
        "The cluster key: 64 hex digits, the same on both nodes, readable by root only."),
    WORD(conf_cluster, state_dir, CONF_T_PATH, "/var/lib/redoubt", RESTART,
         "What must survive a reboot: the highest epoch seen, the history."),
    WORD(conf_cluster, run_dir, CONF_T_PATH, "/run/redoubt", RESTART,
         "The control socket and other things of a running node."),
};

static const struct conf_key share_keys[] = {
    WORD(conf_share, state, CONF_T_SHARE, NULL, RESTART,
         "The state share, which decides who is active: //server/share, with a folder "
         "below it if wanted. Nothing else may write there."),
    WORD(conf_share, data, CONF_T_SHARE, "", RESTART,
         "The data share for packages and backups. Empty: none."),
    WORD(conf_share, credentials, CONF_T_PATH, "/etc/redoubt/smb.cred", RESTART,
         "File with the lines username=, password= and domain=, readable by root only."),
    CHOICE(conf_share, dialect_min, "SMB2_02", dialects, RESTART,
           "Lowest protocol version accepted. SMB1 is never used."),
    CHOICE(conf_share, dialect_max, "SMB3_11", dialects, RESTART,
           "Highest protocol version offered."),
    CHOICE(conf_share, encrypt, "no", no_yes, RESTART,
           "Require encryption of the connection (needs SMB3_00 or later). Records carry "
           "a keyed checksum in any case."),
    NUMBER(conf_share, port, "445", 1, 65535, "", RESTART,
           "TCP port of the file server."),
};

static const struct conf_key database_keys[] = {
    WORD(conf_database, conninfo, CONF_T_TEXT, NULL, RESTART,
         "Connection to PostgreSQL as libpq writes it, for example host=dbms "
         "dbname=redoubt user=redoubt passfile=/etc/redoubt/pgpass. Passwords belong in "
         "the passfile."),
    NUMBER(conf_database, probe_ms, "1000", 100, 60000, "ms", RESTART,
           "The node looks this often whether the DBMS answers."),
    NUMBER(
        conf_database, fence_timeout_ms, "2000", 100, 60000, "ms", RESTART,
        "A takeover waits at most this long for the fence in the DBMS; then it goes on "
        "without the DBMS, degraded, and raises the fence when the DBMS is back."),
};

static const struct conf_key address_keys[] = {
    CHOICE(conf_address, mode, "virtual-ip", address_modes, RESTART,
           "virtual-ip: the active node carries the addresses below. none: a load "
           "balancer asks the health endpoint of both nodes."),
    WORD(conf_address, interface, CONF_T_TEXT, "", RESTART,
         "Network interface of the addresses. Required with virtual-ip."),
    WORD(conf_address, ipv4, CONF_T_IPV4, "", RESTART,
         "IPv4 address with prefix length, for example 10.0.0.100/24."),
    WORD(conf_address, ipv6, CONF_T_IPV6, "", RESTART,
         "IPv6 address with prefix length, for example fd00::100/64."),
    WORD(conf_address, health_listen, CONF_T_LISTEN, "0.0.0.0:8008", RESTART,
         "The health endpoint answers GET / with 200 on the active node and 503 on the "
         "other. Empty: none."),
};

static const struct conf_key service_keys[] = {
    WORD(conf_service, exec, CONF_T_PATH, NULL, RESTART, "The program."),
    WORD(conf_service, arguments, CONF_T_TEXT, "", RESTART,
         "Its arguments, separated by blanks; \"double quotes\" keep blanks together."),
    CHOICE(conf_service, standby, "hot", standbys, RESTART,
           "hot: runs on both nodes and is told its role. cold: started on takeover, "
           "stopped on step-down. always: runs on both nodes whatever the role."),
    CHOICE(conf_service, start, "notify", starts, RESTART,
           "notify: started when it says READY=1 (sd_notify). exec: started as soon as "
           "it runs; for programs that do not know the protocol."),
    WORD(conf_service, user, CONF_T_NAME, "redoubt", RESTART,
         "The user it runs as. For the Web Server: redoubt-web."),
    NUMBER(conf_service, start_timeout_ms, "10000", 100, 600000, "ms", RESTART,
           "It must be started within this time."),
    NUMBER(conf_service, stop_timeout_ms, "2000", 100, 600000, "ms", RESTART,
           "After SIGTERM it has this long to end; then SIGKILL."),
    NUMBER(conf_service, role_timeout_ms, "1000", 50, 60000, "ms", RESTART,
           "It must confirm a change of its role within this time."),
    NUMBER(conf_service, watchdog_ms, "0", 0, 600000, "ms", RESTART,
           "It must send WATCHDOG=1 at least this often; half of it is what it is told "
           "to aim at. 0: no watchdog."),
    NUMBER(conf_service, restart_backoff_ms, "200", 10, 600000, "ms", RESTART,
           "Wait before the first local restart; doubles with each failure."),
    NUMBER(conf_service, restart_backoff_max_ms, "10000", 10, 3600000, "ms", RESTART,
           "Upper limit of that wait."),
    NUMBER(conf_service, memory_max_mib, "0", 0, 1048576, "MiB", RESTART,
           "Limit of its memory (cgroup memory.max). 0: no limit."),
    NUMBER(conf_service, tasks_max, "512", 1, 1000000, "", RESTART,
           "Limit of its processes and threads (cgroup pids.max)."),
    NUMBER(conf_service, nofile, "65536", 16, 1048576, "", RESTART,
           "Limit of its open files."),
    NUMBER(conf_service, order, "50", 0, 1000, "", RESTART,
           "Services start in rising order and stop in falling order."),
};

static const struct conf_key server_keys[] = {
    WORD(conf_server, listen, CONF_T_LISTEN, "[::]:13000", RESTART,
         "Where devices connect (mutual TLS)."),
    WORD(conf_server, certificate, CONF_T_PATH, "/var/lib/redoubt/secret/server.pem",
         RESTART, "Certificate chain (PEM)."),
    WORD(conf_server, key, CONF_T_PATH, "/var/lib/redoubt/secret/server.key", RESTART,
         "Its private key (PEM)."),
    WORD(conf_server, ca, CONF_T_PATH, "/var/lib/redoubt/secret/ca.pem", RESTART,
         "The authority that signed the certificates of the devices (PEM)."),
    WORD(conf_server, api_listen, CONF_T_LISTEN, "[::]:13299", RESTART,
         "Where the API answers (TLS, with API tokens); the Unix socket manager.sock in "
         "run_dir is there in any case. Empty: none."),
    NUMBER(conf_server, workers, "2", 1, 64, "", RESTART,
           "Worker processes; one a core is enough."),
};

static const struct conf_key trust_keys[] = {
    WORD(
        conf_trust, folder, CONF_T_PATH, "/var/lib/redoubt/secret", RESTART,
        "Where redoubt init and redoubt secret fetch install the authority and the "
        "certificate of the servers on this node. The certificates and keys of [server], "
        "[web] and [activation] are there unless those sections say otherwise."),
    WORD(conf_trust, names, CONF_T_TEXT, "", RESTART,
         "Names and addresses, separated by blanks, by which devices and people call the "
         "servers, besides the addresses of [address] and the names of the nodes."),
    NUMBER(conf_trust, device_days, "90", 1, 3650, "days", RESTART,
           "Life of a device's certificate. It is renewed after two thirds of it."),
    NUMBER(conf_trust, server_days, "397", 1, 3650, "days", RESTART,
           "Life of the certificate of the servers."),
};

static const struct conf_key web_keys[] = {
    WORD(conf_web, http, CONF_T_LISTEN, "[::]:8060", RESTART, "Plain HTTP. Empty: none."),
    WORD(conf_web, https, CONF_T_LISTEN, "[::]:8061", RESTART, "HTTPS. Empty: none."),
    WORD(conf_web, root, CONF_T_PATH, "/var/lib/redoubt/www", RESTART,
         "The folder that is published, besides the packages and signatures of store."),
    WORD(conf_web, store, CONF_T_PATH, "/var/lib/redoubt/store", RESTART,
         "Where redoubt-mirror keeps this node's copy of what is published: installation "
         "packages and signature databases."),
    NUMBER(conf_web, mirror_kib_s, "51200", 0, 100000000, "KiB/s", RESTART,
           "At most so much is read from the data share in a second, so that the copy "
           "leaves room for everything else. 0: no limit."),
    NUMBER(conf_web, scrub_hours, "24", 1, 8760, "h", RESTART,
           "Every file of the copy is read and compared with its digest this often; on "
           "the active node those of the data share, too."),
    WORD(conf_web, certificate, CONF_T_PATH, "/var/lib/redoubt/secret/web.pem", RESTART,
         "Certificate chain (PEM)."),
    WORD(conf_web, key, CONF_T_PATH, "/var/lib/redoubt/secret/web.key", RESTART,
         "Its private key (PEM), the same on both nodes, so that it can be pinned."),
    WORD(conf_web, link_key, CONF_T_PATH, "/var/lib/redoubt/secret/link.key", RESTART,
         "The secret that links to private packages are made with, the same on both "
         "nodes."),
    NUMBER(conf_web, workers, "0", 0, 16, "", RESTART,
           "Processes of nginx. 0: one for each processor."),
    NUMBER(
        conf_web, sig_rate, "200", 0, 100000, "requests/s", RESTART,
        "So many requests for signature databases are answered from one address, which "
        "may be that of a whole site; more are told to come again later (status 429). "
        "0: no limit, as behind a load balancer."),
    NUMBER(conf_web, sig_burst, "4000", 1, 1000000, "requests", RESTART,
           "So many may come at once above sig_rate, as when a site is switched on."),
    NUMBER(conf_web, sig_connections, "512", 0, 65535, "", RESTART,
           "So many signature databases are sent to one address at the same time. 0: no "
           "limit."),
    NUMBER(conf_web, sig_retry_s, "120", 1, 86400, "s", RESTART,
           "When those who were refused are to come again (Retry-After)."),
};

static const struct conf_key activation_keys[] = {
    WORD(conf_activation, listen, CONF_T_LISTEN, "[::]:17000", RESTART,
         "Where devices ask for licences (TLS)."),
    WORD(conf_activation, licence, CONF_T_PATH, "/etc/redoubt/licence.json", RESTART,
         "The signed licence file. It counts while no licence that was added or imported "
         "does."),
    WORD(conf_activation, anchor, CONF_T_PATH, "/etc/redoubt/licence.pub", RESTART,
         "The public Ed25519 key that the licence must be signed with (64 hex digits)."),
    WORD(conf_activation, key, CONF_T_PATH, "/var/lib/redoubt/secret/lease.key", RESTART,
         "The Ed25519 key that signs the leases, the same on both nodes (64 hex digits). "
         "redoubt init makes one."),
    WORD(conf_activation, certificate, CONF_T_PATH, "/var/lib/redoubt/secret/server.pem",
         RESTART, "Certificate chain (PEM)."),
    WORD(conf_activation, tls_key, CONF_T_PATH, "/var/lib/redoubt/secret/server.key",
         RESTART, "Its private key (PEM)."),
    WORD(conf_activation, ca, CONF_T_PATH, "/var/lib/redoubt/secret/ca.pem", RESTART,
         "The authority that signed the certificates of the devices (PEM)."),
    WORD(conf_activation, vendor, CONF_T_TEXT, "", RESTART,
         "The vendor's activation service, https://HOST[:PORT][/PATH]. Empty: activation "
         "codes are asked for by files (redoubt licence request)."),
    WORD(conf_activation, vendor_ca, CONF_T_PATH, "", RESTART,
         "Whose certificate the vendor's service must have (PEM). Empty: the CAs of this "
         "machine."),
    WORD(conf_activation, vendor_proxy, CONF_T_TEXT, "", RESTART,
         "HTTP proxy on the way to the vendor, http://[USER:PASSWORD@]HOST:PORT. Empty: "
         "none."),
    NUMBER(conf_activation, vendor_timeout_ms, "10000", 100, 120000, "ms", RESTART,
           "The vendor must have answered after this time, or is asked again later."),
    NUMBER(conf_activation, lease_days, "30", 1, 365, "days", RESTART,
           "Life of a lease. A device that did not renew it for so long loses its seat."),
    NUMBER(conf_activation, overdraft_percent, "10", 0, 100, "%", RESTART,
           "So much above the seats of a licence new devices still get one."),
    NUMBER(conf_activation, requests_per_minute, "30", 1, 1000000, "", RESTART,
           "One device may ask this often; twice as many at once."),
};

static const struct conf_key alert_keys[] = {
    WORD(conf_alert, hook, CONF_T_PATH, "", LIVE,
         "Program run for each alarm and switch, with the event as JSON on its standard "
         "input. Empty: none."),
    NUMBER(conf_alert, timeout_ms, "5000", 100, 60000, "ms", LIVE,
           "It is killed after this time."),
    NUMBER(conf_alert, max_per_minute, "20", 1, 1000, "", LIVE,
           "At most this many runs a minute; the rest is counted and told in the next."),
};

static const struct conf_key metrics_keys[] = {
    WORD(conf_metrics, listen, CONF_T_LISTEN, "127.0.0.1:9180", RESTART,
         "GET /metrics for Prometheus. Empty: none."),
};

static const struct conf_key log_keys[] = {
    CHOICE(conf_log, level, "info", levels, LIVE,
           "What is logged. Debug lines are always kept in memory for redoubt debug."),
    CHOICE(conf_log, target, "auto", targets, RESTART,
           "auto: the journal where the program was started by systemd, else stderr."),
};

static const struct conf_key agent_keys[] = {
    WORD(conf_agent, server, CONF_T_LISTEN, NULL, RESTART,
         "The Administration Server: the virtual address of the cluster and its port."),
    WORD(conf_agent, server_name, CONF_T_TEXT, "", RESTART,
         "Name expected in the certificate of the server. Empty: the host of server."),
    WORD(conf_agent, certificate, CONF_T_PATH,
         "/var/lib/redoubt-agent/identity/device.pem", RESTART,
         "Certificate of this device (PEM)."),
    WORD(conf_agent, key, CONF_T_PATH, "/var/lib/redoubt-agent/identity/device.key",
         RESTART, "Its private key (PEM)."),
    WORD(conf_agent, ca, CONF_T_PATH, "/var/lib/redoubt-agent/identity/ca.pem", RESTART,
         "The authority that signed the certificate of the server (PEM)."),
    WORD(conf_agent, spool, CONF_T_PATH, "/var/lib/redoubt-agent/spool.db", RESTART,
         "Reports that the server has not confirmed yet."),
    WORD(conf_agent, clamd, CONF_T_PATH, "/run/clamav/clamd.ctl", RESTART,
         "Socket of the ClamAV engine."),
    WORD(conf_agent, state_dir, CONF_T_PATH, "/var/lib/redoubt-agent", RESTART,
         "What the agent keeps: the policy, the tasks, the quarantine."),
    WORD(
        conf_agent, clamd_conf, CONF_T_PATH, "", RESTART,
        "Configuration file of clamd, which the agent writes from the policy. Empty: the "
        "agent does not touch the engine."),
    WORD(conf_agent, freshclam_conf, CONF_T_PATH, "", RESTART,
         "Configuration file of freshclam on this device, which is read and never "
         "written: where the signatures come from unless the policy says it. Empty: only "
         "the policy says it."),
    WORD(conf_agent, web, CONF_T_TEXT, "", RESTART,
         "Address of the cluster's Web Server, which signatures come from if the policy "
         "says "
         "cluster: http://host:port. Empty: port 8060 on the host of server."),
    WORD(conf_agent, engine_restart, CONF_T_TEXT, "systemctl restart clamav-daemon",
         RESTART,
         "Command that restarts clamd after its configuration changed: a program and its "
         "arguments, without a shell. Empty: nothing restarts it."),
    WORD(
        conf_agent, upgrade, CONF_T_TEXT,
        "dpkg --force-confdef --force-confold --install", RESTART,
        "Command that installs a package of the agent which the server offers: a program "
        "and its arguments, without a shell; the file is added. Empty: packages are "
        "refused."),
    NUMBER(conf_agent, upgrade_confirm_s, "120", 2, 3600, "s", RESTART,
           "A new agent has so long to reach the server. Then the one before is put "
           "back."),
    NUMBER(conf_agent, upgrade_max_mib, "512", 1, 65536, "MiB", RESTART,
           "A package may be so big."),
    WORD(conf_agent, device_id, CONF_T_UUID, "", RESTART,
         "Identity of this device. Empty: the urn:uuid: name in its certificate."),
    NUMBER(conf_agent, report_ms, "10000", 100, 86400000, "ms", RESTART,
           "A status report is made this often."),
    NUMBER(conf_agent, spool_max, "10000", 10, 10000000, "", RESTART,
           "Reports that may wait for the server; one more drops the oldest."),
    NUMBER(conf_agent, events_max, "20000", 100, 10000000, "", RESTART,
           "Events that the server has not acknowledged yet. When there are more, the "
           "oldest "
           "of the lowest severity is dropped, and the server is told how many."),
    NUMBER(conf_agent, events_max_kib, "16384", 64, 1048576, "KiB", RESTART,
           "How much room these events may take."),
    NUMBER(conf_agent, dead_after_ms, "1500", 200, 600000, "ms", RESTART,
           "A server that says nothing for so long is gone. It is asked three times in "
           "this time."),
    NUMBER(conf_agent, connect_ms, "400", 50, 60000, "ms", RESTART,
           "An attempt to connect is given up after this time: while the cluster "
           "switches, nobody answers, and a new attempt finds the new node sooner."),
    NUMBER(conf_agent, fast_retry_ms, "20000", 0, 3600000, "ms", RESTART,
           "After a broken connection, attempts follow each other quickly for so long. "
           "Then they become rarer, up to one in 30 s."),
};

#define SECTION(s, field, id, table, text)                                               \
    {                                                                                    \
        .name = id, .offset = offsetof(struct s, field), .keys = table,                  \
        .key_count = LEN(table), .doc = text                                             \
    }

static const struct conf_section sections[] = {
    SECTION(conf, cluster, "cluster", cluster_keys, "The cluster and its timing."),
    SECTION(conf, share, "share", share_keys, "The file server."),
    SECTION(conf, database, "database", database_keys, "The DBMS."),
    SECTION(conf, address, "address", address_keys, "How clients find the active node."),
    { .name = "service",
      .offset = offsetof(struct conf, service),
      .named = true,
      .keys = service_keys,
      .key_count = LEN(service_keys),
      .doc = "One section [service NAME] for each program that the cluster runs." },
    SECTION(conf, server, "server", server_keys, "The Administration Server."),
    SECTION(conf, trust, "trust", trust_keys,
            "The certificate authority of the cluster."),
    SECTION(conf, web, "web", web_keys, "The Web Server."),
    SECTION(conf, activation, "activation", activation_keys, "The Activation Proxy."),
    SECTION(conf, alert, "alert", alert_keys, "Who is told when something happens."),
    SECTION(conf, metrics, "metrics", metrics_keys, "Numbers for monitoring."),
    SECTION(conf, log, "log", log_keys, "What is logged, and where to."),
};

static const struct conf_section agent_sections[] = {
    SECTION(agent_conf, agent, "agent", agent_keys, "The Network Agent."),
    SECTION(agent_conf, log, "log", log_keys, "What is logged, and where to."),
};

static_assert(LEN(sections) <= CONF_SECTIONS_MAX, "conf_lines has room for all sections");
static_assert(LEN(service_keys) <= CONF_KEYS_MAX && LEN(cluster_keys) <= CONF_KEYS_MAX,
              "conf_lines has room for all keys");
static_assert(sizeof(enum conf_profile) == 4, "choices are stored in 4 bytes");

const struct conf_schema conf_schema = {
    .sections = sections,
    .section_count = LEN(sections),
    .size = sizeof(struct conf),
    .count_offset = offsetof(struct conf, service_count),
    .complete = conf_complete,
    .check = conf_check,
};

const struct conf_schema agent_conf_schema = {
    .sections = agent_sections,
    .section_count = LEN(agent_sections),
    .size = sizeof(struct agent_conf),
    .complete = agent_conf_complete,
    .check = NULL,
};

const char *conf_profile_name(enum conf_profile p)
{
    return (unsigned)p < LEN(profiles) - 1 ? profiles[p] : "unknown";
}

const char *conf_standby_name(enum conf_standby s)
{
    return (unsigned)s < LEN(standbys) - 1 ? standbys[s] : "unknown";
}

const char *conf_dialect_name(enum conf_dialect d)
{
    return (unsigned)d < LEN(dialects) - 1 ? dialects[d] : "unknown";
}
