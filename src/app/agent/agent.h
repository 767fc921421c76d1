/*
 * agent: the Network Agent's one process.
 *
 * Purpose   Looks at the engine, makes status reports, keeps them in the spool, and hands
 *           them to the server over one connection until it has receipts.
 * Shape     talk.c is the conversation: what is said when, and who hears the answers.
 *           reports.c, events.c, runs.c, config.c and offers.c are its subjects, hello.c says
 *           who we are; link.c is the connection, control.c answers
 *           `redoubt-agent status`.  All in one event loop.
 * Safety    A report is removed from the spool only on a receipt for it, an event only on
 *           its acknowledgement.
 * Threads   loop thread only
 */
#ifndef APP_AGENT_H
#define APP_AGENT_H

#include <jansson.h>
#include <redoubt/service.h>

#include "app/agent/identity.h"
#include "app/agent/link.h"
#include "sys/clamav/clamav.h"
#include "sys/conf/conf.h"
#include "sys/spool/event_spool.h"

enum {
    AGENT_WINDOW = 64,     /* reports on their way */
    AGENT_PROBE_MS = 2000, /* the engine is looked at this often, or each report_ms */
    AGENT_TICK_MS = 1000,
    AGENT_HEARTBEAT_S = 120,   /* without a policy */
    AGENT_HOLD_MAX_MS = 60000, /* the longest time a server may ask us to wait */
    AGENT_EVENT_BATCH = 100,   /* events a message */
    AGENT_BACKLOG = 64         /* events that wait in memory for a full disk */
};

#define EVENTS_CAPABILITY  "com.redoubt.events/v1"
#define TASKS_CAPABILITY   "com.redoubt.tasks/v1"
#define SESSION_CAPABILITY "com.redoubt.session/v1"
#define LICENCE_CAPABILITY "com.redoubt.licence/v1"

struct agent_counts {
    uint64_t made, lost, acknowledged, refused, unavailable, bad_requests, connects;
};

/* Events on their way, and those that the disk does not take at the moment. */
struct agent_events {
    bool waiting[EVENT_STREAMS]; /* a batch is out, up to sent[] */
    uint64_t sent[EVENT_STREAMS], acked[EVENT_STREAMS];
    bool must_forget[EVENT_STREAMS]; /* the spool still holds what is acknowledged */
    uint32_t batch; /* events a message: 1 after the server refused one */
    uint32_t backlog_count;
    struct backlog {
        enum event_stream stream;
        enum event_severity severity;
        char *body; /* owned */
    } backlog[AGENT_BACKLOG];
    uint64_t made, acknowledged, refused;
};

/* What the last message held that must not be repeated for ever if it is refused. */
enum agent_sole { SOLE_NONE, SOLE_REPORT, SOLE_EVENT };

/* The policy: what was offered last and what became of it; what is in force. */
struct agent_policy {
    char offered[65], hash[65]; /* hex; "" before the first, and for the defaults */
    enum opamp_status status;
    char why[OPAMP_TEXT_MAX];
    bool tell, fresh; /* fresh: an event tells what becomes of it */
    char *unkept;     /* owned: the disk did not take it yet; or NULL */
    uint32_t heartbeat_s, spread_ms;
};

/* The latest offer of connection settings, and what became of it. */
struct agent_offer {
    uint8_t hash[OPAMP_HASH_MAX];
    size_t hash_n;
    enum opamp_status status;
    char server[CONF_PATH], why[OPAMP_TEXT_MAX];
    bool tell;
    struct link *trial;  /* NULL: none */
    uint64_t due_ms;     /* the trial ends */
    uint64_t connection; /* it came on this one, counted */
};

struct protect;
struct runs;    /* runs.c */
struct upgrade; /* upgrade.c */

struct agent {
    sd_event *event;
    struct redoubt_service *service;
    struct agent_conf conf;
    struct uuid device_id;
    struct tls_creds *creds;
    struct spool *spool;
    struct clamav *clamav;
    struct link *link;
    sd_event_source *probe_timer, *hold_timer, *tick_timer, *control;
    const char *ack_log; /* path, or NULL */
    char control_path[CONF_PATH + 8];
    char host[256], os[200], arch[65];
    /* what is known */
    struct clamav_state engine, told; /* now; as in the last report */
    bool has_engine, has_told;
    uint64_t now_ms, start_ms, report_due_ms, start_unix_us;
    /* the conversation */
    uint64_t sequence;      /* of the last AgentToServer */
    uint64_t sent_seq;      /* reports up to here are on their way or done */
    uint32_t outstanding;   /* sent, and no receipt yet */
    uint32_t batch;         /* reports a message: 1 after the server refused one */
    uint64_t answer_due_ms; /* 0: nothing is awaited */
    bool holding, full_state, last_was_healthy;
    bool greeted; /* the server has answered on this connection */
    bool takes_events, takes_tasks;
    bool runs_due; /* the server is to hear what is to be done here */
    uint32_t spread_ms, backoff_max_ms; /* of the session */
    uint32_t offered_heartbeat_s;       /* 0: none was offered */
    uint32_t heartbeat_s;
    uint64_t beat_due_ms;
    /* So many messages more go one at a time, to find the one that is refused. */
    uint32_t careful;
    enum agent_sole sole; /* with a batch of 1: what is on its way alone */
    enum event_stream sole_stream;
    struct agent_events ev;
    struct agent_policy policy;
    struct agent_offer offer;
    struct link_hooks hooks;                           /* of the link that is in use */
    char server[CONF_PATH], offered_server[CONF_PATH]; /* in use; kept from an offer */
    uint64_t heard_ms;                                 /* it was open */
    struct identity *identity;
    char *csr; /* owned: to be sent with the next message */
    bool facts_changed, clock_wrong;
    struct protect *protect;
    struct runs *runs;
    struct upgrade *upgrade;
    uint64_t server_epoch;
    /* When this device was started, by the server's clock, as it last said; 0: it did not.
     * Ours may be set at any moment. */
    int64_t server_start_s;
    char trouble[240]; /* the last thing that went wrong, or "" */
    struct agent_counts counts;
};

