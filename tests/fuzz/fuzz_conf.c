/*
 * Any text either gives a configuration that prints, parses again and is the same, or at
 * least one error that names a line of the text.
 */
#include "fuzz.h"
#include "sys/conf/conf.h"

static void none_differs(void *arg, const struct conf_change *change)
{
    (void)arg;
    fprintf(stderr, "[%s] %s differs after printing\n", change->section, change->key);
}

static void check_errors(const struct conf_errors *errors, struct str text)
{
    uint32_t lines = 1;

    for (size_t i = 0; i < text.n; i++)
        lines += text.p[i] == '\n';
    CHECK(errors->count > 0 && errors->count <= CONF_ERRORS_MAX);
    for (uint32_t i = 0; i < errors->count; i++) {
        CHECK(errors->at[i].line <= lines);
        CHECK(memchr(errors->at[i].text, '\0', sizeof(errors->at[i].text)));
    }
}

static void check_redoubt_conf(struct str text)
{
    static struct conf first, second;
    static struct conf_errors errors;
    char *printed = NULL;
    size_t n = 0;

    if (conf_parse(text, &first, &errors) != ERR_OK) {
        check_errors(&errors, text);
        return;
    }
    FILE *f = open_memstream(&printed, &n);
    CHECK(f != NULL);
    conf_print(&first, (text.n & 1) != 0, f);
    CHECK(fclose(f) == 0);
    CHECK(conf_parse((struct str){ printed, n }, &second, &errors) == ERR_OK);
    CHECK(conf_diff(&first, &second, none_differs, NULL) == 0);
    free(printed);
}

static void check_agent_conf(struct str text)
{
    static struct agent_conf conf;
    static struct conf_errors errors;

    if (agent_conf_parse(text, &conf, &errors) != ERR_OK)
        check_errors(&errors, text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str text = { (const char *)data, size };

    check_redoubt_conf(text);
    check_agent_conf(text);
    return 0;
}
