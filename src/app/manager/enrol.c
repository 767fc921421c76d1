#include "app/manager/enrol.h"

#include "app/manager/api.h"

static void not_here(struct asked *a)
{
    api_refuse(a, 501,
               &(struct http_error){ "not_supported", "Not supported",
                                     "This server has no certificate authority.", "" });
}

enum err enrol_start(struct manager *m, struct err_info *info)
{
    (void)m, (void)info;
    return ERR_OK;
}

void enrol_stop(struct manager *m)
{
    (void)m;
}

void enrol_active(struct manager *m)
{
    (void)m;
}

void enrol_standby(struct manager *m)
{
    (void)m;
}

void enrol_poke(struct manager *m)
{
    (void)m;
}

void enrol_post(struct asked *a)
{
    not_here(a);
}

void enrol_ca(struct asked *a)
{
    not_here(a);
}
