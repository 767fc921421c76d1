/*
 * payload: is a message's JSON one object within our bounds?  Apart from the others, because
 * wire/json.h and jansson.h give the same names to different things.
 */
#include "app/agent/payload.h"

#include "wire/json.h"

enum err payload_check(struct str json, struct err_info *info)
{
    static struct json_object members;

    if (json_load(&members, json) == ERR_OK && json_storable(json))
        return ERR_OK;
    return err_set(info, ERR_CORRUPT, 0, "a message that is no JSON object, or too deep");
}
