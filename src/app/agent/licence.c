/*
 * licence: the worker's job that asks the Activation Proxy for a lease, and how a lease is read.
 *
 * The proxy is known by the cluster's authority, and we by our certificate: so what it says
 * needs no other proof here.  The lease is kept as it came, with the signature, for whoever
 * wants to see it.
 */
#include <errno.h>
#include <time.h>

#include "app/agent/channel.h"
#include "app/agent/files.h"
#include "app/agent/licence.h"
#include "app/agent/worker.h"
#include "sys/http/http_client.h"

enum { ASK_MS = 15000 };

/* "2026-11-22T19:56:14Z"; 0 if it is not. */
static int64_t instant(const json_t *document, const char *key)
{
    const char *text = json_string_value(json_object_get(document, key));
    struct tm tm = { 0 };
    const char *end = text ? strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm) : NULL;

    return end && *end == '\0' ? (int64_t)timegm(&tm) : 0;
}

bool licence_read(struct str envelope, struct licence_lease *out)
{
    json_t *j = json_loadb(envelope.p, envelope.n, 0, NULL);
    const char *text = json_string_value(json_object_get(j, "document"));
    json_t *document = text ? json_loads(text, 0, NULL) : NULL;

    out->expires = instant(document, "expires");
    out->renew_after = instant(document, "renew_after");
    json_decref(document);
    json_decref(j);
    return out->expires > 0 && out->renew_after > 0;
}

static enum err refused(const struct http_answer *a, json_t *out, struct err_info *info)
{
    json_t *j = json_loadb(a->body, a->body_bytes, 0, NULL);
    json_t *error = json_object_get(j, "error");
    const char *title = json_string_value(json_object_get(error, "title"));
    char words[160];

    (void)snprintf(words, sizeof(words), "%s", title ? title : "the proxy refuses");
    json_decref(j);
    if (a->status >= 500)
        return err_set(info, ERR_CLOSED, 0, "%s", words);
    (void)json_object_set_new(out, "refused", channel_text(words, sizeof(words)));
    return ERR_OK;
}

enum err licence_job(struct worker *w, const json_t *job, json_t *out,
                     struct err_info *info)
{
    static const char *const headers[] = { "Content-Type: application/json", NULL };
    const struct http_call call = { .server = job_text(job, "server"),
                                    .ca_file = job_text(job, "ca"),
                                    .certificate = job_text(job, "certificate"),
                                    .key = job_text(job, "key"),
                                    .headers = headers,
                                    .method = "POST",
                                    .path = "/v1/activate",
                                    .body = "{}",
                                    .timeout_ms = ASK_MS };
    struct licence_lease lease;
    struct http_answer a;
    enum err e = http_call(&call, &a, info);

    (void)w;
    if (e == ERR_OK && a.status != 200) {
        e = refused(&a, out, info);
    } else if (e == ERR_OK) {
        struct str text = { a.body, a.body_bytes };

        if (text.n > LICENCE_LEASE_MAX || !licence_read(text, &lease))
            e = err_set(info, ERR_CORRUPT, 0, "the proxy's answer is no lease");
        else
            e = file_store(job_text(job, "file"), text, NULL, info);
        (void)json_object_set_new(out, "expires", json_integer(lease.expires));
        (void)json_object_set_new(out, "renew_after", json_integer(lease.renew_after));
    }
    http_answer_release(&a);
    return e;
}
