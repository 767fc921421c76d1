#include "app/ctl/ctl.h"
#include "sys/conf/mdoc.h"

static void print_option(const struct ctl_option *o, FILE *to)
{
    char left[40];
    struct text t;

    text_init(&t, left, sizeof(left));
    if (o->letter)
        text_add(&t, "-%c, ", o->letter);
    else
        text_add(&t, "    ");
    text_add(&t, "--%s%s%s", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    fprintf(to, "  %-24s %s\n", left, o->doc);
}

static void help_section(const struct ctl_section *s, FILE *to)
{
    fprintf(to, " %s:\n", s->title);
    for (size_t i = 0; i < s->count; i++) {
        const struct ctl_command *cmd = &s->commands[i];
        char left[64];

        (void)snprintf(left, sizeof(left), "%s %s", cmd->name, cmd->args);
        fprintf(to, "  %-32s %s\n", left, cmd->summary);
    }
}

void ctl_help_all(FILE *to)
{
    fprintf(to, "Usage: redoubt [OPTION]... COMMAND [ARGUMENT]...\n\n"
                "The command line of Redoubt. The commands for the cluster work on "
                "either node;\nthose for devices on the active node, and with --server "
                "from anywhere.\n\nCommands:\n");
    for (size_t i = 0; i < CTL_SECTIONS; i++)
        help_section(ctl_section_at(i), to);
    fprintf(to, "\nOptions:\n");
    for (size_t i = 0; i < ctl_global_option_count; i++)
        print_option(ctl_global_options[i], to);
    fprintf(to, "\nredoubt COMMAND --help tells more about a command; redoubt(8) has the "
                "exit codes.\n");
}

void ctl_help_command(const struct ctl_command *cmd, FILE *to)
{
    fprintf(to, "Usage: redoubt %s%s [OPTION]...%s%s\n\n", cmd->name, "",
            cmd->args[0] ? " " : "", cmd->args);
    ctl_paragraph(to, 0, cmd->doc);
    fprintf(to, "\nOptions:\n");
    for (size_t i = 0; ctl_option_of(cmd, i); i++)
        print_option(ctl_option_of(cmd, i), to);
    for (size_t i = 0; i < ctl_global_option_count; i++)
        print_option(ctl_global_options[i], to);
}

/* ---- redoubt(8) ---- */

static void man_option(const struct ctl_option *o, FILE *to)
{
    fprintf(to, ".It ");
    if (o->letter)
        fprintf(to, "Fl %c , ", o->letter);
    fprintf(to, "Fl -%s", o->name);
    fprintf(to, o->arg ? " Ar %s\n" : "%s\n", o->arg ? o->arg : "");
    mdoc_text(to, o->doc);
}

static void man_commands(const struct ctl_section *s, FILE *to)
{
    for (size_t i = 0; i < s->count; i++) {
        const struct ctl_command *cmd = &s->commands[i];

        fprintf(to, ".It Ic %s", cmd->name);
        fprintf(to, cmd->args[0] ? " Ar %s\n" : "%s\n", cmd->args);
        mdoc_text(to, cmd->doc);
        if (!cmd->options[0])
            continue;
        fprintf(to, ".Bl -tag -width Ds\n");
        for (size_t k = 0; k < CTL_COMMAND_OPTIONS && cmd->options[k]; k++)
            man_option(cmd->options[k], to);
        fprintf(to, ".El\n");
    }
}

static void man_section(const struct ctl_section *s, FILE *to)
{
    fprintf(to, ".Ss %s\n", s->title);
    if (s->option_count > 0) {
        fputs("All of these have the options\n.Bl -tag -width Ds\n", to);
        for (size_t i = 0; i < s->option_count; i++)
            man_option(s->options[i], to);
        fputs(".El\n", to);
    }
    fputs(".Bl -tag -width Ds\n", to);
    man_commands(s, to);
    fputs(".El\n", to);
}

static void man_begin(FILE *to)
{
    fputs(
        ".\\\" Made from the table of commands by redoubt help --man.\n"
        ".Dd November 22, 2026\n"
        ".Dt REDOUBT 8\n"
        ".Os\n"
        ".Sh NAME\n"
        ".Nm redoubt\n"
        ".Nd command line of the Redoubt failover cluster\n"
        ".Sh SYNOPSIS\n"
        ".Nm\n"
        ".Op Ar option ...\n"
        ".Ar command\n"
        ".Op Ar argument ...\n"
        ".Sh DESCRIPTION\n"
        "A Redoubt cluster is two nodes, of which one is active.\n"
        ".Nm\n"
        "works on either node: it talks to the node daemon over its control socket.\n"
        ".Ic init ,\n"
        ".Ic check ,\n"
        ".Ic config\n"
        "and\n"
        ".Ic database migrate\n"
        "need no running daemon.\n"
        "The commands for devices and their protection talk to the server of the active\n"
        "node: there over a socket, from elsewhere over TLS with\n"
        ".Fl -server .\n"
        "While the cluster switches they wait and repeat what they asked; nothing is\n"
        "done twice.\n"
        ".Pp\n"
        "The options for all commands are:\n"
        ".Bl -tag -width Ds\n",
        to);
}

static void man_end(FILE *to)
{
    fputs(
        ".Sh FILES\n"
        ".Bl -tag -width Ds\n"
        ".It Pa /etc/redoubt/redoubt.conf\n"
        "The configuration.\n"
        ".It Pa /run/redoubt/node.sock\n"
        "The control socket, for root and the group redoubt.\n"
        ".It Pa /run/redoubt/manager.sock\n"
        "The server's socket for administrators, for the same.\n"
        ".El\n"
        ".Sh EXIT STATUS\n"
        ".Bl -tag -width Ds\n"
        ".It 0\n"
        "It is done.\n"
        ".It 1\n"
        "It was tried and failed, or a check failed.\n"
        ".It 2\n"
        "The command line is wrong.\n"
        ".It 3\n"
        "The node daemon or the server cannot be reached.\n"
        ".It 4\n"
        ".Ic status --check :\n"
        "something is missing, such as a node that is not ready.\n"
        ".It 5\n"
        "No node is active, or this one is not:\n"
        ".Ic status --check ,\n"
        "and commands for devices that gave up waiting.\n"
        ".It 6\n"
        "It is refused because the present state does not allow it.\n"
        ".El\n"
        ".Sh EXAMPLES\n"
        "Swap the roles before working on the active node, and keep it from taking over\n"
        "meanwhile:\n"
        ".Bd -literal -offset indent\n"
        "redoubt switchover\n"
        "redoubt maintenance on\n"
        ".Ed\n"
        ".Pp\n"
        "Let monitoring decide by the exit code:\n"
        ".Pp\n"
        ".Dl redoubt status --check --json\n"
        ".Pp\n"
        "Scan a group now and wait for the result:\n"
        ".Bd -literal -offset indent\n"
        "redoubt task create look scan --group /Servers --mode full\n"
        "redoubt task start look --watch\n"
        ".Ed\n"
        ".Sh SEE ALSO\n"
        ".Xr redoubt.conf 5 ,\n"
        ".Xr redoubt-node 8\n",
        to);
}

static void man_page(FILE *to)
{
    man_begin(to);
    for (size_t i = 0; i < ctl_global_option_count; i++)
        man_option(ctl_global_options[i], to);
    fputs(".El\n"
          ".Sh COMMANDS\n",
          to);
    for (size_t i = 0; i < CTL_SECTIONS; i++)
        man_section(ctl_section_at(i), to);
    man_end(to);
}

int cmd_help(struct ctl *c)
{
    char wanted[64];

    if (c->opt.man) {
        man_page(stdout);
        return CTL_OK;
    }
    if (c->argc == 0) {
        ctl_help_all(stdout);
        return CTL_OK;
    }
    (void)snprintf(wanted, sizeof(wanted), "%s%s%s", c->argv[0], c->argc > 1 ? " " : "",
                   c->argc > 1 ? c->argv[1] : "");
    for (size_t i = 0; i < ctl_command_count(); i++)
        if (strcmp(ctl_command_at(i)->name, wanted) == 0) {
            ctl_help_command(ctl_command_at(i), stdout);
            return CTL_OK;
        }
    return ctl_usage("there is no command '%s'", wanted);
}

/* ---- bash ---- */

static void complete_options(const struct ctl_command *cmd, FILE *to)
{
    for (size_t i = 0; cmd && ctl_option_of(cmd, i); i++)
        fprintf(to, " --%s", ctl_option_of(cmd, i)->name);
    for (size_t i = 0; i < ctl_global_option_count; i++)
        fprintf(to, " --%s", ctl_global_options[i]->name);
}

/* The choices in "on|off". */
static void complete_words(size_t at, FILE *to)
{
    const char *args = ctl_command_at(at)->args;

    if (args[0] >= 'a' && args[0] <= 'z')
        for (; *args; args++)
            fputc(*args == '|' ? ' ' : *args, to);
}

/* Is the command before this one of the same group of two words? */
static bool same_group(size_t i, const char *name)
{
    size_t n = strcspn(name, " ");

    return i > 0 && name[n] && strncmp(ctl_command_at(i - 1)->name, name, n + 1) == 0;
}

/* At the first command of a group: its second words. */
static void complete_group(size_t i, FILE *to)
{
    const char *name = ctl_command_at(i)->name;
    size_t n = strcspn(name, " ");

    if (!name[n] || same_group(i, name))
        return;
    fprintf(to, "    %.*s) words='%s", (int)n, name, name + n + 1);
    while (++i < ctl_command_count() && same_group(i, ctl_command_at(i)->name))
        fprintf(to, " %s", ctl_command_at(i)->name + n + 1);
    fputs("' ;;\n", to);
}

int cmd_completion(struct ctl *c)
{
    (void)c;
    fputs("# bash completion for redoubt, made by redoubt completion\n"
          "_redoubt()\n{\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n"
          "    local i command='' words=''\n"
          "    case $prev in\n"
          "    -c|--config|--socket|-f|--file|--ca|--token-file) mapfile -t COMPREPLY < "
          "<(compgen -f -- \"$cur\"); "
          "return ;;\n"
          "    esac\n"
          "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
          "        case ${COMP_WORDS[i]} in\n"
          "        -c|--config|--socket|--file|--ca|--token-file|--server) ((i++)) ;;\n"
          "        -*) ;;\n"
          "        *) command+=${command:+ }${COMP_WORDS[i]} ;;\n"
          "        esac\n"
          "    done\n"
          "    case $command in\n"
          "    '') words='",
          stdout);
    for (size_t i = 0; i < ctl_command_count(); i++) {
        const char *name = ctl_command_at(i)->name;
        size_t n = strcspn(name, " ");

        /* The first word of a group once. */
        if (!same_group(i, name))
            printf("%s%.*s", i ? " " : "", (int)n, name);
    }
    complete_options(NULL, stdout);
    fputs("' ;;\n", stdout);
    for (size_t i = 0; i < ctl_command_count(); i++) {
        const char *name = ctl_command_at(i)->name;

        printf("    '%s'*) words='", name);
        complete_words(i, stdout);
        complete_options(ctl_command_at(i), stdout);
        fputs("' ;;\n", stdout);
    }
    for (size_t i = 0; i < ctl_command_count(); i++)
        complete_group(i, stdout);
    fputs("    esac\n"
          "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
          "}\n"
          "complete -F _redoubt redoubt\n",
          stdout);
    return CTL_OK;
}

int cmd_version(struct ctl *c)
{
    json_t *status = NULL, *node;
    const char *daemon = NULL;
    size_t i;

    if (ctl_try_get(c, "/v1/status", &status) == CTL_OK && ctl_try_conf(c))
        json_array_foreach(json_object_get(status, "nodes"), i, node)
        {
            if (strcmp(ctl_str(node, "name", ""), c->conf.cluster.node) == 0)
                daemon = ctl_str(node, "version", NULL);
        }
    if (c->opt.json) {
        json_t *j =
            json_pack("{s:s, s:s?}", "version", REDOUBT_VERSION, "daemon", daemon);

        ctl_print_json(j);
        json_decref(j);
    } else {
        printf("redoubt %s\n", REDOUBT_VERSION);
        if (daemon && strcmp(daemon, REDOUBT_VERSION) != 0)
            printf("redoubt-node %s is running: restart it to use this version\n",
                   daemon);
    }
    json_decref(status);
    return CTL_OK;
}

/* ---- alarms ---- */

static void alarm_plain(const struct ctl *c, const struct alarm_info *a)
{
    printf("%s%s%s (%s): %s\n", ctl_ink(c, CTL_BOLD), a->id, ctl_ink(c, CTL_PLAIN),
           alarm_severity_name(a->severity), a->title);
    ctl_paragraph(stdout, 2, a->text);
    printf("  What to do:\n");
    ctl_paragraph(stdout, 4, a->suggestion);
}

static json_t *alarm_json(const struct alarm_info *a)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "id", a->id, "severity",
                     alarm_severity_name(a->severity), "title", a->title, "text", a->text,
                     "suggestion", a->suggestion);
}

int cmd_alarms(struct ctl *c)
{
    const struct alarm_info *one = c->argc ? alarm_find(c->argv[0]) : NULL;
    json_t *list = json_array();

    if (c->argc && !one) {
        json_decref(list);
        return ctl_usage("there is no alarm '%s'; redoubt alarms lists them", c->argv[0]);
    }
    for (unsigned i = 0; i < ALARM_COUNT; i++) {
        const struct alarm_info *a = alarm_info((enum alarm)i);

        if (one && a != one)
            continue;
        if (c->opt.json)
            (void)json_array_append_new(list, alarm_json(a));
        else
            alarm_plain(c, a);
    }
    if (c->opt.json) {
        json_t *j = json_pack("{s:O}", "alarms", list);

        ctl_print_json(j);
        json_decref(j);
    }
    json_decref(list);
    return CTL_OK;
}
