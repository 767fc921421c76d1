/*
 * OpAMP messages and reports: what decodes encodes to bytes that decode to the same, and
 * encoding that again gives the same bytes.
 */
#include "fuzz.h"
#include "wire/report.h"

enum { SIZE = 2 * OPAMP_MESSAGE_MAX };

static uint8_t first[SIZE], second[SIZE];

static struct str view(const uint8_t *p, size_t n)
{
    return (struct str){ (const char *)p, n };
}

static void same(size_t n, size_t m)
{
    CHECK(n == m && memcmp(first, second, n) == 0);
}

static void check_agent(struct str in)
{
    static struct opamp_agent a, b;
    size_t n, m;

    if (opamp_agent_decode(in, &a, NULL) != ERR_OK)
        return;
    CHECK(opamp_agent_encode(&a, first, SIZE, &n) == ERR_OK);
    CHECK(opamp_agent_decode(view(first, n), &b, NULL) == ERR_OK);
    CHECK(opamp_agent_encode(&b, second, SIZE, &m) == ERR_OK);
    same(n, m);
}

static void check_server(struct str in)
{
    static struct opamp_server a, b;
    size_t n, m;

    if (opamp_server_decode(in, &a, NULL) != ERR_OK)
        return;
    CHECK(opamp_server_encode(&a, first, SIZE, &n) == ERR_OK);
    CHECK(opamp_server_decode(view(first, n), &b, NULL) == ERR_OK);
    CHECK(opamp_server_encode(&b, second, SIZE, &m) == ERR_OK);
    same(n, m);
}

static void check_report(struct str in)
{
    static struct report a, b;
    static char json[8 * OPAMP_MESSAGE_MAX];
    struct text t;
    size_t n, m;

    if (report_decode(in, &a, NULL) != ERR_OK)
        return;
    CHECK(a.at_us >= REPORT_AT_MIN && a.at_us <= REPORT_AT_MAX);
    text_init(&t, json, sizeof(json));
    attrs_json(&t, &a.attrs);
    CHECK(t.n >= 2 && json[0] == '{' && json[t.n - 1] == '}');
    if (report_encode(&a, first, SIZE, &n) != ERR_OK)
        return; /* too long for one report */
    CHECK(report_decode(view(first, n), &b, NULL) == ERR_OK);
    CHECK(report_encode(&b, second, SIZE, &m) == ERR_OK);
    same(n, m);
}

static void check_lists(struct str in)
{
    static struct report_batch batch;
    static struct receipts receipts, again;
    size_t n, m;

    if (report_batch_decode(in, &batch, NULL) == ERR_OK)
        for (uint32_t i = 0; i < batch.count; i++)
            check_report(batch.at[i]);
    if (receipts_decode(in, &receipts, NULL) != ERR_OK)
        return;
    CHECK(receipts_encode(&receipts, first, SIZE, &n) == ERR_OK);
    CHECK(receipts_decode(view(first, n), &again, NULL) == ERR_OK);
    CHECK(receipts_encode(&again, second, SIZE, &m) == ERR_OK);
    same(n, m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str in = view(data, size);

    check_agent(in);
    check_server(in);
    check_report(in);
    check_lists(in);
    return 0;
}
