/* Whatever a policy says: what is accepted is within the catalogue, and is written and read
 * again as the same. */
#include "core/policy/policy.h"
#include "fuzz.h"

static struct policy policy, again;
static struct policy_errors errors;
static char document[POLICY_DOCUMENT_MAX];

static void check_errors(void)
{
    CHECK(errors.count > 0 && errors.count <= POLICY_ERRORS_MAX);
    for (uint32_t i = 0; i < errors.count; i++)
        CHECK(errors.at[i].why[0] != '\0' &&
              memchr(errors.at[i].why, 0, sizeof(errors.at[i].why)) &&
              memchr(errors.at[i].path, 0, sizeof(errors.at[i].path)));
}

static void check_value(const struct policy_setting *s)
{
    const void *at = (const unsigned char *)&policy + s->offset;
    const struct policy_list *list = at;

    switch (s->type) {
    case POLICY_INT:
    case POLICY_CHOICE:
        CHECK(*(const uint32_t *)at >= s->min && *(const uint32_t *)at <= s->max);
        break;
    case POLICY_BOOL: break;
    case POLICY_URL: CHECK(memchr(at, 0, POLICY_ITEM_MAX + 1)); break;
    case POLICY_URLS:
    case POLICY_PATHS:
        CHECK(list->count <= s->max);
        for (uint32_t i = 0; i < list->count; i++)
            CHECK(list->at[i][0] != '\0' && memchr(list->at[i], 0, POLICY_ITEM_MAX + 1) &&
                  !strpbrk(list->at[i], "\"\\\n\r"));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = { (const char *)data, size };
    struct text t;

    if (policy_validate_settings(in, &errors) != ERR_OK)
        check_errors();
    if (policy_parse(&policy, in, &errors) != ERR_OK) {
        check_errors();
        return 0;
    }
    CHECK(errors.count == 0);
    for (int i = 0; i < POLICY_SETTINGS; i++)
        check_value(&policy_catalogue[i]);
    text_init(&t, document, sizeof(document));
    policy_document(&policy, &t);
    CHECK(!t.cut);
    CHECK(policy_parse(&again, (struct str){ t.p, t.n }, &errors) == ERR_OK);
    CHECK(memcmp(&again, &policy, sizeof(policy)) == 0);
    return 0;
}
