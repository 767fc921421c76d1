/* openapi: docs/api/openapi.json, as it was when the program was built. */
#ifndef APP_MANAGER_OPENAPI_H
#define APP_MANAGER_OPENAPI_H

struct asked;

void openapi_get(struct asked *a);

#endif
