/* OpAMP messages and reports: round trips, bounds, and refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "wire/report.h"

static uint8_t buf[2 * OPAMP_MESSAGE_MAX];
static struct opamp_agent agent, agent2;
static struct opamp_server server, server2;

static struct str bytes(size_t n)
{
    return (struct str){ (const char *)buf, n };
}

static void an_agent_message_comes_back_as_it_was(void **state)
{
    (void)state;
    size_t n;

    agent = (struct opamp_agent){
        .uid = { "0123456789abcde" },
        .sequence = 300,
        .capabilities = OPAMP_REPORTS_STATUS | OPAMP_REPORTS_HEALTH,
        .flags = 1,
        .has_description = true,
        .has_health = true,
        .has_custom = true,
        .has_caps = true,
        .health = { .healthy = true,
                    .status = STR("fine"),
                    .start_ns = 1ull << 60,
                    .count = 1,
                    .at = { { .name = STR("engine"), .status = STR("up") } } },
        .custom = { STR("cap"), STR("type"), STR("data") },
        .caps = { .count = 1, .at = { STR("cap") } }
    };
    opamp_add_text(&agent.identifying, STR("service.name"), STR("redoubt-agent"));
    opamp_add_int(&agent.other, STR("negative"), -5);
    opamp_add_bool(&agent.other, STR("yes"), true);
    assert_int_equal(opamp_agent_encode(&agent, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_agent_decode(bytes(n), &agent2, NULL), ERR_OK);
    assert_true(uuid_eq(&agent2.uid, &agent.uid));
    assert_true(agent2.sequence == 300 && agent2.flags == 1 && !agent2.disconnect);
    assert_true(agent2.has_description && agent2.has_health && agent2.has_custom);
    assert_int_equal(agent2.identifying.count, 1);
    assert_true(str_is(agent2.identifying.at[0].text, "redoubt-agent"));
    assert_int_equal(agent2.other.count, 2);
    assert_true(agent2.other.at[0].integer == -5);
    assert_int_equal(agent2.other.at[1].kind, OPAMP_BOOL);
    assert_true(agent2.health.healthy && agent2.health.start_ns == 1ull << 60);
    assert_int_equal(agent2.health.count, 1);
    assert_true(str_is(agent2.health.at[0].name, "engine"));
    assert_true(str_is(agent2.custom.data, "data"));
    assert_true(str_is(agent2.caps.at[0], "cap"));
    for (size_t cut = 0; cut < n; cut++) /* a truncated message never crashes */
        assert_true(opamp_agent_decode(bytes(cut), &agent2, NULL) < ERR_COUNT);
}

static void a_server_message_comes_back_as_it_was(void **state)
{
    (void)state;
    size_t n;

    server = (struct opamp_server){ .flags = OPAMP_REPORT_FULL_STATE,
                                    .capabilities = 1,
                                    .has_custom = true,
                                    .custom = { STR("a"), STR("b"), STR("") } };
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_OK);
    assert_true(server2.flags == 1 && server2.capabilities == 1 && !server2.has_error);
    assert_true(str_is(server2.custom.type, "b"));
    server.has_error = true;
    server.error = OPAMP_ERR_UNAVAILABLE;
    server.error_text = STR("later");
    server.retry_ns = 5;
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_OK);
    assert_true(server2.has_error && server2.retry_ns == 5 && !server2.has_custom);
    assert_int_equal(server2.error, OPAMP_ERR_UNAVAILABLE);
    assert_true(server2.flags == 0); /* with an error, every other field is unset */
}

