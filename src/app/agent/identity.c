#include "app/agent/identity.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "app/agent/identity_files.h"

struct identity {
    struct conf_agent conf;
    struct identity_hooks hooks;
    struct uuid device;
    char instance[IDENTITY_INSTANCE];
    struct ca_certificate now; /* in use */
    /* the request on its way */
    bool asking;
    struct ca_pem key, csr;
    struct uuid wanted;
    int64_t asked_at;
    /* the certificate on trial */
    bool trying;
    struct uuid tried;
    uint32_t failures;
    char new_certificate[CONF_PATH + 8], new_key[CONF_PATH + 8];

    bool online;
    int64_t not_before; /* no new request before: the last did not work */
    char trouble[240];
};

const struct uuid *identity_device(const struct identity *i)
{
    return i->trying ? &i->tried : &i->device;
}

const char *identity_instance(const struct identity *i)
{
    return i->instance;
}

struct tls_files identity_files(const struct identity *i)
{
    struct tls_files f = { i->conf.certificate, i->conf.key, i->conf.ca };

    if (i->trying) {
        f.certificate = i->new_certificate;
        f.key = i->new_key;
    }
    return f;
}

static int64_t renew_at(const struct identity *i)
{
    return i->now.not_before + (i->now.not_after - i->now.not_before) / 3 * 2;
}

static void drop_request(struct identity *i)
{
    ca_pem_wipe(&i->key);
    i->asking = false;
}

static void drop_trial(struct identity *i)
{
    (void)unlink(i->new_certificate); /* there or not */
    (void)unlink(i->new_key);
    i->trying = false;
}

static void in_trouble(struct identity *i, const char *what, const struct err_info *why)
{
    (void)snprintf(i->trouble, sizeof(i->trouble), "%s: %.200s", what, why->what);
}

/* A key of its own for each request, so that what leaked once is not good for ever. */
static void begin_request(struct identity *i, const struct uuid *id, int64_t now)
{
    struct err_info why = { .what = "" };
    enum err e = ca_key_new(&i->key, &why);

    if (e == ERR_OK)
        e = ca_csr_new(ca_pem_str(&i->key), "", id, &i->csr, &why);
    if (e != ERR_OK) {
        in_trouble(i, "no signing request", &why);
        drop_request(i);
        i->not_before = now + IDENTITY_PAUSE_S;
        return;
    }
    i->wanted = *id;
    i->asking = true;
    i->asked_at = 0;
}

static void send_request(struct identity *i, int64_t now)
{
    if (!i->asking || !i->online ||
        (i->asked_at != 0 && now - i->asked_at < IDENTITY_REPEAT_S && now >= i->asked_at))
        return;
    i->asked_at = now;
    i->hooks.request(i->hooks.arg, ca_pem_str(&i->csr));
}

void identity_tick(struct identity *i, int64_t now)
{
    if (!i->online)
        return;
    if (!i->asking && !i->trying && now >= renew_at(i) && now >= i->not_before)
        begin_request(i, &i->device, now);
    send_request(i, now);
}

/* The new files become the identity. */
static void commit(struct identity *i, int64_t now)
{
    struct err_info why = { .what = "" };
    enum err e = identity_commit(&i->conf, &i->now, &why);

    if (e != ERR_OK) {
        /* The trial goes on in memory; the next start repairs what can be repaired. */
        in_trouble(i, "the new certificate cannot be stored", &why);
        i->not_before = now + IDENTITY_PAUSE_S;
        return;
    }
    i->device = i->tried;
    i->trying = false;
    i->trouble[0] = '\0';
}

void identity_accepted(struct identity *i, int64_t now)
{
    i->online = true;
    i->failures = 0;
    if (i->trying)
        commit(i, now);
    i->asked_at = 0; /* what was asked on another connection may be lost */
    identity_tick(i, now);
}

void identity_lost(struct identity *i, bool refused, int64_t now)
{
    i->online = false;
    if (!refused || !i->trying || ++i->failures < IDENTITY_TRIES)
        return;
    drop_trial(i);
    (void)snprintf(i->trouble, sizeof(i->trouble),
                   "the new certificate was refused %d times: the old one stays",
                   IDENTITY_TRIES);
    i->not_before = now + IDENTITY_PAUSE_S;
    i->hooks.changed(i->hooks.arg);
}

enum err identity_offered(struct identity *i, struct str certificate,
                          struct err_info *info)
{
    struct ca_certificate c;
    enum err e = ca_certificate_read(certificate, &c, info);

    if (e == ERR_OK && strcmp(c.serial, i->now.serial) == 0)
        return ERR_EXISTS;
    if (e == ERR_OK && !i->asking)
        return err_set(info, ERR_DENIED, 0, "no certificate was asked for");
    if (e == ERR_OK && (!c.has_device || !uuid_eq(&c.device, &i->wanted)))
        return err_set(info, ERR_DENIED, 0, "the certificate is for another device");
    if (e == ERR_OK)
        e = identity_check(certificate, ca_pem_str(&i->key), i->conf.ca, info);
    if (e == ERR_OK)
        e = identity_write_new(&i->conf, certificate, ca_pem_str(&i->key), info);
    if (e != ERR_OK) {
        if (info)
            in_trouble(i, "the new certificate", info);
        return e;
    }
    i->tried = i->wanted;
    i->trying = true;
    i->failures = 0;
    drop_request(i);
    i->hooks.changed(i->hooks.arg);
    return ERR_OK;
}

void identity_reassigned(struct identity *i, const struct uuid *id, int64_t now)
{
    if (uuid_eq(id, identity_device(i)) || (i->asking && uuid_eq(id, &i->wanted)))
        return;
    if (now < i->not_before)
        return;
    drop_request(i);
    begin_request(i, id, now);
    send_request(i, now);
}

void identity_status(const struct identity *i, struct identity_status *out)
{
    *out = (struct identity_status){ .not_after = i->now.not_after,
                                     .renew_at = renew_at(i),
                                     .trying = i->trying,
                                     .asking = i->asking,
                                     .trouble = i->trouble };
    (void)snprintf(out->serial, sizeof(out->serial), "%s", i->now.serial);
}

enum err identity_new(const struct conf_agent *conf, const struct identity_hooks *hooks,
                      struct identity **out, struct err_info *info)
{
    uint8_t random[(IDENTITY_INSTANCE - 1) / 2];
    struct identity *i = calloc(1, sizeof(*i));

    if (!i)
        return err_set(info, ERR_MEMORY, ENOMEM, "identity");
    i->conf = *conf;
    i->hooks = *hooks;
    (void)snprintf(i->new_certificate, sizeof(i->new_certificate), "%s.new",
                   conf->certificate);
    (void)snprintf(i->new_key, sizeof(i->new_key), "%s.new", conf->key);
    tls_random(random, sizeof(random));
    hex_encode(i->instance, random, sizeof(random));
    enum err e = identity_load(&i->conf, &i->now, info);
    if (e != ERR_OK) {
        identity_free(i);
        return e;
    }
    i->device = i->now.device;
    drop_trial(i); /* of a run that ended in the middle of one: it is asked for again */
    *out = i;
    return ERR_OK;
}

void identity_free(struct identity *i)
{
    if (!i)
        return;
    ca_pem_wipe(&i->key);
    free(i);
}
