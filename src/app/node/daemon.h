/*
 * daemon: redoubt-node, the adapter between the node machine and this computer.
 *
 * Purpose   Nothing here decides: events go to src/run, actions come back through the ports.
 * Start     main.c: set up and loop; world.c: the ports; status.c: what people see
 * Threads   one, the sd-event loop; nothing in it may block
 */
#ifndef APP_NODE_DAEMON_H
#define APP_NODE_DAEMON_H

#include <jansson.h>
#include <systemd/sd-event.h>

#include "base/alarm.h"
#include "run/node_run.h"
#include "sys/conf/conf.h"
#include "sys/fence/fence.h"
#include "sys/guard/guard.h"
#include "sys/helper/helper.h"
#include "sys/http/http_server.h"
#include "sys/keeper/keeper.h"
#include "sys/machine/machine.h"
#include "sys/net/net.h"
#include "sys/supervisor/supervisor.h"

enum {
    HISTORY_MAX = 256,      /* entries in memory and in the file after a start */
    HISTORY_PUBLISHED = 24, /* entries in our node record, for the other node */
    HISTORY_FILE_BYTES = 512 * 1024,
    ALERTS_AT_ONCE = 4,
};

/* Loop priorities: what keeps the lease goes first. */
enum { PRIORITY_LEASE = -20, PRIORITY_SERVICES = -10, PRIORITY_PEOPLE = 10 };

struct service_view {
    enum service_state state;
    char why[SUPERVISOR_WHY_BYTES];
    uint64_t since_us; /* wall time, for display only */
    uint32_t restarts;
};

struct alert {
    pid_t pid; /* 0: free */
    sd_event_source *child, *limit;
};

/* This node's copy of what is published, as redoubt-mirror told last. */
struct content {
    bool told, prepared, known, share_ok, full, scrubbing;
    uint64_t serial, shown, files, bytes, missing, lost, missing_bytes;
    uint64_t fetched_bytes, damaged_now, damaged, healed, scrubbed_s;
    char why[200], share_why[200], refused[200];
    char signatures[12], signatures_detail[200]; /* of the active node; "": not known */
    struct mono moved;                           /* bytes came, or all are here */
    struct mono event_at;                        /* a file was found damaged, or healed */
    struct mono down_since; /* the process does not run; unset: it does */
    char down_why[120], blob[16], where[24];
};

struct daemon {
    sd_event *loop;
    const char *conf_path;
    struct conf conf;
    char conf_digest[17];
    char libexec[CONF_PATH], keeper_program[CONF_PATH + 32];
    struct mac_key key;
    struct node_run run;
    bool running; /* the machine has been started */
    int exit_status;

    struct lease_writer page;
    struct guard *guard;
    struct supervisor *supervisor;
    struct net *net;
    struct fence_pg *fence;
    struct keeper *keeper;
    struct helper *mirror; /* NULL: there is no data share */
    char mirror_program[CONF_PATH + 32];
    const char *mirror_argv[8];
    struct content content;
    struct http_server *control, *health, *metrics;
    sd_event_source *tick, *second, *guard_end, *address_answer;
    int gone[2];
    int lock_fd;

    struct supervisor_service services[SERVICES_MAX];
    const char *argv[SERVICES_MAX][32];
    char arguments[SERVICES_MAX][CONF_TEXT];
    struct service_view view[SERVICES_MAX];

    struct {
        bool known, ok;
        enum fence_state state;
        uint32_t latency_us;
        char why[sizeof(((struct err_info *)0)->what)];
    } database;
    struct {
        enum err err;
        char why[sizeof(((struct err_info *)0)->what)];
        enum err
            refused; /* the last ERR_DENIED or ERR_FULL: reads may go on succeeding */
        struct mono refused_at;
        char refused_why[sizeof(((struct err_info *)0)->what)];
    } share;
    char address_why[sizeof(((struct err_info *)0)->what)];
    uint64_t address_conflict_us;
    uint32_t none_request; /* mode = none: the answer to come */
    bool link_up, link_known;
    char trouble[400]; /* why this daemon cannot start its work; "" if it did */
    enum alarm trouble_id;

