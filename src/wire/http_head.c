#include "wire/http_head.h"

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

static bool same(struct str a, struct str b)
{
    if (a.n != b.n)
        return false;
    for (size_t i = 0; i < a.n; i++)
        if (lower(a.p[i]) != lower(b.p[i]))
            return false;
    return true;
}

/* RFC 9110 token characters. */
static bool token_char(char c)
{
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') ||
           (c != '\0' && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        if (!token_char(s.p[i]))
            return false;
    return s.n > 0;
}

static bool is_text(struct str s)
{
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static struct str trimmed(struct str s)
{
    while (s.n > 0 && (s.p[0] == ' ' || s.p[0] == '\t'))
        s = (struct str){ s.p + 1, s.n - 1 };
    while (s.n > 0 && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
        s.n--;
    return s;
}

/* Takes everything before c off *s; false if c is not there. */
static bool split(struct str *s, char c, struct str *out)
{
    const char *at = s->n > 0 ? memchr(s->p, c, s->n) : NULL;

    if (!at)
        return false;
    *out = (struct str){ s->p, (size_t)(at - s->p) };
    *s = (struct str){ at + 1, s->n - out->n - 1 };
    return true;
}

/* Where the head ends, blank line included; 0 if it is not there yet. */
static size_t head_end(struct str bytes)
{
    for (size_t i = 3; i < bytes.n && i < HTTP_HEAD_MAX; i++)
        if (bytes.p[i] == '\n' && memcmp(bytes.p + i - 3, "\r\n\r\n", 4) == 0)
            return i + 1;
    return 0;
}

/* The next line without its CRLF. */
static bool take_line(struct str *s, struct str *out)
{
    if (!split(s, '\n', out) || out->n == 0 || out->p[out->n - 1] != '\r')
        return false;
    out->n--;
    return true;
}

static enum http_result headers(struct str s, struct http_head *h)
{
    struct str line;

    for (;;) {
        struct http_header f;

        if (!take_line(&s, &line))
            return HTTP_BAD;
        if (line.n == 0)
            return HTTP_DONE;
        if (h->count == HTTP_HEADERS_MAX)
            return HTTP_TOO_BIG;
        if (!split(&line, ':', &f.name) || !is_token(f.name) || !is_text(line))
            return HTTP_BAD;
        f.value = trimmed(line);
        h->at[h->count++] = f;
    }
}

static bool request_line(struct str line, struct http_head *h)
{
    if (!split(&line, ' ', &h->method) || !split(&line, ' ', &h->target))
        return false;
    if (!str_is(line, "HTTP/1.1") || !is_token(h->method) || h->target.n == 0)
        return false;
    for (size_t i = 0; i < h->target.n; i++)
        if ((unsigned char)h->target.p[i] <= 0x20 || (unsigned char)h->target.p[i] > 0x7e)
            return false;
    return true;
}

static bool status_line(struct str line, struct http_head *h)
{
    struct str version, digits = { line.p + 9, 3 };
    uint64_t status = 0;

    if (line.n < 12 || !split(&line, ' ', &version) || !str_is(version, "HTTP/1.1"))
        return false;
    if (line.n > 3 && line.p[3] != ' ')
        return false;
    if (!str_u64(digits, 599, &status) || status < 100)
        return false;
    h->status = (uint32_t)status;
    return true;
}

static enum http_result head(struct str bytes, struct http_head *out,
                             bool (*first)(struct str, struct http_head *))
{
    struct http_head h = { .size = head_end(bytes) };
    struct str line, s = { bytes.p, h.size };

    if (h.size == 0)
        return bytes.n < HTTP_HEAD_MAX ? HTTP_MORE : HTTP_TOO_BIG;
    if (!take_line(&s, &line) || !first(line, &h))
        return HTTP_BAD;
    enum http_result r = headers(s, &h);
    if (r == HTTP_DONE)
        *out = h;
    return r;
}

enum http_result http_request(struct str bytes, struct http_head *out)
{
    return head(bytes, out, request_line);
}

enum http_result http_response(struct str bytes, struct http_head *out)
{
    return head(bytes, out, status_line);
}

bool http_find(const struct http_head *h, const char *name, struct str *out)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < h->count; i++) {
        if (!same(h->at[i].name, str_of(name)))
            continue;
        if (found++ > 0)
            return false;
        *out = h->at[i].value;
    }
    return found == 1;
}

bool http_has_token(const struct http_head *h, const char *name, const char *token)
{
    struct str list, one;

    if (!http_find(h, name, &list))
        return false;
    while (split(&list, ',', &one))
        if (same(trimmed(one), str_of(token)))
            return true;
    return same(trimmed(list), str_of(token));
}
