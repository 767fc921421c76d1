/*
 * metrics: Prometheus text (exposition format 0.0.4).
 */
#include <inttypes.h>

#include "app/node/daemon.h"

static void gauge(FILE *f, const char *name, const char *help, double v)
{
    fprintf(f, "# HELP redoubt_%s %s\n# TYPE redoubt_%s gauge\nredoubt_%s %.15g\n", name,
            help, name, name, v);
}

static void counter(FILE *f, const char *name, const char *help, uint64_t v)
{
    fprintf(f,
            "# HELP redoubt_%s %s\n# TYPE redoubt_%s counter\nredoubt_%s %" PRIu64 "\n",
            name, help, name, name, v);
}

static void states(FILE *f, const struct daemon *d)
{
    fprintf(f, "# HELP redoubt_state The node's state: 1 for the present one.\n"
               "# TYPE redoubt_state gauge\n");
    for (int s = 0; s < NODE_STATE_COUNT; s++)
        fprintf(f, "redoubt_state{state=\"%s\"} %d\n",
                node_state_name((enum node_state)s),
                d->run.node.state == (enum node_state)s);
}

static void services(FILE *f, const struct daemon *d)
{
    fprintf(f, "# HELP redoubt_service_up Is the service as it should be in this role?\n"
               "# TYPE redoubt_service_up gauge\n");
    for (uint32_t i = 0; i < d->conf.service_count; i++)
        fprintf(f, "redoubt_service_up{service=\"%s\"} %d\n", d->conf.service[i].name,
                d->view[i].state == SERVICE_STANDBY ||
                    d->view[i].state == SERVICE_ACTIVE);
    fprintf(f, "# HELP redoubt_service_restarts_total Starts after a failure.\n"
               "# TYPE redoubt_service_restarts_total counter\n");
    for (uint32_t i = 0; i < d->conf.service_count; i++)
        fprintf(f, "redoubt_service_restarts_total{service=\"%s\"} %u\n",
                d->conf.service[i].name, d->view[i].restarts);
}

/* What services may tell, and only this: one line that is wrong would cost all the others. */
static const struct {
    const char *name, *help;
} told[] = {
    { "licences", "Licences by state." },
    { "licence_seats", "Seats of the licences that can be used." },
    { "licence_seats_taken", "Seats of these licences that devices hold." },
    { "licence_remaining_seconds", "Until the first of these licences ends." },
    { "licence_answer_remaining_seconds",
      "Until the first of these licences is stale, without an answer of the vendor." },
    { "licence_answer_timestamp_seconds",
      "When the vendor answered last, by its clock." },
};

static bool is_word(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (s.p[i] != '_' && (s.p[i] < 'a' || s.p[i] > 'z'))
            return false;
    return s.n > 0;
}

/* What comes before end, which is taken away with it. */
static struct str take(struct str *rest, char end)
{
    const char *at = memchr(rest->p, end, rest->n);
    struct str s = { rest->p, at ? (size_t)(at - rest->p) : rest->n };

    rest->p += s.n + (at != NULL);
    rest->n -= s.n + (at != NULL);
    return s;
}

/* Those of this name in "name=number name:state=number ..."; headed: the others have begun. */
static bool told_one(FILE *f, size_t which, struct str text, bool headed)
{
    while (text.n > 0) {
        struct str number = take(&text, ' '), state = take(&number, '=');
        struct str name = take(&state, ':');
        uint64_t v;

        if (!str_is(name, told[which].name) || !str_u64(number, UINT64_MAX, &v) ||
            (state.n > 0 && !is_word(state)))
            continue;
        if (!headed)
            fprintf(f, "# HELP redoubt_%s %s\n# TYPE redoubt_%s gauge\n",
                    told[which].name, told[which].help, told[which].name);
        headed = true;
        fprintf(f, "redoubt_%s", told[which].name);
        if (state.n > 0)
            fprintf(f, "{state=\"%.*s\"}", (int)state.n, state.p);
        fprintf(f, " %" PRIu64 "\n", v);
    }
    return headed;
}

