#include "sys/conf/conf_table.h"
#include "sys/conf/mdoc.h"

static void range_text(const struct conf_key *key, struct text *out)
{
    if (key->type == CONF_T_NUMBER) {
        text_add(out, "%u to %u%s%s", key->min, key->max, key->unit[0] ? " " : "",
                 key->unit);
        return;
    }
    for (uint32_t i = 0; key->type == CONF_T_CHOICE && key->choices[i]; i++)
        text_add(out, "%s%s", i ? " | " : "", key->choices[i]);
    static const char *const kinds[] = {
        [CONF_T_TEXT] = "text",
        [CONF_T_NAME] = "name",
        [CONF_T_NODE] = "name",
        [CONF_T_PATH] = "path",
        [CONF_T_SHARE] = "//server/share",
        [CONF_T_LISTEN] = "host:port",
        [CONF_T_IPV4] = "IPv4 address/prefix",
        [CONF_T_IPV6] = "IPv6 address/prefix",
        [CONF_T_UUID] = "UUID",
    };

    if (key->type < LEN(kinds))
        text_add(out, "%s", kinds[key->type]);
}

static void default_text(const struct conf_key *key, struct text *out)
{
    if (!key->dflt)
        text_add(out, "required");
    else if (key->dflt == conf_from_profile)
        text_add(out, "default %s", conf_from_profile);
    else
        text_add(out, "default %s", key->dflt[0] ? key->dflt : "empty");
}

static const char *reload_text(enum conf_reload r)
{
    switch (r) {
    case CONF_RELOAD_LIVE: return "changes with redoubt reload";
    case CONF_RELOAD_RESTART: return "changes with a restart";
    }
    return "";
}

static void print_wrapped(const char *doc, FILE *to)
{
    size_t column = 0;

    while (*doc) {
        size_t word = strcspn(doc, " ");

        if (column == 0 || column + 1 + word > 78)
            column =
                (size_t)fprintf(to, "%s      %.*s", column ? "\n" : "", (int)word, doc);
        else
            column += (size_t)fprintf(to, " %.*s", (int)word, doc);
        doc += word;
        doc += strspn(doc, " ");
    }
    fputc('\n', to);
}

static void reference_of(const struct conf_schema *schema, const char *file, FILE *to)
{
    char line[320];
    struct text t;

    fprintf(to, "%s\n\n", file);
    for (uint32_t s = 0; s < schema->section_count; s++) {
        const struct conf_section *sec = &schema->sections[s];

        fprintf(to, "[%s%s]  %s\n", sec->name, sec->named ? " NAME" : "", sec->doc);
        for (uint32_t k = 0; k < sec->key_count; k++) {
            const struct conf_key *key = &sec->keys[k];

            text_init(&t, line, sizeof(line));
            range_text(key, &t);
            text_add(&t, "; ");
            default_text(key, &t);
            text_add(&t, "; %s", reload_text(key->reload));
            fprintf(to, "  %s\n      (%s)\n", key->key, line);
            print_wrapped(key->doc, to);
        }
        fputc('\n', to);
    }
}

void conf_reference(FILE *to)
{
    reference_of(&conf_schema, CONF_DEFAULT_PATH, to);
    reference_of(&agent_conf_schema, CONF_AGENT_DEFAULT_PATH, to);
}

/* ---- the manual page ---- */

static void man_key(const struct conf_key *key, FILE *to)
{
    char line[320];
    struct text t;

    fprintf(to, ".It Cm %s\n", key->key);
    mdoc_text(to, key->doc);
    text_init(&t, line, sizeof(line));
    range_text(key, &t);
    text_add(&t, "; ");
    default_text(key, &t);
    fprintf(to, ".br\n");
    text_add(&t, "; %s.", reload_text(key->reload));
    mdoc_text(to, line);
}

static void man_sections(const struct conf_schema *schema, FILE *to)
{
    for (uint32_t s = 0; s < schema->section_count; s++) {
        const struct conf_section *sec = &schema->sections[s];

        fprintf(to, ".Ss %s%s\n", sec->name, sec->named ? " NAME" : "");
        mdoc_text(to, sec->doc);
        fprintf(to, ".Bl -tag -width Ds\n");
        for (uint32_t k = 0; k < sec->key_count; k++)
            man_key(&sec->keys[k], to);
        fprintf(to, ".El\n");
    }
}

static void man_head(const char *page, const char *name, const char *what, FILE *to)
{
    fprintf(to,
            ".\\\" Made from the tables of src/sys/conf by redoubt config reference.\n"
            ".Dd November 22, 2026\n"
            ".Dt %s 5\n"
            ".Os\n"
            ".Sh NAME\n"
            ".Nm %s\n"
            ".Nd configuration of %s\n",
            page, name, what);
    fputs(".Sh DESCRIPTION\n"
          "The file holds sections in brackets and below each its keys, one\n"
          ".Ql key = value\n"
          "a line.\n"
          "A comment is a line that begins with\n"
          ".Ql #\n"
          "or\n"
          ".Ql \\&; .\n"
          "A value runs to the end of its line.\n"
          "Unknown sections and keys, repeated ones, and values out of their range are\n"
          "errors; all errors are told at once, each with its line and column.\n",
          to);
}

void conf_reference_man(FILE *to)
{
    man_head("REDOUBT.CONF", "redoubt.conf", "a Redoubt node", to);
    fputs(".Pp\n"
          ".Ic redoubt config check\n"
          "checks it,\n"
          ".Ic redoubt config show\n"
          "prints it with all defaults filled in.\n"
          "Both nodes need the same values except\n"
          ".Cm node ,\n"
          ".Cm peer\n"
          "and\n"
          ".Cm interface .\n"
          ".Sh SECTIONS\n",
          to);
    man_sections(&conf_schema, to);
    fputs(".Sh FILES\n"
          ".Bl -tag -width Ds\n"
          ".It Pa " CONF_DEFAULT_PATH "\n"
          ".It Pa /etc/redoubt/cluster.key\n"
          ".It Pa /etc/redoubt/smb.cred\n"
          ".El\n"
          ".Sh SEE ALSO\n"
          ".Xr redoubt 8 ,\n"
          ".Xr redoubt-node 8\n",
          to);
}

void agent_conf_reference_man(FILE *to)
{
    man_head("AGENT.CONF", "agent.conf", "the Redoubt Network Agent", to);
    fputs(".Sh SECTIONS\n", to);
    man_sections(&agent_conf_schema, to);
    fputs(".Sh FILES\n"
          ".Bl -tag -width Ds\n"
          ".It Pa " CONF_AGENT_DEFAULT_PATH "\n"
          ".El\n"
          ".Sh SEE ALSO\n"
          ".Xr redoubt-agent 1\n",
          to);
}
