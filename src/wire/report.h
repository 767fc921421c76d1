/*
 * report: status reports of devices, the custom capability com.redoubt.report/v1.
 *
 * Purpose   Carries reports with an identity (report_id, seq) in OpAMP custom messages:
 *           type "reports" from the agent, type "receipts" from the server, sent only
 *           after the commit.  Also the JSON that PostgreSQL stores.
 * Shape     reports  { 1: repeated Report }
 *           Report   { 1: report_id (16 bytes), 2: seq, 3: at (fixed64, Unix
 *                      microseconds), 4: repeated KeyValue, scalars only }
 *           receipts { 1: repeated Receipt, 2: epoch }
 *           Receipt  { 1: report_id, 2: seq, 3: refused (text; absent: stored) }
 *           At most REPORT_BATCH_MAX reports a message.
 * Errors    ERR_CORRUPT, ERR_LIMIT as in wire/opamp.h
 * Threads   any; pure
 * Source    docs/protocol/opamp.md
 */
#ifndef WIRE_REPORT_H
#define WIRE_REPORT_H

#include "wire/opamp.h"

#define REPORT_CAPABILITY "com.redoubt.report/v1"
#define REPORT_TYPE       "reports"
#define RECEIPT_TYPE      "receipts"

enum { REPORT_BATCH_MAX = 32, REPORT_BYTES_MAX = 16384 };
/* Unix microseconds that a report may carry: 2000-01-01 to 2200-01-01. */
#define REPORT_AT_MIN 946684800000000ull
#define REPORT_AT_MAX 7258118400000000ull

struct report {
    struct uuid id;
    uint64_t seq, at_us;
    struct opamp_attrs attrs;
};

/* Views of the encoded reports of a "reports" message. */
struct report_batch {
    uint32_t count;
    struct str at[REPORT_BATCH_MAX];
};

struct receipt {
    struct uuid id;
    uint64_t seq;
    struct str refused; /* empty: stored */
};

struct receipts {
    uint64_t epoch;
    uint32_t count;
    struct receipt at[REPORT_BATCH_MAX];
};

MUST_USE enum err report_batch_decode(struct str data, struct report_batch *out,
                                      struct err_info *info);
MUST_USE enum err report_decode(struct str bytes, struct report *out,
                                struct err_info *info);
MUST_USE enum err receipts_decode(struct str data, struct receipts *out,
                                  struct err_info *info);

/* The body of one Report, as a spool keeps it. */
MUST_USE enum err report_encode(const struct report *r, uint8_t *buf, size_t size,
                                size_t *out);
MUST_USE enum err report_batch_encode(const struct report_batch *b, uint8_t *buf,
                                      size_t size, size_t *out);
MUST_USE enum err receipts_encode(const struct receipts *r, uint8_t *buf, size_t size,
                                  size_t *out);

/* JSON, one object each; t->cut says that it did not fit. */
void attrs_json(struct text *t, const struct opamp_attrs *a);
void health_json(struct text *t, const struct opamp_health *h);
void quoted_json(struct text *t, struct str s);

#endif
