#include <yaml.h>

#include "app/ctl/manage.h"

/* ---- reading ---- */

struct reader {
    yaml_parser_t parser;
    char *why;
    size_t why_size;
};

static json_t *wrong(struct reader *r, const yaml_mark_t *at, const char *text)
{
    if (!r->why[0])
        (void)snprintf(r->why, r->why_size, "line %zu, column %zu: %s", at->line + 1,
                       at->column + 1, text);
    return NULL;
}

static bool next(struct reader *r, yaml_event_t *e)
{
    if (yaml_parser_parse(&r->parser, e))
        return true;
    (void)wrong(r, &r->parser.problem_mark,
                r->parser.problem ? r->parser.problem : "it cannot be read");
    return false;
}

/* A plain word as JSON knows it; NULL: a string. */
static json_t *plain_value(const char *s, size_t n)
{
    json_t *v;

    if (n == 0 || (n == 1 && s[0] == '~'))
        return json_null();
    v = json_loadb(s, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (v && !json_is_number(v) && !json_is_boolean(v) && !json_is_null(v)) {
        json_decref(v);
        v = NULL;
    }
    return v;
}

static json_t *scalar(struct reader *r, const yaml_event_t *e)
{
    const char *s = (const char *)e->data.scalar.value;
    size_t n = e->data.scalar.length;
    json_t *v = NULL;

    if (e->data.scalar.tag)
        return wrong(r, &e->start_mark, "a tag (!...) is not known here");
    if (memchr(s, '\0', n))
        return wrong(r, &e->start_mark, "a NUL character");
    if (e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE)
        v = plain_value(s, n);
    if (!v)
        v = json_stringn(s, n);
    return v ? v : wrong(r, &e->start_mark, "it is not UTF-8");
}

static json_t *node(struct reader *r, const yaml_event_t *e, int depth);

static json_t *sequence(struct reader *r, int depth)
{
    json_t *list = json_array();
    yaml_event_t e;

    while (list && next(r, &e)) {
        bool end = e.type == YAML_SEQUENCE_END_EVENT;
        json_t *v = end ? NULL : node(r, &e, depth);

        yaml_event_delete(&e);
        if (end)
            return list;
        if (!v || json_array_append_new(list, v) != 0)
            break;
    }
    json_decref(list);
    return NULL;
}

/* One key and its value. */
static bool pair(struct reader *r, json_t *map, const yaml_event_t *key, int depth)
{
    yaml_event_t e;

    if (key->type != YAML_SCALAR_EVENT)
        return wrong(r, &key->start_mark, "a key must be a word");
    const char *name = (const char *)key->data.scalar.value;

    if (strlen(name) != key->data.scalar.length)
        return wrong(r, &key->start_mark, "a NUL character");
    if (json_object_get(map, name))
        return wrong(r, &key->start_mark, "this key is there twice");
    if (!next(r, &e))
        return false;
    json_t *v = node(r, &e, depth);
    bool ok = v && json_object_set_new(map, name, v) == 0;

    if (v && !ok)
        (void)wrong(r, &key->start_mark, "it is not UTF-8");
    yaml_event_delete(&e);
    return ok;
}

static json_t *mapping(struct reader *r, int depth)
{
    json_t *map = json_object();
    yaml_event_t e;

    while (map && next(r, &e)) {
        bool end = e.type == YAML_MAPPING_END_EVENT;
        bool ok = end || pair(r, map, &e, depth);

        yaml_event_delete(&e);
        if (end)
            return map;
        if (!ok)
            break;
    }
    json_decref(map);
    return NULL;
}

static json_t *node(struct reader *r, const yaml_event_t *e, int depth)
{
    if (depth == YAML_DEPTH_MAX)
        return wrong(r, &e->start_mark, "it is nested too deep");
    if (e->type == YAML_SCALAR_EVENT)
        return scalar(r, e);
    if (e->type == YAML_SEQUENCE_START_EVENT)
        return sequence(r, depth + 1);
    if (e->type == YAML_MAPPING_START_EVENT)
        return mapping(r, depth + 1);
    return wrong(r, &e->start_mark,
                 e->type == YAML_ALIAS_EVENT ? "aliases (*name) are not known here"
                                             : "something is missing here");
}

/* The start of the stream and of the document, the document, and then the end. */
static json_t *document(struct reader *r)
{
    json_t *j = NULL;
    yaml_event_t e;

    while (next(r, &e)) {
        yaml_event_type_t type = e.type;
        bool content = type != YAML_STREAM_START_EVENT &&
                       type != YAML_DOCUMENT_START_EVENT &&
                       type != YAML_DOCUMENT_END_EVENT && type != YAML_STREAM_END_EVENT;

        if (type == YAML_DOCUMENT_START_EVENT && j)
            (void)wrong(r, &e.start_mark, "a second document");
        else if (content)
            j = node(r, &e, 0);
        yaml_event_delete(&e);
        if (type == YAML_STREAM_END_EVENT || r->why[0])
            break;
    }
    if (!r->why[0] && !j)
        (void)snprintf(r->why, r->why_size, "there is nothing in it");
    if (!r->why[0])
        return j;
    json_decref(j);
    return NULL;
}

json_t *yaml_read(const char *text, size_t bytes, char *why, size_t why_size)
{
    struct reader r = { .why = why, .why_size = why_size };

    why[0] = '\0';
    if (bytes > YAML_BYTES_MAX) {
        (void)snprintf(why, why_size, "it is longer than %d MiB",
                       YAML_BYTES_MAX / (1024 * 1024));
        return NULL;
    }
    if (!yaml_parser_initialize(&r.parser)) {
        (void)snprintf(why, why_size, "there is no memory");
        return NULL;
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, bytes);
    json_t *j = document(&r);

    yaml_parser_delete(&r.parser);
    return j;
}

/* ---- writing ---- */

static bool emit(yaml_emitter_t *to, yaml_event_t *e, int made)
{
    return made && yaml_emitter_emit(to, e);
}

/* Words that other readers of YAML take for something else than text are quoted. */
static bool needs_quotes(const char *s)
{
    static const char *const words[] = { "null", "true", "false", "yes", "no",
                                         "on",   "off",  "y",     "n" };

    if (!((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || *s == '/'))
        return true;
    for (size_t i = 0; i < LEN(words); i++)
        if (strcasecmp(s, words[i]) == 0)
            return true;
    return strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                     "_./-") != strlen(s);
}

static bool put_scalar(yaml_emitter_t *to, const char *s, bool text)
{
    yaml_scalar_style_t style = text && needs_quotes(s) ? YAML_DOUBLE_QUOTED_SCALAR_STYLE
                                                        : YAML_PLAIN_SCALAR_STYLE;
    yaml_event_t e;

    return emit(to, &e,
                yaml_scalar_event_initialize(&e, NULL, NULL, (const yaml_char_t *)s,
                                             (int)strlen(s), 1, 1, style));
}

static bool put_node(yaml_emitter_t *to, const json_t *j)
{
    yaml_event_t e;
    const json_t *v;
    const char *key;
    size_t i;
    bool ok;

    if (json_is_string(j))
        return put_scalar(to, json_string_value(j), true);
    if (json_is_array(j)) {
        ok = emit(to, &e,
                  yaml_sequence_start_event_initialize(&e, NULL, NULL, 1,
                                                       json_array_size(j)
                                                           ? YAML_BLOCK_SEQUENCE_STYLE
                                                           : YAML_FLOW_SEQUENCE_STYLE));
        json_array_foreach(j, i, v)
        {
            ok = ok && put_node(to, v);
        }
        return ok && emit(to, &e, yaml_sequence_end_event_initialize(&e));
    }
    if (json_is_object(j)) {
        ok = emit(to, &e,
                  yaml_mapping_start_event_initialize(&e, NULL, NULL, 1,
                                                      json_object_size(j)
                                                          ? YAML_BLOCK_MAPPING_STYLE
                                                          : YAML_FLOW_MAPPING_STYLE));
        json_object_foreach((json_t *)(uintptr_t)j, key, v)
        {
            ok = ok && put_scalar(to, key, true) && put_node(to, v);
        }
        return ok && emit(to, &e, yaml_mapping_end_event_initialize(&e));
    }
    char *text = json_dumps(j, JSON_ENCODE_ANY);

    ok = text && put_scalar(to, text, false);
    free(text);
    return ok;
}

static int put_bytes(void *arg, unsigned char *bytes, size_t n)
{
    return fwrite(bytes, 1, n, arg) == n;
}

bool yaml_write(const json_t *j, FILE *to)
{
    yaml_emitter_t out;
    yaml_event_t e;

    if (!yaml_emitter_initialize(&out))
        return false;
    yaml_emitter_set_output(&out, put_bytes, to);
    yaml_emitter_set_unicode(&out, 1);
    yaml_emitter_set_width(&out, -1);
    bool ok =
        emit(&out, &e, yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING)) &&
        emit(&out, &e, yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1)) &&
        put_node(&out, j) && emit(&out, &e, yaml_document_end_event_initialize(&e, 1)) &&
        emit(&out, &e, yaml_stream_end_event_initialize(&e)) && yaml_emitter_flush(&out);

    yaml_emitter_delete(&out);
    return ok;
}