static void states_and_requests_of_an_agent_come_back(void **state)
{
    (void)state;
    size_t n;

    agent = (struct opamp_agent){
        .uid = { "0123456789abcde" },
        .has_config_status = true,
        .config_status = { STR("hash"), OPAMP_FAILED, STR("scan.cpu_percent: 1 to 100") },
        .has_settings_status = true,
        .settings_status = { STR("other"), OPAMP_APPLIED, STR("") },
        .has_csr = true,
        .csr = STR("-----BEGIN CERTIFICATE REQUEST-----"),
    };
    assert_int_equal(opamp_agent_encode(&agent, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_agent_decode(bytes(n), &agent2, NULL), ERR_OK);
    assert_true(agent2.has_config_status && agent2.has_settings_status && agent2.has_csr);
    assert_int_equal(agent2.config_status.status, OPAMP_FAILED);
    assert_true(str_is(agent2.config_status.hash, "hash"));
    assert_true(str_is(agent2.config_status.error, "scan.cpu_percent: 1 to 100"));
    assert_int_equal(agent2.settings_status.status, OPAMP_APPLIED);
    assert_true(str_eq(agent2.csr, agent.csr));
    for (size_t cut = 0; cut < n; cut++)
        assert_true(opamp_agent_decode(bytes(cut), &agent2, NULL) < ERR_COUNT);
}

static void offers_of_the_server_come_back(void **state)
{
    (void)state;
    size_t n;

    server = (struct opamp_server){
        .has_config = true,
        .config = { STR("h1"),
                    2,
                    { { STR("policy.json"), STR("{}"), STR("t") },
                      { STR("empty"), STR(""), STR("") } } },
        .has_settings = true,
        .settings = { .hash = STR("h2"),
                      .has_opamp = true,
                      .has_certificate = true,
                      .endpoint = STR("wss://[::1]:13000/v1/opamp"),
                      .heartbeat_s = 120,
                      .certificate = STR("PEM"),
                      .ca = STR("CA") },
        .has_new_uid = true,
        .new_uid = { "fedcba987654321" },
        .restart = true,
    };
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_OK);
    assert_true(server2.has_config && server2.has_settings && server2.restart);
    assert_int_equal(server2.config.count, 2);
    assert_true(str_is(server2.config.hash, "h1"));
    assert_true(str_is(server2.config.at[0].body, "{}"));
    assert_true(str_is(server2.config.at[1].name, "empty"));
    assert_true(str_is(server2.settings.hash, "h2"));
    assert_true(server2.settings.heartbeat_s == 120 && server2.settings.has_certificate);
    assert_true(str_is(server2.settings.endpoint, "wss://[::1]:13000/v1/opamp"));
    assert_true(str_is(server2.settings.certificate, "PEM"));
    assert_true(str_is(server2.settings.ca, "CA"));
    assert_true(server2.has_new_uid && uuid_eq(&server2.new_uid, &server.new_uid));
    for (size_t cut = 0; cut < n; cut++)
        assert_true(opamp_server_decode(bytes(cut), &server2, NULL) < ERR_COUNT);
}

static void offers_are_bounded(void **state)
{
    (void)state;
    static struct opamp_config many;
    size_t n;
    char hash[OPAMP_HASH_MAX + 1] = { 'h' };

    for (uint32_t i = 0; i < OPAMP_FILES_MAX; i++)
        many.at[many.count++] = (struct opamp_file){ .name = STR("f") };
    server = (struct opamp_server){ .has_config = true, .config = many };
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_OK);
    server.config = (struct opamp_config){ .hash = { hash, sizeof(hash) } };
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_LIMIT);
    server = (struct opamp_server){ .has_settings = true,
                                    .settings.hash = { hash, sizeof(hash) } };
    assert_int_equal(opamp_server_encode(&server, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_LIMIT);
    /* one entry more than there is room for: 1 { 1 { 1: "f" } } nine times */
    n = 0;
    static const uint8_t entry[] = { 0x0a, 3, 0x0a, 1, 'f' };
    uint8_t *p = buf;
    memcpy(p, "\0\x1a\x2f\x0a\x2d", 5);
    for (n = 5; n < 5 + 9 * sizeof(entry); n += sizeof(entry))
        memcpy(p + n, entry, sizeof(entry));
    assert_int_equal(opamp_server_decode(bytes(n), &server2, NULL), ERR_LIMIT);
}

/* A field of length n, content all the byte c, after header and instance_uid. */
static size_t with_field(uint32_t number, struct str content)
{
    struct pb_out w;

    pb_out_init(&w, buf, sizeof(buf));
    w.p[w.n++] = 0;
    pb_put_bytes(&w, 1, STR("0123456789abcdef"));
    pb_put_bytes(&w, number, content);
    assert_false(w.full);
    return w.n;
}

static void unknown_fields_are_skipped(void **state)
{
    (void)state;
    assert_int_equal(opamp_agent_decode(bytes(with_field(99, STR("x"))), &agent, NULL),
                     ERR_OK);
    assert_int_equal(opamp_agent_decode(bytes(with_field(6, STR("\xff"))), &agent, NULL),
                     ERR_OK);
}

