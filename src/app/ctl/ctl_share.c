#include "app/ctl/ctl.h"

enum err ctl_share_connect(const struct conf *conf, const char *share, struct smb **out,
                           struct err_info *info)
{
    return ctl_share_connect_for(conf, share, conf->cluster.share_timeout_ms, out, info);
}

enum err ctl_share_connect_for(const struct conf *conf, const char *share,
                               uint32_t timeout_ms, struct smb **out,
                               struct err_info *info)
{
    struct smb_cred cred;
    struct smb_options o = { .share = share,
                             .cred = &cred,
                             .encrypt = conf->share.encrypt,
                             .port = (uint16_t)conf->share.port,
                             .timeout_ms = timeout_ms };
    enum err e = smb_cred_load(&cred, conf->share.credentials, info);

    if (e != ERR_OK)
        return e;
    CHECK(smb_dialect_parse(str_of(conf_dialect_name(conf->share.dialect_min)), &o.min));
    CHECK(smb_dialect_parse(str_of(conf_dialect_name(conf->share.dialect_max)), &o.max));
    e = smb_connect(out, &o, info);
    explicit_bzero(&cred, sizeof(cred));
    return e;
}
