#include "keeper_end.h"

static void on_answer(void *arg, const struct share_answer *a)
{
    struct keeper_end *ke = arg;

    contract_take(ke->end, a);
}

static void on_replaced(void *arg, const char *why)
{
    struct keeper_end *ke = arg;

    (void)why;
    ke->replaced++;
}

struct keeper_options keeper_end_options(const struct smbd *s)
{
    return (struct keeper_options){
        .program = getenv("REDOUBT_KEEPER"),
        .share = s->share,
        .credentials = s->credentials,
        .dialect_min = "SMB2_02",
        .dialect_max = "SMB3_11",
        .port = s->port,
        .timeout_ms = 5000, /* contract tests are about answers, not about time */
        .slow_timeout_ms = 10000,
        .will_wait_ms = 1500,
        .gone_fd = -1,
    };
}

void keeper_end_open(struct keeper_end *ke, struct contract_end *end,
                     const struct keeper_options *o)
{
    const struct keeper_callbacks cb = { .answer = on_answer,
                                         .replaced = on_replaced,
                                         .arg = ke };
    struct err_info why;

    CHECK(o->program);
    memset(end, 0, sizeof(*end));
    *ke = (struct keeper_end){ .end = end };
    CHECK(sd_event_new(&ke->loop) >= 0);
    enum err e = keeper_new(&ke->keeper, ke->loop, o, &cb, &why);
    if (e)
        (void)fprintf(stderr, "%s\n", why.what);
    CHECK(e == ERR_OK);
    end->share = keeper_share(ke->keeper);
}

void keeper_end_close(struct keeper_end *ke)
{
    keeper_free(ke->keeper);
    (void)sd_event_unref(ke->loop);
}

void keeper_end_pump(void *arg)
{
    struct keeper_end *ke = arg;

    CHECK(sd_event_run(ke->loop, 20000) >= 0);
}