static const struct {
    const char *what;
    const char *p;
    size_t n;
} wrong[] = {
#define B(text) text, sizeof(text) - 1
    { "nothing at all", B("") },
    { "another header", B("\x01\x0a\x10"
                          "0123456789abcdef") },
    { "no instance_uid", B("\0\x10\x01") },
    { "a short instance_uid", B("\0\x0a\x0f"
                                "0123456789abcde") },
    { "a long instance_uid", B("\0\x0a\x11"
                               "0123456789abcdefg") },
    { "instance_uid as a number", B("\0\x08\x01") },
    { "sequence as bytes", B("\0\x0a\x10"
                             "0123456789abcdef\x12\x00") },
    { "a length beyond the end", B("\0\x0a\x10"
                                   "0123456789abcdef\x1a\x05") },
    { "a varint without end", B("\0\x0a\x10"
                                "0123456789abcdef\x10\xff\xff") },
    { "a varint of 11 bytes",
      B("\0\x0a\x10"
        "0123456789abcdef\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\1") },
    { "a group", B("\0\x0a\x10"
                   "0123456789abcdef\x1b\x1c") },
    { "field number 0", B("\0\x0a\x10"
                          "0123456789abcdef\x02\x00") },
    { "a key that is not UTF-8", B("\0\x0a\x10"
                                   "0123456789abcdef\x1a\x05\x0a\x03\x0a\x01\xff") },
    { "a NUL in a key", B("\0\x0a\x10"
                          "0123456789abcdef\x1a\x05\x0a\x03\x0a\x01\0") },
#undef B
};

static void malformed_messages_are_corrupt(void **state)
{
    (void)state;
    for (size_t i = 0; i < LEN(wrong); i++) {
        struct err_info why = { 0 };

        if (opamp_agent_decode((struct str){ wrong[i].p, wrong[i].n }, &agent, &why) !=
            ERR_CORRUPT)
            fail_msg("accepted: %s", wrong[i].what);
        assert_true(why.what[0] != '\0');
    }
}

static void nesting_costs_nothing(void **state)
{
    (void)state;
    static uint8_t deep[60000];
    size_t start = sizeof(deep), n = 0;

    /* AnyValue { array { AnyValue { array ..., 12,000 deep, built from the inside. */
    for (int i = 0; i < 12000; i++) {
        uint8_t head[4];
        struct pb_out w;

        pb_out_init(&w, head, sizeof(head));
        pb_put_varint(&w, i % 2 ? 5 : 1, n);
        head[0] = (uint8_t)((i % 2 ? 5 : 1) << 3 | 2);
        start -= w.n;
        memcpy(deep + start, head, w.n);
        n = sizeof(deep) - start;
    }
    static uint8_t kv_buf[OPAMP_MESSAGE_MAX];
    struct pb_out kv;
    pb_out_init(&kv, kv_buf, sizeof(kv_buf));
    size_t mark = pb_open(&kv, 1);
    pb_put_bytes(&kv, 1, STR("k"));
    pb_put_bytes(&kv, 2, (struct str){ (char *)deep + start, n });
    pb_close(&kv, mark);
    assert_false(kv.full);
    size_t size = with_field(3, (struct str){ (char *)kv_buf, kv.n });
    assert_int_equal(opamp_agent_decode(bytes(size), &agent, NULL), ERR_OK);
    assert_int_equal(agent.identifying.at[0].kind, OPAMP_OTHER);
}

static void counts_are_bounded(void **state)
{
    (void)state;
    static uint8_t many[4096];
    struct pb_out w;

    for (uint32_t n = OPAMP_ATTRS_MAX; n <= OPAMP_ATTRS_MAX + 1; n++) {
        pb_out_init(&w, many, sizeof(many));
        for (uint32_t i = 0; i < n; i++)
            pb_put_bytes(&w, 1, STR("\x0a\x01k"));
        size_t size = with_field(3, (struct str){ (char *)many, w.n });
        assert_int_equal(opamp_agent_decode(bytes(size), &agent, NULL),
                         n == OPAMP_ATTRS_MAX ? ERR_OK : ERR_LIMIT);
    }
    pb_out_init(&w, buf, sizeof(buf));
    buf[w.n++] = 0;
    pb_put_bytes(&w, 1, STR("0123456789abcdef"));
    for (uint32_t i = 0; i < PB_FIELDS_MAX; i++)
        pb_put_varint(&w, 99, 1);
    assert_int_equal(opamp_agent_decode(bytes(w.n), &agent, NULL), ERR_LIMIT);
    memset(buf, 0, OPAMP_MESSAGE_MAX + 1);
    assert_int_equal(opamp_agent_decode(bytes(OPAMP_MESSAGE_MAX + 1), &agent, NULL),
                     ERR_LIMIT);
}