/* talk.c: messages to the server and from it. */

/* The link is open: tell who we are, and begin again with the oldest of everything. */
void agent_hello(struct agent *a);
void agent_lost(struct agent *a);
void agent_message(struct agent *a, struct str bytes);
/* Sends what there is and what may be sent. */
void agent_send(struct agent *a);
void agent_goodbye(struct agent *a);
void agent_hold_over(struct agent *a);
/* Once a second. */
void agent_tick(struct agent *a);
/* Is an answer overdue? */
bool agent_overdue(const struct agent *a);
/* Sends one message: what has to be told about this device, and `custom` if not NULL. */
void talk_send(struct agent *a, const struct opamp_custom *custom);
/* May another message be sent now? */
bool talk_open(const struct agent *a);
/* Heartbeat and spread, from the policy, the offers and the session. */
void agent_pace(struct agent *a);
void agent_trouble(struct agent *a, const char *what);
int64_t agent_server_s(const struct agent *a); /* Unix seconds by the server's clock */
uint64_t agent_unix_us(void); /* within what a report or an event may carry */

/* reports.c: status reports and their receipts. */
void agent_engine(void *agent, const struct clamav_state *state);
void reports_send(struct agent *a);
/* From the oldest on, as if nothing had been sent. */
void reports_rewind(struct agent *a);
MUST_USE enum err reports_receipts(struct agent *a, struct str data,
                                   struct err_info *info);
/* The oldest one will never be taken. */
void reports_give_up(struct agent *a);

/* hello.c: the description of this device. */
void hello_start(struct agent *a);
void hello_add(struct agent *a, struct opamp_agent *m);

/* events.c: the events of this device (docs/protocol/events.md). */

/* One JSON object: the event as it is stored and sent.  data is stolen; the text is the
 * caller's to free; NULL if there is no memory. */
char *event_text(const char *kind, const char *severity, json_t *data);
/* Stores it, or keeps it in memory until the disk takes it.  data is stolen. */
void agent_event(struct agent *a, const char *kind, const char *severity, json_t *data);
void events_send(struct agent *a);
void events_rewind(struct agent *a);
void events_tick(struct agent *a);
void events_release(struct agent *a);
/* The JSON of an "ack". */
MUST_USE enum err events_ack(struct agent *a, const json_t *ack, struct err_info *info);
void events_give_up(struct agent *a);

/* config.c: the policy. */
void config_start(struct agent *a);
void config_tick(struct agent *a);
void config_release(struct agent *a);
void config_offer(struct agent *a, const struct opamp_config *offer);
/* A hook of protect. */
void config_done(void *agent, const char hash[65], bool ok, const char *why);
void config_add(struct agent *a, struct opamp_agent *m);
const char *config_status_name(enum opamp_status status);
/* Small files in state_dir, written whole or not at all. */
MUST_USE enum err state_write(const struct agent *a, const char *name, struct str head,
                              struct str body, struct err_info *info);
MUST_USE enum err state_read(const struct agent *a, const char *name, char *buf,
                             size_t size, size_t *n, struct err_info *info);

/* offers.c: new settings of the connection. */
void offers_start(struct agent *a);
void offers_take(struct agent *a, const struct opamp_settings *s);
void offers_tick(struct agent *a);
void offers_add(struct agent *a, struct opamp_agent *m);
void offers_release(struct agent *a);

/* runs.c: the tasks (docs/protocol/tasks.md). */
MUST_USE enum err runs_start(struct agent *a, struct err_info *info);
void runs_release(struct agent *a);
MUST_USE enum err runs_message(struct agent *a, struct str type, const json_t *m,
                               struct err_info *info);
/* Hooks of protect. */
void runs_heard(void *agent, const struct uuid *run, const char *state, unsigned percent,
                json_t *counts);
void runs_ended(void *agent, const struct uuid *run, const char *outcome, json_t *result);
/* Connected: all that is not finished. */
void runs_hello(struct agent *a);
void runs_tick(struct agent *a);
void runs_json(const struct agent *a, struct text *t);

/* control.c: the local socket that tells the state to `redoubt-agent status`. */
MUST_USE enum err control_open(struct agent *a, struct err_info *info);
void control_json(const struct agent *a, struct text *t);
/* The command: returns an exit code. */
int control_status(const struct agent_conf *conf, bool json);
void control_path_of(const struct agent_conf *conf, char *out, size_t size);

#endif
