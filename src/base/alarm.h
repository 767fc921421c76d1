/*
 * alarm: everything an operator may be told, in one table of words.
 *
 * Purpose   The daemon raises an alarm or refuses a request by its id; the command line,
 *           the log, the alert hook and docs/operations.md take the words from here, so
 *           that they never differ.
 * Shape     Constant text.  `text` says what it means, `suggestion` what to do; both are
 *           whole sentences for somebody who was woken up.
 * Threads   any; pure
 * Tests     tests/unit/test_alarm.c: every entry is complete; tests/unit/test_ctl.py: the
 *           document holds exactly this table
 */
#ifndef BASE_ALARM_H
#define BASE_ALARM_H

#include <stdbool.h>

#include "base/check.h"

/* How bad: a note changes nothing, a warning takes away the reserve, an error is felt by
 * clients now. */
enum alarm_severity { ALARM_NOTE, ALARM_WARNING, ALARM_ERROR };

/* code, id (stable), severity, title, text, suggestion */
#define ALARM_MAP(X)                                                                     \
    X(ALARM_SHARE_UNREACHABLE, "share_unreachable", ALARM_ERROR,                         \
      "The state share cannot be reached",                                               \
      "This node gets no answer from the file server. Without it a node cannot keep or " \
      "take the lease: if both nodes lose it, nobody is active until it is back.",       \
      "Look at the file server and the network to it: redoubt check names the step "     \
      "that fails. Nothing must be done on the nodes; they recover by themselves.")      \
    X(ALARM_SHARE_DENIED, "share_denied", ALARM_ERROR,                                   \
      "The file server refuses this node",                                               \
      "The file server answers, but the account may not log in, or may not read or "     \
      "write the state share.",                                                          \
      "Check the account in the credentials file: its password, whether it is locked, "  \
      "and its rights on the share and on the folder. Both nodes need read and write.")  \
    X(ALARM_SHARE_FULL, "share_full", ALARM_ERROR, "The state share is full",            \
      "A record could not be written for lack of space or quota. The active node may "   \
      "be unable to renew its lease, and no node can take a new one.",                   \
      "Make room on the file server; a few kilobytes are enough. Give the state share "  \
      "a volume or quota of its own, so that nothing else can fill it.")                 \
    X(ALARM_SHARE_FOREIGN, "share_foreign", ALARM_ERROR,                                 \
      "The state share belongs to another cluster",                                      \
      "The cluster record on the share is not the one of this cluster: another id, or "  \
      "sealed with another key. This node touches nothing there.",                       \
      "Compare [share] state and [cluster] name in redoubt.conf, and the key file, "     \
      "with "                                                                            \
      "the other node. If the share was set up anew on purpose, restart redoubt-node "   \
      "on "                                                                              \
      "both nodes after redoubt init.")                                                  \
    X(ALARM_SHARE_REGRESSED, "share_regressed", ALARM_ERROR,                             \
      "The state share has gone back in time",                                           \
      "This node or the DBMS knows a much higher epoch than the share shows: the share " \
      "was restored from an old copy. To be safe no node takes the lease by itself.",    \
      "Make sure that no other copy of the share is in use and that the other node "     \
      "sees the same share. Then run redoubt lease adopt on one node.")                  \
    X(ALARM_SHARE_EMPTY, "share_empty", ALARM_ERROR, "The state share holds no cluster", \
      "The share can be read, but the cluster record is missing. Either it was never "   \
      "set up, or it is the wrong folder, or somebody removed the files.",               \
      "Check [share] state in redoubt.conf. For a new cluster run redoubt init once. "   \
      "For a share that was emptied, restore it from a backup, then redoubt lease "      \
      "adopt.")                                                                          \
    X(ALARM_RECORD_MAC, "record_mac", ALARM_ERROR,                                       \
      "A record on the share is not authentic",                                          \
      "Its keyed checksum does not fit: it was written with another cluster key, or "    \
      "changed by somebody who does not hold the key. It is ignored and counts as "      \
      "neither released nor free.",                                                      \
      "Compare the key file of both nodes (sha256sum). If they are the same, somebody "  \
      "else writes to the share: find out who, and withdraw the rights.")                \
    X(ALARM_RECORD_TORN, "record_torn", ALARM_WARNING,                                   \
      "A record on the share is damaged",                                                \
      "It is cut short or not readable, as after a crash of the file server in the "     \
      "middle of a write. It is not taken for a release; the owner writes it again "     \
      "with "                                                                            \
      "its next renewal.",                                                               \
      "If it does not go away within a minute, check the file system of the file "       \
      "server.")                                                                         \
    X(ALARM_RECORD_VERSION, "record_version", ALARM_ERROR,                               \
      "A record has a version this program does not know",                               \
      "The other node, or an earlier installation, wrote it with a newer Redoubt. This " \
      "node stays passive rather than guess what it means.",                             \
      "Install the same version on both nodes: redoubt version shows it.")               \
    X(ALARM_DUPLICATE_NAME, "duplicate_name", ALARM_ERROR,                               \
      "Two nodes use the same name",                                                     \
      "Another machine writes the record of this node: two nodes have the same "         \
      "[cluster] node, or a clone of this machine is running.",                          \
      "Stop redoubt-node on the machine that should not have the name, and correct "     \
      "node and peer in its redoubt.conf.")                                              \
    X(ALARM_DATABASE_UNREACHABLE, "database_unreachable", ALARM_ERROR,                   \
      "The DBMS cannot be reached",                                                      \
      "The services go on as far as they can without it, and devices keep their "        \
      "reports until it is back. This is no reason to switch, so the cluster does not.", \
      "Look at PostgreSQL and the network to it. redoubt check shows the message of "    \
      "the server.")                                                                     \
    X(ALARM_DATABASE_VERSION, "database_version", ALARM_ERROR,                           \
      "The DBMS has a version that is not supported",                                    \
      "Redoubt needs PostgreSQL 13 or later.",                                           \
      "Upgrade the DBMS, or point [database] conninfo to another one.")                  \
    X(ALARM_DATABASE_SCHEMA, "database_schema", ALARM_ERROR,                             \
      "The schema in the DBMS does not fit this program",                                \
      "Its version is older or newer than this program knows, or the fence is missing. " \
      "This node will not become active with it.",                                       \
      "Older or missing: run redoubt database migrate. Newer: install on this node the " \
      "version that the other node has.")                                                \
    X(ALARM_SERVICE_FAILED, "service_failed", ALARM_ERROR, "A service has failed",       \
      "It ended, did not start, or missed its watchdog. If the other node is ready the " \
      "cluster switches; else it is restarted here, with growing pauses.",               \
      "redoubt status names the service, redoubt log the cause; its own messages are "   \
      "in the journal.")                                                                 \
    X(ALARM_SERVICE_MISSING, "service_missing", ALARM_ERROR,                             \
      "The program of a service is missing",                                             \
      "The exec of a service does not exist or may not be run. This node cannot become " \
      "active.",                                                                         \
      "Install the program or correct exec in redoubt.conf: redoubt config check names " \
      "it.")                                                                             \
    X(ALARM_GUARD_LOST, "guard_lost", ALARM_ERROR, "The guard has ended",                \
      "Without the process that kills the services when the lease runs out, this node "  \
      "may not be active. It steps down and starts anew.",                               \
      "Look in the journal for redoubt-guard. If it was killed for lack of memory, "     \
      "give the machine more.")                                                          \
    X(ALARM_PEER_SILENT, "peer_silent", ALARM_WARNING, "The other node is silent",       \
      "Its record on the share has not changed for a while: it is off, cut off, or its " \
      "daemon does not run. A failure of this node would stop the service.",             \
      "Switch the other node on, or run systemctl status redoubt-node there.")           \
    X(ALARM_PEER_NOT_READY, "peer_not_ready", ALARM_WARNING,                             \
      "The other node is not ready to take over",                                        \
      "It is alive, and for 5 s it has said that something is missing. A failure of "    \
      "this "                                                                            \
      "node would stop the service.",                                                    \
      "redoubt status shows what it is missing.")                                        \
    X(ALARM_PEER_MAINTENANCE, "peer_maintenance", ALARM_NOTE,                            \
      "The other node is in maintenance",                                                \
      "An operator has said that it shall not take over. A failure of this node would "  \
      "stop the service.",                                                               \
      "When the work is done: redoubt maintenance off on that node.")                    \
    X(ALARM_PEER_DIFFERS, "peer_differs", ALARM_WARNING, "The nodes are not identical",  \
      "Hardware, software or configuration of the two nodes differ. After a switch the " \
      "cluster may behave differently or be slower.",                                    \
      "redoubt check lists the differences. During an upgrade this is expected until "   \
      "both nodes are done.")                                                            \
    X(ALARM_NO_ACTIVE, "no_active_node", ALARM_ERROR, "No node is active",               \
      "Nobody holds the lease, and this node does not take it: the detail says why. "    \
      "Devices keep what they have to report and protect themselves meanwhile.",         \
      "redoubt status names on each node what is missing. Maintenance ends with "        \
      "redoubt "                                                                         \
      "maintenance off, a pause with redoubt resume.")                                   \
    X(ALARM_PAUSED, "paused", ALARM_NOTE, "Automatic switching is paused",               \
      "An operator has paused the cluster: it does not switch by itself. If the active " \
      "node breaks, nobody takes over.",                                                 \
      "When the work is done: redoubt resume.")                                          \
    X(ALARM_SWITCH_LIMIT, "switch_limit", ALARM_ERROR,                                   \
      "Too many switches: the cluster stays where it is",                                \
      "Services have failed on both nodes again and again. To end the to and fro the "   \
      "active node keeps its role and restarts them in place until the window is over.", \
      "The cause is the same on both nodes, such as the DBMS, a certificate, a "         \
      "licence or an update: see redoubt log.")                                          \
    X(ALARM_LEASE_LOST, "lease_lost", ALARM_ERROR, "This node lost its lease",           \
      "It could not renew in time and stopped its services, so that the other node can " \
      "take over. It returns as the passive node by itself.",                            \
      "If it repeats, the file server or this machine stalls for longer than the "       \
      "timing profile allows: redoubt check measures it.")                               \
    X(ALARM_CONFIG_MISMATCH, "config_mismatch", ALARM_WARNING,                           \
      "The configurations of the nodes do not fit together",                             \
      "Name of the cluster, names of the nodes, timing, services or addresses differ "   \
      "where they must be the same.",                                                    \
      "Compare redoubt config show of both nodes; only node, peer and interface may "    \
      "differ.")                                                                         \
    X(ALARM_ADDRESS_CONFLICT, "address_conflict", ALARM_ERROR,                           \
      "Another machine uses the virtual address",                                        \
      "Somebody answers for the address of the cluster who is not this node. Clients "   \
      "may reach the wrong machine.",                                                    \
      "Find the machine with arping or in the tables of the switch and take the "        \
      "address away from it.")                                                           \
    X(ALARM_CLOCK_JUMP, "clock_jump", ALARM_WARNING, "This machine stood still",         \
      "The node daemon did not run for a while: the machine was suspended, its virtual " \
      "machine was paused or moved, or it was starved of CPU. A lease held before is "   \
      "not trusted any more.",                                                           \
      "Do not pause or migrate an active node: redoubt switchover first. Give the "      \
      "virtual machine reserved CPU and memory.")                                        \
    X(ALARM_CONTENT_MISSING, "content_missing", ALARM_WARNING,                           \
      "Published files are missing on this node",                                        \
      "They are on the data share, and for a minute nothing of them has come. This "     \
      "node is not ready because of that; it would take over all the same, and serve "   \
      "the files that were published before.",                                           \
      "The detail says what stands in the way: the data share, a damaged file, or the "  \
      "DBMS. It goes on by itself.")                                                     \
    X(ALARM_CONTENT_REFUSED, "content_refused", ALARM_ERROR,                             \
      "The list of published files is not good",                                         \
      "What the DBMS says is published holds a path or digest that no list may hold. "   \
      "Nothing of it is taken over: this node goes on with the list before.",            \
      "Somebody has written to the DBMS by hand: see redoubt.publication there, and "    \
      "who may log in.")                                                                 \
    X(ALARM_CONTENT_DAMAGED, "content_damaged", ALARM_WARNING,                           \
      "A published file was damaged",                                                    \
      "Its bytes were not those of its digest. A file of this node is fetched again "    \
      "from the data share; one of the share is written again from the copy of a node. " \
      "A damaged file is not served.",                                                   \
      "If it says healed, nothing must be done, but a disk or the memory of that "       \
      "machine may be failing: see its kernel log. If not, publish the file again.")     \
    X(ALARM_DATA_UNREACHABLE, "data_unreachable", ALARM_WARNING,                         \
      "The data share cannot be reached",                                                \
      "What is published goes on being served from the local disk, but nothing new can " \
      "be published, and this node's copy is not brought up to date.",                   \
      "Look at the file server, at [share] data in redoubt.conf, and at the rights of "  \
      "the account there. This node tries again by itself.")                             \
    X(ALARM_STORE_FULL, "store_full", ALARM_ERROR,                                       \
      "There is no room for the published files",                                        \
      "The disk of [web] store is too full for the files that are missing here. "        \
      "Nothing "                                                                         \
      "is half there: this node goes on with the set before.",                           \
      "Make room on that disk, or remove packages that nobody needs any more (redoubt "  \
      "package remove).")                                                                \
    X(ALARM_SIGNATURES_OLD, "signatures_old", ALARM_WARNING,                             \
      "The signature databases are old",                                                 \
      "The newest published database was built longer ago than redoubt signature "       \
      "source shows as the limit (2 days, unless it was changed). Devices that take "    \
      "theirs from this cluster do not know newer threats.",                             \
      "redoubt signature status tells how the last look at the source went. Without a "  \
      "source, import newer files: redoubt signature import.")                           \
    X(ALARM_SIGNATURES_STALE, "signatures_stale", ALARM_ERROR,                           \
      "The signature databases are very old",                                            \
      "As signatures_old, and the second limit has passed as well (7 days, unless it "   \
      "was changed). A source that holds back what is new looks like this, too.",        \
      "redoubt signature status tells how the last look at the source went. Compare "    \
      "with another mirror, and import files meanwhile: redoubt signature import.")      \
    X(ALARM_MIRROR_DOWN, "mirror_down", ALARM_WARNING, "redoubt-mirror does not run",    \
      "The process that copies published files to this node ends again and again, or "   \
      "cannot be started. What is here is served; what is new does not come.",           \
      "The detail and the journal name the cause. It is started again by itself.")

enum alarm {
#define X(code, id, severity, title, text, suggestion) code,
    ALARM_MAP(X)
#undef X
        ALARM_COUNT
};

struct alarm_info {
    const char *id;
    enum alarm_severity severity;
    const char *title, *text, *suggestion;
};

/* Never NULL for a member of enum alarm. */
const struct alarm_info *alarm_info(enum alarm a);
/* NULL for an unknown id. */
const struct alarm_info *alarm_find(const char *id);
const char *alarm_severity_name(enum alarm_severity s);

#endif
