#include "app/manager/licence.h"

#include <stdlib.h>

#include "app/manager/api.h"
#include "sys/licence/licence.h"

static enum err verify(struct str text, const char *cluster, const uint8_t *anchor,
                       struct err_info *info)
{
    struct licence_answer answer = { 0 };
    struct licence licence;
    bool is_answer = licence_is_answer(text);
    enum err e = is_answer ? licence_answer_open(&answer, text, anchor, info)
                           : licence_open(&licence, text, anchor, info);

    if (e != ERR_OK || (is_answer && answer.refused))
        return e; /* a refusal is taken, too: it says why */
    /* One that begins later may be imported now; one for somebody else never counts. */
    if (licence_refuses(is_answer ? &answer.licence : &licence, cluster, INT64_MAX) ==
        REFUSED_OTHER_CLUSTER)
        return err_set(info, ERR_FOREIGN, 0, "the licence is for the cluster \"%s\"",
                       is_answer ? answer.licence.cluster : licence.cluster);
    return ERR_OK;
}

bool licence_check(struct asked *a)
{
    const struct conf *conf = &a->m->conf;
    uint8_t anchor[LICENCE_KEY_BYTES];
    struct err_info info = { .what = "" };
    char *text = json_dumps(a->body, JSON_COMPACT);
    enum err e = licence_anchor_load(conf->activation.anchor, anchor, &info);

    if (e == ERR_OK)
        e = text ? verify(str_of(text), conf->cluster.name, anchor, &info)
                 : err_set(&info, ERR_MEMORY, 0, "out of memory");
    free(text);
    json_t *seen = json_pack("{s:O, s:s?}", "envelope", a->body, "problem",
                             e == ERR_OK ? NULL : info.what);
    json_decref(a->body);
    a->body = seen ? seen : json_null(); /* which is refused */
    return true;
}
