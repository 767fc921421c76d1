/*
 * content: redoubt-mirror as the daemon holds it, and what is known of this node's copy.
 */
#include "app/node/daemon.h"
#include "sys/log/log.h"

enum {
    RESTART_MS = 500,
    RESTART_MAX_MS = 30000,
    SILENCE_MS = 180000, /* the file server may keep it waiting for long */
};

static uint64_t number_of(const json_t *v, const char *key)
{
    const json_int_t n = json_integer_value(json_object_get(v, key));

    return n > 0 ? (uint64_t)n : 0;
}

static bool flag_of(const json_t *v, const char *key)
{
    return json_is_true(json_object_get(v, key));
}

static void text_of(const json_t *v, const char *key, char *out, size_t size)
{
    (void)snprintf(out, size, "%s", entry_text(v, key));
}

/* A file was found damaged, or is good again: into the history, and to whom alerts go. */
static void on_event(struct daemon *d, const json_t *v)
{
    const char *event = entry_text(v, "event"), *where = entry_text(v, "where");
    const bool healed = strcmp(event, "blob_healed") == 0;
    char text[200];

    if (!healed && strcmp(event, "blob_damaged") != 0)
        return;
    (void)snprintf(d->content.blob, sizeof(d->content.blob), "%.12s",
                   entry_text(v, "blob"));
    if (!healed)
        (void)snprintf(d->content.where, sizeof(d->content.where), "%s",
                       strcmp(where, "share") == 0 ? "on the data share"
                                                   : "on this node");
    d->content.event_at = now_mono();
    (void)snprintf(text, sizeof(text), "blob %s is %s %s", d->content.blob,
                   healed ? "good again" : "damaged", healed ? "" : d->content.where);
    json_t *e = journal_entry(d, "content", text);

    (void)json_object_set_new(e, "event", json_string(event));
    (void)json_object_set_new(e, "blob", json_string(entry_text(v, "blob")));
    (void)json_object_set_new(e, "where", json_string(where));
    alert_send(d, e);
    journal_add(d, e);
}

static void on_state(struct daemon *d, const json_t *v)
{
    struct content *c = &d->content;
    const uint64_t fetched = number_of(v, "fetched_bytes");
    const bool prepared = flag_of(v, "prepared"), turned = c->prepared != prepared;

    if (fetched != c->fetched_bytes || prepared || !c->told)
        c->moved = now_mono();
    c->told = true;
    c->prepared = prepared;
    c->known = flag_of(v, "known");
    c->share_ok = flag_of(v, "share_ok");
    c->full = flag_of(v, "full");
    c->scrubbing = flag_of(v, "scrubbing");
    c->serial = number_of(v, "serial");
    c->shown = number_of(v, "shown");
    c->files = number_of(v, "files");
    c->bytes = number_of(v, "bytes");
    c->missing = number_of(v, "missing");
    c->missing_bytes = number_of(v, "missing_bytes");
    c->lost = number_of(v, "lost");
    c->fetched_bytes = fetched;
    c->damaged_now = number_of(v, "damaged_now");
    c->damaged = number_of(v, "damaged");
    c->healed = number_of(v, "healed");
    c->scrubbed_s = number_of(v, "scrubbed");
    text_of(v, "why", c->why, sizeof(c->why));
    text_of(v, "share_why", c->share_why, sizeof(c->share_why));
    text_of(v, "refused", c->refused, sizeof(c->refused));
    text_of(v, "signatures", c->signatures, sizeof(c->signatures));
    text_of(v, "signatures_detail", c->signatures_detail, sizeof(c->signatures_detail));
    if (turned)
        log_event(LOG_LEVEL_INFO, "content", log_bool("prepared", prepared),
                  log_u64("serial", c->serial), log_u64("missing", c->missing),
                  log_str("why", c->why));
    world_event(d, &(struct node_event){ .kind = NODE_EV_CONTENT,
                                         .err = prepared ? ERR_OK : ERR_NOT_FOUND });
}

static void said(void *arg, struct str packet)
{
    struct daemon *d = arg;
    json_t *v = json_loadb(packet.p, packet.n, JSON_REJECT_DUPLICATES, NULL);

    if (json_is_object(v) && json_object_get(v, "event"))
        on_event(d, v);
    else if (json_is_object(v))
        on_state(d, v);
    d->content.down_since = (struct mono){ 0 };
    json_decref(v);
}

