/*
 * licence: the worker's job that asks the Activation Proxy for a lease, and how a lease is read.
 *
 * The proxy is known by the cluster's authority, and we by our certificate.  The lease is kept
 * as it came, with its signature, which is verified each time it is read.
 */
#include "app/agent/channel.h"
#include "app/agent/files.h"
#include "app/agent/licence.h"
#include "app/agent/worker.h"
#include "sys/http/http_client.h"
#include "sys/tls/tls.h"

enum { ASK_MS = 15000 };

enum err licence_read(struct str envelope, const char *certificate, struct lease *out,
                      struct err_info *info)
{
    char key[TLS_KEY_HEX] = "";
    struct lease lease;
    struct uuid device;
    enum err e = lease_open(&lease, envelope, info);

    if (e == ERR_OK)
        e = tls_file_device(certificate, &device, info);
    if (e == ERR_OK)
        e = tls_file_key(certificate, key, info);
    if (e == ERR_OK && !uuid_eq(&device, &lease.device))
        e = err_set(info, ERR_FOREIGN, 0, "the lease is for another device");
    if (e == ERR_OK && strcmp(key, lease.device_key) != 0)
        e = err_set(info, ERR_FOREIGN, 0, "the lease is for another key than that of %s",
                    certificate);
    if (e == ERR_OK)
        *out = lease;
    return e;
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
    struct lease lease = { 0 };
    struct http_answer a;
    enum err e = http_call(&call, &a, info);

    (void)w;
    if (e == ERR_OK && a.status != 200) {
        e = refused(&a, out, info);
    } else if (e == ERR_OK) {
        struct str text = { a.body, a.body_bytes };

        e = licence_read(text, call.certificate, &lease, info);
        if (e == ERR_OK)
            e = file_store(job_text(job, "file"), text, NULL, info);
        (void)json_object_set_new(out, "expires", json_integer(lease.expires));
        (void)json_object_set_new(out, "renew_after", json_integer(lease.renew_after));
    }
    http_answer_release(&a);
    return e;
}
