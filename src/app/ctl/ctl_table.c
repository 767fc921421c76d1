#include "app/ctl/ctl.h"

const struct ctl_section *ctl_section_at(size_t i)
{
    static const struct ctl_section *const sections[CTL_SECTIONS] = {
        &ctl_cluster_section, &ctl_manage_section,    &ctl_signature_section,
        &ctl_publish_section, &ctl_installer_section, &ctl_licence_section
    };

    CHECK(i < CTL_SECTIONS);
    return sections[i];
}

size_t ctl_command_count(void)
{
    size_t n = 0;

    for (size_t i = 0; i < CTL_SECTIONS; i++)
        n += ctl_section_at(i)->count;
    return n;
}

const struct ctl_command *ctl_command_at(size_t i)
{
    size_t s = 0;

    while (i >= ctl_section_at(s)->count)
        i -= ctl_section_at(s++)->count;
    return &ctl_section_at(s)->commands[i];
}

static const struct ctl_section *section_of(const struct ctl_command *cmd)
{
    for (size_t i = 0; i < CTL_SECTIONS; i++) {
        const struct ctl_section *s = ctl_section_at(i);

        if (cmd >= s->commands && cmd < s->commands + s->count)
            return s;
    }
    return NULL;
}

const struct ctl_option *ctl_option_of(const struct ctl_command *cmd, size_t k)
{
    const struct ctl_section *s = section_of(cmd);
    size_t own = 0;

    while (own < CTL_COMMAND_OPTIONS && cmd->options[own])
        own++;
    if (k < own)
        return cmd->options[k];
    k -= own;
    return s && k < s->option_count ? s->options[k] : NULL;
}
