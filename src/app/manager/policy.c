#include "app/manager/policy.h"

#include <stdlib.h>

#include "app/manager/api.h"
#include "core/policy/policy.h"

bool policy_check(struct asked *a)
{
    static struct policy_errors errors;
    char words[4096];
    struct text t;
    json_t *settings = json_object_get(a->body, "settings");
    char *json = settings ? json_dumps(settings, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    bool good = !json || policy_validate_settings(str_of(json), &errors) == ERR_OK;

    free(json);
    if (good)
        return true; /* without settings the DBMS says so */
    text_init(&t, words, sizeof(words));
    for (uint32_t i = 0; i < errors.count; i++)
        text_add(&t, "%s%s: %s", i ? "\n" : "",
                 errors.at[i].path[0] ? errors.at[i].path : "settings", errors.at[i].why);
    if (errors.unsaid > 0)
        text_add(&t, "\n(%u more)", errors.unsaid);
    api_refuse(
        a, 422,
        &(struct http_error){
            "policy_invalid", "The policy is not valid", words,
            "Nothing was changed. `redoubt policy catalogue` (GET /v1/settings) lists "
            "what may be set." });
    return false;
}
