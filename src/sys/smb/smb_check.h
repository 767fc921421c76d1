/*
 * smb_check: is a share fit for the cluster?  For `redoubt check` and `redoubt init`.
 *
 * Purpose   Tries, with files of its own that it removes again, what the lease protocol
 *           rests on, and measures.  Everything blocks.
 * Units     Latencies are microseconds.
 * Errors    Those of smb.h: a test that could not be made.  A test that was made and shows
 *           something bad is ERR_OK and a result that says so.
 * Threads   as smb.h.  smb_check_exclusive() forks: call it while no other connection of the
 *           process is open and no other thread runs.
 * Tests     tests/contract/test_smb.c
 */
#ifndef SMB_CHECK_H
#define SMB_CHECK_H

#include "sys/smb/smb.h"

struct smb_rights {
    bool create, write, read, rename, remove;
    struct err_info why; /* of the first that is false */
};

/* ERR_OK whether or not the rights are there. */
MUST_USE enum err smb_check_rights(struct smb *s, struct smb_rights *out,
                                   struct err_info *info);

struct smb_exclusive {
    uint32_t rounds;
    uint32_t both; /* rounds that both won: the server is unfit */
    uint32_t none; /* rounds that nobody won */
    uint32_t ours; /* rounds that this process won; the other one won the rest */
};

/* Two connections create the same file at the same moment, `rounds` times. */
MUST_USE enum err smb_check_exclusive(const struct smb_options *o, uint32_t rounds,
                                      struct smb_exclusive *out, struct err_info *info);

struct smb_times {
    uint32_t min_us, p50_us, p95_us, p99_us, max_us;
};
struct smb_latency {
    struct smb_times renew;  /* rewrite 512 bytes and look for the next file */
    struct smb_times poll;   /* read 512 bytes and look for the next file */
    struct smb_times create; /* create exclusively and write 512 bytes */
};

/* `rounds` of each, at most SMB_CHECK_ROUNDS_MAX. */
enum { SMB_CHECK_ROUNDS_MAX = 1000 };
MUST_USE enum err smb_check_latency(struct smb *s, uint32_t rounds,
                                    struct smb_latency *out, struct err_info *info);

struct smb_bandwidth {
    uint64_t write_bytes_s, read_bytes_s;
};
/* Bytes done of both parts together; false stops with ERR_STATE. */
typedef bool smb_check_progress(void *arg, bool writing, uint64_t done, uint64_t total);

MUST_USE enum err smb_check_bandwidth(struct smb *s, uint32_t mib,
                                      smb_check_progress *progress, void *arg,
                                      struct smb_bandwidth *out, struct err_info *info);

#endif
