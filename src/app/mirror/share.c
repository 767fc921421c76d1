/*
 * share: the connection to the data share.
 */
#include <string.h>

#include "app/mirror/mirror.h"
#include "sys/log/log.h"

enum { TIMEOUT_MS = 5000, LOOK_MS = 30000, RETRY_MS = 3000 };

static void note(struct mirror *m, bool ok, const char *why)
{
    if (m->share.ok != ok || !mono_is_set(m->share.looked))
        log_event(ok ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, "data_share",
                  log_bool("ok", ok), log_str("why", why));
    m->share.ok = ok;
    m->share.looked = mirror_now();
    (void)snprintf(m->share.why, sizeof(m->share.why), "%.190s", why);
}

void share_close(struct mirror *m)
{
    smb_free(m->share.smb);
    m->share.smb = NULL;
}

static enum err open_share(struct mirror *m, struct err_info *info)
{
    const struct conf_share *s = &m->conf.share;
    struct smb_cred cred;
    enum err e = smb_cred_load(&cred, s->credentials, info);

    if (e != ERR_OK)
        return e;
    struct smb_options o = { .share = s->data,
                             .cred = &cred,
                             .encrypt = s->encrypt != 0,
                             .port = (uint16_t)s->port,
                             .timeout_ms = TIMEOUT_MS };
    const bool known =
        smb_dialect_parse(str_of(conf_dialect_name(s->dialect_min)), &o.min) &&
        smb_dialect_parse(str_of(conf_dialect_name(s->dialect_max)), &o.max);

    CHECK(known); /* both come from one table */
    e = smb_connect(&m->share.smb, &o, info);
    explicit_bzero(&cred, sizeof(cred));
    if (e != ERR_OK)
        m->share.smb = NULL;
    return e;
}

struct smb *share_get(struct mirror *m, struct err_info *info)
{
    struct err_info why;

    if (m->share.smb)
        return m->share.smb;
    if (!mono_reached(mirror_now(), m->share.retry)) {
        (void)err_set(info, ERR_IO, 0, "%s", m->share.why);
        return NULL;
    }
    const enum err e = open_share(m, &why);

    if (e != ERR_OK) {
        note(m, false, why.what);
        m->share.retry = mono_after(mirror_now(), RETRY_MS);
        (void)err_set(info, e, 0, "%s", why.what);
        return NULL;
    }
    note(m, true, "");
    return m->share.smb;
}

void share_used(struct mirror *m, enum err e, const struct err_info *info)
{
    if (!m->share.smb)
        return;
    if (smb_is_lost(m->share.smb)) {
        note(m, false, e != ERR_OK ? info->what : "the connection was lost");
        share_close(m);
        m->share.retry = mono_after(mirror_now(), RETRY_MS);
    } else if (e == ERR_OK) {
        note(m, true, "");
    }
}

bool share_again(struct mirror *m)
{
    struct err_info why;

    m->share.retry = (struct mono){ 0 };
    return share_get(m, &why) != NULL;
}

void share_turn(struct mirror *m)
{
    struct smb_space space;
    struct err_info why;

    if (mono_is_set(m->share.looked) &&
        !mono_reached(mirror_now(),
                      mono_after(m->share.looked, m->share.ok ? LOOK_MS : RETRY_MS)))
        return;
    struct smb *s = share_get(m, &why);

    if (!s)
        return;
    const enum err e = smb_space(s, &space, &why);

    if (e != ERR_OK && !smb_is_lost(s))
        note(m, true, ""); /* it answers */
    share_used(m, e, &why);
}