static void reports_keep_their_identity(void **state)
{
    (void)state;
    static struct report r, r2;
    uint8_t one[256], all[512];
    struct report_batch b = { 0 }, b2;
    size_t n, m;

    r = (struct report){ .id = { "report-identity" }, .seq = 9, .at_us = REPORT_AT_MIN };
    opamp_add_text(&r.attrs, STR("engine"), STR("1.4.6"));
    assert_int_equal(report_encode(&r, one, sizeof(one), &n), ERR_OK);
    b.at[b.count++] = (struct str){ (char *)one, n };
    b.at[b.count++] = (struct str){ (char *)one, n };
    assert_int_equal(report_batch_encode(&b, all, sizeof(all), &m), ERR_OK);
    assert_int_equal(report_batch_decode((struct str){ (char *)all, m }, &b2, NULL),
                     ERR_OK);
    assert_int_equal(b2.count, 2);
    assert_int_equal(report_decode(b2.at[1], &r2, NULL), ERR_OK);
    assert_true(uuid_eq(&r.id, &r2.id) && r2.seq == 9 && r2.at_us == REPORT_AT_MIN);
    assert_true(str_is(r2.attrs.at[0].text, "1.4.6"));
}

static void a_report_of_an_impossible_time_is_refused(void **state)
{
    (void)state;
    static struct report r;
    uint8_t one[256];
    size_t n;

    r = (struct report){ .at_us = REPORT_AT_MIN - 1 };
    assert_int_equal(report_encode(&r, one, sizeof(one), &n), ERR_OK);
    assert_int_equal(report_decode((struct str){ (char *)one, n }, &r, NULL), ERR_LIMIT);
    r = (struct report){ .at_us = REPORT_AT_MAX + 1 };
    assert_int_equal(report_encode(&r, one, sizeof(one), &n), ERR_OK);
    assert_int_equal(report_decode((struct str){ (char *)one, n }, &r, NULL), ERR_LIMIT);
}

static void receipts_tell_stored_from_refused(void **state)
{
    (void)state;
    static struct receipts r, r2;
    size_t n;

    r = (struct receipts){ .epoch = 4,
                           .count = 2,
                           .at = { { .seq = 1 },
                                   { .seq = 2, .refused = STR("too long") } } };
    assert_int_equal(receipts_encode(&r, buf, sizeof(buf), &n), ERR_OK);
    assert_int_equal(receipts_decode(bytes(n), &r2, NULL), ERR_OK);
    assert_true(r2.epoch == 4 && r2.count == 2 && r2.at[0].refused.n == 0);
    assert_true(str_is(r2.at[1].refused, "too long"));
}

static void json_is_escaped(void **state)
{
    (void)state;
    static struct opamp_attrs a;
    char out[256];
    struct text t;

    opamp_add_text(&a, STR("a\"\\\n"), STR("\xc3\xa4\x7f"));
    opamp_add_int(&a, STR("n"), INT64_MIN);
    opamp_add_bool(&a, STR("b"), false);
    a.at[a.count++] = (struct opamp_attr){ .key = STR("inf"),
                                           .kind = OPAMP_DOUBLE,
                                           .real = __builtin_inf() };
    text_init(&t, out, sizeof(out));
    attrs_json(&t, &a);
    assert_string_equal(out, "{\"a\\\"\\\\\\u000a\":\"\xc3\xa4\\u007f\","
                             "\"n\":-9223372036854775808,\"b\":false,\"inf\":null}");
}

static void utf8_is_strict(void **state)
{
    (void)state;
    assert_true(
        text_is_utf8(STR("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80"
                         "\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")));
    assert_false(text_is_utf8(STR("\x80")));
    assert_false(text_is_utf8(STR("\xc1\xbf")));
    assert_false(text_is_utf8(STR("\xe0\x9f\xbf")));
    assert_false(text_is_utf8(STR("\xed\xa0\x80")));
    assert_false(text_is_utf8(STR("\xf4\x90\x80\x80")));
    assert_false(text_is_utf8(STR("\xe2\x82")));
    assert_false(text_is_utf8(STR("a\0b")));
}

