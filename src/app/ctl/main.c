#include <getopt.h>
#include <locale.h>
#include <unistd.h>

#include "app/ctl/ctl.h"
#include "base/mac.h"

enum { OPTIONS_MAX = 40, LONG_ONLY = 256 };

/* What getopt needs, made from the tables. */
struct option_set {
    const struct ctl_option *at[OPTIONS_MAX];
    size_t count;
    struct option longs[OPTIONS_MAX + 1];
    char letters[2 * OPTIONS_MAX + 2];
};

static void add_option(struct option_set *s, const struct ctl_option *o)
{
    size_t n = strlen(s->letters);

    CHECK(s->count < OPTIONS_MAX);
    s->longs[s->count] =
        (struct option){ .name = o->name,
                         .has_arg = o->arg ? required_argument : no_argument,
                         .val = LONG_ONLY + (int)s->count };
    s->at[s->count++] = o;
    if (o->letter) {
        s->letters[n] = o->letter;
        s->letters[n + 1] = o->arg ? ':' : '\0';
    }
}

static const struct ctl_option *option_of(const struct option_set *s, int got)
{
    if (got >= LONG_ONLY)
        return s->at[got - LONG_ONLY];
    for (size_t i = 0; i < s->count; i++)
        if (s->at[i]->letter == got)
            return s->at[i];
    return NULL;
}

static bool set_option(struct ctl_options *opt, const struct ctl_option *o,
                       const char *value)
{
    char *at = (char *)opt + o->offset;
    struct ctl_list *list = (struct ctl_list *)(void *)at;
    uint64_t number;

    switch (o->kind) {
    case CTL_FLAG: memcpy(at, &(bool){ true }, sizeof(bool)); return true;
    case CTL_TEXT: memcpy(at, &value, sizeof(value)); return true;
    case CTL_LIST:
        if (list->count == CTL_LIST_MAX) {
            (void)ctl_usage("--%s can be given %d times at most", o->name, CTL_LIST_MAX);
            return false;
        }
        list->at[list->count++] = value;
        return true;
    case CTL_NUMBER:
        if (!str_u64(str_of(value), 100000, &number) || number == 0) {
            (void)ctl_usage("--%s must be a number from 1 to 100000, not '%s'", o->name,
                            value);
            return false;
        }
        memcpy(at, &(uint32_t){ (uint32_t)number }, sizeof(uint32_t));
        return true;
    }
    return false;
}

/* The words that are not options are collected in place.  cmd may be NULL: then only the
 * options before the command are read. */
static bool parse_options(struct ctl *c, const struct ctl_command *cmd)
{
    struct option_set set = { .letters = "+" };
    int got, index = 0;

    if (cmd)
        set.letters[0] = '\0'; /* options may stand behind the arguments */
    for (size_t i = 0; i < ctl_global_option_count; i++)
        add_option(&set, ctl_global_options[i]);
    for (size_t i = 0; cmd && ctl_option_of(cmd, i); i++)
        add_option(&set, ctl_option_of(cmd, i));
    optind = 0; /* GNU: start anew */
    while ((got = getopt_long(c->argc, c->argv, set.letters, set.longs, &index)) != -1) {
        const struct ctl_option *o = option_of(&set, got);

        if (!o) {
            fprintf(stderr, "Try redoubt %s --help\n", cmd ? cmd->name : "");
            return false;
        }
        if (!set_option(&c->opt, o, optarg))
            return false;
    }
    c->argc -= optind;
    c->argv += optind;
    return true;
}

/* The command that one or two words name; *ret_words. */
static const struct ctl_command *find_command(int argc, char **argv, int *ret_words)
{
    for (size_t i = 0; i < ctl_command_count(); i++) {
        const char *name = ctl_command_at(i)->name, *blank = strchr(name, ' ');
        size_t first = blank ? (size_t)(blank - name) : strlen(name);

        if (strlen(argv[0]) != first || strncmp(argv[0], name, first) != 0)
            continue;
        if (blank && (argc < 2 || strcmp(argv[1], blank + 1) != 0))
            continue;
        *ret_words = blank ? 2 : 1;
        return ctl_command_at(i);
    }
    return NULL;
}

/* "config" alone, or an unknown word: what there is. */
static int no_such_command(const struct ctl *c)
{
    bool group = false;

    for (size_t i = 0; i < ctl_command_count(); i++) {
        const char *name = ctl_command_at(i)->name;
        size_t n = strlen(c->argv[0]);

        if (strncmp(name, c->argv[0], n) != 0 || name[n] != ' ')
            continue;
        if (!group)
            fprintf(stderr, "redoubt: '%s' needs one of\n", c->argv[0]);
        group = true;
        fprintf(stderr, "  redoubt %s\n", name);
    }
    if (!group)
        (void)ctl_usage("there is no command '%s'; redoubt --help lists them",
                        c->argv[0]);
    return CTL_USAGE;
}

static int run_command(struct ctl *c)
{
    int words = 0;
    const struct ctl_command *cmd = find_command(c->argc, c->argv, &words);

    if (!cmd)
        return no_such_command(c);
    /* getopt skips the first word: let that be the last of the command. */
    c->argc -= words - 1;
    c->argv += words - 1;
    if (!parse_options(c, cmd))
        return CTL_USAGE;
    if (c->opt.help) {
        ctl_help_command(cmd, stdout);
        return CTL_OK;
    }
    if (c->argc < cmd->args_min)
        return ctl_usage("redoubt %s needs %s", cmd->name, cmd->args);
    if (c->argc > cmd->args_max)
        return ctl_usage("'%s' is too much for redoubt %s", c->argv[cmd->args_max],
                         cmd->name);
    return cmd->run(c);
}

int main(int argc, char **argv)
{
    static struct ctl c;

    c.argc = argc;
    c.argv = argv;
    /* Names are UTF-8 whatever the terminal says; without it they are shown as bytes. */
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    if (mac_start() != ERR_OK)
        return ctl_usage("libsodium does not work on this machine");
    if (!parse_options(&c, NULL))
        return CTL_USAGE;
    c.tty = isatty(STDERR_FILENO);
    c.colour = isatty(STDOUT_FILENO) && !c.opt.no_color && !getenv("NO_COLOR");
    if (c.argc == 0) {
        ctl_help_all(c.opt.help ? stdout : stderr);
        return c.opt.help ? CTL_OK : CTL_USAGE;
    }
    int r = run_command(&c);

    /* A full disk or a closed pipe is a failure of what was asked for. */
    if (fflush(stdout) != 0 && r == CTL_OK)
        r = CTL_FAILED;
    return r;
}