/* What was known stays known: the files do not go because nobody looks at them. */
static void ended(void *arg, const char *why)
{
    struct daemon *d = arg;

    if (!mono_is_set(d->content.down_since))
        d->content.down_since = now_mono();
    (void)snprintf(d->content.down_why, sizeof(d->content.down_why), "%s", why);
    log_event(LOG_LEVEL_WARNING, "mirror_ended", log_str("why", why));
}

bool content_is_used(const struct daemon *d)
{
    return d->conf.share.data[0] != '\0';
}

enum err content_open(struct daemon *d, struct err_info *info)
{
    if (!content_is_used(d))
        return ERR_OK;
    (void)snprintf(d->mirror_program, sizeof(d->mirror_program), "%s/redoubt-mirror",
                   d->libexec);
    const char **a = d->mirror_argv;

    *a++ = "redoubt-mirror";
    *a++ = "--config";
    *a++ = d->conf_path;
    *a++ = "--daemon-fd";
    *a++ = "3";
    *a++ = "--lease-fd";
    *a++ = "4";
    *a = NULL;
    static_assert(HELPER_FD_SOCKET == 3 && HELPER_FD_SHARED == 4, "as the arguments say");
    const struct helper_options o = { .program = d->mirror_program,
                                      .argv = d->mirror_argv,
                                      .shared_fd = d->page.fd,
                                      .backoff_ms = RESTART_MS,
                                      .backoff_max_ms = RESTART_MAX_MS,
                                      .silence_ms = SILENCE_MS };
    const struct helper_callbacks cb = { said, ended, d };

    return helper_new(&d->mirror, d->loop, &o, &cb, info);
}

void content_close(struct daemon *d)
{
    helper_free(d->mirror);
    d->mirror = NULL;
}

void content_start(struct daemon *d)
{
    if (!content_is_used(d)) /* nothing can be published */
        world_event(d, &(struct node_event){ .kind = NODE_EV_CONTENT });
}

enum err content_verify(struct daemon *d)
{
    return d->mirror ? helper_say(d->mirror, STR("verify")) : ERR_UNSUPPORTED;
}

json_t *content_json(const struct daemon *d)
{
    const struct content *c = &d->content;
    char time[40];

    if (!content_is_used(d))
        return json_null();
    return json_pack(
        "{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:o, s:b, "
        "s:s}",
        "prepared", c->prepared, "known", c->known, "serial", (json_int_t)c->serial,
        "shown", (json_int_t)c->shown, "files", (json_int_t)c->files, "bytes",
        (json_int_t)c->bytes, "missing", (json_int_t)c->missing, "missing_bytes",
        (json_int_t)c->missing_bytes, "fetched_bytes", (json_int_t)c->fetched_bytes,
        "damaged", (json_int_t)c->damaged, "healed", (json_int_t)c->healed, "share_ok",
        c->share_ok, "scrubbing", c->scrubbing, "scrubbed",
        c->scrubbed_s
            ? json_string(wall_text(c->scrubbed_s * 1000000u, time, sizeof(time)))
            : json_null(),
        "running", d->mirror && helper_pid(d->mirror) != 0, "detail",
        c->refused[0] ? c->refused : c->why);
}

void content_explain(const struct daemon *d, json_t *list,
                     void (*say)(json_t *list, const char *fmt, ...))
{
    const struct content *c = &d->content;

    if (!content_is_used(d) || !c->told)
        return;
    if (c->prepared && c->lost > 0)
        say(list,
            "%llu of the %llu published files cannot be had by any node: %s. Publish "
            "them "
            "again, or take them back.",
            (unsigned long long)c->lost, (unsigned long long)c->files, c->why);
    if (c->prepared)
        return;
    say(list,
        "%llu of the %llu published files (%llu of %llu bytes) are missing on %s%s%s. It "
        "would take over all the same, and serve those that were published before.",
        (unsigned long long)c->missing, (unsigned long long)c->files,
        (unsigned long long)c->missing_bytes, (unsigned long long)c->bytes,
        d->conf.cluster.node, c->why[0] ? ": " : "", c->why);
}
