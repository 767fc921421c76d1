#include "app/manager/routes.h"

#include "app/manager/enrol.h"
#include "app/manager/licence.h"
#include "app/manager/links.h"
#include "app/manager/openapi.h"
#include "app/manager/package.h"
#include "app/manager/policy.h"

#define ADMINISTRATOR "administrator"
#define OPERATOR      "operator"
#define AUDITOR       "auditor"
#define PAGE          "limit cursor"

// clang-format off
#define GET(pattern_, fn_, query_) \
    { .method = "GET", .pattern = pattern_, .fn = fn_, .role = AUDITOR, .query = query_ }
#define WRITE(method_, pattern_, fn_, role_, body_, query_, guard_) \
    { .method = method_, .pattern = pattern_, .fn = fn_, .role = role_, .write = true, \
      .body = body_, .query = query_, .guard = guard_ }
#define SERVE(method_, pattern_, serve_, body_) \
    { .method = method_, .pattern = pattern_, .serve = serve_, .body = body_, .query = "" }

static const struct route table[] = {
    SERVE("GET", "/v1/openapi.json", openapi_get, BODY_NONE),
    SERVE("GET", "/v1/ca", enrol_ca, BODY_NONE),
    SERVE("POST", "/v1/enrol", enrol_post, BODY_NEEDED),

    GET("/v1/status", "api_status", ""),

    GET("/v1/devices", "api_devices_list", "group subgroups state status policy tag q connected " PAGE),
    GET("/v1/devices/{id}", "api_device_get", ""),
    WRITE("PATCH", "/v1/devices/{id}", "api_device_patch", OPERATOR, BODY_NEEDED, "", "api_device_get"),
    WRITE("DELETE", "/v1/devices/{id}", "api_device_delete", ADMINISTRATOR, BODY_NONE, "", "api_device_get"),
    GET("/v1/devices/{id}/policy", "api_device_policy", ""),
    GET("/v1/devices/{id}/quarantine", "api_device_quarantine", "state " PAGE),
    WRITE("POST", "/v1/devices/{id}/approve", "api_device_approve", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/devices/{id}/revoke", "api_device_revoke", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),

    GET("/v1/groups", "api_groups_list", "below " PAGE),
    WRITE("POST", "/v1/groups", "api_group_create", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    GET("/v1/groups/{id}", "api_group_get", ""),
    WRITE("PATCH", "/v1/groups/{id}", "api_group_patch", ADMINISTRATOR, BODY_NEEDED, "", "api_group_get"),
    WRITE("DELETE", "/v1/groups/{id}", "api_group_delete", ADMINISTRATOR, BODY_NONE, "", "api_group_get"),
    GET("/v1/groups/{id}/policy", "api_policy_get", ""),
    { .method = "PUT", .pattern = "/v1/groups/{id}/policy", .fn = "api_policy_put", .role = ADMINISTRATOR,
      .write = true, .body = BODY_NEEDED, .query = "", .guard = "api_policy_get", .check = policy_check },
    WRITE("DELETE", "/v1/groups/{id}/policy", "api_policy_delete", ADMINISTRATOR, BODY_NONE, "", "api_policy_get"),
    GET("/v1/groups/{id}/effective", "api_effective_get", ""),
    GET("/v1/rules", "api_rules_get", ""),
    WRITE("PUT", "/v1/rules", "api_rules_put", ADMINISTRATOR, BODY_NEEDED, "", "api_rules_get"),
    GET("/v1/settings", "api_settings_list", PAGE),

    GET("/v1/tasks", "api_tasks_list", "name " PAGE),
    WRITE("POST", "/v1/tasks", "api_task_create", OPERATOR, BODY_NEEDED, "", NULL),
    GET("/v1/tasks/{id}", "api_task_get", ""),
    WRITE("PATCH", "/v1/tasks/{id}", "api_task_patch", OPERATOR, BODY_NEEDED, "", "api_task_get"),
    WRITE("DELETE", "/v1/tasks/{id}", "api_task_delete", OPERATOR, BODY_NONE, "", "api_task_get"),
    WRITE("POST", "/v1/tasks/{id}/start", "api_task_start", OPERATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/tasks/{id}/cancel", "api_task_cancel", OPERATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/tasks/{id}/pause", "api_task_pause", OPERATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/tasks/{id}/resume", "api_task_resume", OPERATOR, BODY_OPTIONAL, "", NULL),
    GET("/v1/tasks/{id}/occurrences", "api_occurrences_list", PAGE),
    GET("/v1/occurrences/{id}", "api_occurrence_get", ""),
    GET("/v1/occurrences/{id}/runs", "api_runs_list", "device state outcome " PAGE),

    GET("/v1/rollouts", "api_rollouts_list", "state " PAGE),
    WRITE("POST", "/v1/rollouts", "api_rollout_create", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    GET("/v1/rollouts/{id}", "api_rollout_get", ""),
    GET("/v1/rollouts/{id}/devices", "api_rollout_devices", "state wave " PAGE),
    WRITE("POST", "/v1/rollouts/{id}/pause", "api_rollout_pause", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/rollouts/{id}/resume", "api_rollout_resume", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/rollouts/{id}/stop", "api_rollout_stop", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),
    WRITE("POST", "/v1/rollouts/{id}/rollback", "api_rollout_rollback", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),

    GET("/v1/events", "api_events_list", "after kind severity device group since until wait_s " PAGE),
    GET("/v1/audit", "api_audit_list", "actor action object since until " PAGE),
    GET("/v1/retention", "api_retention_get", ""),
    WRITE("PUT", "/v1/retention", "api_retention_put", ADMINISTRATOR, BODY_NEEDED, "", "api_retention_get"),

    GET("/v1/signatures", "api_signatures_get", ""),
    WRITE("POST", "/v1/signatures", "api_signatures_import", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    WRITE("POST", "/v1/signatures/update", "api_signatures_update", OPERATOR, BODY_OPTIONAL, "", NULL),
    GET("/v1/signatures/source", "api_signature_source_get", ""),
    WRITE("PUT", "/v1/signatures/source", "api_signature_source_put", ADMINISTRATOR, BODY_NEEDED, "", "api_signature_source_get"),
    WRITE("DELETE", "/v1/signatures/databases/{name}", "api_signature_delete", ADMINISTRATOR, BODY_NONE, "", NULL),
    GET("/v1/signatures/custom", "api_custom_get", ""),
    { .method = "PUT", .pattern = "/v1/signatures/custom", .fn = "api_custom_put", .role = ADMINISTRATOR,
      .write = true, .body = BODY_NEEDED, .query = "", .guard = "api_custom_get", .check = package_check_manifest },

    GET("/v1/packages", "api_packages_list", "name platform visibility " PAGE),
    { .method = "POST", .pattern = "/v1/packages", .fn = "api_package_create", .role = ADMINISTRATOR,
      .write = true, .body = BODY_NEEDED, .query = "", .check = package_check },
    GET("/v1/packages/{id}", "api_package_get", ""),
    WRITE("PATCH", "/v1/packages/{id}", "api_package_patch", ADMINISTRATOR, BODY_NEEDED, "", "api_package_get"),
    WRITE("DELETE", "/v1/packages/{id}", "api_package_delete", ADMINISTRATOR, BODY_NONE, "", "api_package_get"),
    GET("/v1/store", "api_store_get", ""),
    GET("/v1/store/blobs", "api_blobs_list", PAGE),
    GET("/v1/store/blobs/{sha256}", "api_blob_get", ""),
    WRITE("POST", "/v1/store/collect", "api_store_collect", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),

    GET("/v1/licences", "api_licences_list", ""),
    WRITE("POST", "/v1/licences", "api_licence_add", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    { .method = "POST", .pattern = "/v1/licences/import", .fn = "api_licence_import", .role = ADMINISTRATOR,
      .write = true, .body = BODY_NEEDED, .query = "", .check = licence_check },
    GET("/v1/licences/{id}", "api_licence_get", ""),
    WRITE("DELETE", "/v1/licences/{id}", "api_licence_delete", ADMINISTRATOR, BODY_NONE, "", NULL),
    WRITE("POST", "/v1/licences/{id}/request", "api_licence_request", ADMINISTRATOR, BODY_OPTIONAL, "", NULL),
    GET("/v1/seats", "api_seats_list", "licence " PAGE),

    GET("/v1/tokens", "api_tokens_list", PAGE),
    WRITE("POST", "/v1/tokens", "api_token_create", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    WRITE("DELETE", "/v1/tokens/{id}", "api_token_delete", ADMINISTRATOR, BODY_NONE, "", NULL),
    { .method = "GET", .pattern = "/v1/api-tokens", .fn = "api_apitokens_list", .role = ADMINISTRATOR, .query = PAGE },
    WRITE("POST", "/v1/api-tokens", "api_apitoken_create", ADMINISTRATOR, BODY_NEEDED, "", NULL),
    WRITE("DELETE", "/v1/api-tokens/{id}", "api_apitoken_delete", ADMINISTRATOR, BODY_NONE, "", NULL),

    { .method = "POST", .pattern = "/v1/packages/{id}/link", .fn = "api_package_link", .role = OPERATOR,
      .write = true, .body = BODY_OPTIONAL, .query = "", .finish = links_finish },

    WRITE("POST", "/v1/apply", "api_apply", ADMINISTRATOR, BODY_NEEDED, "dry_run", NULL),
    GET("/v1/export", "api_export", ""),
};
// clang-format on

const struct route *route_at(size_t i)
{
    return i < LEN(table) ? &table[i] : NULL;
}

/* The next piece of a pattern, which *p is moved behind. */
static struct str next_piece(const char **p)
{
    const char *first = *p + 1; /* behind the '/' */
    size_t n = strcspn(first, "/");

    *p = first + n;
    return (struct str){ first, n };
}

static bool matches(const struct route *r, const char *const pieces[], size_t count)
{
    const char *p = r->pattern;

    for (size_t i = 0; i < count; i++) {
        if (*p == '\0')
            return false;
        struct str piece = next_piece(&p);
        if (piece.p[0] != '{' && !str_is(piece, pieces[i]))
            return false;
    }
    return *p == '\0';
}

enum route_found route_find(const char *method, const char *const pieces[], size_t count,
                            const struct route **out)
{
    enum route_found found = ROUTE_UNKNOWN;

    for (size_t i = 0; i < LEN(table); i++) {
        if (!matches(&table[i], pieces, count))
            continue;
        *out = &table[i];
        if (strcmp(table[i].method, method) == 0)
            return ROUTE_OK;
        found = ROUTE_METHOD;
    }
    return found;
}

void route_methods(const char *const pieces[], size_t count, char *buf, size_t size)
{
    struct text t;

    text_init(&t, buf, size);
    for (size_t i = 0; i < LEN(table); i++)
        if (matches(&table[i], pieces, count))
            text_add(&t, t.n > 0 ? ", %s" : "%s", table[i].method);
}

const char *route_parameter(const struct route *r, size_t i, char buf[32])
{
    const char *p = r->pattern;
    struct str piece = { "", 0 };

    for (size_t n = 0; n <= i; n++)
        piece = next_piece(&p);
    if (piece.p[0] != '{' || !str_copy(buf, 32, (struct str){ piece.p + 1, piece.n - 2 }))
        return NULL;
    return buf;
}

bool route_takes(const struct route *r, struct str parameter)
{
    for (const char *p = r->query; *p;) {
        size_t n = strcspn(p, " ");

        if (n == parameter.n && memcmp(p, parameter.p, n) == 0)
            return true;
        p += n + strspn(p + n, " ");
    }
    return false;
}

size_t route_body_max(const struct route *r)
{
    static const size_t small = 64 * 1024, large = 1024 * 1024;

    return r->fn && (strcmp(r->fn, "api_apply") == 0 ||
                     strcmp(r->fn, "api_policy_put") == 0 ||
                     strcmp(r->fn, "api_task_create") == 0 ||
                     strcmp(r->fn, "api_signatures_import") == 0 ||
                     strcmp(r->fn, "api_signature_source_put") == 0 ||
                     strcmp(r->fn, "api_custom_put") == 0 ||
                     strcmp(r->fn, "api_rules_put") == 0)
               ? large
               : small;
}
