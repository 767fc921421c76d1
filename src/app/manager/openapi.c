#include "app/manager/openapi.h"

#include "app/manager/api.h"

extern const char openapi_json[]; /* made from docs/api/openapi.json */

void openapi_get(struct asked *a)
{
    api_answer_text(a, 200, openapi_json);
}
