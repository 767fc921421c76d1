#include "app/agent/enrol_conf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "app/agent/identity_files.h"

void enrol_conf_server(const char *host, uint16_t port, char out[CONF_PATH])
{
    (void)snprintf(out, CONF_PATH, strchr(host, ':') ? "[%.200s]:%u" : "%.200s:%u", host,
                   port);
}

/* Is this line of the section [agent] the key server? */
static bool is_server(struct str line)
{
    while (line.n > 0 && (line.p[0] == ' ' || line.p[0] == '\t')) {
        line.p++;
        line.n--;
    }
    if (!str_starts(line, STR("server")))
        return false;
    line.p += 6;
    line.n -= 6;
    while (line.n > 0 && (line.p[0] == ' ' || line.p[0] == '\t')) {
        line.p++;
        line.n--;
    }
    return line.n > 0 && line.p[0] == '=';
}

static void add_server(struct text *t, const char *server)
{
    text_add(t, "server = %s\n", server);
}

/* Every line as it is, but that of the server, which is replaced, or put first. */
static void with_server(struct str old, const char *server, struct text *out)
{
    bool in_agent = false, done = false;
    size_t begin = 0;

    while (begin < old.n) {
        const char *end = memchr(old.p + begin, '\n', old.n - begin);
        size_t n = end ? (size_t)(end - (old.p + begin)) : old.n - begin;
        struct str line = { old.p + begin, n };

        begin += n + (end ? 1 : 0);
        if (line.n > 0 && line.p[0] == '[')
            in_agent = str_starts(line, STR("[agent]"));
        if (in_agent && is_server(line)) {
            if (!done)
                add_server(out, server);
            done = true;
            continue;
        }
        text_bytes(out, line);
        text_add(out, "\n");
    }
    if (done)
        return;
    /* A section may come only once: into the one that is there. */
    char *at = memmem(out->p, out->n, "[agent]\n", 8);
    if (!at) {
        text_add(out, "%s[agent]\n", out->n ? "\n" : "");
        add_server(out, server);
        return;
    }
    char *rest = strdup(at + 8);
    if (!rest) {
        out->cut = true;
        return;
    }
    out->n = (size_t)(at + 8 - out->p);
    add_server(out, server);
    text_add(out, "%s", rest);
    free(rest);
}

enum { FILE_MAX = CA_PEM_MAX };

/* new: the text as it is to be.  *same: as it is already. */
static enum err render(const char *path, const char *server, struct ca_pem *new,
                       bool *same, struct err_info *info)
{
    struct ca_pem old = { 0 };
    struct text t;
    enum err e = identity_read(path, &old, info);

    if (e != ERR_OK && e != ERR_NOT_FOUND)
        return e;
    text_init(&t, new->text, FILE_MAX);
    with_server(ca_pem_str(&old), server, &t);
    if (t.cut)
        return err_set(info, ERR_LIMIT, 0, "%s is too long", path);
    new->n = t.n;
    *same = e == ERR_OK && str_eq(ca_pem_str(&old), ca_pem_str(new));
    return ERR_OK;
}

enum err enrol_conf_load(const char *path, const char *server, struct agent_conf *out,
                         struct err_info *info)
{
    struct conf_errors *errors = calloc(1, sizeof(*errors));
    struct ca_pem new = { 0 };
    bool same = false;
    enum err e = errors ? render(path, server, &new, &same, info) : ERR_MEMORY;

    if (e == ERR_OK && agent_conf_parse(ca_pem_str(&new), out, errors) != ERR_OK)
        e = err_set(info, ERR_CONFIG, 0, "%.100s:%u: %.120s", path, errors->at[0].line,
                    errors->at[0].text);
    free(errors);
    return e;
}

enum err enrol_conf_write(const char *path, const char *server, struct err_info *info)
{
    struct ca_pem new = { 0 };
    struct stat st;
    bool same = false;
    enum err e = render(path, server, &new, &same, info);

    if (e != ERR_OK || same)
        return e;
    return identity_write(path, ca_pem_str(&new),
                          stat(path, &st) == 0 ? st.st_mode & 0777 : 0644, info);
}