/* A service that does not run says nothing. */
static void told_all(FILE *f, const struct daemon *d)
{
    for (size_t which = 0; which < LEN(told) && d->supervisor; which++) {
        bool headed = false;

        for (uint32_t i = 0; i < d->conf.service_count; i++)
            headed =
                told_one(f, which, str_of(supervisor_metrics(d->supervisor, i)), headed);
    }
}

static void alarm_list(FILE *f, const struct daemon *d)
{
    fprintf(f, "# HELP redoubt_alarm Raised alarms.\n# TYPE redoubt_alarm gauge\n");
    for (int i = 0; i < ALARM_COUNT; i++)
        fprintf(f, "redoubt_alarm{id=\"%s\"} %d\n", alarm_info((enum alarm)i)->id,
                d->alarm_since[i] != 0);
}

static void content(FILE *f, const struct daemon *d)
{
    const struct content *c = &d->content;

    if (!content_is_used(d))
        return;
    gauge(f, "content_prepared", "1 if every published file is on this node.",
          c->prepared);
    gauge(f, "content_bytes", "Of the published files.", (double)c->bytes);
    gauge(f, "content_missing_bytes", "Of those that are not here yet.",
          (double)c->missing_bytes);
    gauge(f, "content_scrubbed_timestamp_seconds",
          "When all of them were read again last.", (double)c->scrubbed_s);
    counter(f, "content_fetched_bytes_total", "From the data share.", c->fetched_bytes);
    counter(f, "content_damaged_total", "Files found damaged.", c->damaged);
    counter(f, "content_healed_total", "Files healed from the good copy.", c->healed);
    gauge(f, "data_share_up", "1 if the data share answers.", c->share_ok);
}

char *metrics_text(const struct daemon *d, size_t *n)
{
    const struct node *node = &d->run.node;
    struct keeper_stats st = { .pid = 0 };
    char *text = NULL;
    FILE *f = open_memstream(&text, n);

    if (!f)
        return NULL;
    if (d->keeper)
        st = keeper_stats(d->keeper);
    gauge(f, "active", "1 on the active node.", node->state == NODE_ACTIVE);
    gauge(f, "ready", "1 if nothing hinders a takeover by this node.",
          d->running && node_obstacles(node) == 0);
    gauge(f, "degraded", "1 if this node is active and something does not work.",
          node_degraded(node));
    gauge(f, "paused", "1 while the cluster does not switch by itself.", node->paused);
    gauge(f, "maintenance", "1 while this node is in maintenance.", node->maintenance);
    gauge(f, "epoch", "The highest epoch seen on the share.", (double)node->seen.top);
    gauge(f, "known_epoch", "The highest epoch ever heard of.",
          (double)node->known_epoch);
    gauge(f, "lease_remaining_seconds", "Until the deadline of the lease held here.",
          node->lease.epoch
              ? (double)mono_since_ms(node->lease.deadline, now_mono()) / 1000.0
              : 0);
    gauge(f, "share_latency_seconds", "Of the last answer of the file server.",
          (double)st.latency_us / 1e6);
    counter(f, "share_connections_total", "Connections made to the file server.",
            st.connections);
    counter(f, "keeper_replacements_total", "Keepers that were killed or died.",
            st.replacements);
    gauge(f, "database_up", "1 if the DBMS answers and the fence is there.",
          d->database.ok);
    gauge(f, "database_latency_seconds", "Of the last probe.",
          (double)d->database.latency_us / 1e6);
    gauge(f, "peer_ready", "1 if the other node would take over now.",
          node_peer_can_take(node));
    content(f, d);
    counter(f, "moves_total", "Moves between states.", d->moves_total);
    counter(f, "switches_total", "Takeovers by this node.", d->switches_total);
    counter(f, "clock_jumps_total", "Times this machine stood still.", d->jumps_total);
    states(f, d);
    services(f, d);
    told_all(f, d);
    alarm_list(f, d);
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
