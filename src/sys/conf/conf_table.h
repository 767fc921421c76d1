/*
 * conf_table: the description of a configuration file as data.
 *
 * Purpose   What conf_tables.c states and the rest of this folder interprets.
 * Shape     Constant tables; offsets point into struct conf or struct agent_conf.
 * Threads   any; pure
 */
#ifndef SYS_CONF_TABLE_H
#define SYS_CONF_TABLE_H

#include "sys/conf/conf.h"

enum conf_type {
    CONF_T_TEXT,   /* any characters but control characters */
    CONF_T_NAME,   /* lower-case letters, digits, '-', '_', '.'; begins with one of the
                      first two */
    CONF_T_NODE,   /* a node's name: it is a file name on a share that ignores case */
    CONF_T_PATH,   /* absolute */
    CONF_T_SHARE,  /* //host/share[/folder] */
    CONF_T_LISTEN, /* host:port or [v6]:port */
    CONF_T_IPV4,   /* address/prefix */
    CONF_T_IPV6,
    CONF_T_UUID,
    CONF_T_NUMBER, /* min..max */
    CONF_T_CHOICE, /* one of choices[]; stored as its index */
};

struct conf_key {
    const char *key;
    enum conf_type type;
    enum conf_reload reload;
    uint32_t offset;  /* in the section's struct */
    uint32_t size;    /* of the field */
    const char *dflt; /* NULL: must be given; CONF_FROM_PROFILE: computed */
    uint32_t min, max;
    const char *const *choices; /* NULL-terminated */
    const char *unit;
    const char *doc; /* one or two sentences */
};

/* A default that conf_check.c computes from other keys. */
extern const char conf_from_profile[];

struct conf_section {
    const char *name;
    const char *doc;
    uint32_t offset; /* of the section's struct in the file's struct */
    bool named;      /* [name WORD], an array of CONF_SERVICES_MAX */
    const struct conf_key *keys;
    uint32_t key_count;
};

/* Where each key was given: the line, 0 if it was not; and whether its value was refused.
 * A refused value is replaced by the default, so that the checks between keys do not
 * complain a second time. */
enum { CONF_SECTIONS_MAX = 12, CONF_KEYS_MAX = 24 };
struct conf_lines {
    uint32_t at[CONF_SECTIONS_MAX + CONF_SERVICES_MAX][CONF_KEYS_MAX];
    bool refused[CONF_SECTIONS_MAX + CONF_SERVICES_MAX][CONF_KEYS_MAX];
};

struct conf_schema {
    const struct conf_section *sections;
    uint32_t section_count;
    uint32_t size;         /* of the file's struct */
    uint32_t count_offset; /* of the number of named sections */
    void (*complete)(void *conf, const struct conf_lines *lines);
    void (*check)(const void *conf, const struct conf_lines *lines,
                  struct conf_errors *e);
};

extern const struct conf_schema conf_schema;
extern const struct conf_schema agent_conf_schema;

/* conf.c */
MUST_USE enum err conf_parse_schema(const struct conf_schema *schema, struct str text,
                                    void *out, struct conf_errors *errors);

/* The line of a key, 0 if it was not given.  instance counts named sections. */
uint32_t conf_line_of(const struct conf_schema *schema, const struct conf_lines *lines,
                      const char *section, uint32_t instance, const char *key);

bool conf_refused(const struct conf_schema *schema, const struct conf_lines *lines,
                  const char *section, const char *key);

void conf_error_add(struct conf_errors *e, uint32_t line, uint32_t column,
                    const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* conf_value.c: one value from text into its field, with the words of what is wrong. */
MUST_USE bool conf_value_set(const struct conf_key *key, void *field, struct str text,
                             struct text *wrong);
/* The value as it is written in the file. */
void conf_value_text(const struct conf_key *key, const void *field, struct text *out);

/* conf_check.c */
void conf_complete(void *conf, const struct conf_lines *lines);
void conf_check(const void *conf, const struct conf_lines *lines, struct conf_errors *e);
/* Does this key of [cluster] have the value that it would have if it were absent? */
MUST_USE bool conf_is_derived(const struct conf *conf, const char *key);
void agent_conf_complete(void *conf, const struct conf_lines *lines);

#endif
