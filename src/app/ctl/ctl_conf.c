#include "app/ctl/ctl.h"

static const char *conf_path(const struct ctl *c)
{
    return c->opt.conf ? c->opt.conf : CONF_DEFAULT_PATH;
}

static json_t *errors_json(const struct conf_errors *e)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < e->count; i++)
        (void)json_array_append_new(
            list, json_pack("{s:i, s:i, s:s}", "line", (int)e->at[i].line, "column",
                            (int)e->at[i].column, "text", e->at[i].text));
    return list;
}

static int print_errors(struct ctl *c, const struct conf_errors *errors)
{
    if (c->opt.json) {
        json_t *j = json_pack("{s:s, s:b, s:o}", "file", conf_path(c), "ok", 0, "errors",
                              errors_json(errors));

        ctl_print_json(j);
        json_decref(j);
    } else {
        conf_errors_print(errors, conf_path(c), stderr);
    }
    return CTL_FAILED;
}

int ctl_load_conf(struct ctl *c)
{
    struct conf_errors errors;

    if (c->have_conf)
        return CTL_OK;
    if (conf_load(conf_path(c), &c->conf, &errors) != ERR_OK)
        return print_errors(c, &errors);
    c->have_conf = true;
    return CTL_OK;
}

bool ctl_try_conf(struct ctl *c)
{
    struct conf_errors errors;

    if (!c->have_conf)
        c->have_conf = conf_load(conf_path(c), &c->conf, &errors) == ERR_OK;
    return c->have_conf;
}

int cmd_config_check(struct ctl *c)
{
    struct conf_errors errors;
    int r = ctl_load_conf(c);

    if (r != CTL_OK)
        return r;
    if (conf_check_machine(&c->conf, &errors) != ERR_OK)
        return print_errors(c, &errors);
    if (c->opt.json) {
        json_t *j =
            json_pack("{s:s, s:b, s:[]}", "file", conf_path(c), "ok", 1, "errors");

        ctl_print_json(j);
        json_decref(j);
    } else {
        printf("%s: no errors\n", conf_path(c));
    }
    return CTL_OK;
}

static void add_key(void *arg, const char *section, const char *key, const char *value)
{
    json_t *all = arg, *sec = json_object_get(all, section);

    if (!sec) {
        sec = json_object();
        (void)json_object_set_new(all, section, sec);
    }
    (void)json_object_set_new(sec, key, json_string(value));
}

int cmd_config_show(struct ctl *c)
{
    int r = ctl_load_conf(c);

    if (r == CTL_OK && c->opt.json) {
        json_t *all = json_object();

        conf_each(&c->conf, add_key, all);
        ctl_print_json(all);
        json_decref(all);
    } else if (r == CTL_OK)
        conf_print(&c->conf, c->opt.docs, stdout);
    return r;
}

int cmd_config_reference(struct ctl *c)
{
    if (c->opt.man && c->opt.agent)
        agent_conf_reference_man(stdout);
    else if (c->opt.man)
        conf_reference_man(stdout);
    else
        conf_reference(stdout);
    return CTL_OK;
}
