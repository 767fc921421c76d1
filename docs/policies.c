/* policies: the catalogue in docs/policies.md, from core/policy (tools/docs). */
#include <stdio.h>

#include "core/policy/policy.h"

static void print_range(const struct policy_setting *s)
{
    switch (s->type) {
    case POLICY_INT: printf("%u to %u", s->min, s->max); break;
    case POLICY_BOOL: printf("`true`, `false`"); break;
    case POLICY_CHOICE:
        printf("`\"");
        for (const char *p = s->words; *p; p++)
            if (*p == '|')
                printf("\"`, `\"");
            else
                putchar(*p);
        printf("\"`");
        break;
    case POLICY_URL: printf("an address, `cluster`, or `\"\"`"); break;
    case POLICY_URLS: printf("at most %u addresses", s->max); break;
    case POLICY_PATHS: printf("at most %u paths", s->max); break;
    }
}

int main(void)
{
    printf("| setting | values | default | what it does |\n|---|---|---|---|\n");
    for (int i = 0; i < POLICY_SETTINGS; i++) {
        const struct policy_setting *s = &policy_catalogue[i];

        printf("| `%s` | ", s->key);
        print_range(s);
        printf(" | `%s` | %s |\n", s->def, s->doc);
    }
    return 0;
}
