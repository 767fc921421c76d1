#include "wire/report.h"

static enum err verdict(const struct pb *r, struct err_info *info, const char *what)
{
    if (r->over)
        return err_set(info, ERR_LIMIT, 0, "%s: too many fields", what);
    if (r->bad)
        return err_set(info, ERR_CORRUPT, 0, "%s: malformed", what);
    return ERR_OK;
}

static enum err id_decode(struct str bytes, struct uuid *out, struct err_info *info)
{
    if (bytes.n != UUID_BYTES)
        return err_set(info, ERR_CORRUPT, 0, "report_id: not 16 bytes");
    memcpy(out->bytes, bytes.p, UUID_BYTES);
    return ERR_OK;
}

enum err report_batch_decode(struct str data, struct report_batch *out,
                             struct err_info *info)
{
    struct report_batch b = { 0 };
    struct pb r;
    struct pb_field f;

    pb_init(&r, data);
    while (pb_next(&r, &f)) {
        if (f.number != 1)
            continue;
        if (b.count == REPORT_BATCH_MAX)
            return err_set(info, ERR_LIMIT, 0, "more than %d reports in a message",
                           REPORT_BATCH_MAX);
        b.at[b.count++] = pb_bytes(&r, &f);
    }
    enum err e = verdict(&r, info, "reports");
    if (e == ERR_OK)
        *out = b;
    return e;
}

static enum err report_check(const struct report *r, bool has_id, struct err_info *info)
{
    if (!has_id)
        return err_set(info, ERR_CORRUPT, 0, "report_id: missing");
    if (r->seq > INT64_MAX)
        return err_set(info, ERR_LIMIT, 0, "report seq: too big");
    if (r->at_us < REPORT_AT_MIN || r->at_us > REPORT_AT_MAX)
        return err_set(info, ERR_LIMIT, 0, "report time: not between 2000 and 2200");
    return ERR_OK;
}

enum err report_decode(struct str bytes, struct report *out, struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    bool has_id = false;
    enum err e = ERR_OK;

    if (bytes.n > REPORT_BYTES_MAX)
        return err_set(info, ERR_LIMIT, 0, "report longer than %d bytes",
                       REPORT_BYTES_MAX);
    *out = (struct report){ 0 };
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1) {
            has_id = true;
            e = id_decode(pb_bytes(&r, &f), &out->id, info);
        } else if (f.number == 2) {
            out->seq = pb_varint(&r, &f);
        } else if (f.number == 3) {
            out->at_us = pb_fixed64(&r, &f);
        } else if (f.number == 4) {
            e = opamp_attr_decode(pb_bytes(&r, &f), &out->attrs, info);
        }
    }
    if (e == ERR_OK)
        e = verdict(&r, info, "report");
    return e == ERR_OK ? report_check(out, has_id, info) : e;
}

static enum err receipt_decode(struct str bytes, struct receipt *out,
                               struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    bool has_id = false;
    enum err e = ERR_OK;

    *out = (struct receipt){ 0 };
    pb_init(&r, bytes);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 1) {
            has_id = true;
            e = id_decode(pb_bytes(&r, &f), &out->id, info);
        } else if (f.number == 2) {
            out->seq = pb_varint(&r, &f);
        } else if (f.number == 3) {
            out->refused = pb_bytes(&r, &f);
        }
    }
    if (e == ERR_OK)
        e = verdict(&r, info, "receipt");
    if (e == ERR_OK && !has_id)
        e = err_set(info, ERR_CORRUPT, 0, "receipt: report_id missing");
    if (e == ERR_OK && (out->refused.n > OPAMP_TEXT_MAX || !text_is_utf8(out->refused)))
        e = err_set(info, ERR_CORRUPT, 0, "receipt: reason is not text");
    return e;
}

enum err receipts_decode(struct str data, struct receipts *out, struct err_info *info)
{
    struct pb r;
    struct pb_field f;
    enum err e = ERR_OK;

    *out = (struct receipts){ 0 };
    pb_init(&r, data);
    while (e == ERR_OK && pb_next(&r, &f)) {
        if (f.number == 2)
            out->epoch = pb_varint(&r, &f);
        if (f.number != 1)
            continue;
        if (out->count == REPORT_BATCH_MAX)
            return err_set(info, ERR_LIMIT, 0, "more than %d receipts in a message",
                           REPORT_BATCH_MAX);
        e = receipt_decode(pb_bytes(&r, &f), &out->at[out->count++], info);
    }
    return e == ERR_OK ? verdict(&r, info, "receipts") : e;
}

