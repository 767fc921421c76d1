/* policy_tool: what core/policy says, for tests in another language.
 *
 * policy_tool catalogue       a line of tab-separated fields for each setting
 * policy_tool parse           reads a document, writes it again
 * policy_tool validate        reads settings, writes "path<TAB>why" for each error
 */
#include <stdio.h>

#include "core/policy/policy.h"

static char input[2 * POLICY_DOCUMENT_MAX], output[POLICY_DOCUMENT_MAX];
static struct policy policy;
static struct policy_errors errors;

static void catalogue(void)
{
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        const struct policy_setting *s = &policy_catalogue[i];

        printf("%s\t%s\t%u\t%u\t%s\t%s\t%s\n", s->key, policy_type_name(s->type), s->min,
               s->max, s->words, s->def, s->doc);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc == 2 ? argv[1] : "";
    struct text t;

    if (strcmp(what, "catalogue") == 0) {
        catalogue();
        return 0;
    }
    struct str in = { input, fread(input, 1, sizeof(input), stdin) };
    if (strcmp(what, "parse") == 0) {
        if (policy_parse(&policy, in, &errors) == ERR_OK) {
            text_init(&t, output, sizeof(output));
            policy_document(&policy, &t);
            printf("%s", output);
            return t.cut;
        }
    } else if (strcmp(what, "validate") == 0) {
        if (policy_validate_settings(in, &errors) == ERR_OK)
            return 0;
    } else {
        return 2;
    }
    for (uint32_t i = 0; i < errors.count; i++)
        printf("%s\t%s\n", errors.at[i].path, errors.at[i].why);
    return 1;
}