static void uuids_are_read_and_made(void **state)
{
    (void)state;
    struct uuid u, v;
    char text[UUID_TEXT];
    static const uint8_t random[10] = { 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6 };

    uuid_make(&u, 0x0123456789abull, random);
    uuid_format(text, &u);
    assert_string_equal(text, "01234567-89ab-7fff-bfff-010203040506");
    assert_true(uuid_parse(&v, str_of(text)) && uuid_eq(&u, &v));
    assert_false(uuid_parse(&v, STR("0123456789ab-7fff-bfff-010203040506-")));
    assert_false(uuid_parse(&v, STR("01234567-89ab-7fff-bfff-01020304050")));
    assert_false(uuid_parse(&v, STR("01234567-89ab-7fff-bfff-01020304050g")));
}

/* --- packages --- */

static void packages_of_the_server_come_back(void **state)
{
    (void)state;
    static struct opamp_server in, out;
    uint8_t bytes_of[4096];
    size_t n;

    memset(&in, 0, sizeof(in));
    in.has_packages = true;
    in.packages.hash = STR("all");
    in.packages.count = 2;
    in.packages.at[0] = (struct opamp_package){
        .name = STR("redoubt-agent"),
        .version = STR("0.2.0"),
        .hash = STR("one"),
        .url = STR("http://10.0.0.1:8060/packages/redoubt-agent/0.2.0/a.deb"),
        .content_hash = STR("12345678901234567890123456789012"),
        .signature = STR("sig\0nature"),
        .header_count = 1,
        .header = { { STR("Redoubt-Order"), STR("roll-back") } },
    };
    in.packages.at[1] = (struct opamp_package){ .name = STR("more"), .addon = true };
    assert_int_equal(opamp_server_encode(&in, bytes_of, sizeof(bytes_of), &n), ERR_OK);
    assert_int_equal(opamp_server_decode((struct str){ (char *)bytes_of, n }, &out, NULL),
                     ERR_OK);
    assert_true(out.has_packages);
    assert_int_equal(out.packages.count, 2);
    assert_true(str_is(out.packages.hash, "all"));
    const struct opamp_package *p = &out.packages.at[0];
    assert_true(str_is(p->name, "redoubt-agent") && str_is(p->version, "0.2.0"));
    assert_true(str_eq(p->signature, STR("sig\0nature")) && !p->addon);
    assert_true(str_eq(p->content_hash, in.packages.at[0].content_hash));
    assert_true(str_eq(p->url, in.packages.at[0].url));
    assert_int_equal(p->header_count, 1);
    assert_true(str_is(p->header[0].key, "Redoubt-Order"));
    assert_true(str_is(p->header[0].value, "roll-back"));
    assert_true(out.packages.at[1].addon && out.packages.at[1].header_count == 0);
}

static void package_statuses_come_back(void **state)
{
    (void)state;
    static struct opamp_agent in, out;
    uint8_t bytes_of[4096];
    size_t n;

    memset(&in, 0, sizeof(in));
    in.has_packages = true;
    in.packages.hash = STR("all");
    in.packages.count = 2;
    in.packages.at[0] = (struct opamp_package_status){ .name = STR("redoubt-agent"),
                                                       .has_version = STR("0.1.0"),
                                                       .offered_version = STR("0.2.0"),
                                                       .offered_hash = STR("one"),
                                                       .status = OPAMP_DOWNLOADING,
                                                       .percent = 12.5,
                                                       .bytes_per_s = 1e6 };
    in.packages.at[1] = (struct opamp_package_status){ .name = STR("more"),
                                                       .status = OPAMP_INSTALL_FAILED,
                                                       .error = STR("no") };
    assert_int_equal(opamp_agent_encode(&in, bytes_of, sizeof(bytes_of), &n), ERR_OK);
    assert_int_equal(opamp_agent_decode((struct str){ (char *)bytes_of, n }, &out, NULL),
                     ERR_OK);
    assert_true(out.has_packages);
    assert_int_equal(out.packages.count, 2);
    const struct opamp_package_status *p = &out.packages.at[0];
    assert_int_equal(p->status, OPAMP_DOWNLOADING);
    assert_true(p->percent == 12.5 && p->bytes_per_s == 1e6);
    assert_true(str_is(p->has_version, "0.1.0") && str_is(p->offered_version, "0.2.0"));
    assert_int_equal(out.packages.at[1].status, OPAMP_INSTALL_FAILED);
    assert_true(str_is(out.packages.at[1].error, "no"));
}