static struct str id_of(const struct uuid *u)
{
    return (struct str){ (const char *)u->bytes, UUID_BYTES };
}

static enum err finish(const struct pb_out *w, size_t max, size_t *out)
{
    if (w->full || w->n > max)
        return ERR_LIMIT;
    *out = w->n;
    return ERR_OK;
}

enum err report_encode(const struct report *r, uint8_t *buf, size_t size, size_t *out)
{
    struct pb_out w;

    pb_out_init(&w, buf, size);
    pb_put_bytes(&w, 1, id_of(&r->id));
    pb_put_varint(&w, 2, r->seq);
    pb_put_fixed64(&w, 3, r->at_us);
    for (uint32_t i = 0; i < r->attrs.count; i++)
        opamp_attr_encode(&w, 4, &r->attrs.at[i]);
    return finish(&w, REPORT_BYTES_MAX, out);
}

enum err report_batch_encode(const struct report_batch *b, uint8_t *buf, size_t size,
                             size_t *out)
{
    struct pb_out w;

    pb_out_init(&w, buf, size);
    for (uint32_t i = 0; i < b->count; i++)
        pb_put_bytes(&w, 1, b->at[i]);
    return finish(&w, OPAMP_MESSAGE_MAX, out);
}

enum err receipts_encode(const struct receipts *r, uint8_t *buf, size_t size, size_t *out)
{
    struct pb_out w;

    pb_out_init(&w, buf, size);
    for (uint32_t i = 0; i < r->count; i++) {
        size_t mark = pb_open(&w, 1);

        pb_put_bytes(&w, 1, id_of(&r->at[i].id));
        pb_put_varint(&w, 2, r->at[i].seq);
        if (r->at[i].refused.n > 0)
            pb_put_bytes(&w, 3, r->at[i].refused);
        pb_close(&w, mark);
    }
    pb_put_varint(&w, 2, r->epoch);
    return finish(&w, OPAMP_MESSAGE_MAX, out);
}

void quoted_json(struct text *t, struct str s)
{
    text_add(t, "\"");
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c == '"' || c == '\\')
            text_add(t, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            text_add(t, "\\u%04x", c);
        else
            text_bytes(t, (struct str){ s.p + i, 1 });
    }
    text_add(t, "\"");
}

static void value_json(struct text *t, const struct opamp_attr *a)
{
    switch (a->kind) {
    case OPAMP_STRING: quoted_json(t, a->text); break;
    case OPAMP_BOOL: text_add(t, "%s", a->integer ? "true" : "false"); break;
    case OPAMP_INT: text_add(t, "%lld", (long long)a->integer); break;
    case OPAMP_DOUBLE:
        /* JSON has no infinity and no NaN. */
        if (__builtin_isfinite(a->real))
            text_add(t, "%.17g", a->real);
        else
            text_add(t, "null");
        break;
    case OPAMP_OTHER: text_add(t, "null"); break;
    }
}

void attrs_json(struct text *t, const struct opamp_attrs *a)
{
    text_add(t, "{");
    for (uint32_t i = 0; i < a->count; i++) {
        text_add(t, "%s", i > 0 ? "," : "");
        quoted_json(t, a->at[i].key);
        text_add(t, ":");
        value_json(t, &a->at[i]);
    }
    text_add(t, "}");
}

static void state_json(struct text *t, bool healthy, struct str status,
                       struct str last_error)
{
    text_add(t, "{\"healthy\":%s", healthy ? "true" : "false");
    if (status.n > 0) {
        text_add(t, ",\"status\":");
        quoted_json(t, status);
    }
    if (last_error.n > 0) {
        text_add(t, ",\"last_error\":");
        quoted_json(t, last_error);
    }
}

void health_json(struct text *t, const struct opamp_health *h)
{
    state_json(t, h->healthy, h->status, h->last_error);
    text_add(t, ",\"components\":{");
    for (uint32_t i = 0; i < h->count; i++) {
        text_add(t, "%s", i > 0 ? "," : "");
        quoted_json(t, h->at[i].name);
        text_add(t, ":");
        state_json(t, h->at[i].healthy, h->at[i].status, h->at[i].last_error);
        text_add(t, "}");
    }
    text_add(t, "}}");
}
