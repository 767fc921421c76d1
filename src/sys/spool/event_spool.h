/*
 * event_spool: events that the server has not acknowledged yet, in the spool's file.
 *
 * Purpose   An event is on the disk before it is sent and until its acknowledgement.  There
 *           are two streams, so that what is critical does not wait behind what is not.
 * Shape     A stream has a random id; its events are numbered from 1 on, without reuse.  A
 *           new file has new streams, so that no number ever means two events.
 *           The body is opaque here: the JSON object of docs/protocol/events.md.
 * Safety    Bounded by count and bytes.  When full, the oldest of the lowest severity goes,
 *           and it is counted in the same transaction: untold[] says what the server has to
 *           be told, until event_spool_tell() has stored the record that tells it.
 * Errors    ERR_LIMIT the event is too big, ERR_FULL no space on the disk, ERR_CORRUPT the
 *           file is damaged (close, open again: it is put aside), ERR_IO
 * Threads   loop thread only
 * Source    docs/protocol/events.md
 * Tests     tests/unit/test_event_spool.c
 */
#ifndef SYS_EVENT_SPOOL_H
#define SYS_EVENT_SPOOL_H

#include "sys/spool/spool.h"
#include "wire/uuid.h"

enum event_stream { EVENT_CRITICAL, EVENT_NORMAL, EVENT_STREAMS };
enum event_severity {
    EVENT_SEV_INFO,
    EVENT_SEV_WARNING,
    EVENT_SEV_ERROR,
    EVENT_SEV_CRITICAL,
    EVENT_SEVERITIES
};
enum { EVENT_BYTES_MAX = 16384 };

struct event_add {
    enum event_stream stream;
    enum event_severity severity; /* who goes first when there is no room */
    struct str body;              /* at most EVENT_BYTES_MAX bytes; borrowed */
    const struct uuid *run;       /* the end of this run is told by it; or NULL */
};

struct event_counts {
    uint64_t pending[EVENT_STREAMS], bytes;
    uint64_t dropped;                  /* for lack of room, ever */
    uint64_t untold[EVENT_SEVERITIES]; /* dropped, and the server was not told yet */
};

/* Bounds of both streams together; once, after spool_open. */
void event_spool_limit(struct spool *s, uint32_t count, uint64_t bytes);

/* ERR_OK: it is on the disk.  seq (may be NULL) gets its number. */
MUST_USE enum err event_spool_add(struct spool *s, const struct event_add *e,
                                  uint64_t *seq, struct err_info *info);
/* An event that could not be added is given up: counted as untold when that is possible. */
void event_spool_lost(struct spool *s, enum event_severity severity);

/* Adds the record that tells `told`, and takes it off untold[], both or none. */
MUST_USE enum err event_spool_tell(struct spool *s, const struct event_add *record,
                                   const uint64_t told[EVENT_SEVERITIES],
                                   struct err_info *info);

/* The events behind `after`, in order. */
MUST_USE enum err event_spool_walk(struct spool *s, enum event_stream stream,
                                   uint64_t after, spool_each *each, void *arg,
                                   struct err_info *info);

/* The server has everything up to `through`.  Never fails because of the number. */
MUST_USE enum err event_spool_ack(struct spool *s, enum event_stream stream,
                                  uint64_t through, struct err_info *info);

/*
 * event_spool_renew - a new id for the stream, its waiting events numbered anew.  For a
 * server that knows more of the stream than there ever was here: this file is an old copy
 * (a restored machine), and its next numbers would be taken for repetitions.
 */
MUST_USE enum err event_spool_renew(struct spool *s, enum event_stream stream,
                                    struct err_info *info);

const struct uuid *event_spool_id(const struct spool *s, enum event_stream stream);
uint64_t event_spool_last(const struct spool *s, enum event_stream stream);
const struct event_counts *event_spool_counts(const struct spool *s);

#endif
