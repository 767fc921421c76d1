/* What needs no connection: paths, and replies in the making. */
#include "sys/http/http_server.h"

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

size_t http_path_split(const char *target, char *buf, size_t size, const char *pieces[],
                       size_t max)
{
    size_t n = 0, count = 0;
    const char *p = target;

    while (*p == '/') {
        if (count == max)
            return 0;
        pieces[count++] = buf + n;
        size_t first = n;
        for (p++; *p && *p != '/' && *p != '?'; p++) {
            char c = *p;

            if (c == '%') {
                int high = hex(p[1]), low = high < 0 ? -1 : hex(p[2]);
                if (low < 0 || high + low == 0)
                    return 0;
                c = (char)(high << 4 | low);
                p += 2;
            }
            if (n + 1 >= size)
                return 0;
            buf[n++] = c;
        }
        if (n == first || n >= size)
            return 0;
        buf[n++] = '\0';
    }
    return *p == '\0' || *p == '?' ? count : 0;
}

void http_reply_header(struct http_reply *out, const char *name, const char *value)
{
    CHECK(out->header_count < HTTP_REPLY_HEADERS_MAX);
    size_t n = strlen(value);

    if (n >= HTTP_HEADER_VALUE)
        n = HTTP_HEADER_VALUE - 1;
    out->headers[out->header_count].name = name;
    memcpy(out->headers[out->header_count].value, value, n);
    out->headers[out->header_count].value[n] = '\0';
    out->header_count++;
}

void http_reply_text(struct http_reply *out, unsigned status, const char *content_type,
                     struct str body)
{
    free(out->body);
    out->status = status;
    out->content_type = content_type;
    out->body_bytes = 0;
    out->body = malloc(body.n + 1);
    if (!out->body) {
        out->status = 503;
        return;
    }
    memcpy(out->body, body.p, body.n);
    out->body[body.n] = '\0';
    out->body_bytes = body.n;
}

static void add_quoted(struct text *t, const char *s)
{
    text_add(t, "\"");
    for (; s && *s; s++) {
        if (*s == '"' || *s == '\\')
            text_add(t, "\\%c", *s);
        else if ((unsigned char)*s < ' ')
            text_add(t, "\\u%04x", (unsigned)*s);
        else
            text_bytes(t, (struct str){ s, 1 });
    }
    text_add(t, "\"");
}

void http_reply_error(struct http_reply *out, unsigned status,
                      const struct http_error *error)
{
    char buf[4096];
    struct text t;

    text_init(&t, buf, sizeof(buf));
    text_add(&t, "{\"error\":{\"id\":");
    add_quoted(&t, error->id);
    text_add(&t, ",\"title\":");
    add_quoted(&t, error->title);
    text_add(&t, ",\"text\":");
    add_quoted(&t, error->text);
    text_add(&t, ",\"suggestion\":");
    add_quoted(&t, error->suggestion);
    text_add(&t, "}}\n");
    if (t.cut) { /* absurdly long words: keep it JSON */
        http_reply_text(out, status, NULL, STR("{\"error\":{\"id\":\"internal\"}}\n"));
        return;
    }
    http_reply_text(out, status, NULL, (struct str){ buf, t.n });
}