/* A ServerToAgent with one package, of which field `number` of its file is so long. */
static enum err long_package(uint32_t number, size_t size)
{
    static char long_text[OPAMP_MESSAGE_MAX];
    static uint8_t bytes_of[OPAMP_MESSAGE_MAX];
    static struct opamp_server out;
    struct pb_out w;

    memset(long_text, 'x', sizeof(long_text));
    pb_out_init(&w, bytes_of + 1, sizeof(bytes_of) - 1);
    bytes_of[0] = 0;
    size_t all = pb_open(&w, 5), entry = pb_open(&w, 1);
    pb_put_bytes(&w, 1, number == 0 ? (struct str){ long_text, size } : STR("a"));
    size_t package = pb_open(&w, 2), file = pb_open(&w, 3);
    if (number > 0)
        pb_put_bytes(&w, number, (struct str){ long_text, size });
    pb_close(&w, file);
    pb_close(&w, package);
    pb_close(&w, entry);
    pb_close(&w, all);
    assert_false(w.full);
    return opamp_server_decode((struct str){ (char *)bytes_of, w.n + 1 }, &out, NULL);
}

static void packages_are_bounded(void **state)
{
    (void)state;
    static struct opamp_server to_agent;
    static struct opamp_agent to_server;
    static uint8_t bytes_of[4096];
    struct pb_out w;

    assert_int_equal(long_package(0, OPAMP_KEY_MAX), ERR_OK);
    assert_int_equal(long_package(0, OPAMP_KEY_MAX + 1), ERR_LIMIT);
    assert_int_equal(long_package(1, OPAMP_TEXT_MAX), ERR_OK);
    assert_int_equal(long_package(1, OPAMP_TEXT_MAX + 1), ERR_LIMIT);
    assert_int_equal(long_package(2, OPAMP_HASH_MAX + 1), ERR_LIMIT);
    assert_int_equal(long_package(3, OPAMP_SIGNATURE_MAX), ERR_OK);
    assert_int_equal(long_package(3, OPAMP_SIGNATURE_MAX + 1), ERR_LIMIT);
    for (uint32_t field = 5; field <= 8; field += 3) {
        for (int n = OPAMP_PACKAGES_MAX; n <= OPAMP_PACKAGES_MAX + 1; n++) {
            bytes_of[0] = 0;
            pb_out_init(&w, bytes_of + 1, sizeof(bytes_of) - 1);
            pb_put_bytes(&w, 1, STR("0123456789abcdef"));
            size_t all = pb_open(&w, field);
            for (int i = 0; i < n; i++)
                pb_put_bytes(&w, 1, STR(""));
            pb_close(&w, all);
            struct str whole = { (char *)bytes_of, w.n + 1 };
            enum err e = field == 5 ? opamp_server_decode(whole, &to_agent, NULL)
                                    : opamp_agent_decode(whole, &to_server, NULL);
            assert_int_equal(e, n > OPAMP_PACKAGES_MAX ? ERR_LIMIT : ERR_OK);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_agent_message_comes_back_as_it_was),
        cmocka_unit_test(a_server_message_comes_back_as_it_was),
        cmocka_unit_test(states_and_requests_of_an_agent_come_back),
        cmocka_unit_test(offers_of_the_server_come_back),
        cmocka_unit_test(offers_are_bounded),
        cmocka_unit_test(packages_of_the_server_come_back),
        cmocka_unit_test(package_statuses_come_back),
        cmocka_unit_test(packages_are_bounded),
        cmocka_unit_test(unknown_fields_are_skipped),
        cmocka_unit_test(malformed_messages_are_corrupt),
        cmocka_unit_test(nesting_costs_nothing),
        cmocka_unit_test(counts_are_bounded),
        cmocka_unit_test(reports_keep_their_identity),
        cmocka_unit_test(a_report_of_an_impossible_time_is_refused),
        cmocka_unit_test(receipts_tell_stored_from_refused),
        cmocka_unit_test(json_is_escaped),
        cmocka_unit_test(utf8_is_strict),
        cmocka_unit_test(uuids_are_read_and_made),
    };

    return cmocka_run_group_tests_name("opamp", tests, NULL, NULL);
}
