/*
 * agent: the Network Agent's one process.
 *
 * Purpose   Looks at the engine, makes status reports, keeps them in the spool, and hands
 *           them to the server over one connection until it has receipts.
 * Shape     reports.c makes and sends them, link.c is the connection, control.c answers
 *           `redoubt-agent status`.  All in one event loop.
 * Safety    A report is removed from the spool only on a receipt for it.
 * Threads   loop thread only
 */
#ifndef APP_AGENT_H
#define APP_AGENT_H

#include <redoubt/service.h>

#include "app/agent/link.h"
#include "sys/clamav/clamav.h"
#include "sys/conf/conf.h"
#include "sys/spool/spool.h"

enum {
    AGENT_WINDOW = 64,        /* reports on their way */
    AGENT_PROBE_MS = 2000,    /* the engine is looked at this often, or each report_ms */
    AGENT_HOLD_MAX_MS = 60000 /* the longest time a server may ask us to wait */
};

struct agent_counts {
    uint64_t made, lost, acknowledged, refused, unavailable, bad_requests, connects;
};

struct agent {
    sd_event *event;
    struct redoubt_service *service;
    struct agent_conf conf;
    struct uuid device_id;
    struct tls_creds *creds;
    struct spool *spool;
    struct clamav *clamav;
    struct link *link;
    sd_event_source *probe_timer, *hold_timer, *control;
    const char *ack_log; /* path, or NULL */
    char control_path[CONF_PATH + 8];
    char host[256], os[200];
    /* what is known */
    struct clamav_state engine, told; /* now; as in the last report */
    bool has_engine, has_told;
    uint64_t now_ms, report_due_ms, start_unix_us;
    /* the conversation */
    uint64_t sequence;      /* of the last AgentToServer */
    uint64_t sent_seq;      /* reports up to here are on their way or done */
    uint32_t outstanding;   /* sent, and no receipt yet */
    uint32_t batch;         /* reports a message: 1 after the server refused one */
    uint64_t answer_due_ms; /* 0: nothing is awaited */
    bool holding, full_state, last_was_healthy;
    uint64_t server_epoch;
    char trouble[240]; /* the last thing that went wrong, or "" */
    struct agent_counts counts;
};

/* reports.c */
void agent_engine(void *agent, const struct clamav_state *state);
/* The link is open: tell who we are, and begin again with the oldest report. */
void agent_hello(struct agent *a);
void agent_lost(struct agent *a);
void agent_message(struct agent *a, struct str bytes);
/* Sends what the window allows. */
void agent_send(struct agent *a);
void agent_goodbye(struct agent *a);
void agent_hold_over(struct agent *a);
/* Is an answer overdue? */
bool agent_overdue(const struct agent *a);

/* control.c: the local socket that tells the state to `redoubt-agent status`. */
MUST_USE enum err control_open(struct agent *a, struct err_info *info);
void control_json(const struct agent *a, struct text *t);
/* The command: returns an exit code. */
int control_status(const struct agent_conf *conf, bool json);
void control_path_of(const struct agent_conf *conf, char *out, size_t size);

#endif
