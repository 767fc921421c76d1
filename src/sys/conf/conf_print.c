#include "sys/conf/conf_table.h"

static void value_of(const struct conf_key *key, const unsigned char *at, char *buf,
                     size_t size)
{
    struct text t;

    text_init(&t, buf, size);
    conf_value_text(key, at + key->offset, &t);
}

/* A paragraph as comment lines of at most 78 columns. */
static void print_comment(const char *doc, FILE *to)
{
    size_t column = 0;

    while (*doc) {
        size_t word = strcspn(doc, " ");

        if (column == 0 || column + 1 + word > 78)
            column = (size_t)fprintf(to, "%s# %.*s", column ? "\n" : "", (int)word, doc);
        else
            column += (size_t)fprintf(to, " %.*s", (int)word, doc);
        doc += word;
        doc += strspn(doc, " ");
    }
    fputc('\n', to);
}

static void print_section(const struct conf_section *sec, const unsigned char *at,
                          bool with_docs, FILE *to)
{
    char value[CONF_TEXT];

    if (with_docs)
        print_comment(sec->doc, to);
    if (sec->named)
        fprintf(to, "[%s %s]\n", sec->name, (const char *)at);
    else
        fprintf(to, "[%s]\n", sec->name);
    for (uint32_t k = 0; k < sec->key_count; k++) {
        const struct conf_key *key = &sec->keys[k];
        bool derived = key->dflt == conf_from_profile &&
                       conf_is_derived((const struct conf *)(const void *)at, key->key);

        value_of(key, at, value, sizeof(value));
        if (with_docs)
            print_comment(key->doc, to);
        /* A derived value stays derived: it follows when the profile changes. */
        fprintf(to, "%s%s =%s%s%s\n", derived ? "# " : "", key->key, value[0] ? " " : "",
                value, derived ? "   (from the profile)" : "");
    }
    fputc('\n', to);
}

static void print_file(const struct conf_schema *schema, const void *conf, bool with_docs,
                       FILE *to)
{
    for (uint32_t s = 0; s < schema->section_count; s++) {
        const struct conf_section *sec = &schema->sections[s];
        const unsigned char *at = (const unsigned char *)conf + sec->offset;

        if (!sec->named) {
            print_section(sec, at, with_docs, to);
            continue;
        }
        const struct conf *c = conf;

        for (uint32_t i = 0; i < c->service_count; i++)
            print_section(sec, (const unsigned char *)&c->service[i], with_docs && i == 0,
                          to);
    }
}

void conf_print(const struct conf *conf, bool with_docs, FILE *to)
{
    print_file(&conf_schema, conf, with_docs, to);
}

void agent_conf_print(const struct agent_conf *conf, bool with_docs, FILE *to)
{
    print_file(&agent_conf_schema, conf, with_docs, to);
}

struct visit {
    void (*each)(void *arg, const char *section, const char *key, const char *value);
    void *arg;
};

static void visit_section(const struct visit *v, const struct conf_section *sec,
                          const unsigned char *at)
{
    char value[CONF_TEXT], name[CONF_NAME + 16];

    (void)snprintf(name, sizeof(name), "%s%s%s", sec->name, sec->named ? " " : "",
                   sec->named ? (const char *)at : "");
    for (uint32_t k = 0; k < sec->key_count; k++) {
        value_of(&sec->keys[k], at, value, sizeof(value));
        v->each(v->arg, name, sec->keys[k].key, value);
    }
}

void conf_each(const struct conf *conf,
               void (*each)(void *arg, const char *section, const char *key,
                            const char *value),
               void *arg)
{
    const struct visit v = { each, arg };

    for (uint32_t s = 0; s < conf_schema.section_count; s++) {
        const struct conf_section *sec = &conf_schema.sections[s];

        if (!sec->named)
            visit_section(&v, sec, (const unsigned char *)conf + sec->offset);
        for (uint32_t i = 0; sec->named && i < conf->service_count; i++)
            visit_section(&v, sec, (const unsigned char *)&conf->service[i]);
    }
}

/* Over the printed text and not the struct, so that two versions of the program agree. */
void conf_digest(const struct conf *conf, char out[17])
{
    static const struct mac_key no_key;
    struct conf same = *conf;
    char *text = NULL;
    size_t n = 0;
    struct mac mac;
    FILE *f = open_memstream(&text, &n);

    CHECK(f != NULL); /* memory: a few kilobytes, at start */
    memset(same.cluster.node, 0, sizeof(same.cluster.node));
    memset(same.cluster.peer, 0, sizeof(same.cluster.peer));
    memset(same.address.interface, 0, sizeof(same.address.interface));
    conf_print(&same, false, f);
    CHECK(fclose(f) == 0);
    mac_of(&mac, &no_key, STR("config"), (struct str){ text, n });
    hex_encode(out, mac.bytes, 8);
    free(text);
}

/* ---- differences ---- */

struct diff {
    void (*each)(void *arg, const struct conf_change *change);
    void *arg;
    uint32_t restarts;
};

static void differs(struct diff *d, const char *section, const char *name,
                    const struct conf_key *key, enum conf_reload reload)
{
    struct conf_change change = { .key = key->key, .reload = reload };

    (void)snprintf(change.section, sizeof(change.section), "%s%s%s", section,
                   name ? " " : "", name ? name : "");
    d->restarts += reload == CONF_RELOAD_RESTART;
    if (d->each)
        d->each(d->arg, &change);
}

static void diff_keys(struct diff *d, const struct conf_section *sec, const char *name,
                      const void *from, const void *to)
{
    for (uint32_t k = 0; k < sec->key_count; k++) {
        const struct conf_key *key = &sec->keys[k];

        if (memcmp((const char *)from + key->offset, (const char *)to + key->offset,
                   key->size) != 0)
            differs(d, sec->name, name, key, key->reload);
    }
}

static const struct conf_service *service_of(const struct conf *c, const char *name)
{
    for (uint32_t i = 0; i < c->service_count; i++)
        if (strcmp(c->service[i].name, name) == 0)
            return &c->service[i];
    return NULL;
}

static void diff_services(struct diff *d, const struct conf_section *sec,
                          const struct conf *from, const struct conf *to)
{
    for (uint32_t i = 0; i < from->service_count; i++) {
        const struct conf_service *old = &from->service[i];
        const struct conf_service *new = service_of(to, old->name);

        if (new)
            diff_keys(d, sec, old->name, old, new);
        else
            differs(d, sec->name, old->name, &sec->keys[0], CONF_RELOAD_RESTART);
    }
    for (uint32_t i = 0; i < to->service_count; i++)
        if (!service_of(from, to->service[i].name))
            differs(d, sec->name, to->service[i].name, &sec->keys[0],
                    CONF_RELOAD_RESTART);
}

uint32_t conf_diff(const struct conf *from, const struct conf *to,
                   void (*each)(void *arg, const struct conf_change *change), void *arg)
{
    struct diff d = { .each = each, .arg = arg };

    for (uint32_t s = 0; s < conf_schema.section_count; s++) {
        const struct conf_section *sec = &conf_schema.sections[s];

        if (sec->named)
            diff_services(&d, sec, from, to);
        else
            diff_keys(&d, sec, NULL, (const char *)from + sec->offset,
                      (const char *)to + sec->offset);
    }
    return d.restarts;
}