    char peer_record[SHARE_NODE_BYTES]; /* the peer's node record as it was read last */
    size_t peer_record_n;
    char machine_json[MACHINE_JSON_BYTES];
    uint64_t state_since_us;

    json_t *history;                   /* array, oldest first */
    json_t *switches;                  /* the takeovers of this node among it */
    uint64_t alarm_since[ALARM_COUNT]; /* wall time; 0: not raised */
    char alarm_detail[ALARM_COUNT][200];
    struct mono peer_unready_since; /* while we are active; unset: it is ready */
    struct alert alerts[ALERTS_AT_ONCE];
    uint64_t alert_minute;
    uint32_t alert_count, alerts_dropped;

    struct { /* wishes that came by way of the share, to be carried out next */
        char name[SHARE_NAME_BYTES];
        enum node_operation op;
    } wish[SHARE_REQUESTS_MAX];
    uint32_t wishes;
    sd_event_source *wish_source;

    uint32_t token;
    bool answered;
    enum err answer;
    uint64_t moves_total, switches_total, jumps_total;
    uint64_t last_second_us;
};

/* world.c: this computer as the ports see it */
struct mono now_mono(void);
uint64_t now_wall_us(void);
enum err world_open(struct daemon *d, struct err_info *info);
void world_close(struct daemon *d);
void world_wake(struct daemon *d);
void world_event(struct daemon *d, struct node_event *ev);

/* journal.c: history, local memory, what the machine says */
struct journal journal_port(struct daemon *d);
void journal_load(struct daemon *d, uint64_t *known_epoch, bool *maintenance);
void journal_add(struct daemon *d, json_t *entry);
json_t *journal_entry(struct daemon *d, const char *kind, const char *text);
void journal_service(struct daemon *d, uint32_t i);
/* One that has happened, and does not last: into the history, and to whom alerts go. */
void journal_alarm(struct daemon *d, enum alarm id, const char *why);
/* A text member of an entry, "" if it has none. */
const char *entry_text(const json_t *entry, const char *key);
json_t *journal_merged(struct daemon *d, size_t limit);

/* status.c */
json_t *status_all(struct daemon *d);
json_t *status_self(struct daemon *d);
/* What hinders the node from being ready, as sentences. */
json_t *status_obstacles(const struct node *n);
const char *status_service_state(enum service_state s);
json_t *status_peer_record(struct daemon *d); /* decoded; NULL if there is none */
const char *status_active(const struct daemon *d);
json_t *status_explain(struct daemon *d);
char *wall_text(uint64_t wall_us, char *buf, size_t size);

/* content.c */
enum err content_open(struct daemon *d, struct err_info *info);
void content_close(struct daemon *d);
/* The machine has started. */
void content_start(struct daemon *d);
/* Is there a data share? */
bool content_is_used(const struct daemon *d);
/* Read everything again, now, on both nodes. */
enum err content_verify(struct daemon *d);
json_t *content_json(const struct daemon *d);
/* What is missing here and why, as a sentence; nothing if all is here. */
void content_explain(const struct daemon *d, json_t *list,
                     void (*say)(json_t *list, const char *fmt, ...));

/* alarms.c */
void alarms_update(struct daemon *d);
json_t *alarms_json(const struct daemon *d);
void alert_send(struct daemon *d, const json_t *event);

/* api.c */
enum err api_open(struct daemon *d, struct err_info *info);
void api_close(struct daemon *d);
void api_requests(struct daemon *d, const struct share_answer *a);

/* metrics.c */
char *metrics_text(const struct daemon *d, size_t *n);

/* setup.c */
enum err setup_load(struct daemon *d, struct err_info *info);
void setup_node_conf(const struct daemon *d, struct node_conf *out);
void setup_reload(struct daemon *d, json_t *answer, enum err *e);

#endif
